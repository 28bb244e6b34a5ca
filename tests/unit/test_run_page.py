"""The page of a pre-training shows every number that was recorded, and what is wrong comes first."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medssl_cli.engine.health import write_matrix
from medssl_cli.recipe import dump_recipe, find_recipe, load_recipe
from medssl_cli.report.run import run_page


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    write_matrix(tmp_path, "base_cosines", torch.eye(3), is_first=True)
    write_matrix(tmp_path, "base_cosines", torch.eye(3), is_first=False)
    look = {"health/std": 0.1, "health/std_evenly_spread": 0.25, "health/rank": 5.5, "health/base_cosines": 0.01}
    probe = {"probe/modality/neighbours": 0.812, "probe/modality/linear": 0.934, "probe/modality/chance": 0.5}
    steps = [{"loss": 1.0 / step, "prediction": 0.5 / step, "learning_rate": 0.001} for step in (1, 2, 3)]
    return {
        "run": "voco-<tiny>",
        "recipe": dump_recipe(load_recipe(find_recipe("voco-tiny"))),
        "progress": 1.0,
        "baselines": {"zero_logits": 0.9, "constant_logit": 0.6},
        "alarms": [],
        "metrics": [{"step": step, **entry, "baseline/zero_logits": 0.9} for step, entry in enumerate(steps, 1)],
        "health": [{"step": 0, **look, **probe}, {"step": 3, **look, **probe, "health/rank": 6.25}],
        "matrices": sorted(tmp_path.glob("*.png")),
        "environment": {"medssl": "0.1.0", "python": "3.12.0", "platform": "linux", "packages": {"torch": "2.9.1"}},
        "num_items": 9,
        "num_patients": 7,
    }


def test_numbers_of_the_start_and_of_now_stand_side_by_side(document: dict[str, Any]) -> None:
    page = run_page(document)

    assert "Pre-training voco-&lt;tiny&gt;" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    for text in ("5.500", "6.250", "modality, nearest neighbours", "0.812", "zero_logits (0.9)", "torch 2.9.1"):
        assert text in page
    assert page.count("data:image/png;base64") == 2
    assert "base_cosines, untrained" in page
    assert "100% of 300 steps" in page
    assert "below that of every predictor" in page


def test_alarms_come_first_and_replace_the_praise(document: dict[str, Any]) -> None:
    document["alarms"] = [{"code": "W_COLLAPSE", "message": "all the same"}]

    page = run_page(document)

    assert 'class="notice bad"' in page
    assert page.index("all the same") < page.index(">Loss</h2>")
    assert "Finished" not in page


def test_a_run_that_has_just_begun_has_a_page_too(document: dict[str, Any]) -> None:
    document.update(metrics=[], health=[], matrices=[], progress=0.0)

    page = run_page(document)

    assert "In progress" in page
    assert "Health" not in page


def test_what_was_not_finite_is_left_out_of_the_drawing(document: dict[str, Any]) -> None:
    document["metrics"][1]["loss"] = None
    document["health"][1]["health/std"] = None

    assert "n/a" in run_page(document)
