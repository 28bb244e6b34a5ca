"""From headers in any order to stacks of slices that are one image each; every header ends in exactly one place."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.gate import JITTER_MM, REPAIRABLE, Fit
from medssl_cli.formats.dicom.headers import Header, content_digest
from medssl_cli.formats.dicom.incomplete import WHOLE, Incomplete
from medssl_cli.formats.dicom.projection import (
    burned_in,
    check_picture,
    is_projection,
    picture_affine,
    polarity_is_doubtful,
    spacing_of,
)
from medssl_cli.formats.dicom.repair import NO_REPAIR, Repair
from medssl_cli.formats.dicom.split import by, instance_order, resolve
from medssl_cli.formats.loaded import BurnedIn, Identity, SpacingKind
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.source import Source
from medssl_cli.imaging.geometry import Affine

_NO_PATIENT: Final = frozenset({"", "0", "ANON", "ANONYMOUS", "ANONYMIZED", "ANONYMISED", "UNKNOWN", "NONE", "NULL"})
# A maximum over slices, a difference of phases or a rendering shows no tissue at the place of its voxels.
_NO_ANATOMY: Final = frozenset(
    {
        "MIP",
        "MINIP",
        "CSA MIP",
        "MAXIMUM",
        "MINIMUM",
        "PROJECTION IMAGE",
        "SUBTRACTION",
        "SUB",
        "VRT",
        "VOLUME_RENDERED",
    }
)


@dataclass(frozen=True, eq=False)
class SeriesPart:
    """Slices that make one image: a whole series, one phase, echo or stack of it, or one projection.

    Args:
        headers: S slices, ascending along the normal of the slices: the slice index k. Several may come from one file.
        affine: `[4, 4]` float64, voxel-centre index to RAS+ mm; of a projection diag(spacing), no place in a world.
        mcd_mm: Largest disagreement between a slice's own header and the affine.
        warnings: `W_` codes.
        identity: Identity in the clear; `series` ends in "#p0", "#p1" ... where the series was split, and in "#" and
            the SOPInstanceUID for a projection.
        repair: What the policy allowed to be changed.
        spacing_kind: Where the spacing was measured of a projection, None for slices.
        burned_in: Whether writing may be burned in.
    """

    headers: tuple[Header, ...]
    affine: Affine
    mcd_mm: float
    warnings: tuple[str, ...]
    identity: Identity
    repair: Repair = NO_REPAIR
    spacing_kind: SpacingKind | None = None
    burned_in: BurnedIn = "not_expected"

    @property
    def sources(self) -> tuple[Source, ...]:
        """The files, each once, in order of their first slices."""
        return tuple(dict.fromkeys(header.source for header in self.headers))

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID of the series that it is, or is a part of."""
        return self.headers[0].SeriesInstanceUID

    @property
    def modality(self) -> str:
        """What the header says."""
        return self.headers[0].Modality

    @property
    def is_whole_series(self) -> bool:
        """Whether no other part or projection belongs to the series."""
        return self.identity.series == self.series_uid

    @property
    def stored_bytes(self) -> int:
        """Bytes of the pixels as they came from the scanner."""
        first = self.headers[0]
        return first.Rows * first.Columns * len(self.headers) * first.BitsStored // 8


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


