"""From boxes to pictures, or crops of volumes, with what every place should say, and whom a detection is scored on.

Shapes: B batch, N images, M boxes, P places of the network's maps, K classes, D axes of space.
"""

from collections.abc import Callable, Sequence
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
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.splits import Split
from medssl_cli.cache.store import Cache
from medssl_cli.data.augmentation import Draws, augment_boxes
from medssl_cli.data.box_crops import BoxCropDataset
from medssl_cli.data.boxes import IGNORED, NO_CLASS, boxes_of, class_of, from_canvas, stacked, to_canvas
from medssl_cli.data.selection import companions, examples_of, of_examples, read_images, with_annotations
from medssl_cli.data.whole import WholeBatch, WholeDataset
from medssl_cli.data.whole_batches import every_image, prepared_images, step_batches
from medssl_cli.heads import BoxesHead, OperatingPoint
from medssl_cli.nn.build import build_backbone
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import TaskRecipe
from medssl_cli.tasks import Answer, SupervisionBase, Validate, Validation
from medssl_cli.tasks.detection.assignment import assign
from medssl_cli.tasks.detection.decode import Grid, answer, decode
from medssl_cli.tasks.detection.image_boxes import ImageBoxes, truth_of
from medssl_cli.tasks.detection.network import assignment_of
from medssl_cli.tasks.detection.scores import DetectionSubject, chosen_points, mean_average_precision

Strides = Sequence[int | tuple[int, ...]]
"""Strides of the maps of a network, along all axes or along each."""
Finder = Callable[[Answer, Strides, Talk], list[ImageBoxes]]
"""A network with its strides to what it finds on images."""
UNKNOWN: Final = OperatingPoint(threshold=0.5, rule="fixed")


