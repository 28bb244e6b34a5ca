"""An option without effect: schedule.warmup_steps of a task recipe is accepted and ignored by finetune.

Public: none; docs/reference/recipe.md documents it for all recipes.
Right: with warmup_steps 8 of 10 steps and a peak of 0.01 the rate climbs over 8 steps: the rate of step 2 is below half
of the peak.
"""

import json
from pathlib import Path

from tests.cases._model import finetune, prepared


def run(medssl: str, folder: Path) -> dict:
    cache, recipe = prepared(medssl, folder)
    text = recipe.read_text().replace("steps: 60\n", "steps: 10\n", 1).replace("every: 60", "every: 10")
    (folder / "warm.yaml").write_text(text + "schedule: {name: warmup_cosine, warmup_steps: 8}\n")
    done = finetune(medssl, folder / "warm.yaml", cache, folder / "run")
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    return {
        "expected": {"climbs": True},
        "found": {"exit": done.returncode, "rates": [round(r, 5) for r in rates], "climbs": rates[1] < 0.005},
    }
