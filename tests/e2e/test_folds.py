"""Cross-validation: folds are runs of their own, resumable, several at once, and none of them sees a test patient."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import MedsslError, UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.deploy.bundle import load_model, patient_digest
from medssl_cli.deploy.run_scores import scores_from
from medssl_cli.engine.choices import Choices
from medssl_cli.engine.evaluate import Terms
from medssl_cli.engine.fold_runs import fold_words, folds_of
from medssl_cli.engine.folds import finetune_folds
from medssl_cli.engine.runs import open_run
from medssl_cli.engine.trainings import Places
from medssl_cli.recipe import TaskRecipe, load_recipe
from tests import warm
from tests.command import medssl
from tests.elsewhere import ElsewhereTasks
from tests.environment import give_known_key
from tests.finding_cache import finding_cache
from tests.toy_cache import toy_cache
from tests.toy_recipes import balls_yaml

TASK = balls_yaml(steps=2, validate_every=2, max_validation_patients=1)
FINDINGS = """
schema: 1
name: toy-findings
backbone: {name: unet, spatial_dims: 2, channels: [4, 8], strides: [1, 2], num_res_units: 1}
task: {name: classification, label_set: toy, classes: {ball: Ball, haze: Haze}}
data: {modality: DX, zscore: true, crop_size: [16, 16, 1], batch_size: 2}
optimizer: {learning_rate: 1.0e-3}
steps: 1
validate_every: 1
"""
NAMES = [f"case_{number:02d}" for number in range(10)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of ten patients, two of whom are tested on, and a recipe."""
    root = tmp_path_factory.mktemp("site")
    give_known_key(root / "cache")
    toy_cache(root / "cache", num_patients=10, size=16, series=NAMES)
    (root / "task.yaml").write_text(TASK)
    return root


def words(site: Path, parent: Path, *more: object) -> list[str]:
    where = ["--task", site / "task.yaml", "--cache", site / "cache", "--run", parent, "--device", "cpu"]
    return [str(word) for word in ("finetune", *where, *more)]


