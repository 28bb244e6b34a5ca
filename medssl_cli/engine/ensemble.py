"""Several fine-tuned networks as one: the mean of their probabilities.

Its answers are logits again, of that mean, so that whatever reads a network's answers reads an ensemble's:

    softmax:  z = log mean_k softmax(z_k)
    sigmoid:  z = log mean_k sigmoid(z_k) - log mean_k sigmoid(-z_k)
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from medssl_cli.base.classes import Activation
from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import sha256_json
from medssl_cli.engine.finetuned import FineTunedRun, load_finetuned
from medssl_cli.engine.fold_runs import folds_of
from medssl_cli.heads import BoxesHead, FindingsHead, Head, LargestParts, MasksHead, OperatingPoint
from medssl_cli.tasks import TaskLosses, TaskNetwork, supervision_of

NAMED_HEADS: Final = (FindingsHead, BoxesHead)


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

    def forward(self, images: Tensor, is_present: Tensor | None = None, positions_mm: Tensor | None = None) -> Tensor:
        """Logits of the mean, of the shape of a member's. Inputs are a member's, by name: tracing needs names."""
        inputs = [each for each in (images, is_present, positions_mm) if each is not None]
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
    ensemble = Ensemble([member.network for member in members], activation).eval()
    ensemble.learnt = supervision_of(first.recipe).agreed([getattr(each.network, "learnt", {}) for each in members])
    return FineTunedRun(
        parent,
        first.recipe,
        first.classes,
        ensemble,
        _manifest([member.manifest for member in members]),
        weights_digest(members),
        in_channels=first.in_channels,
        is_exportable=first.is_exportable,
    )


def weights_digest(members: Sequence[FineTunedRun]) -> str:
    """Digest of the weights of several networks together."""
    return sha256_json([member.weights_sha256 for member in members])


def mean_head(heads: Sequence[Head]) -> Head:
    """How the answers of an ensemble are read: as those of each member, its operating points the mean of theirs.

    Each member's were chosen on validation images that it has not learnt from. No such images are left for the
    ensemble, which has learnt from all of them.

    Args:
        heads: Heads of the members.
    """
    first = heads[0]
    if isinstance(first, MasksHead):
        known = [head.largest for head in heads if isinstance(head, MasksHead) and head.largest is not None]
        return first.model_copy(update={"largest": LargestParts.of_most(known) if known else None})
    if not isinstance(first, NAMED_HEADS):
        return first
    points = {name: mean_point([head.operating_points[name] for head in heads if isinstance(head, NAMED_HEADS)])
              for name in first.names}  # fmt: skip
    return first.model_copy(update={"operating_points": points})


def mean_point(points: Sequence[OperatingPoint]) -> OperatingPoint:
    """The mean of operating points; each number of those that have it."""

    def mean(values: Sequence[float | None]) -> float | None:
        told = [value for value in values if value is not None]
        return math.fsum(told) / len(told) if told else None

    rules = {point.rule for point in points}
    return OperatingPoint(
        threshold=math.fsum(point.threshold for point in points) / len(points),
        rule=rules.pop() if len(rules) == 1 else "fixed",
        sensitivity=mean([point.sensitivity for point in points]),
        specificity=mean([point.specificity for point in points]),
        false_per_image=mean([point.false_per_image for point in points]),
        num_patients=sum(point.num_patients for point in points),
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
