"""A fine-tuned run, ready to predict."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import sha256_json
from medssl_cli.engine.build import build_task
from medssl_cli.engine.checkpoints import (
    refuse_foreign_state,
    require_finite_weights,
    sha256_tensor,
    unprefixed,
)
from medssl_cli.engine.runs import Run, damaged, open_run, read_document
from medssl_cli.recipe import TaskRecipe
from medssl_cli.tasks import SupervisionBase, TaskNetwork, supervision_of


@dataclass(frozen=True)
class FineTunedRun:
    """A finished (or at least validated) run, ready to predict."""

    root: Path
    recipe: TaskRecipe
    classes: dict[int, str]
    network: nn.Module
    manifest: dict[str, Any]
    weights_sha256: str
    in_channels: int = 1
    is_exportable: bool = True


def load_finetuned(root: Path) -> FineTunedRun:
    """The best network of a fine-tuning run.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_RECIPE`.
        GateError: `E_RUN_CORRUPT`, `E_CHECKPOINT_CORRUPT`.
    """
    run = open_run(root)
    if not isinstance(run.recipe, TaskRecipe):
        raise UsageError("E_NO_RUN", f"{root} is a pre-training run", hint="name a run of medssl finetune")
    checkpoint = run.checkpoints.load_best()
    if checkpoint is None:
        raise UsageError("E_RUN_UNFINISHED", f"{root} has not been validated yet", hint="let medssl finetune go on")
    network = build_task(run.recipe)
    weights = unprefixed("network", checkpoint.tensors)
    with refuse_foreign_state():
        network.load_state_dict(weights)
    require_finite_weights(weights)
    digest = sha256_json({name: sha256_tensor(value) for name, value in sorted(weights.items())})
    supervision = supervision_of(run.recipe)
    learnt = _learnt(run, supervision)
    if learnt and isinstance(network, TaskNetwork):
        network.learnt = learnt
    return FineTunedRun(
        root,
        run.recipe,
        supervision.classes,
        network.eval(),
        run.manifest,
        digest,
        in_channels=len(run.recipe.data.rules),
        is_exportable=supervision.is_exportable,
    )


def _learnt(run: Run, supervision: SupervisionBase) -> dict[str, Any]:
    """What the run has learnt of reading answers; nothing of runs without it.

    Raises:
        GateError: `E_RUN_CORRUPT`.
    """
    if not run.learnt_path.is_file():
        return {}
    document = read_document(run.learnt_path)
    try:
        supervision.require_learnt(document)
    except ValueError as error:
        raise damaged(run.learnt_path.name) from error
    return document
