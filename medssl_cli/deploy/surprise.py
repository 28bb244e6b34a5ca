"""How far an image lies from those of the training, in the embedding of the encoder: a distance of Mahalanobis.

Export sums up the embeddings of training images and keeps how far images lie that were left out of the sum; inference
takes the embedding of an image out of the calls of the network that it makes anyway. numpy only.

Shapes: N images, E elements of an embedding, R directions.
"""

import base64
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medssl_cli.base.strict import NonNegativeFloat, PositiveFloat, PositiveInt, Probability, Strict

Array = NDArray[np.float64]
MOST_DIRECTIONS: Final = 24
MOST_ELEMENTS: Final = 4096
LEAST_SPREAD: Final = 0.05
"""Least spread of an element, as a share of the mean one: what never changed in training would weigh without end."""
NUM_STEPS: Final = 20
NUM_PARTS: Final = 5
"""Parts of the training's patients, each of which is left out once of the sum that it is measured by."""
LIMIT_SHARE: Final = 0.95
"""Share of the images left out that lie within the limit."""
ROUNDED: Final = 6


class EmbeddingSummary(Strict):
    """Mean and shrunk covariance of the training images' embeddings, of low rank, and how far other images lie.

    Args:
        num_images: Training images that are summed up.
        dim: E.
        variances: Variances along the R directions that differ most, after each element was divided by its spread.
        rest_variance: Variance along every other direction.
        table: Mean `[E]`, spread `[E]` and directions `[R, E]`, one after the other, float32 in base64.
        num_left_out: Images that were left out of the sum that they are measured by.
        quantiles: Their distances, every twentieth part from the nearest to the farthest.
        limit_share: Least share of them that lies within the limit.
        limit: Distance beyond which an image is unlike those of the training.
    """

    num_images: PositiveInt
    dim: Annotated[int, Field(gt=0, le=MOST_ELEMENTS)]
    variances: Annotated[tuple[PositiveFloat, ...], Field(max_length=MOST_DIRECTIONS)]
    rest_variance: PositiveFloat
    table: Annotated[str, Field(max_length=6 * (MOST_DIRECTIONS + 2) * MOST_ELEMENTS)]
    num_left_out: PositiveInt
    quantiles: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=NUM_STEPS + 1, max_length=NUM_STEPS + 1)]
    limit_share: Probability = LIMIT_SHARE
    limit: PositiveFloat

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        rows = self.rows
        if not np.isfinite(rows).all() or (rows[1] <= 0).any():
            raise ValueError("table must hold finite numbers, and spreads above 0")
        if list(self.quantiles) != sorted(self.quantiles):
            raise ValueError("quantiles must rise")
        return self

    @property
    def rows(self) -> Array:
        """Mean, spread and directions, `[2 + R, E]`.

        Raises:
            ValueError: The table is of another size.
        """
        numbers = np.frombuffer(base64.b64decode(self.table, validate=True), dtype="<f4")
        return numbers.reshape(2 + len(self.variances), self.dim).astype(np.float64)

    @classmethod
    def of(cls, training: Array, patients: Sequence[str], unseen: Array) -> Self:
        """Summary of embeddings `[N, E]` of training images.

        Distances to compare with are those of images of validation patients, whom the network has not learnt from, and
        those of training images, by what the patients of other parts sum up to. The limit is the wider one of both.

        Args:
            training: Embeddings of the training images.
            patients: Whose they are.
            unseen: Embeddings of images of validation patients; there may be none.
        """
        whole = cls._bare(training)
        parts = np.array([sorted(set(patients)).index(patient) % NUM_PARTS for patient in patients])
        crossed = [
            cls._bare(training[parts != part]).distance(each)
            for part in range(NUM_PARTS)
            for each in training[parts == part]
        ]
        apart = [whole.distance(each) for each in unseen]
        limits = [float(np.quantile(own, LIMIT_SHARE, method="higher")) for own in (crossed, apart) if own]
        quantiles = np.quantile([*crossed, *apart], np.linspace(0, 1, NUM_STEPS + 1))
        found = {
            "num_left_out": len(crossed) + len(apart),
            "quantiles": tuple(map(_rounded, quantiles)),
            "limit": max(_rounded(max(limits)), 10.0**-ROUNDED),
        }
        return cls(**{**whole.model_dump(), **found})

    @classmethod
    def _bare(cls, embeddings: Array) -> Self:
        """A summary that nothing was measured by yet."""
        mean, spread = embeddings.mean(axis=0), _spread(embeddings)
        shrunk = _Shrunk((embeddings - mean) / spread)
        table = np.concatenate([mean[None], spread[None], shrunk.vectors]).astype("<f4")
        return cls(
            num_images=len(embeddings),
            dim=embeddings.shape[1],
            variances=shrunk.variances,
            rest_variance=shrunk.rest,
            table=base64.b64encode(table.tobytes()).decode(),
            num_left_out=1,
            quantiles=(0.0,) * (NUM_STEPS + 1),
            limit=1.0,
        )

    def distance(self, embedding: NDArray[Any]) -> float:
        """Distance of an embedding `[E]` from the mean: about 1 for images as they were in training."""
        mean, spread, *directions = self.rows
        apart = (embedding.astype(np.float64) - mean) / spread
        along = np.array(directions).reshape(-1, self.dim) @ apart
        rest = max(0.0, float(apart @ apart - along @ along))
        total = float((along**2 / np.array(self.variances)).sum()) + rest / self.rest_variance
        return math.sqrt(total / self.dim)

    def percentile(self, distance: float) -> float:
        """Share in percent of the images left out that lie nearer."""
        return float(np.interp(distance, self.quantiles, np.linspace(0, 100, NUM_STEPS + 1)))


