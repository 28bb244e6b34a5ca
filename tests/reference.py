"""Pages of docs/reference that are made from the code; `tests/cli/test_reference.py` compares them with the files.

Only what is ours goes in: names, help texts, defaults. How Typer lays out its help differs between its versions.
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from medssl_cli import heads, recipe, recipe_sections
from medssl_cli.base import plugins
from medssl_cli.base.codes import CODES, Code
from medssl_cli.cli.app import app
from medssl_cli.nn.decoder import Decoder
from medssl_cli.tasks import load_part
from medssl_cli.unlabelled import KIND

NOTE: Final = "<!-- Made from the code; to make it anew: MEDSSL_UPDATE_GOLDEN=1 pytest tests/cli/test_reference.py -->"
LEVELS: Final = {
    "E_": ("Refusals", "The input, recipe or model cannot be used as it is."),
    "W_": ("Notes", "Accepted, and worth knowing. Recorded with the image, or in the report of `infer`."),
    "S_": ("Skipped by rule", "Nothing is wrong: medssl does not take this kind of file."),
}
PLAIN: Final = {bool: "true or false", int: "whole number", float: "number", str: "text"}
LIMITS: Final = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
MEANINGS: Final = {
    "schema": "Version of the recipe's format.",
    "seed": "Seed of initial weights, crops, augmentation and dropout.",
    "split_seed": "Seed of the split by patient: runs with the same one hold out the same patients.",
    "backbone": "Network to train: `name` and its options, below.",
    "data": "Preprocessing, crops and batches, below.",
    "optimizer": "Below.",
    "schedule": "Below.",
    "steps": "Optimiser steps. `finetune --max-minutes` replaces them by time.",
    "accumulate": "Batches per optimiser step.",
    "checkpoint_every": "Steps between checkpoints; the last three are kept.",
    "log_every": "Steps between lines of `metrics.jsonl`.",
    "precision": "Precision of the network's arithmetic.",
    "channels_last": "Memory layout; faster for many convolutions.",
    "ema_decay": "Averages the weights over steps; the average is validated and kept. 0 is off.",
    "compile": "`torch.compile` of the backbone: minutes at the start, then faster steps. Needs a C++ compiler.",
    "health_every": "Steps between looks at the [embeddings' health](../concepts/health.md).",
    "method": "Self-supervised method: `name` and its options, below.",
    "name": "Name of the task; the installed model is called so.",
    "task": "What to learn: `name` and its options, below.",
    "augmentation": "Below.",
    "transfer": "How the encoder follows the rest of the task, below.",
    "unlabelled": "Lets the cache's other images take part without labels, as `medssl finetune --unlabelled` does; "
    "below.",
    "unlabelled.method": "Name of the method, below; `medssl finetune --unlabelled` takes `bcp` for `segmentation` and "
    "`mean_teacher` for `classification`.",
    "foreground_prob": "Share of crops that show a random voxel of a random class.",
    "validate_every": "Steps between validations.",
    "max_validation_patients": "Validate on so many patients of the fold; the others train.",
    "inference": "Below.",
    "evaluation": "Below.",
    "intended_use": "Written into the exported model, at most 500 characters.",
    "data.orientation": "Axes of the prepared volume; there is one choice.",
    "data.modality": "Take images of this DICOM modality and of unknown modality; none takes all.",
    "data.crop_size": "Voxels (x, y, z) of a training crop, along each axis a multiple of what the backbone halves; z "
    "is 1 for 2D images, and any number of slices where `segmentation` has a backbone of 2D images. Of "
    "`classification`, what every whole image is brought to.",
    "data.batch_size": "Crops per batch on all devices together; for `voco`, volumes.",
    "data.num_workers": "Processes that read crops; 0 reads in the training process. The result does not depend on it.",
    "optimizer.name": "AdamW, or SGD with Nesterov momentum.",
    "optimizer.learning_rate": "Peak. YAML reads 1e-4 as text: write 1.0e-4.",
    "optimizer.weight_decay": "Not applied to norms and biases.",
    "optimizer.momentum": "Momentum of SGD.",
    "optimizer.amsgrad": "Whether AdamW divides by the largest second moment so far, as published VoCo.",
    "optimizer.max_grad_norm": "Clip the gradient to this norm; none does not.",
    "schedule.name": "Linear warm-up, then half a cosine.",
    "schedule.warmup_fraction": "Share of the training that warms up.",
    "schedule.warmup_steps": "The same in steps, instead of the share; published VoCo: 5000.",
    "optimizer.trust": "Share of its length that a parameter moves per step of LARS at rate 1.",
    "schedule.start_fraction": "Learning rate at the start, as a share of the peak.",
    "schedule.final_fraction": "Learning rate at the end, as a share of the peak.",
    "augmentation.flip_prob": "Per axis.",
    "augmentation.flip_axes": "Axes that may be flipped. A flip of axis 0 swaps left and right.",
    "augmentation.affine_prob": "Rotation and scaling, per crop.",
    "augmentation.rotate_degrees": "Largest angle about each axis.",
    "augmentation.scale_range": "Smallest and largest factor.",
    "augmentation.intensity_scale": "Largest relative change of contrast.",
    "augmentation.intensity_shift": "Largest shift, in units of the network's input.",
    "augmentation.gamma_range": "Smallest and largest exponent; (1, 1) is off.",
    "augmentation.noise_std": "Standard deviation of Gaussian noise, in units of the network's input.",
    "inference.tile_size": "Sliding window in voxels; none takes the training crop. A backbone of 2D images "
    "takes tiles of any depth; deep ones are faster.",
    "inference.overlap": "Share of a tile that its neighbour covers too.",
    "inference.mirror_axes": "Average over flips along these axes; each doubles the time. Not used in validation.",
    "evaluation.nsd_tolerance_mm": "Surface distance that counts as agreement in the NSD.",
    "evaluation.lesions": "Score lesions one by one, too; below.",
    "voco.dropout_prob": "Share of the student's crops whose embedding is replaced by zeros (`v2`); "
    "its price is in [methods](../concepts/methods.md).",
    "voco.omni": "What labels add, where the cache has some; below.",
    "segmentation.decoder": "Below.",
    "segmentation.relation.embedding_dim": "Length of a slice's embedding.",
    "segmentation.relation.pooling": "Without effect, as slices are not pooled here; `method.relation` can be copied.",
    "segmentation.relation.pre_norm": "Norms before attention and perceptron; else behind them, as in the released "
    "code.",
    "segmentation.relation.reference_spacing_mm": "If given, attention measures its offsets in so many millimetres, "
    "else in slices.",
    "segmentation.relation": "Relation under a backbone of 2D images: how slices know of each other, below; none "
    "segments each by itself.",
    "segmentation.decoder.widths": "Channels per level, fine to coarse; none takes those of the backbone.",
    "segmentation.decoder.num_res_units": "Convolutions in each level's residual unit; 0 for one plain convolution.",
    "segmentation.decoder.activation": "MONAI's name of the non-linearity.",
    "segmentation.decoder.dropout_prob": "Probability of dropping a channel after each convolution.",
}


@dataclass(frozen=True)
class Section:
    """A table of keys.

    Args:
        title: Heading.
        prefix: What stands before its keys in `MEANINGS`.
        model: Has the keys.
        left_out: Keys that stand elsewhere.
        given: Values that the section has where a recipe says nothing, if they are not those of the model.
    """

    title: str
    prefix: str
    model: type[BaseModel]
    left_out: Sequence[str] = ()
    given: BaseModel | None = None

    def fields(self) -> Iterator[tuple[str, FieldInfo]]:
        """The keys that stand here."""
        return ((name, field) for name, field in self.model.model_fields.items() if name not in self.left_out)


def cli_page() -> str:
    """Every command with its arguments and options."""
    lines = ["# Command line", "", NOTE, "", "Results go to stdout, notes and progress to stderr.", ""]
    lines += ["Exit codes: [exit-codes.md](exit-codes.md). Codes in messages: [codes.md](codes.md).", ""]
    root = typer.main.get_command(app)
    for name, command in root.commands.items():
        if not hasattr(command, "commands"):
            lines += _command(f"medssl {name}", command)
            continue
        lines += [f"## medssl {name}", "", str(command.help), ""]
        for child_name, child in command.commands.items():
            lines += _command(f"medssl {name} {child_name}", child, level="###")
    return "\n".join(lines)


def _command(title: str, command: Any, level: str = "##") -> Iterator[str]:
    hints = typing.get_type_hints(inspect.unwrap(command.callback))
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = [_usage(argument) for argument in arguments] + ["[OPTIONS]"] * bool(options)
    yield from (f"{level} {title}", "", "```", " ".join([title, *usage]), "```", "", inspect.cleandoc(command.help), "")
    rows = [(f"`{parameter.name.upper()}`", parameter.help, _default(parameter)) for parameter in arguments]
    rows += [(_option(parameter, hints[parameter.name]), parameter.help, _default(parameter)) for parameter in options]
    if rows:
        yield from (*table_lines(("argument or option", "meaning", "default"), rows), "")


def _usage(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _option(parameter: Any, hint: Any) -> str:
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    if parameter.is_flag:
        return names + "".join(f" / `{name}`" for name in parameter.secondary_opts)
    value = parameter.metavar.replace("|", "\\|") if parameter.metavar else _value_name(hint)
    return f"{names} {value}"


def _value_name(hint: Any) -> str:
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return "\\|".join(map(str, kinds))
    if typing.get_origin(kinds[0]) is typing.Literal:
        return _value_name(kinds[0])
    if issubclass(kinds[0], StrEnum):
        return "\\|".join(kinds[0])
    return {Path: "PATH", int: "N", float: "X", str: "TEXT"}[kinds[0]]


def _default(parameter: Any) -> str:
    parts = ["required"] if parameter.required else []
    if parameter.default not in (None, False, [], ()) and not parameter.required:
        parts.append(f"`{parameter.default}`" if parameter.default is not True else "on")
    if parameter.envvar:
        parts.append(f"environment: `{parameter.envvar}`")
    return ", ".join(parts)


def codes_page() -> str:
    """Every code, what it means and what to do."""
    lines = ["# Codes", "", NOTE, "", "Codes are only ever added; their meaning does not change. A message may be"]
    lines += ["more precise about what to do than this page. One code: `codes.md#E_TRUNCATED`.", ""]
    for prefix, (title, text) in LEVELS.items():
        rows = [_code_row(name, code) for name, code in CODES.items() if name.startswith(prefix)]
        lines += [f"## {title}: `{prefix}`", "", text, "", *table_lines(("code", "meaning", "what to do"), rows), ""]
    return "\n".join(lines)


def _code_row(name: str, code: Code) -> tuple[str, str, str]:
    meaning = f"{code.meaning} (no longer used)" if code.is_retired else code.meaning
    return f'<a id="{name}"></a>`{name}`', meaning, code.remedy[0].upper() + code.remedy[1:]


def recipe_page() -> str:
    """Every key of a recipe."""
    lines = ["# Recipe", "", NOTE, ""]
    lines += ["One complete YAML file: no inheritance, no code. All faults are reported at once."]
    lines += ["A file with `method:` is a pre-training recipe, one with `task:` a task recipe.", ""]
    lines += ["Change one key on the command line with `--set data.batch_size=2`.", "", "## Shipped recipes", ""]
    lines += [*table_lines(("name", "for", "what"), list(_shipped())), ""]
    common = recipe.Training.model_fields
    sections = [
        Section("Every recipe", "", recipe.Training),
        Section("Pre-training recipes", "", recipe.PretrainRecipe, list(common)),
        Section("Task recipes", "", recipe.TaskRecipe, list(common)),
        Section("`data`", "data.", recipe.Data),
        Section("`data` (pre-training recipes)", "data.", recipe.PretrainData, list(recipe.Data.model_fields)),
        Section(
            "`data.mixture` (pre-training recipes)",
            "data.",
            recipe.MixturePart,
            list(recipe.Preprocessing.model_fields),
        ),
        Section("`optimizer`", "optimizer.", recipe.Optimizer),
        Section("`schedule`", "schedule.", recipe.Schedule),
        Section("`augmentation` (task recipes)", "augmentation.", recipe.Augmentation),
        Section("`transfer` (task recipes)", "transfer.", recipe.Transfer),
        Section("`unlabelled` (task recipes)", "unlabelled.", recipe_sections.UnlabelledImages),
        Section("`class_details.NAME` (task recipes)", "class_details.", recipe_sections.ClassDetails),
        Section("`class_details.NAME.code`, `.category`, `algorithm.family`", "code.", recipe_sections.ClassCode),
        Section("`algorithm` (task recipes)", "algorithm.", recipe_sections.Algorithm),
        Section("`inference` (task recipes)", "inference.", recipe.Inference),
        Section("`evaluation` (task recipes)", "evaluation.", recipe.Evaluation),
        Section("`evaluation.lesions`", "evaluation.lesions.", heads.LesionRule),
    ]
    for name in plugins.names("method"):
        module = plugins.load("method", name)
        sections.append(Section(f"`method: {{name: {name}}}`", f"{name}.", module.Options))
        sections += _within(f"{name}.", module.Options)
    for name in plugins.names(KIND):
        options = plugins.load(KIND, name).OPTIONS
        sections.append(Section(f"`unlabelled: {{method: {name}}}`", "unlabelled.", options))
    for name in plugins.names("task"):
        module = load_part(name, "network")
        sections.append(Section(f"`task: {{name: {name}}}`", f"{name}.", module.OPTIONS))
        if hasattr(module, "Decoder"):
            sections.append(Section("`task.decoder`", f"{name}.decoder.", module.Decoder))
        if hasattr(module, "Relation"):
            sections.append(Section("`task.relation`", f"{name}.relation.", module.Relation))
    for section in sections:
        rows = [_field(name, field, section) for name, field in section.fields()]
        lines += [f"## {section.title}", "", *table_lines(("key", "value", "default", "meaning"), rows), ""]
    for name in plugins.names("backbone"):
        rows = list(_backbone(plugins.load("backbone", name).build))
        lines += [
            f"## `backbone: {{name: {name}}}`",
            "",
            *table_lines(("key", "value", "default", "meaning"), rows),
            "",
        ]
    return "\n".join(lines)


def _within(prefix: str, model: type[BaseModel]) -> Iterator[Section]:
    """Sections of a method's options, and theirs, but decoders, which are described once.

    Args:
        prefix: What stands before the keys of `model`, such as `joint.`.
        model: The options.
    """
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *typing.get_args(field.annotation))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Decoder:
                key = f"{prefix}{name}"
                method, _, place = key.partition(".")
                given = field.default if isinstance(field.default, kind) else None
                yield Section(f"`method.{place}` of `{method}`", f"{key}.", kind, given=given)
                yield from _within(f"{key}.", kind)


def _shipped() -> Iterator[tuple[str, str, str]]:
    for kind, command in (("pretrain", "`medssl pretrain --recipe`"), ("tasks", "`medssl finetune --task`")):
        for name in recipe.recipe_names(kind):
            first = recipe.find_recipe(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            yield f"`{name}`", command, first


def _field(name: str, field: FieldInfo, section: Section) -> tuple[str, str, str, str]:
    key, prefix, model = field.alias or name, section.prefix, section.model
    default_value = field.default if section.given is None else getattr(section.given, name)
    if default_value is PydanticUndefined:
        default = "required"
    else:
        default = "" if isinstance(default_value, BaseModel) else _yaml(default_value)
    value = _kind(field.annotation) + _limits(field.metadata)
    described = {key: text for base in reversed(model.__mro__) for key, text in arguments_of(base).items()}
    meaning = MEANINGS.get(prefix + key) or described.get(name)
    if not meaning:
        raise KeyError(f"what does {prefix + key} mean? say so in the docstring, or in MEANINGS")
    return f"`{key}`", value, default, meaning


def _backbone(build: Any) -> Iterator[tuple[str, str, str, str]]:
    described = arguments_of(build)
    for name, parameter in inspect.signature(build).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            yield f"`{name}`", _kind(parameter.annotation), _yaml(parameter.default), described[name]


def _kind(annotation: Any) -> str:
    """A type in plain words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        constraints = [item for part in arguments[1:] for item in getattr(part, "metadata", [part])]
        return _kind(arguments[0]) + _limits(constraints)
    if origin is typing.Literal:
        return " or ".join(f"`{option}`" for option in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if option is type(None) else _kind(option) for option in arguments)
    if origin is dict:
        return f"mapping of {_many(arguments[0])} to {_many(arguments[1])}"
    if origin is tuple and Ellipsis not in arguments:
        return f"{len(arguments)} {_many(arguments[0])}"
    if origin is not None:
        has_lists = any(typing.get_origin(option) is Sequence for option in typing.get_args(arguments[0]))
        return f"list of ({_kind(arguments[0])})" if has_lists else f"list of {_many(arguments[0])}"
    return PLAIN.get(annotation, "section")


def _many(annotation: Any) -> str:
    return re.sub(r"\bnumber\b", "numbers", _kind(annotation), count=1)


def _limits(constraints: Sequence[Any]) -> str:
    found = [f" {word} {getattr(item, name):g}" for item in constraints for name, word in LIMITS.items()
             if isinstance(getattr(item, name, None), int | float)]  # fmt: skip
    return "," * bool(found) + " and".join(found)


def _yaml(value: Any) -> str:
    return "none" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def arguments_of(documented: Any) -> dict[str, str]:
    """The `Args:` section of a docstring."""
    found: dict[str, str] = {}
    _, _, section = (inspect.cleandoc(documented.__doc__ or "")).partition("Args:\n")
    name = ""
    for line in section.splitlines():
        if not line.startswith("    "):
            break
        if not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            found[name] = text
        else:
            found[name] += f" {line.strip()}"
    return found


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
