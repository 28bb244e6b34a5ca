"""Comparisons of models: paired by patient, intervals that both share, p-values that hold, and what differs named."""

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.metrics.paired import exchange_test, mean_figure
from medssl_cli.metrics.statistics import patient_means
from medssl_cli.study.comparison import Contestant, comparison, comparison_csv, unequal, unfair
from medssl_cli.study.comparison_page import comparison_page
from medssl_cli.study.contestants import names_of

WHOLE = "mean of structures"
TWO_OF_TWO = (1, 1, 0, 0)


def masks(dice: Sequence[Sequence[float | None]], patients: Sequence[str] = ()) -> dict[str, Any]:
    """An evaluation with two structures, one row per image."""
    owners = patients or [f"p{place}" for place in range(len(dice))]
    return {
        "task": "balls",
        "split": "test",
        "structures": {"a": {}, "b": {}},
        "cases": [
            {
                "item": f"i{place}",
                "patient": owner,
                "scores": {
                    name: {"dice": value, "nsd": value, "hd95_mm": None if value is None else 10 * (1 - value)}
                    for name, value in zip("ab", row, strict=True)
                },
            }
            for place, (row, owner) in enumerate(zip(dice, owners, strict=True))
        ],
    }


def findings(probabilities: Sequence[float], targets: Sequence[float | None]) -> dict[str, Any]:
    """An evaluation with one class."""
    cases = [
        {"item": f"i{place}", "patient": f"p{place}", "probability": {"a": one}, "target": {"a": target}}
        for place, (one, target) in enumerate(zip(probabilities, targets, strict=True))
    ]
    return {"task": "toy", "split": "test", "classes": {"a": {}}, "cases": cases}


def boxes(found: Sequence[Sequence[tuple[float, float]]], num_images: int) -> dict[str, Any]:
    """An evaluation of images with one box at 0 to 10 each; found ones lie at an offset and have a score."""
    cases = [
        {
            "item": f"i{place}",
            "patient": f"p{place}",
            "there": [{"class": "a", "score": 1.0, "corners": [0, 0, 10, 10]}],
            "found": [{"class": "a", "score": score, "corners": [x, 0, x + 10, 10]} for x, score in found[place]],
        }
        for place in range(num_images)
    ]
    return {"task": "toy", "split": "test", "classes": {"a": {}}, "match_overlap": 0.5, "cases": cases}


def models(kind: str, *documents: dict[str, Any], **facts: Sequence[str | None]) -> list[Contestant]:
    return [
        Contestant(f"m{place}", kind, {name: values[place] for name, values in facts.items()}, document)
        for place, document in enumerate(documents)
    ]


def entry(document: dict[str, Any], structure: str, metric: str = "Dice", key: str = "differences") -> dict[str, Any]:
    return next(each for each in document[key] if (each["structure"], each["metric"]) == (structure, metric))


def test_a_difference_is_of_the_same_patients_and_its_p_value_is_exact() -> None:
    rows = [(0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.5, 0.4)]
    document = comparison(models("segmentation", masks(rows), masks([(a + 0.1, b) for a, b in rows])))

    found = entry(document, "a")
    assert (found["model"], found["minus"], found["num_patients"]) == ("m1", "m0", 5)
    assert found["mean"] == pytest.approx(0.1)
    assert found["low"] == pytest.approx(0.1)  # everybody gains the same: no draw of patients says otherwise
    assert found["high"] == pytest.approx(0.1)
    assert found["p_value"] == pytest.approx(2 / 2**5)  # of all patterns of signs only two are as far from 0
    assert entry(document, WHOLE)["mean"] == pytest.approx(0.05)
    assert entry(document, "b")["p_value"] == 1
    assert entry(document, "a", "HD95 mm")["mean"] == pytest.approx(-1)


def test_p_values_are_adjusted_for_the_number_of_comparisons() -> None:
    rows = [(0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.5, 0.4)]
    better = [(a + 0.1, b + 0.1) for a, b in rows]

    document = comparison(models("segmentation", masks(rows), masks(rows), masks(better)))

    main = [each for each in document["differences"] if each["is_main"]]
    assert [each["metric"] for each in main] == ["Dice"] * 3 + ["NSD"] * 3 + ["HD95 mm"] * 3
    assert [each["p_value"] for each in main] == pytest.approx([1, 1 / 16, 1 / 16] * 3)
    assert [each["p_holm"] for each in main] == pytest.approx([1, 9 / 16, 9 / 16] * 3)  # nine are compared


def test_lesions_are_compared_where_all_models_were_scored_by_them() -> None:
    """An image without a lesion and without a false one has no Dice of lesions."""
    plain = masks([(0.5, 0.6), (0.6, 0.7), (0.7, 0.8)])

    def with_lesions(*dice: float | None) -> dict[str, Any]:
        scored = copy.deepcopy(plain)
        for case, value in zip(scored["cases"], dice, strict=True):
            case["scores"]["a"]["lesion_dice"] = case["scores"]["b"]["lesion_dice"] = value
        return scored

    both = comparison(models("segmentation", with_lesions(0.2, 0.4, None), with_lesions(0.5, 0.5, None)))
    one = comparison(models("segmentation", plain, with_lesions(0.5, 0.5, 1.0)))

    found = entry(both, WHOLE, "lesion Dice")
    assert (found["mean"], found["num_patients"]) == (pytest.approx((0.3 + 0.1) / 2), 2)
    assert {each["metric"] for each in one["differences"]} == {"Dice", "NSD", "HD95 mm"}


