"""A plan for a task from the labelled images of a cache: fingerprint, drafts, trials on the device, a recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medssl_cli.base import plugins
from medssl_cli.base.errors import GateError, NothingUsableError, UsageError
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.named_splits import GivenSplit, held_out_by_names, split_by_names
from medssl_cli.cache.reading import NAMED_SETS
from medssl_cli.cache.splits import Split, held_out_patients, shuffled, split_items
from medssl_cli.cache.store import Cache
from medssl_cli.engine.build import build_task
from medssl_cli.engine.devices import resolve_device
from medssl_cli.engine.runs import LOCK, open_run
from medssl_cli.engine.step_cost import StepCost, StepMeter, memory_at_hand
from medssl_cli.plan.channels import own_data
from medssl_cli.plan.common import WANTED_STEPS, PlanBudget, pace_values, require_sound
from medssl_cli.plan.draft import Draft, Pins, filled
from medssl_cli.plan.fingerprint import Fingerprint
from medssl_cli.plan.planner import TaskPlanner
from medssl_cli.recipe import TaskRecipe, automatic_keys, dump_recipe, validate_recipe
from medssl_cli.tasks import load_part, supervision_of
from medssl_cli.unlabelled import KIND

DEFAULT_MINUTES: Final = 60.0
NUM_TRIED: Final = 4
"""Images that trials learn from."""
SCALES: Final = (1.0, 0.5, 0.25, 0.125)
"""Shares of what a step reads, where memory is short."""
HOPELESS: Final = 3.0
"""A draft that would take so many times too long, by its nominal cost, is not tried."""
MEASURED: Final = ("steps", "backbone", "data.batch_size", "data.crop_size")
"""What is planned by trying steps; everything else follows from the images."""
KEPT: Final = ("name", "seed", "split_seed", "intended_use", "evaluation", "unlabelled")
"""Keys of a recipe that stay when it is planned anew; its task and its images stay too."""

Measure = Callable[[TaskRecipe], StepCost | None]
"""What a step of a recipe takes; None if it needs more memory than there is."""


@dataclass(frozen=True)
class TaskPlan:
    """A planned recipe and how it came about.

    Args:
        draft: Every value with its reason.
        recipe: The same, validated.
        fingerprint: Fingerprint of the images.
        budget: Budget of the training.
        cost: Cost of a step; None if none was tried.
        num_considered: Drafts that were tried.
    """

    draft: Draft
    recipe: TaskRecipe
    fingerprint: Fingerprint
    budget: PlanBudget
    cost: StepCost | None
    num_considered: int

    def document(self) -> dict[str, Any]:
        """For JSON."""
        cost = self.cost
        return {
            "fingerprint": self.fingerprint.document(),
            "recipe": self.draft.document(),
            "reasons": {key: planned.reason for key, planned in self.draft.values.items()},
            "device": self.budget.device,
            "memory_bytes": int(self.budget.memory_bytes),
            "minutes": self.budget.minutes,
            "step_s": None if cost is None else round(cost.step_s, 4),
            "step_memory_bytes": None if cost is None else cost.memory_bytes,
            "num_considered": self.num_considered,
        }


def own_task(cache: Cache, label_set: str, name: str) -> dict[str, Any]:
    """A recipe for somebody's own labels, of which everything else is to be planned.

    Where a set holds labels of several kinds, those are meant that most images have.

    Raises:
        NothingUsableError: `E_NO_LABELS`.
    """
    everything = cache.records()
    planners = [planner for task in plugins.names("task") if (planner := planner_of(task, is_needed=False)) is not None]
    found = [(planner, _labelled(everything, planner, label_set)) for planner in planners]
    planner, labelled = max(found, key=lambda pair: len(pair[1]))
    if labelled:
        task = planner.own_task(labelled, label_set)
        return {"schema": 1, "name": name, "task": task, "data": own_data(everything, labelled)}
    known = sorted(
        {label for record in everything for kind in ("labels", "boxes", "findings") for label in getattr(record, kind)}
    )
    raise NothingUsableError(
        "E_NO_LABELS",
        f"no image has labels of the set {label_set!r}; the cache has {', '.join(known[:NAMED_SETS]) or 'none at all'}",
    )


def science_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan keeps of a recipe: its task, which images it takes, its name and its seeds.

    Raises:
        UsageError: `E_RECIPE`, it is no recipe of a task.
    """
    data, told = document.get("data") or {}, document.get("task")
    if not isinstance(told, Mapping) or "name" not in told or not isinstance(data, Mapping):
        raise UsageError("E_RECIPE", "a plan is for a task, and the recipe names none", hint="name a task recipe")
    images: dict[str, Any] = {key: data[key] for key in ("modality",) if key in data}
    channels = data.get("channels")
    if isinstance(channels, list) and all(isinstance(each, Mapping) and "name" in each for each in channels):
        images["channels"] = [{"name": channel["name"]} for channel in channels]
    task = {key: value for key, value in told.items() if key != "decoder"}
    return {"schema": 1, **{key: document[key] for key in KEPT if key in document}, "task": task, "data": images}


