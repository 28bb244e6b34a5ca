"""A training does what its recipe says, tells what it cannot do, goes on where that is right, and compares fairly."""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medssl_cli.base.errors import GateError, NothingUsableError, UsageError
from medssl_cli.base.files import sha256_json
from medssl_cli.base.talk import Silence
from medssl_cli.cache.splits import split_items
from medssl_cli.cache.store import Cache
from medssl_cli.cli.scoring import load_subject
from medssl_cli.data.selection import select
from medssl_cli.deploy.export import export_run
from medssl_cli.engine import finetune as loop
from medssl_cli.engine.build import build_task
from medssl_cli.engine.check import check_with_cache, checked_recipe
from medssl_cli.engine.checkpoints import CheckpointFolder
from medssl_cli.engine.evaluate import Terms
from medssl_cli.engine.finetune import Choices, FinetuneSummary, finetune
from medssl_cli.engine.finetuned import load_finetuned
from medssl_cli.engine.live_page import Outlets
from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.engine.weights import Encoder, initialise_task, load_encoder
from medssl_cli.imaging.volume import Volume
from medssl_cli.recipe import Named, PretrainRecipe, TaskRecipe, find_recipe, load_recipe
from medssl_cli.report.run import finetuning_page
from medssl_cli.tasks import Validation
from tests.e2e.test_training import pretrain_recipe
from tests.environment import give_known_key
from tests.listener import Listener
from tests.toy_cache import Marked, toy_cache
from tests.toy_recipes import CT, balls_yaml

RECIPE = balls_yaml(
    data={**CT, "crop_size": [16, 16, 16], "batch_size": 1},
    augmentation={"flip_prob": 0.0},
    optimizer={"learning_rate": 1e-2},
    steps=4,
    validate_every=2,
    checkpoint_every=2,
    log_every=1,
)


def recipe_with(folder: Path, *overrides: str) -> TaskRecipe:
    path = folder / "balls.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(path, list(overrides))
    assert isinstance(recipe, TaskRecipe)
    return recipe


def balls(root: Path, mark: Callable[[int, np.ndarray], Marked] | None = None) -> Cache:
    """Ten patients under a known key, so that all of these caches have the same items and splits."""
    give_known_key(root)
    return toy_cache(root, num_patients=10, size=16, mark=mark)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return balls(tmp_path_factory.mktemp("toy") / "cache")


def patients_of(cache: Cache, name: str) -> set[str]:
    split = split_items(cache.records(), cache.records(), seed=0, fold=0)
    return {record.patient_key for record in split.of(name)}


def numbers_of(cache: Cache, *splits: str) -> set[int]:
    """Numbers of the patients of a split."""
    wanted = set().union(*(patients_of(cache, name) for name in splits))
    return {number for number in range(10) if cache.pseudonyms.of("patient", str(number)) in wanted}


def train(
    recipe: TaskRecipe, cache: Cache, root: Path, choices: Choices | None = None
) -> tuple[FinetuneSummary, list[str]]:
    heard = Listener()
    return finetune(recipe, cache, root, choices or Choices(), device="cpu", talk=heard), heard.notes


def losses(root: Path) -> list[float]:
    return [entry["loss"] for entry in read_metrics(root)]


def best_step(root: Path) -> int:
    best = CheckpointFolder(root / "checkpoints").load_best()
    assert best is not None
    return best.step


# Labels by name.


def swapped(number: int, voxels: np.ndarray) -> Marked:
    """In every second patient the two balls have other values, one of them above 255."""
    if number % 2 == 0:
        return Marked(voxels, {1: "ball_1", 2: "ball_2"})
    return Marked(np.choose(voxels, [0, 300, 1]).astype(np.uint16), {300: "ball_1", 1: "ball_2"})


def test_values_that_mean_other_things_in_some_images_train_the_same_network(cache: Cache, tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path)
    train(recipe, cache, tmp_path / "plain")

    _, notes = train(recipe, balls(tmp_path / "mixed", swapped), tmp_path / "by name")

    assert losses(tmp_path / "by name") == losses(tmp_path / "plain")
    assert "classes are matched by name, not by value: ball_1 is value 1 or 300; ball_2 is value 1 or 2" in notes


