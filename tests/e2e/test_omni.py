"""Pre-training with labels, end to end on toy images: it learns, resumes exactly, and keeps test patients out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from medssl_cli.base.errors import GateError, NothingUsableError, UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.splits import held_out_patients
from medssl_cli.cache.store import Cache
from medssl_cli.engine.finetune import Choices, finetune
from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.engine.weights import load_encoder
from medssl_cli.recipe import dump_recipe
from medssl_cli.study.arms import Arm
from medssl_cli.study.label_plan import LabelStudyPlan
from medssl_cli.study.labels import compare_labels
from tests.e2e.test_training import TINY_UNET, pretrain_recipe, task_recipe
from tests.environment import give_known_key
from tests.listener import Listener
from tests.small_cache import stored, volume_of
from tests.toy_cache import toy_cache

OMNI = "classes: {1: ball_1, 2: ball_2}, batch_size: 4"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    root = tmp_path_factory.mktemp("toy") / "cache"
    give_known_key(root)
    return toy_cache(root, num_patients=10)


def train(cache: Cache, root: Path, steps: int, omni: str = "", **changes: Any) -> list[dict[str, Any]]:
    settings = {
        "data.crop_size": [16, 16, 16],
        "method.base_grid": [2, 2, 1],
        "method.num_random_crops": 4,
        "method.omni": f"{{{OMNI}, {omni}}}",
    }
    recipe = pretrain_recipe(steps, **{**settings, **changes})
    pretrain(recipe, cache, root, device="cpu", talk=Silence())
    return read_metrics(root)


def weights(root: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(root / "encoder.safetensors")


def test_the_supervised_loss_falls_far_below_that_of_a_constant_answer(cache: Cache, tmp_path: Path) -> None:
    root = tmp_path / "run"
    changes = {"optimizer.learning_rate": 1e-2, "backbone": json.dumps(TINY_UNET)}

    entries = train(cache, root, 120, "self_weight: 0, pseudo_weight: 0", **changes)

    first, last = entries[:5], entries[-10:]
    start, end = (sum(entry["supervised"] for entry in part) / len(part) for part in (first, last))
    baseline = entries[0]["baseline/constant_labels"]
    assert end < 0.7 * baseline < start
    constants = [entry["supervised_constant"] for entry in entries]
    assert np.mean(constants) == pytest.approx(baseline, rel=0.2)  # of each batch alone, and of eight at once
    assert json.loads((root / "summary.json").read_text())["has_learnt"]


def test_pseudo_labels_start_when_they_should_and_resuming_gives_the_same_bits(cache: Cache, tmp_path: Path) -> None:
    whole = train(cache, tmp_path / "whole", 6)
    expected = weights(tmp_path / "whole")
    assert ["pseudo" in entry for entry in whole] == [False, False, False, True, True, True]
    assert {"prediction", "inter", "regulariser", "supervised"} < set(whole[0])
    assert all(name.split(".")[0] not in ("branches", "decoder") for name in expected)

    for last in (2, 4):  # before the copy is taken, and after
        again = tmp_path / f"again{last}"
        train(cache, again, 6)
        (again / "summary.json").unlink()
        for path in (again / "checkpoints").iterdir():
            if int(path.name.split("-")[1]) > last:
                path.unlink()

        assert train(cache, again, 6) == whole
        assert all(np.array_equal(value, expected[name]) for name, value in weights(again).items())


def test_worker_processes_change_nothing(cache: Cache, tmp_path: Path) -> None:
    inline = train(cache, tmp_path / "inline", 2)

    assert train(cache, tmp_path / "worker", 2, **{"data.num_workers": 1}) == inline


def test_labels_of_test_patients_are_not_seen_and_the_manifest_says_whose_were(cache: Cache, tmp_path: Path) -> None:
    train(cache, tmp_path / "run", 1)

    splits = json.loads((tmp_path / "run" / "manifest.json").read_text())["splits"]
    test = held_out_patients(cache.records(), seed=0)
    labelled = {entry["patient"] for entry in splits["labelled"]}
    assert len(test) == 2
    assert not labelled & test
    assert labelled == {record.patient_key for record in cache.records()} - test
    assert load_encoder(tmp_path / "run").labelled_patients == labelled


def test_a_missing_label_set_is_refused_with_the_names_of_those_that_are_there(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(NothingUsableError, match=r"E_NO_LABELS: .*'organs'; it has seg$"):
        train(cache, tmp_path / "run", 1, "label_set: organs")

    assert not (tmp_path / "run").exists()


def test_labels_of_test_patients_only_are_too_few(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=1)
    stored(cache, volume_of(1), patient="unlabelled")

    with pytest.raises(NothingUsableError, match="E_TOO_FEW_PATIENTS: all patients with labels of the set 'seg' are"):
        train(cache, tmp_path / "run", 1)


def test_names_that_no_label_map_has_are_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E_LABEL_CLASSES: value 1 is 'bal' in the recipe and 'ball_1' in") as refusal:
        train(cache, tmp_path / "run", 1, **{"method.omni": "{classes: {1: bal}}"})

    assert "method.omni.classes: {bal: [ball_1]}" in refusal.value.hint


def test_fine_tuning_tells_of_known_validation_patients_and_refuses_known_test_patients(
    cache: Cache, tmp_path: Path
) -> None:
    train(cache, tmp_path / "ssl", 1, backbone=json.dumps(TINY_UNET))
    choices, notes = Choices(encoder=load_encoder(tmp_path / "ssl")), Listener()

    finetune(task_recipe(1), cache, tmp_path / "run", choices, device="cpu", talk=notes)

    assert [line for line in notes.notes if line.startswith("W_LABELS_SEEN")] == [
        "W_LABELS_SEEN: pre-training has learnt from labels of 2 of the patients to validate on"
    ]
    assert not any("SPLIT_LEAK" in line for line in notes.notes)
    arguments = json.loads((tmp_path / "run" / "manifest.json").read_text())["arguments"]
    assert arguments["validation_patients_labelled_in_pretraining"] == 2
    other = task_recipe(1).model_copy(update={"split_seed": 1})
    with pytest.raises(GateError, match="E_SPLIT_LEAK: pre-training has learnt from labels of"):
        finetune(other, cache, tmp_path / "other", choices, device="cpu", talk=Silence())


def test_a_comparison_by_number_of_labels_refuses_encoders_that_know_labels(cache: Cache, tmp_path: Path) -> None:
    train(cache, tmp_path / "ssl", 1, backbone=json.dumps(TINY_UNET))
    arms = (Arm("scratch"), Arm("omni", str(tmp_path / "ssl")))
    plan = LabelStudyPlan(dump_recipe(task_recipe(1)), "toy.yaml", arms, patients=(2,), num_seeds=1)

    with pytest.raises(GateError, match="E_SPLIT_LEAK: a pre-training has learnt from labels of 8 patients"):
        compare_labels(plan, cache, tmp_path / "bench", device="cpu", talk=Silence())


def test_a_box_that_is_mostly_padding_is_said_before_the_training(cache: Cache, tmp_path: Path) -> None:
    notes = Listener()

    pretrain(pretrain_recipe(1, **{"data.crop_size": [32, 32, 32]}), cache, tmp_path / "run", device="cpu", talk=notes)

    (warning,) = [line for line in notes.notes if line.startswith("W_CANVAS")]
    assert "89% of a step's 192 x 192 x 64 mm is padding" in warning  # 1 - (1 / 3)^2 of the images' 64 mm
