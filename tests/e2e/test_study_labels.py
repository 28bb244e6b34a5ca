"""`medssl study labels` on toy images: it stops on request, goes on, skips what is done, and refuses leaks."""

import json
import signal
from pathlib import Path

import pytest

from medssl_cli.base.errors import Exit
from medssl_cli.engine.runs import open_run
from tests import warm
from tests.command import medssl
from tests.elsewhere import ElsewhereTasks
from tests.environment import give_known_key
from tests.toy_cache import toy_cache
from tests.toy_recipes import CT, TINY_UNET, balls_yaml

BACKBONE = "{name: unet, channels: [4, 8], strides: [2, 2], num_res_units: 1}"
PRETRAIN = f"""
schema: 1
backbone: {BACKBONE}
method: {{name: voco, base_grid: [2, 2, 1], num_random_crops: 4, projector_dim: 16, dropout_prob: 0.0}}
data: {{window_hu: [-200, 300], crop_size: [8, 8, 8], batch_size: 2}}
optimizer: {{learning_rate: 1.0e-3}}
steps: 2
"""
TASK = balls_yaml(
    backbone={**TINY_UNET, "channels": [8, 16]},
    data={**CT, "crop_size": [32, 32, 32], "batch_size": 2},
    augmentation={"flip_prob": 0.0},
    optimizer={"learning_rate": 1e-2},
    steps=3,
    validate_every=1,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache and one pre-training for each of two seeds."""
    root = tmp_path_factory.mktemp("site")
    give_known_key(root / "cache")
    toy_cache(root / "cache", num_patients=14)
    (root / "pretrain.yaml").write_text(PRETRAIN)
    (root / "task.yaml").write_text(TASK)
    for seed in (0, 1):
        words = ["--recipe", str(root / "pretrain.yaml"), "--set", f"seed={seed}", "--run", str(root / f"voco-{seed}")]
        assert medssl("pretrain", "--cache", root / "cache", *words, "-q").exit_code == 0
    return root


def words(site: Path, out: Path) -> list[str]:
    return [
        "study", "labels", "--task", str(site / "task.yaml"), "--cache", str(site / "cache"),
        "--init", str(site / "voco-{seed}"), "--patients", "2,4", "--seeds", "2", "--out", str(out), "--device", "cpu",
    ]  # fmt: skip


def test_it_stops_on_request_and_goes_on_to_the_same_results(site: Path, tmp_path: Path) -> None:
    process = warm.start(words(site, tmp_path / "stopped"))
    for line in process.stderr:
        if line.startswith("training 3 of 8"):
            process.send_signal(signal.SIGTERM)
            break
    _, rest = process.communicate()
    assert process.returncode == 75
    assert "E_INTERRUPTED" in rest
    assert not (tmp_path / "stopped" / "results.json").exists()

    resumed = medssl(*words(site, tmp_path / "stopped"))
    straight = medssl(*words(site, tmp_path / "straight"))

    assert (resumed.exit_code, straight.exit_code) == (0, 0)
    assert "is finished already" in resumed.stderr
    assert (tmp_path / "stopped" / "results.csv").read_bytes() == (tmp_path / "straight" / "results.csv").read_bytes()
    assert (tmp_path / "straight" / "plot.svg").is_file()
    assert (tmp_path / "straight" / "page.html").is_file()


def test_a_cluster_gives_the_same_results_and_goes_on_where_it_stopped(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("medssl_cli.work.cluster.cluster_workers", lambda word: asked.append(word) or ElsewhereTasks())
    monkeypatch.chdir(tmp_path)  # paths that are not absolute would mean nothing on another machine
    typed = [*words(site, Path("far")), "--seeds", "1", "--cluster", "tcp://there:1"]

    first = medssl(*typed, "--patients", "2")
    both = medssl(*typed)
    near = medssl(*words(site, Path("near")), "--seeds", "1")
    torn = medssl(*typed, "--jobs", "2")

    assert (first.exit_code, both.exit_code, near.exit_code, torn.exit_code) == (0, 0, 0, 2), both.stderr
    assert asked == ["tcp://there:1"] * 2
    assert "2 of 4 trainings are to be done" in both.stderr
    assert (tmp_path / "far" / "results.csv").read_bytes() == (tmp_path / "near" / "results.csv").read_bytes()


def test_arms_share_everything_but_the_initial_weights(site: Path, tmp_path: Path) -> None:
    assert medssl(*words(site, tmp_path), "-q").exit_code == 0

    for number in (2, 4):
        scratch, voco = (open_run(tmp_path / f"{arm}-{number}-seed1") for arm in ("scratch", "voco"))
        assert scratch.recipe == voco.recipe
        assert scratch.recipe.backbone.options["channels"] == [4, 8]  # the encoder's, not the recipe's
        assert scratch.manifest["splits"] == voco.manifest["splits"]
        assert len(scratch.manifest["splits"]["train"]) == number
        best = json.loads((tmp_path / f"scratch-{number}-seed1" / "summary.json").read_bytes())
        assert best["best_step"] == best["steps"] == 3
    few, many = (open_run(tmp_path / f"scratch-{number}-seed1").manifest["splits"]["train"] for number in (2, 4))
    other = open_run(tmp_path / "scratch-4-seed0").manifest["splits"]["train"]
    assert all(item in many for item in few)
    assert other != many


def test_an_encoder_that_has_seen_test_patients_is_refused(site: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / f"voco-{seed}").symlink_to(site / f"voco-{seed}")
    command = words(site, tmp_path / "out")
    command[command.index("--init") + 1] = str(tmp_path / "voco-{seed}")

    leaking = medssl(*command, "--set", "split_seed=1")

    assert leaking.exit_code == 5
    assert "E_SPLIT_LEAK" in leaking.stderr


def test_more_patients_than_there_are_are_refused_before_the_first_training(site: Path, tmp_path: Path) -> None:
    found = medssl(*words(site, tmp_path / "out"), "--patients", "2,400")

    assert found.exit_code == Exit.NOTHING
    assert "E_TOO_FEW_PATIENTS" in found.stderr
    assert "400 were asked for" in found.stderr
    assert not (tmp_path / "out").exists()


def test_encoders_of_different_networks_are_not_compared(site: Path, tmp_path: Path) -> None:
    other = ["--recipe", str(site / "pretrain.yaml"), "--set", "backbone.channels=[4, 4]", "--run", str(tmp_path / "o")]
    assert medssl("pretrain", "--cache", site / "cache", *other, "-q").exit_code == 0

    mixed = medssl(*words(site, tmp_path / "out"), "--init", tmp_path / "o")

    assert mixed.exit_code == 2
    assert "E_WEIGHTS_MISMATCH" in mixed.stderr


def test_arms_of_their_own_recipe_several_lengths_and_two_trainings_at_once(site: Path, tmp_path: Path) -> None:
    """One of the recipe's values is planned: once for all trainings."""
    task = (site / "task.yaml").read_text().replace("learning_rate: 0.01", "learning_rate: auto")
    (tmp_path / "task.yaml").write_text(task)
    (tmp_path / "split.json").write_text(json.dumps({"test": ["0", "1", "2"]}))
    command = [
        "study", "labels", "--task", str(tmp_path / "task.yaml"), "--cache", str(site / "cache"),
        "--arm", "bright: augmentation.intensity_shift=0.5", "--patients", "1", "--draws", "1", "--seeds", "1",
        "--steps", "1,2", "--jobs", "2", "--out", str(tmp_path / "out"), "--device", "cpu",
        "--split-file", str(tmp_path / "split.json"),
    ]  # fmt: skip

    done = medssl(*command)
    again = medssl(*command, "--minus", "bright", "--json", "-q")

    assert (done.exit_code, again.exit_code) == (0, 0), done.stderr + again.stderr
    assert done.stderr.count(" is done") == 4
    runs = [open_run(tmp_path / "out" / f"{arm}-1-draw0-steps2") for arm in ("scratch", "bright")]
    assert [run.recipe.augmentation.intensity_shift for run in runs] == [0.1, 0.5]
    assert runs[0].recipe.optimizer == runs[1].recipe.optimizer
    assert len({entry["patient"] for entry in runs[0].manifest["splits"]["test"]}) == 3
    document = json.loads(again.stdout)
    assert {(row["arm"], row["minus"]) for row in document["differences"]} == {("scratch", "bright")}
    assert {row["steps"] for row in document["levels"]} == {1, 2}
    assert all(row["cost_s"] > 0 for row in document["levels"])


def test_a_pretraining_with_the_same_split_file_has_seen_no_test_patient(site: Path, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"test": ["0", "1"]}))
    split = ["--split-file", str(tmp_path / "split.json")]
    run = ["pretrain", "--recipe", str(site / "pretrain.yaml"), "--cache", str(site / "cache"), "--set", "steps=1"]
    assert medssl(*run, *split, "--run", tmp_path / "voco", "-q").exit_code == 0
    command = [*words(site, tmp_path / "out"), "--seeds", "1", "--patients", "1", "--set", "steps=1", "-q", *split]

    leaking = medssl(*command)
    command[command.index("--init") + 1] = str(tmp_path / "voco")
    sound = medssl(*command)

    assert (leaking.exit_code, sound.exit_code) == (5, 0), sound.stderr
    assert "pretrain --split-file" in leaking.stderr


def test_a_number_and_a_share_of_patients_at_once_are_refused(site: Path) -> None:
    task = ["finetune", "--task", str(site / "task.yaml"), "--cache", str(site / "cache")]

    both = medssl(*task, "--patients", "2", "--fraction", "0.5")

    assert both.exit_code == 2
    assert "E_USAGE" in both.stderr
