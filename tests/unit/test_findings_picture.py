"""A picture with the probabilities of findings: bars as long as they are probable, the most probable first."""

import numpy as np
import pytest

from medssl_cli.imaging.volume import Volume
from medssl_cli.report.findings import BAR_PX, GAP_PX, MOST_BARS, NAME_PX, ROW_PX, YES, Bar, findings_picture


@pytest.mark.parametrize("shape", [(60, 40, 1), (30, 20, 10)])
def test_bars_are_as_long_as_the_probabilities_and_coloured_where_they_reach_the_threshold(
    shape: tuple[int, int, int],
) -> None:
    bars = [Bar("b", 0.25, 0.1), Bar("a", 0.75, 0.5, "there"), Bar("c", 0.2, 0.3)]

    picture = findings_picture(Volume(np.zeros((1, *shape), np.float32), np.eye(4)), bars)

    pixels = np.asarray(picture, dtype=int)
    is_yes = np.abs(pixels - YES).max(axis=2) <= 3
    rows = np.flatnonzero(is_yes.any(axis=1))
    lengths = [int(is_yes[row].sum()) for row in (rows[0] + 1, rows[-1] - 1)]
    assert lengths == pytest.approx([0.75 * BAR_PX, 0.25 * BAR_PX], abs=4)
    assert rows[-1] - rows[0] == pytest.approx(2 * ROW_PX - 10, abs=2)  # the third is no yes


def test_of_many_findings_the_most_probable_are_seen() -> None:
    volume = Volume(np.zeros((1, 20, 20, 1), np.float32), np.eye(4))
    heights = [
        findings_picture(volume, [Bar("x" * 99, number / 100, 0.5) for number in range(count)]).height
        for count in (MOST_BARS + 8, MOST_BARS + 90)
    ]

    assert heights == [440 + 2 * GAP_PX] * 2  # those of the image: bars are not higher
    assert (MOST_BARS + 1) * ROW_PX <= 440
    assert NAME_PX < BAR_PX