@pytest.fixture(scope="module")
def parent(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds, trained one after another."""
    folder = tmp_path_factory.mktemp("folds") / "balls"
    done = medssl(*words(site, folder, "--folds", "all", "--num-folds", "3", "-q", "--json"))
    assert done.exit_code == 0, done.stderr
    assert set(json.loads(done.stdout)["folds"]) == {"0", "1", "2"}
    return folder


def patients(path: Path, *parts: str) -> set[str]:
    splits = open_run(path).manifest["splits"]
    return {entry["patient"] for part in parts for entry in splits[part]}


def test_every_patient_is_held_out_once_and_test_patients_always(parent: Path) -> None:
    number, begun = folds_of(parent)
    folds = [begun[fold] for fold in range(number)]

    validated = [patients(path, "val") for path in folds]
    assert sum(map(len, validated)) == len(set.union(*validated)) == 8  # more than max_validation_patients in each
    assert all(patients(path, "train") == set.union(*validated) - patients(path, "val") for path in folds)
    assert len({frozenset(patients(path, "test")) for path in folds}) == 1
    assert not patients(folds[0], "test") & set.union(*validated)


def test_finished_folds_are_not_trained_again(site: Path, parent: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in parent.rglob("*") if path.is_file()}

    again = medssl(*words(site, parent, "--folds", "all", "--num-folds", "3"))

    assert again.exit_code == 0
    assert again.stderr.count("is finished already") == 3
    assert {path: path.stat().st_mtime_ns for path in parent.rglob("*") if path.is_file()} == before


def test_a_stopped_cross_validation_goes_on(site: Path, parent: Path, tmp_path: Path) -> None:
    typed = words(site, tmp_path / "stopped", "--folds", "all", "--num-folds", "3")
    process = warm.start(typed)
    for line in process.stderr:
        if line.startswith("training 2 of 3: fold 1"):
            process.send_signal(signal.SIGTERM)
            break
    assert "E_INTERRUPTED" in process.communicate()[1]
    assert process.returncode == 75
    assert not (tmp_path / "stopped" / "fold2").exists()

    resumed = medssl(*typed)

    assert resumed.exit_code == 0
    assert resumed.stderr.count("is finished already") >= 1
    for fold in range(3):
        one, other = (folder / f"fold{fold}" / "summary.json" for folder in (parent, tmp_path / "stopped"))
        assert one.read_bytes() == other.read_bytes()


def test_folds_at_once_are_those_of_one_after_another_and_a_refused_one_stops_no_other(
    site: Path, parent: Path, tmp_path: Path
) -> None:
    (tmp_path / "at-once" / "fold1" / "checkpoints").mkdir(parents=True)
    (tmp_path / "at-once" / "fold1" / "checkpoints" / "1.safetensors").touch()  # of a run whose recipe is gone

    done = medssl(*words(site, tmp_path / "at-once", "--folds", "0,1", "--num-folds", "3", "--jobs", "2"))

    assert done.exit_code == 5
    assert "error: E_RUN_CORRUPT: fold 1: " in done.stderr
    assert "fold 0 is done" in done.stderr
    one, other = (folder / "fold0" for folder in (parent, tmp_path / "at-once"))
    assert open_run(one).manifest == open_run(other).manifest
    assert (one / "summary.json").read_bytes() == (other / "summary.json").read_bytes()


def test_a_cluster_trains_what_this_machine_would(site: Path, parent: Path, tmp_path: Path) -> None:
    recipe = load_recipe(site / "task.yaml")
    assert isinstance(recipe, TaskRecipe)
    cache = Cache.open(site / "cache")

    done = finetune_folds(
        recipe,
        cache,
        tmp_path / "far",
        Choices(num_folds=3),
        [2],
        device="cpu",
        talk=Silence(),
        places=Places(cluster=ElsewhereTasks),
    )

    assert list(done) == [2]
    one, other = (folder / "fold2" / "summary.json" for folder in (parent, tmp_path / "far"))
    assert one.read_bytes() == other.read_bytes()


def test_a_longer_cross_validation_goes_on_elsewhere_too(site: Path, parent: Path, tmp_path: Path) -> None:
    """A finished fold that is to become longer is not done, so it is trained where the others are."""
    shutil.copytree(parent, tmp_path / "longer")
    typed = ["--folds", "0,1", "--num-folds", "3", "--cluster", "tcp://nowhere:1", "--set", "steps=3"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("medssl_cli.work.cluster.cluster_workers", lambda _: ElsewhereTasks())
        done = medssl(*words(site, tmp_path / "longer", *typed))

    assert done.exit_code == 0, done.stderr
    assert "2 of 2 trainings are to be done" in done.stderr
    assert json.loads((tmp_path / "longer" / "fold1" / "summary.json").read_text())["steps"] == 3


def test_folds_that_are_not_there_yet_are_counted(parent: Path, tmp_path: Path) -> None:
    shutil.copytree(parent, tmp_path / "some")
    shutil.rmtree(tmp_path / "some" / "fold1")

    assert (fold_words(parent), fold_words(tmp_path / "some")) == ("3 folds", "2 of 3 folds")


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        (["--folds", "three"], "E_USAGE", "neither all nor numbers"),
        (["--folds", "5"], "E_USAGE", "neither all nor numbers"),
        (["--folds", "all", "--fold", "1"], "E_USAGE", "say the same thing"),
        (["--jobs", "2"], "E_USAGE", "add --folds all"),
        (["--folds", "all", "--devices", "2"], "E_USAGE", "--jobs trains a fold on each device"),
        (["--folds", "all", "--jobs", "2", "--cluster", "tcp://nowhere:1"], "E_USAGE", "give one of them"),
        (["--folds", "all", "--split-file", "one.json"], "E_USAGE", "no folds"),
        (["--folds", "all", "--split-file", "nested.json"], "E_SPLIT_PATIENT", "1 test patients of one fold"),
    ],
)
def test_folds_that_make_no_sense_are_refused(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], code: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.json").write_text(json.dumps({"train": NAMES[:3], "val": NAMES[3:5]}))
    nested = [
        {"train": NAMES[:3], "val": [NAMES[3]], "test": [NAMES[4]]},
        {"train": NAMES[1:3], "val": [NAMES[5]], "test": [NAMES[0]]},
    ]
    Path("nested.json").write_text(json.dumps(nested))

    done = medssl(*words(site, tmp_path / "run", *typed))

    assert done.exit_code == 2, done.stderr
    assert code in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_another_number_of_folds_needs_another_folder(site: Path, parent: Path) -> None:
    other = medssl(*words(site, parent, "--folds", "all", "--num-folds", "4"))
    single = medssl(*words(site, parent / "fold0", "--folds", "all", "--num-folds", "3"))

    assert (other.exit_code, single.exit_code) == (2, 2)
    assert "is of 3 folds, 4 are asked for" in other.stderr
    assert "a run of its own" in single.stderr


def test_a_folder_without_folds_is_unfinished(tmp_path: Path) -> None:
    (tmp_path / "folds.json").write_text('{"format_version": 1, "kind": "folds", "num_folds": 3}')

    with pytest.raises(UsageError, match="E_RUN_UNFINISHED"):
        folds_of(tmp_path)
    (tmp_path / "folds.json").write_text('{"num_folds": -1}')
    with pytest.raises(MedsslError, match="E_RUN_CORRUPT"):
        folds_of(tmp_path)


def test_every_patient_is_scored_by_the_fold_that_has_not_learnt_from_them(site: Path, parent: Path) -> None:
    where = ["--cache", site / "cache", "--device", "cpu", "--json", "-q", "--pictures", "0"]
    pooled = one_document(medssl("evaluate", parent, *where))
    folds = [one_document(medssl("evaluate", parent / f"fold{fold}", "--split", "val", *where)) for fold in range(3)]

    assert pooled["split"] == "val, pooled over 3 folds"
    assert pooled["num_patients"] == 8
    assert pooled["cases"] == [case for fold in folds for case in fold["cases"]]
    dice = [case["scores"]["ball_1"]["dice"] for case in pooled["cases"]]
    assert pooled["structures"]["ball_1"]["dice"]["mean"] == pytest.approx(sum(dice) / 8, abs=1e-12)
    shares = [fold["structures"]["ball_1"]["constant_predictor_dice"] * fold["num_items"] for fold in folds]
    assert pooled["structures"]["ball_1"]["constant_predictor_dice"] == pytest.approx(sum(shares) / 8, abs=1e-12)
    assert "pooled over 3 folds" in (parent / "evaluation-val" / "page.html").read_text()


def test_test_patients_are_scored_by_the_mean_of_all_folds(site: Path, parent: Path) -> None:
    scored = one_document(medssl("evaluate", parent, "--split", "test", "--cache", site / "cache", "--json", "-q"))
    refused = medssl("evaluate", parent, "--split", "train", "--cache", site / "cache", "-q")

    assert {case["patient"] for case in scored["cases"]} == patients(parent / "fold0", "test")
    assert scored["split"] == "test, mean of 3 folds"
    assert refused.exit_code == 2
    assert "E_USAGE" in refused.stderr


def test_models_are_compared_on_the_same_patients_and_what_differs_is_said(
    site: Path, parent: Path, tmp_path: Path
) -> None:
    where = ["--cache", site / "cache", "--device", "cpu", "--split", "test", "--pictures", "0"]
    pair = [parent / "fold0", parent / "fold1"]

    done = medssl("evaluate", *pair, *where, "--out", tmp_path / "pair", "--json")
    limited = medssl("evaluate", *pair, *where, "--min-dice", "0.5")

    document = one_document(done)
    assert document["num_patients"] == 2
    assert [model["name"] for model in document["models"]] == ["fold0", "fold1"]
    assert "training patients" in document["unequal"]
    assert not {"backbone", "training labels", "rules of scoring"} & set(document["unequal"])
    facts = document["models"][0]["facts"]
    assert facts["training labels"] == "seg"
    assert facts["rules of scoring"].startswith("{nsd_tolerance_mm: ")
    assert "W_UNEQUAL: training patients: " in done.stderr
    first, second = (json.loads((tmp_path / "pair" / name / "scores.json").read_bytes()) for name in ("fold0", "fold1"))
    gained = [
        second["cases"][place]["scores"]["ball_1"]["dice"] - first["cases"][place]["scores"]["ball_1"]["dice"]
        for place in range(2)
    ]
    found = next(each for each in document["differences"] if each["structure"] == "ball_1")
    assert found["mean"] == pytest.approx(sum(gained) / 2, abs=1e-12)
    assert {path.name for path in (tmp_path / "pair").iterdir()} >= {"comparison.json", "comparison.csv", "page.html"}
    assert limited.exit_code == 2
    assert "E_USAGE" in limited.stderr


def test_mirroring_is_chosen_where_a_run_is_scored(site: Path, parent: Path) -> None:
    where = ["evaluate", parent / "fold0", "--cache", site / "cache", "--device", "cpu", "--pictures", "0", "--json"]
    plain, none, mirrored = (
        one_document(medssl(*where, *more)) for more in ([], ["--mirror", "none"], ["--mirror", "0"])
    )

    assert plain == none
    assert mirrored != plain
    assert (parent / "fold0" / "evaluation-test-mirror0" / "scores.json").is_file()
    never = medssl(*where, "--mirror", "0,3")
    assert never.exit_code == 2
    assert "E_USAGE: --mirror '0,3' is no list of axes" in never.stderr


def test_axes_that_were_never_flipped_in_training_are_not_mirrored(site: Path) -> None:
    recipe = load_recipe(site / "task.yaml", ["augmentation.flip_axes=[0]"])
    assert isinstance(recipe, TaskRecipe)

    assert Terms(mirror_axes=(0,)).applied(recipe).inference.mirror_axes == (0,)
    with pytest.raises(UsageError, match=r"(?s)E_RECIPE.*never flipped in training"):
        Terms(mirror_axes=(0, 1)).applied(recipe)


def test_folds_are_exported_as_one_proven_model_that_answers_as_their_mean(
    site: Path, parent: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    where = ["--cache", site / "cache", "--json", "-q"]

    own = one_document(medssl("evaluate", parent, "--split", "test", "--device", "cpu", "-o", tmp_path / "own", *where))
    exported = one_document(medssl("export", parent, model, "--cases", "1", *where))
    found = one_document(medssl("evaluate", model, "--device", "cpu", *where))

    assert exported["parity"]["max_abs_difference"] < 1e-4
    bundle = load_model(model)[1]
    assert bundle.trained_on == tuple(sorted(map(patient_digest, patients(parent / "fold0", "train", "val"))))
    assert bundle.scores == scores_from(own)  # wherever its results went
    for one, other in zip(own["cases"], found["cases"], strict=True):
        assert one["item"] == other["item"]
        assert one["scores"]["ball_1"]["dice"] == pytest.approx(other["scores"]["ball_1"]["dice"], abs=1e-3)


def test_probabilities_of_findings_are_averaged_and_operating_points_too(tmp_path: Path) -> None:
    cache = finding_cache(tmp_path / "cache", num_patients=10)
    (tmp_path / "task.yaml").write_text(FINDINGS)
    where = ["--cache", cache.root, "-q"]
    typed = ["--task", tmp_path / "task.yaml", "--run", tmp_path / "folds", "--folds", "all", "--num-folds", "2"]

    trained = medssl("finetune", *typed, "--device", "cpu", *where)
    pooled = one_document(medssl("evaluate", tmp_path / "folds", "--device", "cpu", "--json", *where))
    exported = medssl("export", tmp_path / "folds", tmp_path / "model.onnx", "--cases", "1", *where)

    assert trained.exit_code == 0, trained.stderr
    assert pooled["num_patients"] == 8
    assert exported.exit_code == 0, exported.stderr
    head = load_model(tmp_path / "model.onnx")[1].head
    assert head.operating_points["ball"].num_patients == 8  # each of them asked the one fold without them


def one_document(done: Any) -> dict[str, Any]:
    assert done.exit_code == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document
