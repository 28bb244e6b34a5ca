"""Coarser voxels, blur and smooth factors: against loops over voxels, and what they leave alone."""

import math

import numpy as np
import torch

from medssl_cli.data.augmentation import Changes, recolour_
from medssl_cli.data.degradation import BIAS_POWERS, bias_fields, blur_, coarsen_, gaussians


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_coarser_voxels_are_the_nearest_and_values_between_them_are_interpolated() -> None:
    ramp = torch.arange(8.0).view(1, 1, 8, 1, 1).repeat(1, 1, 1, 3, 2)

    found = coarsen_(ramp.clone(), torch.tensor([[2.0, 1.0, 1.0]]))[0, 0, :, 0, 0]

    # Of 8 voxels 4 stay: 0, 2, 4, 6. A voxel of the result lies at (i + 0.5) / 2 - 0.5 between them.
    kept = np.array([0.0, 2.0, 4.0, 6.0])
    places = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    np.testing.assert_allclose(found.numpy(), np.interp(places, np.arange(4), kept), atol=1e-6)


def test_images_whose_voxels_stay_are_not_touched() -> None:
    images = noise(2, 1, 6, 5, 4)

    found = coarsen_(images.clone(), torch.tensor([[1.0, 1.0, 1.0], [1.0, 3.0, 1.0]]))

    assert torch.equal(found[0], images[0])
    assert not torch.equal(found[1], images[1])


def test_a_blur_is_a_mean_with_gaussian_weights_along_each_axis() -> None:
    images = noise(2, 2, 6, 5, 4)
    sigmas = torch.tensor([[1.5, 0.0, 0.7], [0.0, 0.05, 0.0]], dtype=torch.float64)

    found = blur_(images.clone(), sigmas)

    expected = images[0].clone()
    for axis, sigma in ((1, 1.5), (3, 0.7)):
        length = expected.shape[axis]
        gaps = np.subtract.outer(np.arange(length), np.arange(length))
        weights = torch.from_numpy(np.exp(-(gaps**2) / (2 * sigma**2)))
        weights = weights / weights.sum(dim=1, keepdim=True)
        expected = torch.tensordot(weights, expected, dims=([1], [axis])).movedim(0, axis)
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found[1], images[1])


def test_weights_of_a_gaussian_sum_to_one_at_the_border_too() -> None:
    torch.testing.assert_close(gaussians(7, torch.tensor([0.1, 3.0])).sum(dim=2), torch.ones(2, 7))


def test_a_bias_field_is_the_exponential_of_a_polynomial_of_third_degree() -> None:
    coefficients = noise(2, len(BIAS_POWERS)) / 4

    found = bias_fields(coefficients, (3, 4, 2))

    assert len(BIAS_POWERS) == 20
    places = [np.linspace(-1, 1, size) for size in (3, 4, 2)]
    for i, j, k in np.ndindex(3, 4, 2):
        terms = [places[0][i] ** a * places[1][j] ** b * places[2][k] ** c for a, b, c in BIAS_POWERS]
        expected = np.exp(coefficients.numpy() @ np.array(terms))
        np.testing.assert_allclose(found[:, 0, i, j, k].numpy(), expected, rtol=1e-12)


def test_fields_come_before_factors_and_addends() -> None:
    images = torch.ones(1, 1, 2, 2, 2)
    bias = torch.zeros(1, len(BIAS_POWERS))
    bias[0, BIAS_POWERS.index((0, 0, 0))] = math.log(2)

    found = recolour_(images.clone(), Changes(bias=bias, scale=torch.tensor([3.0]), shift=torch.tensor([1.0])))

    torch.testing.assert_close(found, torch.full_like(images, 2 * 3 + 1))