def test_a_subset_a_merge_and_what_is_ignored_can_be_trained_and_exported(cache: Cache, tmp_path: Path) -> None:
    for number, classes in enumerate(("{second: [ball_2]}", "{both: any}", "[ball_1]")):
        recipe = recipe_with(tmp_path, f"task.classes={classes}", *(["task.ignore=ball_2"] * (number == 2)))

        _, notes = train(recipe, cache, tmp_path / str(number))

        left_out = [note for note in notes if note.startswith("W_LABELS_LEFT_OUT")]
        assert bool(left_out) == (number == 0)
        subject = load_subject(tmp_path / str(number), cache, split="val", device="cpu")
        assert 0 <= subject.score(cache, split="val", talk=Silence()).value <= 1
    bundle = export_run(tmp_path / "0", tmp_path / "model.onnx", cache_root=cache.root, cases=1)
    assert bundle.head.classes == {1: "second"}
    assert bundle.head.wanted.classes == {"second": ("ball_2",)}


# What is absent.


def test_validation_without_any_structure_keeps_the_last_checkpoint_and_says_so(cache: Cache, tmp_path: Path) -> None:
    validating = numbers_of(cache, "val")
    names = {1: "ball_1", 2: "ball_2"}
    empty = balls(
        tmp_path / "cache",
        lambda number, voxels: Marked(voxels * np.uint8(number not in validating), names),
    )

    summary, notes = train(recipe_with(tmp_path), empty, tmp_path / "run")

    assert (summary.best_score, summary.best_step, best_step(tmp_path / "run")) == (None, 4, 4)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["best_dice"] is None
    assert any(note.startswith("W_VALIDATION_EMPTY: none of the") for note in notes)
    assert any(note.startswith("step 4: validation dice says nothing") for note in notes)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [([0.0, 0.0], 4), ([0.5, 0.5], 4), ([0.5, 0.4], 2), ([math.nan, math.nan], 4), ([0.5, math.nan], 2)],
)
def test_of_equal_validations_the_later_is_kept(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], kept: int
) -> None:
    given = iter(scores)
    supervision = loop.supervision_of(recipe_with(tmp_path))
    monkeypatch.setattr(type(supervision), "validator", lambda *_: lambda predict: Validation(next(given)))

    summary, notes = train(recipe_with(tmp_path), cache, tmp_path / "run")

    assert (summary.best_step, best_step(tmp_path / "run")) == (kept, kept)
    assert any("every validation scored 0" in note for note in notes) == (scores == [0.0, 0.0])


def test_classes_that_no_image_to_learn_from_shows_are_named_with_what_the_others_have(
    cache: Cache, tmp_path: Path
) -> None:
    tested, names = numbers_of(cache, "test"), {1: "ball_1", 2: "ball_2"}
    rare = balls(
        tmp_path / "cache",
        lambda number, voxels: Marked(voxels if number in tested else voxels * (voxels != 2), names),
    )

    _, notes = train(recipe_with(tmp_path), rare, tmp_path / "run")

    absent = [note for note in notes if note.startswith("W_CLASS_ABSENT")]
    assert [("'ball_2'" in note, "training" in note, "validation" in note) for note in absent] == [
        (True, True, False),
        (True, False, True),
    ]
    training = patients_of(rare, "train")
    voxels = sum(
        record.labels["seg"].voxels_per_class[1] for record in rare.records() if record.patient_key in training
    )
    expected = f"to learn from: ball_1 {voxels} voxels in {len(training)} patients, ball_2 0 voxels in 0 patients"
    assert expected in notes


def test_each_class_has_its_dice_in_the_metrics(cache: Cache, tmp_path: Path) -> None:
    train(recipe_with(tmp_path), cache, tmp_path / "run")

    last = read_metrics(tmp_path / "run")[-1]

    # All validation patients show both balls, so the mean over everything is the mean over the two.
    assert last["val_dice"] == pytest.approx((last["val_dice/ball_1"] + last["val_dice/ball_2"]) / 2)


