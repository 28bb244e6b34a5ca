"""How a case is judged."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from tests.cases._case import differences, ingest, stored

MEDSSL = f"{sys.executable} -m medssl_cli"
NAMES = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith(("_", "test_", "check"))
)


def case_of(name: str) -> ModuleType:
    """A case's module."""
    return importlib.import_module(f"tests.cases.{name}")


def problems(name: str, folder: Path) -> list[str]:
    """What is wrong in a case; empty if nothing is."""
    case = case_of(name)
    if hasattr(case, "run"):
        result = case.run(MEDSSL, folder)
        return [
            f"{key}: found {result['found'].get(key)!r}, expected {value!r}"
            for key, value in result["expected"].items()
            if result["found"].get(key) != value
        ]
    found = []
    for key, each in case.build(folder)["variants"].items():
        cache = folder / f"cache-{each['input']}-{len(each['options'])}"
        code, report = ingest(MEDSSL, cache, folder / each["input"], *each["options"])
        found += [f"{key}: {text}" for text in differences(each["expect"], code, report, stored(MEDSSL, cache))]
    return found
