"""Choice of the classes of which only the largest connected part counts: learnt on validation images, nnU-Net's rule.

Isensee et al., nnU-Net, Nature Methods 2021, https://doi.org/10.1038/s41592-020-01008-z. First all classes together:
that pays if the mean Dice rises and that of no class falls. Then each class by itself: that pays if its Dice rises.

Shapes: K classes or regions, X Y Z space.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.heads import LargestParts
from medssl_cli.imaging.components import only_largest
from medssl_cli.metrics.overlap import dice
from medssl_cli.metrics.statistics import mean_of_known
from medssl_cli.tasks.segmentation.decode import structure

MIN_GAIN: Final = 1e-4
"""Least gain of Dice; less is no gain."""

Scores = dict[int, list[float]]


@dataclass
class _Tried:
    """Dice of every class in every image, of answers that are left as they are and of such that are changed.

    Args:
        before: Left as they are.
        after: Scores with the largest part of each class by itself.
    """

    before: Scores = field(default_factory=dict)
    after: Scores = field(default_factory=dict)


def learn_largest(
    answers: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]], classes: Mapping[int, str], *, ignored: int
) -> LargestParts:
    """Whether the largest part pays for all classes together, and for each.

    Args:
        answers: Answers and references of the validation images, label maps `[X, Y, Z]` or masks `[K, X, Y, Z]`.
        classes: Names by place, from 1 on.
        ignored: Value of the references where nobody knows.
    """
    tried = {foreground: _Tried() for foreground in (False, True)}
    for answer, reference in answers:
        known = reference != ignored
        for foreground, own in tried.items():
            base = only_largest(answer, foreground=foreground, places=())
            changed = only_largest(base, foreground=False, places=classes)
            for scores, seen in ((own.before, base), (own.after, changed)):
                for place in classes:
                    found, there = structure(seen * known, place), structure(reference * known, place)
                    scores.setdefault(place, []).append(dice(found, there))
    before = {foreground: {place: mean_of_known(own.before.get(place, [])) for place in classes}
              for foreground, own in tried.items()}  # fmt: skip
    gains = [before[True][place] - before[False][place] for place in classes]
    told = [gain for gain in gains if not math.isnan(gain)]
    pays = bool(told) and sum(told) / len(told) > MIN_GAIN and min(told) >= 0
    after = {place: mean_of_known(tried[pays].after.get(place, [])) for place in classes}
    return LargestParts(
        foreground=pays,
        classes=tuple(name for place, name in classes.items() if after[place] > before[pays][place] + MIN_GAIN),
    )