def test_the_page_shows_losses_validations_and_what_is_left(cache: Cache, tmp_path: Path) -> None:
    pages = []

    def page(document: Mapping[str, Any]) -> str:
        pages.append(finetuning_page(document))
        return pages[-1]

    finetune(
        recipe_with(tmp_path), cache, tmp_path / "run", Choices(), device="cpu", talk=Silence(), outlets=Outlets(page)
    )

    assert len(pages) == 2
    assert (tmp_path / "run" / "page.html").read_text() == pages[-1]
    assert "In progress: best validation dice" in pages[0]
    assert "time left" in pages[0]
    assert "Finished: best validation dice" in pages[1]
    assert "time left" not in pages[1]
    for text in ("50% of 4 steps", "ball_1", "ball_2", "cross_entropy", "Learning rate over steps", "torch"):
        assert text in pages[0]


# Broken steps.


def break_steps(monkeypatch: pytest.MonkeyPatch, recipe: TaskRecipe, *broken: int) -> None:
    network, calls = type(build_task(recipe)), itertools.count()
    plain = network.loss

    def loss(self: Any, logits: torch.Tensor, labels: torch.Tensor) -> Any:
        return plain(self, logits * (math.nan if next(calls) in broken else 1.0), labels)

    monkeypatch.setattr(network, "loss", loss)


def test_a_broken_step_of_a_fine_tuning_is_left_out_and_too_many_end_it(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_with(tmp_path, "max_skipped=1")
    break_steps(monkeypatch, recipe, 1)
    summary, notes = train(recipe, cache, tmp_path / "one")
    break_steps(monkeypatch, recipe, 2, 3)

    with pytest.raises(GateError, match="E_DIVERGED: the loss of step 4 is not finite; items "):
        train(recipe, cache, tmp_path / "two")

    assert summary.steps == 4
    assert losses(tmp_path / "one")[1] is None
    assert [note.split(" is not")[0] for note in notes if "W_STEP" in note] == ["W_STEP_SKIPPED: the loss of step 2"]
    assert best_step(tmp_path / "two") == 2


# Schedules and budgets.


def test_warm_up_steps_are_warmed_up(cache: Cache, tmp_path: Path) -> None:
    train(recipe_with(tmp_path, "steps=5", "schedule.warmup_steps=4"), cache, tmp_path / "run")

    rates = [entry["learning_rate"] for entry in read_metrics(tmp_path / "run")]

    assert rates == pytest.approx([0.0, 0.0025, 0.005, 0.0075, 0.01])


def test_a_time_limit_says_how_many_steps_it_took(cache: Cache, tmp_path: Path) -> None:
    summary, notes = train(recipe_with(tmp_path), cache, tmp_path / "run", Choices(max_minutes=1e-6))

    assert (summary.steps, summary.max_minutes) == (1, 1e-6)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["max_minutes"] == 1e-6
    assert any("--set steps=1 instead of --max-minutes" in note for note in notes)


def test_pre_training_takes_a_time_limit(cache: Cache, tmp_path: Path) -> None:
    recipe = pretrain_recipe(1000)

    summary = pretrain(recipe, cache, tmp_path / "run", device="cpu", talk=Silence(), max_minutes=1e-6)

    assert summary.steps == 1
    assert (tmp_path / "run" / "encoder.safetensors").is_file()
    with pytest.raises(UsageError, match=r"E_RECIPE_CHANGED: .*max_minutes 1e-06 -> none"):
        pretrain(recipe, cache, tmp_path / "run", device="cpu", talk=Silence())


# Going on.


def test_keys_that_change_nothing_that_is_learnt_may_change(cache: Cache, tmp_path: Path) -> None:
    train(recipe_with(tmp_path), cache, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()

    changed = recipe_with(tmp_path, "data.num_workers=1", "log_every=2", "checkpoint_every=3")
    summary, _ = train(changed, cache, tmp_path / "run")

    assert summary.steps == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batch_size=2", "data.batch_size 1 -> 2"),
        ("steps=3", "steps 4 -> 3"),
        ("validate_every=4", "validate_every 2 -> 4"),
        ("schedule.warmup_steps=1", "schedule.warmup_steps none -> 1"),
    ],
)
def test_a_key_that_changes_what_is_learnt_is_named(cache: Cache, tmp_path: Path, override: str, words: str) -> None:
    train(recipe_with(tmp_path), cache, tmp_path / "run")

    with pytest.raises(UsageError, match=f"E_RECIPE_CHANGED: .*{words}"):
        train(recipe_with(tmp_path, override), cache, tmp_path / "run")


