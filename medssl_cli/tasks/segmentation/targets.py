"""From label maps to crops of volumes with their classes or regions, and whom a segmentation is scored on."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medssl_cli.base.classes import IGNORE, WantedClasses
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.prepared import PreparedItem, prepare
from medssl_cli.cache.splits import Split
from medssl_cli.cache.store import Cache
from medssl_cli.cache.targets import class_voxels, tables_of
from medssl_cli.data.augmentation import Draws, augment, augment_images
from medssl_cli.data.crops import CropBatch, CropDataset, crop_loader
from medssl_cli.data.examples import Example
from medssl_cli.data.label_checks import check_labels, say_amounts, say_unseen
from medssl_cli.data.relative_places import PlacedItems, places_of_classes
from medssl_cli.data.selection import companions, examples_of, of_examples, read_images, select, training_examples
from medssl_cli.data.unlabelled import UnlabelledSource
from medssl_cli.heads import LargestParts, MasksHead
from medssl_cli.imaging.geometry import ras_index_affine, spacing_mm
from medssl_cli.metrics.overlap import dice
from medssl_cli.metrics.statistics import mean_of_known
from medssl_cli.recipe import TaskRecipe
from medssl_cli.tasks import Answer, SupervisionBase, Validate, Validation
from medssl_cli.tasks.segmentation.decode import finished, segmenter, structure
from medssl_cli.tasks.segmentation.largest import learn_largest
from medssl_cli.tasks.segmentation.scores import SegmentationSubject, reference_of

SPACING_TOLERANCE: Final = 0.2


class SegmentationSupervision(SupervisionBase, UnlabelledSource):
    """Crops of examples with their label maps or regions."""

    annotation = "labels"
    is_exportable = True
    is_mirrored = True

    def __init__(self, recipe: TaskRecipe) -> None:
        super().__init__(recipe)
        self._spatial_dims = 3

    @property
    def classes(self) -> dict[int, str]:
        """Names by output of the network."""
        return self.wanted.names

    @cached_property
    def wanted(self) -> WantedClasses:
        """Which labels make up which class."""
        return WantedClasses.of(self.options)

    @property
    def score(self) -> str:
        """Mean Dice."""
        return "dice"

    def usable(self, cache: Cache, talk: Talk) -> list[ItemRecord]:
        """See `SupervisionBase.usable`: volumes with a label map of the set, whose examples are whole."""
        found = select(cache, modality=self.recipe.data.modality, label_set=self.options.label_set, talk=talk)
        return of_examples(cache, found, self.preprocessing, talk)

    def check(self, cache: Cache, usable: Sequence[ItemRecord], split: Split, talk: Talk) -> dict[str, Any]:
        """See `SupervisionBase.check`; the manifest knows the digests of the label maps anyway."""
        label_set = self.options.label_set
        check_labels(usable, label_set, self.wanted, talk, option="task.classes")
        say_amounts(split.train, label_set, self.wanted, talk)
        if not any(class_voxels(record.labels[label_set], self.wanted) for record in split.val):
            talk.note(
                f"W_VALIDATION_EMPTY: none of the {len(split.val)} validation images shows any class of the task, so "
                "validation cannot choose: the last checkpoint is kept"
            )
        say_unseen({"training": split.train, "validation": split.val}, label_set, self.wanted, talk)
        relation = getattr(self.options, "relation", None)
        if relation is not None and self.recipe.data.spacing_mm is None:
            _tell_spacings(usable, relation.slice_spacing_mm, talk)
        return companions(cache, usable, self.preprocessing)

    def dataset(self, cache: Cache, records: Sequence[ItemRecord], talk: Talk) -> CropDataset:
        """See `SupervisionBase.dataset`."""
        data, label_set = self.recipe.data, self.options.label_set
        items = prepare(
            cache,
            examples_of(cache, records, data.preprocessing),
            data.preprocessing,
            label_set=label_set,
            tables=tables_of([record.labels[label_set] for record in records], self.wanted),
            progress=lambda done, total: talk.progress("preparing", done, total),
        )
        return CropDataset(
            items,
            data.crop_size,
            batch_size=data.batch_size,
            seed=self.recipe.seed,
            foreground_prob=self.recipe.foreground_prob,
            crops_per_image=self.recipe.crops_per_image,
        )

    def begin(self, task: nn.Module, dataset: Any) -> None:
        """See `SupervisionBase.begin`: crops turn within what the network sees at once."""
        backbone: Any = task.get_submodule("backbone")
        self._spatial_dims = backbone.spatial_dims

    def loader(
        self, dataset: Any, *, first_step: int, num_steps: int, rank: int = 0, num_processes: int = 1
    ) -> DataLoader[Any]:
        """See `SupervisionBase.loader`."""
        data = self.recipe.data
        return crop_loader(
            dataset,
            first_step=first_step,
            num_steps=num_steps,
            batch_size=dataset.batch_size // num_processes,
            num_workers=data.num_workers,
            rank=rank,
        )

    def inputs(
        self, batch: CropBatch, draws: Draws, to_device: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `SupervisionBase.inputs`; targets are `[B, X, Y, Z]` int64, or regions `[B, K, X, Y, Z]`."""
        assert batch.labels is not None
        images, labels = to_device(batch.images), to_device(batch.labels)
        images, labels = augment(
            images,
            labels,
            self.recipe.augmentation,
            draws,
            spacing_mm=batch.spacing_mm,
            spatial_dims=self._spatial_dims,
        )
        return (images,), labels

    def unlabelled(self, cache: Cache, talk: Talk) -> list[Example]:
        """See `UnlabelledSource.unlabelled`: volumes."""
        return training_examples(cache.entries(), self.recipe.data, takes_pictures=False, talk=talk)

    def unlabelled_dataset(
        self, cache: Cache, examples: Sequence[Example], talk: Talk, *, beside: Any, batch_size: int, seed: int
    ) -> CropDataset:
        """See `UnlabelledSource.unlabelled_dataset`: crops where structures lie in labelled images, or anywhere."""
        data, section = self.recipe.data, self.recipe.unlabelled
        assert section is not None
        items: Sequence[PreparedItem] = prepare(
            cache,
            examples,
            data.preprocessing,
            progress=lambda done, total: talk.progress("preparing unlabelled images", done, total),
        )
        if section.crops == "as_labels":
            items = PlacedItems(items, places_of_classes(beside.items))
        foreground_prob = self.recipe.foreground_prob
        return CropDataset(items, data.crop_size, batch_size=batch_size, seed=seed, foreground_prob=foreground_prob)

    def unlabelled_inputs(
        self, batch: CropBatch, draws: Draws, to_device: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """See `UnlabelledSource.unlabelled_inputs`."""
        images, dims = to_device(batch.images), self._spatial_dims
        changes = self.recipe.augmentation
        return (augment_images(images, changes, draws, spacing_mm=batch.spacing_mm, spatial_dims=dims),)

    def class_shares(self, cache: Cache, records: Sequence[ItemRecord]) -> dict[str, float]:
        """See `UnlabelledSource.class_shares`: of the voxels of whole images."""
        counts = [class_voxels(record.labels[self.options.label_set], self.wanted) for record in records]
        voxels = sum(math.prod(record.shape) for record in records)
        return {name: sum(own.get(place, 0) for own in counts) / voxels for place, name in self.classes.items()}

    def validator(self, cache: Cache, records: Sequence[ItemRecord]) -> Validate:
        """Mean Dice over structures and patients; a structure absent from both counts for nothing."""
        recipe, label_set, classes = self.recipe, self.options.label_set, self.classes
        examples = examples_of(cache, records, recipe.data.preprocessing)
        shows_any = any(class_voxels(record.labels[label_set], self.wanted) for record in records)

        def validate(predict: Answer) -> Validation:
            segment = segmenter(predict, recipe, self.wanted.activation, is_mirrored=False)
            scores: dict[str, list[float]] = {name: [] for name in classes.values()}
            for record, example in zip(records, examples, strict=True):
                images = read_images(cache, example)
                found, reference = segment(images), reference_of(cache, record, label_set, self.wanted, images[0])
                found[reference == IGNORE] = 0
                for place, name in classes.items():
                    scores[name].append(dice(structure(found, place), structure(reference, place)))
            every = [score for own in scores.values() for score in own]
            by_class = {name: mean_of_known(own) for name, own in scores.items()}
            return Validation(mean_of_known(every) if shows_any else math.nan, by_class)

        return validate

    def head(
        self, network: nn.Module, predict: Answer, validation: Callable[[], tuple[Cache, list[ItemRecord]]]
    ) -> MasksHead:
        """See `SupervisionBase.head`."""
        recipe, learnt = self.recipe, getattr(network, "learnt", {})
        return MasksHead(
            activation=self.wanted.activation,
            classes=self.classes,
            label_classes=dict(self.options.classes),
            label_ignore=self.options.ignore,
            tile_size=recipe.tile_size,
            overlap=recipe.inference.overlap,
            mirror_axes=recipe.inference.mirror_axes,
            largest=LargestParts.model_validate(learnt) if learnt else None,
            nsd_tolerance_mm=recipe.evaluation.nsd_tolerance_mm,
            lesions=recipe.evaluation.lesions,
        )

    @property
    def learns(self) -> bool:
        """See `SupervisionBase.learns`."""
        return bool(self.options.keep_largest != "never")

    def learn(self, network: nn.Module, predict: Answer, cache: Cache, records: Sequence[ItemRecord]) -> dict[str, Any]:
        """See `SupervisionBase.learn`: of what only the largest connected part should count."""
        segment = segmenter(predict, self.recipe, self.wanted.activation, is_mirrored=True)

        def answers() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
            for record, example in zip(records, examples_of(cache, records, self.preprocessing), strict=True):
                images = read_images(cache, example)
                yield segment(images), reference_of(cache, record, self.options.label_set, self.wanted, images[0])

        return learn_largest(answers(), self.classes, ignored=IGNORE).model_dump(mode="json")

    def require_learnt(self, learnt: Mapping[str, Any]) -> None:
        """See `SupervisionBase.require_learnt`."""
        if not set(LargestParts.model_validate(learnt).classes) <= set(self.classes.values()):
            raise ValueError("largest parts of classes that the task has not")

    def agreed(self, several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `SupervisionBase.agreed`: what most of them say."""
        known = [LargestParts.model_validate(each) for each in several]
        return LargestParts.of_most(known).model_dump(mode="json") if any(several) else {}

    def subject(
        self, network: nn.Module, predict: Answer, *, name: str, folder: Path, records: Sequence[ItemRecord]
    ) -> SegmentationSubject:
        """See `SupervisionBase.subject`."""
        recipe, learnt = self.recipe, getattr(network, "learnt", {})
        largest = LargestParts.model_validate(learnt) if learnt else None
        return SegmentationSubject(
            name=name,
            task=recipe.name,
            folder=folder,
            records=records,
            classes=self.classes,
            wanted=self.wanted,
            segment=segmenter(
                predict,
                recipe,
                self.wanted.activation,
                is_mirrored=True,
                finish=lambda answer: finished(answer, largest, self.classes),
            ),
            preprocessing=recipe.data.preprocessing,
            label_set=self.options.label_set,
            nsd_tolerance_mm=recipe.evaluation.nsd_tolerance_mm,
            lesions=recipe.evaluation.lesions,
        )


def _tell_spacings(records: Sequence[ItemRecord], expected_mm: float, talk: Talk) -> None:
    """Say which images have slices that are further apart or closer than the recipe says."""
    found = [_slice_spacing(record) for record in records]
    others = [spacing for spacing in found if abs(spacing / expected_mm - 1) > SPACING_TOLERANCE]
    if others:
        talk.note(
            f"slices of {len(others)} of {len(found)} images are not {expected_mm:g} mm apart, as "
            f"task.relation.slice_spacing_mm says; they are {min(others):.3g} to {max(others):.3g} mm"
        )


def _slice_spacing(record: ItemRecord) -> float:
    """Millimetres between slices of a prepared image without a new spacing: along the axis that RAS makes the third."""
    order = np.abs(ras_index_affine(record.affine_array, record.shape)[:3, :3])
    return float((np.array(spacing_mm(record.affine_array)) @ order)[2])


SUPERVISION: Final = SegmentationSupervision
