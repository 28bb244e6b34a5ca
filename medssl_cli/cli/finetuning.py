"""From the words of `medssl finetune` to what is trained, and where."""

from pathlib import Path
from typing import TYPE_CHECKING

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.places import outside_caches

if TYPE_CHECKING:
    from medssl_cli.base.talk import Talk
    from medssl_cli.cache.named_splits import GivenSplit
    from medssl_cli.engine.choices import Choices
    from medssl_cli.recipe import TaskRecipe


def task_recipe(task: str, overrides: list[str] | None) -> "tuple[Path, TaskRecipe]":
    """The file of a task's recipe, and what it says; with stand-ins for what is to be planned (`planned_recipe`).

    Raises:
        UsageError: `E_RECIPE`, `E_RECIPE_NOT_FOUND`.
    """
    from medssl_cli.recipe import TaskRecipe, find_recipe, load_recipe

    path = find_recipe(task, ("tasks",))
    recipe = load_recipe(path, overrides, is_sketch=True)
    if not isinstance(recipe, TaskRecipe):
        raise UsageError("E_RECIPE", f"{path.name} is a pre-training recipe", hint="use it with medssl pretrain")
    return path, recipe


def planned_recipe(
    path: Path,
    overrides: list[str] | None,
    cache: Path,
    root: Path,
    *,
    device: str,
    num_processes: int,
    talk: "Talk",
    minutes: float | None,
    split: "GivenSplit | None",
) -> "TaskRecipe":
    """A task's recipe with a plan in the place of every `auto`; a run that has begun goes on with its own.

    Args:
        path: Path of its file.
        overrides: As they were typed.
        cache: Folder with the labelled images.
        root: Run folder.
        device: Device of the training.
        num_processes: Number of processes over which the training is spread.
        talk: Told what was planned.
        minutes: Time limit of the training.
        split: Files that say who tests, instead of the rule.

    Raises:
        MedsslError: See `engine.planning.plan_task`.
        UsageError: `E_USAGE`, several processes would each plan for themselves.
    """
    from medssl_cli.recipe import TaskRecipe, automatic_keys, raw_recipe, validate_recipe

    document = raw_recipe(path, overrides)
    if automatic_keys(document):
        from medssl_cli.cache.store import Cache
        from medssl_cli.engine.planning import with_plan

        if num_processes > 1:
            raise UsageError(
                "E_USAGE",
                f"{path.name} leaves values to a plan, and several processes cannot make one together",
                hint=f"write it down first: medssl plan --task {path} --cache {cache} -o NEW.yaml",
            )
        document = with_plan(document, Cache.open(cache), root, device=device, talk=talk, minutes=minutes, given=split)
    recipe = validate_recipe(document, source=path.name)
    assert isinstance(recipe, TaskRecipe)
    return recipe


def require_patients(fraction: float, patients: int | None) -> None:
    """Refuse options that leave nobody to train on, or say twice how many there are.

    Raises:
        UsageError: `E_USAGE`.
    """
    if not fraction > 0:
        raise UsageError("E_USAGE", "--fraction 0 leaves no patients to train on", hint="for example --fraction 0.1")
    if patients is not None and fraction < 1:
        raise UsageError("E_USAGE", "--patients and --fraction say the same thing", hint="give one of them")


def run_folder(
    given: Path | None, path: Path, recipe: "TaskRecipe", init: str, choices: "Choices", num_folds: int | None
) -> Path:
    """The folder of a run; by default a readable one, and another one for other choices.

    Args:
        given: As it was typed.
        path: Path of the recipe.
        recipe: What is trained.
        init: As it was typed.
        choices: What decides who is learnt from.
        num_folds: As it was typed.

    Raises:
        UsageError: `E_USAGE`, it lies in a cache.
    """
    from medssl_cli.engine.runs import run_name
    from medssl_cli.recipe import load_recipe

    if given is not None:
        return outside_caches(given)
    parts = ["scratch" if choices.encoder is None else Path(init).name]
    parts += ["folds" if choices.is_cross_validation else f"fold{choices.fold}"]
    parts += [f"of{num_folds}"] if num_folds is not None else []
    parts += ["split"] if choices.split is not None else []
    parts += [f"{100 * choices.fraction:g}pct"] if choices.fraction < 1 else []
    parts += [f"{choices.patients}patients"] if choices.patients is not None else []
    parts += [f"draw{choices.draw}"] if choices.draw else []
    return outside_caches(Path("runs") / run_name(path.stem, recipe, load_recipe(path, is_sketch=True), parts))
