"""Images in, answers out: a mask on each scan's own grid, findings, or boxes, and one report about all. No torch.

Whatever happens to one scan costs that scan. Every result is recorded when it is there; the same command again does
what is left: a scan whose bytes, model and options are the same and whose outputs are there is not computed again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.deploy.batch import Batch, Deliver
from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.cases import put_together, require_channels
from medssl_cli.deploy.choosing import Part, chosen
from medssl_cli.deploy.job import ACCEPT_WRITING, Job, Progress, Where
from medssl_cli.deploy.mask_files import Output, Preview, seg_storage, stem_of_mask
from medssl_cli.deploy.measurements import MEASUREMENTS_TABLE
from medssl_cli.deploy.outputs import is_own
from medssl_cli.deploy.report_file import ReportFile, table_path
from medssl_cli.deploy.results import InferReport, ScanResult
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.scan_orders import ModelSetup
from medssl_cli.deploy.scan_reader import ScanReader
from medssl_cli.deploy.scans import Findings, Scan, find_scans
from medssl_cli.deploy.whole_answers import REGIONS, TABLES, answer_kind
from medssl_cli.formats.given_channels import GivenChannels
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.heads import MasksHead
from medssl_cli.work.workers import TaskMap

__all__ = ["ALL_OUTPUTS", "InferReport", "InferSettings", "Output", "Preview", "Progress", "ScanResult", "infer"]

PAGE: Final = "page.html"
ALL_OUTPUTS: Final[tuple[Output, ...]] = ("nifti", "seg", "preview")


@dataclass(frozen=True)
class InferSettings:
    """How scans are done, whichever they are.

    Args:
        device: See `OnnxModel`.
        threads: See `OnnxModel`.
        max_ram_bytes: See `OnnxModel`.
        tile_timeout_s: See `OnnxModel`.
        every_tile: See `OnnxModel`.
        overwrite: Replace outputs of medssl that were made from another content of a scan or by another model.
        replaces_grown: The same for outputs of a DICOM series of which more has arrived since, if nobody changed them.
        outputs: Outputs of models of masks: NIfTI masks; DICOM SEG for DICOM scans; previews, if `preview` can draw
            them. Findings and boxes are written as JSON, and together as a table.
        preview: Draws a picture.
        has_page: Also write one page of what a call has found.
        progress: Told after every tile.
        policy: Which scans are accepted and repaired; without `burned_in` all writing in pictures is accepted, and
            `predictions` does not matter here.
        workers: Other processes, which do several scans at a time; without them this process does one after the other.
        overlap: While the network works on a scan, the next one is read and the last one written, where memory holds
            them; results are the same, in the same order.
        deliver: Gets every result that is done before it is recorded.
        say: Told of every result.
        is_stopped: Asked after every tile; the scan at work is then given up, and the report says what is done.
    """

    device: str = "auto"
    threads: int | None = None
    max_ram_bytes: int | None = None
    tile_timeout_s: float | None = None
    every_tile: bool = False
    overwrite: bool = False
    replaces_grown: bool = False
    outputs: Sequence[Output] = ALL_OUTPUTS
    preview: Preview | None = None
    has_page: bool = False
    progress: Progress | None = None
    policy: Policy = STRICT
    workers: TaskMap | None = None
    overlap: bool = True
    deliver: Deliver | None = None
    say: Callable[[ScanResult], None] = lambda result: None
    is_stopped: Callable[[], bool] = lambda: False

    def opened(self, model_path: Path, *, opens_late: bool = False) -> OnnxModel:
        """A model, ready to run in this process.

        Args:
            model_path: An exported model.
            opens_late: See `OnnxModel`.

        Raises:
            UsageError: `E_NOT_FOUND`, `E_MODEL_INVALID`, `E_MODEL_LIMIT`, `E_DEVICE`.
            GateError: `E_MODEL_CORRUPT`.
        """
        return OnnxModel(
            model_path,
            self.device,
            threads=self.threads,
            max_ram_bytes=self.max_ram_bytes,
            tile_timeout_s=self.tile_timeout_s,
            every_tile=self.every_tile,
            opens_late=opens_late,
        )

    def setup(self, model_path: Path, model: OnnxModel) -> ModelSetup:
        """How another process opens the same model."""
        return ModelSetup(
            model_path.absolute(),
            model.sha256,
            self.device,
            self.threads,
            self.max_ram_bytes,
            self.tile_timeout_s,
            self.every_tile,
        )


def infer(
    scans: Sequence[Path],
    model_path: Path,
    *,
    out: Path | None = None,
    only_series: Sequence[str] = (),
    channels: Sequence[str] = (),
    part: Part | None = None,
    dry_run: bool = False,
    plan: bool = False,
    how: InferSettings | None = None,
    model: OnnxModel | None = None,
    report: ReportFile | None = None,
    is_wanted: Callable[[Path], bool] | None = None,
    **options: Any,
) -> InferReport:
    """Answer for every scan or case that is found; one that fails does not stop the others.

    Args:
        scans: Files, folders and zip archives, as ingest takes them.
        model_path: An exported model.
        out: A folder, or for a single scan the mask's file (`.nii.gz`, `.nii`); `./medssl-out` by default.
        only_series: Names or SeriesInstanceUIDs of the scans to segment, and rules (`deploy.choosing`); all by default.
        channels: Which channel a file or folder is, `flair=PATH`, where no layout says it; `flair` for all inputs.
        part: Do only this part of the work; others do the rest.
        dry_run: Say what would be done, compute and write nothing.
        plan: Say what memory each scan would take, segment and write nothing.
        how: How scans are done.
        model: The model, if it is open already; it stays so.
        report: The report, if it is open already; its owner says when it is complete.
        is_wanted: Which files of the inputs are looked at; all by default.
        **options: Fields of `InferSettings` instead of `how`.

    Returns:
        What this call did; `report.json` beside the masks tells of all calls.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_USAGE`, `E_MODEL_INVALID`, `E_DEVICE`; `E_OUTPUT_EXISTS`, the report's name is
            taken by a file of somebody else.
        GateError: `E_MODEL_CORRUPT`, before anything is done or when the file is replaced meanwhile.
        NothingUsableError: `E_NOTHING_USABLE` if there is nothing in the input.
        StorageError: `E_IO`.
    """
    how = how or InferSettings(**options)
    where, given = Where.of(out, part), GivenChannels.parse(channels)
    scans = [*scans, *given.paths]
    if not scans:
        raise UsageError("E_USAGE", "no scan is named", hint="name files or folders, or --channel NAME=PATH")
    is_own_report, report = report is None, report or opened_report(where)
    model = model or how.opened(model_path, opens_late=how.workers is None)
    call = time.monotonic_ns()
    model.begin_call(call)
    _require_answers(model.bundle, where)
    _require_fitting(model.bundle, how.outputs)
    _require_place_for_page(how, where)
    policy = replace(how.policy, burned_in=how.policy.burned_in or ACCEPT_WRITING, predictions=False)
    names = model.bundle.preprocessing.channel_names
    require_channels(given, names)
    images = find_scans(
        scans,
        policy,
        out=where.folder,
        takes_flat=model.bundle.takes_flat,
        given=given,
        has_channels=bool(names),
        is_wanted=is_wanted,
        is_stopped=how.is_stopped,
    )
    found = chosen(put_together(images, names, given), only_series, part, modality=model.bundle.modality)
    if not images.scans and not images.rejects and not how.is_stopped() and is_wanted is None:
        raise NothingUsableError("E_NOTHING_USABLE", "the input holds no file")
    _require_other_place(where, found)
    wanted = tuple(one for one in how.outputs if one != "preview" or how.preview is not None)
    job = Job(
        model=model,
        reader=ScanReader(policy, model.bundle.modality),
        known=report.known,
        where=where,
        outputs=wanted,
        overwrite=how.overwrite,
        replaces_grown=how.replaces_grown,
        call=call,
        preview=how.preview,
        progress=how.progress,
        dry_run=dry_run or plan,
        is_stopped=how.is_stopped,
        inputs=found.files,
        plan=plan,
    )
    others = None if plan else how.workers
    if others is not None:
        model.close()  # they have one each
    batch = Batch(
        job, report, how.setup(model_path, model), others, how.deliver, how.say, how.overlap, is_last=is_own_report
    )
    found_out = batch.run(found, is_all=not only_series and is_wanted is None)
    if not how.has_page or job.dry_run or how.is_stopped():
        return found_out
    return _with_page(job, found_out, found.scans)


def _require_place_for_page(how: InferSettings, where: Where) -> None:
    """Refuse a page whose name is taken, before anything is read; see `results_page.require_own_page`."""
    if how.has_page:
        from medssl_cli.deploy.results_page import require_own_page

        require_own_page(page_path(where))


def _with_page(job: Job, report: InferReport, scans: Sequence[Scan]) -> InferReport:
    """Write the page of a call."""
    from medssl_cli.deploy.page_cases import CaseReader
    from medssl_cli.deploy.results_page import write_page

    path = page_path(job.where)
    write_page(path, report, scans, CaseReader(job.model.bundle, job.reader, job.where.folder))
    return replace(report, page=path)


def page_path(where: Where) -> Path:
    """Where the page of a call lies: beside its report."""
    if where.mask is not None:
        return where.folder / f"{stem_of_mask(where.mask)}.{PAGE}"
    return table_path(where.report, PAGE)


def opened_report(where: Where) -> ReportFile:
    """The report of an output folder, or of one mask.

    Raises:
        UsageError: `E_OUTPUT_EXISTS`.
    """
    return ReportFile(where.report, has_journal=where.mask is None)


def _require_other_place(where: Where, found: Findings) -> None:
    """Refuse one file for several scans, and outputs among inputs."""
    if where.mask is not None and len(found.scans) > 1:
        raise UsageError("E_USAGE", f"-o names one file, the input holds {len(found.scans)} scans", hint="-o FOLDER")
    if where.mask is None and where.folder.resolve() in {root for root in found.roots if root.is_dir()}:
        raise UsageError("E_USAGE", "the output folder is the input folder", hint="choose another with -o")


def _require_answers(bundle: Bundle, where: Where) -> None:
    """Refuse what cannot be written, before anything is read.

    Raises:
        UsageError: `E_USAGE`, the model gives nothing that is written here, or one mask is named for a model of others;
            `E_OUTPUT_EXISTS`, the name of a table is taken by a file of somebody else.
    """
    kind = answer_kind(bundle.head)
    if kind == "embeddings":
        raise UsageError(
            "E_USAGE", f"{bundle.task} gives embeddings, of which medssl infer writes nothing",
            hint="run the file with ONNX Runtime: medssl models show says what it takes and gives",
        )  # fmt: skip
    if where.mask is not None and kind in TABLES:
        told = "a mask for each region" if kind == REGIONS else f"{kind} and no mask"
        raise UsageError("E_USAGE", f"{bundle.task} gives {told}", hint="-o FOLDER")
    if where.mask is not None:
        return
    names = [TABLES[kind]] if kind in TABLES else []
    names += [MEASUREMENTS_TABLE] if isinstance(bundle.head, MasksHead) else []
    for table in [table_path(where.report, name) for name in names]:
        if table.exists() and not is_own(table):
            raise UsageError(
                "E_OUTPUT_EXISTS", f"{table.name} in the output folder is not a table of medssl infer",
                hint="move it away, or choose another folder with -o",
            )  # fmt: skip


def _require_fitting(bundle: Bundle, outputs: Sequence[Output]) -> None:
    """Refuse outputs that the model's answers have not.

    Raises:
        UsageError: `E_USAGE`, a label map of classes that overlap, or probabilities of voxels where there are none.
    """
    storage, kind = seg_storage(outputs), answer_kind(bundle.head)
    if storage is not None and storage.is_label_map and kind == REGIONS:
        raise UsageError(
            "E_USAGE", f"classes of {bundle.task} overlap, and a label map holds one class a voxel",
            hint="ask for seg, whose segments may overlap",
        )  # fmt: skip
    if "probabilities" in outputs and not isinstance(bundle.head, MasksHead):
        raise UsageError(
            "E_USAGE", f"{bundle.task} gives {kind}, not masks: no voxel has a probability",
            hint="its JSON files say the probabilities there are",
        )  # fmt: skip
