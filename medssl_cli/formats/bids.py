"""Names of the Brain Imaging Data Structure: whose image a file is, of what kind, and which label maps belong to it.

Strict on purpose: a file counts only if it lies in `sub-<x>/[ses-<y>/]<data type>/`, repeats both in its name, and
ends in a suffix that is known here. Source: BIDS specification 1.9, "Common principles", the pages of each modality,
and "Derivatives: imaging".
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from medssl_cli.base.names import unique_names
from medssl_cli.formats.name_words import same_channel
from medssl_cli.formats.source import read_bytes

MAX_TABLE_BYTES: Final = 2**20
_ENTITY: Final = re.compile(r"([a-z]+)-([A-Za-z0-9+]+)")
_SUFFIX: Final = re.compile(r"[A-Za-z0-9]+")
_ANATOMY: Final = (
    "T1w", "T2w", "T2star", "T2starw", "FLAIR", "PDw", "PDT2", "T1rho", "inplaneT1", "inplaneT2", "angio", "T1map",
    "T2map", "T2starmap", "R1map", "R2map", "R2starmap", "PDmap", "MTRmap", "MTVmap", "MTsat", "MWFmap", "UNIT1",
    "Chimap", "M0map", "RB1map", "S0map", "VFA", "IRT1", "MP2RAGE", "MESE", "MEGRE", "MPM", "MTS", "MTR",
)  # fmt: skip
_MODALITIES: Final[dict[str, dict[str, str]]] = {
    "anat": dict.fromkeys(_ANATOMY, "MR"),
    "func": dict.fromkeys(("bold", "cbv", "sbref", "phase"), "MR"),
    "dwi": dict.fromkeys(("dwi", "sbref", "adc", "ADC"), "MR"),  # ISLES 2022 has its ADC maps there
    "perf": dict.fromkeys(("asl", "m0scan"), "MR"),
    "pet": {"pet": "PT"},
    "ct": {"ct": "CT"},
}
LABEL_SUFFIXES: Final = ("dseg", "mask")
_NEVER_IMAGES: Final = ("defacemask", "probseg")
_ONLY_OF_LABELS: Final = ("desc", "label", "res", "den", "atlas", "seg", "hemi")
_NATIVE_SPACES: Final = ("", "orig")


@dataclass(frozen=True, slots=True)
class BidsName:
    """What the place of a BIDS file says.

    Args:
        dataset: Folder of the raw data set; for a derivative the folder that holds `derivatives`.
        subject: Label of `sub-`: the patient.
        datatype: "anat", "pet", ...
        entities: Key and label in the order of the name, without the suffix.
        suffix: "T1w", "dseg", ...
        is_derivative: Whether it lies below `derivatives`.
        pipeline: The folder below `derivatives`, "" if there is none.
        top: Folder of the whole: of the pipeline, or of the raw data set.
    """

    dataset: PurePath
    subject: str
    datatype: str
    entities: tuple[tuple[str, str], ...]
    suffix: str
    is_derivative: bool
    pipeline: str
    top: PurePath

    @property
    def modality(self) -> str | None:
        """DICOM modality of a raw image, None for anything else."""
        return None if self.is_derivative else _MODALITIES.get(self.datatype, {}).get(self.suffix)

    @property
    def channel(self) -> str:
        """Which image of its session it is: `t1`, or `t1ce` with a contrast agent (entity `ce-`)."""
        channel = same_channel(self.suffix)
        return "t1ce" if channel == "t1" and "ce" in dict(self.entities) else channel

    @property
    def example(self) -> str:
        """What its session is called, in the clear: channels are images of one session."""
        session = [f"{key}-{label}" for key, label in self.entities if key in ("sub", "ses")]
        return "/".join((self.dataset.name, *session))

    @property
    def is_label(self) -> bool:
        """Whether it is a label map: a discrete segmentation or a mask."""
        return self.suffix in LABEL_SUFFIXES

    @property
    def class_name(self) -> str | None:
        """What a mask marks (`label-lesion`, else `desc-brain`); None of a segmentation, whose values have names."""
        words = dict(self.entities)
        return words.get("label", words.get("desc")) if self.suffix == "mask" else None

    @property
    def family(self) -> tuple[str, str, str]:
        """Equal for label maps of one image that are parts of one whole: pipeline, words, suffix.

        `label-` names a part; `desc-`, `seg-` and `atlas-` tell wholes apart ("Derivatives: imaging", common entities).
        """
        words = dict(self.entities)
        own = "-".join(words[key] for key in ("seg", "atlas", "desc") if key in words)
        return self.pipeline, own, self.suffix

    @property
    def is_derived(self) -> bool:
        """Whether it is neither a raw image nor a label: an image that was made from others, a probability."""
        return not self.is_label and (self.is_derivative or self.suffix in _NEVER_IMAGES)

    @property
    def keys(self) -> tuple[tuple[object, ...], ...]:
        """One for a label, which is among those of its images.

        The entities that only describe a label do not count; neither does the suffix, which a label does not repeat.
        A label in a space belongs to images that name the same (ATLAS), or, in that of an image, to images of that
        suffix that name none (`space-T1w`); one that names none to all.
        """
        space = dict(self.entities).get("space", "")
        left_out = (*_ONLY_OF_LABELS, "space") if self.is_label else ("space",)
        rest = tuple(sorted(pair for pair in self.entities if pair[0] not in left_out))
        own = "" if space in _NATIVE_SPACES else space
        spaces = (own,) if self.is_label else ("", own or self.suffix)
        return tuple((self.dataset, self.datatype, rest, one) for one in spaces)


def parse_place(place: PurePath, stem: str, floor: int = 0) -> BidsName | None:
    """Read a file's place by the rules of BIDS.

    Args:
        place: The file.
        stem: Its name without the suffixes of its format.
        floor: How many of its outermost folders lie above the input and say nothing.

    Returns:
        None if the place does not follow them.
    """
    *words, suffix = stem.split("_")
    matches = [_ENTITY.fullmatch(word) for word in words]
    entities = tuple((match[1], match[2]) for match in matches if match)
    folders = place.parts[:-1]
    if len(entities) != len(words) or not _SUFFIX.fullmatch(suffix) or len(dict(entities)) != len(entities):
        return None
    if not entities or entities[0][0] != "sub" or len(folders) < 2:
        return None
    above = [f"{key}-{label}" for key, label in entities if key in ("sub", "ses")]
    if list(folders[-1 - len(above) : -1]) != above or folders[-1] not in _MODALITIES:
        return None
    top = folders[: -1 - len(above)]
    level = next((index for index in range(floor, len(top)) if top[index] == "derivatives"), None)
    return BidsName(
        dataset=PurePath(*top[:level]),
        subject=entities[0][1],
        datatype=folders[-1],
        entities=entities,
        suffix=suffix,
        is_derivative=level is not None,
        pipeline="".join(top[level + 1 : level + 2]) if level is not None else "",
        top=PurePath(*top),
    )


def set_names(labels: Collection[BidsName]) -> dict[tuple[str, str, str], str]:
    """A name for each family of label maps of one data set, "" for the only one.

    The shortest that tells them apart: the words, the words and the suffix, all of it.
    """
    families = sorted({label.family for label in labels})
    if len(families) < 2:
        return dict.fromkeys(families, "")
    for parts in ((1,), (1, 2), (0, 1, 2)):
        names = [
            "-".join(filter(str.isalnum, (re.sub(r"[^A-Za-z0-9]", "", one[part]) for part in parts)))
            for one in families
        ]
        if len(set(names)) == len(names):
            break
    return dict(zip(families, names, strict=True))


def read_value_names(place: Path, top: PurePath) -> dict[int, str]:
    """Names of the values of a discrete segmentation, from the nearest `*_dseg.tsv` with its entities or fewer.

    Source: "Derivatives: imaging", look-up tables, and the inheritance principle.

    Args:
        place: The segmentation, on a disk.
        top: No folder above it is looked at.

    Raises:
        InputError: `E_NAME_COLLISION`, the codes of reading files.
    """
    own = set(place.name.partition(".")[0].split("_"))
    for folder in (folder for folder in place.parents if folder.is_relative_to(top)):
        tables = [table for table in folder.glob("*dseg.tsv") if set(table.stem.split("_")) <= own]
        if tables:
            return _value_names(max(tables, key=lambda table: (table.stem.count("_"), table.name)))
    return {}


def _value_names(table: Path) -> dict[int, str]:
    """Columns `index` and `name`, background left out."""
    lines = read_bytes(table, max_bytes=MAX_TABLE_BYTES).decode("utf-8-sig", "replace").splitlines()
    header, *rows = [line.split("\t") for line in lines if line.strip()] or [[]]
    if not {"index", "name"} <= {*header}:
        return {}
    index, name = header.index("index"), header.index("name")
    pairs = [(row[index].strip(), row[name]) for row in rows if len(row) > max(index, name)]
    named = {int(value): text for value, text in pairs if value.isdigit() and int(value) and text.strip()}
    return dict(zip(named, unique_names(named.values()), strict=True))
