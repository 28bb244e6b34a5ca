"""From the names and the options of a backbone and a decoder in a recipe to networks, within bounds."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from medssl_cli.base import plugins
from medssl_cli.base.errors import UsageError
from medssl_cli.nn.axes import MAX_KERNEL
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.decoder import Decoder, UNetDecoder, VoxelDecoder
from medssl_cli.nn.swinunetr_decoder import SwinUNETRDecoder
from medssl_cli.recipe import Named

DECODER_NORM: Final = "instance"
"""Norm of a decoder where the recipe names a norm neither for it nor for its backbone."""
MAX_PARAMETERS: Final = 2**33
MAX_NUMBER: Final = 2**13
MAX_LEVELS: Final = 32
MAX_WORDS: Final = 160
IMPOSSIBLE: Final = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)


def build_backbone(backbone: Named, *, in_channels: int = 1) -> Backbone:
    """A backbone by name. Its options may come from a file of unknown origin: what they ask for is bounded.

    Raises:
        UsageError: `E_UNKNOWN_NAME` or `E_RECIPE`.
    """
    module, options = plugins.load("backbone", backbone.name), backbone.options
    if "in_channels" in options:
        raise UsageError(
            "E_RECIPE",
            f"backbone {backbone.name}: in_channels is no option, it follows from the images",
            hint="leave backbone.in_channels out",
        )
    numbers = _require_bounded(options, backbone.name)
    _refuse_booleans(module.build, options, backbone.name)
    try:
        # At most so many weights: the widest layer, the largest kernel, as often as all numbers together say.
        kernel = MAX_KERNEL if "kernel_sizes" in options else 3
        if max(numbers, default=0) ** 2 * kernel**3 * sum(numbers) > MAX_PARAMETERS:
            with torch.device("meta"):
                sketch: Backbone = module.build(in_channels, **options)
            if sum(parameter.numel() for parameter in sketch.parameters()) > MAX_PARAMETERS:
                raise ValueError(f"more than {MAX_PARAMETERS:.0e} parameters")
        built: Backbone = module.build(in_channels, **options)
        built.in_channels = in_channels
    except UsageError:
        raise
    except (*IMPOSSIBLE, MemoryError) as error:
        raise UsageError("E_RECIPE", f"backbone {backbone.name}: {_short(error)}") from error
    built.named_norm = options.get("norm")
    return built


def build_decoder(options: Decoder, backbone: Backbone, out_channels: int) -> VoxelDecoder:
    """A decoder for the feature maps of a backbone, with the norm that the recipe names for it.

    Args:
        options: Its name and shape.
        backbone: Backbone of any kind.
        out_channels: Outputs per voxel.

    Raises:
        ValueError: Options and backbone do not go together.
    """
    dims = backbone.spatial_dims
    if options.name == "swinunetr":
        return SwinUNETRDecoder(backbone.channels, backbone.strides, out_channels, spatial_dims=dims)
    shape = options.model_dump(exclude={"name"})
    shape["norm"] = options.norm or backbone.named_norm or DECODER_NORM
    return UNetDecoder(backbone.channels, backbone.strides, out_channels, spatial_dims=dims, **shape)


def _require_bounded(options: Any, name: str) -> list[int]:
    """All whole numbers among the options of a backbone."""
    found: list[int] = []
    level = [options]
    while level:
        part = level.pop()
        if isinstance(part, int) and not isinstance(part, bool):
            found.append(part)
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ()
        if len(inner) > MAX_LEVELS or (found and abs(found[-1]) > MAX_NUMBER):
            raise UsageError(
                "E_RECIPE", f"backbone {name}: an option has more than {MAX_LEVELS} parts, or exceeds {MAX_NUMBER}"
            )
        level.extend(inner)
    return found


def _refuse_booleans(build: Callable[..., Any], options: Mapping[str, Any], name: str) -> None:
    """Refuse `true` and `false` for an option that is no yes or no: Python takes them for 1 and 0."""
    known = inspect.signature(build).parameters
    for key, value in options.items():
        kind = known[key].annotation if key in known else inspect.Parameter.empty
        takes_it = kind in (bool, inspect.Parameter.empty) or bool in typing.get_args(kind)
        if isinstance(value, bool) and not takes_it:
            raise UsageError("E_RECIPE", f"backbone {name}: {key} is no yes or no (got {value})")


def _short(error: Exception) -> str:
    """The first line of what a library says, or the name of its exception."""
    return str(error).partition("\n")[0][:MAX_WORDS] or type(error).__name__
