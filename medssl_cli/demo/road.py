"""The whole road on phantoms, by the very commands that a user types.

Every step is a `medssl` process in the demo's folder, so what it prints can be typed again, there or on one's own
scans. A second run into the same folder goes on where the first one stopped.
"""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from medssl_cli.base.errors import Exit, MedsslError, UsageError
from medssl_cli.base.files import storage_errors, write_atomic, write_json
from medssl_cli.demo.cohort import Cohort, write_cohort

CACHE: Final = "medssl-cache"
PRETRAINING, SCRATCH, PRETRAINED = "runs/voco-tiny", "runs/heart-seg-scratch", "runs/heart-seg-voco-tiny"
SETTINGS: Final = "demo-settings.json"
SEED: Final = 0
# heart-seg is written for one GPU and 1.5 mm; this is what two CPU cores do in a minute.
SMALLER: Final = (
    "backbone={name: unet, channels: [16, 32, 64, 128], strides: [2, 2, 2, 2], num_res_units: 2}",
    "data.spacing_mm=[4.0, 4.0, 4.0]",
    "data.crop_size=[48, 48, 32]",
    "data.num_workers=0",
    "optimizer.learning_rate=1.0e-3",
    "precision=fp32",
    "ema_decay=0.0",
    "max_validation_patients=2",
)


class Progress(Protocol):
    """How the demo says what it does; the terminal of the command line is one."""

    def note(self, text: str) -> None:
        """One line."""

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        """How far a long step is."""


@dataclass(frozen=True)
class Size:
    """How large a demo is.

    Args:
        num_unlabelled: Patients with DICOM series only.
        num_labelled: Patients with labels; a fifth of them is held out for the test.
        fraction: Share of the labelled training patients that fine-tuning may use.
        pretrain_steps: Steps of pre-training.
        finetune_steps: Steps of each fine-tuning.
        validate_every: Steps between validations.
    """

    num_unlabelled: int
    num_labelled: int
    fraction: float
    pretrain_steps: int
    finetune_steps: int
    validate_every: int


FULL: Final = Size(24, 25, fraction=0.17, pretrain_steps=300, finetune_steps=450, validate_every=150)
QUICK: Final = Size(6, 10, fraction=0.4, pretrain_steps=20, finetune_steps=20, validate_every=10)


@dataclass(frozen=True)
class Step:
    """One command.

    Args:
        title: What it does, in a few words.
        arguments: Of `medssl`, relative to the demo's folder.
        accepts: Exit codes that mean success; ingest of a cohort with a damaged series ends with 3.
    """

    title: str
    arguments: tuple[str, ...]
    accepts: tuple[int, ...] = (Exit.OK,)

    @property
    def command(self) -> str:
        """As a user types it."""
        return shlex.join(["medssl", *self.arguments])


@dataclass(frozen=True)
class StepResult:
    """One command that has run: how long it took and what it said on stdout."""

    step: Step
    seconds: float
    output: str


@dataclass(frozen=True)
class DemoResult:
    """What a demo leaves.

    Args:
        folder: Everything is below it.
        page: The HTML page.
        steps: The commands, in order.
        cohort: The scans.
        scores: `scores.json` of "scratch" and "pretrained".
    """

    folder: Path
    page: Path
    steps: tuple[StepResult, ...]
    cohort: Cohort
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of (structure, Dice from scratch, Dice pre-trained), the means last."""
        scratch, pretrained = self.scores["scratch"], self.scores["pretrained"]
        rows = [
            (name, _score(metrics["dice"]["mean"]), _score(pretrained["structures"][name]["dice"]["mean"]))
            for name, metrics in scratch["structures"].items()
        ]
        return [*rows, ("mean", _score(scratch["mean_dice"]), _score(pretrained["mean_dice"]))]

    def to_document(self) -> dict[str, Any]:
        """JSON of the demo's outcome."""
        return {
            "folder": str(self.folder),
            "page": str(self.page),
            "steps": [{"command": done.step.command, "seconds": round(done.seconds, 1)} for done in self.steps],
            "mean_dice": {name: scores["mean_dice"] for name, scores in self.scores.items()},
        }


class StepFailedError(MedsslError):
    """A command of the demo failed; it has said why itself, and its exit code is passed on."""


def run_demo(folder: Path, *, quick: bool = False, fresh: bool = False, progress: Progress) -> DemoResult:
    """Draw phantoms, run the whole road on them and write the page.

    Args:
        folder: Where everything goes; what is finished there already is used again.
        quick: A few steps on a few phantoms: shows that everything works and nothing else.
        fresh: Remove what an earlier demo has left in the folder.
        progress: Told what happens.

    Raises:
        StepFailedError: A command failed.
        StorageError: `E_IO`.
    """
    from medssl_cli.demo.page import write_page  # matplotlib: only needed at the end

    size = QUICK if quick else FULL
    with storage_errors("the demo"):
        if fresh:
            _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, size)
    cohort = write_cohort(
        folder / "scans",
        size.num_unlabelled,
        size.num_labelled,
        SEED,
        lambda done, total: progress.progress("drawing phantoms", done, total),
    )
    _fix_key(folder / CACHE)
    done = []
    steps = road(size)
    for number, step in enumerate(steps, start=1):
        progress.note(f"\n[{number}/{len(steps)}] {step.title}\n$ {step.command}")
        done.append(_run(step, folder))
    scores = {name: _json(folder / "results" / name / "scores.json") for name in ("scratch", "pretrained")}
    result = DemoResult(folder, folder / "demo.html", tuple(done), cohort, scores)
    write_page(result)
    write_json(folder / "demo.json", result.to_document())
    return result


