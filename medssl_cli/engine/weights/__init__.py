"""Pre-trained weights on their way into a task's network, with a report and no silent misses."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import nn

from medssl_cli.engine.runs import open_run
from medssl_cli.errors import UsageError
from medssl_cli.recipe import Named

ENCODER: Final = "encoder.safetensors"
DECODER: Final = "decoder.safetensors"
PROJECTOR: Final = "projector.safetensors"
RECORD: Final = "weights.json"
FREE_OPTIONS: Final = ("use_checkpoint",)


@dataclass(frozen=True)
class Encoder:
    """Weights of a backbone and what it is.

    Args:
        backbone: Name and options.
        weights: Its tensors by name.
        sha256: Of the file.
        patients: Whose images it has seen; None if nobody knows.
        in_channels: Of its images.
        labelled_patients: Whose labels it has seen too.
    """

    backbone: Named
    weights: dict[str, Any]
    sha256: str
    patients: frozenset[str] | None
    in_channels: int = 1
    labelled_patients: frozenset[str] = frozenset()

    def backbone_for(self, wanted: Named) -> Named:
        """This encoder's backbone, with those options of a recipe's that change no weight."""
        if wanted.name != self.backbone.name:
            return self.backbone
        kept = {name: wanted.options[name] for name in FREE_OPTIONS if name in wanted.options}
        return Named(**{**self.backbone.model_dump(), **kept})


def load_encoder(path: Path) -> Encoder:
    """The encoder of a finished pre-training run, of a folder that `medssl weights import` wrote, or in a file.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_WEIGHTS_FILE`.
    """
    if path.is_file():
        return _read(path, None)
    if (path / RECORD).is_file():
        return _read(path / ENCODER, None)
    run = open_run(path)
    if not run.encoder_path.is_file():
        raise UsageError(
            "E_RUN_UNFINISHED",
            f"{path} has no encoder.safetensors yet",
            hint="run its medssl pretrain command again until it is finished",
        )
    splits = run.manifest["splits"]
    seen, labelled = (frozenset(entry["patient"] for entry in splits.get(name, ())) for name in ("train", "labelled"))
    return replace(_read(run.encoder_path, seen), labelled_patients=labelled)


def _read(path: Path, patients: frozenset[str] | None) -> Encoder:
    from safetensors import SafetensorError, safe_open

    from medssl_cli.files import sha256_file

    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            described = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UsageError(
            "E_WEIGHTS_FILE",
            f"{path.name} is no intact safetensors file",
            hint="weights of other projects enter through medssl weights import",
        ) from error
    if "backbone" not in described:
        raise UsageError(
            "E_WEIGHTS_FILE",
            f"{path.name} does not say which backbone it is of",
            hint="weights of other projects enter through medssl weights import",
        )
    backbone = Named.model_validate(json.loads(described["backbone"]))
    return Encoder(backbone, weights, sha256_file(path), patients, int(described.get("in_channels", 1)))


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
    return f"{len(own)} tensors, {count / 1e6:.2f} M parameters: the whole encoder; the rest starts anew"