def test_an_option_that_changes_who_is_learnt_from_is_named(cache: Cache, tmp_path: Path) -> None:
    train(recipe_with(tmp_path), cache, tmp_path / "run")

    with pytest.raises(UsageError, match=r"E_RECIPE_CHANGED: .*fold 0 -> 1"):
        train(recipe_with(tmp_path), cache, tmp_path / "run", Choices(fold=1))


def test_a_finished_training_goes_on_for_longer_and_says_how_its_rate_moves(cache: Cache, tmp_path: Path) -> None:
    train(recipe_with(tmp_path), cache, tmp_path / "run")
    short = [entry["learning_rate"] for entry in read_metrics(tmp_path / "run")]

    summary, notes = train(recipe_with(tmp_path, "steps=8"), cache, tmp_path / "run")

    train(recipe_with(tmp_path, "steps=8"), cache, tmp_path / "whole")
    rates, whole = ([entry["learning_rate"] for entry in read_metrics(tmp_path / name)] for name in ("run", "whole"))
    assert summary.steps == 8
    assert rates == [*short, *whole[4:]]
    assert any(note.startswith("this run goes on for longer: steps 4 -> 8") for note in notes)
    assert load_finetuned(tmp_path / "run").recipe.steps == 8
    _, again = train(recipe_with(tmp_path, "steps=8"), cache, tmp_path / "run")
    assert any("finished already" in note for note in again)


def test_a_finished_pre_training_goes_on_for_longer(cache: Cache, tmp_path: Path) -> None:
    pretrain(pretrain_recipe(2), cache, tmp_path / "run", device="cpu", talk=Silence())
    before = (tmp_path / "run" / "encoder.safetensors").read_bytes()
    heard = Listener()

    summary = pretrain(pretrain_recipe(4), cache, tmp_path / "run", device="cpu", talk=heard)

    assert summary.steps == 4
    assert (tmp_path / "run" / "encoder.safetensors").read_bytes() != before
    assert any(note.startswith("this run goes on for longer: steps 2 -> 4") for note in heard.notes)


# Starting from other weights.


def test_a_training_starts_from_a_fine_tuned_run_with_its_decoder(cache: Cache, tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path)
    train(recipe, cache, tmp_path / "first")
    encoder, task = load_encoder(tmp_path / "first"), build_task(recipe)

    said = initialise_task(task, encoder, classes=("ball_1", "ball_2"))

    own, known = task.state_dict(), load_finetuned(tmp_path / "first").network.state_dict()
    assert all(torch.equal(own[name], known[name]) for name in known)
    assert said.endswith("other tensors of the task")
    other = build_task(recipe)
    fresh = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    said = initialise_task(other, encoder, classes=("ball_2", "ball_1"))
    assert all(torch.equal(tensor, known[name]) == name.startswith("backbone") or torch.equal(fresh[name], known[name])
               for name, tensor in other.state_dict().items())  # fmt: skip
    assert "its classes are ball_1, ball_2" in said


def test_what_a_fine_tuned_run_has_seen_is_known_to_its_successors(cache: Cache, tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path)
    train(recipe, cache, tmp_path / "first")
    first = load_encoder(tmp_path / "first")

    train(recipe, cache, tmp_path / "second", Choices(encoder=first))
    second = load_encoder(tmp_path / "second")

    assert second.patients == first.patients == patients_of(cache, "train") | patients_of(cache, "val")
    assert second.labelled_patients == first.labelled_patients == patients_of(cache, "train")
    with pytest.raises(GateError, match="E_SPLIT_LEAK"):
        train(recipe.model_copy(update={"split_seed": 1}), cache, tmp_path / "leak", Choices(encoder=first))


