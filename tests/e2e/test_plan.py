"""From labels to a trained task without an edited file; the device is really asked what a step takes."""

import json
from pathlib import Path

import pytest
import yaml

from tests.command import medssl
from tests.toy_cache import toy_cache

FEW_STEPS = ["--set", "steps=2", "--set", "validate_every=2", "--set", "max_validation_patients=1"]
AUTO = {
    "schema": 1,
    "name": "balls",
    "backbone": {"name": "unet", "channels": [4, 8], "strides": [2, 2], "num_res_units": 0},
    "task": {"name": "segmentation", "classes": ["ball_1", "ball_2"]},
    "data": {"modality": "CT", "window_hu": "auto", "spacing_mm": "auto", "crop_size": "auto", "batch_size": 2},
    "optimizer": {"learning_rate": 1e-3},
    "augmentation": "auto",
    "steps": 2,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_cache(tmp_path_factory.mktemp("plan") / "cache", num_patients=8, size=20).root


def done(*arguments: str | Path) -> str:
    result = medssl(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def locked(folder: Path) -> dict[str, object]:
    document: dict[str, object] = yaml.safe_load((folder / "recipe.lock.yaml").read_text())
    return document


def test_own_labels_are_planned_and_trained_without_an_edited_file(cache: Path, tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine.yaml", tmp_path / "run"

    small = ["--set", "data.crop_size=[16, 16, 16]", "--set", "data.batch_size=1", "--minutes", "0.01"]
    said = done("plan", "--labels", "seg", "--cache", cache, *small, "-o", mine)
    done("finetune", "--task", mine, "--cache", cache, "--run", folder, "-q", *FEW_STEPS)

    assert "ball_1" in said

    assert f"medssl finetune --task {mine}" in said
    text = mine.read_text()
    assert "Needs:" in text
    assert "as tried on cpu" in text
    assert locked(folder)["name"] == "mine"
    assert locked(folder)["data"]["spacing_mm"] == yaml.safe_load(text)["data"]["spacing_mm"]
    refused = medssl("plan", "--labels", "seg", "--cache", cache, "-o", mine)
    assert refused.exit_code == 2
    assert "E_OUTPUT_EXISTS" in refused.stderr


def test_a_recipe_leaves_values_to_a_plan_and_its_run_keeps_them(cache: Path, tmp_path: Path) -> None:
    recipe, folder = tmp_path / "balls.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(AUTO))

    first = medssl("finetune", "--task", recipe, "--cache", cache, "--run", folder)
    before = locked(folder)
    second = medssl("finetune", "--task", recipe, "--cache", cache, "--run", folder)

    assert first.exit_code == second.exit_code == 0, first.output + second.output
    assert "planned: data.crop_size = [20, 20, 20]" in first.stderr
    assert "planned:" not in second.stderr
    assert "finished already" in second.stderr
    assert locked(folder) == before
    assert before["data"]["window_hu"]
    assert before["data"]["crop_size"] == [20, 20, 20]


def test_what_a_recipe_leaves_to_a_plan_can_be_checked_before(cache: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "balls.yaml"
    recipe.write_text(yaml.safe_dump(AUTO))

    assert "is sound" in done("recipes", "check", recipe)
    assert "E_USAGE" in medssl("finetune", "--task", recipe, "--cache", cache, "--devices", "2").stderr


def test_a_plan_is_one_document_too(cache: Path) -> None:
    given = ["--set", "backbone={name: unet, channels: [4, 8], strides: [2, 2]}", "--set", "steps=5"]
    given += ["--set", "data.batch_size=1", "--set", "data.crop_size=[16, 16, 16]"]

    document = json.loads(done("plan", "--labels", "seg", "--cache", cache, "--json", *given))

    assert document["recipe"]["steps"] == 5

    assert document["reasons"]["steps"] == "as given"
    assert document["num_considered"] == 0  # nothing was left to try
    assert document["fingerprint"]["classes"][0]["name"] == "ball_1"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], "E_USAGE"),
        (["--labels", "seg", "--task", "heart-seg"], "E_USAGE"),
        (["--labels", "seg", "--memory", "much"], "E_USAGE"),
        (["--task", "heart-sek"], "E_RECIPE_NOT_FOUND"),
        (["--labels", "others"], "E_NO_LABELS"),
        (["--task", "heart-seg"], "E_LABEL_CLASSES"),
        (["--labels", "seg", "-o", "no/such/folder/x.yaml"], "E_NOT_FOUND"),
        (["--labels", "seg", "-o", "CACHE/x.yaml"], "E_USAGE"),
        (["--labels", "seg", "-o", "no\x1bsuch/x.yaml"], r"E_NOT_FOUND: no such folder: no\x1bsuch"),
    ],
)
def test_what_cannot_be_planned_is_refused(cache: Path, options: list[str], code: str) -> None:
    result = medssl("plan", "--cache", cache, *(option.replace("CACHE", str(cache)) for option in options))

    assert result.exit_code != 0
    assert f"error: {code}" in result.stderr
