"""Several fine-tuned networks as one: the mean of their probabilities.

Its answers are logits again, of that mean, so that whatever reads a network's answers reads an ensemble's:

    softmax:  z = log mean_k softmax(z_k)
    sigmoid:  z = log mean_k sigmoid(z_k) - log mean_k sigmoid(-z_k)
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import sha256_json
from medssl_cli.engine.finetuned import FineTunedRun, load_finetuned
from medssl_cli.engine.fold_runs import folds_of
from medssl_cli.heads import Head
from medssl_cli.tasks import TaskLosses, TaskNetwork

Activation = Literal["softmax", "sigmoid"]


class Ensemble(nn.Module, TaskNetwork):
    """The mean of the probabilities of several networks.

    Args:
        members: Networks of one task.
        activation: How their answers become probabilities; softmax runs over axis 1.
    """

    def __init__(self, members: Sequence[nn.Module], activation: Activation) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._activation: Activation = activation

    @property
    def activation(self) -> Activation:
        """See `TaskNetwork.activation`."""
        return self._activation

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits of the mean, of the inputs and the shape of a member's."""
        answers = [member(*inputs) for member in self.members]
        if self._activation == "softmax":
            return log_mean([answer.log_softmax(dim=1) for answer in answers])
        return log_mean([logsigmoid(answer) for answer in answers]) - log_mean([logsigmoid(-one) for one in answers])

    def loss(self, logits: Tensor, targets: Tensor) -> TaskLosses:
        """An ensemble is not trained."""
        raise NotImplementedError("the members of an ensemble are trained one by one")

    def exported(self, head: Head) -> nn.Module:
        """See `TaskNetwork.exported`: that of each member."""
        members = [member.exported(head) if isinstance(member, TaskNetwork) else member for member in self.members]
        return Ensemble(members, self._activation).eval()


def log_mean(logarithms: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of numbers whose logarithms are given."""
    return torch.stack(list(logarithms)).logsumexp(dim=0) - math.log(len(logarithms))


def load_folds(parent: Path) -> list[FineTunedRun]:
    """The best network of every fold that was begun.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_RECIPE`.
        GateError: `E_RUN_CORRUPT`, `E_CHECKPOINT_CORRUPT`.
    """
    return [load_finetuned(path) for _, path in sorted(folds_of(parent)[1].items())]


def ensemble_of(parent: Path, members: Sequence[FineTunedRun]) -> FineTunedRun:
    """The networks of several folds as one run, which has seen whomever one of them has.

    Args:
        parent: Folder of the folds.
        members: As `load_folds` gives them.

    Raises:
        UsageError: `E_TASK_EXPORT`, answers of the task have no mean.
    """
    first = members[0]
    activation = first.network.activation if isinstance(first.network, TaskNetwork) else None
    if activation is None:
        raise UsageError(
            "E_TASK_EXPORT",
            f"answers of the task {first.recipe.task.name} are no probabilities that could be averaged over folds",
            hint="take the run of one fold",
        )
    return FineTunedRun(
        parent,
        first.recipe,
        first.classes,
        Ensemble([member.network for member in members], activation).eval(),
        _manifest([member.manifest for member in members]),
        sha256_json([member.weights_sha256 for member in members]),
        in_channels=first.in_channels,
        is_exportable=first.is_exportable,
    )


def _manifest(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everybody whom one of the folds has seen; who validates in one fold is learnt from in the others."""
    splits = {
        part: list({entry["item"]: entry for each in manifests for entry in each["splits"].get(part, ())}.values())
        for part in ("train", "val", "test")
    }
    return {
        "arguments": manifests[0]["arguments"],
        "splits": splits,
        "sha256": sha256_json([each["sha256"] for each in manifests]),
    }
