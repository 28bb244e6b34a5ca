"""Comparisons at few labels: which patients are taken, what is computed from the scores, what is refused."""

import json
import math
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.base.signals import stop_on_signals
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.splits import split_items
from medssl_cli.cli.study_table import show_study
from medssl_cli.engine.cost import Cost
from medssl_cli.study.arms import SCRATCH, Arm, arm_names, arms_of, parse_arm
from medssl_cli.study.label_page import label_page, label_plot
from medssl_cli.study.label_plan import Cell, LabelStudyPlan, parse_numbers
from medssl_cli.study.label_results import label_results, results_csv
from medssl_cli.study.labels import Scored
from tests.environment import give_known_key
from tests.toy_cache import toy_cache

ALL_STRUCTURES = "mean of structures"


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


Dice = dict[str, tuple[float, float | None]]


def scored(arm: str, patients: int, seed: int | None, dice: Dice, **cell: Any) -> Scored:
    """A training whose test patients have these Dice of two structures."""

    def scores(value: float | None) -> dict[str, float | None]:
        return {"dice": value, "nsd": value, "hd95_mm": value}

    cases = [
        {"item": key, "patient": key, "scores": {"a": scores(first), "b": scores(second)}}
        for key, (first, second) in dice.items()
    ]
    cost = Cost(unit="CPU", seconds=60)
    return Scored(
        Cell(arm, patients, seed, **cell),
        {"cases": cases, "structures": {"a": {}, "b": {}}},
        cost,
        None if arm == SCRATCH else cost,
    )


def results(study: list[Scored], **about: Any) -> dict[str, Any]:
    return label_results(study, {"task": "toy", "num_seeds": 2, **about}, kind="segmentation", steps=10)


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
    document = results(study)

    found = entry(document, "differences", arm="voco", patients=5, structure=ALL_STRUCTURES)
    # Seed 0 gains 0.1 on every patient; seed 1 gains 0.3 on p and r, and (0.3 + 0.2) / 2 on q.
    assert found["per_seed"] == pytest.approx([0.1, (0.3 + 0.25 + 0.3) / 3])
    assert found["mean"] == pytest.approx((0.1 + 0.85 / 3) / 2)
    assert found["low"] == pytest.approx(0.1)  # the resamples with seed 0 alone
    assert found["high"] == pytest.approx(0.3)  # the resamples with seed 1 alone and without q
    assert found["over_patients"]["low"] > 0.17  # patients alone: between their means over the seeds, 0.175 and 0.2
    assert found["p_value"] == 2 / 2**3  # all three patients gain: two of the eight sign patterns are as extreme


def test_p_values_are_adjusted_for_the_number_of_comparisons(study: list[Scored]) -> None:
    document = results(study)

    adjusted = [row["p_holm"] for row in document["differences"] if row["structure"] == ALL_STRUCTURES]
    assert adjusted == [0.5, 1.0]
    assert all("p_holm" not in row for row in document["differences"] if row["structure"] != ALL_STRUCTURES)


def test_equal_arms_differ_by_nothing(study: list[Scored]) -> None:
    found = entry(results(study), "differences", arm="voco", patients=9, structure="b")

    assert (found["mean"], found["low"], found["high"], found["p_value"]) == (0, 0, 0, 1)
    assert (found["num_patients"], found["num_missing"]) == (2, 1)


def test_the_table_has_a_row_per_training_and_structure(study: list[Scored]) -> None:
    lines = results_csv(results(study)).splitlines()

    assert lines[0] == "arm,patients,steps,draw,seed,structure,dice,low,high"
    assert len(lines) == 1 + len(study) * 3
    assert lines[1].startswith(f"{SCRATCH},5,10,0,0,{ALL_STRUCTURES},0.5")


def test_the_page_and_the_plot_show_every_arm(study: list[Scored]) -> None:
    document = results(study)

    page, plot = label_page(json.loads(json.dumps(document))), label_plot(document).decode()

    assert "+0.100, +0.283" in page
    assert all(f">{text}<" in plot for text in ("scratch", "voco", "5", "9"))


def test_trainings_of_one_draw_are_one_row() -> None:
    """Two draws, two pre-trainings each; scratch has none and was trained once in each draw."""
    own = {0: 0.1, 1: 0.2}
    study = [scored(SCRATCH, 5, None, {"p": (0.2, 0.2), "q": (0.4, 0.4)}, draw=draw) for draw in own]
    for draw, gain in own.items():
        for seed in (0, 1):
            more = gain + 0.1 * seed
            study.append(scored("voco", 5, seed, {"p": (0.2 + more, 0.2), "q": (0.4 + more, 0.4)}, draw=draw))

    found = entry(results(study, num_draws=2), "differences", structure="a")

    assert found["per_seed"] == pytest.approx([0.1, 0.2, 0.2, 0.3])  # draw by draw
    assert (found["low"], found["high"]) == pytest.approx((0.15, 0.25))  # the means of one draw or the other
    assert (found["num_better"], found["num_patients"]) == (2, 2)
    assert found["p_value"] == 0.5  # of the two patients both gain: two of four patterns of signs


def test_lengths_are_compared_apart_and_the_best_one_of_scratch_is_named() -> None:
    study = []
    for steps, dice in ((500, 0.5), (1500, 0.7)):
        study.append(scored(SCRATCH, 5, 0, {"p": (dice, dice), "q": (dice, dice)}, steps=steps))
        study.append(scored("voco", 5, 0, {"p": (0.7, 0.7), "q": (0.7, 0.7)}, steps=steps))

    document = results(study)

    gains = {row["steps"]: row["mean"] for row in document["differences"] if row["structure"] == "a"}
    assert gains == pytest.approx({500: 0.2, 1500: 0.0})
    assert document["best_steps_of_baseline"] == {"5": 1500}
    assert "A gain at a length that is not the best one of scratch is speed" in label_page(document)


