"""What `medssl plan` shows of the images, and writes above a recipe."""

import re
from pathlib import Path
from typing import Any

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.places import require_place_of_file
from medssl_cli.cli.terminal import table


def show(fingerprint: Any) -> None:
    """The fingerprint as two tables on stdout."""
    document = fingerprint.document()
    modalities = ", ".join(f"{count} {name}" for name, count in document["modalities"].items())
    rows = [
        [
            title,
            *("  ".join(f"{value:g}" for value in document[key][share]) for share in ("0", "10", "50", "90", "100")),
        ]
        for key, title in (("shape", "voxels"), ("spacing_mm", "spacing, mm"), ("sizes", "boxes"))
        if document[key] is not None
    ]
    title = f"{document['num_images']} images of {document['num_patients']} patients ({modalities}), no test patients"
    table(title, ["x y z", "least", "10 %", "median", "90 %", "most"], rows)
    channels = document["channels"]
    rows = [
        [
            each["name"],
            str(each["num_images"]),
            str(each["num_patients"]),
            f"{each['low']:.3g}",
            f"{each['median']:.3g}",
            *(_range(channel["by_class"].get(each["name"])) for channel in channels),
        ]
        for each in document["classes"]
    ]
    unit = document["unit"]
    heads = ["class", "images", "patients", f"{unit}, 10 %", f"{unit}, median"]
    table(
        f"labels {document['label_set']}",
        [*heads, *(f"values {channel['name']}".strip() for channel in channels)],
        rows,
    )


def _range(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['low']:.3g} to {found['high']:.3g}"


def head_of(found: Any, cache: Path, output: Path | None) -> list[str]:
    """Comments above a planned recipe."""
    fingerprint, cost, budget = found.fingerprint, found.cost, found.budget
    where = output if output is not None else "RECIPE.yaml"
    lines = [
        f"Planned by medssl from {fingerprint.num_images} images of {fingerprint.num_patients} patients, without those "
        "who test.",
        "",
        f"Command:   medssl finetune --task {where} --cache {cache} --max-minutes {budget.minutes:g}",
    ]
    if cost is not None:
        lines.append(
            f"Needs:     {cost.memory_bytes / 1e9:.2g} GB and {cost.step_s:.2g} s a step, as tried on {budget.device}"
        )
    return [*lines, "Expected:  not measured yet"]


def require_place(output: Path | None) -> None:
    """Refuse a recipe's place before the work: a file that is there, a folder that is not, the inside of a cache.

    Raises:
        UsageError: `E_OUTPUT_EXISTS`, `E_NOT_FOUND`, `E_USAGE`.
    """
    if output is None:
        return
    if output.exists():
        raise UsageError("E_OUTPUT_EXISTS", f"{output} exists already")
    require_place_of_file(output)


def task_name(output: Path | None, labels: str | None) -> str:
    """Name of the installed model: that of the file, as far as it may be one."""
    stem = output.stem if output is not None else f"{labels}-task"
    return re.sub(r"[^A-Za-z0-9_-]", "-", stem).lstrip("-_")[:64] or "planned"


def bytes_of(memory: str | None) -> float | None:
    """Bytes of `8GB`, `512MB` or `1.5GiB`.

    Raises:
        UsageError: `E_USAGE`.
    """
    if memory is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?\s*", memory.lower())
    if found is None or float(found[1]) == 0:
        raise UsageError("E_USAGE", f"--memory {memory!r} is no amount of memory", hint="for example --memory 8GB")
    return float(found[1]) * float((1024 if found[3] else 1000) ** ("kmgt".index(found[2]) + 1))


def next_words(split_file: list[str] | None, *, skip_missing: bool) -> str:
    """What of the plan's options the training needs, too."""
    words = [f" --split-file {each}" for each in split_file or []]
    return "".join([*words, *[" --skip-missing"] * skip_missing])
