"""Find the scans in what a user names: a NIfTI file, a DICOM series folder, or a folder of many."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.errors import MedsslError, UsageError
from medssl_cli.formats.source import place_of

if TYPE_CHECKING:
    from medssl_cli.formats.dicom import Header, SeriesPart

NIFTI_SUFFIXES: Final = (".nii", ".nii.gz")
SIGNATURE_BYTES: Final = 132
DUPLICATE: Final = "DUPLICATE"


@dataclass(frozen=True)
class Scan:
    """One image to segment: a NIfTI file, or the slices of a DICOM series.

    Args:
        name: What its outputs are called, unique among the scans found together.
        nifti: The file, or None.
        series: The slices, or None.
    """

    name: str
    nifti: Path | None = None
    series: "SeriesPart | None" = None


@dataclass(frozen=True)
class Reject:
    """Files that are no scan, and why: an `E_` or `S_` code."""

    name: str
    code: str
    message: str
    hint: str
    num_files: int


@dataclass(frozen=True)
class _Candidate:
    short_name: str
    long_name: str
    nifti: Path | None = None
    series: "SeriesPart | None" = None


def find_scans(paths: Sequence[Path], *, exclude: Path | None = None) -> tuple[list[Scan], list[Reject]]:
    """Sort files into scans and rejects; what is neither NIfTI nor DICOM inside a folder is passed over.

    Args:
        paths: Files and folders, searched with their sub-folders.
        exclude: A folder to leave out: that of the outputs.

    Returns:
        Scans in order of their paths, and rejects.

    Raises:
        UsageError: `E_NOT_FOUND`.
    """
    candidates: list[_Candidate] = []
    rejects: list[Reject] = []
    for root in paths:
        if not root.exists():
            raise UsageError("E_NOT_FOUND", f"there is no {root}")
        slices = []
        for file in _files(root, exclude):
            if file.name.lower().endswith(NIFTI_SUFFIXES):
                candidates.append(_nifti_candidate(file, root))
            elif _has_dicom_signature(file):
                slices.append(file)
            elif file == root:
                rejects.append(Reject(file.name, "S_NOT_AN_IMAGE", "neither NIfTI nor DICOM", "", 1))
        if slices:
            found, refused = _series(slices, root)
            candidates += found
            rejects += refused
    names = _unique_names(candidates)
    return [Scan(name, item.nifti, item.series) for name, item in zip(names, candidates, strict=True)], rejects


def _files(root: Path, exclude: Path | None) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    forbidden = None if exclude is None else exclude.resolve()
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (here / name).resolve() != forbidden
        )
        yield from (here / name for name in sorted(files) if not name.startswith(".") and (here / name).is_file())


def _has_dicom_signature(file: Path) -> bool:
    """Like `formats.dicom.is_dicom`, without loading pydicom for folders that hold no DICOM."""
    try:
        with file.open("rb") as stream:
            return stream.read(SIGNATURE_BYTES)[128:] == b"DICM"
    except OSError:
        return False


def _nifti_candidate(file: Path, root: Path) -> _Candidate:
    suffix = next(suffix for suffix in reversed(NIFTI_SUFFIXES) if file.name.lower().endswith(suffix))
    stem = file.name[: -len(suffix)]
    folders = file.parent.relative_to(root).parts if root.is_dir() else (file.parent.resolve().name,)
    return _Candidate(stem, "_".join((*folders, stem)), nifti=file)


def _series(files: Sequence[Path], root: Path) -> tuple[list[_Candidate], list[Reject]]:
    from medssl_cli.formats.dicom import group_headers, incomplete_series, read_headers, refused_file

    headers: list[Header] = []
    refused = []
    failures: dict[tuple[str, str, str], list[Path]] = {}
    for file in files:
        try:
            headers += read_headers(file)
        except MedsslError as error:
            failures.setdefault((error.code, error.message, error.hint), []).append(file)
            if error.code.startswith("E_"):
                refused.append(refused_file(file, error.code))
    parts, refusals = group_headers(headers, incomplete=incomplete_series(headers, refused))
    failures |= {
        (item.code, item.message, item.hint): [place_of(file) for file in item.files]
        for item in refusals
        if item.code != DUPLICATE
    }
    rejects = [Reject(_folder(group, root).name, *reason, len(group)) for reason, group in failures.items()]
    candidates = []
    for part in sorted(parts, key=lambda part: min(_paths(part))):
        folder = _folder(_paths(part), root)
        base = (root if root.is_dir() else root.parent).resolve()
        relative = folder.relative_to(base).parts if folder.is_relative_to(base) else ()
        candidates.append(_Candidate(folder.name, "_".join(relative) or folder.name, series=part))
    return candidates, rejects


def _paths(part: "SeriesPart") -> list[Path]:
    return sorted({place_of(header.source) for header in part.headers})


def _folder(files: Sequence[Path], root: Path) -> Path:
    """The innermost folder that holds all files, not above the root."""
    common = Path(os.path.commonpath([str(file.parent.resolve()) for file in files]))
    base = root.resolve()
    return common if root.is_file() or common.is_relative_to(base) else base


def _unique_names(candidates: Sequence[_Candidate]) -> list[str]:
    """Short names; with their folders where several places share one; numbered where one place has several scans."""
    places = {(item.short_name.lower(), item.long_name.lower()) for item in candidates}
    homes = Counter(short for short, _ in places)
    names = [item.short_name if homes[item.short_name.lower()] == 1 else item.long_name for item in candidates]
    repeated = {name for name, count in Counter(name.lower() for name in names).items() if count > 1}
    taken = {name.lower() for name in names}
    position: Counter[str] = Counter()
    unique: list[str] = []
    for name in names:
        if name.lower() in repeated:
            stem = name
            while name.lower() in taken:
                position[stem.lower()] += 1
                name = f"{stem}-{position[stem.lower()]}"
            taken.add(name.lower())
        unique.append(name)
    return unique
