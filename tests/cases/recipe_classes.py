"""Tasks that cannot be trained: a recipe must name every stored value, as 1 to K without gaps.

Public: the labels 1, 2 and 4 of BraTS; one organ of a map of many.
Right: a recipe that names value 1 only trains it against the rest; one that names 1, 2 and 4 is accepted by the check;
values can be joined under a name ("whole tumour").
"""

from pathlib import Path

from tests.cases._case import call
from tests.cases._model import finetune, prepared


def run(medssl: str, folder: Path) -> dict:
    cache, recipe = prepared(medssl, folder)
    one, gaps = folder / "one.yaml", folder / "gaps.yaml"
    text = recipe.read_text().replace("60", "2")
    one.write_text(text.replace("{1: one, 2: two}", "{1: one}"))
    gaps.write_text(text.replace("{1: one, 2: two}", "{1: one, 2: two, 4: four}"))
    subset = finetune(medssl, one, cache, folder / "run")
    check = call(medssl, "recipes", "check", gaps)
    return {"expected": {"subset": 0, "gaps": 0}, "found": {"subset": subset.returncode, "gaps": check.returncode}}
