"""Files of images that hold nothing of their own, because what they are a part or a copy of lies beside them.

Known by their names: the time series `X_4d` beside its labelled frames `X_frame01` (ACDC); the drawings
`X_instance-1_annotation-1` of single readers and single findings beside the label map that was made from all of them
(KiTS 2021 and 2023).
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePath
from typing import Final

from medssl_cli.formats.mask_names import is_mask_name
from medssl_cli.formats.source import Source

_SERIES: Final = re.compile(r"(.+)_4d", re.IGNORECASE)
_FRAME: Final = re.compile(r"(.+)_frame_?\d+", re.IGNORECASE)
_DRAWING: Final = re.compile(r".+_instance-\d+_annotation-\d+", re.IGNORECASE)


def copies(files: Iterable[tuple[Source, PurePath, str]]) -> dict[Source, str]:
    """Files to be left out, with the code that says why.

    Args:
        files: Source, place and name without suffixes of each.
    """
    frames: set[tuple[PurePath, str]] = set()
    series: list[tuple[Source, PurePath, str]] = []
    drawings: dict[PurePath, list[Source]] = defaultdict(list)
    folders_of_masks: set[PurePath] = set()
    for source, place, stem in files:
        if match := _FRAME.fullmatch(stem):
            frames.add((place.parent, match[1].lower()))
        elif match := _SERIES.fullmatch(stem):
            series.append((source, place.parent, match[1].lower()))
        elif _DRAWING.fullmatch(stem):
            drawings[place.parent.parent].append(source)
        elif is_mask_name(stem):
            folders_of_masks.add(place.parent)
    found = {source: "S_TIME_SERIES" for source, *frame in series if tuple(frame) in frames}
    for folder in drawings.keys() & folders_of_masks:
        found |= dict.fromkeys(drawings[folder], "S_LABEL_PART")
    return found
