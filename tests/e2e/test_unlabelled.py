"""Fine-tuning with unlabelled images, end to end on toy images: whom it sees, what it keeps, and exact resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.cache.store import Cache
from medssl_cli.engine import unlabelled_finetuning
from medssl_cli.engine.build import check_recipe
from medssl_cli.engine.finetune import Choices, finetune
from medssl_cli.engine.finetuned import load_finetuned
from medssl_cli.engine.live_page import Outlets
from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.engine.weights import load_encoder
from medssl_cli.recipe import TaskRecipe, dump_recipe, validate_recipe
from medssl_cli.report.run import finetuning_page
from tests.command import medssl
from tests.finding_cache import finding_cache
from tests.listener import Listener
from tests.toy_cache import Marked, toy_cache
from tests.toy_recipes import BALLS, CT, task_recipe

UNET = {"name": "unet", "channels": [4, 8], "strides": [1, 2], "num_res_units": 1, "norm": "batch"}


def recipe(method: str = "bcp", **changes: Any) -> TaskRecipe:
    document: dict[str, Any] = {
        "name": "balls",
        "backbone": UNET,
        "task": BALLS,
        "data": {**CT, "crop_size": [8, 8, 8], "batch_size": 2},
        "augmentation": {"affine_prob": 0.5, "noise_std": 0.1},
        "optimizer": {"learning_rate": 1.0e-4},
        "steps": 6,
        "validate_every": 6,
        "checkpoint_every": 2,
        "log_every": 1,
        "unlabelled": {"method": method},
    }
    section = changes.pop("unlabelled", {})
    document |= changes
    document["unlabelled"] |= section
    return task_recipe(document)


def on_slices(method: str, **section: Any) -> TaskRecipe:
    return recipe(
        method,
        backbone={**UNET, "spatial_dims": 2},
        data={"modality": "CT", "window_hu": [-200, 300], "crop_size": [8, 8, 1], "batch_size": 4},
        unlabelled=section,
    )


def train(found: TaskRecipe, cache: Cache, root: Path, talk: Listener | None = None, **choices: Any) -> list[Any]:
    outlets = Outlets(finetuning_page)
    given = Choices(**{"patients": 2, **choices})
    finetune(found, cache, root, given, device="cpu", talk=talk or Listener(), outlets=outlets)
    return read_metrics(root)


def best(run: Path) -> dict[str, np.ndarray]:
    (path,) = (run / "checkpoints").glob("best-*")
    return safetensors.numpy.load_file(path)


def balls(root: Path, mark: Callable[[int, np.ndarray], Marked] | None = None) -> Cache:
    return toy_cache(root, num_patients=10, size=12, mark=mark)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return balls(tmp_path_factory.mktemp("toy") / "cache")


def test_stages_change_when_they_should_and_resuming_gives_the_same_bits(cache: Cache, tmp_path: Path) -> None:
    found = recipe(unlabelled={"first_stage": 0.5})
    whole = train(found, cache, tmp_path / "whole")
    expected = best(tmp_path / "whole")
    assert ["unlabelled/agreement" in entry for entry in whole] == [False] * 3 + [True] * 3
    assert [entry.get("unlabelled/weight") for entry in whole[3:]] == [0.5] * 3

    for last in (2, 4):  # in the first stage, and in the second
        again = tmp_path / f"again{last}"
        train(found, cache, again)
        (again / "summary.json").unlink()
        for path in (again / "checkpoints").iterdir():
            if int(path.name.split("-")[1]) > last:
                path.unlink()

        assert train(found, cache, again) == whole
        assert all(np.array_equal(value, expected[name]) for name, value in best(again).items())


def test_nobody_who_validates_or_tests_takes_part_and_the_manifest_says_who_did(cache: Cache, tmp_path: Path) -> None:
    talk = Listener()
    train(recipe(steps=1), cache, tmp_path / "run", talk)

    splits = json.loads((tmp_path / "run" / "manifest.json").read_text())["splits"]
    patients = {name: {entry["patient"] for entry in entries} for name, entries in splits.items()}
    everybody = {record.patient_key for record in cache.records()}
    assert len(patients["train"]) == 2
    assert not patients["unlabelled"] & (patients["train"] | patients["val"] | patients["test"])
    assert patients["unlabelled"] == everybody - patients["train"] - patients["val"] - patients["test"]
    assert all(entry["label_sha256"] == {} for entry in splits["unlabelled"])
    number = len(patients["unlabelled"])
    assert f"{number} images of {number} patients take part without labels" in " ".join(talk.notes)
    page = (tmp_path / "run" / "page.html").read_text()
    assert f"{number} of {number} patients, bcp" in page
    encoder = load_encoder(tmp_path / "run")
    assert encoder.patients == everybody - patients["test"]
    assert encoder.labelled_patients == patients["train"]


@pytest.mark.parametrize("method", ["bcp", "uamt"])
def test_labels_of_unlabelled_images_are_never_read(method: str, tmp_path: Path) -> None:
    found = recipe(method, steps=2, unlabelled={"first_stage": 0.0} if method == "bcp" else {"passes": 2})
    told = balls(tmp_path / "told" / "cache")
    losses = [entry["loss"] for entry in train(found, told, tmp_path / "told" / "run")]
    splits = json.loads((tmp_path / "told" / "run" / "manifest.json").read_text())["splits"]
    unlabelled = {entry["patient"] for entry in splits["unlabelled"]}
    hidden = {n for n in range(10) if told.pseudonyms.of("patient", str(n)) in unlabelled}

    def with_noise(number: int, voxels: np.ndarray) -> Marked:
        noise = np.random.default_rng(number).integers(0, 3, voxels.shape).astype(np.uint8)
        return Marked(noise if number in hidden else voxels, {1: "ball_1", 2: "ball_2"})

    other = balls(tmp_path / "other" / "cache", with_noise)

    assert len(hidden) >= 3
    assert [entry["loss"] for entry in train(found, other, tmp_path / "other" / "run")] == losses


@pytest.mark.parametrize("keep", ["teacher", "student"])
def test_the_teacher_or_the_student_is_validated_and_kept(cache: Cache, tmp_path: Path, keep: str) -> None:
    talk = Listener()
    train(recipe("mean_teacher", steps=2, ema_decay=0.5, unlabelled={"keep": keep}), cache, tmp_path / "run", talk)

    (path,) = (tmp_path / "run" / "checkpoints").glob("step-00000002-*")
    state, kept = safetensors.numpy.load_file(path), best(tmp_path / "run")
    network = load_finetuned(tmp_path / "run").network
    name = next(key.removeprefix("network.") for key in kept if key.endswith("weight"))
    prefix = "task.teacher" if keep == "teacher" else "average"
    assert np.array_equal(kept[f"network.{name}"], state[f"{prefix}.{name}"])
    assert np.array_equal(network.state_dict()[name].numpy(), kept[f"network.{name}"])
    assert not np.array_equal(state[f"task.teacher.{name}"], state[f"task.student.{name}"])
    assert any(note.startswith("ema_decay is left out") for note in talk.notes) == (keep == "teacher")


@pytest.mark.parametrize(
    ("found", "key"),
    [
        (on_slices("bcp", first_stage=0.0, one_piece="ball_1", min_confidence=0.5), "unlabelled/used"),
        (on_slices("uamt", passes=2, batch_size=2, crops="anywhere"), "unlabelled/used"),
        (on_slices("mean_teacher", batch_size=6, distance="kl"), "unlabelled/variance"),
        (
            recipe(
                task={"name": "segmentation", "classes": {"both": ["ball_1", "ball_2"], "small": ["ball_2"]}},
                unlabelled={"first_stage": 0.0},
            ),
            "unlabelled/share/small",
        ),
    ],
    ids=["slices, boxes", "slices, uncertainty", "slices, mean teacher", "regions"],
)
def test_slices_and_regions(cache: Cache, tmp_path: Path, found: TaskRecipe, key: str) -> None:
    entries = train(found.model_copy(update={"steps": 2}), cache, tmp_path / "run")

    assert all(np.isfinite(entry["loss"]) for entry in entries)
    assert all(0 <= entry[key] <= 1 for entry in entries)


def test_whole_images_with_findings_learn_by_a_mean_teacher(tmp_path: Path) -> None:
    cache = finding_cache(tmp_path / "cache", num_patients=10)
    found = recipe(
        "mean_teacher",
        backbone={**UNET, "spatial_dims": 2},
        task={"name": "classification", "label_set": "toy", "classes": ["Ball"]},
        data={"modality": "DX", "zscore": True, "crop_size": [16, 16, 1], "batch_size": 4},
        steps=2,
    )

    entries = train(found, cache, tmp_path / "run")

    splits = json.loads((tmp_path / "run" / "manifest.json").read_text())["splits"]
    assert len(splits["unlabelled"]) > 4
    assert all(0 <= entry["unlabelled/agreement"] <= 1 for entry in entries)
    assert "unlabelled/dice" not in entries[0]
    with pytest.raises(UsageError, match=r"unlabelled\.method bcp is not for classification"):
        check_recipe(found.model_copy(update={"unlabelled": recipe("bcp").unlabelled}))


def test_a_teacher_that_collapses_is_told_of_and_teaches_no_more(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unlabelled_finetuning, "STEPS_TO_COLLAPSE", 2)
    monkeypatch.setattr(unlabelled_finetuning, "LEAST_SHARE", 1e6)
    talk = Listener()

    entries = train(recipe("mean_teacher", steps=4, unlabelled={"ramp": 0.0}), cache, tmp_path / "run", talk)

    assert [entry["unlabelled/weight"] for entry in entries] == [1.0, 1.0, 0.0, 0.0]
    assert len([note for note in talk.notes if note.startswith("W_PSEUDO_COLLAPSE: for 2 steps")]) == 1
    assert "W_PSEUDO_COLLAPSE" in (tmp_path / "run" / "page.html").read_text()


def test_without_other_images_it_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(NothingUsableError, match=r"E_CACHE_EMPTY: none of 10 images is left to take part"):
        train(recipe(), cache, tmp_path / "run", patients=None)


def test_wrong_options_are_refused_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match=r"unlabelled\.batch_size is 4, and bcp needs one image for each of the 2"):
        check_recipe(recipe(unlabelled={"batch_size": 4}))
    with pytest.raises(UsageError, match="E_UNKNOWN_NAME: no semi-supervised method called 'bpc'"):
        check_recipe(recipe("bpc"))
    with pytest.raises(UsageError, match="pseudo_weigth: unknown key; did you mean 'pseudo_weight'"):
        check_recipe(recipe(unlabelled={"pseudo_weigth": 1.0}))
    detection = recipe(task={"name": "detection", "label_set": "toy", "classes": ["ball"], "num_levels": 1})
    with pytest.raises(
        UsageError, match="detection does not learn from unlabelled images; classification, segmentation do"
    ):
        check_recipe(detection)


def test_a_recipe_without_unlabelled_images_is_written_as_before() -> None:
    plain = validate_recipe({**dump_recipe(recipe()), "unlabelled": None}, source="test")

    assert "unlabelled" not in dump_recipe(plain)
    assert dump_recipe(recipe())["unlabelled"]["momentum"] == 0.99


def test_the_option_chooses_the_method_of_the_task(cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "balls.yaml"
    document = {key: value for key, value in dump_recipe(recipe(steps=1)).items() if key != "unlabelled"}
    path.write_text(json.dumps(document))
    words = ["finetune", "--task", str(path), "--cache", str(cache.root), "--patients", "2", "--device", "cpu"]

    for name, options in {
        "bcp": ["--unlabelled"],
        "mean_teacher": ["--unlabelled", "--set", "unlabelled.method=mean_teacher"],
        "uamt": ["--set", "unlabelled.method=uamt"],
    }.items():
        result = medssl(*words, "--run", tmp_path / name, *options)
        assert result.exit_code == 0, result.output
        assert f"method: {name}" in (tmp_path / name / "recipe.lock.yaml").read_text()
