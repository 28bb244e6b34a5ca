"""kill -9 at any moment costs nothing: the same command again ends where an undisturbed one would have ended.

The moments are random with a fixed seed, over the whole life of an undisturbed run, half of them after its first
file appeared. `MEDSSL_KILLS` sets how many there are of each kind (2 by default, 500 for a release), and
`MEDSSL_KILLS_SEED` which, so that a long run can be made in parts.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from medssl_cli.cache.store import Cache
from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.formats.nifti import write_nifti
from tests import warm
from tests.dicom_factory import ct_series
from tests.environment import give_known_key
from tests.toy_cache import toy_cache
from tests.warm import WarmProcess

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("MEDSSL_KILLS", "2"))
SEED = int(os.environ.get("MEDSSL_KILLS_SEED", "0"))
PRETRAIN = [
    "backbone={name: unet, channels: [4, 8, 16], strides: [2, 2, 2], num_res_units: 1}",
    "data.spacing_mm=[3.0, 3.0, 3.0]",
    "data.crop_size=[8, 8, 32]",
    "data.batch_size=2",
    "method.projector_dim=32",
    "checkpoint_every=2",
    "log_every=1",
    "steps=10",
]
FORKED_READERS = """
from medssl_cli.cli.app import main
from medssl_cli.data import loading

loading.START_METHOD = "fork"
main()
"""
OMNI = ["method.omni={classes: {1: ball_1, 2: ball_2}, batch_size: 2, pseudo_from: 0.4}"]


@dataclass(frozen=True)
class Timing:
    """How long an undisturbed run took, in all and until its first file appeared."""

    total_s: float
    first_file_s: float


def start(*arguments: object) -> WarmProcess:
    """`medssl ARGUMENTS` in a process group of its own; those that read for a training are forks of it."""
    if arguments[0] == "ingest":
        return warm.start(arguments, kind="reading")
    return warm.start(arguments, code=FORKED_READERS)


def complete(*arguments: object) -> None:
    """Run a command to its end, which must be good."""
    process = start(*arguments)
    _, talk = process.communicate()
    assert process.returncode == 0, talk


def timed(has_begun: Callable[[], bool], *arguments: object) -> Timing:
    """Run a command to its end. What it is a fork of has begun before."""
    complete(arguments[0], "--help")
    begin = time.monotonic()
    process = start(*arguments)
    while not has_begun() and process.poll() is None:
        time.sleep(0.002)
    first = time.monotonic() - begin
    _, talk = process.communicate()
    assert process.returncode == 0, talk
    return Timing(time.monotonic() - begin, first)


def kill_at(delay_s: float, *arguments: object, is_whole_group: bool) -> bool:
    """Start a command and kill it after a while: the process alone, whose children must follow, or the whole group.

    Returns:
        Whether it was still running.
    """
    process = start(*arguments)
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        kill = os.killpg if is_whole_group else os.kill
        kill(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        stream.close()
    with contextlib.suppress(ProcessLookupError):
        while True:  # a dying child may still write; nobody starts the next command that fast
            os.killpg(process.pid, 0)
            time.sleep(0.005)
    return process.returncode == -signal.SIGKILL


def moments(timing: Timing, seed: int) -> list[float]:
    """Delays until the kill, alternately in the run's whole life and after its first file."""
    rng = np.random.default_rng([seed, SEED])
    lows = [timing.first_file_s if index % 2 == 0 else 0.0 for index in range(KILLS)]
    return [float(rng.uniform(low, timing.total_s)) for low in lows]


def content(folder: Path) -> dict[str, str]:
    """Digest of every file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights(run: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every bit of a pre-trained encoder."""
    tensors = safetensors.numpy.load_file(run / "encoder.safetensors")
    assert len(tensors) > 5
    return {name: (str(value.dtype), value.shape, value.tobytes()) for name, value in tensors.items()}


