"""What a pre-training shows a method whose views know where they lie: windows of slices or of volumes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medssl_cli.base.talk import Talk
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.examples import Example
from medssl_cli.data.loading import step_loader
from medssl_cli.data.mixture import mixed
from medssl_cli.data.slices import ImageIndex
from medssl_cli.data.views import make_views
from medssl_cli.data.windows import WindowBatch, WindowDataset, collate_windows
from medssl_cli.engine.probe import Probe, build_probe
from medssl_cli.engine.processes import Processes
from medssl_cli.engine.randomness import Purpose, generator
from medssl_cli.engine.slice_probe import build_slice_probe
from medssl_cli.engine.sources import Source, progress_of
from medssl_cli.engine.training_parts import TrainingParts
from medssl_cli.methods import PlacedCrops, TrainingSet, ViewRequest, Views
from medssl_cli.recipe import PretrainRecipe

SAMPLED_WINDOWS: Final = 256
SHOWN_WINDOWS: Final = 4


class PlacedSource(Source):
    """Windows at random places of images, on the grid that the recipe asks for.

    Args:
        recipe: How to train.
        processes: Launched.
        parts: Parts to train on.
        request: Request of the method.
        crops: The views that it asks for.
        talk: Told what is done.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        processes: Processes,
        parts: TrainingParts,
        request: ViewRequest,
        crops: PlacedCrops,
        talk: Talk,
    ) -> None:
        super().__init__(recipe, processes)
        self._request, self._talk = request, talk
        self._share = processes.share_of(recipe.data.batch_size)
        examples = parts.examples
        self._index = ImageIndex(
            [crops.is_flat and example.first.is_volume for example in examples],
            [example.first.modality for example in examples],
            per_volume=crops.slices_per_volume,
            balance=crops.balance,
            seed=recipe.seed,
            weights=parts.item_weights if recipe.data.mixture is not None else None,
        )
        items, probe = processes.main_first(partial(self._prepare, parts, crops))
        self._dataset = WindowDataset(items, self._index, crops, batch_size=recipe.data.batch_size, seed=recipe.seed)
        self.probe = replace(probe, windows=collate_windows([self._dataset[0, slot] for slot in range(SHOWN_WINDOWS)]))
        numbers = patient_numbers(examples)
        self._patient_of = {each.item_id: number for each, number in zip(examples, numbers.tolist(), strict=True)}
        self.training_set = TrainingSet(
            torch.from_numpy(self._index.image_groups),
            torch.from_numpy(self._index.volume_groups),
            recipe.steps,
            self._dataset.sample(SAMPLED_WINDOWS),
            numbers[torch.from_numpy(self._index.item_of_image)],
        )

    def _prepare(
        self, parts: TrainingParts, crops: PlacedCrops, heartbeat: Callable[[], None]
    ) -> tuple[Sequence[PreparedItem], Probe]:
        """Bring items onto the recipe's grid and choose the crops of the health figures."""
        progress, data, seed = progress_of(self._talk, heartbeat), self.recipe.data, self.recipe.seed
        items = mixed([part.prepared(part.declared.preprocessing, progress) for part in parts])
        if crops.is_flat:
            size = data.crop_size[:2]
            return items, build_slice_probe(parts, self._index, size, seed=seed, progress=progress, is_fitted=False)
        probe = build_probe(parts, items, data, box_size=data.crop_size, seed=seed, progress=progress)
        return items, replace(probe, boxes=probe.boxes[:0])

    def loader(self, first_step: int) -> DataLoader[Any]:
        """See `Source.loader`."""
        recipe = self.recipe
        return step_loader(
            self._dataset,
            collate_windows,
            first_step=first_step * recipe.accumulate,
            num_steps=recipe.steps * recipe.accumulate,
            batch_size=self._share,
            num_workers=recipe.data.num_workers,
            rank=self.processes.rank,
        )

    def views(self, batch: WindowBatch, index: int) -> Views:
        """See `Source.views`."""
        draws = Draws(generator(self.recipe.seed, Purpose.LOSS, index), self.processes.rank, self.processes.size)
        patients = torch.tensor([self._patient_of[item] for item in batch.item_ids])
        images, patients = self.processes.fabric.to_device((batch.images, patients))
        return make_views(self._request, images, draws, windows=batch.windows, patients=patients)


def patient_numbers(examples: Sequence[Example]) -> Tensor:
    """Number of the patient of each example, int64 [examples]."""
    keys = [example.patient_key for example in examples]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys], dtype=torch.long)
