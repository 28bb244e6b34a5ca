"""Pre-trained weights on their way into a task's network, with a report and no silent misses."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from medssl_cli.engine.runs import open_run
from medssl_cli.errors import UsageError
from medssl_cli.recipe import Named


@dataclass(frozen=True)
class Encoder:
    """Weights of a backbone, what it is, and the patients whose images (not labels) it has seen."""

    backbone: Named
    weights: dict[str, Any]
    sha256: str
    patients: frozenset[str]


def load_encoder(root: Path) -> Encoder:
    """The backbone of a finished pre-training run.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`.
    """
    from safetensors import safe_open

    from medssl_cli.files import sha256_file

    run = open_run(root)
    if not run.encoder_path.is_file():
        raise UsageError(
            "E_RUN_UNFINISHED",
            f"{root} has no encoder.safetensors yet",
            hint="run its medssl pretrain command again until it is finished",
        )
    with safe_open(run.encoder_path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        backbone = Named.model_validate(json.loads(file.metadata()["backbone"]))
    patients = frozenset(entry["patient"] for entry in run.manifest["splits"]["train"])
    return Encoder(backbone, weights, sha256_file(run.encoder_path), patients)


def initialise(backbone: nn.Module, encoder: Encoder) -> str:
    """Copy an encoder's weights into a backbone of the same architecture.

    Returns:
        One line that says what was transferred.

    Raises:
        UsageError: `E_WEIGHTS_MISMATCH` unless every tensor fits.
    """
    own = backbone.state_dict()
    missing = sorted(set(own) - set(encoder.weights))
    unexpected = sorted(set(encoder.weights) - set(own))
    misshapen = sorted(
        name for name in set(own) & set(encoder.weights) if own[name].shape != encoder.weights[name].shape
    )
    if missing or unexpected or misshapen:
        raise UsageError(
            "E_WEIGHTS_MISMATCH",
            f"{len(missing)} tensors missing, {len(unexpected)} unexpected, {len(misshapen)} of another shape",
            hint="the encoder's backbone and the recipe's must be the same",
        )
    backbone.load_state_dict(encoder.weights)
    count = sum(tensor.numel() for tensor in encoder.weights.values())
    return f"{len(own)} tensors, {count / 1e6:.2f} M parameters: the whole encoder; the decoder starts anew"
