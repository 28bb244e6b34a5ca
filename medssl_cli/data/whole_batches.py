"""Batches of whole images by the data section of a recipe, whatever is said about each image."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.prepared import PreparedItem, prepare
from medssl_cli.cache.store import Cache
from medssl_cli.data.loading import step_loader
from medssl_cli.data.selection import examples_of
from medssl_cli.data.whole import WholeDataset, collate_whole, each_loader
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import Data


def prepared_images(
    cache: Cache, records: Sequence[ItemRecord], preprocessing: Preprocessing, talk: Talk
) -> Sequence[PreparedItem]:
    """Examples as a network sees them, in the order of the annotated images that they go by."""
    examples = examples_of(cache, records, preprocessing)
    return prepare(cache, examples, preprocessing, progress=lambda done, total: talk.progress("preparing", done, total))


def step_batches(
    dataset: WholeDataset, data: Data, *, first_step: int, num_steps: int, rank: int = 0, num_processes: int = 1
) -> DataLoader[Any]:
    """Loader of one process's share of the batches of these steps; see `data.loading.step_loader`."""
    return step_loader(
        dataset,
        collate_whole,
        first_step=first_step,
        num_steps=num_steps,
        batch_size=dataset.batch_size // num_processes,
        num_workers=data.num_workers,
        rank=rank,
    )


def every_image(dataset: WholeDataset, data: Data) -> DataLoader[Any]:
    """Loader of every image once, in order."""
    return each_loader(dataset, batch_size=data.batch_size, num_workers=data.num_workers)
