"""A model's card: all from the sealed bundle, scores with intervals, and nothing that a name could smuggle in."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.card import card_html, card_in, card_markdown
from medssl_cli.deploy.run_scores import RunFigure, RunScores, keep_scores, scores_from, scores_of
from tests.toy_model import toy_bundle

WEIGHTS, OTHERS = "a" * 64, "b" * 64
ESTIMATE = {"mean": 0.9, "low": 0.85, "high": 0.93, "confidence": 0.95, "num_patients": 8, "num_missing": 0}
SEGMENTATION: dict[str, Any] = {
    "schema": "medssl.evaluation/1",
    "split": "test",
    "num_patients": 8,
    "num_items": 16,
    "mean_dice": 0.9,
    "structures": {"heart": {"dice": ESTIMATE, "hd95": {**ESTIMATE, "low": None, "high": None}, "constant": 0.1}},
    "cases": [{"item": "secret", "patient": "secret"}],
}
CLASSIFICATION: dict[str, Any] = {
    "schema": "medssl.classification/1",
    "split": "val, pooled over 5 folds",
    "num_patients": 8,
    "num_items": 8,
    "mean_auroc": ESTIMATE,
    "classes": {"nodule": {"auroc": ESTIMATE, "sensitivity": 0.5}, "mass": {"auroc": {**ESTIMATE, "mean": None}}},
}


def test_scores_of_every_task_are_read_from_its_results() -> None:
    masks, findings = scores_from(SEGMENTATION), scores_from(CLASSIFICATION)

    assert [(one.name, one.metric, one.low) for one in masks.figures] == [
        ("mean", "dice", None),
        ("heart", "dice", 0.85),
        ("heart", "hd95", None),
    ]
    assert [(one.name, one.metric) for one in findings.figures] == [("mean", "auroc"), ("nodule", "auroc")]
    assert (masks.split, masks.num_patients, masks.num_images) == ("test", 8, 16)


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"schema": "other/1"}, {**SEGMENTATION, "structures": [1]}, {**SEGMENTATION, "num_patients": "x"}],
)
def test_what_is_no_result_of_an_evaluation_gives_no_scores(document: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        scores_from(document)


def evaluated(run: Path, folder: str, *, at: int) -> None:
    (run / folder).mkdir(parents=True)
    path = run / folder / "scores.json"
    path.write_text(json.dumps(SEGMENTATION))
    os.utime(path, ns=(at, at))


def trained(run: Path, *, at: int) -> None:
    (run / "checkpoints").mkdir(parents=True)
    path = run / "checkpoints" / "best-00000001-x.safetensors"
    path.touch()
    os.utime(path, ns=(at, at))


def kept(run: Path, document: Any = SEGMENTATION, **otherwise: Any) -> RunScores | None:
    return keep_scores(run, document, **{"weights_sha256": WEIGHTS, "split": "test", **otherwise})


def test_figures_are_shown_of_the_weights_that_were_scored_and_of_no_others(tmp_path: Path) -> None:
    kept(tmp_path)

    assert scores_of(tmp_path, weights_sha256=WEIGHTS) == scores_from(SEGMENTATION)
    assert scores_of(tmp_path, weights_sha256=OTHERS) is None
    assert scores_of(tmp_path, weights_sha256=WEIGHTS, words=("mirror0",)) is None


def test_figures_of_another_run_are_not_its_own(tmp_path: Path) -> None:
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
    kept(tmp_path / "other", weights_sha256=OTHERS)
    shutil.copy(tmp_path / "other" / "scores-test.json", tmp_path / "run")

    assert scores_of(tmp_path / "run", weights_sha256=WEIGHTS) is None


def test_test_patients_come_first_and_validation_where_there_are_none_of_these_weights(tmp_path: Path) -> None:
    kept(tmp_path, {**SEGMENTATION, "split": "val"}, split="val")
    kept(tmp_path, weights_sha256=OTHERS)
    assert getattr(scores_of(tmp_path, weights_sha256=WEIGHTS), "split", None) == "val"

    kept(tmp_path)
    assert getattr(scores_of(tmp_path, weights_sha256=WEIGHTS), "split", None) == "test"


def test_results_of_a_task_without_such_figures_are_not_kept(tmp_path: Path) -> None:
    assert kept(tmp_path, {"agreement": 0.5}) is None
    assert not list(tmp_path.iterdir())


def test_an_evaluation_by_an_earlier_medssl_counts_unless_its_weights_are_newer(tmp_path: Path) -> None:
    trained(tmp_path, at=10**9)
    assert scores_of(tmp_path, weights_sha256=WEIGHTS) is None

    evaluated(tmp_path, "evaluation-test", at=2 * 10**9)
    assert scores_of(tmp_path, weights_sha256=WEIGHTS) == scores_from(SEGMENTATION)
    assert scores_of(tmp_path, weights_sha256=WEIGHTS, words=("mirror0",)) is None

    newer = tmp_path / "checkpoints" / "best-00000001-x.safetensors"
    os.utime(newer, ns=(3 * 10**9, 3 * 10**9))
    assert scores_of(tmp_path, weights_sha256=WEIGHTS) is None


@pytest.mark.parametrize("name", ["scores-test.json", "evaluation-test/scores.json"])
def test_damaged_results_do_not_stop_an_export(tmp_path: Path, name: str) -> None:
    (tmp_path / "evaluation-test").mkdir()
    (tmp_path / name).write_text("{")

    assert scores_of(tmp_path, weights_sha256=WEIGHTS) is None


def test_a_card_names_use_scores_parity_and_limits() -> None:
    figures = (RunFigure(name="bright", metric="dice", mean=0.9, low=0.85, high=0.93),)
    bundle = toy_bundle(scores=RunScores(split="test", num_patients=8, num_images=16, figures=figures))

    text = card_markdown(bundle)

    assert text.startswith("# toy-seg\n")
    assert "**Intended use**: Tests" in text
    assert "| bright | dice | 0.9 | 0.85 to 0.93 (95 %) |" in text
    assert "torch and ONNX Runtime agree" in text
    assert "of 8 patients only" in text
    assert "Not a medical device" in text


def test_names_mean_nothing_in_markdown_or_html() -> None:
    bundle = toy_bundle(licence="<script>alert(1)</script>\n# Approved", classes={1: "a|b <img src=x>"})

    markdown, page = card_markdown(bundle), card_html(bundle)

    assert "\n# Approved" not in markdown
    assert "<script>" not in markdown.replace("\\<", "")
    assert "a\\|b" in markdown
    assert "<script>alert" not in page
    assert "<img" not in page


def test_the_end_of_a_files_name_chooses_the_form() -> None:
    bundle = toy_bundle()

    assert card_in(bundle, ".HTML") == card_html(bundle)
    assert card_in(bundle, ".md") == card_markdown(bundle)
    with pytest.raises(UsageError, match="E_USAGE"):
        card_in(bundle, ".pdf")


def test_bundles_of_before_have_a_card_too() -> None:
    document = json.loads(toy_bundle().to_json())
    old = Bundle.model_validate({key: value for key, value in document.items() if key not in ("training", "scores")})

    assert "not stated: the model was exported by an earlier medssl" in card_markdown(old).replace("\\", "")
    assert "Not evaluated before the export" in card_markdown(old)


def test_a_card_says_what_memory_an_answer_took_and_that_an_older_file_may_start_slower() -> None:
    assert "Memory of an answer**: not noted: a file of an earlier medssl; export" in card_markdown(toy_bundle())
    assert "Memory of an answer**: 304 MiB" in card_markdown(toy_bundle(memory_bytes=304 * 2**20))