class _Shrunk:
    """Covariance of standardised embeddings, shrunk towards equal variances, by its largest directions.

    How much it is shrunk: Chen, Wiesel, Eldar and Hero, Shrinkage algorithms for MMSE covariance estimation, IEEE
    Transactions on Signal Processing 2010, https://arxiv.org/abs/0907.4698, equation 23.

    Args:
        standardised: `[N, E]` of mean 0.
    """

    def __init__(self, standardised: Array) -> None:
        number, dim = standardised.shape
        _, lengths, vectors = np.linalg.svd(standardised, full_matrices=False)
        values = lengths**2 / number
        trace, squares = float(values.sum()), float((values**2).sum())
        apart = (number + 1 - 2 / dim) * (squares - trace**2 / dim)
        share = min(1.0, ((1 - 2 / dim) * squares + trace**2) / apart) if apart > 0 else 1.0
        level = max(trace / dim, 1e-6)
        rank = min(MOST_DIRECTIONS, number - 1, dim - 1)
        shrunk = (1 - share) * values + share * level
        others = (1 - share) * float(values[rank:].sum()) / (dim - rank) + share * level
        self.vectors = vectors[:rank]
        self.variances = tuple(_rounded(max(value, 1e-6)) for value in shrunk[:rank])
        self.rest = _rounded(max(others, 1e-6))


def _spread(embeddings: Array) -> Array:
    """Standard deviation of each element, none far below the others; 1 where nothing differs."""
    found = embeddings.std(axis=0)
    least = LEAST_SPREAD * float(found.mean())
    return np.maximum(found, least) if least > 0 else np.ones_like(found)


def _rounded(value: float) -> float:
    return round(float(value), ROUNDED)


class CentreEmbedding:
    """The embedding of one image: what the network gives, beside its answer, for the tile nearest to the middle.

    Networks that see images whole are called once, and that call is taken. `value` is None before that.
    """

    def __init__(self) -> None:
        self.value: NDArray[np.float32] | None = None
        self._tile: NDArray[np.float32] | None = None

    def heed(self, tile: NDArray[np.float32]) -> None:
        """Take the embedding of this tile `[C, *tile]`, and of no other."""
        self._tile = tile

    def watched(self, outputs: Callable[..., Sequence[NDArray[np.float32]]]) -> Callable[..., NDArray[np.float32]]:
        """The answers alone of a network that gives answers and embeddings `[B, E]`."""

        def predict(*inputs: NDArray[Any]) -> NDArray[np.float32]:
            answer, embeddings = outputs(*inputs)
            if self.value is None and (self._tile is None or np.array_equal(inputs[0][0], self._tile)):
                self.value = embeddings[0].copy()
            return answer

        return predict

    def complete(self, outputs: Callable[..., Sequence[NDArray[np.float32]]]) -> None:
        """Ask for the tile's embedding where no call of the network was about it."""
        if self.value is None and self._tile is not None:
            self.value = outputs(self._tile[None])[1][0].copy()