def test_any_arm_may_be_the_one_that_others_are_compared_with(study: list[Scored]) -> None:
    reverse = label_results(study, {}, kind="segmentation", steps=10, baseline="voco")

    found = entry(reverse, "differences", patients=5, structure=ALL_STRUCTURES)
    assert (found["arm"], found["minus"]) == (SCRATCH, "voco")
    assert found["mean"] == pytest.approx(-(0.1 + 0.85 / 3) / 2)
    assert found["num_better"] == 0


def test_costs_are_those_of_the_trainings_and_of_what_came_before(study: list[Scored]) -> None:
    document = results(study)

    assert document["cost_unit"] == "CPU"
    assert [(row["arm"], row["cost_s"], row["pretraining_cost_s"]) for row in document["levels"][:4:3]] == [
        (SCRATCH, 60, None),
        ("voco", 60, 60),
    ]


def test_findings_and_boxes_are_compared_by_their_own_scores() -> None:
    """The same as `medssl evaluate A B` of the two, but for the interval."""
    targets = {f"p{place}": place % 2 for place in range(8)}

    def found(right: int) -> dict[str, Any]:
        cases = [
            {"item": key, "patient": key, "target": {"a": value},
             "probability": {"a": float(value == (place < right))}}
            for place, (key, value) in enumerate(targets.items())
        ]  # fmt: skip
        return {"cases": cases, "classes": {"a": {}}}

    study = [Scored(Cell(arm, 5, 0), found(right)) for arm, right in ((SCRATCH, 4), ("voco", 8))]

    document = label_results(study, {}, kind="classification", steps=10)

    assert document["figure"] == "AUROC"
    assert entry(document, "differences", structure="a")["mean"] == pytest.approx(0.5)
    assert entry(document, "differences", structure="a")["num_better"] is None
    assert document["cost_unit"] is None


def test_the_printed_table_is_narrow_enough_for_a_terminal(
    study: list[Scored], capsys: pytest.CaptureFixture[str]
) -> None:
    show_study(results(study))

    printed = capsys.readouterr().out
    assert "5 labelled patients, 10 steps: 3 test patients" in printed
    assert re.search(r"voco.* \+0\.192 \[\+0\.100, \+0\.300\].* 3 .* 60 \+ 60 ", printed)
    assert max(map(len, printed.splitlines())) <= 80


def test_one_test_patient_has_no_interval() -> None:
    document = results([scored(SCRATCH, 5, 0, {"p": (0.5, math.nan)})])

    assert document["levels"][0]["low"] is None


def test_arms_are_named_after_their_folders() -> None:
    assert list(arm_names(["runs/voco-{seed}", "runs/{seed}paper", "old"])) == ["voco", "paper", "old"]


@pytest.mark.parametrize("inits", [["a/voco", "b/voco"], ["runs/scratch"], ["runs/{seed}"]])
def test_arms_that_cannot_be_told_apart_are_refused(inits: list[str]) -> None:
    with pytest.raises(UsageError, match="E_USAGE"):
        arm_names(inits)


def test_arms_are_encoders_or_recipes() -> None:
    arms = arms_of(
        ["none,runs/voco-{seed}", "old"], ["both: init=runs/p-{seed} unlabelled.method=bcp a='{b: 1, c: 2}'"]
    )

    assert arms == (
        Arm(SCRATCH),
        Arm("voco", "runs/voco-{seed}"),
        Arm("old", "old"),
        Arm("both", "runs/p-{seed}", ("unlabelled.method=bcp", "a={b: 1, c: 2}")),
    )
    assert parse_arm("bcp: init=none steps=3") == Arm("bcp", None, ("steps=3",))
    assert [arm.has_seeds for arm in arms] == [False, True, False, True]


@pytest.mark.parametrize(
    "described",
    ["bcp", "bcp:", "bcp: word", ": a=1", "../bcp: a=1", "bcp: init=a init=b", "bcp: a='1", "scratch: a=1", "old: a=1"],
)
def test_arms_that_say_too_little_or_too_much_are_refused(described: str) -> None:
    with pytest.raises(UsageError, match="E_USAGE"):
        arms_of(["old"], [described])


def test_scratch_alone_is_no_comparison() -> None:
    with pytest.raises(UsageError, match="E_USAGE: there is nothing to compare with scratch"):
        arms_of(["none"], [])


def names(**options: Any) -> list[str]:
    arms = (Arm(SCRATCH), Arm("voco", "runs/voco-{seed}"))
    return [cell.name for _, cell in LabelStudyPlan({}, "toy.yaml", arms, (2,), num_seeds=2, **options).cells()]


def test_every_seed_draws_other_patients_unless_the_draws_are_counted_apart() -> None:
    assert names() == ["scratch-2-seed0", "voco-2-seed0", "scratch-2-seed1", "voco-2-seed1"]
    assert names(num_draws=1, steps=(500,)) == [
        "scratch-2-draw0-steps500",
        "voco-2-draw0-seed0-steps500",
        "voco-2-draw0-seed1-steps500",
    ]


def test_no_two_trainings_of_an_arm_have_the_same_seed() -> None:
    cells = [Cell("a", 2, seed, draw) for seed in range(3) for draw in range(3)]

    assert len({cell.training_seed for cell in cells}) == len(cells)
    assert [Cell("a", 2, 3).training_seed, Cell("a", 2, 3).row] == [3, 3]  # as ever: a seed is a draw too


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
