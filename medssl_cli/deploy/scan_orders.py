"""Scans that other processes do, here or on other machines: what they are told of one, and what they do then.

Such a process keeps the model that it has loaded, so that the second and later scans cost no start-up. It writes a
scan's outputs itself; the report is written by the process that gave the orders.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import GateError, MedsslError, StorageError
from medssl_cli.deploy.job import Job, Where
from medssl_cli.deploy.known_results import KnownResults
from medssl_cli.deploy.mask_files import Output, Preview
from medssl_cli.deploy.results import ScanResult
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.scan_reader import ScanReader
from medssl_cli.deploy.scan_task import ScanTask, not_done
from medssl_cli.deploy.scans import Scan
from medssl_cli.formats.policy import Policy
from medssl_cli.work.workers import OUT_OF_MEMORY, TaskMap

SCAN_TIMEOUT_S: Final = 24 * 3600.0
"""Time for a scan as a whole, far beyond the limits of its parts: reading, and each call of the network."""


@dataclass(frozen=True)
class ModelSetup:
    """How a process of its own opens a model; see `OnnxModel`."""

    path: Path
    sha256: str
    device: str
    threads: int | None
    max_ram_bytes: int | None
    tile_timeout_s: float | None
    every_tile: bool


@dataclass(frozen=True)
class ScanOrder:
    """All that a process must know to do one scan.

    Args:
        scan: What is to be done.
        task: Task of the model.
        setup: The model.
        policy: What is accepted and repaired.
        where: Outputs go.
        outputs: Which are wanted.
        overwrite: See `Job`.
        replaces_grown: See `Job`.
        preview: See `Job`.
        known: What earlier calls did, as far as it may matter for this scan.
        call: See `Job`.
        inputs: Device and inode of those of its outputs that are inputs.
    """

    scan: Scan
    task: str
    setup: ModelSetup
    policy: Policy
    where: Where
    outputs: tuple[Output, ...]
    overwrite: bool
    replaces_grown: bool
    preview: Preview | None
    known: tuple[ScanResult, ...]
    call: int
    inputs: frozenset[tuple[int, int]] = field(default_factory=frozenset)


def order_for(task: ScanTask, setup: ModelSetup) -> ScanOrder:
    """The order that lets another process do a scan.

    Args:
        task: The work, as this process would do it.
        setup: How the other one opens the model.
    """
    job, identities = task.job, set()
    known = tuple(task.relevant())
    for path in {job.where.folder / name for one in known for name in one.outputs} | {t.path for t in task.targets()}:
        if path.exists():
            identities.add((path.stat().st_dev, path.stat().st_ino))
    return ScanOrder(
        scan=task.scan,
        task=task.blank.task,
        setup=setup,
        policy=job.reader.policy,
        where=job.where,
        outputs=job.outputs,
        overwrite=job.overwrite,
        replaces_grown=job.replaces_grown,
        preview=job.preview,
        known=known,
        call=job.call,
        inputs=frozenset(one for one in identities if one in job.inputs),
    )


def results_of_orders(
    tasks: Iterable[ScanTask], setup: ModelSetup, workers: TaskMap, *, is_stopped: Callable[[], bool]
) -> Iterator[ScanResult]:
    """What becomes of scans that other processes do, in the order in which they are ready.

    Where a process says that the disk is full, no further scan is begun, and those that are at work come first.

    Raises:
        StorageError: `E_CLUSTER`; `E_IO`, the disk is full: nobody's outputs can be written.
    """
    full: list[StorageError] = []
    orders = (order_for(task, setup) for task in itertools.takewhile(lambda _: not full, tasks))
    for outcome in workers.map(do_order, orders, timeout_s=SCAN_TIMEOUT_S, should_stop=is_stopped):
        if isinstance(outcome.result, StorageError):
            full.append(outcome.result)
        else:
            yield outcome.result if outcome.result is not None else _lost(outcome.task, outcome.failure)
    if full:
        raise full[0]


def do_order(order: ScanOrder) -> ScanResult | StorageError:
    """Do one scan in this process; an error where the disk is full, which is no word about the scan."""
    blank = ScanResult.of(order.scan, order.task)
    try:
        model = _model(order.setup)
    except MedsslError as error:
        return _refusal(order, error.code, error.message, error.hint)
    model.begin_call(order.call)
    job = Job(
        model=model,
        reader=ScanReader(order.policy, model.bundle.modality),
        known=KnownResults(order.known),
        where=order.where,
        outputs=order.outputs,
        overwrite=order.overwrite,
        replaces_grown=order.replaces_grown,
        preview=order.preview,
        progress=None,
        dry_run=False,
        is_stopped=lambda: False,
        inputs=order.inputs,
    )
    try:
        return ScanTask(job, order.scan, blank).outcome("")
    except StorageError as error:
        return error
    except GateError as error:
        return _refusal(order, error.code, error.message, error.hint)


@functools.lru_cache(maxsize=1)
def _model(setup: ModelSetup) -> OnnxModel:
    """The one that this process has loaded.

    Raises:
        GateError: `E_MODEL_CORRUPT`, the file is another one than the orders were given for.
        UsageError: See `OnnxModel`.
    """
    model = OnnxModel(
        setup.path,
        setup.device,
        threads=setup.threads,
        max_ram_bytes=setup.max_ram_bytes,
        tile_timeout_s=setup.tile_timeout_s,
        every_tile=setup.every_tile,
    )
    if model.sha256 != setup.sha256:
        model.close()
        raise GateError("E_MODEL_CORRUPT", f"{setup.path.name} is another file here", hint="install one everywhere")
    return model


def _lost(order: ScanOrder, failure: str) -> ScanResult:
    """The result of a scan whose process has died."""
    if failure == OUT_OF_MEMORY:
        return _refusal(order, "E_TOO_BIG", "the process that worked on it ran out of memory")
    return _refusal(order, "E_SCAN_FAILED", f"the process that worked on it: {failure}")


def _refusal(order: ScanOrder, code: str, message: str, hint: str = "") -> ScanResult:
    """A scan that is not done; outputs of an earlier call stay recorded."""
    known = KnownResults(order.known).entry(order.task, order.scan.key, order.scan.name)
    blank = ScanResult.of(order.scan, order.task)
    if known is not None:
        blank = replace(blank, name=known.name, outputs=known.outputs, outputs_sha256=known.outputs_sha256)
    return not_done(blank, code, message, hint)
