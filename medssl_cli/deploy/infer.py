"""Images in, answers out: a mask on each scan's own grid, findings, or boxes, and one report about all. No torch.

Whatever happens to one scan costs that scan. The report is brought up to date after each; the same command again does
what is left: a scan whose bytes, model and options are the same and whose outputs are there is not computed again.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import MedsslError, NothingUsableError, UsageError
from medssl_cli.base.files import remove_temporaries
from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.cases import put_together, require_channels
from medssl_cli.deploy.mask_files import Output, Preview
from medssl_cli.deploy.outputs import is_own
from medssl_cli.deploy.report_file import ReportFile
from medssl_cli.deploy.results import InferReport, ScanResult
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.scan_reader import ScanReader
from medssl_cli.deploy.scan_task import (
    ACCEPT_WRITING,
    Job,
    Progress,
    ScanTask,
    StoppedError,
    Where,
    not_done,
)
from medssl_cli.deploy.scans import Findings, Reject, Scan, find_scans
from medssl_cli.deploy.whole_answers import REGIONS, TABLES, answer_kind
from medssl_cli.formats.given_channels import GivenChannels
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.source import Member

__all__ = ["ALL_OUTPUTS", "InferReport", "Output", "Preview", "Progress", "ScanResult", "infer"]

ALL_OUTPUTS: Final[tuple[Output, ...]] = ("nifti", "seg", "preview")


def infer(
    scans: Sequence[Path],
    model_path: Path,
    *,
    out: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    max_ram_bytes: int | None = None,
    tile_timeout_s: float | None = None,
    overwrite: bool = False,
    outputs: Sequence[Output] = ALL_OUTPUTS,
    preview: Preview | None = None,
    progress: Progress | None = None,
    policy: Policy = STRICT,
    only_series: Sequence[str] = (),
    channels: Sequence[str] = (),
    dry_run: bool = False,
    plan: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> InferReport:
    """Answer for every scan or case that is found; one that fails does not stop the others.

    Args:
        scans: Files, folders and zip archives, as ingest takes them.
        model_path: An exported model.
        out: A folder, or for a single scan the mask's file (`.nii.gz`, `.nii`); `./medssl-out` by default.
        device: See `OnnxModel`.
        threads: See `OnnxModel`.
        max_ram_bytes: See `OnnxModel`.
        tile_timeout_s: See `OnnxModel`.
        overwrite: Replace outputs of medssl that were made from another content of a scan or by another model.
        outputs: Of models of masks: NIfTI masks; DICOM SEG for DICOM scans; previews, if `preview` can draw them.
            Findings and boxes are written as JSON, and together as a table.
        preview: Draws a picture.
        progress: Told after every tile.
        policy: Which scans are accepted and repaired; without `burned_in` all writing in pictures is accepted, and
            `predictions` does not matter here.
        only_series: Names or SeriesInstanceUIDs of the scans to segment; all by default.
        channels: Which channel a file or folder is, `flair=PATH`, where no layout says it; `flair` for all inputs.
        dry_run: Say what would be done, compute and write nothing.
        plan: Say what memory each scan would take, segment and write nothing.
        is_stopped: Asked after every tile; the scan at work is then given up, and the report says what is done.

    Returns:
        What this call did; `report.json` beside the masks tells of all calls.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_USAGE`, `E_MODEL_INVALID`, `E_DEVICE`; `E_OUTPUT_EXISTS`, the report's name is
            taken by a file of somebody else.
        GateError: `E_MODEL_CORRUPT`.
        NothingUsableError: `E_NOTHING_USABLE` if there is nothing in the input.
        StorageError: `E_IO`.
    """
    where, given = Where.of(out), GivenChannels.parse(channels)
    scans = [*scans, *given.paths]
    if not scans:
        raise UsageError("E_USAGE", "no scan is named", hint="name files or folders, or --channel NAME=PATH")
    report = ReportFile(where.report)
    model = OnnxModel(model_path, device, threads=threads, max_ram_bytes=max_ram_bytes, tile_timeout_s=tile_timeout_s)
    _require_answers(model.bundle, where)
    names = model.bundle.preprocessing.channel_names
    require_channels(given, names)
    policy = replace(policy, burned_in=policy.burned_in or ACCEPT_WRITING, predictions=False)
    images = find_scans(
        scans,
        policy,
        out=where.folder,
        takes_flat=model.bundle.takes_flat,
        given=given,
        has_channels=bool(names),
        is_stopped=is_stopped,
    )
    found = _chosen(put_together(images, names, given), only_series)
    if not found.scans and not found.rejects and not is_stopped():
        raise NothingUsableError("E_NOTHING_USABLE", "the input holds no file")
    if where.mask is not None and len(found.scans) > 1:
        raise UsageError("E_USAGE", f"-o names one file, the input holds {len(found.scans)} scans", hint="-o FOLDER")
    if where.mask is None and where.folder.resolve() in {root for root in found.roots if root.is_dir()}:
        raise UsageError("E_USAGE", "the output folder is the input folder", hint="choose another with -o")
    reader = ScanReader(policy, model.bundle.modality)
    wanted = tuple(one for one in outputs if one != "preview" or preview is not None)
    inputs = _identities(found.scans)
    job = Job(
        model, reader, report, where, wanted, overwrite, preview, progress, dry_run or plan, is_stopped, inputs, plan
    )
    return _Batch(job).run(found, is_all=not only_series)


def _require_answers(bundle: Bundle, where: Where) -> None:
    """Refuse what cannot be written, before anything is read.

    Raises:
        UsageError: `E_USAGE`, the model gives nothing that is written here, or one mask is named for a model of others;
            `E_OUTPUT_EXISTS`, the name of the table is taken by a file of somebody else.
    """
    kind = answer_kind(bundle.head)
    if kind == "embeddings":
        raise UsageError(
            "E_USAGE", f"{bundle.task} gives embeddings, of which medssl infer writes nothing",
            hint="run the file with ONNX Runtime: medssl models show says what it takes and gives",
        )  # fmt: skip
    if kind not in TABLES:
        return
    if where.mask is not None:
        told = "a mask for each region" if kind == REGIONS else f"{kind} and no mask"
        raise UsageError("E_USAGE", f"{bundle.task} gives {told}", hint="-o FOLDER")
    table = where.folder / TABLES[kind]
    if table.exists() and not is_own(table):
        raise UsageError(
            "E_OUTPUT_EXISTS", f"{table.name} in the output folder is not a table of medssl infer",
            hint="move it away, or choose another folder with -o",
        )  # fmt: skip


def _chosen(found: Findings, only_series: Sequence[str]) -> Findings:
    if not only_series:
        return found
    wanted = set(only_series)
    kept = [scan for scan in found.scans if not wanted.isdisjoint(_names_of(scan))]
    rejects = [one for one in found.rejects if one.place.series in wanted]
    missing = wanted - {name for scan in kept for name in _names_of(scan)}
    missing -= {one.place.series for one in rejects}
    if missing:
        raise UsageError(
            "E_NOT_FOUND", f"{len(missing)} of {len(wanted)} series are not in the input", hint="--dry-run lists all"
        )
    return replace(found, scans=kept, rejects=rejects)


def _names_of(scan: Scan) -> list[str]:
    """What a scan can be chosen by; a case also by each of its images."""
    return [name for one in (scan, *scan.images) for name in (one.name, one.place.series)]


@dataclass
class _Batch:
    """All scans of one call, one after the other, and the report about them.

    Args:
        job: What is the same for all.
        results: So far.
        unrecorded: Those that the report's file does not hold yet.
    """

    job: Job
    results: list[ScanResult] = field(default_factory=list)
    unrecorded: list[ScanResult] = field(default_factory=list)

    def run(self, found: Findings, *, is_all: bool) -> InferReport:
        """Do everything, or as much as a stop request leaves time for.

        Args:
            found: What the inputs hold.
            is_all: Nothing of it was left out by choice.
        """
        job = self.job
        if job.where.folder.is_dir() and not job.dry_run:
            remove_temporaries(job.where.folder)
        for one in found.rejects:
            self._add(self._rejected(one))
        self._record()
        num_reached = 0
        for number, scan in enumerate(found.scans, start=1):
            if job.is_stopped():
                break
            try:
                result = self._result(scan, f"{number}/{len(found.scans)}")
            except StoppedError:
                break
            self._add(result)
            if not result.resumed:
                self._record()
            num_reached = number
        self._record(_staleness(self.results, found.roots) if is_all and not job.is_stopped() else None)
        return self._report(len(found.scans) - num_reached)

    def _add(self, result: ScanResult) -> None:
        self.results.append(result)
        self.unrecorded.append(result)

    def _record(self, is_stale: Callable[[ScanResult], bool] | None = None) -> None:
        if not self.job.dry_run:
            self.job.report.update(self._report().header, self.unrecorded, is_stale=is_stale)
            self.unrecorded = []

    def _report(self, not_reached: int = 0) -> InferReport:
        model, where = self.job.model, self.job.where
        return InferReport(
            task=model.bundle.task,
            model_sha256=model.sha256,
            device=model.device,
            intended_use=model.bundle.intended_use,
            folder=where.folder,
            path=where.report,
            results=tuple(self.results),
            not_reached=not_reached,
            is_dry_run=self.job.dry_run,
        )

    def _rejected(self, one: Reject) -> ScanResult:
        return not_done(ScanResult.of(one, self.job.model.bundle.task), one.code, one.message, one.hint)

    def _result(self, scan: Scan, counter: str) -> ScanResult:
        """One scan. Its failure is its result, whatever it is."""
        work = ScanTask(self.job, scan, ScanResult.of(scan, self.job.model.bundle.task))
        try:
            return work.result(counter, time.monotonic())
        except StoppedError:
            raise
        except MedsslError as error:
            return work.refused(error.code, error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - the boundary of one scan
            if isinstance(error, MemoryError) or "allocat" in str(error):
                return work.refused("E_TOO_BIG", "not enough memory for this scan")
            return work.refused("E_SCAN_FAILED", f"it failed with {type(error).__name__}")


def _identities(scans: Sequence[Scan]) -> frozenset[tuple[int, int]]:
    """Device and inode of every file that is read."""
    paths = {source.archive if isinstance(source, Member) else source for scan in scans for source in scan.files}
    found = set()
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def _staleness(results: Sequence[ScanResult], roots: Sequence[Path]) -> Callable[[ScanResult], bool]:
    """Which entries a call has proved wrong: refusals below its inputs that it does not give any more."""
    keys = {(result.task, result.key) for result in results}

    def is_stale(entry: ScanResult) -> bool:
        if entry.status == "done" or entry.outputs or (entry.task, entry.key) in keys:
            return False
        return any(Path(entry.path).is_relative_to(root) for root in roots)

    return is_stale