def road(size: Size) -> list[Step]:
    """The commands of a demo, relative to its folder."""
    cache = ("--cache", CACHE)
    steps = ("--set", f"steps={size.finetune_steps}", "--set", f"validate_every={size.validate_every}")
    smaller = tuple(part for override in SMALLER for part in ("--set", override))
    labels = ("--task", "heart-seg", *cache, "--fraction", f"{size.fraction:g}")
    shorter = () if size == FULL else ("--set", f"steps={size.pretrain_steps}")
    return [
        Step("Take in DICOM series and labelled NIfTI files",
             ("ingest", "scans/dicom", "scans/labelled", *cache, "--modality", "CT"),
             accepts=(Exit.OK, Exit.PARTIAL)),
        Step("Learn from all scans without labels (VoCo)",
             ("pretrain", "--recipe", "voco-tiny", *cache, "--run", PRETRAINING, *shorter)),
        Step("Learn seven heart structures from few labels, from scratch",
             ("finetune", *labels, "--init", "none", "--run", SCRATCH, *steps, *smaller)),
        Step("The same from the pre-trained encoder",
             ("finetune", *labels, "--init", PRETRAINING, "--run", PRETRAINED, *steps, *smaller)),
        Step("Test the first on patients that no training has seen",
             ("evaluate", SCRATCH, *cache, "--split", "test", "--out", "results/scratch")),
        Step("Test the second on the same patients",
             ("evaluate", PRETRAINED, *cache, "--split", "test", "--out", "results/pretrained")),
        Step("Export the second, prove it equal to the trained network, install it",
             ("export", PRETRAINED, *cache, "--install", "--models", "models")),
        *(
            Step(f"Segment an unseen {what}",
                 ("infer", scan, "--task", "heart-seg", "--models", "models", "-o", f"masks/{name}"))
            for what, name, scan in (("DICOM series", "dicom", "scans/unseen/dicom"),
                                     ("NIfTI file", "nifti", "scans/unseen/scan.nii.gz"))
        ),
    ]  # fmt: skip


def commands_for_own_data(labelled: str = "MY_LABELLED_SET", dicom: str = "MY_DICOM_FOLDER") -> list[str]:
    """The road on somebody's own scans, at full size and with every default."""
    return [
        f"medssl ingest {dicom} {labelled} --modality CT",
        "medssl pretrain --recipe voco",
        "medssl finetune --task heart-seg --init runs/voco --run runs/heart-seg",
        "medssl evaluate runs/heart-seg --split test",
        "medssl export runs/heart-seg --install",
        "medssl infer NEW_SCAN --task heart-seg -o masks",
    ]


def _run(step: Step, folder: Path) -> StepResult:
    """Run one command in the demo's folder; its progress goes to this process's stderr."""
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "medssl_cli", *step.arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if process.returncode not in step.accepts:
        raise _failure(step, process.returncode)
    return StepResult(step, time.monotonic() - started, process.stdout)


def _failure(step: Step, code: int) -> StepFailedError:
    error = StepFailedError(
        "E_DEMO_STEP",
        f"exit code {code} of: {step.command}",
        hint="its error stands above; run the demo again to go on from here, or with --fresh to start over",
    )
    error.exit_code = Exit(code) if code in set(Exit) else Exit.BUG
    return error


def _clear(folder: Path) -> None:
    """Remove what a demo writes, and nothing else that may lie in the folder."""
    for part in ("scans", CACHE, "runs", "models", "results", "masks"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for file in (SETTINGS, "demo.html", "demo.json"):
        (folder / file).unlink(missing_ok=True)


def _claim(folder: Path, size: Size) -> None:
    """Take a folder for a demo of one size, whose finished steps may be used again.

    Raises:
        UsageError: `E_OUTPUT_EXISTS`, it holds a demo of another size or something else.
    """
    mark = folder / SETTINGS
    if mark.is_file() and _json(mark) == asdict(size):
        return
    if any(folder.iterdir()):
        what = "a demo of another size" if mark.is_file() else "other files"
        raise UsageError(
            "E_OUTPUT_EXISTS", f"{folder} holds {what}", hint="choose another folder, or start over with --fresh"
        )
    write_json(mark, asdict(size))


def _fix_key(cache: Path) -> None:
    """Give a new cache a known key: splits follow the keys of patients, and phantoms need no pseudonyms."""
    if not cache.exists():
        with storage_errors("the demo's cache"):
            cache.mkdir(parents=True, mode=0o700)
        write_atomic(cache / "site.key", hashlib.sha256(b"medssl demo").digest())


def _json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def first_report(folder: Path) -> dict[str, Any]:
    """What the first ingest into the demo's cache reported; a repeated one would only count duplicates.

    Args:
        folder: Of the demo.
    """
    reports: Sequence[Path] = sorted((folder / CACHE / "reports").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return _json(reports[0]) if reports else {}
