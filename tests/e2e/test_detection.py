"""Detection end to end on toy images: it finds balls, goes on after an interruption, and refuses what it cannot do."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medssl_cli.base.errors import Exit, NothingUsableError, UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.evaluate import subject_of_run
from medssl_cli.engine.finetune import Choices, finetune
from medssl_cli.engine.finetuned import load_finetuned
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.engine.weights import load_encoder
from medssl_cli.recipe import TaskRecipe, dump_recipe, to_yaml
from tests.command import medssl
from tests.e2e.test_slice_methods import recipe as pretrain_recipe
from tests.finding_cache import finding_cache
from tests.listener import Listener
from tests.slice_cache import slice_cache
from tests.toy_recipes import task_recipe

NETWORK = {"name": "resnet", "depth": 18, "width": 8}


def recipe(steps: int = 40, *, size: tuple[int, int, int] = (64, 64, 1), **task: object) -> TaskRecipe:
    return task_recipe(
        {
            "backbone": NETWORK,
            "task": {"name": "detection", "label_set": "balls", "classes": ["ball"], "width": 16, **task},
            "data": {"zscore": True, "batch_size": 8, "crop_size": list(size)},
            "augmentation": {"flip_prob": 0.5, "affine_prob": 0.5, "rotate_degrees": 10},
            "optimizer": {"learning_rate": 5e-3},
            "steps": steps,
            "validate_every": 20,
            "checkpoint_every": 10,
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return finding_cache(
        tmp_path_factory.mktemp("toy") / "cache", num_patients=40, shape=(32, 24, 1), label_set=None, box_set="balls"
    )


@pytest.fixture(scope="module")
def run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finetune") / "run"
    finetune(recipe(), cache, root, Choices(), device="cpu", talk=Silence())
    return root


def test_it_finds_balls_and_says_how_sure_that_is(cache: Cache, run: Path) -> None:
    results = subject_of_run(run, cache, split="test", device="cpu").score(cache, split="test", talk=Silence())

    document, ball = results.document, results.document["classes"]["ball"]
    assert results.value == document["mean_average_precision"]["mean"] > 0.8
    assert (document["num_patients"], document["num_items"]) == (8, 16)
    assert (ball["num_boxes"], ball["num_images"]) == (8, 8)
    assert ball["constant_predictor"] < results.value
    assert ball["average_precision"]["low"] <= ball["average_precision"]["mean"] <= ball["average_precision"]["high"]
    rows = list(csv.DictReader(results.csv.splitlines()))
    assert sum(row["kind"] == "there" for row in rows) == 8
    there = next(row for row in rows if row["kind"] == "there")
    box = cache.record(there["item"]).boxes["balls"][0]
    assert [float(there[name]) for name in ("low_x", "high_y")] == [box.lower[0] + 0.5, box.upper[1] + 0.5]


def test_boxes_lie_on_the_stored_image(cache: Cache, run: Path) -> None:
    results = subject_of_run(run, cache, split="test", device="cpu").score(cache, split="test", talk=Silence())

    best = [
        (case, max(case["found"], key=lambda box: box["score"])) for case in results.document["cases"] if case["there"]
    ]
    distances = [np.abs(np.subtract(box["corners"], case["there"][0]["corners"])).max() for case, box in best]
    assert np.median(distances) < 3  # pixels of 32 x 24


def test_an_interrupted_training_ends_with_the_same_weights(cache: Cache, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*40-*"):
        checkpoint.unlink()

    finetune(recipe(), cache, tmp_path / "run", Choices(), device="cpu", talk=Silence())

    expected, found = (load_finetuned(root).network.state_dict() for root in (run, tmp_path / "run"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_it_starts_from_a_trunk_of_joint_pretraining_and_says_so(cache: Cache, tmp_path: Path) -> None:
    slices, talk = slice_cache(tmp_path / "slices"), Listener()
    pretrain(pretrain_recipe("joint", steps=1), slices, tmp_path / "ssl", device="cpu", talk=Silence())
    encoder = load_encoder(tmp_path / "ssl")

    finetune(recipe(1), cache, tmp_path / "run", Choices(encoder=encoder), device="cpu", talk=talk)

    assert any(
        re.match(r"from --init: \d+ tensors, .* the whole encoder; the rest of the task starts anew", note)
        for note in talk.notes
    )


def test_commands_train_evaluate_and_gate(cache: Cache, run: Path, tmp_path: Path) -> None:
    cpu = ("--cache", cache.root, "--device", "cpu")
    (tmp_path / "toy.yaml").write_text("# Toy.\n" + to_yaml(dump_recipe(recipe(2))))

    trained = medssl("finetune", "--task", tmp_path / "toy.yaml", *cpu, "--run", tmp_path / "run")
    scored = medssl("evaluate", run, *cpu, "--json", "--min-ap", "0.5", "--out", tmp_path / "out")
    shown = medssl("evaluate", run, *cpu, "--out", tmp_path / "out")
    gate = medssl("evaluate", run, *cpu, "--min-ap", "1.1", "--out", tmp_path / "out")
    wrong = medssl("evaluate", run, *cpu, "--min-auroc", "0.5", "--out", tmp_path / "out")
    compared = medssl("study", "labels", "--task", tmp_path / "toy.yaml", "--patients", "6", *cpu, "--init", tmp_path)

    assert trained.exit_code == 0, trained.stderr
    assert json.loads(scored.stdout)["schema"] == "medssl.detection/1"
    assert "mean average precision" in shown.stdout
    assert (gate.exit_code, "error: E_GATE_AP" in gate.stderr) == (Exit.GATE, True)
    assert (wrong.exit_code, "error: E_USAGE" in wrong.stderr) == (Exit.USAGE, True)
    assert (compared.exit_code, "error: E_NO_RUN" in compared.stderr) == (Exit.USAGE, True)
    page = (tmp_path / "out" / "page.html").read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"page.html", "scores.csv", "scores.json"}
    assert 6 <= page.count("data:image/png") <= 9  # three of the worst and of the best, and up to three between
    assert re.search(r"<td[^>]*>ball</td>", page)


@pytest.mark.parametrize(
    ("changes", "size", "words"),
    [
        ({"classes": ["bal"]}, (64, 64, 1), "E_RECIPE: the set 'balls' has no box 'bal'"),
        ({}, (64, 32, 1), "E_CANVAS: detection brings 2D images to a square"),
        ({}, (64, 64, 8), "E_CANVAS"),
    ],
)
def test_recipes_that_cannot_work(
    changes: dict[str, Any], size: tuple[int, int, int], words: str, cache: Cache, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        finetune(recipe(1, size=size, **changes), cache, tmp_path / "run", Choices(), device="cpu", talk=Silence())


def test_images_without_boxes_of_the_set_or_without_any_box(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(
        NothingUsableError, match="E_NO_LABELS: no image has boxes of the set 'other'; the cache has balls"
    ):
        finetune(recipe(1, label_set="other"), cache, tmp_path / "run", Choices(), device="cpu", talk=Silence())
    volumes = finding_cache(tmp_path / "v", num_patients=4, shape=(12, 12, 4), modality="CT", box_set="balls")
    with pytest.raises(NothingUsableError, match="none of the 8 images with boxes is a single 2D image"):
        finetune(recipe(1), volumes, tmp_path / "run", Choices(), device="cpu", talk=Silence())
    few = finding_cache(tmp_path / "few", num_patients=10, images=1, box_set="balls")
    draws = [Choices(patients=1, draw=draw) for draw in range(10)]
    told = [refusal_of(recipe(1), few, tmp_path / f"few-{choices.draw}", choices) for choices in draws]
    assert "there is no box on any of the 1 training images" in told


def refusal_of(recipe: TaskRecipe, cache: Cache, root: Path, choices: Choices) -> str:
    try:
        finetune(recipe, cache, root, choices, device="cpu", talk=Silence())
    except NothingUsableError as error:
        return error.message
    return ""
