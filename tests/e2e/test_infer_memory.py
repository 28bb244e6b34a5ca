"""What `--max-ram` and `prlimit` allow is kept, by all processes together, and changes no mask."""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from medssl_cli.deploy.bundle import attach
from medssl_cli.deploy.limits import FREE_SHARE, GIB
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.preprocessing import Preprocessing
from tests.bench.infer import watched_run
from tests.environment import ENVIRONMENT
from tests.toy_model import toy_bundle

NUM_CLASSES = 105
TILE = (32, 32, 32)
ALLOWED_GIB = 0.4
RULE = Preprocessing(window_hu=(-175.0, 250.0), spacing_mm=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan, a model of one convolution with 105 classes, and the mask that it gets without a limit."""
    made = tmp_path_factory.mktemp("memory")
    drawn = np.random.default_rng(0)
    write_nifti(
        made / "scan.nii.gz", drawn.integers(-200, 300, (90, 90, 60)).astype(np.int16), np.diag([0.9, 0.9, 1.2, 1])
    )
    weight = numpy_helper.from_array(drawn.normal(size=(NUM_CLASSES, 1, 1, 1, 1)).astype(np.float32), "weight")
    bias = numpy_helper.from_array(drawn.normal(size=NUM_CLASSES).astype(np.float32), "bias")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, *TILE])
        for name, channels in (("image", 1), ("logits", NUM_CLASSES))
    ]
    nodes = [helper.make_node("Conv", ["image", "weight", "bias"], ["logits"])]
    graph = helper.make_graph(nodes, "wide", ends[:1], ends[1:], [weight, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    classes = {number: f"class_{number}" for number in range(1, NUM_CLASSES)}
    bundle = toy_bundle(classes=classes, tile_size=TILE, preprocessing=RULE)
    (made / "model.onnx").write_bytes(attach(model.SerializeToString(), bundle))
    assert watched_run("without a limit", command(made, "free")).is_done
    return made


def command(folder: Path, out: str, *options: object) -> list[object]:
    paths = ["infer", folder / "scan.nii.gz", "-t", folder / "model.onnx", "-o", folder / out]
    return ["-m", "medssl_cli", *paths, "--device", "cpu", "--threads", "1", "--no-preview", *options]


def mask(folder: Path, out: str) -> bytes:
    return (folder / out / "scan_toy-seg.nii.gz").read_bytes()


def test_all_processes_together_stay_within_max_ram(folder: Path) -> None:
    found = watched_run("limited", command(folder, "limited", "--max-ram", ALLOWED_GIB))

    assert found.is_done
    assert 0 < found.peak_bytes <= ALLOWED_GIB * GIB
    assert mask(folder, "limited") == mask(folder, "free")


@pytest.mark.parametrize(
    ("kind", "limit"),
    # Of address space far more is reserved than is used: libraries alone take 3 GiB of it.
    [(resource.RLIMIT_DATA, GIB), (resource.RLIMIT_AS, 8 * GIB)],
    ids=["data", "address space"],
)
def test_a_limit_of_the_process_is_kept_as_if_it_had_been_named(folder: Path, kind: int, limit: int) -> None:
    out = f"prlimit-{kind}"
    done = subprocess.run(
        [sys.executable, *map(str, command(folder, out))],
        preexec_fn=lambda: resource.setrlimit(kind, (limit, limit)),
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, check=False, capture_output=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr.decode()
    assert mask(folder, out) == mask(folder, "free")


def test_the_limit_of_a_control_group_is_kept(folder: Path) -> None:
    # What the program itself has by then is no longer free.
    with memory_group(int((ALLOWED_GIB / FREE_SHARE + 0.2) * GIB)) as group:
        done = run_within(group, command(folder, "group"))

        assert done.returncode == 0, done.stderr.decode()
        assert num_killed(group) == 0
    assert mask(folder, "group") == mask(folder, "free")


def test_what_does_not_fit_into_a_control_group_is_refused(folder: Path) -> None:
    with memory_group(int(0.33 * GIB)) as group:
        done = run_within(group, command(folder, "small-group"))

        assert done.returncode == 4, done.stderr.decode()
        assert num_killed(group) == 0
    assert b"E_TOO_BIG" in done.stdout


@contextlib.contextmanager
def memory_group(num_bytes: int) -> Iterator[Path]:
    """A control group of the kernel, of version 1 or 2, with a limit of memory, where this process may make one."""
    root = Path("/sys/fs/cgroup")
    is_first = (root / "memory").is_dir()
    group = root / ("memory" if is_first else ".") / f"medssl-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        limit = group / ("memory.limit_in_bytes" if is_first else "memory.max")
        if not limit.exists():
            pytest.skip("control groups have no limits of memory here")
        limit.write_text(str(num_bytes))
        yield group
    finally:
        group.rmdir()


def run_within(group: Path, arguments: list[object]) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        preexec_fn=lambda: (group / "cgroup.procs").write_text("0"),
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, check=False, capture_output=True,
    )  # fmt: skip


def num_killed(group: Path) -> int:
    """How many processes of a group the kernel has killed."""
    told = next(path for name in ("memory.events", "memory.oom_control") if (path := group / name).exists())
    return int(dict(line.split() for line in told.read_text().splitlines())["oom_kill"])


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, command(folder, "refused", "--max-ram", 0.33))],
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, check=False, capture_output=True,
    )  # fmt: skip

    assert done.returncode == 4
    assert b"E_TOO_BIG" in done.stdout
    assert not list((folder / "refused").glob("*.nii.gz"))
