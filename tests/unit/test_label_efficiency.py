"""Comparisons at few labels: which patients are taken, what is computed from the scores, what is refused."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.base.signals import stop_on_signals
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.splits import split_items
from medssl_cli.study.label_page import label_page, label_plot
from medssl_cli.study.label_results import ALL_STRUCTURES, label_results, results_csv
from medssl_cli.study.labels import SCRATCH, Cell, Scored, arm_names, parse_numbers
from tests.environment import give_known_key
from tests.toy_cache import toy_cache


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[ItemRecord]:
    root = tmp_path_factory.mktemp("cohort") / "cache"
    give_known_key(root)
    return toy_cache(root, num_patients=20, size=8).records()


def trained(cohort: list[ItemRecord], **options: Any) -> set[str]:
    return {record.patient_key for record in split_items(cohort, cohort, seed=0, fold=0, **options).train}


@pytest.mark.parametrize("draw", [0, 1, 2])
def test_the_few_patients_of_a_draw_are_among_its_many(cohort: list[ItemRecord], draw: int) -> None:
    subsets = [trained(cohort, num_train=number, draw=draw) for number in (1, 3, 7)]

    assert [len(subset) for subset in subsets] == [1, 3, 7]
    assert subsets[0] < subsets[1] < subsets[2]


def test_draws_are_of_the_same_patients_and_differ(cohort: list[ItemRecord]) -> None:
    assert trained(cohort, draw=1) == trained(cohort)
    assert len({frozenset(trained(cohort, num_train=5, draw=draw)) for draw in range(4)}) == 4


def test_the_first_draw_is_that_of_a_fraction(cohort: list[ItemRecord]) -> None:
    number = len(trained(cohort, fraction=0.5))

    assert trained(cohort, num_train=number) == trained(cohort, fraction=0.5)


def test_more_patients_than_there_are_is_refused(cohort: list[ItemRecord]) -> None:
    with pytest.raises(NothingUsableError, match=r"E_TOO_FEW_PATIENTS.* 12 patients .* 13 "):
        trained(cohort, num_train=13)


def scored(arm: str, patients: int, seed: int, dice: dict[str, tuple[float, float | None]]) -> Scored:
    """A training whose test patients have these Dice of two structures."""
    cases = [
        {"item": key, "patient": key, "scores": {"a": {"dice": first}, "b": {"dice": second}}}
        for key, (first, second) in dice.items()
    ]
    return Scored(Cell(arm, patients, seed), {"cases": cases, "structures": {"a": {}, "b": {}}, "num_patients": 3})


@pytest.fixture
def study() -> list[Scored]:
    scratch = {"p": (0.2, 0.4), "q": (0.6, 0.8), "r": (0.5, None)}
    better = {"p": (0.3, 0.5), "q": (0.7, 0.9), "r": (0.6, None)}
    best = {"p": (0.5, 0.7), "q": (0.9, 1.0), "r": (0.8, None)}
    return [
        scored(SCRATCH, 5, 0, scratch),
        scored("voco", 5, 0, better),
        scored(SCRATCH, 5, 1, scratch),
        scored("voco", 5, 1, best),
        scored(SCRATCH, 9, 0, best),
        scored("voco", 9, 0, best),
        scored(SCRATCH, 9, 1, best),
        scored("voco", 9, 1, best),
    ]


def entry(document: dict[str, Any], section: str, **wanted: Any) -> dict[str, Any]:
    (found,) = [row for row in document[section] if all(row[key] == value for key, value in wanted.items())]
    return found


def test_differences_are_paired_by_seed_and_patient(study: list[Scored]) -> None:
    document = label_results(study, {"task": "toy"})

    found = entry(document, "differences", arm="voco", patients=5, structure=ALL_STRUCTURES)
    # Seed 0 gains 0.1 on every patient; seed 1 gains 0.3 on p and r, and (0.3 + 0.2) / 2 on q.
    assert found["per_seed"] == pytest.approx([0.1, (0.3 + 0.25 + 0.3) / 3])
    assert found["mean"] == pytest.approx((0.1 + 0.85 / 3) / 2)
    assert found["low"] == pytest.approx(0.1)  # the resamples with seed 0 alone
    assert found["high"] == pytest.approx(0.3)  # the resamples with seed 1 alone and without q
    assert found["over_patients"]["low"] > 0.17  # patients alone: between their means over the seeds, 0.175 and 0.2
    assert found["p_value"] == 2 / 2**3  # all three patients gain: two of the eight sign patterns are as extreme


def test_p_values_are_adjusted_for_the_number_of_comparisons(study: list[Scored]) -> None:
    document = label_results(study, {"task": "toy"})

    adjusted = [row["p_holm"] for row in document["differences"] if row["structure"] == ALL_STRUCTURES]
    assert adjusted == [0.5, 1.0]
    assert all("p_holm" not in row for row in document["differences"] if row["structure"] != ALL_STRUCTURES)


def test_equal_arms_differ_by_nothing(study: list[Scored]) -> None:
    found = entry(label_results(study, {}), "differences", arm="voco", patients=9, structure="b")

    assert (found["mean"], found["low"], found["high"], found["p_value"]) == (0, 0, 0, 1)
    assert (found["num_patients"], found["num_missing"]) == (2, 1)


def test_the_table_has_a_row_per_training_and_structure(study: list[Scored]) -> None:
    lines = results_csv(label_results(study, {})).splitlines()

    assert lines[0] == "arm,patients,seed,structure,dice,low,high"
    assert len(lines) == 1 + len(study) * 3
    assert lines[1].startswith(f"{SCRATCH},5,0,{ALL_STRUCTURES},0.5,")


def test_the_page_and_the_plot_show_every_arm(study: list[Scored]) -> None:
    about = {"task": "toy", "num_seeds": 2, "steps": 10}
    document = label_results(study, about)

    page, plot = label_page(json.loads(json.dumps(document))), label_plot(document).decode()

    assert "+0.100, +0.283" in page
    assert all(f">{text}<" in plot for text in ("scratch", "voco", "5", "9"))


def test_one_test_patient_has_no_interval() -> None:
    document = label_results([scored(SCRATCH, 5, 0, {"p": (0.5, math.nan)})], {})

    assert document["levels"][0]["low"] is None


def test_arms_are_named_after_their_folders() -> None:
    assert list(arm_names(["runs/voco-{seed}", "runs/{seed}paper", "old"])) == ["voco", "paper", "old"]


@pytest.mark.parametrize("inits", [["a/voco", "b/voco"], ["runs/scratch"], ["runs/{seed}"]])
def test_arms_that_cannot_be_told_apart_are_refused(inits: list[str]) -> None:
    with pytest.raises(UsageError, match="E_USAGE"):
        arm_names(inits)


def test_numbers_are_read_or_refused() -> None:
    assert parse_numbers("5, 10,20") == (5, 10, 20)
    for text in ("", "5,,10", "0", "five", "-3"):
        with pytest.raises(UsageError, match="E_USAGE"):
            parse_numbers(text)


def test_a_signal_reaches_the_block_around_the_one_that_caught_it(tmp_path: Path) -> None:
    with stop_on_signals() as outer:
        with stop_on_signals() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner.is_set
        assert outer.is_set
        with stop_on_signals() as later:
            assert later.is_set  # a training that begins now stops at once
