"""What is measured of classes is what the definitions say, literally, in every orientation and spacing."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from medssl_cli.imaging import measuring
from medssl_cli.imaging.diameters import axes_of
from medssl_cli.imaging.geometry import Affine
from medssl_cli.imaging.measuring import PLANES_AT_ONCE, Measurement, measured
from medssl_cli.imaging.runs import Runs
from medssl_cli.imaging.volume import Volume

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0), (2.0, 0.9, 0.6)]
WORLD = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
MIDDLES = np.array([(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)])


def stored_affine(order: Sequence[int], signs: Sequence[int], spacing: Sequence[float]) -> Affine:
    affine = np.zeros((4, 4))
    for world in range(3):
        affine[world, order[world]] = signs[world] * spacing[order[world]]
    affine[:, 3] = (10, -20, 30, 1)
    return affine


def oblique_affine() -> Affine:
    """Turned by 20 degrees about x and 10 about z."""
    a, b = np.deg2rad(20), np.deg2rad(10)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([0.8, 0.8, 2.5])
    affine[:3, 3] = (-100, 50, 7)
    return affine


def scan_of(shape: tuple[int, ...], affine: Affine, *, seed: int = 0) -> Volume:
    values = np.random.default_rng(seed).integers(-1000, 1500, (1, *shape)).astype(np.int16)
    return Volume(values, affine, "CT", "HU")


def blobs(shape: tuple[int, ...], *, seed: int = 0, num_labels: int = 3, share: float = 0.3) -> np.ndarray:
    """A few boxes of each label, some at the edge, and single voxels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for label in itertools.islice(itertools.cycle(range(1, num_labels + 1)), 3 * num_labels):
        low = [rng.integers(0, size) for size in shape]
        box = tuple(
            slice(at, at + 1 + rng.integers(0, max(1, int(size * share)))) for at, size in zip(low, shape, strict=True)
        )
        labels[box] = label
    labels[tuple(rng.integers(0, size) for size in shape)] = 1
    return labels


def expected(mask: np.ndarray, scan: Volume) -> dict[str, Any]:
    """The definitions, literally; loops over pairs of points."""
    values, spacing = scan.voxels[0][mask].astype(np.float64), np.array(scan.spacing_mm)
    places = np.argwhere(mask)
    main = [int(np.abs(scan.affine[world, :3] / spacing).argmax()) for world in range(3)]
    sides = []
    for world, axis in enumerate(main):
        for end, at in ((0, 0), (1, mask.shape[axis] - 1)):
            if mask.shape[axis] > 1 and (places[:, axis] == at).any():
                sides.append(WORLD[world][end if scan.affine[world, axis] > 0 else 1 - end])
    return {
        "voxels": int(mask.sum()),
        "volume_ml": float(mask.sum() * spacing.prod()) / 1000,
        "centre_mm": scan.affine[:3, :3] @ places.mean(axis=0) + scan.affine[:3, 3],
        "parts": ndimage.label(mask, np.ones((3, 3, 3)))[1],
        "mean": values.mean(), "sd": values.std(), "minimum": values.min(), "maximum": values.max(),
        "extent_mm": [float(np.ptp(places[:, axis]) + 1) * spacing[axis] for axis in main],
        "cut_off": set(sides),
        "axes": axes_of_mask(mask, spacing),
    }  # fmt: skip


def axes_of_mask(mask: np.ndarray, spacing: np.ndarray) -> tuple[float, int, float]:
    """The longest axis of all parts of all slices, the slice (the first of equal ones) and the axis across it."""
    found = []
    for number in range(mask.shape[2]):
        parts, num_parts = ndimage.label(mask[:, :, number], np.ones((3, 3)))
        for part in range(1, num_parts + 1):
            points = np.unique((np.argwhere(parts == part)[:, None] + MIDDLES[None]).reshape(-1, 2), axis=0)
            points = points * spacing[:2]
            distances = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)).round(9)
            found.append((float(distances.max()), number, points, distances))
    long_mm, number, points, distances = max(found, key=lambda one: (one[0], -one[1]))
    pairs = [(p, q) for p, q in np.argwhere(distances == long_mm) if p < q]
    return long_mm, number, max(widest_chord(points, points[p], points[q]) for p, q in pairs)


