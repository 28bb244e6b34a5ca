"""From boxes to 2D images with what every place should say, and whom a detection is scored on.

Shapes: B batch, N images, M boxes, P places of the network's maps, K classes.
"""

import math
from collections.abc import Callable, Sequence
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
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.splits import Split
from medssl_cli.cache.store import Cache
from medssl_cli.data.augmentation import Draws, augment_boxes
from medssl_cli.data.boxes import boxes_of, class_of, from_canvas, stacked, to_canvas
from medssl_cli.data.selection import companions, of_examples, with_annotations
from medssl_cli.data.whole import WholeBatch, WholeDataset
from medssl_cli.data.whole_batches import every_image, prepared_images, step_batches
from medssl_cli.heads import BoxesHead
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import TaskRecipe
from medssl_cli.tasks import Answer, SupervisionBase, Validate, Validation
from medssl_cli.tasks.detection.decode import Grid, decode
from medssl_cli.tasks.detection.scores import (
    DetectionSubject,
    ImageBoxes,
    class_marks,
    mean_average_precision,
    operating_point,
    truth_of,
)

CENTRE_RADIUS: Final = 1.5
"""Of a box, in strides: places that far from its centre answer for it."""


class DetectionSupervision(SupervisionBase):
    """Whole 2D images with their boxes."""

    annotation = "boxes"
    is_exportable = True

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
    def preprocessing(self) -> Preprocessing:
        """See `SupervisionBase.preprocessing`: all of an image, fitted to the square."""
        return self.recipe.data.fitted(self.recipe.data.crop_size[:2])

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
        found = of_examples(cache, found, self.recipe.data, talk)
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
        return {"boxes_sha256": sha256_json(boxes), **companions(cache, usable, self.recipe.data)}

    def _boxes(self, record: ItemRecord) -> NDArray[np.float64]:
        return boxes_of(record, self.options.label_set, self.options.classes)

    def dataset(self, cache: Cache, records: Sequence[ItemRecord], talk: Talk) -> WholeDataset:
        """See `SupervisionBase.dataset`; targets are boxes on the square, `[N, M, 5]`."""
        data = self.recipe.data
        items = prepared_images(cache, records, self.preprocessing, talk)
        boxes = [to_canvas(self._boxes(record), record, item) for record, item in zip(records, items, strict=True)]
        return WholeDataset(items, stacked(boxes), data.crop_size, batch_size=data.batch_size, seed=self.recipe.seed)

    def begin(self, task: nn.Module, dataset: Any) -> None:
        """See `SupervisionBase.begin`: which places the network has."""
        self._grid = self._grid_of(task)

    def _grid_of(self, task: nn.Module) -> Grid:
        grid: Grid = task.grid((self._canvas, self._canvas))  # type: ignore[operator]
        return grid

    def loader(
        self, dataset: WholeDataset, *, first_step: int, num_steps: int, rank: int = 0, num_processes: int = 1
    ) -> DataLoader[Any]:
        """See `SupervisionBase.loader`."""
        return step_batches(
            dataset,
            self.recipe.data,
            first_step=first_step,
            num_steps=num_steps,
            rank=rank,
            num_processes=num_processes,
        )

    def inputs(
        self, batch: WholeBatch, draws: Draws, to_device: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `SupervisionBase.inputs`; targets are those of every place, `[B, P, 5]`."""
        assert self._grid is not None
        images, boxes = augment_boxes(to_device(batch.images), batch.targets, self.recipe.augmentation, draws)
        return (images,), to_device(assign(self._grid, boxes))

    def validator(self, cache: Cache, records: Sequence[ItemRecord]) -> Validate:
        """Mean average precision over the classes of which there is a box."""
        finder, truth = self._finder(cache, records, Silence()), self._truth(records)

        def validate(predict: Answer) -> Validation:
            assert self._grid is not None
            found, overlap = finder(predict, self._grid, Silence()), self.options.match_overlap
            return Validation(mean_average_precision(found, truth, len(self.classes), min_overlap=overlap))

        return validate

    def _truth(self, records: Sequence[ItemRecord]) -> list[ImageBoxes]:
        return truth_of(records, self.options.label_set, self.options.classes)

    def _finder(
        self, cache: Cache, records: Sequence[ItemRecord], talk: Talk
    ) -> Callable[[Answer, Grid, Talk], list[ImageBoxes]]:
        """What a network finds on images, in voxel edges of the stored images."""
        data, options = self.recipe.data, self.options
        items = prepared_images(cache, records, self.preprocessing, talk)
        nothing = np.zeros((len(items), 0), dtype=np.float32)
        dataset = WholeDataset(items, nothing, data.crop_size, batch_size=data.batch_size, seed=self.recipe.seed)
        loader = every_image(dataset, data)

        def find(predict: Answer, grid: Grid, talk: Talk) -> list[ImageBoxes]:
            found: list[ImageBoxes] = []
            for batch in loader:
                for logits in predict(batch.images.numpy()):
                    boxes, scores, classes = decode(
                        logits,
                        grid,
                        (self._canvas, self._canvas),
                        min_score=options.min_score,
                        max_overlap=options.max_overlap,
                        max_boxes=options.max_boxes,
                    )
                    place = len(found)
                    corners = from_canvas(boxes.astype(np.float64), records[place], items[place])
                    found.append(ImageBoxes(corners, classes, scores.astype(np.float64)))
                talk.progress("evaluating", len(found), len(records))
            return found

        return find

    def head(
        self, network: nn.Module, predict: Answer, validation: Callable[[], tuple[Cache, list[ItemRecord]]]
    ) -> BoxesHead:
        """See `SupervisionBase.head`: of each class, boxes are a yes down to one false one per image."""
        options = self.options
        cache, records = validation()
        found = self._finder(cache, records, Silence())(predict, self._grid_of(network), Silence())
        truth, patients = self._truth(records), {record.patient_key for record in records}
        strides: Any = network.strides
        return BoxesHead(
            names=tuple(options.classes),
            label_classes=dict(options.classes),
            operating_points={
                name: operating_point(
                    class_marks(found, truth, place, min_overlap=options.match_overlap),
                    min_score=options.min_score,
                    num_patients=len(patients),
                )
                for place, name in self.classes.items()
            },
            strides=tuple(strides),
            min_score=options.min_score,
            max_overlap=options.max_overlap,
            max_boxes=options.max_boxes,
            match_overlap=options.match_overlap,
        )

    def subject(
        self, network: nn.Module, predict: Answer, *, name: str, folder: Path, records: Sequence[ItemRecord]
    ) -> DetectionSubject:
        """See `SupervisionBase.subject`."""
        grid = self._grid_of(network)
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


def assign(grid: Grid, boxes: Tensor) -> Tensor:
    """Which box each place answers for: of those of its size around whose centre it lies, the smallest.

    Args:
        grid: Of the image.
        boxes: [B, M, 5]: corners and class, negative for none.

    Returns:
        What the places should say, [B, P, 5]: distances to the edges, and the class, -1 for background.
    """
    corners, classes = boxes[..., :4], boxes[..., 4]
    places, strides, sizes = (torch.from_numpy(part) for part in grid)
    low = places[None, :, None] - corners[:, None, :, :2]
    high = corners[:, None, :, 2:] - places[None, :, None]
    edges = torch.cat([low, high], dim=-1)
    centres = (corners[..., :2] + corners[..., 2:]) / 2
    away = (places[None, :, None] - centres[:, None]).abs().amax(dim=-1)
    farthest = edges.amax(dim=-1)
    fits = (edges.amin(dim=-1) > 0) & (away <= CENTRE_RADIUS * strides[None, :, None])
    fits &= (farthest > sizes[None, :, None, 0]) & (farthest <= sizes[None, :, None, 1])
    fits &= classes[:, None] >= 0
    areas = (corners[..., 2:] - corners[..., :2]).prod(dim=-1)
    smallest, chosen = areas[:, None].masked_fill(~fits, math.inf).min(dim=-1)
    found = torch.gather(classes, 1, chosen).masked_fill(smallest.isinf(), -1)
    picked = torch.gather(edges, 2, chosen[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
    return torch.cat([picked, found[..., None]], dim=-1)


SUPERVISION: Final = DetectionSupervision
