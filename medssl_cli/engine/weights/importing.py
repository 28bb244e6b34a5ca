"""`medssl weights import`: a file of another project becomes a folder that `--init` takes like a run's."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from medssl_cli import __version__
from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.base.files import (
    publish_directory,
    remove_temporaries,
    sha256_file,
    storage_errors,
    temporary_directory,
    write_atomic,
    write_json,
)
from medssl_cli.engine.randomness import Purpose, implicit_randomness
from medssl_cli.engine.tensor_files import read_tensors, tensor_bytes
from medssl_cli.engine.weights import DECODER, ENCODER, PROJECTOR, RECORD
from medssl_cli.engine.weights.forms import Form, Parts, sort_tensors
from medssl_cli.engine.weights.matching import Match, match_encoder
from medssl_cli.engine.weights.reading import BRANCHES, Contents, read_untrusted
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import Named

MAX_INVENTED: Final = 10**8  # parameters that --allow-partial makes up for a file that has none of them
INVENTED_SHARE: Final = 10  # and how many for each that it has
COPY: Final = "copy.safetensors"
AXES: Final = ("xyz", "zyx")
# What `--as` may say: the backbone, its width, and whether there must be a decoder.
KINDS: Final[dict[str, tuple[str, int | None, bool]]] = {
    "voco-b": ("swinunetr", 48, False),
    "voco-l": ("swinunetr", 96, False),
    "voco-h": ("swinunetr", 192, False),
    "vocomni-b": ("swinunetr", 48, True),
    "vocomni-l": ("swinunetr", 96, True),
    "vocomni-h": ("swinunetr", 192, True),
    "swinunetr": ("swinunetr", None, False),
    "nnunet-plain": ("plainconv", None, False),
    "nnunet-resenc": ("resenc", None, False),
    "resnet": ("resnet", None, False),
}
# Outputs of VoComni's networks after background, by their authors' numbers 1 to 20.
VOCOMNI_CLASSES: Final = (
    "spleen",
    "right_kidney",
    "left_kidney",
    "gallbladder",
    "oesophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "veins",
    "pancreas",
    "right_adrenal_gland",
    "left_adrenal_gland",
    "liver_tumour",
    "pancreas_tumour",
    "kidney_tumour",
    "covid",
    "colon",
    "colon_cancer",
    "lung_cancer",
)
SWINUNETR_SCORES: Final = "out.conv.conv.bias"
# Digests that others published of files that they downloaded from https://huggingface.co/Luffy503/VoCo
PUBLISHED: Final = {
    "f80c4da2f81d700bdae3df188f2057eb": "VoCo_B_SSL_head.pt",
    "795095d1d43ef3808ec4c41798310136": "VoCo_L_SSL_head.pt",
    "76f95a474736b60bf5b8aad94643744d": "VoCo_H_SSL_head.pt",
    "de4160dc52436e2e437a4c0293822e5fd644f4858738aa14995866a2617fedcd": "VoCo_10k.pt",
}


@dataclass(frozen=True)
class Wishes:
    """What the caller says about a file.

    Args:
        kind: A key of `KINDS`, or "auto".
        branch: "student", "teacher" or empty.
        in_channels: Number of channels of the images that the backbone will see.
        axes: Order of the axes in the arrays that the weights were trained on; "zyx" turns the kernels of nnU-Net.
        allow_partial: Whether weights that the file lacks may be random.
    """

    kind: str = "auto"
    branch: str = ""
    in_channels: int = 1
    axes: str = "xyz"
    allow_partial: bool = False


@dataclass(frozen=True)
class Report:
    """What became of every tensor of a file; names are ours, but for `decoder`, `projector` and `unexpected`."""

    backbone: dict[str, Any]
    in_channels: int
    in_channels_of_file: int
    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unexpected: tuple[str, ...]
    decoder: tuple[str, ...]
    projector: tuple[str, ...]
    num_aliases: int
    num_dropped: int
    num_parameters: int
    num_covered: int
    wrappers: tuple[str, ...]
    source_sha256: str
    published_as: str
    notes: tuple[str, ...]
    encoder_sha256: str = ""

    @property
    def coverage(self) -> float:
        """Fraction of the encoder's parameters that the file has."""
        return self.num_covered / self.num_parameters

    def document(self) -> dict[str, Any]:
        """JSON."""
        return {**asdict(self), "coverage": self.coverage}