def test_a_run_of_an_earlier_version_goes_on_although_it_did_not_note_whom_its_weights_have_seen(
    cache: Cache, tmp_path: Path
) -> None:
    recipe = recipe_with(tmp_path)
    train(recipe, cache, tmp_path / "first")
    choices = Choices(encoder=load_encoder(tmp_path / "first"))
    train(recipe, cache, tmp_path / "run", choices)
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["arguments"]["init"], manifest["sha256"]
    path.write_text(json.dumps({**manifest, "sha256": sha256_json(manifest)}))

    _, notes = train(recipe, cache, tmp_path / "run", choices)

    assert any("finished already" in note for note in notes)
    assert load_encoder(tmp_path / "run").patients is None


def test_another_network_of_the_weights_is_said_with_what_makes_a_comparison_fair(cache: Cache, tmp_path: Path) -> None:
    network = "{name: unet, channels: [6, 8], strides: [1, 2], num_res_units: 1}"
    train(recipe_with(tmp_path, f"backbone={network}"), cache, tmp_path / "first")

    _, notes = train(recipe_with(tmp_path), cache, tmp_path / "run", Choices(encoder=load_encoder(tmp_path / "first")))

    (said,) = [note for note in notes if note.startswith("W_BACKBONE_REPLACED")]
    override = said.split("--set ")[1].strip("'")
    fair = recipe_with(tmp_path, override)
    assert fair.backbone == load_finetuned(tmp_path / "run").recipe.backbone


# Before a training: recipes against caches; after it: other labels.


def test_a_recipe_is_checked_against_a_cache(cache: Cache, tmp_path: Path) -> None:
    recipe_with(tmp_path)
    recipe = checked_recipe(tmp_path / "balls.yaml")

    counts = [len(patients_of(cache, name)) for name in ("train", "val", "test")]
    said = check_with_cache(recipe, cache, Silence())

    assert said == f"10 images: {counts[0]} train, {counts[1]} validation, {counts[2]} test"
    with pytest.raises(UsageError, match="E_LABEL_CLASSES"):
        check_with_cache(recipe_with(tmp_path, "task.classes=[heart]"), cache, Silence())
    with pytest.raises(NothingUsableError, match="E_NO_LABELS"):
        check_with_cache(recipe_with(tmp_path, "task.label_set=other"), cache, Silence())
    assert check_with_cache(pretrain_recipe(1), cache, Silence()) == f"{10 - counts[2]} images"


def test_all_faults_of_a_recipe_are_told_at_once(tmp_path: Path) -> None:
    recipe_with(tmp_path)
    wrong = ["name=x y", "backbone.name=unett", "task.decodr={}", "task.classes={a: [1], b: [1]}", "data.batch_size=0"]

    with pytest.raises(UsageError, match=r"E_RECIPE: balls\.yaml has 5 faults") as refusal:
        checked_recipe(tmp_path / "balls.yaml", wrong)

    for word in ("name:", "unett", "task.decodr", "task.classes", "data.batch_size"):
        assert word in refusal.value.message
    with pytest.raises(UsageError, match="E_UNKNOWN_NAME"):
        checked_recipe(tmp_path / "balls.yaml", wrong[1:2])
    with pytest.raises(UsageError, match="E_CANVAS"):
        checked_recipe(tmp_path / "balls.yaml", ["data.crop_size=[15, 16, 16]"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["backbone=auto", "data.crop_size=[16, 16, 1]"],
        ["backbone=auto", "data.crop_size=[15, 16, 16]", "task.deep_supervision=true"],
        ["backbone={name: unet, spatial_dims: 2, channels: [4, 8], strides: [1, 2]}", "data.crop_size=auto"],
        ["backbone={name: resnet, depth: 18}", "data.crop_size=auto"],
    ],
)
def test_what_is_left_to_a_plan_is_not_checked_by_its_stand_in(tmp_path: Path, overrides: list[str]) -> None:
    recipe_with(tmp_path)

    assert isinstance(checked_recipe(tmp_path / "balls.yaml", overrides), TaskRecipe)
    with pytest.raises(UsageError, match=r"E_RECIPE: balls\.yaml has 1 fault"):
        checked_recipe(tmp_path / "balls.yaml", [*overrides, "task.classes=[]"])


