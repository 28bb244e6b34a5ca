"""Augmentation: image and label move together, nothing else does, and a seed says it all."""

import math

import pytest
import torch
from torch import Tensor

from medssl_cli.data.augmentation import Draws, augment, rotation_matrices
from medssl_cli.recipe_sections import Augmentation

OFF = {"flip_prob": 0.0, "affine_prob": 0.0, "intensity_scale": 0.0, "intensity_shift": 0.0}
SHAPE = (16, 20, 12)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(seed: int = 0) -> Draws:
    return Draws(generator(seed))


def options(**changes: object) -> Augmentation:
    return Augmentation.model_validate({**OFF, **changes})


def blob(batch: int = 3, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """A smooth bump away from the middle, 0 to 1, `[B, 1, X, Y, Z]`."""
    axes = [torch.linspace(-1, 1, size) for size in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    bump = torch.exp(-4 * ((x - 0.2) ** 2 + (y + 0.15) ** 2 + (z - 0.1) ** 2))
    return bump.expand(batch, 1, *shape).clone()


def labels_of(images: Tensor) -> Tensor:
    return (images[:, 0] > 0.5).long()


def test_with_everything_off_nothing_changes() -> None:
    images = torch.randn(4, 2, *SHAPE, generator=generator(1))
    labels = torch.randint(0, 5, (4, *SHAPE), generator=generator(2))

    changed = augment(images, labels, options(), draws())

    assert torch.equal(changed[0], images)
    assert torch.equal(changed[1], labels)


def test_a_turn_by_nothing_and_a_scale_of_one_change_nothing() -> None:
    images = torch.randn(2, 1, *SHAPE, generator=generator(1))
    labels = torch.randint(0, 5, (2, *SHAPE), generator=generator(2))

    still = options(affine_prob=1.0, rotate_degrees=0.0, scale_range=(1.0, 1.0))
    changed = augment(images, labels, still, draws())

    torch.testing.assert_close(changed[0], images, rtol=0, atol=1e-4)
    assert torch.equal(changed[1], labels)


def test_the_generator_is_the_only_source_of_randomness_and_the_input_stays() -> None:
    images, everything = blob(), Augmentation(affine_prob=0.5, gamma_range=(0.7, 1.5), noise_std=0.1)
    labels, before = labels_of(images), images.clone()

    torch.manual_seed(1)
    first = augment(images, labels, everything, draws(5))
    torch.manual_seed(2)
    again = augment(images, labels, everything, draws(5))
    other = augment(images, labels, everything, draws(6))

    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(images, before)
    assert torch.equal(labels, labels_of(before))


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_flips_move_image_and_label_along_the_named_axes_only(axes: tuple[int, ...]) -> None:
    images = torch.randn(40, 1, 3, 4, 5, generator=generator(1))
    labels = (images[:, 0] * 1000).long()  # a label that tells every voxel apart

    changed, moved = augment(images, labels, options(flip_prob=0.5, flip_axes=axes), draws())

    assert torch.equal((changed[:, 0] * 1000).long(), moved)
    seen = set()
    for before, after in zip(images, changed, strict=True):
        flips = [
            code
            for code in range(8)
            if torch.equal(after, before.flip([axis + 1 for axis in range(3) if code >> axis & 1]))
        ]
        assert len(flips) == 1
        seen |= set(flips)
    # 40 samples: one of at most 8 combinations is missing with a chance below 8 (7/8)^40 = 4 %; the seed is fixed.
    assert seen == {code for code in range(8) if all(axis in axes for axis in range(3) if code >> axis & 1)}


def test_certain_flips_flip_everything() -> None:
    images = torch.randn(3, 1, *SHAPE, generator=generator(1))

    changed, _ = augment(images, labels_of(images), options(flip_prob=1.0), draws())

    assert torch.equal(changed, images.flip([2, 3, 4]))


@pytest.mark.parametrize("seed", range(5))
def test_turns_and_scales_move_image_and_label_together(seed: int) -> None:
    images = blob()
    turning = options(affine_prob=1.0, rotate_degrees=30.0, scale_range=(0.8, 1.25), flip_prob=0.5)

    changed, moved = augment(images, labels_of(images), turning, draws(seed))

    # The label is the bump above one half. Nearest sampling is off by at most half a voxel's diagonal: voxel edges are
    # 2/15, 2/19 and 2/11, half of the diagonal is 0.125, and exp(-4 r^2) falls by at most sqrt(8 / e) = 1.72 per unit,
    # so by 0.215; linear sampling is off by at most h^2 / 8 max|f''| = h^2 per axis, 0.062 together. Beyond 0.28 on
    # either side of one half both must agree; the bump's edge keeps away from the crop's.
    height = changed[:, 0]
    assert not torch.equal(moved, labels_of(images))
    assert (moved[height > 0.78] == 1).all()
    assert (moved[height < 0.22] == 0).all()
    assert moved.dtype == torch.int64
    assert set(moved.unique().tolist()) == {0, 1}


def centre_of_mass(image: Tensor) -> Tensor:
    """In voxels from the middle of the crop, `[3]`."""
    grids = torch.meshgrid(*[torch.arange(size) - (size - 1) / 2 for size in image.shape], indexing="ij")
    return torch.stack([(grid * image).sum() for grid in grids]) / image.sum()


def point_cloud(offset: tuple[float, float, float], shape: tuple[int, int, int] = (24, 28, 20)) -> Tensor:
    """A small bump at an offset from the middle of a crop whose sides differ."""
    grids = torch.meshgrid(*[torch.arange(size) - (size - 1) / 2 for size in shape], indexing="ij")
    squares = sum((grid - place) ** 2 for grid, place in zip(grids, offset, strict=True))
    return torch.exp(-torch.as_tensor(squares) / 8)[None, None]


@pytest.mark.parametrize("seed", range(4))
def test_rotations_keep_distances_to_the_middle_in_voxels_of_a_crop_with_unequal_sides(seed: int) -> None:
    offset = (4.0, -3.0, 2.0)
    image = point_cloud(offset)
    turning = options(affine_prob=1.0, rotate_degrees=25.0, scale_range=(1.0, 1.0))

    turned, _ = augment(image, labels_of(image), turning, draws(seed))

    moved = centre_of_mass(turned[0, 0])
    assert torch.linalg.norm(moved).item() == pytest.approx(math.sqrt(29), abs=0.03)  # 16 + 9 + 4
    assert (moved - torch.tensor(offset)).abs().max() > 0.1
    assert turned.sum().item() == pytest.approx(image.sum().item(), rel=0.02)  # a rotation keeps the volume


def test_a_scale_above_one_magnifies() -> None:
    image = point_cloud((2.0, -2.0, 1.0))
    zoom = options(affine_prob=1.0, rotate_degrees=0.0, scale_range=(1.5, 1.5))

    larger, _ = augment(image, labels_of(image), zoom, draws())

    torch.testing.assert_close(centre_of_mass(larger[0, 0]), torch.tensor([3.0, -3.0, 1.5]), rtol=0, atol=0.05)
    assert larger.sum().item() == pytest.approx(1.5**3 * image.sum().item(), rel=0.05)


def test_samples_that_are_not_drawn_stay_exactly_as_they_were() -> None:
    images = torch.randn(60, 1, 6, 6, 6, generator=generator(1))

    changed, _ = augment(images, labels_of(images), options(affine_prob=0.3), draws())

    moved = sum(not torch.equal(before, after) for before, after in zip(images, changed, strict=True))
    assert abs(moved - 18) < 5 * math.sqrt(60 * 0.3 * 0.7)
    assert moved > 0


def test_rotation_matrices_turn_about_one_axis_after_the_other() -> None:
    angles = (torch.rand(50, 3, generator=generator(), dtype=torch.float64) - 0.5) * 2 * math.pi

    matrices = rotation_matrices(angles)

    identity = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(matrices @ matrices.mT, identity)
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(50, dtype=torch.float64))
    parts = [rotation_matrices(angles * torch.eye(3, dtype=torch.float64)[axis]) for axis in range(3)]
    torch.testing.assert_close(matrices, parts[0] @ parts[1] @ parts[2])


@pytest.mark.parametrize(("axis", "source", "target"), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_quarter_turn_takes_each_axis_to_the_next(axis: int, source: int, target: int) -> None:
    angles = torch.zeros(1, 3)
    angles[0, axis] = math.pi / 2
    unit = torch.eye(3)

    torch.testing.assert_close(rotation_matrices(angles)[0] @ unit[source], unit[target])
    torch.testing.assert_close(rotation_matrices(angles)[0] @ unit[axis], unit[axis])


def test_intensities_change_by_one_factor_and_one_shift_per_sample() -> None:
    images = torch.randn(30, 1, 4, 4, 4, generator=generator(1))

    changed, labels = augment(images, labels_of(images), options(intensity_scale=0.2, intensity_shift=0.3), draws())

    assert torch.equal(labels, labels_of(images))
    for before, after in zip(images.flatten(1), changed.flatten(1), strict=True):
        factor = (after[0] - after[1]) / (before[0] - before[1])
        shift = after[0] - factor * before[0]
        assert 0.8 - 1e-4 <= factor <= 1.2 + 1e-4
        assert abs(shift) <= 0.3 + 1e-4
        torch.testing.assert_close(after, factor * before + shift, rtol=1e-3, atol=1e-4)


def test_gamma_keeps_the_ends_and_the_order() -> None:
    images = torch.randn(5, 1, 4, 4, 4, generator=generator(1))

    changed, _ = augment(images, labels_of(images), options(gamma_range=(2.0, 2.0)), draws())

    low, high = images.amin(dim=(1, 2, 3, 4), keepdim=True), images.amax(dim=(1, 2, 3, 4), keepdim=True)
    expected = ((images - low) / (high - low)) ** 2 * (high - low) + low
    torch.testing.assert_close(changed, expected)
    assert torch.equal(changed.flatten(1).argsort(dim=1, stable=True), images.flatten(1).argsort(dim=1, stable=True))


def test_gamma_of_a_constant_crop_is_finite() -> None:
    images = torch.full((2, 1, 4, 4, 4), 3.0)

    changed, _ = augment(images, labels_of(images), options(gamma_range=(0.5, 2.0)), draws())

    torch.testing.assert_close(changed, images)


def test_noise_is_no_stronger_than_asked_for() -> None:
    images = torch.zeros(50, 1, 10, 10, 10)

    changed, _ = augment(images, labels_of(images), options(noise_std=0.4), draws())

    strengths = changed.flatten(1).std(dim=1)
    assert strengths.max() <= 0.4 * (1 + 5 / math.sqrt(2 * 1000))
    # Uniform on [0, 0.4]: mean 0.2, standard error 0.4 / sqrt(12 * 50).
    assert strengths.mean().item() == pytest.approx(0.2, abs=5 * 0.4 / math.sqrt(600))
    assert abs(changed.mean().item()) < 5 * 0.4 / math.sqrt(50_000)


@pytest.mark.parametrize("seed", range(4))
def test_rotations_are_rotations_in_millimetres_where_slices_are_thick(seed: int) -> None:
    spacing = torch.tensor([[1.0, 1.0, 4.0]])
    offset = (6.0, -3.0, 0.5)
    image = point_cloud(offset, shape=(32, 32, 12))
    turning = options(affine_prob=1.0, rotate_degrees=15.0, scale_range=(1.0, 1.0))

    turned, _ = augment(image, labels_of(image), turning, draws(seed), spacing_mm=spacing)

    before_mm, after_mm = torch.tensor(offset) * spacing[0], centre_of_mass(turned[0, 0]) * spacing[0]
    assert torch.linalg.norm(after_mm).item() == pytest.approx(torch.linalg.norm(before_mm).item(), abs=0.2)


@pytest.mark.parametrize("seed", range(3))
def test_for_a_network_of_slices_every_slice_stays_in_its_plane_and_all_turn_alike(seed: int) -> None:
    planes = torch.arange(6.0).expand(2, 1, 16, 16, 6).clone()
    pictures = blob(2)[..., 6:7].expand(-1, -1, -1, -1, 5)
    moving = options(affine_prob=1.0, rotate_degrees=40.0, scale_range=(0.7, 1.4))
    spacing = torch.tensor([[1.5, 1.5, 10.0]]).expand(2, 3)

    kept, _ = augment(planes, labels_of(planes), moving, draws(seed), spacing_mm=spacing, spatial_dims=2)
    turned, _ = augment(pictures, labels_of(pictures), moving, draws(seed), spacing_mm=spacing, spatial_dims=2)
    tilted, _ = augment(planes, labels_of(planes), moving, draws(seed), spacing_mm=spacing)

    torch.testing.assert_close(kept, planes, rtol=0, atol=1e-4)
    assert (turned - pictures).abs().max() > 0.1
    torch.testing.assert_close(turned, turned[..., :1].expand_as(turned), rtol=0, atol=1e-4)
    assert (tilted - planes).abs().max() > 0.1


def test_a_turn_in_the_plane_is_the_turn_of_a_single_slice() -> None:
    stack, moving = blob(3), options(affine_prob=1.0, rotate_degrees=40.0, scale_range=(0.7, 1.4))

    together, _ = augment(stack, labels_of(stack), moving, draws(1), spatial_dims=2)

    for place in (0, 5, 11):
        single = stack[..., place : place + 1]
        alone, _ = augment(single, labels_of(single), moving, draws(1))
        torch.testing.assert_close(together[..., place : place + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("axes", "moved"), [((0, 1, 2), {0, 1, 2}), ((1, 2), {1, 2}), ((2,), {2}), ((), set())], ids=str
)
def test_named_axes_are_those_along_which_voxels_move(axes: tuple[int, ...], moved: set[int]) -> None:
    image = point_cloud((4.0, -3.0, 3.0))
    moving = options(affine_prob=1.0, rotate_degrees=20.0, scale_range=(1.2, 1.2), affine_axes=axes)

    changed, _ = augment(image, labels_of(image), moving, draws(1), spatial_dims=2)

    way = (centre_of_mass(changed[0, 0]) - centre_of_mass(image[0, 0])).abs()
    assert {axis for axis in range(3) if way[axis] > 0.05} == moved


def test_processes_that_share_a_batch_change_it_as_one_does() -> None:
    everything = options(
        flip_prob=0.5, affine_prob=0.5, intensity_scale=0.2, intensity_shift=0.2, gamma_range=(0.8, 1.2), noise_std=0.3,
        quarter_turn_prob=0.5, coarse_prob=0.5, blur_prob=0.5, bias_prob=0.5,
    )  # fmt: skip
    images = torch.randn(6, 1, *SHAPE, generator=generator(1))
    whole = augment(images, labels_of(images), everything, draws(3))

    parts = [
        augment(rows, labels_of(rows), everything, Draws(generator(3), rank, 3))
        for rank, rows in enumerate(images.chunk(3))
    ]

    for together, own in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(own), together, rtol=0, atol=1e-6)


def test_quarter_turns_move_image_and_label_together_and_only_where_sides_are_equal() -> None:
    turning = options(quarter_turn_prob=1.0)
    image = blob(6, (12, 12, 7))

    changed, labels = augment(image, labels_of(image), turning, draws(2))

    assert torch.equal(labels, labels_of(changed))
    turned = {next(turns for turns in range(4) if torch.equal(each, image[0].rot90(turns, (1, 2)))) for each in changed}
    assert turned <= {1, 2, 3}
    assert len(turned) > 1
    assert torch.equal(augment(blob(), labels_of(blob()), turning, draws(2))[0], blob())


def test_what_happens_rarely_is_drawn_after_all_else() -> None:
    """A recipe without these changes draws what it always drew."""
    before = options(affine_prob=0.5, gamma_range=(0.8, 1.2), noise_std=0.1, flip_prob=0.5)
    after = before.model_copy(
        update={"coarse_prob": 1e-9, "blur_prob": 1e-9, "bias_prob": 1e-9, "quarter_turn_prob": 1e-9}
    )

    assert torch.equal(*(augment(blob(), labels_of(blob()), each, draws(4))[0] for each in (before, after)))
