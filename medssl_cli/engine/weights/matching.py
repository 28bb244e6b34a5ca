"""Compare the encoder in a file with the backbone that it should become, tensor by tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from medssl_cli.base.errors import UsageError
from medssl_cli.engine.weights.forms import same
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import Named

COUNTER: Final = "num_batches_tracked"
"""Counter of batch norms; files of old versions of torch lack it, and nothing depends on it."""


@dataclass(frozen=True)
class Match:
    """What of a backbone a file has.

    Args:
        weights: Weights under our names, in float32; integer buffers are our own.
        loaded: Names taken as they are.
        adapted: Names whose input channels were changed.
        missing: Names that the file lacks.
        misshapen: Names whose shape does not fit.
        unexpected: Names that the backbone has not.
        num_parameters: Number of parameters of the backbone; statistics of batch norms are none.
        num_covered: How many of these are in `weights`.
    """

    weights: dict[str, Tensor]
    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unexpected: tuple[str, ...]
    num_parameters: int
    num_covered: int

    @property
    def is_complete(self) -> bool:
        """Whether every parameter is covered."""
        return not self.missing and not self.misshapen


class _WithoutParameters(TorchFunctionMode):
    """Modules built inside have parameters without memory, but the buffers that they compute."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.empty, torch.zeros, torch.ones):
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


def skeleton(backbone: Named, *, in_channels: int) -> nn.Module:
    """A backbone in no time and no memory: its tensors have names and shapes, integer buffers their values too.

    Raises:
        UsageError: `E_UNKNOWN_NAME`, `E_RECIPE`.
    """
    with _WithoutParameters():
        return build_backbone(backbone, in_channels=in_channels)


def adapt_channels(weight: Tensor, num_channels: int) -> Tensor:
    """Kernels for another number of image channels, with the same response to channels that are all alike.

    Args:
        weight: [C_out, C_in, X, Y, Z].
        num_channels: Wanted C_in.

    Returns:
        The sum over C_in, divided by `num_channels` and repeated as often.
    """
    if weight.shape[1] == num_channels:
        return weight
    one = weight.sum(dim=1, keepdim=True) / num_channels
    return one.expand(-1, num_channels, *(-1 for _ in weight.shape[2:])).contiguous()


def match_encoder(
    encoder: Mapping[str, Tensor], backbone: Named, *, in_channels: int, inputs: tuple[str, ...]
) -> Match:
    """Take what fits.

    Args:
        encoder: Encoder from the file, under our names.
        backbone: What it should become.
        in_channels: Number of channels of the images that the backbone will see.
        inputs: Names whose second axis is the image's channels.

    Raises:
        UsageError: `E_WEIGHTS_FORM`, no such backbone can be built, or a table that follows from the architecture
            differs: the weights belong to another one.
    """
    try:
        network = skeleton(backbone, in_channels=in_channels)
    except UsageError as error:
        raise UsageError("E_WEIGHTS_FORM", f"its sizes make no {backbone.name}") from error
    expected = dict(network.state_dict())
    groups: dict[str, list[str]] = {"loaded": [], "adapted": [], "missing": [], "misshapen": []}
    weights: dict[str, Tensor] = {}
    for name, wanted in expected.items():
        given = encoder.get(name)
        is_parameter = wanted.is_floating_point()
        if name.endswith(COUNTER):
            weights[name] = (wanted if given is None else given.to(wanted.dtype)).contiguous()
            groups["loaded"] += [name] * (given is not None)
        elif not is_parameter and (given is None or same(given, wanted)):
            weights[name] = wanted.contiguous()
            groups["loaded"] += [name] * (given is not None)
        elif not is_parameter:
            raise UsageError("E_WEIGHTS_FORM", f"{name} is not what follows from the architecture")
        elif given is None:
            groups["missing"].append(name)
        elif given.shape == wanted.shape:
            weights[name] = given.float().contiguous()
            groups["loaded"].append(name)
        elif name in inputs and (fitted := adapt_channels(given.float(), in_channels)).shape == wanted.shape:
            weights[name] = fitted
            groups["adapted"].append(name)
        else:
            groups["misshapen"].append(name)
    parameters = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return Match(
        weights=weights,
        **{kind: tuple(names) for kind, names in groups.items()},
        unexpected=tuple(sorted(set(encoder) - set(expected))),
        num_parameters=sum(parameters.values()),
        num_covered=sum(count for name, count in parameters.items() if name in weights),
    )