def import_weights(source: Path, out: Path, wishes: Wishes, *, show: Callable[[Report], None]) -> None:
    """Write the encoder of a file, and whatever else of it may be of use, into a new folder.

    Args:
        source: A file of any origin; it is opened by a child process only.
        out: Folder to make.
        wishes: What the caller says about the file.
        show: Told what became of every tensor, also when the file is refused for being incomplete.

    Raises:
        UsageError: `E_OUTPUT_EXISTS`, `E_NOT_FOUND`, `E_WEIGHTS_FILE`, `E_WEIGHTS_FORM`, `E_WEIGHTS_BRANCH`.
        GateError: `E_WEIGHTS_COVERAGE`.
    """
    if wishes.kind != "auto" and wishes.kind not in KINDS:
        raise UsageError("E_USAGE", f"--as {wishes.kind} is not among: auto, {', '.join(KINDS)}")
    if wishes.branch not in ("", *BRANCHES):
        raise UsageError("E_USAGE", f"--branch {wishes.branch} is not among: {', '.join(BRANCHES)}")
    if wishes.axes not in AXES:
        raise UsageError("E_USAGE", f"--axes {wishes.axes} is not among: {', '.join(AXES)}")
    if out.exists():
        raise UsageError("E_OUTPUT_EXISTS", f"{out} exists already")
    with _scratch(out) as folder:
        contents = read_untrusted(source, folder / COPY, branch=wishes.branch)
        tensors = _tensors(folder / COPY, contents)
        form, parts = sort_tensors(tensors, wishes.branch)
        if wishes.axes == "zyx":
            parts = _turned(form, parts)
        backbone, channels = form.describe(parts)
        backbone = _as_kind(wishes.kind, backbone, parts)
        match = match_encoder(parts.encoder, backbone, in_channels=wishes.in_channels, inputs=form.inputs)
        report = _report(backbone, channels, parts, match, contents, wishes, source)
        weights = match.weights
        if not match.is_complete:
            if not wishes.allow_partial:
                show(report)
                absent = [*match.missing, *match.misshapen]
                raise GateError(
                    "E_WEIGHTS_COVERAGE",
                    f"it has {report.num_covered} of {report.num_parameters} parameters; "
                    f"{len(absent)} tensors are absent or of another shape",
                )
            if report.num_parameters > max(MAX_INVENTED, INVENTED_SHARE * report.num_covered):
                raise UsageError("E_WEIGHTS_FORM", f"it has hardly any of the {report.num_parameters} parameters")
            weights = {**_fresh(backbone, wishes.in_channels), **weights}
        described = {"backbone": json.dumps(backbone.model_dump()), "in_channels": str(wishes.in_channels)}
        _save(weights, folder / ENCODER, described)
        _save(parts.decoder, folder / DECODER, {"classes": json.dumps(_classes(parts))})
        _save(parts.projector, folder / PROJECTOR, {})
        report = replace(report, encoder_sha256=sha256_file(folder / ENCODER))
        write_json(folder / RECORD, {"medssl": __version__, "file": source.name, **report.document()})
        (folder / COPY).unlink()
        if not publish_directory(folder, out):
            raise UsageError("E_OUTPUT_EXISTS", f"{out} exists already")
    show(report)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A private folder beside the result, gone afterwards unless it was published."""
    with storage_errors("the weights"):
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_temporaries(out.parent)
        folder = temporary_directory(out.parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tensors(path: Path, contents: Contents) -> dict[str, Tensor]:
    distinct, _ = read_tensors(path)
    return distinct | {alias: distinct[name] for alias, name in contents.aliases.items()}


def _turned(form: Form, parts: Parts) -> Parts:
    """Kernels for arrays [X, Y, Z] from kernels for arrays [Z, Y, X]."""
    if form.name == "swinunetr":
        raise UsageError("E_USAGE", "--axes is for weights of nnU-Net: those of MONAI know arrays [X, Y, Z] only")
    encoder, decoder = (
        {name: reverse_axes(tensor) for name, tensor in group.items()} for group in (parts.encoder, parts.decoder)
    )
    return replace(parts, encoder=encoder, decoder=decoder)


def reverse_axes(weight: Tensor) -> Tensor:
    """A convolution's weight [C_out, C_in, X, Y, Z] with its spatial axes in reverse; other tensors as they are."""
    axes = range(2, weight.ndim)
    return weight.permute(0, 1, *reversed(axes)).contiguous() if weight.ndim > 3 else weight


