"""Scans in, masks out: one mask per scan, on the scan's own grid, and one report about all of them. No torch."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from medssl_cli import __version__
from medssl_cli.deploy.outputs import nifti_mask, publish, volumes_ml
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.scans import Scan, find_scans
from medssl_cli.errors import Exit, InputError, MedsslError, NothingUsableError, StorageError, UsageError
from medssl_cli.files import storage_errors
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.imaging.volume import Volume
from medssl_cli.parallel import supervised_map

if TYPE_CHECKING:
    from medssl_cli.formats.dicom import SeriesPart
    from medssl_cli.formats.dicom_seg import SegmentationObject

Output = Literal["nifti", "seg", "preview"]
Kind = Literal["nifti", "dicom", "files"]
Preview = Callable[[Volume, NDArray[np.uint8], Mapping[int, str]], bytes]
"""A picture (PNG) of an image and its label map `[X, Y, Z]`."""
Progress = Callable[[str, float, float], None]
"""Called with the scan's name, tiles done and tiles in all."""

ALL_OUTPUTS: Final[tuple[Output, ...]] = ("nifti", "seg", "preview")
DEFAULT_FOLDER: Final = Path("medssl-out")
REPORT: Final = "report.json"
DECODE_TIMEOUT_S: Final = 600.0
PLAUSIBLE_CT: Final = (-50.0, 50.0)
"""A CT image has air or fat below the first and soft tissue above the second value, in Hounsfield units."""


@dataclass(frozen=True)
class ScanResult:
    """What became of one scan, or of files that are none.

    Args:
        name: Of the scan, as its outputs are called.
        status: `done`, `refused` (trusted no further) or `skipped` (no scan, by rule).
        code: Why not `done`.
        outputs: Names of the files that hold the result, whether written now or identical already.
    """

    name: str
    status: Literal["done", "refused", "skipped"]
    kind: Kind = "files"
    code: str = ""
    message: str = ""
    hint: str = ""
    warnings: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class InferReport:
    """All results, and what made them."""

    task: str
    model_sha256: str
    device: str
    intended_use: str
    folder: Path
    path: Path
    results: tuple[ScanResult, ...]

    def count(self, status: str) -> int:
        """Results of a status."""
        return sum(result.status == status for result in self.results)

    @property
    def exit_code(self) -> Exit:
        """`OK`, `PARTIAL` if something was refused, `NOTHING` if no scan has a mask."""
        if not self.count("done"):
            return Exit.NOTHING
        return Exit.PARTIAL if self.count("refused") else Exit.OK

    def document(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return {
            "medssl_version": __version__,
            "task": self.task,
            "model_sha256": self.model_sha256,
            "device": self.device,
            "intended_use": self.intended_use,
            "done": self.count("done"),
            "refused": self.count("refused"),
            "skipped": self.count("skipped"),
            "results": [asdict(result) for result in self.results],
        }


def infer(
    scans: Sequence[Path],
    model_path: Path,
    *,
    out: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    outputs: Sequence[Output] = ALL_OUTPUTS,
    preview: Preview | None = None,
    progress: Progress | None = None,
) -> InferReport:
    """Segment every scan that is found; one that fails does not stop the others.

    Args:
        scans: NIfTI files, DICOM series folders, folders of many.
        model_path: An exported model.
        out: A folder, or for a single scan the mask's file (`.nii.gz`, `.nii`); `./medssl-out` by default.
        device: See `OnnxModel`.
        overwrite: Replace outputs that differ.
        outputs: NIfTI masks; DICOM SEG for DICOM scans; previews, if `preview` can draw them.
        preview: Draws a picture.
        progress: Told after every tile.

    Returns:
        The report, which lies beside the masks too.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_USAGE`, `E_MODEL_INVALID`, `E_DEVICE`.
        GateError: `E_MODEL_CORRUPT`.
        NothingUsableError: `E_NOTHING_USABLE` if there is no scan in the input and nothing that looks like one.
        StorageError: `E_IO`.
    """
    is_file = out is not None and out.name.lower().endswith((".nii", ".nii.gz"))
    folder = (out.parent if is_file else out) if out is not None else DEFAULT_FOLDER
    model = OnnxModel(model_path, device)
    found, rejects = find_scans(scans, exclude=None if is_file else folder)
    if not found and not rejects:
        raise NothingUsableError("E_NOTHING_USABLE", "no NIfTI file and no DICOM series in the input")
    if is_file and len(found) > 1:
        raise UsageError("E_USAGE", f"-o names one file, the input holds {len(found)} scans", hint="-o FOLDER")
    if not is_file and any(scan.is_dir() and scan.resolve() == folder.resolve() for scan in scans):
        raise UsageError("E_USAGE", "the output folder is the input folder", hint="choose another with -o")
    job = _Job(model, folder, out if is_file else None, overwrite, tuple(outputs), preview, progress)
    results = [job.segment(scan) for scan in found]
    results += [_not_done(item.name, "files", item.code, item.message, item.hint) for item in rejects]
    name = f"{_stem(out)}.{REPORT}" if is_file and out is not None else REPORT
    report = InferReport(
        task=model.bundle.task,
        model_sha256=model.sha256,
        device=model.device,
        intended_use=model.bundle.intended_use,
        folder=folder,
        path=folder / name,
        results=tuple(results),
    )
    _write_report(report)
    return report


def _not_done(name: str, kind: Kind, code: str, message: str, hint: str = "") -> ScanResult:
    """`S_` codes skip by rule, all others refuse."""
    return ScanResult(name, "skipped" if code.startswith("S_") else "refused", kind, code, message, hint)


def _write_report(report: InferReport) -> None:
    with storage_errors("the output folder"):
        report.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.document(), indent=2, sort_keys=True, allow_nan=False) + "\n"
    publish({report.path: text.encode()}, overwrite=True)