def temporaries(folder: Path) -> list[str]:
    """What an interrupted writer would leave."""
    return [str(path) for path in folder.rglob("*") if path.name.startswith((".tmp-", "writing-"))]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten labelled volumes and two CT series."""
    root = tmp_path_factory.mktemp("scans")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for number in range(10):
        voxels = np.random.default_rng(number).integers(0, 1000, (24, 22, 20)).astype(np.int16)
        affine = np.diag([-1.0, 1.0, 2.0, 1.0])
        write_nifti(root / "images" / f"p_{number}.nii.gz", voxels, affine)
        write_nifti(root / "labels" / f"p_{number}.nii.gz", (voxels > 500).astype(np.uint8), affine)
    ct_series(root / "ct0", positions_mm=[0, 5, 10, 15], series_uid="1.2.3.0")
    ct_series(root / "ct1", positions_mm=[2, 7, 12, 17, 22], series_uid="1.2.3.1")
    return root


def new_cache(root: Path) -> Path:
    """A folder with a known key, so that two caches of the same scans are equal."""
    give_known_key(root)
    return root


def test_an_ingest_killed_at_any_moment_ends_with_the_same_items(scans: Path, tmp_path: Path) -> None:
    undisturbed = new_cache(tmp_path / "undisturbed")
    timing = timed((undisturbed / "cache.json").exists, "ingest", scans, "--cache", undisturbed)
    expected = content(undisturbed / "items")
    assert len(expected) == 10 * 4 + 2 * 2
    num_killed = 0
    for number, delay in enumerate(moments(timing, seed=1)):
        cache = new_cache(tmp_path / f"killed{number}")
        command = ("ingest", scans, "--cache", cache)
        num_killed += kill_at(delay, *command, is_whole_group=number % 4 == 1)
        survivors = {name: digest for name, digest in content(cache).items() if name.endswith(".b2nd")}

        complete(*command)

        what = f"kill {number} after {delay:.3f} s"
        assert content(cache / "items") == expected, what
        assert temporaries(cache) == [], what
        opened = Cache.open(cache)
        assert list(opened.verify()) == [None] * 12, what
        assert len(opened.records()) == 12, what
        assert len(opened.records(label_set="seg")) == 10, what
        published = {name: digest for name, digest in survivors.items() if ".tmp-" not in name and "image" in name}
        assert published.items() <= content(cache).items(), what
    assert num_killed, "every run was over before it was killed"


def test_what_an_ingest_leaves_that_dies_at_its_report_goes_with_the_next(scans: Path, tmp_path: Path) -> None:
    cache, dead = new_cache(tmp_path / "cache"), start("--version")
    dead.communicate()
    complete("ingest", scans, "--cache", cache)
    (cache / f"reports/.tmp-{dead.pid}-0123456789ab").write_bytes(b"{")

    complete("ingest", scans, "--cache", cache)

    assert temporaries(cache) == []


def test_an_ingest_killed_again_and_again_gets_there(scans: Path, tmp_path: Path) -> None:
    """Progress is kept: each life publishes at least what it was given the time for, and nothing is done twice."""
    undisturbed, cache = new_cache(tmp_path / "undisturbed"), new_cache(tmp_path / "killed")
    complete("ingest", scans, "--cache", undisturbed, "--workers", 1)
    command = ("ingest", scans, "--cache", cache, "--workers", 1)
    for num_items in (3, 7, 11):
        process = start(*command)
        while process.poll() is None and len(list(cache.glob("items/*/*/item.json"))) < num_items:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    complete(*command)

    assert {name: digest for name, digest in content(cache / "items").items() if ".tmp-" not in name} == content(
        undisturbed / "items"
    )


@pytest.mark.parametrize("extra", [[], OMNI], ids=["unlabelled", "labels and pseudo-labels"])
def test_a_pretraining_killed_at_any_moment_ends_with_the_same_weights(tmp_path: Path, extra: list[str]) -> None:
    """Bit for bit on the CPU, with the same logged losses, with and without processes that read crops.

    Every second kill also meets a cache without prepared images.
    """
    settings = [part for setting in PRETRAIN + extra for part in ("--set", setting)]
    caches = toy_cache(tmp_path / "cache", num_patients=6, size=32).root

    def command(cache: Path, run: Path, workers: int = 0) -> tuple[object, ...]:
        readers = ("--set", f"data.num_workers={workers}")
        where = ("--cache", cache, "--run", run, "--device", "cpu")
        return ("pretrain", "--recipe", "voco-tiny", *settings, *readers, *where)

    whole = tmp_path / "whole"
    timing = timed((whole / "recipe.lock.yaml").exists, *command(caches, whole))
    items = content(caches / "items")
    encoder = weights(whole)
    losses = [entry["loss"] for entry in read_metrics(whole)]
    num_killed = 0
    for number, delay in enumerate(moments(timing, seed=2)):
        run = tmp_path / f"killed{number}"
        if number % 2:
            for path in sorted((caches / "prepared").rglob("*.json")):
                path.unlink()
        workers = number % 2 * 2
        num_killed += kill_at(delay, *command(caches, run, workers), is_whole_group=number % 4 == 1)

        complete(*command(caches, run, workers))

        what = f"kill {number} after {delay:.3f} s with {workers} readers"
        assert weights(run) == encoder, what
        assert [entry["loss"] for entry in read_metrics(run)] == losses, what
        assert content(caches / "items") == items, what
        assert temporaries(run) + temporaries(caches) == [], what
    assert len(losses) == 10
    assert num_killed, "every run was over before it was killed"
    assert list(Cache.open(caches).verify()) == [None] * 6