def group_headers(
    headers: Sequence[Header],
    policy: Policy = STRICT,
    *,
    incomplete: Incomplete = WHOLE,
) -> tuple[list[SeriesPart], list[Refusal]]:
    """Sort headers into images and refusals; the order of the input does not matter.

    Args:
        headers: Headers of any number of series, mixed; those of one file may end in several parts.
        policy: What is accepted beyond the strict default.
        incomplete: Series of which files were refused. They are refused with them, unless `policy.gaps` allows that
            slices are missing; what is stored then, or may have been incomplete, says so in a warning.

    Returns:
        Parts and refusals; each header is in exactly one of them.
    """
    unique, duplicates = _without_copies(headers)
    refusals = [_refusal("DUPLICATE", "the same bytes as another file", duplicates)] if duplicates else []
    parts: list[SeriesPart] = []
    patients: dict[str, set[str]] = defaultdict(set)
    for header in unique:
        patients[header.SeriesInstanceUID].add(_patient(header))
    for series in by(unique, lambda header: (header.SeriesInstanceUID, header.StudyInstanceUID)):
        uid = series[0].SeriesInstanceUID
        try:
            _check_series(series, num_patients=len(patients[uid]))
        except InputError as error:
            refusals.append(_refusal(error.code, error.message, series, error.hint))
            continue
        kept, set_aside = _set_aside(series, policy)
        refusals += set_aside
        lost = [file.code for file in incomplete.lost.get(uid, ())] + _lost_slices(series, set_aside)
        doubts = ("W_INCOMPLETE_SERIES",) if lost or uid in incomplete.doubtful else ()
        # Each projection is an image of its own, all other slices of the series belong together.
        for batch in by(kept, lambda header: header.SOPInstanceUID if is_projection(header) else ""):
            try:
                if is_projection(batch[0]):
                    parts.append(_picture(batch, policy))
                    continue
                if lost and policy.gaps == "refuse":
                    raise _incomplete(lost)
                parts += _volumes(batch, series, policy, doubts)
            except InputError as error:
                refusals.append(_refusal(error.code, error.message, batch, error.hint))
    return parts, refusals


def _without_copies(headers: Iterable[Header]) -> tuple[list[Header], list[Header]]:
    """Headers without those whose files hold the same bytes as another's; only claims to be the same are compared."""
    claims: dict[Hashable, list[Header]] = defaultdict(list)
    for header in headers:
        claims[_claim(header)].append(header)
    unique: list[Header] = []
    copies: list[Header] = []
    contents: dict[Source, str] = {}
    for claim in sorted(claims, key=repr):
        seen: set[tuple[str, str]] = set()
        members = sorted(claims[claim], key=lambda header: str(header.source))
        for header in members:
            content = (header.digest, _content(header.source, contents) if len(members) > 1 else "")
            (copies if content in seen else unique).append(header)
            seen.add(content)
    return unique, copies


def _claim(header: Header) -> tuple[str, str, int, tuple[int, int] | None]:
    return header.SeriesInstanceUID, header.SOPInstanceUID, header.frame, header.tile


def _content(source: Source, known: dict[Source, str]) -> str:
    """SHA-256 of a source's bytes; a name of its own for a source that cannot be read any more."""
    if source not in known:
        try:
            known[source] = content_digest(source)
        except InputError:
            known[source] = f"unread {source}"
    return known[source]


def _set_aside(series: list[Header], policy: Policy) -> tuple[list[Header], list[Refusal]]:
    """Pictures that belong to no image, by what each header says about itself."""
    kept: list[Header] = []
    reasons: dict[tuple[str, str, str], list[Header]] = defaultdict(list)
    for header in series:
        reason = _reason(header, policy)
        if reason is None:
            kept.append(header)
        else:
            reasons[reason.code, reason.message, reason.hint].append(header)
    return kept, [_refusal(*reason[:2], reasons[reason], reason[2]) for reason in sorted(reasons)]


def _reason(header: Header, policy: Policy) -> InputError | None:
    kinds = header.ImageType
    if any("SAVE" in kind for kind in kinds):
        return InputError("S_SECONDARY_CAPTURE", "a saved screen")
    try:
        burned_in(header, policy)
    except InputError as error:
        return error
    if is_projection(header):
        return None
    if "LOCALIZER" in kinds:
        return InputError("S_LOCALIZER", "a localizer")
    if "MOSAIC" in kinds and header.tile is None:
        return InputError("E_MOSAIC_UNSUPPORTED", "a mosaic: many slices in one picture")
    if not _NO_ANATOMY.isdisjoint(kinds):
        return InputError("S_DERIVED", "a projection over slices, a difference or a rendering")
    return None


def _check_series(series: Sequence[Header], *, num_patients: int) -> None:
    if num_patients > 1:
        raise InputError("E_PATIENT_MIX", f"{num_patients} patient identities in one series")
    claims = {_claim(header) for header in series}
    if len(claims) < len(series):
        raise InputError(
            "E_DUP_SOP_CONFLICT", f"{len(series)} different pictures carry {len(claims)} instance identifiers"
        )


