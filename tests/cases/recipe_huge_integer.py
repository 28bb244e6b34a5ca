"""Called a bug: a recipe with an integer of thousands of hexadecimal digits.

Right: E_RECIPE, exit 2.
"""

from pathlib import Path

from tests.cases._case import call
from tests.cases._model import RECIPE


def run(medssl: str, folder: Path) -> dict:
    (folder / "huge.yaml").write_text(RECIPE.replace("steps: 60\n", f"steps: 0x{'f' * 6000}\n", 1))
    done = call(medssl, "recipes", "check", folder / "huge.yaml")
    return {"expected": {"exit": 2}, "found": {"exit": done.returncode}}
