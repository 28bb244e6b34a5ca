"""What a pre-training shows its method: boxes of volumes, or 2D images and stacks of slices. The loop knows no more."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medssl_cli.base.talk import Talk
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.crops import CropDataset, Share, crop_loader
from medssl_cli.data.mixture import mixed
from medssl_cli.data.slices import ImageIndex, SliceBatch, SliceDataset, StepPlan, everything_loader, slice_loader
from medssl_cli.data.views import make_views
from medssl_cli.engine.canvas import canvas_warning
from medssl_cli.engine.labelled import first_labels, labelled_crops
from medssl_cli.engine.probe import Probe, build_probe
from medssl_cli.engine.processes import Processes
from medssl_cli.engine.randomness import Purpose, generator
from medssl_cli.engine.slice_probe import build_slice_probe
from medssl_cli.engine.training_parts import TrainingParts
from medssl_cli.methods import Labelled, SliceRequest, Slices, TrainingSet, ViewRequest, Views
from medssl_cli.recipe import PretrainRecipe

MEASURED_IMAGES: Final = 200  # at most, for a median


class Source(ABC):
    """Steps of a pre-training as a method wants them.

    Args:
        recipe: How to train.
        processes: Launched.
    """

    labels: Tensor | None = None
    training_set: TrainingSet

    def __init__(self, recipe: PretrainRecipe, processes: Processes) -> None:
        self.recipe = recipe
        self.processes = processes
        self.probe: Probe

    @abstractmethod
    def loader(self, first_step: int) -> DataLoader[Any]:
        """One batch per micro-step, from a step on."""

    @abstractmethod
    def views(self, batch: Any, index: int) -> Views:
        """A batch on the device, with the random numbers of its micro-step."""

    def epoch(self, step: int) -> int | None:
        """Number of the epoch that begins with this step; None within one, and where there are none."""
        return None

    def everything(self, request: SliceRequest) -> Iterator[Views]:
        """See `methods.Passes`."""
        return iter(())


class BoxSource(Source):
    """Boxes of volumes, with labelled crops beside them if the method wants some.

    Args:
        recipe: How to train.
        processes: Launched.
        parts: Parts to train on.
        request: Request of the method.
        talk: Told what is odd.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        processes: Processes,
        parts: TrainingParts,
        request: ViewRequest,
        talk: Talk,
    ) -> None:
        super().__init__(recipe, processes)
        self._request, self._talk = request, talk
        self._share = processes.share_of(recipe.data.batch_size)
        self.training_set = TrainingSet(torch.zeros(0).long(), torch.zeros(len(parts)).long(), recipe.steps)
        self._items, crops, self.probe = processes.main_first(partial(self._prepare, parts))
        self._labelled: Share | None = None
        if request.labelled is not None:
            share = processes.share_of(request.labelled.batch_size, f"{request.labelled.option}.batch_size")
            self._labelled = Share(labelled_crops(crops, request.labelled, recipe.seed), share)
            self.labels = first_labels(self._labelled.dataset, request.labelled.batch_size)

    def _prepare(
        self, parts: TrainingParts, heartbeat: Callable[[], None]
    ) -> tuple[Sequence[PreparedItem], Sequence[PreparedItem], Probe]:
        """Bring items and labels onto the recipe's grid and choose the crops of the health figures."""
        data, seed, size = self.recipe.data, self.recipe.seed, self._request.size
        progress = progress_of(self._talk, heartbeat)
        for part in parts:
            each = -(-len(part.examples) // MEASURED_IMAGES)
            some = [part.cache.record(example.item_id) for example in part.examples[::each]]
            if warning := canvas_warning(part.declared, size, some):
                self._talk.note(warning)
        items = [part.prepared(part.declared.preprocessing, progress) for part in parts]
        crops = self._labelled_items(parts, progress)
        probe = build_probe(parts, mixed(items), data, box_size=size, seed=seed, progress=progress)
        if size[2] == 1:
            probe = replace(probe, crops=probe.crops[..., 0])
        return mixed(items, parts.weights), crops, probe

    def _labelled_items(self, parts: TrainingParts, progress: Callable[[int, int], None]) -> Sequence[PreparedItem]:
        request = self._request.labelled
        if request is None:
            return []
        labelled = [(part, weight) for part, weight in zip(parts, parts.weights, strict=True) if part.labelled]
        prepared = [part.prepared_labels(request, progress) for part, _ in labelled]
        return mixed(prepared, [weight for _, weight in labelled] if len(labelled) > 1 else None)

    def loader(self, first_step: int) -> DataLoader[Any]:
        """See `Source.loader`."""
        recipe = self.recipe
        dataset = CropDataset(
            self._items, self._request.size, batch_size=recipe.data.batch_size, seed=recipe.seed, pad_with_low=True
        )
        return crop_loader(
            dataset,
            first_step=first_step * recipe.accumulate,
            num_steps=recipe.steps * recipe.accumulate,
            batch_size=self._share,
            num_workers=recipe.data.num_workers,
            rank=self.processes.rank,
            labelled=self._labelled,
        )

    def views(self, batch: Any, index: int) -> Views:
        """See `Source.views`."""
        to_device, labelled = self.processes.fabric.to_device, None
        images = to_device(batch.images)
        if batch.labelled is not None:
            labelled = Labelled(*to_device((batch.labelled.images, batch.labelled.labels)))
        draws = Draws(generator(self.recipe.seed, Purpose.LOSS, index), self.processes.rank, self.processes.size)
        return make_views(self._request, images, draws, labelled=labelled)


class SliceSource(Source):
    """Radiographs, slices of volumes, and stacks of slices.

    Args:
        recipe: How to train.
        processes: Launched.
        parts: Parts to train on.
        request: Request of the method.
        talk: Told what is done.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        processes: Processes,
        parts: TrainingParts,
        request: SliceRequest,
        talk: Talk,
    ) -> None:
        super().__init__(recipe, processes)
        self._request = ViewRequest(recipe.data.crop_size, slices=request)
        stacks = request.stacks
        self._stacks_per_step = 0 if stacks is None else stacks.batch_size
        processes.share_of(recipe.data.batch_size)
        processes.share_of(self._stacks_per_step, "method.stacks.batch_size")
        examples = parts.examples
        self._index = ImageIndex(
            [example.first.is_volume for example in examples],
            [example.first.modality for example in examples],
            per_volume=request.slices_per_volume,
            balance=request.balance,
            seed=recipe.seed,
            weights=parts.item_weights if recipe.data.mixture is not None else None,
        )
        self._plan = StepPlan(recipe.data.batch_size, self._stacks_per_step, 0 if stacks is None else stacks.every)
        image_groups, volume_groups = self._index.image_groups, self._index.volume_groups
        self.training_set = TrainingSet(torch.from_numpy(image_groups), torch.from_numpy(volume_groups), recipe.steps)
        prepared = processes.main_first(partial(self._prepare, parts, request.canvas, talk))
        items, self.probe = prepared
        self._dataset = SliceDataset(
            items,
            self._index,
            self._plan,
            max_slices=1 if stacks is None else stacks.max_slices,
            seed=recipe.seed,
            is_centred=stacks is not None and stacks.is_centred,
        )

    def _prepare(
        self, parts: TrainingParts, canvas: int, talk: Talk, heartbeat: Callable[[], None]
    ) -> tuple[Sequence[PreparedItem], Probe]:
        progress, data = progress_of(talk, heartbeat), self.recipe.data
        items = [part.prepared(part.declared.fitted((canvas, canvas)), progress) for part in parts]
        size, seed = data.crop_size[:2], self.recipe.seed
        return mixed(items), build_slice_probe(parts, self._index, size, seed=seed, progress=progress)

    def loader(self, first_step: int) -> DataLoader[Any]:
        """See `Source.loader`."""
        recipe, processes = self.recipe, self.processes
        return slice_loader(
            self._dataset,
            self._plan,
            range(first_step * recipe.accumulate, recipe.steps * recipe.accumulate),
            num_workers=recipe.data.num_workers,
            rank=processes.rank,
            num_processes=processes.size,
        )

    def views(self, batch: SliceBatch, index: int) -> Views:
        """See `Source.views`."""
        return self._on_device(self._request, batch, Purpose.LOSS, index)

    def _on_device(self, request: ViewRequest, batch: SliceBatch, purpose: Purpose, index: int) -> Views:
        to_device = self.processes.fabric.to_device
        slices = Slices(
            to_device(batch.places),
            to_device(batch.is_present),
            to_device(batch.positions_mm),
            batch.are_volumes,
            batch.levels,
        )
        draws = Draws(generator(self.recipe.seed, purpose, index), self.processes.rank, self.processes.size)
        return make_views(request, to_device(batch.images), draws, slices=slices)

    def epoch(self, step: int) -> int | None:
        """See `Source.epoch`; counted in single images, or in volumes where nothing else is shown."""
        shows_images = self._plan.every != 1
        number = self._index.epoch_length if shows_images else len(self._index.volume_order)
        size = self.recipe.data.batch_size if shows_images else self._stacks_per_step
        length = max(1, number // size)

        def epoch_at(micro_step: int) -> int:
            return self._plan.shown(micro_step, are_volumes=not shows_images) // length

        epoch = epoch_at(step * self.recipe.accumulate)
        return epoch if step == 0 or epoch > epoch_at((step - 1) * self.recipe.accumulate) else None

    def everything(self, request: SliceRequest) -> Iterator[Views]:
        """See `methods.Passes`."""
        declared = replace(self._request, slices=request)
        kinds = [(False, self.recipe.data.batch_size), (True, self._stacks_per_step)]
        for are_volumes, size in kinds:
            if size == 0 or (are_volumes and not self._index.volumes.size):
                continue
            loader = everything_loader(
                self._dataset,
                self._index,
                size // self.processes.size,
                are_volumes=are_volumes,
                num_workers=self.recipe.data.num_workers,
                rank=self.processes.rank,
                num_processes=self.processes.size,
            )
            for number, batch in enumerate(loader):
                yield self._on_device(declared, batch, Purpose.EVERYTHING, 2 * number + are_volumes)


def progress_of(talk: Talk, heartbeat: Callable[[], None]) -> Callable[[int, int], None]:
    """Tell how far preparing is, and let other processes wait on."""

    def progress(done: int, total: int) -> None:
        talk.progress("preparing", done, total)
        heartbeat()

    return progress
