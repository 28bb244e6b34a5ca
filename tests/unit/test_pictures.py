"""Pictures of volumes: what lies where on the picture follows from what lies where in the patient."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from medssl_cli.imaging.geometry import reorient_to_ras
from medssl_cli.report import STRUCTURE_COLOURS, structure_colours
from medssl_cli.report.pictures import BACKGROUND, automatic_window, comparison, mid_planes

SHAPE = (30, 40, 20)
SPACING = np.diag([1.0, 1.0, 2.0, 1.0])
RIGHT, ANTERIOR, SUPERIOR = 0, 1, 2


def bright_end(axis: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Black, but for the quarter that lies furthest right, anterior or superior."""
    voxels = np.zeros(shape, dtype=np.float32)
    index = [slice(None)] * 3
    index[axis] = slice(3 * shape[axis] // 4, None)
    voxels[tuple(index)] = 1
    return voxels


def panels(picture: Image.Image) -> list[np.ndarray]:
    """Brightness of the axial, coronal and sagittal plane, cut out of a picture that shows them in a row."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    is_gap = (pixels == BACKGROUND).all(axis=2)
    columns = ~is_gap.all(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], columns.astype(int), [0]])))
    found = []
    for left, right in edges.reshape(-1, 2):
        rows = np.flatnonzero(~is_gap[:, left:right].all(axis=1))
        found.append(pixels[rows[0] : rows[-1] + 1, left:right].mean(axis=2))
    return found


def in_a_row(voxels: np.ndarray, affine: np.ndarray = SPACING, **options) -> list[np.ndarray]:
    drawn = panels(mid_planes(voxels, affine, window=(0, 1), max_size_px=(600, 200), **options))
    assert len(drawn) == 3
    return drawn


def brightest_side(panel: np.ndarray) -> str:
    height, width = panel.shape
    sides = {
        "left": panel[:, : width // 5],
        "right": panel[:, -(width // 5) :],
        "top": panel[: height // 5],
        "bottom": panel[-(height // 5) :],
    }
    return max(sides, key=lambda side: sides[side].mean())


def test_the_patients_right_is_on_the_left_of_the_picture():
    axial, coronal, _ = in_a_row(bright_end(RIGHT))

    assert brightest_side(axial) == brightest_side(coronal) == "left"


def test_anterior_is_up_on_the_axial_plane_and_left_on_the_sagittal_one():
    axial, _, sagittal = in_a_row(bright_end(ANTERIOR))

    assert (brightest_side(axial), brightest_side(sagittal)) == ("top", "left")


def test_superior_is_up():
    _, coronal, sagittal = in_a_row(bright_end(SUPERIOR))

    assert brightest_side(coronal) == brightest_side(sagittal) == "top"


def test_letters_say_where_the_patients_directions_lie(monkeypatch):
    written = []
    write = ImageDraw.ImageDraw.text

    def recorded(draw, position, text, **options):
        written.append((text, position))
        write(draw, position, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recorded)
    mid_planes(np.ones(SHAPE, dtype=np.float32), SPACING)

    letters = [(text, position) for text, position in written if len(text) == 1]
    sides = []
    for start in (0, 4, 8):  # axial, coronal, sagittal
        of_plane = letters[start : start + 4]
        by_column = [text for text, _ in sorted(of_plane, key=lambda letter: letter[1][0])]
        by_row = [text for text, _ in sorted(of_plane, key=lambda letter: letter[1][1])]
        sides.append((by_column[0], by_column[-1], by_row[0], by_row[-1]))
    assert len(letters) == 12
    assert sides == [("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I")]


def test_a_millimetre_has_the_same_length_in_all_planes_and_directions():
    axial, coronal, sagittal = in_a_row(np.ones(SHAPE, dtype=np.float32))
    size_mm = np.array(SHAPE) * (1, 1, 2)

    for panel, (across, down) in zip((axial, coronal, sagittal), ((0, 1), (0, 2), (1, 2)), strict=True):
        scale = np.array([panel.shape[1], panel.shape[0]]) / size_mm[[across, down]]
        assert scale == pytest.approx(axial.shape[1] / size_mm[0], rel=0.02)


def stored_otherwise(order: tuple[int, ...], signs: tuple[int, ...], arrays: list[np.ndarray]):
    """The same volume with its axes permuted and flipped, and the affine that keeps every voxel in its place."""
    size = np.array(SHAPE)
    to_original = np.zeros((4, 4))
    to_original[3, 3] = 1
    for new, old in enumerate(order):
        to_original[old, new] = signs[new]
        to_original[old, 3] = size[old] - 1 if signs[new] < 0 else 0
    flips = tuple(axis for axis in range(3) if signs[axis] < 0)
    return [np.flip(array.transpose(order), flips) for array in arrays], SPACING @ to_original


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_how_the_voxels_are_stored_changes_nothing(order):
    rng = np.random.default_rng(1)
    voxels = rng.random(SHAPE, dtype=np.float32)
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[4:9, 20:30, 5:15] = 3
    expected = mid_planes(voxels, SPACING, mask=mask, max_size_px=(300, 120))

    for signs in itertools.product((1, -1), repeat=3):
        (moved, moved_mask), affine = stored_otherwise(order, signs, [voxels, mask])
        assert np.array_equal(reorient_to_ras(moved[np.newaxis], affine)[0][0], voxels)

        assert mid_planes(moved, affine, mask=moved_mask, max_size_px=(300, 120)) == expected


def is_coloured(picture: Image.Image, value: int, classes: dict[int, str]) -> bool:
    """Whether the full colour of a structure (of its contour) appears."""
    colour = structure_colours(classes)[value]
    return bool((np.asarray(picture) == colour).all(axis=2).any())


CLASSES = {1: "left ventricle", 2: "myocardium"}


def test_planes_go_through_the_structures():
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[24:29, 3:8, 14:19] = 1

    for panel in in_a_row(np.zeros(SHAPE, dtype=np.float32), mask=mask):
        assert panel[panel > 60].size > 50


def test_a_plane_between_two_distant_structures_moves_to_one_of_them():
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[2:8, 10:20, 5:15] = 1
    mask[22:28, 10:20, 5:15] = 1  # the centre of mass lies at x = 14.5, between them

    _, _, sagittal = in_a_row(np.zeros(SHAPE, dtype=np.float32), mask=mask)

    assert sagittal[sagittal > 60].size > 50


def test_focus_shows_another_mask_on_the_same_planes():
    voxels = np.zeros(SHAPE, dtype=np.float32)
    voxels[6, 7, 8] = 1
    reference = np.zeros(SHAPE, dtype=np.uint8)
    reference[4:9, 5:10, 6:11] = 1

    drawn = [
        panels(mid_planes(voxels, SPACING, mask=mask, focus=reference, window=(0, 1), max_size_px=(600, 200)))
        for mask in (np.zeros_like(reference), np.roll(reference, 15, axis=1))
    ]

    assert [panel.shape for panel in drawn[0]] == [panel.shape for panel in drawn[1]]
    assert all(panel.max() > 50 for panel in drawn[0])


def test_a_margin_crops_to_the_structures():
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[10:20, 10:20, 5:10] = 1

    axial, _, _ = in_a_row(np.ones(SHAPE, dtype=np.float32), mask=mask, margin_mm=5)
    whole, _, _ = in_a_row(np.ones(SHAPE, dtype=np.float32), mask=mask)

    assert axial.shape[0] / axial.shape[1] == pytest.approx(20 / 20, rel=0.02)  # 10 mm and 5 mm on either side
    assert whole.shape[0] / whole.shape[1] == pytest.approx(40 / 30, rel=0.02)


def test_structures_have_the_colours_of_the_legend_and_absent_ones_only_an_outline():
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[10:20, 10:30, 5:15] = 2
    image = np.zeros(SHAPE, dtype=np.float32)

    with_names = mid_planes(image, SPACING, mask=mask, classes=CLASSES)
    without = mid_planes(image, SPACING, mask=mask)

    assert with_names.height > without.height
    assert is_coloured(with_names, 2, CLASSES)
    assert not is_coloured(with_names.crop((0, 0, with_names.width, without.height)), 1, CLASSES)
    assert is_coloured(with_names.crop((0, without.height, *with_names.size)), 1, CLASSES)


def test_a_structure_that_fills_the_plane_keeps_the_image_visible():
    image = np.indices(SHAPE).sum(axis=0) % 8 / 8
    mask = np.ones(SHAPE, dtype=np.uint8)

    axial = panels(mid_planes(image, SPACING, mask=mask, max_size_px=(600, 200)))[0]

    assert axial.std() > 10


def test_a_long_legend_takes_more_rows():
    many = {value: f"structure number {value}" for value in range(1, 30)}
    few = {1: "structure number 1"}
    image = np.zeros(SHAPE, dtype=np.float32)

    assert mid_planes(image, SPACING, classes=many).height > mid_planes(image, SPACING, classes=few).height


def test_names_in_other_scripts_are_drawn_as_letters():
    image = np.zeros(SHAPE, dtype=np.float32)
    accented, cyrillic = (np.asarray(mid_planes(image, SPACING, classes={1: name})) for name in ("ÖÄÜ", "ЛПЖ"))

    assert not np.array_equal(accented, cyrillic)  # boxes for unknown letters would look alike


@pytest.mark.parametrize("shape", [(1, 20, 20), (20, 20, 1), (1, 1, 20)])
def test_flat_images_have_a_picture_too(shape):
    assert mid_planes(np.ones(shape, dtype=np.int16), np.eye(4)).width > 10


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_images_without_contrast_or_numbers_have_a_picture_too(value):
    assert mid_planes(np.full(SHAPE, value, dtype=np.float32), SPACING).width > 10


def test_masks_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="same grid"):
        mid_planes(np.zeros(SHAPE), SPACING, mask=np.zeros((3, 3, 3), dtype=np.uint8))


def test_the_automatic_window_leaves_out_single_bright_voxels_and_what_is_not_a_number():
    voxels = np.arange(10_000, dtype=np.float32)
    voxels[-3:] = (np.nan, np.inf, 1e9)

    low, high = automatic_window(voxels)

    assert low == pytest.approx(100, rel=0.01)  # the 1st percentile of 0 to 9997
    assert high == pytest.approx(9950, rel=0.01)


def test_a_structure_has_the_same_colour_whatever_else_is_drawn():
    assert structure_colours([3, 1, 2, 0]) == structure_colours([0, 1, 2, 3, 3])
    assert list(structure_colours([1, 2]).values()) == list(STRUCTURE_COLOURS[:2])


def test_twenty_structures_have_twenty_colours():
    assert len(set(structure_colours(range(1, 21)).values())) == 20


def test_comparison_keeps_every_picture_whole_and_in_reading_order():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    sheet = np.asarray(
        comparison(
            [(name, Image.new("RGB", (40, 30), colour)) for name, colour in zip("abc", colours, strict=True)], columns=2
        )
    )

    corners = []
    for colour in colours:
        rows, columns = np.nonzero((sheet == colour).all(axis=2))
        assert rows.size == 40 * 30
        corners.append((int(rows.min()), int(columns.min())))
    assert corners[0][0] == corners[1][0] < corners[2][0]
    assert corners[0][1] == corners[2][1] < corners[1][1]


def test_comparison_needs_something_to_compare():
    with pytest.raises(ValueError, match="no pictures"):
        comparison([])


def test_pictures_are_drawn_without_the_slow_libraries():
    script = (
        "import sys, medssl_cli.report.pictures as pictures; pictures.font_of(is_ascii=False);"
        "print({'matplotlib', 'scipy', 'torch'} & set(sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "set()"
