"""What tasks of whole images share, whatever is said about them: how images are prepared and loaded."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.prepared import PreparedItem, prepare
from medssl_cli.cache.store import Cache
from medssl_cli.data.whole import WholeDataset, each_loader, whole_loader
from medssl_cli.engine.supervision import SupervisionBase
from medssl_cli.engine.talk import Talk


class WholeSupervision(SupervisionBase):
    """Batches of whole images."""

    def prepared(self, cache: Cache, records: Sequence[ItemRecord], talk: Talk) -> Sequence[PreparedItem]:
        """Images on the recipe's grid, in the order of the records."""
        return prepare(
            cache,
            records,
            self.recipe.data.preprocessing,
            progress=lambda done, total: talk.progress("preparing", done, total),
        )

    def loader(self, dataset: WholeDataset, *, first_step: int, num_steps: int) -> DataLoader[Any]:
        """See `SupervisionBase.loader`."""
        data = self.recipe.data
        return whole_loader(
            dataset,
            first_step=first_step,
            num_steps=num_steps,
            batch_size=data.batch_size,
            num_workers=data.num_workers,
        )

    def each(self, dataset: WholeDataset) -> DataLoader[Any]:
        """Every image once, in order."""
        data = self.recipe.data
        return each_loader(dataset, batch_size=data.batch_size, num_workers=data.num_workers)
