"""The page of a training: its losses, its validation or the health of its embeddings, and what was run."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from PIL import Image

from medssl_cli.report.page import Figure, Page
from medssl_cli.report.plots import Curve, loss_curves

Entries = Sequence[Mapping[str, Any]]
NOT_PARTS: Final = ("step", "loss", "learning_rate")
NOT_OF_STEPS: Final = ("baseline/", "val_")
CHANCE: Final = "chance"
HEALTH_WORDS: Final = {
    "std": "standard deviation",
    "std_evenly_spread": "standard deviation of evenly spread directions",
    "rank": "effective rank (RankMe)",
}
READ_BY: Final = {"neighbours": "nearest neighbours", "linear": "linear probe"}


def run_page(document: Mapping[str, Any]) -> str:
    """HTML of a pre-training that runs or is over.

    Args:
        document: Facts of `engine.live_page.run_facts` and of a pre-training's goal.
    """
    recipe = document["recipe"]
    page = Page(f"Pre-training {document['run']}", f"{recipe['method']['name']} on {recipe['backbone']['name']}")
    for alarm in document["alarms"]:
        page.notice(f"`{alarm['code']}` {alarm['message']}", kind="bad" if alarm["code"] == "W_COLLAPSE" else "warning")
    if not document["alarms"]:
        page.notice(_state(document), kind="good" if document["progress"] >= 1 else "info")
    page.key_values(
        {
            **_done(document),
            "images": document["num_items"],
            "patients": document["num_patients"],
            "volumes per step": recipe["data"]["batch_size"] * recipe["accumulate"],
            **_settings(recipe),
        }
    )
    if document["metrics"]:
        _losses(
            page,
            document["metrics"],
            "Thin: as logged; thick: smoothed. Dashed: the loss of predictors that have learnt nothing; a method that "
            "learns passes below all of them.",
            baselines=document["baselines"],
        )
    if document["health"]:
        _health(page, document["health"])
    if document["matrices"]:
        _matrices(page, document["matrices"])
    if document.get("pictures"):
        _pictures(page, document["pictures"])
    return _with_origin(page, document).render()


def finetuning_page(document: Mapping[str, Any]) -> str:
    """HTML of a fine-tuning that runs or is over.

    Args:
        document: Facts of `engine.live_page.run_facts` and of a fine-tuning's goal.
    """
    recipe, score, best = document["recipe"], document["score"], document["best_score"]
    page = Page(f"Fine-tuning {document['run']}", f"{recipe['task']['name']} on {recipe['backbone']['name']}")
    found = f"best validation {score} {best:.4f} at step {document['best_step']}" if best is not None else ""
    is_over = document["progress"] >= 1
    page.notice(": ".join(filter(None, ["Finished" if is_over else "In progress", found])), kind="info")
    for alarm in document["alarms"]:
        page.notice(f"`{alarm['code']}` {alarm['message']}", kind="bad")
    page.key_values(
        {
            **_done(document, max_minutes=document["max_minutes"]),
            "training images": document["num_items"],
            "training patients": document["num_patients"],
            **_unlabelled(document),
            "validation patients": document["num_validation_patients"],
            "images per step": recipe["data"]["batch_size"] * recipe["accumulate"],
            **_settings(recipe),
        }
    )
    validations = [entry for entry in document["metrics"] if f"val_{score}" in entry]
    if validations:
        _validations(page, validations, score)
    if document["metrics"]:
        _losses(page, document["metrics"], "Thin: as logged; thick: smoothed.")
    return _with_origin(page, document).render()


def _unlabelled(document: Mapping[str, Any]) -> dict[str, Any]:
    """How many images without labels take part, and what is made of them; nothing where none do."""
    section = document["recipe"].get("unlabelled")
    if section is None:
        return {}
    images, patients = document["num_unlabelled_items"], document["num_unlabelled_patients"]
    return {
        "unlabelled images": f"{images} of {patients} patients, {section['method']}",
        "weights that are kept": f"the {section['keep']}'s",
    }


def _done(document: Mapping[str, Any], *, max_minutes: float | None = None) -> dict[str, str]:
    """How much is done, and how long the rest takes."""
    whole = f"{document['recipe']['steps']:,} steps" if max_minutes is None else f"{max_minutes:g} minutes"
    left_s = document.get("time_left_s")
    left = {} if left_s is None else {"time left": _duration(left_s)}
    return {"done": f"{document['progress']:.0%} of {whole}", **left}


def _duration(seconds: float) -> str:
    """Time in the unit that people would use."""
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {seconds:.0f} seconds"


def _settings(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Settings that decide about speed."""
    return {"crop": " x ".join(map(str, recipe["data"]["crop_size"])), "precision": recipe["precision"]}


def _with_origin(page: Page, document: Mapping[str, Any]) -> Page:
    """Add what was run, and with which versions."""
    environment = document["environment"]
    packages = "\n".join(f"{name} {version}" for name, version in environment["packages"].items())
    page.heading("Recipe and environment").code(
        yaml.safe_dump(dict(document["recipe"]), sort_keys=False, default_flow_style=None, width=100), caption="Recipe"
    )
    head = f"medssl {environment['medssl']}\npython {environment['python']} on {environment['platform']}"
    return page.code(f"{head}\n{packages}", caption="Versions")


