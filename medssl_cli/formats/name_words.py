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
CHANNEL_WORDS: Final = {
    "t1w": "t1", "t1n": "t1", "t1c": "t1ce", "t1gd": "t1ce", "t2w": "t2", "t2f": "flair", "pdw": "pd", "pt": "pet",
    "mri": "mr", "t2starw": "t2star", "dsc": "pwi", "rcbf": "cbf", "rcbv": "cbv",
}  # fmt: skip
"""Other words for a channel. Data sets of one kind of image agree on what it shows and not on what it is called:
FLAIR is `_flair` in BraTS 2021, `-t2f` in BraTS 2023; T1 with contrast is `t1ce`, `t1gd`, `t1c`."""
CHANNELS: Final = frozenset({
    *(CHANNEL_WORDS.get(word, word) for word in MODALITY_WORDS), *CHANNEL_WORDS.values(), "swi", "angio", "t1map",
    "t2map", "t2star", "bold", "cbf", "cbv", "mtt", "tmax", "ttp", "pwi", "hbv",
})  # fmt: skip
"""The closed list of channels that are read from the names of files and from descriptions."""
_OTHER_IMAGE: Final = frozenset({
    "c", "ce", "gd", "gad", "gadolinium", "contrast", "postcontrast", "post", "enhanced", "star", "map", "mapping",
})  # fmt: skip
"""Words behind that of a channel that make it another image: T1 with contrast, T2*, a map of T1."""
_CHANNEL_OF_MODALITY: Final = {"CT": "ct", "PT": "pet", "MR": "mr"}
_EITHER_MODALITY: Final = ("cbf", "cbv", "mtt", "tmax", "ttp")
_NUMBERED_CHANNEL: Final = re.compile(r"c\d{1,4}")
_GIVEN_CHANNEL: Final = re.compile(r"(?=.{1,16}$)[a-z]+(?:\d[a-z]*){0,2}")
"""A user's own word: 16 small letters at most, and fewer digits among them than dates and numbers of persons have."""
NAMED_IMAGE: Final = ("image", "img", "volume")
LABEL: Final = r"(?:masks?|msks?|segs?|segmentations?|segm|labels?|label_?maps?|annotations?|contours?|ground_?truths?)"
SPLITS: Final = ("train", "training", "tr", "test", "testing", "ts", "val", "va", "valid", "validation")
WORD_ENDS: Final = re.compile(r"[_\-. ]+")
_SUBSET: Final = r"(?P<subset>tr|ts|te|val|va)?"
_IMAGE_FOLDER: Final = re.compile(rf"(?:images?|imgs?){_SUBSET}")
_LABEL_FOLDER: Final = re.compile(rf"(?:{LABEL}|gts?|truths?){_SUBSET}")
_OF_SPLIT: Final = re.compile(rf"(ct|mri?)_(?:{'|'.join(SPLITS)})_\d")
"""`ct_train_1001` of MM-WHS."""
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


def same_channel(word: str) -> str:
    """The one word under which a channel is recorded and looked for: `t1ce` for `T1Gd`, as it is if it has no other."""
    lower = word.strip().lower()
    return CHANNEL_WORDS.get(lower, lower)


def channel_word(name: str) -> str | None:
    """The channel of the closed list that a free-text name, such as `T1 weighted`, begins with.

    None if it has none, and if a later word says that it shows something else: `T2 FLAIR`, `T1 post contrast`, `T2*`.
    """
    first, *others = re.split(r"[^a-z0-9*]+", name.strip().lower())
    channel = same_channel(first)
    if channel not in CHANNELS or "*" in "".join(others):
        return None
    named = {same_channel(word) for word in others} & CHANNELS
    is_other = channel in ("t1", "t2", "flair") and not _OTHER_IMAGE.isdisjoint(others)
    return None if is_other or named - {channel, "mr"} else channel


def modality_of_channel(channel: str) -> str | None:
    """DICOM modality of a channel of the closed list; None of perfusion maps, which CT and MR give, and of others."""
    if channel in _EITHER_MODALITY or channel not in CHANNELS:
        return None
    return {"ct": "CT", "pet": "PT"}.get(channel, "MR")


def channel_of_modality(modality: str) -> str:
    """The channel that an image is by its modality alone, as CT and PET of one study; "" of other modalities."""
    return _CHANNEL_OF_MODALITY.get(modality, "")


def channel_of_stem(stem: str) -> tuple[str, str] | None:
    """Case and channel of an image that is named after both, as `CHUM-001__CT`; None if its last word is no channel.

    The case of an image that is named after its channel alone is "".
    """
    case, _, word = re.sub(r"[-.]", "_", stem).rpartition("_")
    channel = channel_word(word)
    return (stem[: len(case)].rstrip("_-."), channel) if channel else None


def are_channels(stems: Iterable[str]) -> bool:
    """Whether names are those of several channels of one case: `T1` and `FLAIR`, `P1_ct` and `P1_pt`."""
    found = [channel_of_stem(stem) for stem in stems]
    return None not in found and len({one[0].lower() for one in found if one}) == 1


def is_channel_word(word: str) -> bool:
    """Whether a word may be recorded as a channel: one of the closed list, `c` and a number, or a user's short word."""
    patterns = (_NUMBERED_CHANNEL, _GIVEN_CHANNEL)
    return word in CHANNELS or any(pattern.fullmatch(word) is not None for pattern in patterns)


def is_listed_channel(word: str) -> bool:
    """Whether nobody but this program can have chosen the word for a channel."""
    return word in CHANNELS or _NUMBERED_CHANNEL.fullmatch(word) is not None


def modality_of_stem(stem: str, *, is_last_word_enough: bool = False) -> str | None:
    """Modality that a name states: it consists of nothing but words for one, as `PET_image` or `MR_T1`.

    Args:
        stem: Stem of an image.
        is_last_word_enough: The words before the last do not count: a label map beside it bears their name.
    """
    if match := _OF_SPLIT.match(stem.lower()):
        return MODALITY_WORDS[match[1]]
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
