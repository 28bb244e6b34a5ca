"""What gives a training the images that it sees without their labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

    from medssl_cli.base.talk import Talk
    from medssl_cli.cache.items import ItemRecord
    from medssl_cli.cache.store import Cache
    from medssl_cli.data.augmentation import Draws
    from medssl_cli.data.examples import Example


class UnlabelledSource(ABC):
    """What the supervision of a task offers beside, if images without labels may take part."""

    @abstractmethod
    def unlabelled(self, cache: Cache, talk: Talk) -> list[Example]:
        """All examples that the network could see, whether anything is known of them or not.

        Args:
            cache: Where they are.
            talk: Told what is left out.

        Raises:
            NothingUsableError: `E_CACHE_EMPTY`, `E_CHANNEL_MISSING`.
        """

    @abstractmethod
    def unlabelled_dataset(
        self, cache: Cache, examples: Sequence[Example], talk: Talk, *, beside: Any, batch_size: int, seed: int
    ) -> Dataset[Any]:
        """Samples by (step, slot) of examples whose labels nobody reads; `loader` takes it too.

        Args:
            cache: Cache of the examples.
            examples: Examples to show.
            talk: Progress.
            beside: Data set of the labelled images, whose crops these may resemble.
            batch_size: Samples per step, over all processes.
            seed: Seed of their order and places.
        """

    @abstractmethod
    def unlabelled_inputs(self, batch: Any, draws: Draws, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        """What the network gets of a batch of `unlabelled_dataset`, changed at random as labelled images are."""

    @abstractmethod
    def class_shares(self, cache: Cache, records: Sequence[ItemRecord]) -> dict[str, float]:
        """Share of each class among the voxels, or images, that labels tell of."""
