"""The forms that published weights come in: from the names in a file to a backbone of ours and the names in it.

A form says how to recognise a file, what its parts are, and which backbone has its weights. A new one is one more entry
in `FORMS`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from torch import Tensor

from medssl_cli.base.errors import UsageError
from medssl_cli.engine.weights.reading import BRANCHES
from medssl_cli.nn.axes import MAX_KERNEL, shortest
from medssl_cli.nn.backbones.resnet import BLOCKS, BOTTLENECK_FROM
from medssl_cli.recipe import Named

Tensors = Mapping[str, Tensor]
PREFIXES: Final = ("module", "_orig_mod", "backbone", "model", "trunk", "intra", "_feature_blocks", "resnet")
PROJECTOR: Final = re.compile(r"proj_head\.|projection_head\.|prototypes|layer\d+(\.\d+)?\.(weight|bias)$")
# Names of Hugging Face's ResNet, and torchvision's.
HUGGING_FACE: Final = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^(layer\d\.\d+)\.layer\.0\.convolution\.", r"\1.conv1."),
    (r"^(layer\d\.\d+)\.layer\.0\.normalization\.", r"\1.bn1."),
    (r"^(layer\d\.\d+)\.layer\.1\.convolution\.", r"\1.conv2."),
    (r"^(layer\d\.\d+)\.layer\.1\.normalization\.", r"\1.bn2."),
    (r"^(layer\d\.\d+)\.layer\.2\.convolution\.", r"\1.conv3."),
    (r"^(layer\d\.\d+)\.layer\.2\.normalization\.", r"\1.bn3."),
    (r"^(layer\d\.\d+)\.shortcut\.convolution\.", r"\1.downsample.0."),
    (r"^(layer\d\.\d+)\.shortcut\.normalization\.", r"\1.downsample.1."),
)
SWIN_DEPTHS, SWIN_HEADS = [2, 2, 2, 2], [3, 6, 12, 24]


@dataclass(frozen=True)
class Parts:
    """A file's tensors under the names that our networks give them.

    Args:
        encoder: What becomes a backbone.
        decoder: Decoder of a supervised network.
        projector: Projector of a self-supervised method.
        unexpected: Everything else.
        num_aliases: Further names of tensors that are here already.
        num_dropped: Tensors of the branch that was not chosen.
    """

    encoder: dict[str, Tensor] = field(default_factory=dict)
    decoder: dict[str, Tensor] = field(default_factory=dict)
    projector: dict[str, Tensor] = field(default_factory=dict)
    unexpected: dict[str, Tensor] = field(default_factory=dict)
    num_aliases: int = 0
    num_dropped: int = 0


@dataclass(frozen=True)
class Form:
    """One family of files.

    Args:
        name: Name of the backbone.
        sign: A name that matches is found in every file of this form and in no other.
        encoder: Names of the encoder; group 1 is the name in our backbone.
        decoder: Names of the decoder.
        inputs: Names in the encoder whose second axis is the image's channels; the first tells their number.
        options: The backbone's options, from encoder and decoder.
    """

    name: str
    sign: re.Pattern[str]
    encoder: re.Pattern[str]
    decoder: re.Pattern[str]
    inputs: tuple[str, ...]
    options: Callable[[Tensors, Tensors], dict[str, Any]]

    def describe(self, parts: Parts) -> tuple[Named, int]:
        """The backbone that has a file's weights, and how many channels its images have.

        Raises:
            UsageError: `E_WEIGHTS_FORM`.
        """
        first = parts.encoder.get(self.inputs[0])
        if first is None or first.ndim < 4:
            raise UsageError("E_WEIGHTS_FORM", f"its encoder has no {self.inputs[0]}, which a {self.name} begins with")
        options = self.options(parts.encoder, parts.decoder)
        if first.ndim == 4:
            options["spatial_dims"] = 2
        return Named(name=self.name, **options), int(first.shape[1])


def canonical(name: str) -> tuple[str, str]:
    """A name without what wrappers put before it, and the branch that it belonged to; aliases become the one name."""
    branch = ""
    head, _, rest = name.partition(".")
    while head in PREFIXES or head in BRANCHES:
        branch = head if head in BRANCHES else branch
        name = rest
        head, _, rest = name.partition(".")
    name = re.sub(r"^swin_vit\.", "swinViT.", name)
    name = re.sub(r"^decoder\.encoder\.", "encoder.", name)
    name = re.sub(r"^encoder\.stages\.(\d)\.layers\.", lambda match: f"layer{int(match[1]) + 1}.", name)
    for pattern, ours in HUGGING_FACE:
        name = re.sub(pattern, ours, name)
    name = re.sub(r"\.all_modules\.0\.", ".conv.", name)
    return branch, re.sub(r"\.all_modules\.\d+\.", ".norm.", name)


def sort_tensors(tensors: Tensors, branch: str = "") -> tuple[Form, Parts]:
    """Recognise a file's form and give every tensor its place.

    Args:
        tensors: As the file names them, aliases included.
        branch: "student" or "teacher", where a file has both.

    Raises:
        UsageError: `E_WEIGHTS_FORM`, `E_WEIGHTS_BRANCH`, `E_WEIGHTS_FILE` if two tensors claim one name.
    """
    places = {name: canonical(name) for name in tensors}
    found = {place[0] for place in places.values() if not PROJECTOR.match(place[1])} - {""}
    if len(found) > 1 and not branch:
        raise UsageError("E_WEIGHTS_BRANCH", "it holds a student and a teacher")
    kept = {"", *(found if len(found) == 1 else {branch})}
    names = {place[1] for place in places.values()}
    form = next((form for form in FORMS if any(form.sign.match(name) for name in names)), None)
    if form is None:
        raise UsageError("E_WEIGHTS_FORM", f"its {len(tensors)} tensors have names of no network that is known here")
    parts, num_dropped, num_aliases = Parts(), 0, 0
    for name, tensor in tensors.items():
        origin, short = places[name]
        if PROJECTOR.match(short):
            num_aliases += _is_known(parts.projector, f"{origin}.{short}".lstrip("."), tensor)
        elif origin not in kept:
            num_dropped += 1
        elif not tensor.numel():  # of a shape that costs nothing to claim
            parts.unexpected[short] = tensor
        elif match := form.encoder.match(short):
            num_aliases += _is_known(parts.encoder, match[1], tensor)
        else:
            group = parts.decoder if form.decoder.match(short) else parts.unexpected
            num_aliases += _is_known(group, short, tensor)
    return form, replace(parts, num_aliases=num_aliases, num_dropped=num_dropped)


def _is_known(group: dict[str, Tensor], name: str, tensor: Tensor) -> bool:
    """Put a tensor into its group; True if the same one was there under another of its names."""
    if name not in group:
        group[name] = tensor
        return False
    if group[name] is not tensor and not same(group[name], tensor):
        raise UsageError("E_WEIGHTS_FILE", f"two different tensors claim to be {name}")
    return True


def same(one: Tensor, other: Tensor) -> bool:
    """Whether shapes and values are equal, whatever the kinds of number."""
    return one.shape == other.shape and bool((one == other).all())


def _swinunetr_options(encoder: Tensors, _: Tensors) -> dict[str, Any]:
    """Width, depths and heads from shapes; whether it is version 2 from the convolutions before each stage."""
    options: dict[str, Any] = {"feature_size": int(encoder["swinViT.patch_embed.proj.weight"].shape[0])}
    depths, heads = [], []
    for stage in range(1, 5):
        tables = [
            tensor
            for name, tensor in encoder.items()
            if name.startswith(f"swinViT.layers{stage}.0.blocks.") and name.endswith("relative_position_bias_table")
        ]
        depths.append(len(tables))
        heads.append(int(tables[0].shape[-1]) if tables and tables[0].ndim else SWIN_HEADS[stage - 1])
    options |= {"depths": depths} if depths != SWIN_DEPTHS and all(depths) else {}
    options |= {"num_heads": heads} if heads != SWIN_HEADS else {}
    is_v2 = any(re.match(r"swinViT\.layers\dc\.", name) for name in encoder)
    return options if is_v2 else {**options, "use_v2": False}


def _nnunet_options(what: str, last: str) -> Callable[[Tensors, Tensors], dict[str, Any]]:
    """Options of an encoder whose levels are chains.

    Args:
        what: "num_convs" or "num_blocks".
        last: Pattern of the weight that tells a level's width; groups are the level and the position in it.
    """

    def options(encoder: Tensors, decoder: Tensors) -> dict[str, Any]:
        weights = {(int(m[1]), int(m[2])): encoder[m[0]] for name in encoder if (m := re.fullmatch(last, name))}
        levels = sorted({level for level, _ in weights})
        firsts = [next(weight for (at, _), weight in weights.items() if at == level) for level in levels]
        kernels = [_kernel(weight) for weight in firsts]
        strides = _strides(decoder, kernels)
        defaults = {
            "channels": [32, 64, 128, 256, 320, 320],
            "strides": [1, 2, 2, 2, 2, 2],
            "kernel_sizes": [3] * len(levels),
            what: [2] * 6 if what == "num_convs" else [1, 3, 4, 6, 6, 6],
        }
        found = {
            "channels": [int(weight.shape[0]) for weight in firsts],
            "strides": [shortest(stride) for stride in strides],
            "kernel_sizes": [shortest(kernel) for kernel in kernels],
            what: [sum(at == level for at, _ in weights) for level in levels],
        }
        return {name: value for name, value in found.items() if value != defaults[name]}

    return options


def _resnet_options(encoder: Tensors, _: Tensors) -> dict[str, Any]:
    """Depth from the blocks of each level and of what they are made, width from the stem."""
    blocks = tuple(
        len({m[1] for name in encoder if (m := re.match(rf"layer{level}\.(\d+)\.", name))}) for level in range(1, 5)
    )
    is_deep = "layer1.0.conv3.weight" in encoder
    depths = [each for each, number in BLOCKS.items() if number == blocks and (each >= BOTTLENECK_FROM) == is_deep]
    if not depths:
        known = ", ".join(map(str, BLOCKS))
        raise UsageError("E_WEIGHTS_FORM", f"its {blocks} blocks make no ResNet of {known} layers")
    stem = encoder["conv1.weight"]
    width = {} if len(stem) == 64 else {"width": len(stem)}
    return {"depth": depths[0], **width, **({"spatial_dims": 3} if stem.ndim == 5 else {})}


def _kernel(weight: Tensor) -> list[int]:
    """Size of a convolution's kernel along each axis."""
    sizes = [int(size) for size in weight.shape[2:]]
    if len(sizes) not in (2, 3) or any(size % 2 == 0 or size > MAX_KERNEL for size in sizes):
        raise UsageError(
            "E_WEIGHTS_FORM",
            f"it has kernels of {sizes} voxels: not supported, sizes must be odd and at most {MAX_KERNEL}",
        )
    return sizes


