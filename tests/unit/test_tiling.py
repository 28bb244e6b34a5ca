"""The sliding window: everything is covered, nothing depends on where tiles lie, padding leaves no trace."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl_cli.imaging.tiling import gaussian_weights, tile_starts
from tests.windows import sliding_window

sizes = st.tuples(*[st.integers(1, 40)] * 3)
TILE = (8, 6, 4)


def image(shape: tuple[int, ...], seed: int = 0, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(channels, *shape)).astype(np.float32)


def pointwise(tiles: np.ndarray) -> np.ndarray:
    """Two logits per voxel that depend on that voxel alone."""
    return np.concatenate([tiles**2, 1 - 3 * tiles], axis=1)


def numbered(tiles: np.ndarray) -> np.ndarray:
    """A logit that depends on the place in the tile: the index along x."""
    return np.broadcast_to(np.arange(tiles.shape[2], dtype=np.float32)[:, None, None], tiles.shape).copy()


@given(tile=sizes, extra=sizes, overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9]))
@settings(deadline=None)
def test_tiles_cover_everything_stay_inside_and_overlap_enough(tile, extra, overlap) -> None:
    shape = tuple(length + more - 1 for length, more in zip(tile, extra, strict=True))

    starts = tile_starts(shape, tile, overlap)

    assert len(set(starts)) == len(starts)
    for axis in range(3):
        along = sorted({start[axis] for start in starts})
        assert along[0] == 0
        assert along[-1] == shape[axis] - tile[axis]
        steps = np.diff(along)
        assert (steps <= max(1, int(tile[axis] * (1 - overlap)))).all()


def test_no_more_tiles_than_needed() -> None:
    # 20 voxels with tiles of 8 that may move by 4: (20 - 8) / 4 + 1 = 4; a volume of the tile's size needs one.
    assert tile_starts((20, 8, 8), (8, 8, 8), 0.5) == [(0, 0, 0), (4, 0, 0), (8, 0, 0), (12, 0, 0)]


@pytest.mark.parametrize("tile", [(8, 8, 8), (5, 4, 1), (96, 96, 96)])
def test_weights_peak_in_the_middle_are_symmetric_and_never_vanish(tile) -> None:
    weights = gaussian_weights(tile)

    assert weights.shape == tile
    assert weights.max() == 1
    assert weights.min() >= 1e-3
    assert all(np.allclose(weights, np.flip(weights, axis)) for axis in range(3))
    assert weights[tuple(size // 2 for size in tile)] == 1


def test_weights_fall_like_a_gaussian_of_an_eighth_of_the_tile() -> None:
    weights = gaussian_weights((17, 1, 1))[:, 0, 0]

    # sigma = 17 / 8; two voxels from the middle: exp(-(2 * 8 / 17)^2 / 2).
    assert weights[10] / weights[8] == pytest.approx(np.exp(-0.5 * (16 / 17) ** 2), rel=1e-6)


@given(shape=st.tuples(*[st.integers(1, 19)] * 3), overlap=st.sampled_from([0.0, 0.5, 0.75]))
@settings(deadline=None, max_examples=25)
def test_a_pointwise_network_gives_the_same_with_and_without_tiles(shape, overlap) -> None:
    voxels = image(shape)

    tiled = sliding_window(pointwise, voxels, tile=TILE, overlap=overlap)

    assert tiled.shape == (2, *shape)
    np.testing.assert_allclose(tiled, pointwise(voxels[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 3, 3), (8, 6, 4), (21, 13, 10)])
def test_constant_in_constant_out(shape) -> None:
    tiled = sliding_window(lambda tiles: tiles + 2, np.full((1, *shape), 5, np.float32), tile=TILE, overlap=0.5)

    np.testing.assert_allclose(tiled, np.full((1, *shape), 7.0), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_batches_change_nothing(batch_size) -> None:
    voxels = image((21, 13, 10), channels=2)
    expected = sliding_window(pointwise, voxels, tile=TILE, overlap=0.5)

    batched = sliding_window(pointwise, voxels, tile=TILE, overlap=0.5, batch_size=batch_size)

    assert np.array_equal(batched, expected)


def test_a_small_volume_is_padded_by_its_edges_and_cut_back_exactly() -> None:
    voxels = np.array([1, 2, 3], dtype=np.float32).reshape(1, 3, 1, 1)
    seen: list[np.ndarray] = []

    def spy(tiles: np.ndarray) -> np.ndarray:
        seen.append(tiles.copy())
        return tiles

    result = sliding_window(spy, voxels, tile=(6, 1, 1), overlap=0.5)

    # Three voxels are missing: one before, two behind.
    assert [tiles.ravel().tolist() for tiles in seen] == [[1, 1, 2, 3, 3, 3]]
    assert np.array_equal(result, voxels)


def test_a_single_tile_is_the_network_itself() -> None:
    voxels = image(TILE)

    assert np.array_equal(sliding_window(pointwise, voxels, tile=TILE, overlap=0.5), pointwise(voxels[None])[0])


def test_mirroring_averages_over_all_flips() -> None:
    voxels = image(TILE)

    plain = sliding_window(numbered, voxels, tile=TILE, overlap=0.5)
    mirrored = sliding_window(numbered, voxels, tile=TILE, overlap=0.5, mirror_axes=(0,))

    assert plain[0, :, 0, 0].tolist() == list(range(8))
    # The index and its mirror image add up to 7 everywhere.
    assert np.array_equal(mirrored, np.full((1, *TILE), 3.5, np.float32))


def test_mirrored_networks_see_every_flip_once_in_its_own_orientation() -> None:
    voxels = image(TILE)
    seen: list[np.ndarray] = []

    def spy(tiles: np.ndarray) -> np.ndarray:
        assert tiles.flags.c_contiguous
        seen.append(tiles[0, 0].copy())
        return pointwise(tiles)

    result = sliding_window(spy, voxels, tile=TILE, overlap=0.5, mirror_axes=(0, 1, 2))

    flips = [np.flip(voxels[0], [axis for axis in range(3) if code >> axis & 1]) for code in range(8)]
    assert len(seen) == 8
    assert all(any(np.array_equal(flip, tile) for tile in seen) for flip in flips)
    np.testing.assert_allclose(
        result, pointwise(voxels[None])[0], rtol=1e-5, atol=1e-6
    )  # back in place before the mean


def test_where_tiles_overlap_the_nearer_centre_weighs_more() -> None:
    # Two tiles of 4 with starts 0 and 2 along x say 0, 1, 2, 3 each; place 2 is index 2 of the first, 0 of the second.
    result = sliding_window(numbered, image((6, 1, 1)), tile=(4, 1, 1), overlap=0.5)[0, :, 0, 0]

    weights = gaussian_weights((4, 1, 1))[:, 0, 0]
    blended = (2 * weights[2] + 0 * weights[0]) / (weights[2] + weights[0])
    assert result.tolist() == pytest.approx(
        [0, 1, blended, (3 * weights[3] + weights[1]) / (weights[3] + weights[1]), 2, 3]
    )
    assert blended > 1
