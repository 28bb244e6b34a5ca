"""The words that people write into the names of files and folders: for modalities, for images, for labels."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

MODALITY_WORDS: Final = {
    "ct": "CT", "mr": "MR", "mri": "MR", "cinemri": "MR", "t1": "MR", "t1w": "MR", "t1c": "MR", "t1ce": "MR",
    "t1gd": "MR", "t1n": "MR", "t2": "MR", "t2w": "MR", "t2f": "MR", "flair": "MR", "adc": "MR", "dwi": "MR",
    "pd": "MR", "pet": "PT", "pt": "PT",
}  # fmt: skip
NAMED_IMAGE: Final = ("image", "img", "volume")
LABEL: Final = r"(?:masks?|msks?|segs?|segmentations?|segm|labels?|label_?maps?|annotations?|contours?|ground_?truths?)"
SPLITS: Final = ("train", "training", "tr", "test", "testing", "ts", "val", "va", "valid", "validation")
WORD_ENDS: Final = re.compile(r"[_\-. ]+")
_SUBSET: Final = r"(?P<subset>tr|ts|te|val|va)?"
_IMAGE_FOLDER: Final = re.compile(rf"(?:images?|imgs?){_SUBSET}")
_LABEL_FOLDER: Final = re.compile(rf"(?:{LABEL}|gts?|truths?){_SUBSET}")
_CHANNEL: Final = re.compile(r"c\d{1,4}")
_SEQUENCE: Final = re.compile(r"(mri?|t1|t2|flair)\b")


@dataclass(frozen=True, slots=True)
class FolderRole:
    """What the name of a folder says about its files.

    Args:
        is_label: They are label maps, and not images.
        key: The name with a star for the word that says so: equal for images and their labels.
    """

    is_label: bool
    key: str


def folder_role(name: str) -> FolderRole | None:
    """Whether a folder holds images or labels: `imagesTr`, `gt`, `train_masks`, `averaged-training-labels`.

    The last word of a name goes before the first: `image_masks` holds masks.
    """
    lower = re.sub(r"ground[_\- ]truth", "groundtruth", name.lower())
    words = WORD_ENDS.split(lower)
    for index in dict.fromkeys((len(words) - 1, 0)):
        for pattern, is_label in ((_LABEL_FOLDER, True), (_IMAGE_FOLDER, False)):
            if match := pattern.fullmatch(words[index]):
                star = f"*{match['subset'] or ''}"
                return FolderRole(is_label, "_".join((*words[:index], star, *words[index + 1 :])))
    return None


def known_modality(name: str) -> str:
    """DICOM modality of a channel's free-text name, or "" if it says nothing."""
    word = name.strip().lower()
    return MODALITY_WORDS.get(word, "MR" if _SEQUENCE.match(word) else "")


def channel_word(name: str) -> str | None:
    """The one word of a closed list that a channel's free-text name begins with; None if it has none."""
    word = name.strip().lower()
    first = re.split(r"[^a-z0-9]", word, maxsplit=1)[0]
    return word if word in MODALITY_WORDS else first if first in MODALITY_WORDS else None


def channel_of_stem(stem: str) -> tuple[str, str] | None:
    """Case and word of an image that is named after both, as `CHUM-001__CT`; None if its last word is no channel."""
    case, _, word = stem.replace("-", "_").rpartition("_")
    return (stem[: len(case)].rstrip("_-"), word.lower()) if word.lower() in MODALITY_WORDS else None


def are_channels(stems: Iterable[str]) -> bool:
    """Whether names are those of several channels of one case: `T1` and `FLAIR`, `P1_ct` and `P1_pt`."""
    found = [channel_of_stem(stem) for stem in stems]
    return None not in found and len({one[0].lower() for one in found if one}) == 1


def is_channel_word(word: str) -> bool:
    """Whether a word may be recorded as a channel: one of the closed list, or `c` and a number."""
    return word in MODALITY_WORDS or _CHANNEL.fullmatch(word) is not None


def modality_of_stem(stem: str, *, is_last_word_enough: bool = False) -> str | None:
    """Modality that a name states: it consists of nothing but words for one, as `PET_image` or `MR_T1`.

    Args:
        stem: Of an image.
        is_last_word_enough: The words before the last do not count: a label map beside it bears their name.
    """
    words = re.split(r"[_-]", stem.lower())
    if len(words) > 1 and words[-1] in NAMED_IMAGE:
        words.pop()
    modalities = {MODALITY_WORDS.get(word) for word in (words[-1:] if is_last_word_enough else words)}
    return modalities.pop() if len(modalities) == 1 else None


_IMAGE_WORD: Final = r"(?:images?|imgs?|volumes?|vols?|scans?)"
_CORES: Final[dict[Literal["image", "label"], tuple[re.Pattern[str], ...]]] = {
    "image": (re.compile(rf"{_IMAGE_WORD}[_\-. ]?(?=\d)|{_IMAGE_WORD}[_\-. ]"), re.compile(rf"[_\-. ]{_IMAGE_WORD}$")),
    "label": (
        re.compile(rf"(?:{LABEL}|gt|truth)[_\-. ]?(?=\d)|(?:{LABEL}|gt|truth)[_\-. ]"),
        re.compile(rf"[_\-. ](?:{LABEL}|gt|truth)$"),
    ),
}


def core_of(stem: str, role: Literal["image", "label"]) -> str:
    """A name without the word for images or labels before or behind it: `img0001` and `label0001` are both `0001`."""
    first, last = _CORES[role]
    lower = stem.lower()
    match = first.match(lower)
    core = lower[match.end() :] if match else last.sub("", lower)
    return core or lower
