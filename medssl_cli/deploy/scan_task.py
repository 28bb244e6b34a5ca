"""The work for one scan: known already, or read, computed, and written where nothing else is."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import InputError, MedsslError
from medssl_cli.base.files import sha256_file
from medssl_cli.deploy.outputs import is_own, nifti_mask, publish, require_replaceable, volumes_ml
from medssl_cli.deploy.reading import ScanReader, input_digest
from medssl_cli.deploy.results import ReportFile, ScanResult
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.scans import Scan, longer_name
from medssl_cli.deploy.whole_answers import answer_json, fields_of, require_size, whole_answer
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.heads import MasksHead
from medssl_cli.imaging.volume import Volume

if TYPE_CHECKING:
    from medssl_cli.formats.dicom_seg import SegmentationObject

Output = Literal["nifti", "seg", "preview", "json"]
Preview = Callable[[Volume, NDArray[np.uint8], Mapping[int, str]], bytes]
"""A picture (PNG) of an image and its label map `[X, Y, Z]`."""
Progress = Callable[[str, float, float], None]
"""Called with which scan of how many, tiles done and tiles in all."""

ACCEPT_WRITING: Final = "accept-risk"
"""The rule for writing in pictures where nobody gives another one: no privacy is at stake in a mask."""
DEFAULT_FOLDER: Final = Path("medssl-out")
REPORT: Final = "report.json"
_SUFFIXES: Final[dict[Output, str]] = {"seg": ".dcm", "preview": ".png"}
_NOT_WRITTEN: Final = {"seg": "W_SEG_NOT_WRITTEN", "preview": "W_PREVIEW_NOT_WRITTEN"}


class StoppedError(Exception):
    """A stop request came in the middle of a scan."""


@dataclass(frozen=True)
class Where:
    """Where outputs go: a folder, the one mask's file if that was named, and the report's file."""

    folder: Path
    mask: Path | None
    report: Path

    @classmethod
    def of(cls, out: Path | None) -> "Where":
        """What `-o` means."""
        if out is None or not out.name.lower().endswith((".nii", ".nii.gz")):
            folder = DEFAULT_FOLDER if out is None else out
            return cls(folder, None, folder / REPORT)
        return cls(out.parent, out, out.parent / f"{_stem(out)}.{REPORT}")


def _stem(path: Path) -> str:
    return path.name[: path.name.lower().rindex(".nii")]


@dataclass(frozen=True)
class Job:
    """What is the same for all scans of one call.

    Args:
        model: Segments.
        reader: Reads, with the repairs that were asked for.
        report: What earlier calls did.
        where: Outputs go.
        outputs: Which of them are wanted.
        overwrite: Outputs of medssl that were made from something else may be replaced.
        preview: Draws a picture.
        progress: Told after every tile.
        dry_run: Compute and write nothing.
        is_stopped: Asked after every tile.
        inputs: Device and inode of every file that is read.
    """

    model: OnnxModel
    reader: ScanReader
    report: ReportFile
    where: Where
    outputs: tuple[Output, ...]
    overwrite: bool
    preview: Preview | None
    progress: Progress | None
    dry_run: bool
    is_stopped: Callable[[], bool]
    inputs: frozenset[tuple[int, int]] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Made:
    """What was made of one scan.

    Args:
        files: By their paths.
        warnings: About the scan and the files.
        reasons: Why some files are not there.
        fields: For the report.
    """

    files: dict[Path, bytes]
    warnings: list[str]
    reasons: list[str]
    fields: dict[str, Any]


@dataclass
class ScanTask:
    """The work for one scan.

    Args:
        job: What is the same for all.
        scan: With the name that its own place gives it.
        blank: What is known of it without opening it.
    """

    job: Job
    scan: Scan
    blank: ScanResult
    known: ScanResult | None = None

    def result(self, counter: str, start: float) -> ScanResult:
        """Do it, unless it is done."""
        job = self.job
        digest = input_digest(self.scan, job.reader.policy)
        self._find_known(digest)
        if self.known is not None and self._is_finished(self.known, digest):
            return replace(self._about(self.known), status="done", code="", message="", hint="", resumed=True)
        require_replaceable(
            self._targets().values(),
            inputs=job.inputs,
            recorded=self._recorded(),
            overwrite=job.overwrite,
        )
        self._require_no_other_owner()
        if job.dry_run:
            return replace(self.blank, status="pending")
        image = job.reader.read(self.scan)
        require_size(job.model.bundle, image.volume.shape)
        answer = job.model.answer(image.volume, progress=self._progress(f"{counter} {self.scan.name}"))
        made = self._masks(image, answer) if self._masks_head is not None else self._whole(image, answer)
        publish(made.files, overwrite=job.overwrite)
        return replace(
            self.blank,
            status="done",
            message="; ".join((*image.details, *made.reasons)),
            warnings=tuple(dict.fromkeys(made.warnings)),
            repairs=image.repairs,
            description=self._description(),
            shape=image.volume.shape,
            spacing_mm=image.volume.spacing_mm,
            seconds=round(time.monotonic() - start, 3),
            device=job.model.device,
            input_sha256=digest,
            model_sha256=job.model.sha256,
            options=self._options(),
            outputs=tuple(path.name for path in made.files),
            outputs_sha256={path.name: sha256_file(path) for path in made.files},
            **made.fields,
        )

    def _description(self) -> str:
        """What the header calls a series, for the report; "" for a file."""
        if self.scan.series is None:
            return ""
        from medssl_cli.formats.series import series_description

        return series_description(self.scan.series)

    def refused(self, code: str, message: str, hint: str = "") -> ScanResult:
        """Not done; outputs of an earlier call stay recorded."""
        if self.known is not None:
            return not_done(replace(self._about(self.known), resumed=False), code, message, hint)
        own: dict[str, str] = {}
        with contextlib.suppress(OSError):
            if code == "E_OUTPUT_EXISTS" and self.job.report.owner(next(iter(self._targets().values())).name) is None:
                own = {path.name: sha256_file(path) for path in self._targets().values() if is_own(path)}
        return not_done(replace(self.blank, outputs=tuple(own), outputs_sha256=own), code, message, hint)

    def _about(self, known: ScanResult) -> ScanResult:
        """What an earlier call found out, under what is known of the scan now."""
        blank = self.blank
        return replace(
            known, name=blank.name, kind=blank.kind, key=blank.key, task=blank.task, path=blank.path,
            place=blank.place, study=blank.study, series=blank.series, files=blank.files,
        )  # fmt: skip

    def _find_known(self, digest: str) -> None:
        """What the report says of the scan. A name that the report gives to another scan is not used again."""
        report, task = self.job.report, self.blank.task
        self.known = report.entry(task, self.scan.key, self.scan.name)
        holder = report.holder(task, self.scan.name)
        name = self.scan.name
        if self.known is not None and self.known.outputs:
            name = self.known.name
        elif holder is not None and holder.key != self.scan.key and holder.outputs and self.job.where.mask is None:
            if holder.input_sha256 == digest:
                self.known = holder  # the same bytes at another place
            else:
                name = longer_name(self.scan)
        self.scan, self.blank = replace(self.scan, name=name), replace(self.blank, name=name)

    def _recorded(self) -> set[str]:
        """Outputs that are there by the report: the scan's, and of one file that was named, whosever they are."""
        recorded = set(self.known.outputs if self.known is not None else ())
        if self.job.where.mask is not None:
            recorded |= {path.name for path in self._targets().values() if self.job.report.owner(path.name)}
        return recorded

    def _is_finished(self, known: ScanResult, digest: str) -> bool:
        made_from = (known.input_sha256, known.model_sha256, known.options)
        if made_from != (digest, self.job.model.sha256, self._options()):
            return False
        targets = self._targets()
        needed = [path for kind, path in targets.items() if _NOT_WRITTEN.get(kind) not in known.warnings]
        return bool(needed) and all(
            path.is_file() and not path.is_symlink() and known.outputs_sha256.get(path.name) == sha256_file(path)
            for path in needed
        )

    def _options(self) -> dict[str, Any]:
        departures = self.job.reader.policy.departures
        return {name: value for name, value in departures.items() if (name, value) != ("burned_in", ACCEPT_WRITING)}

    def _mask(self) -> Path:
        where = self.job.where
        return where.mask or where.folder / f"{self.scan.name}_{self.blank.task}.nii.gz"

    def _targets(self) -> dict[Output, Path]:
        """The files that will hold the result."""
        if self._masks_head is None:
            return {"json": self.job.where.folder / f"{self.scan.name}_{self.blank.task}.json"}
        mask = self._mask()
        targets = {kind: mask.with_name(f"{_stem(mask)}{suffix}") for kind, suffix in _SUFFIXES.items()}
        if self.scan.series is None:
            del targets["seg"]
        return {kind: path for kind, path in {"nifti": mask, **targets}.items() if kind in self.job.outputs}

    def _require_no_other_owner(self) -> None:
        """Refuse a name that outputs of another scan or task have, as `a_b` with `c` and `a` with `b_c`."""
        for path in self._targets().values():
            owner = self.job.report.owner(path.name) or self.job.report.namesake(path)
            is_other = owner is not None and owner.key and (owner.task, owner.key) != (self.blank.task, self.scan.key)
            if is_other and owner is not self.known and self.job.where.mask is None and path.exists():
                raise InputError(
                    "E_OUTPUT_EXISTS",
                    f"{path.name} is the output of another scan or model",
                    hint="choose another folder with -o",
                )

    @property
    def _classes(self) -> dict[int, str]:
        return {} if self._masks_head is None else self._masks_head.classes

    @property
    def _masks_head(self) -> MasksHead | None:
        head = self.job.model.bundle.head
        return head if isinstance(head, MasksHead) else None

    def _masks(self, image: LoadedImage, labels: NDArray[np.uint8]) -> Made:
        """A label map's files."""
        assert self._masks_head is not None
        warnings = [*image.warnings, *(() if labels.any() else ("W_EMPTY_SEGMENTATION",))]
        files, reasons = self._files(image, labels, warnings)
        millilitres = volumes_ml(labels, image.volume.affine, self._masks_head.classes)
        return Made(files, warnings, reasons, {"volumes_ml": millilitres})

    def _whole(self, image: LoadedImage, answer: Any) -> Made:
        """The file of findings or boxes."""
        bundle, shape = self.job.model.bundle, image.volume.shape
        told = whole_answer(bundle, answer, shape)
        data = answer_json(bundle, told, name=self.scan.name, model_sha256=self.job.model.sha256, shape=shape)
        return Made(dict.fromkeys(self._targets().values(), data), list(image.warnings), [], fields_of(told))

    def _files(
        self, image: LoadedImage, labels: NDArray[np.uint8], warnings: list[str]
    ) -> tuple[dict[Path, bytes], list[str]]:
        """What is to be written, and why some of it is not; adds to the warnings."""
        volume = image.volume
        files: dict[Path, bytes] = {}
        reasons: list[str] = []
        for kind, path in self._targets().items():
            if kind == "nifti":
                is_compressed = path.name.lower().endswith(".gz")
                files[path] = nifti_mask(
                    labels, volume.affine, like_header=image.nifti_header, is_compressed=is_compressed
                )
                continue
            try:
                if kind == "preview":
                    files[path] = self._picture(volume, labels)
                    continue
                made = self._seg(volume, labels)
                files[path] = made.data
                if made.note:
                    warnings.append("W_SEG_ATTRIBUTES")
                    reasons.append(f"W_SEG_ATTRIBUTES: {made.note}")
            except Exception as error:  # noqa: BLE001 - the mask is there all the same
                code, told = _NOT_WRITTEN[kind], type(error).__name__
                warnings.append(code)
                if isinstance(error, MedsslError):
                    warnings.append(error.code)
                    told = error.message
                reasons.append(f"{code}: {told}")
        return files, reasons

    def _picture(self, volume: Volume, labels: NDArray[np.uint8]) -> bytes:
        if self.job.preview is None:
            raise AssertionError("nobody can draw")
        return self.job.preview(volume, labels, self._classes)

    def _seg(self, volume: Volume, labels: NDArray[np.uint8]) -> "SegmentationObject":
        from medssl_cli.formats.dicom_seg import write_segmentation

        bundle, series = self.job.model.bundle, self.scan.series
        return write_segmentation(
            labels,
            series.headers if series is not None else (),
            self._classes,
            affine=volume.affine,
            model_sha256=self.job.model.sha256,
            algorithm_name=f"medssl {bundle.task}",
        )

    def _progress(self, what: str) -> Callable[[int, int], None]:
        def told(done: int, total: int) -> None:
            if self.job.is_stopped():
                raise StoppedError
            if self.job.progress is not None:
                self.job.progress(what, done, total)

        return told


def not_done(result: ScanResult, code: str, message: str, hint: str = "") -> ScanResult:
    """`S_` codes skip by rule, all others refuse."""
    status: Literal["skipped", "refused"] = "skipped" if code.startswith("S_") else "refused"
    known = CODES[code]
    return replace(result, status=status, code=code, message=message or known.meaning, hint=hint or known.remedy)
