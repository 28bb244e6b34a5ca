"""From headers in any order to stacks of slices that are one image each; every header ends in exactly one place."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from medssl_cli.errors import InputError
from medssl_cli.formats import Identity
from medssl_cli.formats.source import Source
from medssl_cli.formats.dicom.gate import JITTER_MM, Fit, check_slices, fit
from medssl_cli.formats.dicom.headers import Header
from medssl_cli.imaging.geometry import Affine, is_same_grid

_SAME_ORIENTATION: Final = 0.01
_NO_PATIENT: Final = frozenset({"", "0", "ANON", "ANONYMOUS", "ANONYMIZED", "ANONYMISED", "UNKNOWN", "NONE", "NULL"})

# What may tell slices of one position apart, in the order in which it is tried (reliability E2).
_SPLITTERS: Final[tuple[Callable[[Header], Hashable], ...]] = (
    lambda header: header.AcquisitionNumber,
    lambda header: header.TemporalPositionIdentifier,
    lambda header: header.AcquisitionTime,
    lambda header: (header.EchoNumbers, header.EchoTime),
    lambda header: header.DiffusionBValue,
    lambda header: header.TriggerTime,
    lambda header: header.ImageType,
    lambda header: header.ConvolutionKernel,
)


@dataclass(frozen=True, eq=False)
class SeriesPart:
    """Slices that make one image: a whole series, or one phase, echo or stack of it.

    Args:
        headers: S slices, ascending along the normal of the slices: the slice index k.
        affine: `[4, 4]` float64, voxel-centre index to RAS+ mm.
        mcd_mm: Largest disagreement between a slice's own header and the affine.
        warnings: `W_` codes.
        identity: In the clear; `series` ends in "#p0", "#p1" ... where the series was split.
    """

    headers: tuple[Header, ...]
    affine: Affine
    mcd_mm: float
    warnings: tuple[str, ...]
    identity: Identity


@dataclass(frozen=True)
class Refusal:
    """Files that do not become an image, and why.

    Args:
        code: An `E_` or `S_` code, or "DUPLICATE" for bytes that another file holds already.
        message: Numbers and element numbers only; no value that could identify anyone.
        hint: What to do about it.
        files: The files concerned, sorted.
    """

    code: str
    message: str
    hint: str
    files: list[Source]


def group_headers(headers: list[Header]) -> tuple[list[SeriesPart], list[Refusal]]:
    """Sort headers into images and refusals; the order of the input does not matter.

    Args:
        headers: Of any number of series, mixed.

    Returns:
        Parts and refusals; each header is in exactly one of them.
    """
    unique, duplicates = _without_copies(headers)
    refusals = [_refusal("DUPLICATE", "the same bytes as another file", duplicates)] if duplicates else []
    parts: list[SeriesPart] = []
    patients: dict[str, set[str]] = defaultdict(set)
    for header in unique:
        patients[header.SeriesInstanceUID].add(_patient(header))
    for series in _by(unique, lambda header: (header.SeriesInstanceUID, header.StudyInstanceUID)):
        stack, set_aside = _set_aside(series)
        refusals += set_aside
        if not stack:
            continue
        try:
            _check_series(stack, num_patients=len(patients[stack[0].SeriesInstanceUID]))
            parts += _parts(stack, resolve(stack))
        except InputError as error:
            refusals.append(_refusal(error.code, error.message, stack, error.hint))
    return parts, refusals


def resolve(headers: Sequence[Header]) -> list[Fit]:
    """Find the image or images in one series: as it is, else split by matrix, orientation, or phase and the like.

    Raises:
        InputError: No way of splitting gives stacks that all pass the gate; the code says why.
    """
    check_slices(headers)
    by_matrix = _by(headers, lambda header: (header.Rows, header.Columns))
    if len(by_matrix) > 1:
        return _resolve_each(by_matrix, "E_MATRIX_VARIES", "matrix sizes")
    by_orientation = _by_orientation(headers)
    if len(by_orientation) > 1:
        return _resolve_each(by_orientation, "E_ORIENTATION_VARIES", "orientations")
    try:
        return [fit(headers)]
    except InputError as error:
        fits = _split(headers) if error.code == "E_DUP_POSITION" else None
        if fits is None:
            raise
        return fits


def _without_copies(headers: Iterable[Header]) -> tuple[list[Header], list[Header]]:
    seen: set[str] = set()
    unique: list[Header] = []
    copies: list[Header] = []
    for header in sorted(headers, key=lambda header: (header.digest, str(header.source))):
        (copies if header.digest in seen else unique).append(header)
        seen.add(header.digest)
    return unique, copies


def _set_aside(series: list[Header]) -> tuple[list[Header], list[Refusal]]:
    """Pictures that belong to no volume, by what each header says about itself."""
    reasons: dict[str, list[Header]] = defaultdict(list)
    for header in series:
        reasons[_reason(header)].append(header)
    messages = {
        "S_LOCALIZER": ("a localizer", ""),
        "S_SECONDARY_CAPTURE": ("a saved screen", ""),
        "E_BURNED_IN": ("annotations are burned into the picture", ""),
        "E_MOSAIC_UNSUPPORTED": ("a mosaic: many slices in one picture", "export one picture per slice"),
    }
    stack = reasons.pop("", [])
    return stack, [_refusal(code, messages[code][0], reasons[code], messages[code][1]) for code in sorted(reasons)]


def _reason(header: Header) -> str:
    kinds = header.ImageType
    if "LOCALIZER" in kinds:
        return "S_LOCALIZER"
    if any("SAVE" in kind for kind in kinds):
        return "S_SECONDARY_CAPTURE"
    if header.BurnedInAnnotation.upper() == "YES":
        return "E_BURNED_IN"
    return "E_MOSAIC_UNSUPPORTED" if "MOSAIC" in kinds else ""


def _check_series(stack: Sequence[Header], *, num_patients: int) -> None:
    if num_patients > 1:
        raise InputError("E_PATIENT_MIX", f"{num_patients} patient identities in one series")
    instances = {header.SOPInstanceUID for header in stack}
    if len(instances) < len(stack):
        raise InputError(
            "E_DUP_SOP_CONFLICT", f"{len(stack)} different files carry {len(instances)} instance identifiers"
        )
    frames = {header.FrameOfReferenceUID for header in stack}
    if len(frames) > 1:
        raise InputError("E_FRAME_OF_REFERENCE_VARIES", f"{len(frames)} frames of reference in one series")


def _resolve_each(groups: list[list[Header]], code: str, what: str) -> list[Fit]:
    fits: list[Fit] = []
    for group in groups:
        try:
            fits += resolve(group)
        except InputError as error:
            sizes = ", ".join(str(len(group)) for group in groups)
            raise InputError(
                code, f"{len(groups)} {what} in one series ({sizes} slices), not each a volume ({error.code})"
            ) from error
    return fits


def _by_orientation(headers: Sequence[Header]) -> list[list[Header]]:
    """Clusters of nearly equal cosines; small differences are for the gate, which knows millimetres."""
    clusters: list[list[Header]] = []
    for header in sorted(headers, key=lambda header: (header.ImageOrientationPatient or (), header.digest)):
        for cluster in clusters:
            first, own = cluster[0].ImageOrientationPatient, header.ImageOrientationPatient
            if first and own and np.abs(np.subtract(first, own)).max() <= _SAME_ORIENTATION:
                cluster.append(header)
                break
        else:
            clusters.append([header])
    return clusters


def _split(headers: Sequence[Header]) -> list[Fit] | None:
    """Parts told apart by one or two elements, only if every part is a volume on the same grid."""
    for size in (1, 2):
        for splitters in itertools.combinations(_SPLITTERS, size):
            groups = _by(headers, lambda header: tuple(repr(key(header)) for key in splitters))  # noqa: B023
            if len(groups) < 2 or len({len(group) for group in groups}) > 1:
                continue
            try:
                fits = [fit(group) for group in groups]
            except InputError:
                continue
            if _are_one_grid(fits):
                return fits
    return None


def _are_one_grid(fits: Sequence[Fit]) -> bool:
    first = fits[0]
    shape = (first.headers[0].Columns, first.headers[0].Rows, len(first.headers))
    return all(is_same_grid(first.affine, other.affine, shape) for other in fits[1:])


def _parts(stack: Sequence[Header], fits: Sequence[Fit]) -> list[SeriesPart]:
    ordered = sorted(fits, key=lambda fitted: min(_order(header) for header in fitted.headers))
    shared = _series_warnings(stack, is_split=len(fits) > 1)
    return [
        SeriesPart(
            headers=fitted.headers,
            affine=fitted.affine,
            mcd_mm=fitted.mcd_mm,
            warnings=(*shared, *(("W_SLICE_JITTER",) if fitted.mcd_mm > JITTER_MM else ())),
            identity=_identity(fitted.headers[0], f"#p{number}" if len(fits) > 1 else ""),
        )
        for number, fitted in enumerate(ordered)
    ]


def _series_warnings(stack: Sequence[Header], *, is_split: bool) -> list[str]:
    warnings = [] if _patient(stack[0]) else ["W_NO_PATIENT_KEY"]
    numbers = {header.InstanceNumber for header in stack if header.InstanceNumber is not None}
    is_complete = len(numbers) == len(stack)
    if is_complete and not is_split and max(numbers) - min(numbers) + 1 > len(numbers):
        warnings.append("W_INSTANCE_GAP")
    return warnings


def _order(header: Header) -> tuple[int, str]:
    return (header.InstanceNumber or 0, header.SOPInstanceUID)


def _identity(header: Header, suffix: str) -> Identity:
    return Identity(
        patient=_patient(header) or None,
        study=header.StudyInstanceUID,
        series=header.SeriesInstanceUID + suffix,
        frame_of_reference=header.FrameOfReferenceUID or None,
    )


def _patient(header: Header) -> str:
    """PatientID with its issuer; empty for identifiers that many patients share."""
    if header.PatientID.upper() in _NO_PATIENT:
        return ""
    return f"{header.IssuerOfPatientID}\\{header.PatientID}" if header.IssuerOfPatientID else header.PatientID


def _by(headers: Iterable[Header], key: Callable[[Header], Hashable]) -> list[list[Header]]:
    """Groups of equal keys, in an order that depends on the keys and the content only."""
    groups: dict[Hashable, list[Header]] = defaultdict(list)
    for header in headers:
        groups[key(header)].append(header)
    return [groups[name] for name in sorted(groups, key=repr)]


def _refusal(code: str, message: str, headers: Iterable[Header], hint: str = "") -> Refusal:
    return Refusal(code, message, hint, sorted({header.source for header in headers}, key=str))