def plan_task(
    document: Mapping[str, Any],
    cache: Cache,
    *,
    device: str,
    talk: Talk,
    memory_bytes: float | None = None,
    minutes: float | None = None,
    measure: Measure | None = None,
    given: GivenSplit | None = None,
) -> TaskPlan:
    """Plan what a recipe does not give.

    Args:
        document: A recipe with its task; what it gives stays, unless it is `auto`.
        cache: Holds the labelled images. Test patients are not looked at.
        device: auto, cpu, cuda or cuda:N.
        talk: Told how it goes.
        memory_bytes: Most memory of a step.
        minutes: Minutes of the whole training.
        measure: Instead of trials on the device.
        given: Files that say who tests, instead of the rule.

    Raises:
        UsageError: Wrong recipe or device; `E_USAGE`, the task cannot be planned; `E_SPLIT_FILE`, `E_SPLIT_NAMES`,
            `E_SPLIT_PATIENT`.
        NothingUsableError: `E_NO_LABELS`, `E_TOO_FEW_PATIENTS`.
        GateError: `E_PLAN_MEMORY`.
    """
    resolved = resolve_device(device)
    pins = _with_paired_batch(Pins(document))
    require_sound(pins)
    planner = planner_of(document["task"]["name"])
    records = _labelled(cache.records(), planner, pins.get("task.label_set", "seg"))
    sketch = _sketch(planner, pins, records)
    supervision = supervision_of(sketch)
    usable = supervision.usable(cache, talk)
    split, held_out = _held_out(cache, usable, sketch.split_seed, given)
    kept = [record for record in usable if record.patient_key not in held_out]
    supervision.check(cache, usable, split, talk)
    fingerprint = planner.look(cache, supervision, kept, talk)
    is_measured = not all(pins.has(key) for key in MEASURED) or not pins.is_whole("backbone")
    budget = PlanBudget(
        device=resolved.partition(":")[0],
        memory_bytes=memory_bytes or memory_at_hand(resolved),
        minutes=minutes or DEFAULT_MINUTES,
        is_measured=is_measured,
    )
    if not is_measured:
        draft = planner.drafts(pins, fingerprint, budget, scale=1.0)[0]
        return _planned(draft.with_values(_pace(pins, budget, draft, None)), fingerprint, budget, None, 0)
    if measure is not None:
        return _tried(planner, pins, fingerprint, budget, measure, talk)
    tried = shuffled(sorted(record.item_id for record in kept), 0)[:NUM_TRIED]
    with StepMeter(
        cache.root, [cache.record(item_id) for item_id in tried], device=resolved, memory_bytes=budget.memory_bytes
    ) as meter:
        return _tried(planner, pins, fingerprint, budget, meter.measure, talk)


def planner_of(task: str, *, is_needed: bool = True) -> Any:
    """What plans for a task; None if it has no planner and none is needed.

    Raises:
        UsageError: `E_UNKNOWN_NAME`; `E_USAGE`, the task has no planner.
    """
    plugins.load("task", task)
    try:
        return load_part(task, "plan").PLANNER
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.endswith(f"{task}.plan"):
            raise
    if is_needed:
        raise UsageError("E_USAGE", f"the task {task} has no plan.py, so nothing can be planned for it")
    return None


def with_plan(
    document: dict[str, Any],
    cache: Cache,
    root: Path,
    *,
    device: str,
    talk: Talk,
    minutes: float | None,
    given: GivenSplit | None = None,
) -> dict[str, Any]:
    """A recipe with every `auto` replaced: by what its run began with, or else by a plan.

    Args:
        document: As it is written; without `auto` it is returned as it is.
        cache: Holds the labelled images.
        root: Run folder.
        device: Device of the training.
        talk: Told what was planned.
        minutes: Time limit of the training.
        given: Files that say who tests, instead of the rule.

    Raises:
        MedsslError: See `plan_task`.
    """
    keys = automatic_keys(document)
    if not keys:
        return document
    for begun in (root, *sorted(path.parent for path in root.glob(f"*/{LOCK}"))):
        if (begun / LOCK).is_file():
            return filled(document, dump_recipe(open_run(begun).recipe))
    data = {"spacing_mm": None, **document.get("data", {})}  # without a spacing images keep their own
    plan = plan_task({**document, "data": data}, cache, device=device, talk=talk, minutes=minutes, given=given)
    planned = plan.draft.document()
    for key in keys:
        found: Any = planned
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        reason = plan.draft.values[key].reason if key in plan.draft.values else ""
        talk.note(f"planned: {key} = {found}{f' ({reason})' * bool(reason)}")
    return filled(document, planned)