def _as_kind(kind: str, backbone: Named, parts: Parts) -> Named:
    """The backbone that a file must be of, to be what the caller says; VoCo's are all of version 2."""
    if kind == "auto":
        return backbone
    name, width, needs_decoder = KINDS[kind]
    found = int(backbone.options.get("feature_size", 0)) or None
    if backbone.name != name or (width is not None and width != found):
        size = f" of feature_size {found}" if found else ""
        raise UsageError("E_WEIGHTS_FORM", f"it holds a {backbone.name}{size}, not {kind}")
    if needs_decoder and not parts.decoder:
        raise UsageError("E_WEIGHTS_FORM", f"it has no decoder, which {kind} has")
    is_voco = width is not None
    return Named(**{k: v for k, v in backbone.model_dump().items() if k != "use_v2" or not is_voco})


def _report(
    backbone: Named, channels: int, parts: Parts, match: Match, contents: Contents, wishes: Wishes, source: Path
) -> Report:
    sha256 = sha256_file(source)
    with source.open("rb") as stream:
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return Report(
        backbone=backbone.model_dump(),
        in_channels=wishes.in_channels,
        in_channels_of_file=channels,
        loaded=match.loaded,
        adapted=match.adapted,
        missing=match.missing,
        misshapen=match.misshapen,
        unexpected=tuple(sorted((*match.unexpected, *parts.unexpected))),
        decoder=tuple(sorted(parts.decoder)),
        projector=tuple(sorted(parts.projector)),
        num_aliases=parts.num_aliases,
        num_dropped=parts.num_dropped,
        num_parameters=match.num_parameters,
        num_covered=match.num_covered,
        wrappers=contents.wrappers,
        source_sha256=sha256,
        published_as=PUBLISHED.get(md5, PUBLISHED.get(sha256, "")),
        notes=tuple(_notes(backbone, parts, wishes)),
    )


def _notes(backbone: Named, parts: Parts, wishes: Wishes) -> Iterator[str]:
    """What a person should know who goes on with these weights."""
    if parts.decoder:
        yield _about_decoder(backbone)
    if backbone.name == "swinunetr":
        if not any(name.startswith("swinViT.layers1c.") for name in parts.encoder):
            yield "it lacks the 8 convolutions before the stages: a SwinUNETR of version 1 (use_v2=False)"
        return
    if backbone.name == "resnet":
        if wishes.axes == "xyz":
            yield "taken as trained on pictures [X, Y]; others train on [Y, X]: --axes zyx turns their kernels"
        if wishes.in_channels == 1 and parts.encoder["conv1.weight"].shape[1] == 3:
            yield "the colours of the first kernels were added: a grey picture gives the answer that it gave as three"
        return
    if wishes.axes == "xyz":
        yield "taken as trained on arrays [X, Y, Z]; nnU-Net's own are [Z, Y, X]: --axes zyx turns those"
    deepest = parts.decoder.get("decoder.transpconvs.0.weight")
    scores = parts.decoder.get("decoder.seg_layers.0.weight")
    if deepest is not None and scores is not None and (len(scores), *deepest.shape) == (21, 320, 320, 2, 2, 2):
        yield "of VoComni_nnunet, decoder.transpconvs.0 may be untrained: the published plans give it another shape"
        yield "the plans published with VoComni_nnunet have corrupt intensity statistics (std 120748): do not use them"


def _about_decoder(backbone: Named) -> str:
    """What becomes of a decoder."""
    if backbone.name == "swinunetr":
        return "the decoder is kept in a file of its own; tasks with task.decoder: {name: swinunetr} begin with it"
    return "the decoder is kept in a file of its own; tasks here have a decoder of their own and begin it anew"


def _classes(parts: Parts) -> tuple[str, ...]:
    """What the outputs of a decoder are, where that is known: of as many as VoComni's."""
    scores = parts.decoder.get(SWINUNETR_SCORES)
    is_vocomni = scores is not None and len(scores) == 1 + len(VOCOMNI_CLASSES)
    return VOCOMNI_CLASSES if is_vocomni else ()


def _fresh(backbone: Named, in_channels: int) -> dict[str, Tensor]:
    with implicit_randomness(0, Purpose.INITIALISATION):
        return dict(build_backbone(backbone, in_channels=in_channels).state_dict())


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    if tensors:
        write_atomic(path, tensor_bytes(tensors, metadata))
