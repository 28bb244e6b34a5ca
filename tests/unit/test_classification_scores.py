"""What an evaluation of a classification writes: its document and its page."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medssl_cli.tasks.classification.page import classification_page
from medssl_cli.tasks.classification.scores import SPECIFICITIES, THRESHOLDS, evaluate_findings

NAN = float("nan")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Eight images of eight patients; nobody shows `Rare`, and of one image `Mass` is unknown."""
    probabilities = np.array([0.95, 0.8, 0.6, 0.4, 0.7, 0.3, 0.2, 0.05])
    masses = np.array([1, 1, 1, 1, 0, 0, 0, NAN])
    records: Any = [SimpleNamespace(item_id=str(place) * 64, patient_key=f"p{place}") for place in range(8)]
    found = evaluate_findings(
        np.stack([probabilities, probabilities], axis=1),
        np.stack([masses, np.zeros(8)], axis=1).astype(np.float32),
        records,
        ["Mass", "Rare"],
        is_exclusive=False,
        about={"model": "run", "split": "test", "task": "findings"},
    )
    return json.loads(json.dumps(found, allow_nan=False))


def test_sensitivity_at_a_specificity_and_the_brier_score_have_intervals(document: dict[str, Any]) -> None:
    mass = document["classes"]["Mass"]

    # Three negatives: a specificity of 0.8 or more allows none of them to be a yes, and 0.7 is the highest.
    assert [mass["sensitivity_at_specificity"][f"{each:g}"]["mean"] for each in SPECIFICITIES] == [0.5, 0.5, 0.5]
    squares = [0.05, 0.2, 0.4, 0.6, 0.7, 0.3, 0.2]
    assert mass["brier"]["mean"] == pytest.approx(np.mean(np.square(squares)))
    for estimate in (mass["brier"], mass["sensitivity_at_specificity"]["0.9"]):
        assert estimate["low"] <= estimate["mean"] <= estimate["high"]


def test_thresholds_and_bins_are_written(document: dict[str, Any]) -> None:
    mass = document["classes"]["Mass"]
    half = mass["thresholds"][THRESHOLDS.index(0.5)]

    assert (half["num_yes"], half["sensitivity"], half["specificity"]) == (4, 3 / 4, 2 / 3)
    assert (half["positive_value"], half["negative_value"]) == (3 / 4, 2 / 3)
    assert sum(each["number"] for each in mass["reliability"]) == mass["num_known"] == 7


def test_what_nobody_shows_has_no_sensitivity_and_a_page_all_the_same(document: dict[str, Any]) -> None:
    rare = document["classes"]["Rare"]
    page = classification_page(document)

    assert {each["mean"] for each in rare["sensitivity_at_specificity"].values()} == {None}
    assert page.count("<svg") == 2
    assert all(word in page for word in ("Brier score", "at 95%", "positive predictive value", "Reliability"))
