"""Training spread over processes: the same result as in one, whoever starts them, and they fail together.

The method is that of tests/sharded/methods: noise drawn for the whole batch, normalisation and a contrast over all of
it, a teacher, gradients accumulated over two batches. Everything here runs on the CPU with gloo.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from medssl_cli.base.errors import Exit
from medssl_cli.engine.metrics_log import read_health, read_metrics
from tests import warm
from tests.environment import ENVIRONMENT, ROOT, give_known_key
from tests.toy_cache import toy_cache
from tests.warm import WarmProcess

pytestmark = pytest.mark.slow

STEPS = 6
LIMIT_S = 300
SETTINGS = {
    "backbone": "{name: unet, channels: [4, 8, 16], strides: [2, 2, 2], num_res_units: 1}",
    "method": "{name: sharded}",
    "data.spacing_mm": "[2.0, 2.0, 2.0]",
    "data.crop_size": "[16, 16, 16]",
    "data.batch_size": "4",
    "accumulate": "2",
    "ema_decay": "0.9",
    "log_every": "1",
    "checkpoint_every": "2",
    "steps": str(STEPS),
}
Process = subprocess.Popen[str] | WarmProcess


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "cache"
    give_known_key(root)
    return toy_cache(root, num_patients=8).root


def command(cache: Path, run: Path, *options: str, **settings: object) -> list[str]:
    changed = {**SETTINGS, **{key.replace("__", "."): str(value) for key, value in settings.items()}}
    parts = [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
    where = ["--cache", str(cache), "--run", str(run), "--device", "cpu"]
    return ["pretrain", "--recipe", "voco-tiny", *parts, *where, *options]


def start(arguments: list[str], environment: Mapping[str, str] = ENVIRONMENT) -> Process:
    return warm.start(arguments, environment, module="tests.sharded")


def finish(process: Process) -> tuple[int, str, str]:
    """Exit status, results and talk; nothing may be left of the process group."""
    out, talk = process.communicate(timeout=LIMIT_S)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return process.returncode, out, talk
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail(f"processes are left: {talk}")


def complete(arguments: list[str]) -> str:
    return whole_output(start(arguments))


def whole_output(process: Process) -> str:
    status, out, talk = finish(process)
    assert status == 0, talk
    return out


def weights(run: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run / "encoder.safetensors")


def assert_same(run: Path, whole: Path) -> None:
    """Averaged weights and losses of two runs agree within 1e-5."""
    expected = weights(whole)
    for name, value in weights(run).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-5, err_msg=name)
    losses = [[entry["loss"] for entry in read_metrics(root)] for root in (run, whole)]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-5)
    looks = [[entry["health/rank"] for entry in read_health(root)] for root in (run, whole)]
    np.testing.assert_allclose(looks[0], looks[1], rtol=1e-3)


def forget_all_but(run: Path, step: int) -> None:
    """Take a finished run back to one of its checkpoints."""
    (run / "summary.json").unlink()
    (run / "encoder.safetensors").unlink()
    kept = [path for path in (run / "checkpoints").iterdir() if path.name.startswith(f"step-{step:08d}-")]
    assert len(kept) == 1
    for path in (run / "checkpoints").iterdir():
        if path not in kept:
            path.unlink()


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process."""
    run = tmp_path_factory.mktemp("whole") / "run"
    complete(command(cache, run))
    return run


