"""Read a scan, with the repairs that the user asked for, and say what it was read from."""

import contextlib
import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.deploy.scans import Scan
from medssl_cli.errors import InputError
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Source, read_bytes, read_head
from medssl_cli.imaging.geometry import is_turned_grid
from medssl_cli.imaging.label_like import is_label_like
from medssl_cli.parallel import OUT_OF_MEMORY, supervised_map

if TYPE_CHECKING:
    from medssl_cli.formats.dicom import SeriesPart

DECODE_TIMEOUT_S: Final = 600.0
PLAUSIBLE_CT: Final = (-50.0, 50.0)
"""A CT image has air or fat below the first and soft tissue above the second value, in Hounsfield units."""
_OF_NO_CONCERN: Final = ("W_NO_PATIENT_KEY", "W_UNKNOWN_MODALITY")
"""Notes about training data: whose an image is, and which recipes take it."""
_HEADER_BYTES: Final = 2**16
_DETACHED: Final = re.compile(rb"^(?:data ?file *: *|ElementDataFile *= *)([^\r\n]+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class ScanImage:
    """A scan in memory.

    Args:
        image: As a reader of `formats` returns it.
        header: The NIfTI header that its mask must repeat bit for bit; None where there is none, or a repair made
            another grid of it.
        warnings: Of the reader, and doubts about the values.
    """

    image: LoadedImage
    header: bytes | None
    warnings: tuple[str, ...]


@dataclass
class ScanReader:
    """Reads scans one after the other; of a 4D file, which holds several, only the first time.

    Args:
        policy: What is accepted and repaired.
        modality: Of the model; what a file without a modality is taken for. None takes anything.
    """

    policy: Policy
    modality: str | None
    _file: Source | None = None
    _images: list[LoadedImage] = field(default_factory=list)

    def read(self, scan: Scan) -> ScanImage:
        """One scan.

        Raises:
            InputError: It cannot be trusted, or is of another modality than the model's; `S_LABEL_MAP`.
        """
        image, header = self._series(scan.series) if scan.series is not None else self._image_of_file(scan)
        if scan.partners and self._is_label_map(image, scan):
            raise InputError("S_LABEL_MAP", "few whole numbers on the grid of an image of its name")
        if image.repairs:
            header = None
        found = [*image.warnings, *_doubts(image, self.modality)]
        return ScanImage(image, header, tuple(code for code in dict.fromkeys(found) if code not in _OF_NO_CONCERN))

    def _is_label_map(self, image: LoadedImage, scan: Scan) -> bool:
        """Whether an image looks like a label map and lies on the grid of a partner that does not, as ingest judges."""
        if not is_label_like(image.volume.voxels[0]):
            return False
        for kind, source in scan.partners:
            try:
                partner, _ = self._image_of_file(replace(scan, kind=kind, sources=(source,)))
            except InputError:
                continue
            mine, other = image.volume, partner.volume
            is_on_grid = is_turned_grid(other.affine, other.shape, mine.affine, mine.shape)
            if is_on_grid and not is_label_like(other.voxels[0]):
                return True
        return False

    def _series(self, series: "SeriesPart") -> tuple[LoadedImage, None]:
        found = series.headers[0].Modality
        if self.modality is not None and found != self.modality:
            raise InputError("E_MODALITY_MISMATCH", f"the model is for {self.modality}, this series is {found}")
        return _decoded(series, self.policy), None

    def _image_of_file(self, scan: Scan) -> tuple[LoadedImage, bytes | None]:
        (source,), modality = scan.sources, self.modality or "unknown"
        if scan.kind == "nrrd":
            from medssl_cli.formats.nrrd import read_nrrd

            return read_nrrd(source, modality=modality, policy=self.policy), None
        if scan.kind == "metaimage":
            from medssl_cli.formats.metaimage import read_metaimage

            return read_metaimage(source, modality=modality, policy=self.policy), None
        from medssl_cli.formats.nifti import read_nifti, read_nifti_series

        if scan.image is None:
            nifti = read_nifti(source, modality=modality, policy=self.policy)
            return nifti.image, nifti.header
        if self._file != source or scan.image >= len(self._images):
            self._file, self._images = None, []
            self._images = read_nifti_series(source, modality=modality, policy=self.policy)
            self._file = source
        if scan.image >= len(self._images):
            raise InputError("E_CHANGED_DURING_READ", f"the file holds {len(self._images)} images now")
        return self._images[scan.image], None


def input_digest(scan: Scan, policy: Policy) -> str:
    """SHA-256 of all bytes that a scan is read from; files of a series count in any order.

    Raises:
        InputError: A file cannot be read.
    """
    digests = sorted(hashlib.sha256(read_bytes(source)).hexdigest() for source in scan.sources)
    if policy.allow_detached and scan.kind in ("nrrd", "metaimage"):
        digests += _detached_digest(scan.sources[0])
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _detached_digest(source: Source) -> list[str]:
    """Of the data file that a header names, if it lies beside it; whether it may be read is for the reader to say."""
    match = _DETACHED.search(read_head(source, _HEADER_BYTES))
    if match is None or not isinstance(source, Path):
        return []
    with contextlib.suppress(InputError):
        beside = source.parent / Path(match[1].decode("latin-1").strip()).name
        return [hashlib.sha256(read_bytes(beside)).hexdigest()]
    return []


def series_description(scan: Scan) -> str:
    """SeriesDescription of a DICOM series as its first file gives it; "" where it gives none that can be read."""
    import io
    import warnings

    from pydicom import dcmread

    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        source = scan.sources[0]
        stream = source if isinstance(source, Path) else io.BytesIO(read_bytes(source))
        tags = ["SpecificCharacterSet", "SeriesDescription"]
        found = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags).get("SeriesDescription")
        return "".join(filter(str.isprintable, str(found or "")))[:200]
    return ""


def _decoded(series: "SeriesPart", policy: Policy) -> LoadedImage:
    """A series' image; a decoder that dies or hangs takes a child process with it, not this one."""
    from medssl_cli.formats.dicom import needs_decoder, read_series

    if not needs_decoder(series):
        return read_series(series, policy)
    with contextlib.closing(
        supervised_map(decode_in_child, [(series, policy)], num_workers=1, timeout_s=DECODE_TIMEOUT_S)
    ) as outcomes:
        outcome = next(outcomes)
    if outcome.failure == OUT_OF_MEMORY:
        raise InputError("E_TOO_BIG", "the process that decoded this series ran out of memory")
    if outcome.result is None:
        raise InputError("E_DECODER_CRASH", f"the process that decoded this series {outcome.failure}")
    if isinstance(outcome.result, InputError):
        raise outcome.result
    return outcome.result


def decode_in_child(task: "tuple[SeriesPart, Policy]") -> LoadedImage | InputError:
    """Read a series; what is wrong with it is returned and not raised."""
    from medssl_cli.formats.dicom import read_series

    try:
        return read_series(*task)
    except InputError as error:
        return error


def _doubts(image: LoadedImage, modality: str | None) -> list[str]:
    """Notes about values: an image of one value, and values that a CT in Hounsfield units cannot have."""
    voxels = image.volume.voxels
    low, high = voxels.min(), voxels.max()
    found = ["W_CONSTANT_IMAGE"] if low == high else []
    is_plausible = low < PLAUSIBLE_CT[0] and high > PLAUSIBLE_CT[1] and image.volume.units == "HU"
    return found if modality != "CT" or is_plausible else [*found, "W_HU_IMPLAUSIBLE"]
