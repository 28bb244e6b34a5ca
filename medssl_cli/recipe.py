"""Recipes: one complete YAML file that says everything a training run needs, and nothing it does not.

No inheritance and no code. Every fault of a recipe is reported at once, with the nearest valid name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from medssl_cli.base.errors import UsageError
from medssl_cli.base.faults import validate_model
from medssl_cli.base.files import read_regular, sha256_json
from medssl_cli.base.plain_yaml import MAX_BYTES, parse_yaml
from medssl_cli.base.plugins import suggest
from medssl_cli.base.strict import NonNegativeFloat, PositiveFloat, PositiveInt, Probability, Size, Strict
from medssl_cli.heads import LesionRule
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe_sections import Algorithm, Augmentation, Axes, ClassDetails, UnlabelledImages

ADDED_LATER: Final = ("unlabelled", "class_details", "algorithm")
"""Sections of a task recipe that are written only where they are given."""
AUTO: Final = "auto"
"""What a task recipe says of a value that is to be planned from the images at hand."""

STAND_INS: Final[Mapping[str, dict[str, Any]]] = {
    "backbone": {"backbone": {"name": "unet", "channels": [4], "strides": [1]}},
    "optimizer": {"optimizer": {"learning_rate": 1e-3}},
    "optimizer.learning_rate": {"learning_rate": 1e-3},
    "data.window_hu": {"zscore": True},
    "data.zscore": {"zscore": True},
    "data.percentiles": {"zscore": True},
    "data.crop_size": {"crop_size": [32, 32, 32]},
    "data.batch_size": {"batch_size": 1},
    "steps": {"steps": 1000},
}
"""What a recipe has in the place of `auto` until there is a plan."""


class Named(BaseModel):
    """A plugin by name; its other keys are checked by the plugin's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.model_extra or {})


class Data(Preprocessing):
    """What a step is made of: preprocessing, crops and batches."""

    modality: str | None = None
    crop_size: Size
    batch_size: PositiveInt
    num_workers: Annotated[int, Field(ge=0)] = 0


class MixturePart(Preprocessing):
    """Images that a mixture takes, how often, and what happens to them before the network sees them.

    Args:
        weight: How many times an epoch shows each of its images.
        cache: Name of the cache that they are in, which `medssl pretrain --cache-of NAME=FOLDER` gives; None for that
            of `--cache`.
        modality: Images of this one and of unknown modality; None for all.
        body_parts: Images of these parts of the body only, such as `CHEST`; `unknown` for those that do not say.
    """

    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    cache: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")] | None = None
    modality: str | None = None
    body_parts: tuple[Annotated[str, Field(pattern=r"^([A-Z]{1,16}|unknown)$")], ...] = ()


class PretrainData(Data):
    """The same for a pre-training, which may mix images that are treated each in its own way.

    Args:
        mixture: Parts that the training sees instead of all images by the rules of `data`, which stay what probes and
            exports of the encoder see. Each selects images, below, and has the keys of preprocessing of `data`; written
            only where it is given.
    """

    mixture: Annotated[tuple[MixturePart, ...], Field(min_length=1, max_length=100)] | None = None

    @model_validator(mode="after")
    def _the_same_channels(self) -> Self:
        if any(part.channel_names != self.channel_names for part in self.mixture or ()):
            raise ValueError("all parts of the mixture need the channels of data, in its order")
        return self

    @property
    def parts(self) -> tuple[MixturePart, ...]:
        """Parts of the mixture; without one, a single part of all images."""
        return self.mixture or (MixturePart(**dict(self.preprocessing), modality=self.modality),)