@pytest.fixture(scope="module")
def by_torchrun(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by two processes of torchrun, without a word about their number."""
    run = tmp_path_factory.mktemp("torchrun") / "run"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "--", "tests.sharded"]
    process = subprocess.Popen(
        [sys.executable, *launcher, *command(cache, run, "--json")],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    out = whole_output(process)
    assert json.loads(out)["steps"] == STEPS  # one document: one process speaks
    return run


def test_two_processes_of_torchrun_train_what_one_trains(by_torchrun: Path, whole: Path) -> None:
    assert_same(by_torchrun, whole)


def test_one_process_goes_on_where_two_stopped(cache: Path, by_torchrun: Path, whole: Path) -> None:
    forget_all_but(by_torchrun, 4)

    complete(command(cache, by_torchrun))

    assert_same(by_torchrun, whole)


def test_two_processes_that_the_command_starts_go_on_where_one_stopped(
    cache: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    forget_all_but(tmp_path / "run", 2)

    complete(command(cache, tmp_path / "run", "--devices", "2"))

    assert_same(tmp_path / "run", whole)


def test_two_tasks_of_slurm_with_a_part_of_the_network_each_train_what_one_trains(
    cache: Path, whole: Path, tmp_path: Path
) -> None:
    slurm = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": str(10_000 + os.getpid() % 5000),  # gives the port
        "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "127.0.0.1",
    }
    arguments = command(cache, tmp_path / "run", "--strategy", "fsdp")
    tasks = [
        start(arguments, {**ENVIRONMENT, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
        for rank in (0, 1)
    ]

    (status, _, talk), (other_status, other_out, other_talk) = [finish(task) for task in tasks]

    assert (status, other_status) == (0, 0), f"{talk}\n{other_talk}"
    assert (other_out, other_talk) == ("", "")
    assert_same(tmp_path / "run", whole)


def test_a_loss_that_diverges_in_one_process_ends_both_and_names_the_items_of_both(cache: Path, tmp_path: Path) -> None:
    arguments = command(
        cache, tmp_path / "run", "--devices", "2", method="{name: sharded, not_finite_from: 0.5}", max_skipped=0
    )

    status, _, talk = finish(start(arguments))

    assert status == Exit.GATE, talk
    assert talk.count("E_DIVERGED") == 1
    named = talk.split("items ")[1].splitlines()[0]
    assert len(set(named.split(", "))) > 2
    assert [entry["step"] for entry in read_metrics(tmp_path / "run")] == [1, 2, 3]
    assert sorted(path.name[:13] for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000002"]


def test_steps_that_are_not_finite_in_one_process_are_left_out_by_both(cache: Path, tmp_path: Path) -> None:
    method = "{name: sharded, not_finite_from: 0.5}"
    arguments = command(cache, tmp_path / "run", "--devices", "2", method=method, max_skipped=3)

    status, _, talk = finish(start(arguments))

    assert status == 0, talk
    assert talk.count("W_STEP_SKIPPED") == 3
    assert [entry["loss"] is None for entry in read_metrics(tmp_path / "run")] == [False] * 3 + [True] * 3
    facts = json.loads((tmp_path / "run" / "skipped" / "step-00000004.json").read_text())
    assert len(set(facts["items"])) > 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_alone_does_not_leave_the_others_waiting(cache: Path, tmp_path: Path, rank: int) -> None:
    begun = time.monotonic()

    status, _, talk = finish(
        start(command(cache, tmp_path / "run", "--devices", "2"), {**ENVIRONMENT, "MEDSSL_TEST_FAIL_RANK": str(rank)})
    )

    assert status not in (0, Exit.INTERRUPTED), talk
    assert "E_MEMORY" in talk
    assert rank == 0 or status == -signal.SIGKILL or "E_PROCESS_LOST" in talk
    assert time.monotonic() - begun < 120


def test_a_signal_to_the_main_process_stops_both_after_a_checkpoint(cache: Path, tmp_path: Path) -> None:
    process = start(command(cache, tmp_path / "run", "--devices", "2", steps=100_000, checkpoint_every=1000))
    while len(read_metrics(tmp_path / "run")) < 3 and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()

    status, _, talk = finish(process)

    assert status == Exit.INTERRUPTED, talk
    assert talk.count("E_INTERRUPTED") == 1
    assert time.monotonic() - begun < 20
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(checkpoint.name[5:13]) == read_metrics(tmp_path / "run")[-1]["step"]