def _strides(decoder: Tensors, kernels: Sequence[list[int]]) -> list[list[int]]:
    """Strides of each level along each axis, from the decoder's up-samplings, coarse to fine.

    Without a decoder they are 2, as nnU-Net has them for images whose voxels are about cubic; where a kernel differs
    between axes, voxels are not, and nothing else tells the strides.
    """
    count, dims = len(kernels) - 1, len(kernels[0]) if kernels else 0
    strides = [[1] * dims]
    for index in reversed(range(count)):
        weight = decoder.get(f"decoder.transpconvs.{index}.weight")
        if weight is None and any(len(set(kernel)) > 1 for kernel in kernels):
            raise UsageError(
                "E_WEIGHTS_FORM",
                "its kernels differ between axes, and it has no decoder that would tell the strides: not supported",
            )
        strides.append([2] * dims if weight is None else [int(size) for size in weight.shape[2:]])
    return strides


FORMS: Final = (
    Form(
        name="swinunetr",
        sign=re.compile(r"swinViT\."),
        encoder=re.compile(r"((?:swinViT|encoder\d+)\..+)"),
        decoder=re.compile(r"decoder\d|out\."),
        inputs=(
            "swinViT.patch_embed.proj.weight",
            "encoder1.layer.conv1.conv.weight",
            "encoder1.layer.conv3.conv.weight",
        ),
        options=_swinunetr_options,
    ),
    Form(
        name="plainconv",
        sign=re.compile(r"encoder\.stages\.\d+\.0\.convs\."),
        encoder=re.compile(r"encoder\.(.+)"),
        decoder=re.compile(r"decoder\."),
        inputs=("stages.0.0.convs.0.conv.weight",),
        options=_nnunet_options("num_convs", r"stages\.(\d+)\.0\.convs\.(\d+)\.conv\.weight"),
    ),
    Form(
        name="resenc",
        sign=re.compile(r"encoder\.stages\.\d+\.blocks\."),
        encoder=re.compile(r"encoder\.(.+)"),
        decoder=re.compile(r"decoder\."),
        inputs=("stem.convs.0.conv.weight",),
        options=_nnunet_options("num_blocks", r"stages\.(\d+)\.blocks\.(\d+)\.conv1\.conv\.weight"),
    ),
    Form(
        name="resnet",
        sign=re.compile(r"layer1\.0\.conv1\.weight"),
        encoder=re.compile(r"((?:conv1|bn1|layer[1-4])\..+)"),
        decoder=re.compile(r"(?!)"),
        inputs=("conv1.weight",),
        options=_resnet_options,
    ),
)
