"""Label maps that lie beside their image, or in a folder of organs beside it, and are known by their names alone.

Recognised: `X_mask` (`_seg`, `-label`, ...) beside `X` or `X_image`; `X_seg` beside `X_t1`, `X_flair`, ...;
`mask_X` beside `X` or `image_X`; `X_seg_Y` beside `X_Y`; `mask` or `segmentation` beside a single image.
"""

import re
from collections.abc import Collection
from typing import Final

MODALITY_WORDS: Final = {
    "ct": "CT", "mr": "MR", "mri": "MR", "cinemri": "MR", "t1": "MR", "t1w": "MR", "t1c": "MR", "t1ce": "MR",
    "t1gd": "MR", "t1n": "MR", "t2": "MR", "t2w": "MR", "t2f": "MR", "flair": "MR", "adc": "MR", "dwi": "MR",
    "pd": "MR", "pet": "PT", "pt": "PT",
}  # fmt: skip
_MASK: Final = r"(?:masks?|segs?|segmentations?|labels?|labelmap)"
_ALONE: Final = re.compile(_MASK)
_LAST: Final = re.compile(rf"(.+)[_-](?:{_MASK}|gt)")
_FIRST: Final = re.compile(rf"{_MASK}[_-](.+)")
_WORDS: Final = re.compile(r"[_-]")
_SMALL_FOLDER: Final = 16
_NAMED_IMAGE: Final = ("image", "img", "volume")


def is_mask_name(stem: str) -> bool:
    """Whether a name alone says that the file is a label map, image or no image beside it."""
    lower = stem.lower()
    return bool(_ALONE.fullmatch(lower) or (_LAST.fullmatch(lower) and not lower.endswith("gt")))


def images_of_mask(stem: str, others: Collection[str]) -> tuple[str, ...]:
    """Which files of the same folder a label map belongs to.

    Args:
        stem: Of the possible label map.
        others: Lower-case stems in the folder, with or without this one; looked up, not searched.

    Returns:
        Members of `others`; empty if the file is not a label map of any of them.
    """
    lower = stem.lower()
    if _ALONE.fullmatch(lower):
        images = tuple(other for other in others if not is_mask_name(other))
        return images if len(images) == 1 or all(modality_of_stem(image) for image in images) else ()
    if match := _LAST.fullmatch(lower):
        base = match[1]
        exact = _present([base, *(f"{base}{mark}{word}" for mark in "_-" for word in _NAMED_IMAGE)], others)
        return exact or _present([f"{base}{mark}{word}" for mark in "_-" for word in MODALITY_WORDS], others)
    if match := _FIRST.fullmatch(lower):
        return _present([match[1], *(f"{word}{mark}{match[1]}" for mark in "_-" for word in _NAMED_IMAGE)], others)
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
    images = tuple(
        other for other in others if other != lower and not is_mask_name(other) and {*rest} <= {*_WORDS.split(other)}
    )
    return images if len(images) == 1 else ()


def _present(names: list[str], others: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in others and not is_mask_name(name))


def modality_of_stem(stem: str, *, is_last_word_enough: bool = False) -> str | None:
    """Modality that a name states: it consists of nothing but words for one, as `PET_image` or `MR_T1`.

    Args:
        stem: Of an image.
        is_last_word_enough: The words before the last do not count: a label map beside it bears their name.
    """
    words = _WORDS.split(stem.lower())
    if len(words) > 1 and words[-1] in _NAMED_IMAGE:
        words.pop()
    modalities = {MODALITY_WORDS.get(word) for word in (words[-1:] if is_last_word_enough else words)}
    return modalities.pop() if len(modalities) == 1 else None


def known_modality(name: str) -> str:
    """DICOM modality of a channel's free-text name, or "" if it says nothing."""
    word = name.strip().lower()
    return MODALITY_WORDS.get(word, "MR" if re.match(r"(mri?|t1|t2|flair)\b", word) else "")
