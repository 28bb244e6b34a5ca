"""Other numbers of voxels over the same box: every new voxel is a weighted mean of the old ones around its centre."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medssl_cli.imaging.geometry import Shape, spacing_mm
from medssl_cli.imaging.resize import axis_weights, fitted_shape, resize, stretched


def literal(values: np.ndarray, size: int) -> np.ndarray:
    """One axis, said plainly: weights fall linearly to zero at one voxel of the coarser grid, and add up to one."""
    ratio = len(values) / size
    found = []
    for new in range(size):
        centre_mm = (new + 0.5) * ratio  # in lengths of an old voxel, from the edge of the first
        weights = [max(0.0, 1 - abs(old + 0.5 - centre_mm) / max(1.0, ratio)) for old in range(len(values))]
        found.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return np.array(found)


@pytest.mark.parametrize(("old", "new"), [(10, 5), (10, 10), (7, 3), (5, 12), (1, 4), (9, 1), (100, 7), (31, 30)])
def test_an_axis_is_the_literal_formula(old: int, new: int) -> None:
    values = np.random.default_rng(old * new).normal(size=old)

    found = resize(values.reshape(1, old, 1, 1), (new, 1, 1)).ravel()

    np.testing.assert_allclose(found, literal(values, new), atol=1e-12)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_three_axes_are_one_after_the_other(dtype: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, (2, 9, 8, 7)).astype(dtype)

    found = resize(np.flip(voxels, 1), (4, 11, 7))

    expected = np.flip(voxels, 1).astype(np.float64)
    expected = np.apply_along_axis(literal, 1, expected, 4)
    expected = np.apply_along_axis(literal, 2, expected, 11)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_shrinking_skips_nothing() -> None:
    for place in range(64):
        spike = np.zeros(64)
        spike[place] = 64.0

        small = resize(spike.reshape(1, 64, 1, 1), (4, 1, 1)).ravel()

        # Between the first and last new voxel weights of neighbours add up to the same; at the ends there is one only.
        assert 0.5 < small.mean() < 1.2
        if 8 <= place < 56:
            assert small[1:3].sum() > 0
    assert resize(np.full((1, 64, 9, 3), 7, np.uint8), (5, 20, 3)) == pytest.approx(7)


def test_large_whole_numbers_keep_their_digits() -> None:
    voxels = np.full((1, 4, 4, 1), 2**31 + 1, np.uint32)

    assert resize(voxels, (2, 2, 1)).dtype == np.float64
    assert resize(voxels, (2, 2, 1)).ravel().tolist() == [2**31 + 1] * 4


def test_weights_add_up_to_one_and_stay_inside() -> None:
    for old, new in ((5, 11), (11, 5), (2500, 224)):
        for first, weights in axis_weights(old, new):
            assert 0 <= first <= first + len(weights) <= old
            assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("shape", "spacing", "fit", "expected"),
    [
        ((2000, 2500, 1), (0.14, 0.14, 1.0), (224, 224), (179, 224, 1)),
        ((2000, 2500, 1), (0.28, 0.14, 1.0), (224, 224), (224, 140, 1)),
        ((512, 512, 40), (0.7, 0.7, 5.0), (224, 224), (224, 224, 40)),
        ((512, 512, 40), (0.7, 0.7, 5.0), (64, 64, 64), (64, 64, 36)),
        ((512, 512, 40), (0.7, 0.7, 5.0), (64, 64, 16), (29, 29, 16)),
        ((10, 10, 10), (1.0, 1.0, 1.0), (40, 20, 30), (20, 20, 20)),
        ((1, 1000, 1), (1.0, 1.0, 1.0), (32, 32), (1, 32, 1)),
    ],
)
def test_a_fit_keeps_proportions_in_millimetres(
    shape: Shape, spacing: tuple[float, float, float], fit: tuple[int, ...], expected: Shape
) -> None:
    assert fitted_shape(shape, np.diag([*spacing, 1.0]), fit) == expected


def test_the_box_stays_where_it_is() -> None:
    affine = np.diag([0.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = (10, -5, 7)

    coarse = stretched(affine, (8, 6, 5), (4, 12, 5))

    assert spacing_mm(coarse) == pytest.approx((1.0, 1.0, 3.0))
    for edges in ((-0.5, -0.5, -0.5), (7.5, 5.5, 4.5)):
        on_coarse = [
            (edge + 0.5) * new / old - 0.5 for edge, new, old in zip(edges, (4, 12, 5), (8, 6, 5), strict=True)
        ]
        np.testing.assert_allclose(coarse @ [*on_coarse, 1], affine @ [*edges, 1], atol=1e-12)


def _seconds(work: object) -> float:
    taken = []
    for _ in range(7):
        start = time.process_time()
        work()  # type: ignore[operator]
        taken.append(time.process_time() - start)
    return min(taken)


def test_a_radiograph_looks_as_torch_would_make_it_and_takes_as_long() -> None:
    picture = np.random.default_rng(0).integers(0, 4096, (2000, 2500, 1)).astype(np.uint16)

    def here() -> np.ndarray:
        return resize(picture[None], (179, 224, 1))

    def there() -> torch.Tensor:
        values = torch.from_numpy(picture.astype(np.float32).transpose(2, 0, 1))[:, None]
        return F.interpolate(values, size=(179, 224), mode="bilinear", antialias=True, align_corners=False)

    np.testing.assert_allclose(here()[0, :, :, 0], there()[0, 0].numpy(), rtol=1e-4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert _seconds(here) <= 1.5 * _seconds(there) + 0.01
    finally:
        torch.set_num_threads(threads)
