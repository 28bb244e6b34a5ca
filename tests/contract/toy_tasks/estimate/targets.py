"""From findings to images with their numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from medssl_cli.tasks.estimate.decode import decode
from medssl_cli.tasks.estimate.scores import EstimateSubject, agreement
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medssl_cli.base.talk import Silence, Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.splits import Split
from medssl_cli.cache.store import Cache
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.selection import with_annotations
from medssl_cli.data.whole import WholeBatch, WholeDataset
from medssl_cli.data.whole_batches import every_image, prepared_images, step_batches
from medssl_cli.tasks import Answer, SupervisionBase, Validate, Validation


class EstimateSupervision(SupervisionBase):
    """Whole images with their numbers."""

    annotation = "findings"

    @property
    def classes(self) -> dict[int, str]:
        return dict(enumerate(self.options.classes))

    @property
    def score(self) -> str:
        return "agreement"

    def usable(self, cache: Cache, talk: Talk) -> list[ItemRecord]:
        found = with_annotations(
            cache, "findings", self.label_set, modality=self.recipe.data.modality, is_flat=True, talk=talk
        )
        return [
            record for record in found if all(name in record.findings[self.label_set] for name in self.options.classes)
        ]

    def check(self, cache: Cache, usable: Sequence[ItemRecord], split: Split, talk: Talk) -> dict[str, Any]:
        return {}

    def numbers(self, records: Sequence[ItemRecord]) -> NDArray[np.float32]:
        rows = [[record.findings[self.label_set][name] for name in self.options.classes] for record in records]
        return np.array(rows, dtype=np.float32)

    def dataset(self, cache: Cache, records: Sequence[ItemRecord], talk: Talk) -> WholeDataset:
        data = self.recipe.data
        items = prepared_images(cache, records, data.preprocessing, talk)
        return WholeDataset(
            items, self.numbers(records), data.crop_size, batch_size=data.batch_size, seed=self.recipe.seed
        )

    def begin(self, task: nn.Module, dataset: Any) -> None:
        pass

    def loader(
        self, dataset: WholeDataset, *, first_step: int, num_steps: int, rank: int = 0, num_processes: int = 1
    ) -> DataLoader[Any]:
        data, share = self.recipe.data, {"rank": rank, "num_processes": num_processes}
        return step_batches(dataset, data, first_step=first_step, num_steps=num_steps, **share)

    def inputs(
        self, batch: WholeBatch, draws: Draws, to_device: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        return (to_device(batch.images),), to_device(batch.targets)

    def _found(self, cache: Cache, records: Sequence[ItemRecord], predict: Answer) -> NDArray[np.float64]:
        loader = every_image(self.dataset(cache, records, Silence()), self.recipe.data)
        return np.concatenate([decode(predict(batch.images.numpy())) for batch in loader])

    def validator(self, cache: Cache, records: Sequence[ItemRecord]) -> Validate:
        return lambda predict: Validation(agreement(self._found(cache, records, predict), self.numbers(records)))

    def subject(
        self, network: nn.Module, predict: Answer, *, name: str, folder: Path, records: Sequence[ItemRecord]
    ) -> EstimateSubject:
        return EstimateSubject(
            name=name,
            task=self.recipe.name,
            folder=folder,
            records=records,
            classes=self.classes,
            found=lambda cache: self._found(cache, records, predict),
            numbers=self.numbers(records),
        )


SUPERVISION: Final = EstimateSupervision
