"""SIGTERM and SIGUSR1 at any point of a pre-training: exit code 75 within 20 seconds, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from medssl_cli.base.errors import Exit
from medssl_cli.engine.metrics_log import read_metrics
from tests import warm
from tests.environment import ENVIRONMENT, give_known_key
from tests.toy_cache import toy_cache
from tests.toy_recipes import CT, balls_yaml
from tests.warm import WarmProcess

pytestmark = pytest.mark.slow

SETTINGS = [
    "backbone={name: unet, channels: [4, 8, 16], strides: [2, 2, 2], num_res_units: 1}",
    "data.spacing_mm=[3.0, 3.0, 3.0]",
    "data.crop_size=[8, 8, 32]",
    "data.batch_size=2",
    "method.projector_dim=32",
    "log_every=1",
]
TASK = balls_yaml(
    task={"name": "segmentation", "classes": ["ball_1", "ball_2"]},
    data={**CT, "crop_size": [16, 16, 16], "batch_size": 1},
    optimizer={"learning_rate": 1e-2},
    steps=100000,
    validate_every=100000,
    checkpoint_every=100000,
    log_every=1,
)
SLOW = """
import sys, time
from medssl_cli.cli.app import main
{patch}
main()
"""
FORKED_READERS = """
from medssl_cli.data import loading
loading.START_METHOD = "fork"
"""
SLOW_READING = """
from medssl_cli.data import crops
plain = crops.CropDataset.__getitem__
def slow(self, index):
    if index[0] >= 3:
        print("waiting", flush=True, file=sys.stderr)
        time.sleep(600)
    return plain(self, index)
crops.CropDataset.__getitem__ = slow
"""
SLOW_PREPARATION = """
from medssl_cli.cache import preparing
def slow(*_):
    print("waiting", flush=True, file=sys.stderr)
    time.sleep(600)
preparing.on_grid = slow
"""
Process = subprocess.Popen[str] | WarmProcess
SLOW_IMPORT = """
import importlib.abc
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "torch":
            print("waiting", flush=True, file=sys.stderr)
            time.sleep(600)
sys.meta_path.insert(0, Slow())
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "cache"
    give_known_key(root)
    return toy_cache(root, num_patients=6).root


def start(cache: Path, run: Path, *settings: str, patch: str = "") -> Process:
    return warm.start(arguments(cache, run, *settings), code=SLOW.format(patch=patch))


def cold_start(cache: Path, run: Path, *, patch: str) -> Process:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW.format(patch=patch), *arguments(cache, run)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def arguments(cache: Path, run: Path, *settings: str) -> list[str]:
    parts = [part for setting in [*SETTINGS, *settings] for part in ("--set", setting)]
    where = ["--cache", str(cache), "--run", str(run), "--device", "cpu"]
    return ["pretrain", "--recipe", "voco-tiny", *parts, *where]


def stop(process: Process, number: signal.Signals, *, is_whole_group: bool = False) -> str:
    """Send a signal; the process must end as it should, in time. Returns what it said."""
    begun = time.monotonic()
    (os.killpg if is_whole_group else os.kill)(process.pid, number)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED, talk
    assert "E_INTERRUPTED" in talk
    assert time.monotonic() - begun < 20
    return talk