def _stem(path: Path | None) -> str:
    return "" if path is None else path.name[: path.name.lower().rindex(".nii")]


@dataclass(frozen=True)
class _Job:
    """What is the same for all scans of one call."""

    model: OnnxModel
    folder: Path
    mask_file: Path | None
    overwrite: bool
    outputs: tuple[Output, ...]
    preview: Preview | None
    progress: Progress | None

    def segment(self, scan: Scan) -> ScanResult:
        kind: Kind = "nifti" if scan.nifti is not None else "dicom"
        try:
            return self._segment(scan, kind)
        except StorageError:
            raise
        except MedsslError as error:
            return _not_done(scan.name, kind, error.code, error.message, error.hint)
        except MemoryError:
            return _not_done(scan.name, kind, "E_TOO_BIG", "not enough memory for this scan")

    def _segment(self, scan: Scan, kind: Kind) -> ScanResult:
        bundle = self.model.bundle
        image, header = _read(scan, bundle.modality)
        volume = image.volume
        warnings = [*image.warnings, *_doubts(image, bundle.modality)]
        labels = self.model.segment(volume, progress=self._progress(scan.name))
        if not labels.any():
            warnings.append("W_EMPTY_SEGMENTATION")
        mask = self.mask_file or self.folder / f"{scan.name}_{bundle.task}.nii.gz"
        stem = _stem(mask)
        files: dict[Path, bytes] = {}
        message = ""
        if "nifti" in self.outputs:
            is_compressed = mask.name.lower().endswith(".gz")
            files[mask] = nifti_mask(labels, volume.affine, like_header=header, is_compressed=is_compressed)
        if "seg" in self.outputs and scan.series is not None:
            try:
                made = self._seg(scan.series, volume, labels)
                files[mask.with_name(f"{stem}.dcm")] = made.data
                message = made.note
                warnings += ["W_SEG_ATTRIBUTES"] if message else []
            except InputError as error:
                warnings += ["W_SEG_NOT_WRITTEN", error.code]
                message = f"no DICOM SEG: {error.message}"
        publish(files, overwrite=self.overwrite)
        names = [path.name for path in files]
        if "preview" in self.outputs and self.preview is not None:
            picture = mask.with_name(f"{stem}.png")
            publish({picture: self.preview(volume, labels, bundle.classes)}, overwrite=True)
            names.append(picture.name)
        return ScanResult(
            scan.name,
            "done",
            kind,
            message=message,
            warnings=tuple(dict.fromkeys(warnings)),
            shape=volume.shape,
            spacing_mm=volume.spacing_mm,
            volumes_ml=volumes_ml(labels, volume.affine, bundle.classes),
            outputs=tuple(names),
        )

    def _seg(self, series: "SeriesPart", volume: Volume, labels: NDArray[np.uint8]) -> "SegmentationObject":
        from medssl_cli.formats.dicom_seg import write_segmentation

        return write_segmentation(
            labels,
            series.headers,
            self.model.bundle.classes,
            affine=volume.affine,
            model_sha256=self.model.sha256,
            algorithm_name=f"medssl {self.model.bundle.task}",
        )

    def _progress(self, name: str) -> Callable[[int, int], None] | None:
        report = self.progress
        if report is None:
            return None
        return lambda done, total: report(name, done, total)


def _read(scan: Scan, modality: str | None) -> tuple[LoadedImage, bytes | None]:
    """The image, and the header that its mask must repeat (NIfTI only)."""
    if scan.nifti is not None:
        from medssl_cli.formats.nifti import read_nifti

        nifti = read_nifti(scan.nifti, modality=modality or "unknown")
        return nifti.image, nifti.header
    if scan.series is None:
        raise ValueError("a scan is a file or a series")
    found = scan.series.headers[0].Modality
    if modality is not None and found != modality:
        raise InputError("E_MODALITY_MISMATCH", f"the model is for {modality}, this series is {found}")
    return _decoded(scan.series), None


def _decoded(series: "SeriesPart") -> LoadedImage:
    """A series' image; a decoder that dies or hangs takes a child process with it, not this one."""
    from medssl_cli.formats.dicom import needs_decoder, read_series

    if not needs_decoder(series):
        return read_series(series)
    with contextlib.closing(
        supervised_map(_decode_in_child, [series], num_workers=1, timeout_s=DECODE_TIMEOUT_S)
    ) as outcomes:
        outcome = next(outcomes)
    if outcome.result is None:
        raise InputError("E_DECODER_CRASH", f"the process that decoded this series {outcome.failure}")
    if isinstance(outcome.result, InputError):
        raise outcome.result
    return outcome.result


def _decode_in_child(series: "SeriesPart") -> LoadedImage | InputError:
    from medssl_cli.formats.dicom import read_series

    try:
        return read_series(series)
    except InputError as error:
        return error


def _doubts(image: LoadedImage, modality: str | None) -> list[str]:
    """Notes about values that a CT in Hounsfield units cannot have; the mask may then be nonsense."""
    if modality != "CT":
        return []
    voxels = image.volume.voxels
    is_plausible = voxels.min() < PLAUSIBLE_CT[0] and voxels.max() > PLAUSIBLE_CT[1] and image.volume.units == "HU"
    return [] if is_plausible else ["W_HU_IMPLAUSIBLE"]