def _with_paired_batch(pins: Pins) -> Pins:
    """The same; where each labelled image is paired with an unlabelled one, a number of either is that of both."""
    method, number = pins.get("unlabelled.method"), pins.get("unlabelled.batch_size")
    if number is None or pins.has("data.batch_size") or not isinstance(pins.get("data", {}), Mapping):
        return pins
    if not plugins.load(KIND, str(method)).METHOD.pairs_images:
        return pins
    return Pins({**pins.document, "data": {**pins.get("data", {}), "batch_size": number}})


def _labelled(everything: Sequence[ItemRecord], planner: TaskPlanner, label_set: str) -> list[ItemRecord]:
    """Images with the labels that a task learns from."""
    return [record for record in everything if label_set in getattr(record, planner.annotation)]


def _held_out(
    cache: Cache, usable: Sequence[ItemRecord], seed: int, given: GivenSplit | None
) -> tuple[Split, set[str]]:
    """The first fold, and whom a plan must not look at: who tests in any fold, by the files or by the rule."""
    everything = cache.records()
    if given is None:
        return split_items(everything, usable, seed=seed, fold=0), held_out_patients(everything, seed)
    first, _ = split_by_names(everything, usable, given, cache.pseudonyms, seed=seed, fold=0)
    return first, held_out_by_names(everything, given, cache.pseudonyms)


def _sketch(planner: TaskPlanner, pins: Pins, records: Sequence[ItemRecord]) -> TaskRecipe:
    sketch = validate_recipe(planner.sketch(pins, records), source="the task")
    assert isinstance(sketch, TaskRecipe)
    return sketch


def _tried(
    planner: TaskPlanner, pins: Pins, fingerprint: Fingerprint, budget: PlanBudget, measure: Measure, talk: Talk
) -> TaskPlan:
    """The dearest draft that memory and time allow, or the cheapest one if time allows none."""
    count = 0
    least = float("inf")
    for scale in SCALES:
        best: tuple[Draft, StepCost] | None = None
        for draft in sorted(planner.drafts(pins, fingerprint, budget, scale=scale), key=lambda draft: draft.cost):
            if best is not None and _is_hopeless(draft, *best, budget):
                break
            count += 1
            talk.progress("trying steps", count, 0, _named(draft))
            cost = measure(_recipe(draft.with_values(_pace(pins, budget, draft, None))))
            least = min(least, float("inf") if cost is None else cost.memory_bytes)
            if cost is None or cost.memory_bytes > budget.memory_bytes:
                break
            if best is not None and budget.steps(cost.step_s) < min(WANTED_STEPS, draft.most_steps):
                break
            best = draft, cost
        if best is not None:
            draft, cost = best
            return _planned(draft.with_values(_pace(pins, budget, draft, cost)), fingerprint, budget, cost, count)
    given = [key for key in ("data.crop_size", "data.batch_size", "backbone") if pins.has(key)]
    around = f" around {' and '.join(given)} as given" if given else ""
    needed = "more than there is" if least == float("inf") else f"{least / 1e9:.2g} GB"
    raise GateError(
        "E_PLAN_MEMORY",
        f"a step of the smallest plan{around} takes {needed}, and {budget.memory_bytes / 1e9:.2g} GB may be taken",
    )


def _is_hopeless(draft: Draft, best: Draft, cost: StepCost, budget: PlanBudget) -> bool:
    wanted = min(WANTED_STEPS, draft.most_steps)
    return HOPELESS * budget.steps(cost.step_s * draft.cost / best.cost) < wanted


def _named(draft: Draft) -> str:
    document = draft.document()
    network = document["backbone"]
    return f"{network['name']} {network.get('channels', '')} crops {document['data']['crop_size']}"


def _pace(pins: Pins, budget: PlanBudget, draft: Draft, cost: StepCost | None) -> dict[str, Any]:
    """Steps, as given or as many as there is time for, and what depends on them."""
    least = 1 + (pins.get("schedule.warmup_steps") or 0)
    if pins.has("steps") or cost is None:
        values = pace_values(pins.get("steps", max(WANTED_STEPS, least)), "as given")
    else:
        steps = budget.steps(cost.step_s)
        reason = f"{budget.minutes:g} minutes at {cost.step_s:.2g} s a step; --max-minutes holds whatever comes"
        if steps > draft.most_steps:
            steps, reason = draft.most_steps, "more would teach nothing about so few images"
        if steps < least:
            steps, reason = least, "the warm-up alone takes as many; there is no time for more"
        values = pace_values(steps, reason)
    return {key: value for key, value in values.items() if key == "steps" or not pins.has(key)}


def _planned(draft: Draft, fingerprint: Fingerprint, budget: PlanBudget, cost: StepCost | None, count: int) -> TaskPlan:
    recipe = _recipe(draft)
    build_task(recipe)
    return TaskPlan(draft, recipe, fingerprint, budget, cost, count)


def _recipe(draft: Draft) -> TaskRecipe:
    recipe = validate_recipe(draft.document(), source="the plan")
    assert isinstance(recipe, TaskRecipe)
    return recipe