def widest_chord(points: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    """At right angles to a line, the most that the convex hull measures at the place of any point: it has the point
    there of every connection between two points."""
    along = (q - p) / np.hypot(*(q - p))
    t, h = points @ along, points @ np.array([-along[1], along[0]])
    first, second = (each.ravel() for each in np.meshgrid(np.arange(len(t)), np.arange(len(t))))
    is_slanted = np.abs(t[second] - t[first]) > 1e-9
    first, second = first[is_slanted], second[is_slanted]
    share = (t[:, None] - t[first]) / (t[second] - t[first])
    heights = np.where((share >= 0) & (share <= 1), h[first] + (h[second] - h[first]) * share, np.nan)
    return float((np.nanmax(heights, axis=1) - np.nanmin(heights, axis=1)).max())


def require_same(found: Measurement, mask: np.ndarray, scan: Volume) -> None:
    told = expected(mask, scan)
    long_mm, number, short_mm = told.pop("axes")
    assert set(found.cut_off) == told.pop("cut_off")
    assert (found.long_axis_mm, found.axes_slice, found.short_axis_mm) == (
        pytest.approx(long_mm, abs=1e-6), number, pytest.approx(short_mm, abs=1e-5),
    )  # fmt: skip
    assert (found.voxels, found.parts) == (told.pop("voxels"), told.pop("parts"))
    for name, value in told.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-9, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_the_definitions_hold_in_all_48_orientations(spacing: tuple[float, ...]) -> None:
    for number, (order, signs) in enumerate(ORIENTATIONS):
        scan = scan_of((6, 5, 4), stored_affine(order, signs, spacing), seed=number)
        labels = blobs((6, 5, 4), seed=number)

        found = measured(labels, scan)

        assert set(found) == set(np.unique(labels)) - {0}
        for label, measurement in found.items():
            require_same(measurement, labels == label, scan)


def test_the_order_in_memory_changes_nothing_and_planes_come_in_pieces() -> None:
    shape = (6, 7, 2 * PLANES_AT_ONCE + 3)
    scan, labels = scan_of(shape, oblique_affine()), blobs(shape, num_labels=2)

    found = measured(labels, scan)

    for order in itertools.permutations(range(3)):
        back = np.argsort(order)
        turned = np.ascontiguousarray(labels.transpose(order)).transpose(back)
        voxels = np.ascontiguousarray(scan.voxels[0].transpose(order)).transpose(back)[None]
        turned.flags.writeable = voxels.flags.writeable = False
        assert measured(turned, Volume(voxels, scan.affine)) == found
    for label, measurement in found.items():
        require_same(measurement, labels == label, scan)


@pytest.mark.parametrize("at_once", [1, 4 * 30, 2**22], ids=["a plane", "four planes", "all of the planes"])
def test_noise_is_measured_as_it_is_however_many_planes_are_looked_at_together(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "VOXELS_AT_ONCE", at_once)
    shape = (6, 5, PLANES_AT_ONCE + 3)
    scan, labels = scan_of(shape, oblique_affine()), np.random.default_rng(3).integers(0, 4, shape).astype(np.uint8)
    labels[:, :, 7] = 0

    found = measured(labels, scan)

    assert set(found) == {1, 2, 3}
    for label, measurement in found.items():
        require_same(measurement, labels == label, scan)


def test_regions_that_overlap_are_measured_each_by_itself() -> None:
    scan = scan_of((8, 7, 6), oblique_affine())
    masks = np.zeros((4, 8, 7, 6), np.uint8)
    masks[0, 1:5, 1:4, 1:5] = masks[1, 3:5, 2:6, 2:4] = 1
    masks[3] = masks[0] | masks[1]

    found = measured(masks, scan)

    assert list(found) == [1, 2, 4]  # the third one is empty
    for place, measurement in found.items():
        require_same(measurement, masks[place - 1] == 1, scan)


def test_an_answer_without_any_class_measures_nothing() -> None:
    scan = scan_of((4, 4, 4), np.eye(4))

    assert measured(np.zeros((4, 4, 4), np.uint8), scan) == {}
    assert measured(np.zeros((2, 4, 4, 4), np.uint8), scan) == {}


def test_one_voxel_is_as_large_as_a_voxel() -> None:
    scan = scan_of((5, 5, 5), np.diag([0.5, 0.5, 4.0, 1.0]))
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[2, 3, 4] = 7

    (found,) = measured(labels, scan).values()

    value = float(scan.voxels[0, 2, 3, 4])
    assert found == Measurement(
        1, 0.001, ("superior",), value, 0.0, value, value, 0.5, 0.5, 4, (0.5, 0.5, 4.0), (1.0, 1.5, 16.0), 1
    )


def test_a_single_slice_is_cut_off_at_its_sides_only() -> None:
    scan = scan_of((5, 4, 1), np.eye(4))
    labels = np.zeros((5, 4, 1), np.uint8)
    labels[4, 1:3, 0] = 1

    assert measured(labels, scan)[1].cut_off == ("right",)


def test_parts_that_meet_in_a_later_slice_are_one_and_corners_connect() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1, 1, 0:4] = labels[7, 7, 0:4] = 1  # two legs
    labels[1:8, 4, 4] = labels[1, 1:5, 4] = labels[7, 4:8, 4] = 1  # joined
    labels[2:8:2, 2, 7] = 2  # three voxels apart
    labels[3, 3, 8] = 2  # touches corners of two of them

    found = measured(labels, scan_of((9, 9, 9), np.eye(4)))

    assert (found[1].parts, found[2].parts) == (1, 2)