class DetectionSupervision(SupervisionBase):
    """Whole pictures, or crops of volumes, with their boxes."""

    annotation = "boxes"
    is_exportable = True

    def __init__(self, recipe: TaskRecipe) -> None:
        super().__init__(recipe)
        self._strides: Strides = ()

    @cached_property
    def _dims(self) -> int:
        """Axes of what the network sees: 2 of pictures, which it sees whole, 3 of volumes, which it sees in tiles."""
        return build_backbone(self.recipe.backbone).spatial_dims

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
        """See `SupervisionBase.preprocessing`: all of a picture is fitted to the square."""
        data = self.recipe.data
        return data.fitted(data.crop_size[:2]) if self._dims == 2 else data.preprocessing

    @property
    def _canvas(self) -> int:
        return self.recipe.data.crop_size[0]

    def usable(self, cache: Cache, talk: Talk) -> list[ItemRecord]:
        """See `SupervisionBase.usable`: images that somebody looked for boxes on; some may have none."""
        size, label_set, classes = self.recipe.data.crop_size, self.options.label_set, self.options.classes
        is_flat = self._dims == 2
        if is_flat and (size[2] != 1 or size[0] != size[1]):
            raise UsageError(
                "E_CANVAS",
                f"detection brings 2D images to a square; data.crop_size is {list(size)}",
                hint=f"for example [{size[0]}, {size[0]}, 1]; volumes need a backbone with spatial_dims: 3",
            )
        modality = self.recipe.data.modality
        found = with_annotations(cache, "boxes", label_set, modality=modality, is_flat=is_flat, talk=talk)
        found = of_examples(cache, found, self.recipe.data, talk)
        names = sorted({box.name for record in found for box in record.boxes[label_set]})
        for wanted in (name for each in classes.values() if each != "any" for name in each):
            if wanted not in names:
                raise UsageError(
                    "E_RECIPE", f"the set {label_set!r} has no box {wanted!r}", hint=suggest(wanted, names)
                )
        others = [name for name in names if class_of(name, classes) is None and name not in self.options.ignore]
        if others:
            talk.note(f"boxes that no class takes are background: {', '.join(others)}")
        return found

    def check(self, cache: Cache, usable: Sequence[ItemRecord], split: Split, talk: Talk) -> dict[str, Any]:
        """See `SupervisionBase.check`: training and validation need a box."""
        for name, records in (("training", split.train), ("validation", split.val)):
            places = {int(row[-1]) for record in records for row in self._boxes(record)}
            if max(places, default=-1) < 0:
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
        options = self.options
        return boxes_of(
            record,
            options.label_set,
            options.classes,
            ignore=options.ignore,
            min_readers=options.min_readers,
            dims=self._dims,
        )

    def dataset(self, cache: Cache, records: Sequence[ItemRecord], talk: Talk) -> WholeDataset | BoxCropDataset:
        """See `SupervisionBase.dataset`; targets are boxes on the square or in the crop, `[N, M, 2 D + 1]`."""
        data, seed = self.recipe.data, self.recipe.seed
        items = prepared_images(cache, records, self.preprocessing, talk)
        boxes = [to_canvas(self._boxes(record), record, item) for record, item in zip(records, items, strict=True)]
        if self._dims == 2:
            return WholeDataset(items, stacked(boxes), data.crop_size, batch_size=data.batch_size, seed=seed)
        return BoxCropDataset(
            items,
            boxes,
            data.crop_size,
            batch_size=data.batch_size,
            seed=seed,
            box_prob=self.recipe.foreground_prob,
            crops_per_image=self.recipe.crops_per_image,
        )

    def begin(self, task: nn.Module, dataset: Any) -> None:
        """See `SupervisionBase.begin`: which places the network has."""
        self._strides = strides_of(task)

    @cached_property
    def _grid(self) -> Grid:
        """The places of a picture or crop that is learnt from."""
        return Grid.of(self.recipe.data.crop_size[: self._dims], self._strides)

    def loader(self, dataset: Any, *, first_step: int, num_steps: int, **share: int) -> DataLoader[Any]:
        """See `SupervisionBase.loader`."""
        return step_batches(dataset, self.recipe.data, first_step=first_step, num_steps=num_steps, **share)

    def inputs(
        self, batch: WholeBatch, draws: Draws, to_device: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `SupervisionBase.inputs`; targets are those of every place, `[B, P, 2 D + 1]`."""
        spacing = self.recipe.data.spacing_mm
        images, boxes = augment_boxes(
            to_device(batch.images),
            batch.targets,
            self.recipe.augmentation,
            draws,
            spacing_mm=None if spacing is None else torch.tensor(spacing).expand(len(batch.images), 3),
            left=NO_CLASS if self._dims == 2 else IGNORED,
        )
        return (images,), to_device(assign(self._grid, boxes, assignment_of(self.options, self._dims)))

    def validator(self, cache: Cache, records: Sequence[ItemRecord]) -> Validate:
        """Mean average precision over the classes of which there is a box."""
        finder, truth = self._finder(cache, records, Silence()), self._truth(records)
        places = list(self.classes)

        def validate(predict: Answer) -> Validation:
            found, overlap = finder(predict, self._strides, Silence()), self.options.match_overlap
            return Validation(mean_average_precision(found, truth, len(places), min_overlap=overlap))

        return validate

    def _truth(self, records: Sequence[ItemRecord]) -> list[ImageBoxes]:
        return truth_of(records, self.options.label_set, self._head())

    def _finder(self, cache: Cache, records: Sequence[ItemRecord], talk: Talk) -> Finder:
        """What a network finds on images, in voxel edges of the stored images."""
        return self._whole_finder(cache, records, talk) if self._dims == 2 else self._tile_finder(cache, records)

    def _tile_finder(self, cache: Cache, records: Sequence[ItemRecord]) -> Finder:
        """The same for volumes, of which each is searched tile by tile."""
        examples = examples_of(cache, records, self.preprocessing)

        def find(predict: Answer, strides: Strides, talk: Talk) -> list[ImageBoxes]:
            head = self._head(strides)
            found: list[ImageBoxes] = []
            for example in examples:
                images = read_images(cache, example)
                boxes, scores, classes = answer(predict, images, preprocessing=self.preprocessing, head=head)
                found.append(ImageBoxes(boxes, classes, scores.astype(np.float64)))
                talk.progress("evaluating", len(found), len(records))
            return found

        return find

    def _whole_finder(self, cache: Cache, records: Sequence[ItemRecord], talk: Talk) -> Finder:
        """The same for pictures, of which each is seen whole."""
        data, options = self.recipe.data, self.options
        items = prepared_images(cache, records, self.preprocessing, talk)
        nothing = np.zeros((len(items), 0), dtype=np.float32)
        dataset = WholeDataset(items, nothing, data.crop_size, batch_size=data.batch_size, seed=self.recipe.seed)
        loader = every_image(dataset, data)

        def find(predict: Answer, strides: Strides, talk: Talk) -> list[ImageBoxes]:
            grid = Grid.of((self._canvas, self._canvas), strides)
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

    def _head(self, strides: Strides = (1,), points: dict[str, OperatingPoint] | None = None) -> BoxesHead:
        """How the network's numbers are read; of each class a yes from 0.5 on, if nothing better is known."""
        options, recipe = self.options, self.recipe
        return BoxesHead(
            names=tuple(options.classes),
            label_classes=dict(options.classes),
            operating_points=points or dict.fromkeys(options.classes, UNKNOWN),
            strides=tuple(strides),
            min_score=options.min_score,
            max_overlap=options.max_overlap,
            max_boxes=options.max_boxes,
            match_overlap=options.match_overlap,
            tile_size=recipe.tile_size if self._dims == 3 else None,
            overlap=recipe.inference.overlap if self._dims == 3 else 0.0,
            label_ignore=options.ignore,
            min_readers=options.min_readers,
        )

    def head(
        self, network: nn.Module, predict: Answer, validation: Callable[[], tuple[Cache, list[ItemRecord]]]
    ) -> BoxesHead:
        """See `SupervisionBase.head`: of each class, boxes are a yes down to one false one per image."""
        cache, records = validation()
        strides = strides_of(network)
        found = self._finder(cache, records, Silence())(predict, strides, Silence())
        return self._head(strides, chosen_points(found, self._truth(records), records, self._head(strides)))

    def subject(
        self, network: nn.Module, predict: Answer, *, name: str, folder: Path, records: Sequence[ItemRecord]
    ) -> DetectionSubject:
        """See `SupervisionBase.subject`."""
        strides = strides_of(network)
        return DetectionSubject(
            name=name,
            task=self.recipe.name,
            folder=folder,
            records=records,
            classes={place + 1: name for place, name in self.classes.items()},
            found=lambda cache, talk: self._finder(cache, records, talk)(predict, strides, talk),
            truth=lambda: self._truth(records),
            match_overlap=self.options.match_overlap,
        )


def strides_of(network: nn.Module) -> Strides:
    """Strides of the maps of a network of this task."""
    strides: Strides = network.strides  # type: ignore[assignment]
    return strides


SUPERVISION: Final = DetectionSupervision
