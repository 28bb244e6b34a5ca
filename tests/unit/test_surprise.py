"""How far an image lies from those of the training: the distance, what it is compared with, and whose embedding it is.

Shapes: N images, E elements of an embedding.
"""

import base64
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from medssl_cli.deploy.surprise import LEAST_SPREAD, NUM_PARTS, CentreEmbedding, EmbeddingSummary
from medssl_cli.imaging.tiling import centre_tile, rolling_window

RNG = np.random.default_rng(0)
MIXED = RNG.normal(size=(6, 6))


def embeddings(number: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (number, 6)) @ MIXED


def summary_of(training: np.ndarray, unseen: np.ndarray) -> EmbeddingSummary:
    """Summary of images of a patient each."""
    return EmbeddingSummary.of(training, [f"{number:03}" for number in range(len(training))], unseen)


def literal_distance(training: np.ndarray, embedding: np.ndarray) -> float:
    """Mahalanobis with the whole shrunk covariance, inverted: equation 23 of Chen et al. word by word."""
    number, dim = training.shape
    spread = np.maximum(training.std(axis=0), LEAST_SPREAD * training.std(axis=0).mean())
    scaled = (training - training.mean(axis=0)) / spread
    covariance = scaled.T @ scaled / number
    trace, squared = np.trace(covariance), np.trace(covariance @ covariance)
    above = (1 - 2 / dim) * squared + trace**2
    share = min(1.0, above / ((number + 1 - 2 / dim) * (squared - trace**2 / dim)))
    shrunk = (1 - share) * covariance + share * trace / dim * np.eye(dim)
    apart = (embedding - training.mean(axis=0)) / spread
    return float(np.sqrt(apart @ np.linalg.inv(shrunk) @ apart / dim))


def test_the_distance_is_that_of_mahalanobis_with_a_shrunk_covariance() -> None:
    training = embeddings(40, 1)

    summary = summary_of(training, embeddings(20, 2))

    for embedding in (*embeddings(3, 3), *embeddings(3, 4, shift=5.0)):
        assert summary.distance(embedding) == pytest.approx(literal_distance(training, embedding), rel=1e-3)


def test_more_elements_than_images_are_no_obstacle() -> None:
    training = np.random.default_rng(0).normal(size=(10, 300))

    summary = summary_of(training, np.random.default_rng(1).normal(size=(8, 300)))

    assert len(summary.variances) == 9
    distance = summary.distance(training.mean(axis=0) + 1)
    assert distance == pytest.approx(literal_distance(training, training.mean(axis=0) + 1), rel=1e-3)


def test_the_limit_is_where_images_end_that_were_left_out() -> None:
    training, unseen = embeddings(60, 1), embeddings(40, 2)
    parts = np.arange(60) % NUM_PARTS  # of a patient each, in the order of their names
    crossed = sorted(
        literal_distance(training[parts != part], each) for part in range(NUM_PARTS) for each in training[parts == part]
    )
    apart = sorted(literal_distance(training, each) for each in unseen)

    summary = summary_of(training, unseen)

    # the 95th percentile of 60 and of 40, each with the higher neighbour: numbers 57 and 39 of them
    assert summary.limit == pytest.approx(max(crossed[57], apart[38]), rel=1e-3)
    assert summary.num_left_out == 100
    assert summary.percentile(0.0) == 0
    assert summary.percentile(max(crossed[-1], apart[-1]) + 1) == 100
    middle = float(np.median([*crossed, *apart]))
    assert summary.percentile(middle) == pytest.approx(50, abs=1)


def test_images_of_a_patient_are_left_out_together() -> None:
    twins = np.repeat(embeddings(20, 1), 2, axis=0)  # each image twice: by its twin alone it would lie very near

    together = EmbeddingSummary.of(twins, [f"{number // 2:03}" for number in range(40)], np.zeros((0, 6)))
    apart = summary_of(twins, np.zeros((0, 6)))

    assert together.limit > apart.limit


def test_elements_that_never_change_in_training_do_not_break_it() -> None:
    same = np.ones((12, 4))

    summary = summary_of(same, same)

    assert summary.distance(np.ones(4)) == 0
    assert summary.distance(np.full(4, 2.0)) > summary.limit


def test_it_is_plain_data_that_comes_back_the_same() -> None:
    summary = summary_of(embeddings(40, 1), embeddings(20, 2))

    again = EmbeddingSummary.model_validate_json(summary.model_dump_json())

    assert again == summary
    assert again.distance(MIXED[0]) == summary.distance(MIXED[0])


@pytest.mark.parametrize(
    "change",
    [
        {"table": "AAAA"},
        {"table": "no base64"},
        {"table": base64.b64encode(np.full((2 + 5, 6), np.nan, "<f4").tobytes()).decode()},
        {"table": base64.b64encode(np.zeros((2 + 5, 6), "<f4").tobytes()).decode()},
        {"dim": 7},
        {"dim": 10**9},
        {"variances": (1.0, -1.0)},
        {"variances": (float("inf"),)},
        {"quantiles": (2.0, 1.0) + (3.0,) * 19},
        {"limit": 0.0},
    ],
)
def test_a_damaged_summary_is_refused(change: dict[str, Any]) -> None:
    document = summary_of(embeddings(40, 1), embeddings(20, 2)).model_dump()

    with pytest.raises(ValidationError):
        EmbeddingSummary.model_validate({**document, **change})


@pytest.mark.parametrize("shape", [(20, 20, 20), (40, 17, 9), (5, 30, 3), (8, 8, 8)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_the_centre_tile_is_one_that_is_computed_anyway(shape: tuple[int, int, int], overlap: float) -> None:
    voxels = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    seen: list[np.ndarray] = []

    def outputs(tiles: np.ndarray) -> list[np.ndarray]:
        seen.append(tiles[0].copy())
        return [tiles[:, :1], np.full((1, 3), len(seen), np.float32)]

    centre = CentreEmbedding()
    tile = centre_tile(voxels, (8, 8, 8), overlap)
    centre.heed(tile)
    for _ in rolling_window(centre.watched(outputs), voxels, tile=(8, 8, 8), overlap=overlap, mirror_axes=(0,)):
        pass

    (place,) = [number for number, each in enumerate(seen, start=1) if np.array_equal(each, tile)]
    assert centre.value is not None
    assert centre.value.tolist() == [place] * 3
    count = len(seen)
    centre.complete(outputs)
    assert len(seen) == count


def test_the_centre_tile_lies_in_the_middle() -> None:
    voxels = np.zeros((1, 31, 31, 31), np.float32)
    voxels[0, 15, 15, 15] = 1

    tile = centre_tile(voxels, (9, 9, 9), 0.5)

    assert tile.sum() == 1


def test_a_tile_that_nobody_computed_is_asked_for() -> None:
    centre = CentreEmbedding()
    centre.heed(np.ones((1, 4, 4, 4), np.float32))
    predict = centre.watched(lambda tiles: [tiles, tiles.mean(axis=(2, 3, 4))])

    predict(np.zeros((1, 1, 4, 4, 4), np.float32))
    assert centre.value is None
    centre.complete(lambda tiles: [tiles, tiles.mean(axis=(2, 3, 4))])

    assert centre.value is not None
    assert centre.value.tolist() == [1.0]