class Optimizer(Strict):
    """Optimiser and step size. Weight decay spares norms, biases and prototypes.

    Args:
        name: `lars` is SGD on gradients scaled to their parameters, for large batches (published SwAV).
        amsgrad: Whether AdamW divides by the largest second moment so far (published VoCo).
        trust: Share of its length that a parameter moves per step of LARS at rate 1.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    amsgrad: bool = False
    trust: PositiveFloat = 1e-3
    max_grad_norm: PositiveFloat | None = 12.0


class Transfer(Strict):
    """How the encoder follows while a task learns from pre-trained weights; by default like everything else.

    Args:
        encoder_scale: Share of the learning rate that the encoder has.
        freeze_steps: Steps at the beginning in which the encoder keeps its weights and the rest of the task learns.
            Running means of batch norms follow the images all the same.
        layer_decay: Share of the rate of a level that the next finer one has; the coarsest has that of
            `encoder_scale`. Written only where it is given.
    """

    encoder_scale: Annotated[float, Field(ge=0, le=1)] = 1.0
    freeze_steps: Annotated[int, Field(ge=0)] = 0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_serializer(mode="wrap")
    def _without_default(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = default(self)
        if self.layer_decay == 1:
            del document["layer_decay"]
        return document


class Schedule(Strict):
    """How the learning rate moves from `start_fraction` of its peak over the peak back to `final_fraction` of it.

    Args:
        warmup_fraction: Share of the steps until the peak.
        warmup_steps: The same in steps, instead of the share.
        period_steps: Steps until the rate has first fallen; it then rises and falls again, as long as the training
            lasts (some published tasks of VoCo, as run). None for once, with the training.
    """

    name: Literal["warmup_cosine"] = "warmup_cosine"
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.02
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    period_steps: PositiveInt | None = None
    start_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _falls_after_it_rose(self) -> Self:
        if self.period_steps is not None and (self.warmup_steps is None or self.warmup_steps >= self.period_steps):
            raise ValueError("period_steps needs fewer warmup_steps")
        return self

    def warmup(self, steps: int | None) -> float:
        """Share of a training of so many steps until the peak."""
        if self.warmup_steps is None or steps is None:
            return self.warmup_fraction
        return self.warmup_steps / steps


class Inference(Strict):
    """Sliding window at evaluation and deployment. `tile_size` None means the training crop."""

    tile_size: Size | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    mirror_axes: Axes = ()


class Evaluation(Strict):
    """How results are scored."""

    nsd_tolerance_mm: PositiveFloat = 2.0
    lesions: LesionRule | None = None


class Training(Strict):
    """What every training recipe has. Runs with one `split_seed` hold out the same patients, whatever their seeds.

    Args:
        compile: Compile the backbone with `torch.compile`: minutes at the start, faster steps.
        max_skipped: Steps in a row whose loss or gradient is not finite that are left out; one more ends the run.
    """

    schema_version: Literal[1] = Field(alias="schema")
    seed: Annotated[int, Field(ge=0)] = 0
    split_seed: Annotated[int, Field(ge=0)] = 0
    backbone: Named
    data: Data
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    steps: PositiveInt
    accumulate: PositiveInt = 1
    checkpoint_every: PositiveInt = 500
    log_every: PositiveInt = 10
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_skipped: Annotated[int, Field(ge=0)] = 3

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if (self.schedule.warmup_steps or 0) >= self.steps:
            raise ValueError(f"schedule.warmup_steps must be fewer than steps ({self.steps})")
        return self


class PretrainRecipe(Training):
    """Self-supervised pre-training: a method on unlabelled volumes. `batch_size` counts over all devices.

    Args:
        health_every: Steps between looks at how well the embeddings spread and what they tell apart.
    """

    data: PretrainData
    method: Named
    health_every: PositiveInt = 500


class TaskRecipe(Training):
    """A downstream task: labels, network, metrics, deployment. `name` becomes the installed model's.

    Args:
        crops_per_image: So many crops of a batch are of one image (published VoCo); of tasks that learn from crops.
        unlabelled: Lets images without labels take part; written only where it is given.
        class_details: What classes are in DICOM objects and how they are shown; written only where it is given.
        algorithm: What DICOM objects say made them; written only where it is given.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    task: Named
    augmentation: Augmentation = Augmentation()
    transfer: Transfer = Transfer()
    unlabelled: UnlabelledImages | None = None
    class_details: dict[str, ClassDetails] = Field(default={})
    algorithm: Algorithm | None = None
    foreground_prob: Probability = 0.5
    crops_per_image: PositiveInt = 1
    validate_every: PositiveInt = 500
    max_validation_patients: PositiveInt | None = None
    inference: Inference = Inference()
    evaluation: Evaluation = Evaluation()
    intended_use: str = "Research only; not a medical device"

    @field_validator("intended_use")
    @classmethod
    def _short(cls, value: str) -> str:
        if len(value) > 500:
            raise ValueError("at most 500 characters")
        return value

    @model_validator(mode="after")
    def _images_are_whole(self) -> Self:
        if self.data.batch_size % self.crops_per_image:
            raise ValueError(f"data.batch_size must be a multiple of crops_per_image ({self.crops_per_image})")
        return self

    @model_validator(mode="after")
    def _mirror_what_was_flipped(self) -> Self:
        trained = set(self.augmentation.flip_axes) if self.augmentation.flip_prob > 0 else set()
        unseen = sorted(set(self.inference.mirror_axes) - trained)
        if unseen:
            raise ValueError(f"inference.mirror_axes {unseen} are never flipped in training (augmentation.flip_axes)")
        return self

    @model_serializer(mode="wrap")
    def _without_empty(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = default(self)
        return {key: value for key, value in document.items() if key not in ADDED_LATER or value}

    @property
    def tile_size(self) -> tuple[int, int, int]:
        """The sliding window's box in voxels."""
        return self.inference.tile_size or self.data.crop_size


Recipe = PretrainRecipe | TaskRecipe


def recipe_folder() -> Path:
    """The recipes that come with medssl: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names(kind: Literal["pretrain", "tasks"]) -> list[str]:
    """Names of the shipped recipes of a kind."""
    return sorted(path.stem for path in (recipe_folder() / kind).glob("*.yaml"))


def find_recipe(name: str, kinds: tuple[Literal["pretrain", "tasks"], ...] = ("pretrain", "tasks")) -> Path:
    """A recipe's file, by shipped name or by path.

    Raises:
        UsageError: `E_RECIPE_NOT_FOUND`, with the nearest name.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if path.is_file():
            return path
        raise UsageError("E_RECIPE_NOT_FOUND", f"no file {name}")
    for kind in kinds:
        path = recipe_folder() / kind / f"{name}.yaml"
        if path.is_file():
            return path
    known = [known for kind in kinds for known in recipe_names(kind)]
    raise UsageError("E_RECIPE_NOT_FOUND", f"no recipe called {name!r}", hint=suggest(name, known))


def load_recipe(path: Path, overrides: list[str] | None = None, *, is_sketch: bool = False) -> Recipe:
    """Read, override and validate a recipe; `method:` makes it a pre-training recipe, `task:` a task recipe.

    Args:
        path: YAML file.
        overrides: `a.b=value` strings; values are YAML.
        is_sketch: Put something that trains nothing in the place of what is left to a plan; else it is refused.

    Raises:
        UsageError: `E_RECIPE` with one line per fault.
    """
    document = raw_recipe(path, overrides)
    return validate_recipe(sketched(document) if is_sketch else document, source=path.name)


def raw_recipe(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """A recipe's document as it is written, with overrides, not validated; see `load_recipe`."""
    try:
        text = read_regular(path, max_bytes=MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("E_RECIPE", f"{path.name} is not text in UTF-8") from error
    except ValueError as error:
        raise UsageError("E_RECIPE", f"{path.name} is {error}") from error
    document = parse_yaml(text, source=path.name)
    for override in overrides or []:
        apply_override(document, override)
    return document


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set one dotted key of a raw recipe in place.

    Raises:
        UsageError: `E_RECIPE` if the text is not `key=value` or the key runs through a plain value.
    """
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UsageError("E_RECIPE", f"--set {override!r} is not key=value", hint="for example --set data.batch_size=2")
    *parents, last = key.split(".")
    target = document
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise UsageError("E_RECIPE", f"--set {key}: {parent} is a value, not a section")
    target[last] = parse_yaml(f"value: {value}", source=f"--set {key}")["value"]


def validate_recipe(document: dict[str, Any], *, source: str) -> Recipe:
    """Turn raw YAML data into a recipe, or report all faults.

    Raises:
        UsageError: `E_RECIPE`.
    """
    if (keys := automatic_keys(document)) and recipe_kind(document) is TaskRecipe:
        raise UsageError(
            "E_RECIPE",
            f"{source} leaves {', '.join(keys)} to a plan, and here is none",
            hint="medssl plan --task FILE -o NEW.yaml writes a plan down; medssl finetune makes one as it begins",
        )
    return validate_model(recipe_kind(document), document, source=source)


def automatic_keys(document: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of a raw recipe that are `auto`."""
    found = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            found += automatic_keys(value, f"{prefix}{key}.")
        elif value == AUTO:
            found.append(f"{prefix}{key}")
    return found


def sketched(document: Mapping[str, Any]) -> dict[str, Any]:
    """A raw recipe with stand-ins for what is `auto`: small ones where a value is needed, else the default."""
    return _with_stand_ins(document, {**STAND_INS, **_following(document)}, "")


def _with_stand_ins(document: Mapping[str, Any], stand_ins: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            found[key] = _with_stand_ins(value, stand_ins, f"{prefix}{key}.")
        elif value != AUTO:
            found[key] = value
        elif f"{prefix}{key}" in stand_ins:
            found |= stand_ins[f"{prefix}{key}"]
    return found


def _following(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Stand-ins that what is given asks for: a plan follows it, so it is no fault of the recipe."""
    found: dict[str, dict[str, Any]] = {}
    schedule, crops = document.get("schedule"), document.get("crops_per_image")
    warmup = schedule.get("warmup_steps") if isinstance(schedule, Mapping) else None
    if isinstance(warmup, int) and warmup >= STAND_INS["steps"]["steps"]:
        found["steps"] = {"steps": warmup + 1}
    if isinstance(crops, int) and crops > 1:
        found["data.batch_size"] = {"batch_size": crops}
    data, backbone = document.get("data"), document.get("backbone")
    size = data.get("crop_size") if isinstance(data, Mapping) else None
    if isinstance(size, list) and size[2:] == [1]:
        found["backbone"] = {"backbone": {**STAND_INS["backbone"]["backbone"], "spatial_dims": 2}}
    if isinstance(backbone, Mapping) and backbone.get("spatial_dims") == 2:
        found["data.crop_size"] = {"crop_size": [32, 32, 1]}
    return found


def recipe_kind(document: dict[str, Any]) -> type[Recipe]:
    """What a raw recipe is: `method:` makes it one of pre-training."""
    return PretrainRecipe if "method" in document else TaskRecipe


def dump_recipe(recipe: Training) -> dict[str, Any]:
    """Plain data of a resolved recipe, every default filled in."""
    return recipe.model_dump(mode="json", by_alias=True)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe's canonical JSON."""
    return sha256_json(dump_recipe(recipe))


def flow_yaml(document: dict[str, Any]) -> str:
    """YAML on one line, as `--set key=VALUE` takes it."""
    return yaml.safe_dump(document, default_flow_style=True, sort_keys=False, width=10**6).strip()


def to_yaml(document: dict[str, Any]) -> str:
    """YAML text in the order of the keys."""
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