def test_noise_has_as_many_parts_as_itk_counts() -> None:
    labels = (np.random.default_rng(3).random((20, 30, 25)) < 0.09).astype(np.uint8)
    scan = scan_of(labels.shape, np.eye(4))

    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(labels), True))
    assert measured(labels, scan)[1].parts == parts.max()


def test_values_far_from_zero_keep_their_deviation() -> None:
    labels = np.ones((6, 6, 40), np.uint8)
    steps = np.arange(labels.size, dtype=np.float64).reshape(labels.shape) % 3
    scan = Volume((1e9 + steps)[None], np.eye(4))

    assert measured(labels, scan)[1].sd == pytest.approx(np.sqrt(2 / 3), rel=1e-6)  # of 0, 1, 2 in equal numbers


@pytest.mark.parametrize(
    ("sides", "spacing", "long_mm", "short_mm"),
    [
        # The corners of a rectangle of a x b pixels are cut by half a pixel: from (-1/2, 0) to (a - 1/2, b - 1) and so
        # on; of one row the long axis is its length and the short one a pixel.
        ((10, 1), (1.0, 1.0), 10.0, 1.0),
        ((1, 10), (0.5, 2.0), 20.0, 0.5),
        ((3, 3), (1.0, 1.0), np.hypot(3, 2), np.hypot(3, 2)),
    ],
)
def test_axes_of_rectangles(
    sides: tuple[int, int], spacing: tuple[float, float], long_mm: float, short_mm: float
) -> None:
    runs = Runs.of(np.ones(sides[::-1], np.uint8))

    axes = axes_of(runs, np.arange(len(runs.rows)), spacing)

    assert axes.long_mm == pytest.approx(long_mm)
    assert axes.short_mm == pytest.approx(short_mm)


@pytest.mark.parametrize("angle", [0, 17, 45, 80])
def test_axes_of_an_ellipse_are_its_own_within_a_pixel(angle: float) -> None:
    x, y = np.meshgrid(np.arange(200) - 100.3, np.arange(200) - 99.6)
    turn = np.deg2rad(angle)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    runs = Runs.of(((along / 80) ** 2 + (across / 35) ** 2 <= 1).astype(np.uint8))

    axes = axes_of(runs, np.arange(len(runs.rows)), (0.7, 0.7))

    assert axes.long_mm == pytest.approx(2 * 80 * 0.7, abs=0.7)
    assert axes.short_mm == pytest.approx(2 * 35 * 0.7, abs=0.7)