def _lost_slices(series: Sequence[Header], refusals: Iterable[Refusal]) -> list[str]:
    """Codes of the slices of a series, pictures with a place in the patient, that were refused one by one."""
    codes = {source: refusal.code for refusal in refusals if refusal.code.startswith("E_") for source in refusal.files}
    return [
        codes[header.source]
        for header in series
        if header.source in codes and header.ImagePositionPatient and not is_projection(header)
    ]


def _incomplete(codes: Sequence[str]) -> InputError:
    return InputError(
        "E_INCOMPLETE_SERIES",
        f"files of the series, or beside it, that were refused: {len(codes)} ({', '.join(sorted(set(codes)))})",
        hint="retrieve them again, or pass --gaps=interpolate to take what is left",
    )


def _volumes(
    slices: Sequence[Header], series: Sequence[Header], policy: Policy, doubts: tuple[str, ...]
) -> list[SeriesPart]:
    frames = {header.FrameOfReferenceUID for header in slices}
    if len(frames) > 1:
        raise InputError("E_FRAME_OF_REFERENCE_VARIES", f"{len(frames)} frames of reference in one series")
    has_place = all(header.ImagePositionPatient and header.ImageOrientationPatient for header in slices)
    if not has_place and not {header.Modality for header in slices} <= REPAIRABLE:
        raise InputError("E_NO_PATIENT_GEOMETRY", "pictures of this modality without position and orientation")
    return _parts(slices, resolve(slices, policy), [*_series_warnings(slices, series), *doubts], policy)


def _picture(frames: Sequence[Header], policy: Policy) -> SeriesPart:
    header = frames[0]
    check_picture(header)
    spacing, kind = spacing_of(header)
    writing = burned_in(header, policy)
    found = _header_warnings([header])
    if header.ImageType[:2] == ("DERIVED", "SECONDARY"):
        found.append("W_DERIVED")
    if writing == "unknown":
        found.append("W_BURNED_IN_UNKNOWN")
    if polarity_is_doubtful(header):
        found.append("W_POLARITY")
    return SeriesPart(
        headers=(header,),
        affine=picture_affine(spacing),
        mcd_mm=0.0,
        warnings=tuple(found),
        identity=_identity(header, f"#{header.SOPInstanceUID}"),
        spacing_kind=kind,
        burned_in=writing,
    )


def _parts(slices: Sequence[Header], fits: Sequence[Fit], shared: Sequence[str], policy: Policy) -> list[SeriesPart]:
    ordered = sorted(fits, key=lambda fitted: min(instance_order(header) for header in fitted.headers))
    return [
        SeriesPart(
            headers=fitted.headers,
            affine=fitted.affine,
            mcd_mm=fitted.mcd_mm,
            warnings=(*shared, *fitted.warnings, *(("W_SLICE_JITTER",) if fitted.mcd_mm > JITTER_MM else ())),
            identity=_identity(fitted.headers[0], f"#p{number}" if len(fits) > 1 else ""),
            repair=fitted.repair,
            burned_in=burned_in(slices[0], policy),
        )
        for number, fitted in enumerate(ordered)
    ]


def _series_warnings(slices: Sequence[Header], series: Sequence[Header]) -> list[str]:
    """Warnings about all parts of a series; numbers that pictures set aside carry are no gap."""
    found = _header_warnings(slices)
    if any(header.ImageType[:1] == ("DERIVED",) for header in slices):
        found.append("W_DERIVED")
    numbers = {header.SOPInstanceUID: header.InstanceNumber for header in series}
    known = {number for number in numbers.values() if number is not None}
    is_numbered = len(known) == len(numbers) > 1
    if is_numbered and max(known) - min(1, *known) + 1 > len(known):
        found.append("W_INSTANCE_GAP")
    return found


def _header_warnings(headers: Sequence[Header]) -> list[str]:
    found = [] if _patient(headers[0]) else ["W_NO_PATIENT_KEY"]
    if any(header.has_preamble for header in headers):
        found.append("W_PREAMBLE_NONZERO")
    return found


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


def _refusal(code: str, message: str, headers: Iterable[Header], hint: str = "") -> Refusal:
    return Refusal(code, message, hint, sorted({header.source for header in headers}, key=str))
