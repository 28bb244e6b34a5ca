"""From the words of `medssl study labels` to what is compared, and where."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.places import outside_caches

if TYPE_CHECKING:
    from medssl_cli.cache.named_splits import GivenSplit
    from medssl_cli.study.label_plan import LabelStudyPlan
    from medssl_cli.study.labels import Scored


def study_plan(
    task: str,
    overrides: list[str] | None,
    inits: Sequence[str],
    described: Sequence[str],
    *,
    patients: str,
    steps: str | None,
    draws: int | None,
    seeds: int,
    minus: str,
    out: Path | None,
    split: "GivenSplit | None",
) -> "tuple[LabelStudyPlan, Path]":
    """What is compared, and the folder of its runs and results.

    Raises:
        UsageError: `E_USAGE`, `E_RECIPE`, `E_RECIPE_NOT_FOUND`.
    """
    from medssl_cli.recipe import TaskRecipe, find_recipe, load_recipe, raw_recipe
    from medssl_cli.study.arms import arms_of
    from medssl_cli.study.label_plan import LabelStudyPlan, parse_numbers

    path = find_recipe(task, ("tasks",))
    if not isinstance(load_recipe(path, overrides, is_sketch=True), TaskRecipe):
        raise UsageError("E_RECIPE", f"{path.name} is a pre-training recipe", hint="name a task recipe")
    arms = arms_of(inits, described)
    names = [arm.name for arm in arms]
    if minus not in names:
        raise UsageError("E_USAGE", f"--minus {minus} is no arm", hint=f"take one of {', '.join(names)}")
    plan = LabelStudyPlan(
        raw_recipe(path, overrides),
        path.name,
        arms,
        parse_numbers(patients),
        seeds,
        draws,
        () if steps is None else parse_numbers(steps, "--steps", "500,1500"),
        split,
    )
    return plan, outside_caches(out or Path("runs") / f"labels-{path.stem}")


def study_document(plan: "LabelStudyPlan", scored: "Sequence[Scored]", *, minus: str) -> dict[str, Any]:
    """What `results.json` holds."""
    from medssl_cli.recipe import recipe_hash
    from medssl_cli.study.label_results import label_results

    recipe = plan.arms[0].recipe(plan.document, steps=None, source=plan.source)
    about = {
        "task": recipe.name,
        "num_seeds": plan.num_seeds,
        "num_draws": plan.num_draws,
        "recipe_sha256": recipe_hash(recipe),
        "arms": [{"name": arm.name, "init": arm.init, "set": list(arm.overrides)} for arm in plan.arms],
    }
    return label_results(scored, about, kind=recipe.task.name, steps=recipe.steps, baseline=minus)
