"""What trainings say on stdout when they end."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medssl_cli.engine.finetune import FinetuneSummary
    from medssl_cli.engine.pretrain import PretrainSummary


def pretraining_text(summary: "PretrainSummary", root: Path) -> str:
    """How a pre-training ended, and what to do next."""
    verdict = "below" if summary.has_learnt else "NOT below"
    lines = [f"loss {summary.loss:.4f} after {summary.steps} steps, {verdict} every trivial predictor:"]
    lines += [f"  {name}: {value:.4f}" for name, value in summary.baselines.items()]
    lines += [f"{code}: see {root / 'page.html'}" for code in summary.alarms]
    lines += [f"encoder: {root / 'encoder.safetensors'}", f"page: {root / 'page.html'}"]
    return "\n".join([*lines, f"next: medssl finetune --task TASK --init {root}"])


def finetuning_text(summary: "FinetuneSummary", root: Path) -> str:
    """How a fine-tuning ended, and what to do next."""
    best = "unknown" if summary.best_score is None else f"{summary.best_score:.4f}"
    return (
        f"best validation {summary.score} {best} at step {summary.best_step} of {summary.steps}, "
        f"{summary.num_train_patients} training patients\n"
        f"page: {root / 'page.html'}\n"
        f"next: medssl evaluate {root}" + f"   then: medssl export {root} --install" * summary.is_exportable
    )


def folds_document(root: Path, summaries: "Mapping[int, FinetuneSummary]") -> dict[str, Any]:
    """How the trainings of several folds ended, for JSON."""
    return {"root": str(root), "folds": {str(fold): each.document() for fold, each in summaries.items()}}


def folds_text(root: Path, summaries: "Mapping[int, FinetuneSummary]") -> str:
    """How the trainings of several folds ended, and what to do next."""
    lines = []
    for fold, each in summaries.items():
        best = "unknown" if each.best_score is None else f"{each.best_score:.4f}"
        lines.append(f"fold {fold}: best validation {each.score} {best} at step {each.best_step} of {each.steps}")
    return "\n".join([*lines, f"next: medssl evaluate {root}"])