def wait_until(is_so: Callable[[], bool], process: Process) -> None:
    while not is_so():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def wait_for_word(process: Process, word: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return
    pytest.fail(f"it never said {word!r}")


@pytest.mark.parametrize(("number", "is_whole_group"), [(signal.SIGTERM, False), (signal.SIGUSR1, True)])
def test_a_signal_while_it_trains_saves_the_last_step(
    cache: Path, tmp_path: Path, number: signal.Signals, is_whole_group: bool
) -> None:
    run = tmp_path / "run"
    settings = ("steps=100000", "checkpoint_every=100000", f"data.num_workers={2 * is_whole_group}")
    process = start(cache, run, *settings, patch=FORKED_READERS)
    wait_until(lambda: len(read_metrics(run)) >= 3, process)

    stop(process, number, is_whole_group=is_whole_group)

    (checkpoint,) = (run / "checkpoints").iterdir()
    assert int(checkpoint.name[5:13]) == read_metrics(run)[-1]["step"] >= 3


def test_a_signal_ends_a_fine_tuning_in_the_same_way(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "balls.yaml").write_text(TASK)
    run = tmp_path / "run"
    where = ["--cache", str(cache), "--run", str(run), "--device", "cpu"]
    process = warm.start(["finetune", "--task", str(tmp_path / "balls.yaml"), *where])
    wait_until(lambda: len(read_metrics(run)) >= 3, process)

    talk = stop(process, signal.SIGTERM)

    (checkpoint,) = (run / "checkpoints").iterdir()
    step = read_metrics(run)[-1]["step"]
    assert int(checkpoint.name[5:13]) == step >= 3
    assert f"fine-tuning stopped after step {step} of 100000" in talk


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_signal_while_it_waits_for_data_saves_the_last_step(cache: Path, tmp_path: Path, num_workers: int) -> None:
    """The fourth step's crops never come. Readers get the signal too, as under SLURM."""
    settings = ("steps=20", "checkpoint_every=100", f"data.num_workers={num_workers}")
    run = tmp_path / "run"
    if num_workers:
        site = tmp_path / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text("import sys, time\n" + SLOW_READING)
        process = start(cache, run, *settings, patch=f"import os; os.environ['PYTHONPATH'] += ':{site}'")
    else:
        process = start(cache, run, *settings, patch=SLOW_READING)
    wait_until(lambda: len(read_metrics(run)) == 3, process)

    talk = stop(process, signal.SIGTERM, is_whole_group=True)

    assert "after step 3 of 20" in talk
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert checkpoint.name.startswith("step-00000003-")


def test_a_run_that_was_stopped_while_waiting_ends_like_an_undisturbed_one(cache: Path, tmp_path: Path) -> None:
    settings = ("steps=6", "checkpoint_every=100")
    process = start(cache, tmp_path / "stopped", *settings, patch=SLOW_READING)
    wait_for_word(process, "waiting")
    stop(process, signal.SIGTERM)
    for run in ("stopped", "whole"):
        _, talk = start(cache, tmp_path / run, *settings).communicate(timeout=300)
        assert (tmp_path / run / "summary.json").is_file(), talk

    stopped, whole = (
        safetensors.numpy.load_file(tmp_path / run / "encoder.safetensors") for run in ("stopped", "whole")
    )

    assert all(np.array_equal(stopped[name], value) for name, value in whole.items())
    losses = [[entry["loss"] for entry in read_metrics(tmp_path / run)] for run in ("stopped", "whole")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_a_signal_while_images_are_prepared_ends_at_once(cache: Path, tmp_path: Path) -> None:
    process = start(cache, tmp_path / "run", "data.spacing_mm=[3.3, 3.3, 3.3]", patch=SLOW_PREPARATION)
    wait_for_word(process, "waiting")

    stop(process, signal.SIGTERM)

    assert list((tmp_path / "run" / "checkpoints").glob("*")) == []


def test_a_signal_while_libraries_are_loaded_ends_at_once(cache: Path, tmp_path: Path) -> None:
    process = cold_start(cache, tmp_path / "run", patch=SLOW_IMPORT)
    wait_for_word(process, "waiting")

    stop(process, signal.SIGTERM)

    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_the_items_and_leaves_the_last_good_checkpoint(
    cache: Path, tmp_path: Path
) -> None:
    bad = """
from medssl_cli.methods import voco
plain = voco.Method.loss
def loss(self, views, progress):
    losses = plain(self, views, progress)
    return type(losses)(losses.total * (1.0 if progress < 0.5 else float("nan")), losses.parts)
voco.Method.loss = loss
"""
    settings = ("steps=10", "checkpoint_every=2", "max_skipped=0")
    process = start(cache, tmp_path / "run", *settings, patch=bad)
    _, talk = process.communicate(timeout=300)
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()}

    assert process.returncode == Exit.GATE, talk
    assert "E_DIVERGED: the loss of step 6 is not finite" in talk
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    known = {entry["item"] for entry in manifest["splits"]["train"]}
    named = talk.split("items ")[1].splitlines()[0].split(", ")
    assert len(named) == 2
    assert set(named) <= known
    assert sorted(path.name[:13] for path in before) == ["step-00000002", "step-00000004"]
    again = start(cache, tmp_path / "run", *settings)
    _, talk = again.communicate(timeout=300)
    assert again.returncode == 0, talk
    assert "resuming after step 4" in talk
