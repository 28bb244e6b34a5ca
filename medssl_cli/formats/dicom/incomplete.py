"""Series of which a file was refused: what is left is no whole, wherever in the stack the file lay.

A gap in the middle shows; a slice missing at an end does not. So the refused file itself says of which series it is, as
far as it can be read, and its neighbours answer for it where it cannot.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.elements import walk
from medssl_cli.formats.dicom.headers import Header, parse_failure
from medssl_cli.formats.dicom.projection import is_projection
from medssl_cli.formats.dicom.tags import CT_IMAGE, ENHANCED, MR_IMAGE, PET_IMAGE, TAGS
from medssl_cli.formats.dicom.values import Values
from medssl_cli.formats.dicom.window import open_window
from medssl_cli.formats.source import Source, place_of

_CLAIMS: Final = ("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality")
_SLICES: Final = frozenset(("", CT_IMAGE, MR_IMAGE, PET_IMAGE)) | ENHANCED
_WANTED: Final = frozenset(TAGS[name] for name in _CLAIMS)
_LONGEST_SUFFIX: Final = 4


@dataclass(frozen=True)
class RefusedFile:
    """A file that was not read, and what it still says about where it belongs.

    Args:
        source: The file.
        code: Why it was refused: an `E_` code, or an `S_` code of a file that may be no slice at all.
        SeriesInstanceUID: "" where it cannot be read, like the others.
        StudyInstanceUID: See `Header`.
        SOPInstanceUID: See `Header`.
        SOPClassUID: See `Header`.
        Modality: See `Header`.
    """

    source: Source
    code: str
    SeriesInstanceUID: str = ""
    StudyInstanceUID: str = ""
    SOPInstanceUID: str = ""
    SOPClassUID: str = ""
    Modality: str = ""


@dataclass(frozen=True)
class Incomplete:
    """What refused files mean for the series around them, by SeriesInstanceUID.

    Args:
        lost: Files that are slices of the series, or can be of no other.
        doubtful: Files that may be slices of it.
    """

    lost: dict[str, list[RefusedFile]] = field(default_factory=dict)
    doubtful: dict[str, list[RefusedFile]] = field(default_factory=dict)

    @property
    def sources(self) -> set[Source]:
        """Files that count against some series."""
        return {file.source for files in (*self.lost.values(), *self.doubtful.values()) for file in files}


WHOLE: Final = Incomplete()


def refused_file(source: Source, code: str) -> RefusedFile:
    """What a refused DICOM file says about itself before it ends or its damage begins.

    Args:
        source: The file.
        code: Why it was refused.
    """
    found: dict[int, Any] = {}
    try:
        with open_window(source) as window:
            walk(window, allow_headerless=True, wanted=_WANTED, values=found)
    except InputError:
        pass
    except BaseException as error:  # noqa: BLE001 - as in `read_headers`
        parse_failure(error)
    values = Values(found)
    return RefusedFile(source, code, **{name: values.text(name) for name in _CLAIMS})


def incomplete_series(headers: Iterable[Header], refused: Iterable[RefusedFile]) -> Incomplete:
    """Find the series that refused files belong to, or may belong to.

    A file that names its series counts there, unless the same instance was read from another file or it says that it is
    another kind of object; one of an unknown kind, which may be damage, is a doubt. A file that names no series
    counts in its folder, where files are named alike and it does not say otherwise: against the only series that there
    is, or, as a doubt, against each.

    Args:
        headers: Headers of all files that were read.
        refused: Those that were not.
    """
    refused = list(refused)
    if not refused:
        return WHOLE
    seen = _seen(headers, refused)
    lost: dict[str, list[RefusedFile]] = defaultdict(list)
    doubtful: dict[str, list[RefusedFile]] = defaultdict(list)
    for file in refused:
        is_error = file.code.startswith("E_")
        if file.SOPInstanceUID in seen.instances or (is_error and file.SOPClassUID not in _SLICES):
            continue
        if file.SeriesInstanceUID:
            if file.SeriesInstanceUID in seen.series:
                (lost if is_error else doubtful)[file.SeriesInstanceUID].append(file)
            continue
        possible = {near.series for near in seen.neighbours[_folder(file.source)] if _may_belong(file, near)}
        is_certain = len(possible) == 1 and is_error
        for series in possible:
            (lost if is_certain else doubtful)[series].append(file)
    return Incomplete(dict(lost), dict(doubtful))


class _Neighbour(NamedTuple):
    """What slices in the folder of a refused file say: their series, study and modality, and how files are named."""

    series: str
    study: str
    modality: str
    suffix: str


@dataclass(frozen=True)
class _Seen:
    """What headers say that matters for files that were refused.

    Args:
        series: All SeriesInstanceUIDs.
        instances: SOPInstanceUIDs of refused files that were read from other files.
        neighbours: Slices in the folders of refused files. Projections are images each of its own, of which none can
            be missing.
    """

    series: set[str]
    instances: set[str]
    neighbours: dict[Path, set[_Neighbour]]


def _seen(headers: Iterable[Header], refused: Sequence[RefusedFile]) -> _Seen:
    """Look at headers once, whatever their number."""
    wanted = {file.SOPInstanceUID for file in refused}
    folders = {_folder(file.source) for file in refused if not file.SeriesInstanceUID}
    seen = _Seen(set(), set(), defaultdict(set))
    for header in headers:
        seen.series.add(header.SeriesInstanceUID)
        if header.SOPInstanceUID in wanted:
            seen.instances.add(header.SOPInstanceUID)
        if folders and (folder := _folder(header.source)) in folders and not is_projection(header):
            near = header.SeriesInstanceUID, header.StudyInstanceUID, header.Modality, _suffix(header.source.name)
            seen.neighbours[folder].add(_Neighbour(*near))
    return seen


def _may_belong(file: RefusedFile, near: _Neighbour) -> bool:
    if file.StudyInstanceUID not in ("", near.study) or file.Modality not in ("", near.modality):
        return False
    if file.source.name.startswith("."):
        return False
    own = _suffix(file.source.name)
    return own == near.suffix and (bool(own) or file.code.startswith("E_"))


def _suffix(name: str) -> str:
    """The suffix in small letters; the last part of a UID, or of a number, is none."""
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    return suffix if suffix.isalpha() and len(suffix) <= _LONGEST_SUFFIX else ""


def _folder(source: Source) -> Path:
    return place_of(source).parent
