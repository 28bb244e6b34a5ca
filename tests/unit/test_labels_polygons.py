"""Which voxels a contour holds: those whose centre is inside."""

import numpy as np
import pytest
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import polygons
from medssl_cli.formats.labels.polygons import fill_contours, fill_polygon, outline_voxels, unite_contours

SIZE = (12, 9)


def corners(*points: tuple[float, float]) -> NDArray[np.float64]:
    return np.array(points, dtype=np.float64)


def rectangle(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    return corners((left, top), (right, top), (right, bottom), (left, bottom))


def circle(centre: tuple[float, float], radius: float, count: int = 720) -> NDArray[np.float64]:
    angles = np.arange(count) * 2 * np.pi / count
    return np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)


def literal(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The even-odd rule voxel by voxel: a ray towards -x crosses an odd number of edges."""
    mask = np.zeros(size, dtype=bool)
    for x, y in np.ndindex(size):
        crossings = 0
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if min(y0, y1) <= y < max(y0, y1) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
                crossings += 1
        mask[x, y] = crossings % 2
    return mask


def test_a_square_between_voxel_centres_holds_exactly_the_centres_inside() -> None:
    expected = np.zeros(SIZE, dtype=bool)
    expected[3:8, 2:6] = True  # centres 3..7 lie between 2.5 and 7.5, centres 2..5 between 1.5 and 5.5

    assert np.array_equal(fill_polygon(rectangle(2.5, 1.5, 7.5, 5.5), SIZE), expected)


def test_x_and_y_are_not_exchanged() -> None:
    mask = fill_polygon(rectangle(-0.5, -0.5, 4.5, 0.5), SIZE)

    assert np.argwhere(mask).tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0]]


def test_a_centre_on_an_edge_belongs_to_the_side_of_increasing_index() -> None:
    mask = fill_polygon(rectangle(2, 3, 5, 6), SIZE)

    assert np.argwhere(mask).tolist() == [[x, y] for x in (2, 3, 4) for y in (3, 4, 5)]


def test_polygons_that_share_edges_share_no_voxel_and_leave_no_gap() -> None:
    middle = (5, 4)
    outer = [(1, 1), (10, 1), (10, 7), (1, 7)]
    triangles = [corners(middle, outer[i], outer[(i + 1) % 4]) for i in range(4)]

    masks = [fill_polygon(triangle, SIZE) for triangle in triangles]

    assert np.array_equal(np.sum(masks, axis=0), fill_polygon(rectangle(1, 1, 10, 7), SIZE).astype(int))


def test_the_last_digit_of_a_coordinate_does_not_matter() -> None:
    square = rectangle(2, 3, 5, 6)

    for error in (1e-12, -1e-12, 0.004, -0.004):
        assert np.array_equal(fill_polygon(square + error, SIZE), fill_polygon(square, SIZE))


@pytest.mark.parametrize("seed", range(20))
def test_any_polygon_equals_the_rule_applied_voxel_by_voxel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = np.round(rng.uniform(-3, 14, (rng.integers(3, 12), 2)) * 4) / 4  # quarters: many centres lie on edges

    assert np.array_equal(fill_polygon(points, SIZE), literal(points, SIZE))


def test_neither_the_direction_nor_the_first_corner_matters() -> None:
    points = circle((5.3, 4.1), 3.2, 17)

    expected = fill_polygon(points, SIZE)

    assert np.array_equal(fill_polygon(points[::-1], SIZE), expected)
    assert np.array_equal(fill_polygon(np.roll(points, 5, axis=0), SIZE), expected)


@pytest.mark.parametrize("radius", [5.0, 17.3, 40.0])
def test_the_area_of_a_circle_is_right(radius: float) -> None:
    """The number of centres in a disc differs from its area by at most the circumference times half a diagonal."""
    count = int(fill_polygon(circle((50.2, 49.7), radius), (100, 100)).sum())

    assert abs(count - np.pi * radius**2) <= 2 * np.pi * radius * np.sqrt(0.5)
    assert count == pytest.approx(np.pi * radius**2, rel=0.02)


def test_a_contour_inside_another_cuts_a_hole() -> None:
    mask = fill_contours([rectangle(0.5, 0.5, 9.5, 7.5), rectangle(3.5, 2.5, 5.5, 4.5)], SIZE)

    assert not mask[4:6, 3:5].any()
    assert mask.sum() == 9 * 7 - 4


def test_a_keyhole_cuts_a_hole() -> None:
    keyhole = corners(
        (0.5, 0.5), (9.5, 0.5), (9.5, 7.5), (0.5, 7.5), (0.5, 3.25),
        (3.5, 3.25), (3.5, 4.5), (5.5, 4.5), (5.5, 2.5), (3.5, 2.5), (3.5, 3.25), (0.5, 3.25),
    )  # fmt: skip

    two = fill_contours([rectangle(0.5, 0.5, 9.5, 7.5), rectangle(3.5, 2.5, 5.5, 4.5)], SIZE)

    assert np.array_equal(fill_polygon(keyhole, SIZE), two)


def test_what_lies_outside_of_the_slice_is_cut() -> None:
    assert fill_polygon(rectangle(-50, -50, 50, 50), SIZE).all()
    assert not fill_polygon(rectangle(20, 20, 50, 50), SIZE).any()


def test_an_outline_is_the_voxels_under_it() -> None:
    mask = outline_voxels(rectangle(2, 1, 5, 4), SIZE)

    assert mask.sum() == 12
    assert not mask[3:5, 2:4].any()


def test_a_sloping_outline_holds_the_centres_that_it_meets() -> None:
    mask = outline_voxels(corners((0, 0), (6, 3), (6, 3)), SIZE)

    assert np.argwhere(mask).tolist() == [[0, 0], [2, 1], [4, 2], [6, 3]]


def test_a_contour_that_runs_to_and_fro_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons, "MAX_CROSSINGS", 50)

    with pytest.raises(InputError, match="E_TOO_BIG"):
        fill_polygon(np.tile(rectangle(0, 0, 5, 8), (10, 1)), SIZE)
    with pytest.raises(InputError, match="E_TOO_BIG"):
        outline_voxels(np.tile(rectangle(0, 0, 5, 8), (10, 1)), SIZE)


# Several contours of one structure


def area(left: float, top: float, right: float, bottom: float) -> NDArray[np.bool_]:
    return fill_polygon(rectangle(left, top, right, bottom), SIZE)


OUTER, HOLE, ISLAND = (0.5, 0.5, 10.5, 7.5), (1.5, 1.5, 9.5, 6.5), (3.5, 2.5, 6.5, 5.5)
RIGHT, ACROSS = (7.5, 0.5, 11.5, 7.5), (6.5, 2.5, 11.5, 4.5)


@pytest.mark.parametrize(
    ("boxes", "expected", "num_inside", "num_overlaps"),
    [
        ([HOLE, (9.5, 1.5, 10.5, 6.5)], area(*HOLE) | area(9.5, 1.5, 10.5, 6.5), 0, 0),
        ([OUTER, HOLE], area(*OUTER) & ~area(*HOLE), 1, 0),
        ([OUTER, HOLE, ISLAND], area(*OUTER) & ~area(*HOLE) | area(*ISLAND), 2, 0),
        ([HOLE, RIGHT], area(*HOLE) | area(*RIGHT), 0, 1),
        ([OUTER, HOLE, ACROSS], area(*OUTER) & ~area(*HOLE) | area(*ACROSS), 1, 2),
        ([OUTER, OUTER], area(*OUTER), 0, 0),
        ([OUTER, OUTER, HOLE], area(*OUTER) & ~area(*HOLE), 1, 0),
        ([OUTER, HOLE, (3.5, 2.5, 5.5, 5.5), (4.5, 2.5, 6.5, 5.5)], area(*OUTER) & ~area(*HOLE) | area(*ISLAND), 3, 1),
        ([(0.5, 0.5, 8.5, 7.5), (2.5, 0.5, 10.5, 7.5), ISLAND], area(*OUTER) & ~area(*ISLAND), 1, 1),
    ],
    ids=[
        "beside", "hole", "island", "overlap", "across-a-rim", "twice", "twice-with-hole", "islands-overlap",
        "hole-in-an-overlap",
    ],
)  # fmt: skip
def test_contours_are_united_and_those_wholly_inside_are_holes(
    boxes: list[tuple[float, float, float, float]], expected: NDArray[np.bool_], num_inside: int, num_overlaps: int
) -> None:
    """In any order of the contours."""
    for shift in range(len(boxes)):
        contours = [rectangle(*box) for box in boxes[shift:] + boxes[:shift]]
        united = unite_contours(contours, SIZE)

        assert np.array_equal(united.mask, expected)
        assert (united.num_inside, united.num_overlaps) == (num_inside, num_overlaps)


def test_a_contour_that_sticks_out_by_less_than_a_voxel_is_no_hole() -> None:
    inner = rectangle(2.6, 1.5, 9.9, 6.5)  # beyond the right edge, but beyond no further centre

    united = unite_contours([rectangle(0.5, 0.5, 9.5, 7.5), inner], SIZE)

    assert np.array_equal(united.mask, area(0.5, 0.5, 9.5, 7.5))
    assert (united.num_inside, united.num_overlaps) == (0, 1)


@pytest.mark.parametrize("seed", range(10))
def test_contours_in_and_beside_each_other_are_their_exclusive_or(seed: int) -> None:
    """Where none overlap in part, the two ways to combine contours agree."""
    rng = np.random.default_rng(seed)
    contours = []
    for left in (0.5, 20.5, 40.5):
        size = 19.0
        while size > 2:
            contours.append(rectangle(left, left / 2, left + size, left / 2 + size))
            left, size = left + rng.integers(1, 3), size - rng.integers(3, 6)

    united = unite_contours([contours[number] for number in rng.permutation(len(contours))], (64, 48))

    assert np.array_equal(united.mask, fill_contours(contours, (64, 48)))
    assert united.num_overlaps == 0


@pytest.mark.parametrize(("limit", "value"), [("MAX_TOUCHING", 3), ("MAX_PATCH_VOXELS", 100)])
def test_contours_without_number_that_overlap_are_refused(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(polygons, limit, value)

    with pytest.raises(InputError, match="E_TOO_BIG"):
        unite_contours([rectangle(0, 0, 5 + number, 5) for number in range(4)], SIZE)
