"""Pre-trained weights on their way into a task's network, with a report and no silent misses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter
from torch import nn

from medssl_cli.base.classes import joined
from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import sha256_json
from medssl_cli.base.plain_json import parse_json
from medssl_cli.base.strict import PositiveInt
from medssl_cli.engine.checkpoints import require_finite_weights, sha256_tensor, unprefixed
from medssl_cli.engine.runs import Run, open_run
from medssl_cli.engine.tensor_files import read_tensors
from medssl_cli.methods import MethodBase
from medssl_cli.nn.backbones.resnet import inflate
from medssl_cli.preprocessing import ChannelName
from medssl_cli.recipe import Named, TaskRecipe
from medssl_cli.tasks import SLICES, PublishedDecoder, TaskNetwork, task_options

ENCODER: Final = "encoder.safetensors"
DECODER: Final = "decoder.safetensors"
PROJECTOR: Final = "projector.safetensors"
RECORD: Final = "weights.json"
BACKBONE: Final = "backbone"
REST_ANEW: Final = "; the rest of the task starts anew"
BESIDE: Final = (SLICES,)
"""Modules that a pre-training may keep beside its encoder."""
IMPORT_HINT: Final = "weights of other projects enter through medssl weights import"
FREE_OPTIONS: Final = ("use_checkpoint", "inflation")
INFLATED: Final = "resnet"
"""The backbone that can turn from two dimensions to three."""


@dataclass(frozen=True)
class Encoder:
    """Weights of a backbone and what it is.

    Args:
        backbone: Name and options.
        weights: Its tensors by name.
        sha256: SHA-256 of the file.
        patients: Whose images it has seen; None if nobody knows.
        in_channels: Number of channels of its images.
        channels: Their names in order; none if they had none.
        labelled_patients: Whose labels it has seen too.
        beside: Other modules of its run, by name.
        task: What else a fine-tuned run has learnt: its decoder or head, and for which classes.
        decoder: File with a decoder that was imported beside it.
        kept_decoder: File with the decoder that its pre-training kept.
    """

    backbone: Named
    weights: dict[str, Any]
    sha256: str
    patients: frozenset[str] | None
    in_channels: int = 1
    channels: tuple[str, ...] = ()
    labelled_patients: frozenset[str] = frozenset()
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    task: "TaskWeights | None" = None
    decoder: Path | None = None
    kept_decoder: Path | None = None

    def origin(self) -> dict[str, Any]:
        """Words for the manifest of a run that begins with these weights: what they have seen, it has seen too."""
        patients = None if self.patients is None else sorted(self.patients)
        return {"sha256": self.sha256, "patients": patients, "labelled": sorted(self.labelled_patients)}

    def backbone_for(self, wanted: Named) -> Named:
        """This encoder's backbone, with those options of a recipe's that change no weight."""
        if wanted.name != self.backbone.name:
            return self.backbone
        free = (*FREE_OPTIONS, *(("spatial_dims",) if self._inflates(wanted) else ()))
        kept = {name: wanted.options[name] for name in free if name in wanted.options}
        return Named(**{**self.backbone.model_dump(), **kept})

    def _inflates(self, wanted: Named) -> bool:
        """Whether this is a 2D ResNet and a 3D one is wanted."""
        is_flat = self.backbone.options.get("spatial_dims", 2) == 2
        return self.backbone.name == INFLATED and is_flat and wanted.options.get("spatial_dims") == 3


@dataclass(frozen=True)
class TaskWeights:
    """What a fine-tuned network has beside its backbone.

    Args:
        classes: Classes in the order of its outputs.
        weights: Its tensors by name.
    """

    classes: tuple[str, ...]
    weights: dict[str, Any]


def load_encoder(path: Path) -> Encoder:
    """The encoder of a run, of a folder that `medssl weights import` wrote, or in a file.

    A run of pre-training must be finished, one of fine-tuning validated; of that its best network is taken.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_WEIGHTS_FILE`.
    """
    if path.is_file():
        return _read(path, None)
    if (path / RECORD).is_file():
        decoder = path / DECODER
        return replace(_read(path / ENCODER, None), decoder=decoder if decoder.is_file() else None)
    run = open_run(path)
    if isinstance(run.recipe, TaskRecipe):
        return _of_finetuning(run, run.recipe)
    if not run.encoder_path.is_file():
        raise UsageError(
            "E_RUN_UNFINISHED",
            f"{path} has no encoder.safetensors yet",
            hint="run its medssl pretrain command again until it is finished",
        )
    splits = run.manifest["splits"]
    seen, labelled = (frozenset(entry["patient"] for entry in splits.get(name, ())) for name in ("train", "labelled"))
    before = run.manifest["arguments"].get("init", {"patients": [], "labelled": []})
    patients = None if before["patients"] is None else seen | set(before["patients"])
    labelled |= set(before["labelled"])
    beside = {name: _tensors(path)[0] for name in BESIDE if (path := run.root / f"{name}.safetensors").is_file()}
    kept = run.root / DECODER
    return replace(
        _read(run.encoder_path, patients),
        labelled_patients=labelled,
        beside=beside,
        kept_decoder=kept if kept.is_file() else None,
    )


def _of_finetuning(run: Run, recipe: TaskRecipe) -> Encoder:
    """The best network of a fine-tuning. Whom it has validated on, or seen without labels, it has no labels of."""
    checkpoint = run.checkpoints.load_best()
    if checkpoint is None:
        raise UsageError("E_RUN_UNFINISHED", f"{run.root} has not been validated yet", hint="let medssl finetune go on")
    network = unprefixed("network", checkpoint.tensors)
    require_finite_weights(network)
    own = unprefixed(BACKBONE, network)
    rest = {name: tensor for name, tensor in network.items() if not name.startswith(f"{BACKBONE}.")}
    splits, arguments = run.manifest["splits"], run.manifest["arguments"]
    learnt, looked, others = (
        frozenset(entry["patient"] for entry in splits.get(name, ())) for name in ("train", "val", "unlabelled")
    )
    is_unknown = arguments.get("encoder_sha256") is not None
    before = arguments.get("init", {"patients": None if is_unknown else [], "labelled": []})
    return Encoder(
        recipe.backbone,
        own,
        sha256_json({name: sha256_tensor(tensor) for name, tensor in sorted(network.items())}),
        None if before["patients"] is None else learnt | looked | others | set(before["patients"]),
        in_channels=len(recipe.data.rules),
        channels=recipe.data.channel_names,
        labelled_patients=learnt | set(before["labelled"]),
        task=TaskWeights(tuple(task_options(recipe).classes), rest),
    )


def _tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        weights, described = read_tensors(path)
    except ValueError as error:
        raise UsageError("E_WEIGHTS_FILE", f"{path.name} is no intact safetensors file", hint=IMPORT_HINT) from error
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values() if tensor.is_floating_point()):
        raise UsageError("E_WEIGHTS_FILE", f"{path.name} holds numbers that are not finite")
    return weights, described


def _read(path: Path, patients: frozenset[str] | None) -> Encoder:
    from medssl_cli.base.files import sha256_file

    weights, described = _tensors(path)
    if "backbone" not in described:
        raise UsageError("E_WEIGHTS_FILE", f"{path.name} does not say which backbone it is of", hint=IMPORT_HINT)
    try:
        backbone = Named.model_validate(parse_json(described["backbone"]))
        in_channels = TypeAdapter(PositiveInt).validate_python(described.get("in_channels", "1"))
        channels = TypeAdapter(tuple[ChannelName, ...]).validate_json(described.get("channels", "[]"))
        if channels and len(channels) != in_channels:
            raise ValueError("names of other channels")
    except ValueError as error:
        raise UsageError("E_WEIGHTS_FILE", f"what {path.name} says about its backbone is damaged") from error
    return Encoder(backbone, weights, sha256_file(path), patients, in_channels, channels)


def initialise(
    backbone: nn.Module,
    encoder: Encoder,
    *,
    rest: str = "the rest of the task",
    how: Literal["mean", "centre"] = "mean",
) -> str:
    """Copy an encoder's weights into a backbone of the same architecture.

    Args:
        backbone: Gets the weights.
        encoder: Has them.
        rest: What is not transferred.
        how: 2D kernels become 3D ones, see `nn.backbones.resnet.inflate`.

    Returns:
        One line that says what was transferred.

    Raises:
        UsageError: `E_WEIGHTS_MISMATCH` unless every tensor fits.
    """
    own = backbone.state_dict()
    weights, num_inflated = _inflated(encoder, own, how)
    require_fit(own, weights)
    backbone.load_state_dict(weights)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    said = f"{len(own)} tensors, {count / 1e6:.2f} M parameters: the whole encoder; {rest} starts anew"
    return said + (f"; {num_inflated} convolutions inflated from 2D to 3D by {how}" if num_inflated else "")


def require_fit(own: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Refuse weights of another network.

    Args:
        own: Tensors of the network by name; those of a sketch without memory do.
        weights: Tensors for it.

    Raises:
        UsageError: `E_WEIGHTS_MISMATCH` unless every tensor fits.
    """
    missing = sorted(set(own) - set(weights))
    unexpected = sorted(set(weights) - set(own))
    misshapen = sorted(name for name in set(own) & set(weights) if own[name].shape != weights[name].shape)
    if missing or unexpected or misshapen:
        raise UsageError(
            "E_WEIGHTS_MISMATCH",
            f"{len(missing)} tensors missing, {len(unexpected)} unexpected, {len(misshapen)} of another shape",
            hint="the encoder's backbone and the recipe's must be the same, and their images have as many channels",
        )


def _inflated(encoder: Encoder, own: dict[str, Any], how: Literal["mean", "centre"]) -> tuple[dict[str, Any], int]:
    """An encoder's weights, and how many 2D kernels among them became 3D ones, where a ResNet of 3D has them."""
    weights, num_inflated = dict(encoder.weights), 0
    for name, tensor in encoder.weights.items():
        if encoder.backbone.name == INFLATED and name in own and (tensor.ndim, own[name].ndim) == (4, 5):
            weights[name] = inflate(tensor, own[name].shape[-1], how)
            num_inflated += 1
    return weights, num_inflated


def begin_with(method: MethodBase, encoder: Encoder) -> str:
    """Let a pre-training start from an encoder, and from what another run of its kind kept beside it.

    Returns:
        One line that says what was transferred.

    Raises:
        UsageError: `E_WEIGHTS_MISMATCH` unless every tensor fits.
    """
    said = initialise(method.backbone, encoder, rest="the method")
    return said + _take_beside(method.kept(), encoder, hint="set method.relation as in the recipe of --init")


def initialise_task(
    task: nn.Module, encoder: Encoder, *, how: Literal["mean", "centre"] = "mean", classes: Sequence[str] = ()
) -> str:
    """Let a task start from an encoder, and from what its run kept beside it where the task has a place for it.

    Args:
        task: Task with a `backbone`.
        encoder: Has the weights.
        how: See `initialise`.
        classes: Classes of the task, in order; the decoder or head of a fine-tuned run with the same ones is taken too,
            and the last layer of an imported decoder, all other layers of which do not depend on them.

    Returns:
        One line that says what was transferred.

    Raises:
        UsageError: `E_WEIGHTS_MISMATCH` unless every tensor fits.
    """
    kept = task.kept() if isinstance(task, TaskNetwork) else {}
    if encoder.task is not None:
        return _take_task(task, encoder, encoder.task, classes, how)
    said = initialise(task.get_submodule("backbone"), encoder, how=how)
    if encoder.decoder is not None and (place := _published_decoder(task)) is not None:
        said = said.removesuffix(REST_ANEW) + _take_decoder(place, encoder.decoder, classes)
    if encoder.kept_decoder is not None and isinstance(task, TaskNetwork) and (own := task.own_decoder()) is not None:
        said = said.removesuffix(REST_ANEW) + _take_kept_decoder(own, encoder.kept_decoder)
    said += _take_beside(kept, encoder, hint="set task.relation as method.relation in the recipe of --init")
    anew = sorted(set(kept) - set(encoder.beside))
    return said + "".join(f"; it has no weights of {name}, which start anew too" for name in anew)


def _take_task(
    task: nn.Module, encoder: Encoder, known: TaskWeights, classes: Sequence[str], how: Literal["mean", "centre"]
) -> str:
    """Let a task start from a fine-tuned one: whole where kind, classes and shapes agree, else from its encoder."""
    own = {name: tensor for name, tensor in task.state_dict().items() if not name.startswith(f"{BACKBONE}.")}
    fits = {name: tensor.shape for name, tensor in own.items()} == {n: t.shape for n, t in known.weights.items()}
    if tuple(classes) != known.classes or not fits:
        why = "its shapes are others" if tuple(classes) == known.classes else f"its classes are {joined(known.classes)}"
        said = initialise(task.get_submodule(BACKBONE), encoder, how=how)
        return f"{said}: {why}"
    said = initialise(task.get_submodule(BACKBONE), encoder, how=how, rest="nothing")
    task.load_state_dict(known.weights, strict=False)
    return f"{said.removesuffix('; nothing starts anew')}, and the {len(own)} other tensors of the task"


def _published_decoder(task: nn.Module) -> PublishedDecoder | None:
    return task.published_decoder() if isinstance(task, TaskNetwork) else None


def _take_decoder(place: PublishedDecoder, path: Path, classes: Sequence[str]) -> str:
    """Fill a decoder from the file of an imported one, and say so; its last layer only where the classes agree.

    Raises:
        UsageError: `E_WEIGHTS_FILE`, `E_WEIGHTS_MISMATCH`.
    """
    weights, described = _tensors(path)
    own = place.module.state_dict()
    if not set(own) & set(weights):
        return "; its decoder is of another form than the task's, which starts anew"
    known = _classes_of(path, described)
    if known != tuple(classes):
        own, weights = (
            {name: tensor for name, tensor in group.items() if not name.startswith(place.scores)}
            for group in (own, weights)
        )
    require_fit(own, weights)
    place.module.load_state_dict(weights, strict=False)
    said = f"; {len(own)} tensors of its decoder"
    if known == tuple(classes):
        return f"{said}: the whole network, for the same classes"
    return f"{said}; the last layer starts anew: its classes are {joined(known) if known else 'not known'}"


def _take_kept_decoder(place: PublishedDecoder, path: Path) -> str:
    """Fill a decoder, all but its last layer, with the one that a pre-training kept, and say so.

    Raises:
        UsageError: `E_WEIGHTS_FILE`.
    """
    weights, _ = _tensors(path)
    own = {name: tensor for name, tensor in place.module.state_dict().items() if not name.startswith(place.scores)}
    if any(name not in weights or weights[name].shape != tensor.shape for name, tensor in own.items()):
        return "; the decoder that it kept has another shape than the task's, which starts anew"
    place.module.load_state_dict({name: weights[name] for name in own}, strict=False)
    return f"; {len(own)} tensors of the decoder that it kept; the last layer starts anew"


def _classes_of(path: Path, described: Mapping[str, str]) -> tuple[str, ...]:
    """The classes of an imported decoder, in the order of its outputs after background; none if nobody knows."""
    try:
        return TypeAdapter(tuple[str, ...]).validate_json(described.get("classes", "[]"))
    except ValueError as error:
        raise UsageError("E_WEIGHTS_FILE", f"what {path.name} says about its classes is damaged") from error


def _take_beside(kept: Mapping[str, nn.Module], encoder: Encoder, *, hint: str) -> str:
    """Fill modules with what an encoder's run kept under their names, and say so."""
    said = ""
    for name, module in kept.items():
        if name not in encoder.beside:
            continue
        own, found = module.state_dict(), encoder.beside[name]
        fitting = {key: found[key] for key in own if key in found and own[key].shape == found[key].shape}
        if len(fitting) < len(own):
            raise UsageError(
                "E_WEIGHTS_MISMATCH",
                f"{len(own) - len(fitting)} of {len(own)} tensors of {name} are missing or of another shape",
                hint=hint,
            )
        module.load_state_dict(fitting)
        said += f"; {len(own)} tensors of {name}"
    return said
