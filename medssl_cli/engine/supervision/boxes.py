"""Tasks that learn from boxes: 2D images, scored by the average precision of each class.

Shapes: B batch, N images, M boxes, P places of the network's maps, K classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.splits import Split
from medssl_cli.cache.store import Cache
from medssl_cli.data.augment import augment_boxes
from medssl_cli.data.boxes import boxes_of, class_of, from_canvas, stacked, to_canvas
from medssl_cli.data.whole import WholeBatch, WholeDataset
from medssl_cli.engine.evaluate_boxes import (
    Boxes,
    evaluate_boxes,
    mean_average_precision,
    to_csv,
    to_rows,
)
from medssl_cli.engine.predict import Answer, torch_predict
from medssl_cli.engine.results import OnCase, Results, Subject
from medssl_cli.engine.selection import with_annotations
from medssl_cli.engine.supervision import Validate, Validation
from medssl_cli.engine.supervision.whole import WholeSupervision
from medssl_cli.engine.talk import Silence, Talk
from medssl_cli.errors import NothingUsableError, UsageError
from medssl_cli.files import sha256_json
from medssl_cli.nn.detection import Grid, assign, decode
from medssl_cli.plugins import suggest
from medssl_cli.recipe import TaskRecipe

COLUMNS: Final = ("class", "boxes", "AP", "AP of a constant box", "mean sensitivity")


class Supervision(WholeSupervision):
    """Whole 2D images with their boxes."""

    annotation = "boxes"

    def __init__(self, recipe: TaskRecipe) -> None:
        super().__init__(recipe)
        self._grid: Grid | None = None

    @property
    def classes(self) -> dict[int, str]:
        """Names by place."""
        return dict(enumerate(self.options.classes))

    @property
    def score(self) -> str:
        """Mean over classes."""
        return "average_precision"

    @property
    def _canvas(self) -> int:
        return self.recipe.data.crop_size[0]

    def usable(self, cache: Cache, talk: Talk) -> list[ItemRecord]:
        """See `SupervisionBase.usable`: 2D images that somebody looked for boxes on; some may have none."""
        size, label_set, classes = self.recipe.data.crop_size, self.options.label_set, self.options.classes
        if size[2] != 1 or size[0] != size[1]:
            raise UsageError(
                "E_CANVAS",
                f"detection brings 2D images to a square; data.crop_size is {list(size)}",
                hint=f"for example [{size[0]}, {size[0]}, 1]",
            )
        modality = self.recipe.data.modality
        found = with_annotations(cache, "boxes", label_set, modality=modality, is_flat=True, talk=talk)
        names = sorted({box.name for record in found for box in record.boxes[label_set]})
        for wanted in (name for each in classes.values() if each != "any" for name in each):
            if wanted not in names:
                raise UsageError(
                    "E_RECIPE", f"the set {label_set!r} has no box {wanted!r}", hint=suggest(wanted, names)
                )
        others = [name for name in names if class_of(name, classes) is None]
        if others:
            talk.note(f"boxes that no class takes are background: {', '.join(others)}")
        return found

    def check(self, cache: Cache, usable: Sequence[ItemRecord], split: Split, talk: Talk) -> dict[str, Any]:
        """See `SupervisionBase.check`: training and validation need a box."""
        for name, records in (("training", split.train), ("validation", split.val)):
            places = {int(row[4]) for record in records for row in self._boxes(record)}
            if not places:
                raise NothingUsableError(
                    "E_TOO_FEW_PATIENTS",
                    f"there is no box on any of the {len(records)} {name} images",
                    hint="label more patients, use more of them, or try another --fold or --draw",
                )
            for place in sorted(set(self.classes) - places):
                talk.note(f"W_CLASS_ABSENT: there is no {self.classes[place]} among the {name} images")
        boxes = {record.item_id: self._boxes(record).tolist() for record in usable}
        return {"boxes_sha256": sha256_json(boxes)}

    def _boxes(self, record: ItemRecord) -> NDArray[np.float64]:
        return boxes_of(record, self.options.label_set, self.options.classes)

    def dataset(self, cache: Cache, records: Sequence[ItemRecord], talk: Talk) -> WholeDataset:
        """See `SupervisionBase.dataset`; targets are boxes on the square, `[N, M, 5]`."""
        items, data = self.prepared(cache, records, talk), self.recipe.data
        boxes = [
            to_canvas(self._boxes(record), record, item, self._canvas)
            for record, item in zip(records, items, strict=True)
        ]
        return WholeDataset(items, stacked(boxes), data.crop_size, batch_size=data.batch_size, seed=self.recipe.seed)

    def begin(self, task: nn.Module, dataset: Any) -> None:
        """See `SupervisionBase.begin`: which places the network has."""
        self._grid = self._grid_of(task)

    def _grid_of(self, task: nn.Module) -> Grid:
        grid: Grid = task.grid((self._canvas, self._canvas))  # type: ignore[operator]
        return grid

    def inputs(
        self, batch: WholeBatch, random: torch.Generator, to_device: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `SupervisionBase.inputs`; targets are those of every place, `[B, P, 5]`."""
        assert self._grid is not None
        images, boxes = augment_boxes(to_device(batch.images), batch.targets, self.recipe.augmentation, random)
        return (images,), to_device(assign(self._grid, boxes))

    def validator(self, cache: Cache, records: Sequence[ItemRecord]) -> Validate:
        """Mean average precision over the classes of which there is a box."""
        finder, truth = self._finder(cache, records, Silence()), self._truth(records)

        def validate(predict: Answer) -> Validation:
            assert self._grid is not None
            found, overlap = finder(predict, self._grid, Silence()), self.options.match_overlap
            return Validation(mean_average_precision(found, truth, len(self.classes), min_overlap=overlap))

        return validate

    def _truth(self, records: Sequence[ItemRecord]) -> list[Boxes]:
        rows = [self._boxes(record) for record in records]
        return [Boxes(own[:, :4], own[:, 4].astype(np.int64), np.ones(len(own))) for own in rows]

    def _finder(
        self, cache: Cache, records: Sequence[ItemRecord], talk: Talk
    ) -> Callable[[Answer, Grid, Talk], list[Boxes]]:
        """What a network finds on images, in voxel edges of the stored images."""
        items, data, options = self.prepared(cache, records, talk), self.recipe.data, self.options
        nothing = np.zeros((len(items), 0), dtype=np.float32)
        dataset = WholeDataset(items, nothing, data.crop_size, batch_size=data.batch_size, seed=self.recipe.seed)
        loader = self.each(dataset)

        def find(predict: Answer, grid: Grid, talk: Talk) -> list[Boxes]:
            found: list[Boxes] = []
            for batch in loader:
                for logits in torch.from_numpy(predict(batch.images.numpy())):
                    boxes, scores, classes = decode(
                        logits,
                        grid,
                        (self._canvas, self._canvas),
                        min_score=options.min_score,
                        max_overlap=options.max_overlap,
                        max_boxes=options.max_boxes,
                    )
                    place = len(found)
                    corners = from_canvas(boxes.double().numpy(), records[place], items[place], self._canvas)
                    found.append(Boxes(corners, classes.numpy(), scores.double().numpy()))
                talk.progress("evaluating", len(found), len(records))
            return found

        return find

    def subject(
        self, network: nn.Module, device: str, *, name: str, folder: Path, records: Sequence[ItemRecord]
    ) -> "DetectionSubject":
        """See `SupervisionBase.subject`."""
        predict, grid = torch_predict(network, device), self._grid_of(network)
        return DetectionSubject(
            name=name,
            task=self.recipe.name,
            folder=folder,
            records=records,
            classes={place + 1: name for place, name in self.classes.items()},
            found=lambda cache, talk: self._finder(cache, records, talk)(predict, grid, talk),
            truth=lambda: self._truth(records),
            match_overlap=self.options.match_overlap,
        )


