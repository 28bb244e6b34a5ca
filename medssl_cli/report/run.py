"""The page of a pre-training: losses beside those of trivial predictors, the embeddings' health, what was run."""

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
        document: As `engine.health.run_document` returns it.
    """
    metrics, health = document["metrics"], document["health"]
    recipe = document["recipe"]
    page = Page(f"Pre-training {document['run']}", f"{recipe['method']['name']} on {recipe['backbone']['name']}")
    for alarm in document["alarms"]:
        page.notice(f"`{alarm['code']}` {alarm['message']}", kind="bad" if alarm["code"] == "W_COLLAPSE" else "warning")
    if not document["alarms"]:
        page.notice(_state(document), kind="good" if document["progress"] >= 1 else "info")
    page.key_values(
        {
            "done": f"{document['progress']:.0%} of {recipe['steps']:,} steps",
            "images": document["num_items"],
            "patients": document["num_patients"],
            "volumes per step": recipe["data"]["batch_size"] * recipe["accumulate"],
            "crop": " x ".join(map(str, recipe["data"]["crop_size"])),
            "precision": recipe["precision"],
        }
    )
    if metrics:
        _losses(page, metrics, document["baselines"])
    if health:
        _health(page, health)
    if document["matrices"]:
        _matrices(page, document["matrices"])
    environment = document["environment"]
    packages = "\n".join(f"{name} {version}" for name, version in environment["packages"].items())
    page.heading("Recipe and environment").code(
        yaml.safe_dump(dict(recipe), sort_keys=False, default_flow_style=None, width=100), caption="Recipe"
    )
    head = f"medssl {environment['medssl']}\npython {environment['python']} on {environment['platform']}"
    page.code(f"{head}\n{packages}", caption="Versions")
    return page.render()


def _state(document: Mapping[str, Any]) -> str:
    if document["progress"] < 1:
        return "In progress; nothing gives cause for concern so far."
    learnt = ", and the loss is below that of every predictor that looks at nothing" if document["baselines"] else ""
    return f"Finished; the embeddings have not collapsed{learnt}."


def _losses(page: Page, metrics: Entries, baselines: Mapping[str, float]) -> None:
    page.heading("Loss").paragraph(
        "Thin: as logged; thick: smoothed. Dashed: the loss of predictors that have learnt nothing; a method that "
        "learns passes below all of them."
    )
    total = loss_curves({"loss": _curve(metrics, "loss")}, baselines=baselines)
    page.figure(total, alt="Loss over steps beside the losses of trivial predictors")
    parts = [key for key in metrics[-1] if key not in NOT_PARTS and not key.startswith("baseline/")]
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
