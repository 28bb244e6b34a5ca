"""The MLP between a pooled embedding and a self-supervised loss."""

from typing import Final

from torch import Tensor, nn

from medssl_cli.base.errors import UsageError
from medssl_cli.nn.distributed import BatchNorm, world_size

MIN_ROWS: Final = 16  # fewer make BatchNorm's statistics, and with them the projections, mostly noise


class Projector(nn.Module):
    """Linear, BatchNorm, ReLU, twice, then Linear: embedding [N, E] -> projection [N, P].

    The normalisation has no learnt scale and keeps no running statistics, so it always uses the N rows at hand, in
    evaluation too. It removes what all rows share; without it projections of medical crops, which look alike, start out
    parallel and a cosine loss has nothing to separate.

    Parameters are named as in published VoCo checkpoints (`layer1.0`, `layer2.0`, `layer3.0`).

    Args:
        embedding_dim: E.
        projection_dim: P, also the width of the hidden layers.
        sync_norm: Normalise over the rows of all processes instead of this one's.
    """

    def __init__(self, embedding_dim: int, projection_dim: int, *, sync_norm: bool = False) -> None:
        super().__init__()
        self.layer1 = _hidden_layer(embedding_dim, projection_dim, sync_norm)
        self.layer2 = _hidden_layer(projection_dim, projection_dim, sync_norm)
        self.layer3 = nn.Sequential(nn.Linear(projection_dim, projection_dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project embeddings [N, E] of at least two rows to [N, P]."""
        projections: Tensor = self.layer3(self.layer2(self.layer1(embeddings)))
        return projections


def _hidden_layer(in_dim: int, out_dim: int, sync_norm: bool) -> nn.Sequential:
    """A linear map, a normalisation without learnt scale, and ReLU."""
    norm = BatchNorm() if sync_norm else nn.BatchNorm1d(out_dim, affine=False, track_running_stats=False)
    return nn.Sequential(nn.Linear(in_dim, out_dim), norm, nn.ReLU())


def require_rows(num_volumes: int, per_volume: int, *, sync_norm: bool) -> None:
    """Refuse batches with too few crops to normalise.

    Raises:
        UsageError: `E_USAGE`.
    """
    volumes = num_volumes * (world_size() if sync_norm else 1)
    if volumes * per_volume < MIN_ROWS:
        raise UsageError(
            "E_USAGE",
            f"{volumes} volumes of {per_volume} crops are {volumes * per_volume} rows for batch normalisation; "
            f"voco needs {MIN_ROWS}",
            hint="raise data.batch_size or method.num_random_crops",
        )