@dataclass(frozen=True)
class DetectionSubject(Subject):
    """A model that finds boxes.

    Args:
        found: Boxes on all images.
        truth: Those that are there.
        match_overlap: Least intersection over union at which a box counts as found.
    """

    figure = "average_precision"

    found: Callable[[Cache, Talk], list[Boxes]]
    truth: Callable[[], list[Boxes]]
    match_overlap: float

    def score(self, cache: Cache, *, split: str, talk: Talk, on_case: OnCase | None = None) -> Results:
        """See `Subject.score`: average precision and sensitivities per class."""
        if not self.records:
            raise NothingUsableError("E_TOO_FEW_PATIENTS", "the split holds no patients")
        found, truth = self.found(cache, talk), self.truth()
        document = evaluate_boxes(
            found,
            truth,
            self.records,
            list(self.classes.values()),
            min_overlap=self.match_overlap,
            about={"model": self.name, "split": split, "task": self.task},
        )
        if on_case is not None:
            for record, case in zip(self.records, document["cases"], strict=True):
                figure = math.nan if case["mean_overlap"] is None else case["mean_overlap"]
                on_case(record.item_id, figure, cache.read_image(record), case["found"], case["there"])
        mean = document["mean_average_precision"]["mean"]
        return Results(document, to_csv(document), COLUMNS, to_rows(document), np.nan if mean is None else mean)
