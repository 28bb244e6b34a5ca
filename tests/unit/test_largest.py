"""What the validation images say of largest parts: where dropping the rest pays, and where it does not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from medssl_cli.heads import LargestParts
from medssl_cli.tasks.segmentation.decode import finished
from medssl_cli.tasks.segmentation.largest import learn_largest

CLASSES = {1: "organ", 2: "lesion"}
IGNORED = 255
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def line(*values: int) -> NDArray[np.uint8]:
    return np.array(values, dtype=np.uint8).reshape(-1, 1, 1)


def learnt(*pairs: Pair) -> LargestParts:
    return learn_largest(pairs, CLASSES, ignored=IGNORED)


def test_a_class_whose_islands_are_wrong_loses_them_and_one_whose_islands_are_right_keeps_them() -> None:
    truth = line(1, 1, 1, 0, 0, 0, 2, 0, 2)

    found = learnt((line(1, 1, 1, 0, 1, 0, 2, 0, 2), truth), (truth.copy(), truth))

    assert found == LargestParts(classes=("organ",))


def test_all_classes_together_come_first_and_then_nothing_is_left_to_gain() -> None:
    truth = line(1, 1, 2, 2, 0, 0, 0, 0)

    assert learnt((line(1, 1, 2, 2, 0, 1, 0, 2), truth)) == LargestParts(foreground=True)


def test_together_does_not_pay_where_a_class_falls() -> None:
    """Dice of the organ rises from 6/7 to 1, that of the lesion, which lies apart, would fall to 0."""
    truth = line(1, 1, 1, 0, 0, 0, 0, 2)

    assert learnt((line(1, 1, 1, 0, 1, 0, 0, 2), truth)) == LargestParts(classes=("organ",))


def test_without_images_without_islands_and_where_nobody_knows_nothing_is_dropped() -> None:
    truth = line(1, 1, 0, 2, 2)

    assert learnt() == LargestParts()
    assert learnt((truth.copy(), truth)) == LargestParts()
    assert learnt((line(1, 1, 1, 0, 1), line(1, 1, 1, 0, IGNORED))) == LargestParts()


@pytest.mark.parametrize("largest", [None, LargestParts()])
def test_answers_stay_what_they_are_where_nothing_was_learnt(largest: LargestParts | None) -> None:
    answer = line(1, 0, 1)

    assert finished(answer, largest, CLASSES) is answer
    assert finished(answer, LargestParts(classes=("organ",)), CLASSES)[:, 0, 0].tolist() == [1, 0, 0]


def test_an_ensemble_does_what_most_of_its_members_do() -> None:
    several = [LargestParts(foreground=True, classes=("a", "b")), LargestParts(classes=("b",)), LargestParts()]

    assert LargestParts.of_most(several) == LargestParts(classes=("b",))
