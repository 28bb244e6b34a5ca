"""Classification and probes end to end on toy images: they learn, go on after an interruption, and refuse leaks."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from medssl_cli.base.errors import Exit, GateError, NothingUsableError, UsageError
from medssl_cli.base.files import sha256_json
from medssl_cli.base.talk import Silence
from medssl_cli.cache.splits import held_out_patients
from medssl_cli.cache.store import Cache
from medssl_cli.engine.evaluate import subject_of_run
from medssl_cli.engine.finetune import Choices, FinetuneSummary, finetune
from medssl_cli.engine.finetuned import load_finetuned
from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.engine.randomness import Purpose, implicit_randomness
from medssl_cli.engine.runs import Manifest, start_run
from medssl_cli.engine.weights import load_encoder
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import Named, PretrainRecipe, TaskRecipe, dump_recipe, to_yaml
from medssl_cli.study.probe import probe_run
from tests import toy_recipes
from tests.command import medssl
from tests.finding_cache import finding_cache

FLAT = {"name": "unet", "spatial_dims": 2, "channels": [8, 16], "strides": [2, 2], "num_res_units": 1, "norm": "batch"}
SOLID = {**FLAT, "spatial_dims": 3}
ZSCORE = {"zscore": True, "batch_size": 8}


def task_recipe(steps: int = 30, *, size: tuple[int, int, int] = (24, 24, 1), **task: object) -> TaskRecipe:
    return toy_recipes.task_recipe(
        {
            "backbone": FLAT if size[2] == 1 else SOLID,
            "task": {"name": "classification", "label_set": "toy", "classes": ["Ball", "Haze"], **task},
            "data": {**ZSCORE, "crop_size": list(size)},
            "optimizer": {"learning_rate": 1e-2},
            "steps": steps,
            "validate_every": 15,
            "checkpoint_every": 10,
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return finding_cache(tmp_path_factory.mktemp("toy") / "cache", num_patients=40)


@pytest.fixture(scope="module")
def run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finetune") / "run"
    finetune(task_recipe(), cache, root, Choices(), device="cpu", talk=Silence())
    return root


class Notes(Silence):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_it_learns_findings_and_says_how_sure_that_is(cache: Cache, run: Path) -> None:
    results = subject_of_run(run, cache, split="test", device="cpu").score(cache, split="test", talk=Silence())

    document = results.document
    assert results.value == document["mean_auroc"]["mean"]
    assert results.value > 0.75  # 0.5 by chance
    assert (document["num_patients"], document["num_items"]) == (8, 16)
    ball, haze = document["classes"]["Ball"], document["classes"]["Haze"]
    assert (ball["num_known"], ball["num_positive"]) == (16, 8)
    assert haze["num_known"] < 16  # of some nobody knows
    for scores in (ball, haze):
        assert scores["auroc"]["low"] <= scores["auroc"]["mean"] <= scores["auroc"]["high"]
    rows = list(csv.DictReader(results.csv.splitlines()))
    assert len(rows) == 32
    assert sum(row["target"] == "" for row in rows) == 16 - haze["num_known"]


def test_no_patient_is_in_two_splits(cache: Cache, run: Path) -> None:
    splits = load_finetuned(run).manifest["splits"]
    patients = {name: {entry["patient"] for entry in entries} for name, entries in splits.items()}

    assert patients["test"] == held_out_patients(cache.entries(), 0)
    assert not patients["train"] & patients["val"]
    assert not (patients["train"] | patients["val"]) & patients["test"]


def test_the_log_and_the_summary_name_the_figure(run: Path) -> None:
    last, summary = read_metrics(run)[-1], json.loads((run / "summary.json").read_text())

    assert summary["best_auroc"] == max(entry["val_auroc"] for entry in read_metrics(run) if "val_auroc" in entry)
    assert {"loss", "cross_entropy", "val_auroc"} <= set(last)


def test_an_interrupted_training_ends_with_the_same_weights(cache: Cache, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*30-*"):
        checkpoint.unlink()

    finetune(task_recipe(), cache, tmp_path / "run", Choices(), device="cpu", talk=Silence())

    expected, found = (load_finetuned(root).network.state_dict() for root in (run, tmp_path / "run"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_worker_processes_change_nothing(cache: Cache, tmp_path: Path) -> None:
    recipe = task_recipe(4)
    busy = recipe.model_copy(update={"data": recipe.data.model_copy(update={"num_workers": 1})})

    for name, each in (("inline", recipe), ("worker", busy)):
        finetune(each, cache, tmp_path / name, Choices(), device="cpu", talk=Silence())

    inline, worker = (load_finetuned(tmp_path / name).network.state_dict() for name in ("inline", "worker"))
    assert all(torch.equal(inline[name], worker[name]) for name in inline)


def test_volumes_are_classified_too(tmp_path: Path) -> None:
    volumes = finding_cache(tmp_path / "cache", num_patients=20, shape=(12, 12, 8), modality="CT")

    summary = finetune(
        task_recipe(20, size=(12, 12, 8), classes={"ball": ["Ball"]}),
        volumes,
        tmp_path / "run",
        Choices(),
        device="cpu",
        talk=Silence(),
    )

    assert isinstance(summary, FinetuneSummary)
    assert summary.best_score > 0.75  # 0.5 by chance


@pytest.mark.parametrize("relation", [None, {"embedding_dim": 16, "num_layers": 1, "num_heads": 2}])
def test_volumes_are_classified_slice_by_slice(relation: dict[str, int] | None, tmp_path: Path) -> None:
    volumes = finding_cache(tmp_path / "cache", num_patients=20, shape=(12, 12, 8), modality="CT")
    recipe = task_recipe(30, size=(16, 16, 6), classes={"ball": ["Ball"]}, relation=relation)
    recipe = recipe.model_copy(update={"backbone": Named(**FLAT)})

    summary = finetune(recipe, volumes, tmp_path / "run", Choices(), device="cpu", talk=Silence())
    results = subject_of_run(tmp_path / "run", volumes, split="test", device="cpu").score(
        volumes, split="test", talk=Silence()
    )

    assert summary.best_score > 0.75  # 0.5 by chance
    assert results.value > 0.75


def test_slices_are_brought_to_a_square(tmp_path: Path) -> None:
    volumes = finding_cache(tmp_path / "cache", num_patients=6, shape=(12, 12, 8), modality="CT")
    recipe = task_recipe(1, size=(16, 24, 6)).model_copy(update={"backbone": Named(**FLAT)})

    with pytest.raises(UsageError, match="E_CANVAS: 2D images and slices are brought to a square"):
        finetune(recipe, volumes, tmp_path / "run", Choices(), device="cpu", talk=Silence())


def test_classes_that_exclude_each_other_are_scored_by_balanced_accuracy(cache: Cache, tmp_path: Path) -> None:
    classes = {"neither": "none", "ball": ["Ball"], "haze": ["Haze"]}
    recipe = task_recipe(60, classes=classes, is_exclusive=True)
    notes = Notes()

    summary = finetune(recipe, cache, tmp_path / "run", Choices(), device="cpu", talk=notes)
    subject = subject_of_run(tmp_path / "run", cache, split="test", device="cpu")
    document = subject.score(cache, split="test", talk=Silence()).document

    assert summary.score == "balanced_accuracy"
    assert summary.best_score > 0.7  # 1 / 3 by chance
    assert document["balanced_accuracy"]["mean"] > 0.6
    assert all(sum(case["probability"].values()) == pytest.approx(1, abs=1e-5) for case in document["cases"])
    assert any("images are left out: nothing is known of any class" in text for text in notes.texts)


def test_any_finding_against_none(cache: Cache, tmp_path: Path) -> None:
    recipe = task_recipe(1, classes={"abnormal": "any"}).model_copy(update={"channels_last": True, "ema_decay": 0.9})

    finetune(recipe, cache, tmp_path / "run", Choices(patients=10), device="cpu", talk=Silence())

    document = (
        subject_of_run(tmp_path / "run", cache, split="test", device="cpu")
        .score(cache, split="test", talk=Silence())
        .document
    )
    known = [case["item"] for case in document["cases"] if case["target"]["abnormal"] is not None]
    is_any = [any(value == 1 for value in cache.record(item).findings["toy"].values()) for item in known]
    assert sum(is_any) == document["classes"]["abnormal"]["num_positive"]


@pytest.mark.parametrize(
    ("task", "size", "code"),
    [
        ({"classes": ["Bal"]}, (24, 24, 1), "E_RECIPE"),
        ({"label_set": "other"}, (24, 24, 1), "E_NO_LABELS"),
        ({}, (24, 16, 1), "E_CANVAS"),
        ({}, (24, 24, 24), "E_CACHE_EMPTY"),
    ],
)
def test_what_cannot_be_learnt_is_refused_before_training(
    cache: Cache, tmp_path: Path, task: dict[str, Any], size: tuple[int, int, int], code: str
) -> None:
    with pytest.raises((UsageError, NothingUsableError), match=code):
        finetune(task_recipe(size=size, **task), cache, tmp_path / "run", Choices(), device="cpu", talk=Silence())

    assert not (tmp_path / "run").exists()


def test_too_few_patients_to_see_a_finding_and_its_absence_are_refused(tmp_path: Path) -> None:
    few = finding_cache(tmp_path / "cache", num_patients=8, images=1)

    with pytest.raises(NothingUsableError, match="no class is both present and absent among the training images"):
        finetune(task_recipe(), few, tmp_path / "run", Choices(patients=1), device="cpu", talk=Silence())


def test_a_network_of_volumes_refuses_flat_crops(cache: Cache, tmp_path: Path) -> None:
    recipe = task_recipe().model_copy(update={"backbone": task_recipe(size=(24, 24, 24)).backbone})

    with pytest.raises(UsageError, match=r"E_CANVAS: data.crop_size \[24, 24, 1\] is not for unet"):
        finetune(recipe, cache, tmp_path / "run", Choices(), device="cpu", talk=Silence())


def test_commands_evaluate_and_gate(cache: Cache, run: Path, tmp_path: Path) -> None:
    cpu = ("--cache", cache.root, "--device", "cpu")

    scored = medssl("evaluate", run, *cpu, "--json", "--min-auroc", "0.5", "--out", tmp_path / "out")
    shown = medssl("evaluate", run, *cpu, "--out", tmp_path / "out")
    gate = medssl("evaluate", run, *cpu, "--min-auroc", "1.1", "--out", tmp_path / "out")
    wrong = medssl("evaluate", run, *cpu, "--min-dice", "0.5", "--out", tmp_path / "out")

    assert json.loads(scored.stdout)["schema"] == "medssl.classification/1"
    assert "mean AUROC" in shown.stdout
    assert (gate.exit_code, "error: E_GATE_AUROC" in gate.stderr) == (Exit.GATE, True)
    assert (wrong.exit_code, "error: E_USAGE" in wrong.stderr) == (Exit.USAGE, True)
    page = (tmp_path / "out" / "page.html").read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"page.html", "scores.csv", "scores.json"}
    assert re.search(r"<td[^>]*>Haze</td>", page)


def test_arms_are_compared_at_several_numbers_of_labelled_patients(cache: Cache, tmp_path: Path) -> None:
    unseen = Manifest({"train": []}, {})
    encoder = encoder_run(tmp_path / "ssl", pretrain_recipe(FLAT, (24, 24, 1)), unseen, seed=0)
    (tmp_path / "toy.yaml").write_text("# Toy.\n" + to_yaml(dump_recipe(task_recipe(15))))

    where = ("--cache", cache.root, "--init", encoder, "--out", tmp_path / "out", "--device", "cpu")
    ask = ("study", "labels", "--task", tmp_path / "toy.yaml", "--patients", "6,20", "--seeds", 2, *where)
    document = json.loads(medssl(*ask, "--json").stdout)
    shown = medssl(*ask)  # everything is done already

    assert document["figure"] == "AUROC"
    assert len(document["runs"]) == 2 * 2 * 2
    level = next(entry for entry in document["levels"] if entry["patients"] == 20)
    assert (level["structure"], level["arm"], len(level["per_seed"])) == ("mean of classes", "scratch", 2)
    scores = [
        json.loads((tmp_path / "out" / f"scratch-20-seed{seed}" / "evaluation-test" / "scores.json").read_text())
        for seed in range(2)
    ]
    assert level["per_seed"] == pytest.approx([each["mean_auroc"]["mean"] for each in scores])
    difference = next(entry for entry in document["differences"] if entry["patients"] == 20)
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert 0 < difference["p_value"] <= 1
    assert "AUROC" in shown.stdout
    assert (
        (tmp_path / "out" / "results.csv")
        .read_text()
        .startswith("arm,patients,steps,draw,seed,structure,auroc,low,high")
    )


def pretrain_recipe(backbone: dict[str, Any], size: tuple[int, int, int]) -> PretrainRecipe:
    return toy_recipes.pretrain_recipe(
        {
            "backbone": backbone,
            "method": {"name": "voco", "projector_dim": 8},
            "data": {**ZSCORE, "crop_size": list(size)},
        }
    )


def encoder_run(root: Path, recipe: PretrainRecipe, seen: Manifest, *, seed: int, teacher: Path | None = None) -> Path:
    """A finished pre-training with random weights, or with those of a fine-tuned network."""
    run = start_run(root, "pretrain", recipe, seen)
    with implicit_randomness(seed, Purpose.INITIALISATION):
        backbone = build_backbone(recipe.backbone)
    if teacher is not None:
        backbone.load_state_dict(load_finetuned(teacher).network.get_submodule("backbone").state_dict())
    weights = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    described = {"backbone": json.dumps(recipe.backbone.model_dump())}
    safetensors.torch.save_file(weights, run.encoder_path, described)
    return root


def first_of(cache: Cache) -> Manifest:
    """That a pre-training has seen the first images of a cache."""
    return Manifest({"train": cache.entries()[:4]}, {})


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_probe_finds_what_an_encoder_has_learnt(cache: Cache, run: Path, tmp_path: Path, kind: Any) -> None:
    encoder = encoder_run(tmp_path / "ssl", pretrain_recipe(FLAT, (24, 24, 1)), first_of(cache), seed=0, teacher=run)
    notes = Notes()

    document = probe_run(encoder, cache, kind=kind, labels="toy", finding=None, device="cpu", talk=notes)

    assert list(document["classes"]) == ["any", "Ball", "Haze"]
    assert document["mean_auroc"]["pretrained"] > 0.75  # 0.5 by chance
    assert (document["num_fitted_patients"], document["num_patients"]) == (32, 8)
    ball = document["classes"]["Ball"]
    gained = ball["pretrained"]["auroc"]["mean"] - ball["random"]["auroc"]["mean"]
    assert ball["auroc_difference"]["mean"] == pytest.approx(gained)


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_an_encoder_that_never_trained_gains_nothing(cache: Cache, tmp_path: Path, kind: Any) -> None:
    encoder = encoder_run(tmp_path / "ssl", pretrain_recipe(FLAT, (24, 24, 1)), first_of(cache), seed=0)

    document = probe_run(encoder, cache, kind=kind, labels="toy", finding="Ball", device="cpu", talk=Silence())

    (ball,) = document["classes"].values()
    assert ball["pretrained"] == ball["random"]
    assert ball["auroc_difference"]["mean"] == 0


def test_volumes_are_described_by_their_boxes(tmp_path: Path) -> None:
    volumes = finding_cache(tmp_path / "cache", num_patients=30, shape=(16, 16, 8), modality="CT")
    encoder = encoder_run(tmp_path / "ssl", pretrain_recipe(SOLID, (8, 8, 8)), first_of(volumes), seed=1)

    document = probe_run(encoder, volumes, kind="linear", labels="toy", finding="any", device="cpu", talk=Silence())

    assert list(document["classes"]) == ["any"]
    with pytest.raises(UsageError, match="E_USAGE: the level of a slice"):
        probe_run(encoder, volumes, kind="linear", labels="level", finding=None, device="cpu", talk=Silence())


def test_modality_and_level_need_no_labels(tmp_path: Path) -> None:
    mixed = finding_cache(tmp_path / "cache", num_patients=20, shape=(16, 16, 12), modality="CT", label_set=None)
    finding_cache(tmp_path / "cache", num_patients=20, shape=(16, 16, 1), modality="DX", label_set=None)
    encoder = encoder_run(tmp_path / "ssl", pretrain_recipe(FLAT, (16, 16, 1)), first_of(mixed), seed=1)
    notes = Notes()

    modality = probe_run(encoder, mixed, kind="knn", labels="modality", finding=None, device="cpu", talk=notes)
    level = probe_run(encoder, mixed, kind="knn", labels="level", finding=None, device="cpu", talk=notes)

    assert list(modality["classes"]) == ["CT", "DX"]
    assert modality["num_patients"] == 8
    assert list(level["classes"]) == ["lower third", "middle third", "upper third"]
    assert level["num_tested"] == 9 * 2 * level["num_patients"]
    assert level["classes"]["middle third"]["num_positive"] == level["num_tested"] / 3


def test_probes_are_commands(cache: Cache, run: Path, tmp_path: Path) -> None:
    encoder = encoder_run(tmp_path / "ssl", pretrain_recipe(FLAT, (24, 24, 1)), first_of(cache), seed=0, teacher=run)
    ask = ("evaluate", encoder, "--cache", cache.root, "--device", "cpu", "--probe", "knn", "--labels")

    document = medssl(*ask, "toy", "--json", "--finding", "Ball")
    shown = medssl(*ask, "toy", "--quiet")

    assert json.loads(document.stdout) == json.loads((encoder / "probe-knn-toy-Ball" / "scores.json").read_text())
    assert "of the untrained network" in shown.stdout
    refusals = {
        (*ask, "other"): "E_NO_LABELS",
        (*ask, "level"): "E_CACHE_EMPTY",
        (*ask, "modality"): "E_TOO_FEW_PATIENTS",
        (*ask, "modality", "--finding", "any"): "E_USAGE",
        (*ask, "toy", "--finding", "Bal"): "E_USAGE",
        (*ask, "toy", "--split", "val"): "E_USAGE",
        (*ask, "toy", "--min-dice", "0.5"): "E_USAGE",
        (*ask, "toy", "--min-auroc", "1.1"): "E_GATE_AUROC",
        (*ask[:-1],): "E_USAGE",
        ("evaluate", run, *ask[2:], "toy"): "E_NO_RUN",
    }
    found = {typed: re.search(r"error: (E_\w+)", medssl(*typed).stderr) for typed in refusals}
    assert {typed: match and match[1] for typed, match in found.items()} == refusals


def test_a_pretrained_encoder_of_2d_images_arrives_whole(cache: Cache, run: Path, tmp_path: Path) -> None:
    encoder = load_encoder(encoder_run(tmp_path / "ssl", pretrain_recipe(FLAT, (24, 24, 1)), first_of(cache), seed=7))
    notes = Notes()

    finetune(task_recipe(1), cache, tmp_path / "run", Choices(encoder=encoder), device="cpu", talk=notes)

    trained = load_finetuned(tmp_path / "run").network.get_submodule("backbone").state_dict()
    weights = {name for name in trained if name.endswith("weight")}
    assert all(torch.equal(trained[name], encoder.weights[name]) for name in weights)  # a warm-up begins at rate 0
    seen = {entry.patient_key for entry in cache.entries()[:4]} & held_out_patients(cache.entries(), 0)
    assert any(text.startswith("W_SPLIT_LEAK") for text in notes.texts) == bool(seen)


def test_a_pretraining_that_has_learnt_from_labels_of_test_patients_is_refused(cache: Cache, tmp_path: Path) -> None:
    root = encoder_run(tmp_path / "ssl", pretrain_recipe(FLAT, (24, 24, 1)), first_of(cache), seed=7)
    test = held_out_patients(cache.entries(), 0)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["splits"]["labelled"] = [{"item": "any", "patient": patient} for patient in test]
    manifest["sha256"] = sha256_json({key: value for key, value in manifest.items() if key != "sha256"})
    (root / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(GateError, match="E_SPLIT_LEAK"):
        finetune(
            task_recipe(1), cache, tmp_path / "run", Choices(encoder=load_encoder(root)), device="cpu", talk=Silence()
        )