def test_images_that_one_model_lacks_and_values_that_do_not_apply_are_left_out_and_counted() -> None:
    first = masks([(0.5, None), (0.6, 0.7), (0.7, 0.8)])
    second = masks([(0.9, 0.9), (0.6, 0.7), (0.7, 0.8), (0.1, 0.1)])

    document = comparison(models("segmentation", first, second))

    assert (document["num_items"], document["num_patients"], document["num_left_out"]) == (3, 3, 1)
    assert entry(document, "b")["num_patients"] == 2
    assert entry(document, WHOLE)["mean"] == pytest.approx(0.4 / 3)  # of the first image structure a alone
    with pytest.raises(NothingUsableError, match="E_TOO_FEW_PATIENTS"):
        comparison(models("segmentation", first, {**second, "cases": second["cases"][3:]}))


def test_images_of_one_patient_count_as_one() -> None:
    rows = [[0.2, 0.4, 0.9]]

    figure = mean_figure("Dice", "a", np.array(rows * 2), ["p", "p", "q"], is_main=True)

    assert figure.level(0).mean == pytest.approx((0.3 + 0.9) / 2)
    assert figure.values[0] == patient_means(rows[0], ["p", "p", "q"])


def test_probabilities_are_compared_by_their_ranks() -> None:
    targets = [1, 1, 0, 0, 1, 0, None]
    good, poor = [0.9, 0.8, 0.1, 0.2, 0.7, 0.3, 0.5], [0.1, 0.2, 0.3, 0.9, 0.6, 0.5, 0.5]

    document = comparison(models("classification", findings(poor, targets), findings(good, targets)))
    same = comparison(models("classification", findings(good, targets), findings([p / 2 for p in good], targets)))

    found = entry(document, "mean of classes", "AUROC")
    wins = [a > b for a, b in itertools.product((0.1, 0.2, 0.6), (0.3, 0.9, 0.5))]
    assert found["mean"] == pytest.approx(1 - sum(wins) / 9)
    assert entry(document, "a", "AUROC")["mean"] == pytest.approx(found["mean"])
    assert entry(same, "a", "AUROC")["p_value"] == 1


def test_boxes_are_compared_by_average_precision() -> None:
    hits, misses = [[(0.0, 0.9)]] * 8, [[(20.0, 0.9)]] * 8

    document = comparison(models("detection", boxes(misses, 8), boxes(hits, 8)))
    same = comparison(models("detection", boxes(hits, 8), boxes(hits, 8)))

    found = entry(document, "a", "AP")
    assert found["mean"] == pytest.approx(1)
    assert found["p_value"] < 0.05  # of 2^8 exchanges two are as far apart
    assert entry(same, "a", "AP")["p_value"] == 1


def test_exchanging_answers_is_the_test_of_signs_where_the_figure_is_a_mean() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=9), rng.normal(size=9) + 0.8
    patients = [f"p{place}" for place in range(9)]
    values = np.concatenate([first, second])

    drawn = exchange_test(lambda weights: (weights * values).sum(axis=1) / 9, patients, num_resamples=20_000, rng=rng)

    exact = mean_figure("m", "a", np.stack([first, second]), patients, is_main=True).p_value([0], [1])
    assert drawn == pytest.approx(exact, abs=5 * np.sqrt(exact / 20_000))


def test_what_differs_is_named_and_initial_weights_are_no_fault() -> None:
    own = masks([(0.5, 0.6), (0.6, 0.7)])
    facts = {
        "backbone": ("unet", "unet"),
        "steps": ("100", "200"),
        "initial weights": ("scratch", "abc"),
        "x": ("1", None),
    }

    document = comparison(models("segmentation", own, own, **facts))

    assert set(document["unequal"]) == {"steps", "initial weights", "x"}
    assert unfair(document) == {"steps": {"m0": "100", "m1": "200"}, "x": {"m0": "1", "m1": "not known"}}
    assert unequal(models("segmentation", own, own, backbone=("unet", "unet"))) == {}


def test_a_model_is_not_compared_with_itself(tmp_path: Path) -> None:
    for place in ("a/m", "b/m", "a/n"):
        (tmp_path / place).mkdir(parents=True)

    assert names_of([tmp_path / "a/m", tmp_path / "b/m"]) == ["a/m", "b/m"]
    with pytest.raises(UsageError, match="named twice"):
        names_of([tmp_path / "a/m", tmp_path / "a/n", tmp_path / "b" / ".." / "a" / "m"])


def test_models_of_different_tasks_are_not_compared() -> None:
    own = [*models("segmentation", masks([(0.5, 0.6)])), *models("classification", findings([0.1], [1]))]

    with pytest.raises(UsageError, match="E_USAGE"):
        comparison(own)


@pytest.mark.parametrize(
    ("kind", "documents"),
    [
        ("segmentation", [masks([(0.5, 0.6), (0.6, 0.7), (0.2, None)]), masks([(0.6, 0.6), (0.6, 0.5), (0.1, None)])]),
        ("classification", [findings([0.9, 0.8, 0.1, 0.2], TWO_OF_TWO), findings([0.4, 0.8, 0.5, 0.2], TWO_OF_TWO)]),
        ("detection", [boxes([[(0.0, 0.9)]] * 3, 3), boxes([[(20.0, 0.9)]] * 3, 3)]),
    ],
)
def test_page_and_table_show_every_pair(kind: str, documents: list[dict[str, Any]]) -> None:
    document = comparison(models(kind, *documents, steps=("100", "200")))

    page, table = comparison_page(document), comparison_csv(document)

    assert page.count("<svg") == 2
    assert "m1 minus m0" in page
    assert "These models differ in steps" in page
    assert len(table.splitlines()) == 1 + len(document["differences"])
