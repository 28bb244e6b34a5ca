"""`medssl weights export`: our encoder in the file that another project loads, names, shapes and all."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import sha256_file, write_atomic, write_json
from medssl_cli.engine.checkpoints import unprefixed
from medssl_cli.engine.randomness import Purpose, implicit_randomness
from medssl_cli.engine.runs import LOCK, open_run
from medssl_cli.engine.tensor_files import read_tensors, tensor_bytes
from medssl_cli.engine.weights import DECODER, Encoder, load_encoder, require_fit
from medssl_cli.engine.weights.importing import reverse_axes
from medssl_cli.engine.weights.matching import skeleton
from medssl_cli.engine.weights.nnunet import NNUNET, fresh_decoder, plan, with_aliases
from medssl_cli.nn.nnunet import NORM
from medssl_cli.recipe import Data

TARGETS: Final = ("monai-swinunetr", "nnunet")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: The file with the weights.
        sha256: SHA-256 of the file.
        num_tensors: Number of tensors in it.
        num_fresh: How many of these are random: a decoder, which pre-training does not have.
        plan: The file with nnU-Net's plan, or None.
    """

    path: Path
    sha256: str
    num_tensors: int
    num_fresh: int
    plan: Path | None = None


def export_weights(source: Path, path: Path, *, target: str, out_channels: int) -> Exported:
    """Write an encoder, with a decoder that makes it a whole network, under the names of another project.

    Args:
        source: Run of `medssl pretrain`, or what `medssl weights import` wrote.
        path: `.safetensors`, or `.pt` or `.pth` as torch writes them.
        target: One of `TARGETS`.
        out_channels: Classes of the network, background included.

    Raises:
        UsageError: `E_OUTPUT_EXISTS`, `E_USAGE`, `E_WEIGHTS_FORM`, and those of `load_encoder`.
    """
    suffixes = (".pt", ".pth") if target == "nnunet" else (".pt", ".pth", ".safetensors")
    if target not in TARGETS:
        raise UsageError("E_USAGE", f"--as {target} is not among: {', '.join(TARGETS)}")
    if path.suffix not in suffixes:
        raise UsageError("E_USAGE", f"the file's name must end in one of: {', '.join(suffixes)}")
    if path.exists():
        raise UsageError("E_OUTPUT_EXISTS", f"{path} exists already")
    encoder = load_encoder(source)
    require_fit(skeleton(encoder.backbone, in_channels=encoder.in_channels).state_dict(), encoder.weights)
    if target == "nnunet":
        return _export_nnunet(encoder, source, path, out_channels)
    return _export_swinunetr(encoder, source, path, out_channels)


def _export_swinunetr(encoder: Encoder, source: Path, path: Path, out_channels: int) -> Exported:
    from monai.networks.nets import SwinUNETR

    if encoder.backbone.name != "swinunetr":
        raise UsageError("E_WEIGHTS_FORM", f"{encoder.backbone.name} is no encoder of a SwinUNETR")
    options = {name: value for name, value in encoder.backbone.options.items() if name != "use_checkpoint"}
    with implicit_randomness(0, Purpose.INITIALISATION):
        network = SwinUNETR(encoder.in_channels, out_channels, **{"use_v2": True, **options})
    state = network.state_dict()
    known = _decoder_of(source, lambda name, tensor: name in state and state[name].shape == tensor.shape)
    if encoder.task is not None:
        own = unprefixed("decoder", encoder.task.weights)
        known = {name: own[name] for name in state if name in own and own[name].shape == state[name].shape}
    fresh = set(state) - set(encoder.weights) - set(known)
    digest = _write(path, {**state, **encoder.weights, **known})
    return Exported(path, digest, len(state), len(fresh))


def _export_nnunet(encoder: Encoder, source: Path, path: Path, out_channels: int) -> Exported:
    """nnU-Net asks its file for all names of the network, aliases included; its arrays are [Z, Y, X]."""
    if encoder.backbone.name not in NNUNET:
        raise UsageError("E_WEIGHTS_FORM", f"{encoder.backbone.name} is no encoder of nnU-Net")
    if (norm := encoder.backbone.options.get("norm", NORM)) != NORM:
        raise UsageError("E_WEIGHTS_FORM", f"the encoder's norm is {norm}; weights for nnU-Net need {NORM}")
    with implicit_randomness(0, Purpose.INITIALISATION):
        decoder = fresh_decoder(encoder.backbone, out_channels)
    known = _decoder_of(source, lambda name, tensor: name in decoder and decoder[name].shape == tensor.shape)
    ours = {f"encoder.{name}": tensor for name, tensor in encoder.weights.items()} | decoder | known
    names = with_aliases({name: reverse_axes(tensor) for name, tensor in ours.items()})
    digest = _write(path, {"network_weights": names})
    plan_path = path.with_suffix(".plan.json")
    data: Data | None = open_run(source).recipe.data if (source / LOCK).is_file() else None
    write_json(plan_path, plan(encoder.backbone, data), is_output=True)
    return Exported(path, digest, len(names), len(set(decoder) - set(known)), plan_path)


def _decoder_of(source: Path, fits: Callable[[str, Tensor], bool]) -> dict[str, Tensor]:
    """A decoder that was imported together with the encoder; its last layer only if the classes are as many."""
    path = source / DECODER
    if not path.is_file():
        return {}
    try:
        tensors, _ = read_tensors(path)
    except ValueError as error:
        raise UsageError("E_WEIGHTS_FILE", f"{path.name} is no intact safetensors file") from error
    return {name: tensor for name, tensor in tensors.items() if fits(name, tensor)}


def _write(path: Path, document: dict[str, Any]) -> str:
    if path.suffix == ".safetensors":
        write_atomic(path, tensor_bytes(document), is_output=True)
    else:
        buffer = io.BytesIO()
        torch.save(document, buffer)
        write_atomic(path, buffer.getvalue(), is_output=True)
    return sha256_file(path)