def _validations(page: Page, entries: Entries, score: str) -> None:
    """Add the course of the score, of all classes together and of each."""
    keys = [key for key in dict.fromkeys(name for entry in entries for name in entry) if key.startswith(f"val_{score}")]
    shown = {key: key.partition("/")[2] or "all" for key in keys}
    page.heading("Validation").paragraph("On the validation patients; the weights of the best step are kept.")
    drawn = loss_curves({name: _curve(entries, key) for key, name in shown.items()}, ylabel=score)
    page.figure(drawn, alt=f"Validation {score} over steps, of all classes and of each")
    first, now = entries[0], entries[-1]
    rows = [(name, first.get(key), now.get(key)) for key, name in shown.items()]
    page.table(("class", f"step {first['step']}", f"step {now['step']}"), rows)


def _state(document: Mapping[str, Any]) -> str:
    if document["progress"] < 1:
        return "In progress; nothing gives cause for concern so far."
    learnt = ", and the loss is below that of every predictor that looks at nothing" if document["baselines"] else ""
    return f"Finished; the embeddings have not collapsed{learnt}."


def _losses(page: Page, metrics: Entries, explained: str, *, baselines: Mapping[str, float] | None = None) -> None:
    """Add the loss, its parts, whatever else was logged of steps, and the learning rate."""
    page.heading("Loss").paragraph(explained)
    total = loss_curves({"loss": _curve(metrics, "loss")}, baselines=baselines)
    beside = " beside the losses of trivial predictors" if baselines else ""
    page.figure(total, alt=f"Loss over steps{beside}")
    parts = [key for key in metrics[-1] if key not in NOT_PARTS and not key.startswith(NOT_OF_STEPS)]
    groups: dict[str, dict[str, Curve]] = defaultdict(dict)
    for part in parts:
        group, _, name = part.rpartition("/")
        groups[group][name] = _curve(metrics, part)
    figures = []
    for group, curves in groups.items():
        drawn = loss_curves(curves, ylabel="value")
        caption = f"Diagnostics of {group}: {', '.join(curves)}" if group else "Parts of the loss and diagnostics"
        figures.append(Figure(drawn, f"{caption} over steps", caption))
    rate = loss_curves({"learning rate": _curve(metrics, "learning_rate")}, ylabel="learning rate")
    figures.append(Figure(rate, "Learning rate over steps", "Learning rate"))
    page.figures(figures)


def _health(page: Page, health: Entries) -> None:
    first, now = health[0], health[-1]
    page.heading("Health of the embeddings").paragraph(
        "Measured on the same crops of training images every time. The standard deviation of unit embeddings is 0 "
        "where all images look the same to the network; the effective rank (RankMe) counts the directions in use. "
        "Step 0 is the randomly initialised network."
    )
    rows = [(name, first.get(key), now.get(key)) for key, name in _figures(now)]
    page.table(("figure", f"step {first['step']}", f"step {now['step']}"), rows)
    spread = loss_curves(
        {"standard deviation": _curve(health, "health/std")},
        baselines={"evenly spread": now["health/std_evenly_spread"]},
        ylabel="standard deviation",
    )
    rank = loss_curves({"effective rank": _curve(health, "health/rank")}, ylabel="effective rank")
    figures = [
        Figure(spread, "Standard deviation of the embeddings over steps", "Standard deviation"),
        Figure(rank, "Effective rank of the embeddings over steps", "Effective rank"),
    ]
    for question in _questions(now):
        curves = {shown: _curve(health, f"probe/{question}/{key}") for key, shown in READ_BY.items()}
        chance = {CHANCE: now[f"probe/{question}/{CHANCE}"]}
        drawn = loss_curves(curves, baselines=chance, ylabel="balanced accuracy")
        caption = f"What embeddings tell: {question}, scored on other patients than it was fitted on"
        figures.append(Figure(drawn, f"Balanced accuracy of {question} over steps", caption))
    page.figures(figures)


def _figures(now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys of an entry with the words for them."""
    for key in now:
        group, _, rest = key.partition("/")
        if group == "health":
            yield key, HEALTH_WORDS.get(rest, f"mean of {rest} off the diagonal")
        elif group == "probe":
            question, _, reader = rest.rpartition("/")
            yield key, f"{question}, {READ_BY.get(reader, reader)}"


def _questions(now: Mapping[str, Any]) -> list[str]:
    ending = f"/{CHANCE}"
    return [key.removeprefix("probe/").removesuffix(ending) for key in now if key.endswith(ending)]


def _pictures(page: Page, files: Sequence[Path]) -> None:
    page.heading("Pictures of the method").paragraph("Of training images, as the network stands now.")
    figures = []
    for path in files:
        with Image.open(path) as picture:
            picture.load()
            figures.append(Figure(picture.copy(), f"Picture of {path.stem}", path.stem))
    page.figures(figures, columns=2)


def _matrices(page: Page, files: Sequence[Path]) -> None:
    page.heading("Matrices of the method").paragraph("White is 0, blue 1, red -1; darker is larger.")
    figures = []
    for path in files:
        name = path.stem.removesuffix("-start")
        when = "untrained" if path.stem.endswith("-start") else "now"
        with Image.open(path) as picture:
            picture.load()
            figures.append(Figure(picture.copy(), f"Matrix {name}, {when}", f"{name}, {when}"))
    page.figures(figures, columns=4)


def _curve(entries: Entries, key: str) -> Curve:
    """Values by step; what was not measured or not finite is left out of the drawing."""
    values = [entry.get(key) for entry in entries]
    return Curve([entry["step"] for entry in entries], [math.nan if value is None else value for value in values])
