"""What an evaluation of a segmentation writes: its document, its table for spreadsheets, its page."""

import csv
import io
import json

import numpy as np
import pytest

from medssl_cli.heads import LesionRule
from medssl_cli.metrics.lesions import lesion_scores
from medssl_cli.metrics.surface import structure_scores
from medssl_cli.tasks.segmentation.page import segmentation_page
from medssl_cli.tasks.segmentation.scores import (
    SegmentationCase,
    SegmentationEvaluation,
    merged,
    paired_figures,
    to_csv,
    to_document,
)

SPACING = (1.0, 1.0, 2.0)
ABOUT = {"model": "run", "split": "test", "task": "tumour-seg"}
RULE = LesionRule(dilation_voxels=1, min_volume_mm3=0)


def case_of(name: str, prediction: list[int], reference: list[int], *, rule: LesionRule | None) -> SegmentationCase:
    """A case with a lesion of 2 x 2 x 2 voxels at each of some places along the first axis."""
    masks = np.zeros((2, 30, 6, 6), dtype=bool)
    for mask, places in zip(masks, (prediction, reference), strict=True):
        for place in places:
            mask[place : place + 2, 2:4, 2:4] = True
    lesions = {} if rule is None else {"tumour": lesion_scores(masks[0], masks[1], SPACING, rule)}
    return SegmentationCase(name, name, {"tumour": structure_scores(masks[0], masks[1], SPACING, 1.0)}, lesions)


def evaluation(rule: LesionRule | None) -> SegmentationEvaluation:
    cases = [
        case_of("a", [2, 10, 26], [2, 10], rule=rule),  # all found, one false
        case_of("b", [2], [2, 10, 18], rule=rule),  # one of three
        case_of("c", [], [2], rule=rule),  # nothing of one
    ]
    return merged([SegmentationEvaluation(cases[:2], {}, {"tumour": 0.1}),
                   SegmentationEvaluation(cases[2:], {}, {"tumour": 0.1})])  # fmt: skip


def test_figures_of_lesions_are_means_over_patients_and_sensitivity_is_of_all_lesions() -> None:
    document = to_document(evaluation(RULE), ABOUT)
    tumour = document["structures"]["tumour"]

    assert tumour["lesion_dice"]["mean"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert tumour["lesion_sensitivity"]["mean"] == pytest.approx(3 / 6)
    assert tumour["false_per_scan"]["mean"] == pytest.approx(1 / 3)
    for key in ("lesion_dice", "lesion_sensitivity", "false_per_scan"):
        assert tumour[key]["low"] <= tumour[key]["mean"] <= tumour[key]["high"]
    assert document["cases"][0]["scores"]["tumour"]["num_false"] == 1


def test_overlap_and_volumes_are_means_over_patients_with_the_worst_for_what_is_missed() -> None:
    tumour = to_document(evaluation(None), ABOUT)["structures"]["tumour"]

    # Volumes in lesions, each 8 voxels of 2 cubic millimetres: 3 for 2, 1 for 3, 0 for 1.
    assert tumour["iou"]["mean"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert tumour["volume_error_ml"]["mean"] == pytest.approx(0.016 * (1 + 2 + 1) / 3)
    assert tumour["volume_error_percent"]["mean"] == pytest.approx((40 + 100 + 200) / 3)
    assert tumour["assd_mm"]["mean"] > 10
    assert "lesion_dice" not in tumour


@pytest.mark.parametrize("rule", [RULE, None])
def test_lesions_are_written_where_they_are_asked_for(rule: LesionRule | None) -> None:
    scored = evaluation(rule)
    document = json.loads(json.dumps(to_document(scored, ABOUT)))
    rows = list(csv.DictReader(io.StringIO(to_csv(scored))))
    page = segmentation_page(document, [])

    assert [row["iou"] for row in rows] == [str(2 / 3), str(1 / 3), "0.0"]
    assert ("num_found" in rows[0]) == ("lesion-wise Dice" in page) == (rule is not None)
    assert all(title in page for title in ("IoU", "ASSD mm", "volume error mL", "volume error %"))
    compared = {figure.metric for figure in paired_figures([document, document])}
    assert compared == {"Dice", "NSD", "HD95 mm"} | ({"lesion Dice"} if rule else set())
