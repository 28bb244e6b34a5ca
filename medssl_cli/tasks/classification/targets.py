"""From findings to whole images with what is known of each, and whom a classification is scored on.

Shapes: B batch, N images, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.base.files import sha256_json
from medssl_cli.base.plugins import suggest
from medssl_cli.base.talk import Silence, Talk
from medssl_cli.cache.findings import Definition, finding_names, targets_of
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.prepared import prepare
from medssl_cli.cache.splits import Split
from medssl_cli.cache.store import Cache
from medssl_cli.data.augmentation import Draws, augment_images
from medssl_cli.data.examples import Example
from medssl_cli.data.selection import companions, of_examples, training_examples, with_annotations
from medssl_cli.data.unlabelled import UnlabelledSource
from medssl_cli.data.whole import WholeBatch, WholeDataset
from medssl_cli.data.whole_batches import every_image, prepared_images, step_batches
from medssl_cli.heads import FindingsHead
from medssl_cli.metrics.ranking import balanced_accuracy
from medssl_cli.metrics.statistics import mean_of_known
from medssl_cli.nn.build import build_backbone
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import TaskRecipe
from medssl_cli.tasks import Answer, SupervisionBase, Validate, Validation
from medssl_cli.tasks.classification.decode import probabilities
from medssl_cli.tasks.classification.scores import ClassificationSubject, aurocs, operating_point


class ClassificationSupervision(SupervisionBase, UnlabelledSource):
    """Whole images with what is known of each class."""

    annotation = "findings"
    is_exportable = True

    def __init__(self, recipe: TaskRecipe) -> None:
        super().__init__(recipe)
        self._known_names: dict[Path, list[str]] = {}

    @property
    def classes(self) -> dict[int, str]:
        """Names by place."""
        return dict(enumerate(self.options.classes))

    @property
    def score(self) -> str:
        """Mean AUROC over classes, or balanced accuracy of classes that exclude each other."""
        return "balanced_accuracy" if self.options.is_exclusive else "auroc"

    def usable(self, cache: Cache, talk: Talk) -> list[ItemRecord]:
        """See `SupervisionBase.usable`: 2D images or volumes of which some class is known."""
        size, modality = self.recipe.data.crop_size, self.recipe.data.modality
        if (size[2] == 1 or self._as_stacks) and size[0] != size[1]:
            raise UsageError(
                "E_CANVAS",
                f"2D images and slices are brought to a square; data.crop_size is {list(size)}",
                hint="make x and y equal",
            )
        label_set = self.options.label_set
        is_flat = size[2] == 1
        found = with_annotations(cache, "findings", label_set, modality=modality, is_flat=is_flat, talk=talk)
        found = of_examples(cache, found, self.recipe.data, talk)
        names = self._names(cache)
        for wanted in (name for each in self.options.classes.values() if not isinstance(each, str) for name in each):
            if wanted not in names:
                raise UsageError(
                    "E_RECIPE", f"the set {label_set!r} has no finding {wanted!r}", hint=suggest(wanted, names)
                )
        targets = self.targets(cache, found)
        kept = [record for record, row in zip(found, targets, strict=True) if np.isfinite(row).any()]
        if not kept:
            raise NothingUsableError("E_NO_LABELS", f"no class of the task is known of any of {len(found)} images")
        if len(kept) < len(found):
            talk.note(f"{len(found) - len(kept)} of {len(found)} images are left out: nothing is known of any class")
        return kept

    def targets(self, cache: Cache, records: Sequence[ItemRecord]) -> NDArray[np.float32]:
        """What is known of each image, `[N, K]`, NaN for what is not."""
        options = self.options
        classes: Mapping[str, Definition] = options.classes
        return targets_of(records, options.label_set, classes, self._names(cache), is_exclusive=options.is_exclusive)

    def _names(self, cache: Cache) -> list[str]:
        """All findings of the set in a cache, asked for once."""
        if cache.root not in self._known_names:
            self._known_names[cache.root] = finding_names(cache.records(), self.options.label_set)
        return self._known_names[cache.root]

    def check(self, cache: Cache, usable: Sequence[ItemRecord], split: Split, talk: Talk) -> dict[str, Any]:
        """See `SupervisionBase.check`: training and validation need a class that some show and others do not."""
        for name, records in (("training", split.train), ("validation", split.val)):
            targets = self.targets(cache, records)
            has_both = (targets == 1).any(axis=0) & (targets == 0).any(axis=0)
            if not has_both.any():
                raise NothingUsableError(
                    "E_TOO_FEW_PATIENTS",
                    f"no class is both present and absent among the {name} images",
                    hint="label more patients, use more of them, or try another --fold or --draw",
                )
            for place in np.flatnonzero(~has_both):
                talk.note(
                    f"W_CLASS_ABSENT: {self.classes[int(place)]} is not both present and absent among the {name} images"
                )
        rows = self.targets(cache, usable).tolist()
        known = {record.item_id: [None if value != value else value for value in row]
                 for record, row in zip(usable, rows, strict=True)}  # fmt: skip
        return {"targets_sha256": sha256_json(known), **companions(cache, usable, self.recipe.data)}

    def dataset(self, cache: Cache, records: Sequence[ItemRecord], talk: Talk) -> WholeDataset:
        """See `SupervisionBase.dataset`."""
        data = self.recipe.data
        return WholeDataset(
            prepared_images(cache, records, self.preprocessing, talk),
            self.targets(cache, records),
            data.crop_size,
            batch_size=data.batch_size,
            seed=self.recipe.seed,
            as_stacks=self._as_stacks,
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """See `SupervisionBase.preprocessing`: all of an image, or of its slices one by one, fitted to `crop_size`."""
        size = self.recipe.data.crop_size
        return self.recipe.data.fitted(size[:2] if size[2] == 1 or self._as_stacks else size)

    @cached_property
    def _as_stacks(self) -> bool:
        """Whether a network of 2D images gets volumes, as stacks of slices."""
        return self.recipe.data.crop_size[2] > 1 and build_backbone(self.recipe.backbone).spatial_dims == 2

    def begin(self, task: nn.Module, dataset: WholeDataset) -> None:
        """See `SupervisionBase.begin`: weights of rare and common classes."""
        task.balance(torch.from_numpy(dataset.targets))  # type: ignore[operator]

    def loader(self, dataset: WholeDataset, *, first_step: int, num_steps: int, **share: int) -> DataLoader[Any]:
        """See `SupervisionBase.loader`."""
        return step_batches(dataset, self.recipe.data, first_step=first_step, num_steps=num_steps, **share)

    def inputs(
        self, batch: WholeBatch, draws: Draws, to_device: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `SupervisionBase.inputs`; targets are `[B, K]`."""
        dims = 2 if self._as_stacks else 3
        images = augment_images(to_device(batch.images), self.recipe.augmentation, draws, spatial_dims=dims)
        return (images, *map(to_device, batch.beside)), to_device(batch.targets)

    def unlabelled(self, cache: Cache, talk: Talk) -> list[Example]:
        """See `UnlabelledSource.unlabelled`: single 2D images, or volumes."""
        is_flat = self.recipe.data.crop_size[2] == 1
        entries = [entry for entry in cache.entries() if (entry.shape[2] == 1) == is_flat]
        return training_examples(entries, self.recipe.data, takes_pictures=True, talk=talk)

    def unlabelled_dataset(
        self, cache: Cache, examples: Sequence[Example], talk: Talk, *, beside: Any, batch_size: int, seed: int
    ) -> WholeDataset:
        """See `UnlabelledSource.unlabelled_dataset`: nothing is known of any class."""
        items = prepare(
            cache,
            examples,
            self.preprocessing,
            progress=lambda done, total: talk.progress("preparing unlabelled images", done, total),
        )
        unknown = np.full((len(examples), len(self.classes)), np.nan, dtype=np.float32)
        size = self.recipe.data.crop_size
        return WholeDataset(items, unknown, size, batch_size=batch_size, seed=seed, as_stacks=self._as_stacks)

    def unlabelled_inputs(
        self, batch: WholeBatch, draws: Draws, to_device: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """See `UnlabelledSource.unlabelled_inputs`."""
        return self.inputs(batch, draws, to_device)[0]

    def class_shares(self, cache: Cache, records: Sequence[ItemRecord]) -> dict[str, float]:
        """See `UnlabelledSource.class_shares`: of the images of which the class is known."""
        targets = self.targets(cache, records)
        known = np.isfinite(targets).sum(axis=0).clip(min=1)
        shares = np.nansum(targets, axis=0) / known
        return {name: float(shares[place]) for place, name in self.classes.items()}

    def validator(self, cache: Cache, records: Sequence[ItemRecord]) -> Validate:
        """Mean AUROC over the classes that have one, or balanced accuracy."""
        dataset = self.dataset(cache, records, Silence())
        loader, targets = every_image(dataset, self.recipe.data), dataset.targets

        def validate(predict: Answer) -> Validation:
            logits = _logits(predict, loader)
            if self.options.is_exclusive:
                return Validation(float(balanced_accuracy(logits.argmax(axis=1), targets.argmax(axis=1))))
            values = aurocs(logits, targets)
            return Validation(mean_of_known(values), dict(zip(self.classes.values(), values, strict=True)))

        return validate

    def head(
        self, network: nn.Module, predict: Answer, validation: Callable[[], tuple[Cache, list[ItemRecord]]]
    ) -> FindingsHead:
        """See `SupervisionBase.head`: each finding is a yes where sensitivity and specificity are largest together."""
        options = self.options
        cache, records = validation()
        logits = _logits(predict, every_image(self.dataset(cache, records, Silence()), self.recipe.data))
        scores = probabilities(logits, is_exclusive=options.is_exclusive)
        targets, patients = self.targets(cache, records), [record.patient_key for record in records]
        return FindingsHead(
            names=tuple(options.classes),
            is_exclusive=options.is_exclusive,
            label_classes=dict(options.classes),
            operating_points={
                name: operating_point(scores[:, place], targets[:, place], patients)
                for place, name in self.classes.items()
            },
            num_slices=self.recipe.data.crop_size[2] if self._as_stacks else None,
        )

    def subject(
        self, network: nn.Module, predict: Answer, *, name: str, folder: Path, records: Sequence[ItemRecord]
    ) -> ClassificationSubject:
        """See `SupervisionBase.subject`."""

        def found(cache: Cache, talk: Talk) -> NDArray[np.float64]:
            loader = every_image(self.dataset(cache, records, talk), self.recipe.data)
            logits = _logits(predict, loader, talk, len(records))
            return probabilities(logits, is_exclusive=self.options.is_exclusive)

        return ClassificationSubject(
            name=name,
            task=self.recipe.name,
            folder=folder,
            records=records,
            classes=self.classes,
            probabilities=found,
            targets=lambda cache: self.targets(cache, records),
            is_exclusive=self.options.is_exclusive,
        )


def _logits(predict: Answer, loader: DataLoader[Any], talk: Talk | None = None, total: int = 0) -> NDArray[np.float32]:
    """Logits of every image, `[N, K]`."""
    parts: list[NDArray[np.float32]] = []
    for batch in loader:
        parts.append(predict(*(part.numpy() for part in (batch.images, *batch.beside))))
        if talk is not None:
            talk.progress("evaluating", sum(map(len, parts)), total)
    return np.concatenate(parts)


SUPERVISION: Final = ClassificationSupervision
