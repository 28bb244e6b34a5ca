"""Contrast, inverted gamma, and the shares of crops that each change of nnU-Net's list happens to."""

from typing import Any

import pytest
import torch
from torch import Tensor

from medssl_cli.data.augmentation import Draws, augment, draw_augmentation
from medssl_cli.data.tones import change_contrast_, invert_gamma_
from medssl_cli.recipe_sections import Augmentation

OFF = {"flip_prob": 0.0, "intensity_scale": 0.0, "intensity_shift": 0.0}
NUMBER = 4000


def draws() -> Draws:
    return Draws(torch.Generator().manual_seed(0))


def images(number: int = 2) -> Tensor:
    return torch.randn(number, 2, 6, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_contrast_moves_values_from_the_mean_and_never_out_of_the_range() -> None:
    before = images()

    after = change_contrast_(before.clone(), torch.tensor([2.0, 1.0]))

    own, mean = before[0, 1], before[0, 1].mean()
    expected = (mean + 2 * (own - mean)).clamp(own.min(), own.max())
    torch.testing.assert_close(after[0, 1], expected)
    torch.testing.assert_close(after[1], before[1])


def test_inverted_gamma_is_gamma_of_the_image_upside_down() -> None:
    before = images()

    after = invert_gamma_(before.clone(), torch.tensor([0.5, 1.0]))

    own = before[0, 1]
    upside_down = (own.max() - own) / (own.max() - own.min())
    torch.testing.assert_close(after[0, 1], own.max() - upside_down.sqrt() * (own.max() - own.min()))
    torch.testing.assert_close(after[1], before[1])


def test_flat_images_stay_finite() -> None:
    flat = torch.full((1, 1, 4, 4, 4), 3.0)

    assert torch.equal(invert_gamma_(change_contrast_(flat.clone(), torch.tensor([1.5])), torch.tensor([0.7])), flat)


@pytest.mark.parametrize(
    ("options", "field", "nothing"),
    [
        ({"gamma_range": (0.7, 1.5), "gamma_prob": 0.25}, "gamma", 1.0),
        ({"gamma_range": (0.7, 1.5), "inverted_gamma_prob": 0.25}, "inverted_gamma", 1.0),
        ({"contrast_prob": 0.25}, "contrast", 1.0),
        ({"noise_std": 0.1, "noise_prob": 0.25}, "noise", 0.0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_happens_to_its_share_of_the_crops(options: dict[str, Any], field: str, nothing: float) -> None:
    drawn = draw_augmentation(
        torch.Size((NUMBER, 1, 2, 2, 1)), Augmentation.model_validate({**OFF, **options}), draws()
    )

    changed = (getattr(drawn, field).reshape(NUMBER, -1) != nothing).any(dim=1).double().mean()

    assert float(changed) == pytest.approx(0.25, abs=0.04)  # five standard deviations are 0.034


def test_turns_and_scales_have_shares_of_their_own() -> None:
    options = Augmentation.model_validate({**OFF, "affine_prob": 1.0, "rotate_prob": 0.25, "scale_prob": 0.5})

    matrices = draw_augmentation(torch.Size((NUMBER, 1, 4, 4, 4)), options, draws()).matrices

    is_scaled = (torch.linalg.det(matrices) - 1).abs() > 1e-4
    is_turned = (matrices - matrices.diagonal(dim1=1, dim2=2).diag_embed()).abs().amax(dim=(1, 2)) > 1e-4
    assert float(is_scaled.double().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(is_turned.double().mean()) == pytest.approx(0.25, abs=0.05)


def test_what_is_off_takes_no_random_numbers_and_is_not_written() -> None:
    """Trainings of before draw what they drew, and their recipes have the digests that they had."""
    plain = Augmentation(affine_prob=0.5, gamma_range=(0.7, 1.5), noise_std=0.1)
    crops, labels = images(4).float(), torch.zeros(4, 6, 5, 4, dtype=torch.long)
    named = Augmentation.model_validate(plain.model_dump() | {"gamma_prob": 1.0, "contrast_range": (0.5, 2.0)})

    first, second = (augment(crops, labels, options, draws())[0] for options in (plain, named))

    assert torch.equal(first, second)
    assert "gamma_prob" not in plain.model_dump()
    assert Augmentation(contrast_prob=0.2).model_dump()["contrast_prob"] == 0.2
    assert named.model_dump()["contrast_range"] == (0.5, 2.0)
