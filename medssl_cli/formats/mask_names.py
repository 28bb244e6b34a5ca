"""Label maps that lie beside their image, or in a folder of organs beside it, and are known by their names alone.

Recognised: `X_mask` (`_seg`, `-label`, ...) beside `X` or `X_image`; `X_seg` beside `X_t1`, `X_flair`, ...;
`mask_X` beside `X` or `image_X`; `label0001` beside `img0001`; `X_seg_Y` beside `X_Y`; `mask` or `segmentation`
beside a single image; `aggregated_MAJ_seg` too.
"""

import re
from collections.abc import Collection
from typing import Final

from medssl_cli.formats.name_words import LABEL, MODALITY_WORDS, NAMED_IMAGE, modality_of_stem

_ALONE: Final = re.compile(rf"(?:{LABEL}|gts?|truths?)")
_LAST: Final = re.compile(rf"(.+)[_-](?:{LABEL}|gt)")
_FIRST: Final = re.compile(rf"{LABEL}(?:[_-](?P<rest>.+)|(?P<number>\d.*))")
_VOTE: Final = re.compile(r"aggregated_(maj|and|or)_seg")
"""What three readers drew together, by their votes (KiTS 2021)."""
_WORDS: Final = re.compile(r"[_-]")
_SMALL_FOLDER: Final = 16


def is_mask_name(stem: str) -> bool:
    """Whether a name alone says that the file is a label map, image or no image beside it.

    The truth of `X_gt` or `X_ground_truth` may as well be an image, such as the right result of a conversion.
    """
    lower = stem.lower()
    is_truth = lower.endswith(("gt", "truth", "truths"))
    return bool(_ALONE.fullmatch(lower) or (_LAST.fullmatch(lower) and not is_truth))


def vote_of(stem: str) -> str:
    """Name of the label set of a map that readers voted on otherwise than by majority; "" for all others."""
    match = _VOTE.fullmatch(stem.lower())
    return match[1] if match and match[1] != "maj" else ""


def images_of_mask(stem: str, others: Collection[str]) -> tuple[str, ...]:
    """Which files of the same folder a label map belongs to.

    Args:
        stem: Stem of the possible label map.
        others: Lower-case stems in the folder, with or without this one; looked up, not searched.

    Returns:
        Members of `others`; empty if the file is not a label map of any of them.
    """
    lower = stem.lower()
    if _ALONE.fullmatch(lower) or _VOTE.fullmatch(lower):
        images = tuple(other for other in others if not is_mask_name(other))
        return images if len(images) == 1 or all(modality_of_stem(image) for image in images) else ()
    if match := _LAST.fullmatch(lower):
        base = match[1]
        exact = _present([base, *(f"{base}{mark}{word}" for mark in "_-" for word in NAMED_IMAGE)], others)
        return exact or _present([f"{base}{mark}{word}" for mark in "_-" for word in MODALITY_WORDS], others)
    if match := _FIRST.fullmatch(lower):
        if number := match["number"]:
            return _present([f"{word}{number}" for word in NAMED_IMAGE], others)
        rest = match["rest"]
        return _present([rest, *(f"{word}{mark}{rest}" for mark in "_-" for word in NAMED_IMAGE)], others)
    return _images_of_inner_word(lower, others)


def _images_of_inner_word(lower: str, others: Collection[str]) -> tuple[str, ...]:
    """For `X_seg_Y`: `X_Y`, or in a small folder the only file that has all words of X and Y among its own."""
    words = _WORDS.split(lower)
    rest = [word for word in words if not _ALONE.fullmatch(word)]
    if len(rest) != len(words) - 1:
        return ()
    if exact := _present(["_".join(rest), "-".join(rest)], others):
        return exact
    if len(others) > _SMALL_FOLDER:
        return ()
    images = tuple(other for other in others if {*rest} <= {*_WORDS.split(other)} and not _has_mask_word(other))
    return images if len(images) == 1 else ()


def _has_mask_word(stem: str) -> bool:
    return is_mask_name(stem) or any(_ALONE.fullmatch(word) for word in _WORDS.split(stem))


def _present(names: list[str], others: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in others and not is_mask_name(name))