def test_no_option_of_a_backbone_takes_a_yes_for_a_number(tmp_path: Path) -> None:
    recipe_with(tmp_path)

    with pytest.raises(UsageError, match="E_RECIPE: backbone unet: num_res_units is no yes or no"):
        checked_recipe(tmp_path / "balls.yaml", ["backbone.num_res_units=true"])


def test_a_network_that_init_brings_and_that_does_not_fit_is_refused_before_the_run_folder_is_made(
    cache: Cache, tmp_path: Path
) -> None:
    encoder = Encoder(Named(name="unet", channels=[4, 8], strides=[3, 2]), {}, "0" * 64, None)
    recipe = recipe_with(tmp_path, "data.crop_size=[16, 16, 16]")

    with pytest.raises(UsageError, match="E_CANVAS"):
        finetune(recipe, cache, tmp_path / "run", Choices(encoder=encoder), device="cpu", talk=Silence())

    assert not (tmp_path / "run").exists()


def test_a_cache_of_another_modality_says_what_the_recipe_needs(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=2, size=12, modality="MR")

    with pytest.raises(
        NothingUsableError, match="E_CACHE_EMPTY: the cache holds no CT images; it holds 2 MR"
    ) as refusal:
        select(cache, modality="CT", talk=Silence())

    overrides = [word.strip(",") for word in refusal.value.hint.split() if "=" in word]
    recipe = load_recipe(find_recipe("voco"), overrides)
    assert isinstance(recipe, PretrainRecipe)
    assert len(select(cache, modality=recipe.data.modality, talk=Silence())) == 2


def corrected(number: int, voxels: np.ndarray) -> np.ndarray:
    """The first ball alone, under another value."""
    return np.where(voxels == 1, 5, 0).astype(np.uint8) if number >= 0 else voxels


def test_a_model_is_scored_by_another_set_of_labels(tmp_path: Path) -> None:
    cache = balls(tmp_path / "cache")
    train(recipe_with(tmp_path), cache, tmp_path / "run")
    with pytest.raises(
        NothingUsableError, match=r"E_NO_LABELS: \d+ of the \d+ images .* no labels of the set 'corrected'"
    ):
        load_subject(tmp_path / "run", cache, split="test", device="cpu", terms=Terms("corrected"))

    truth: dict[str, Any] = {}
    with cache.writing():
        for record in cache.records():
            voxels = corrected(0, cache.read_label(record, "seg").voxels[0].astype(np.uint8))
            truth[record.item_id] = voxels == 5
            cache.add_label(record.item_id, "corrected", Volume(voxels[None], record.affine_array), {5: "ball_1"})
    subject = load_subject(tmp_path / "run", cache, split="test", device="cpu", terms=Terms("corrected"))
    results = subject.score(cache, split="test", talk=Silence())

    assert results.document["label_set"] == "corrected"
    for case in results.document["cases"]:
        volume = case["scores"]["ball_1"]["reference_ml"]
        assert volume == pytest.approx(truth[case["item"]].sum() * 8 / 1000)


def test_an_exported_model_is_scored_by_the_labels_that_make_up_its_classes(cache: Cache, tmp_path: Path) -> None:
    # The order differs from that of names, of values, and of the bundle's sorted JSON.
    recipe = recipe_with(tmp_path, "task.classes={second: [ball_2], first: [ball_1]}")
    train(recipe, cache, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "model.onnx", cache_root=cache.root, cases=1)

    of_run = load_subject(tmp_path / "run", cache, split="test", device="cpu")
    of_model = load_subject(tmp_path / "model.onnx", cache, split="test", device="cpu")

    assert of_run.classes == of_model.classes == {1: "second", 2: "first"}
    volumes = [
        {name: [case["scores"][name]["reference_ml"] for case in cases] for name in ("first", "second")}
        for cases in (
            subject.score(cache, split="test", talk=Silence()).document["cases"] for subject in (of_run, of_model)
        )
    ]
    assert volumes[0] == volumes[1]
    for name, value in (("first", 1), ("second", 2)):
        expected = [record.labels["seg"].voxels_per_class[value] * 8 / 1000 for record in of_model.records]
        assert volumes[0][name] == pytest.approx(expected)
