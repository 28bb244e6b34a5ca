"""Connected parts, and the largest one: against scipy's labels, by counting, and which of two equal parts it is."""

from typing import Literal

import numpy as np
import pytest
from scipy import ndimage

from medssl_cli.imaging.components import connected_parts, largest_part, only_largest

CORNERS = np.ones((3, 3, 3))


@pytest.mark.parametrize("seed", range(8))
def test_parts_are_those_of_scipy_label_by_label_whatever_the_shape(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(100):
        shape = tuple(1 if rng.random() < 0.2 else int(rng.integers(1, 9)) for _ in range(2 + number % 2))
        labels = (rng.integers(0, 4, shape) * (rng.random(shape) < rng.random())).astype(np.uint8)
        for view in (labels, np.asfortranarray(labels), labels[::-1], labels[..., ::2]):
            require_parts(view)


def require_parts(labels: np.ndarray) -> None:
    found, number = connected_parts(labels)

    expected = 0
    for label in set(np.unique(labels)) - {0}:
        parts, num_parts = ndimage.label(labels == label, np.ones((3,) * labels.ndim))
        pairs = set(zip(parts[parts > 0].tolist(), found[parts > 0].tolist(), strict=True))
        assert len(pairs) == len({own for _, own in pairs}) == num_parts
        expected += num_parts
    assert number == found.max(initial=0) == expected
    assert np.array_equal(found > 0, labels > 0)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_part_with_most_voxels_that_touch_even_by_a_corner(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((9, 11, 7)) < share

    found = largest_part(mask)

    parts, number = ndimage.label(mask, CORNERS)
    sizes = ndimage.sum_labels(mask, parts, range(1, number + 1))
    assert found.sum() == sizes.max()
    assert np.array_equal(found, parts == parts[tuple(np.argwhere(found)[0])])


def test_of_equal_parts_the_first_stays_and_of_nothing_nothing() -> None:
    mask = np.zeros((6, 6, 6), dtype=bool)
    assert not largest_part(mask).any()
    mask[0, 5, 5] = mask[5, 0, 0] = True

    assert np.argwhere(largest_part(mask)).tolist() == [[0, 5, 5]]


@pytest.mark.parametrize("order", ["C", "F"])
def test_masks_that_may_not_be_written_to_and_views_of_others_are_taken(order: Literal["C", "F"]) -> None:
    mask = np.zeros((8, 6, 9), dtype=bool, order=order)
    mask[1:3], mask[5:8] = True, True
    mask.flags.writeable = False

    for view in (mask, mask[::-1], mask[:, ::2, ::-1]):
        assert largest_part(view).sum() == view.sum() * 3 // 5


def test_classes_are_cleaned_one_by_one_or_all_together() -> None:
    answer = np.zeros((9, 1, 1), dtype=np.uint8)
    answer[:, 0, 0] = [1, 1, 2, 0, 1, 0, 2, 2, 2]

    def cleaned(*, foreground: bool, places: tuple[int, ...]) -> list[int]:
        found: list[int] = only_largest(answer, foreground=foreground, places=places)[:, 0, 0].tolist()
        return found

    assert cleaned(foreground=False, places=()) == answer[:, 0, 0].tolist()
    assert cleaned(foreground=False, places=(1,)) == [1, 1, 2, 0, 0, 0, 2, 2, 2]
    assert cleaned(foreground=False, places=(1, 2)) == [1, 1, 0, 0, 0, 0, 2, 2, 2]
    assert cleaned(foreground=True, places=()) == [1, 1, 2, 0, 0, 0, 0, 0, 0]  # of two parts of three the first


def test_regions_are_cleaned_each_in_its_own_mask() -> None:
    answer = np.zeros((2, 6, 1, 1), dtype=np.uint8)
    answer[0, :, 0, 0] = [1, 1, 1, 0, 0, 1]
    answer[1, :, 0, 0] = [0, 1, 0, 0, 0, 1]

    first = only_largest(answer, foreground=False, places=(1,))
    both = only_largest(answer, foreground=True, places=())

    assert first[:, :, 0, 0].tolist() == [[1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1]]
    assert both[:, :, 0, 0].tolist() == [[1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
