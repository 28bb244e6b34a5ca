"""The whole road on phantoms, by the very commands that a user types, and what they leave behind."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import Exit
from medssl_cli.demo.cohort import Cohort

CACHE: Final = "medssl-cache"
PRETRAINING, SCRATCH, PRETRAINED = "runs/voco-tiny", "runs/heart-seg-scratch", "runs/heart-seg-voco-tiny"
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
        arguments: Arguments of `medssl`, relative to the demo's folder.
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


def read_document(path: Path) -> dict[str, Any]:
    """A JSON document that the demo or one of its commands wrote."""
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def first_report(folder: Path) -> dict[str, Any]:
    """What the first ingest into the demo's cache reported; a repeated one would only count duplicates.

    Args:
        folder: Folder of the demo.
    """
    reports: Sequence[Path] = sorted((folder / CACHE / "reports").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return read_document(reports[0]) if reports else {}
