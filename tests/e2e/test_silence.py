"""No command opens a socket, looks a name up or leaves a file where nobody asked for one.

Every command of the road runs in an empty home under a tracer of system calls. A socket of the internet, a question to
a name server and a file outside of the folder of the test are told by their system calls, whatever library makes them.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.formats.nifti import write_nifti
from tests.dicom_factory import analytic_phantom, write_volume
from tests.environment import ROOT
from tests.faults.test_syscalls import can_trace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_trace(), reason="strace is not installed or may not trace here"),
]
TRACED = (
    "socket,connect,sendto,sendmsg,sendmmsg,bind,"
    "openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"
)
NETWORK = re.compile(r"socket\(AF_INET|sa_family=AF_INET|/nscd/")
LOOK_UP = re.compile(r'"/etc/(resolv\.conf|hosts|host\.conf)"')
WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|^(creat|mkdir|rename|link|symlink)")
FREE = ("/dev/", "/proc/", "/sys/fs/cgroup/")

PRETRAIN = """
schema: 1
backbone: {name: unet, channels: [4, 8], strides: [2, 2], num_res_units: 1}
method: {name: voco, base_grid: [2, 2, 1], num_random_crops: 2, projector_dim: 8}
data: {modality: CT, window_hu: [0, 500], spacing_mm: [2.0, 2.0, 2.0], crop_size: [8, 8, 8], batch_size: 4}
optimizer: {learning_rate: 1.0e-3}
steps: 2
"""
TASK = """
schema: 1
name: toy
backbone: {name: unet, channels: [4, 8], strides: [2, 2], num_res_units: 1}
task: {name: segmentation, classes: {1: block}}
data: {modality: CT, window_hu: [0, 500], spacing_mm: [2.0, 2.0, 2.0], crop_size: [8, 8, 8], batch_size: 2}
optimizer: {learning_rate: 1.0e-3}
steps: 2
validate_every: 2
"""
COMMANDS = (
    "key init --key-file site.key",
    "ingest patients ct --modality CT --cache cache",
    "cache ls --cache cache",
    "cache verify --cache cache",
    "cache audit --cache cache",
    "cache export --cache cache exported",
    "pretrain --recipe pretrain.yaml --cache cache --run runs/pretrain --device cpu",
    "finetune --task task.yaml --cache cache --run runs/task --init runs/pretrain --device cpu",
    "evaluate runs/task --cache cache --device cpu",
    "export runs/task model.onnx --cache cache --cases 1",
    "evaluate model.onnx --cache cache --device cpu",
    "infer patients/images/p00.nii.gz ct --task model.onnx -o masks --device cpu",
    "models ls",
    "recipes ls",
    "doctor",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with inputs, an empty home and an empty folder for temporary files."""
    root = tmp_path_factory.mktemp("silence")
    for name in ("home", "tmp", "work/patients/images", "work/patients/labels"):
        (root / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(10):
        label = np.zeros((20, 18, 16), np.int16)
        label[4:12, 5:12, 4:10] = 1
        image = random.integers(-100, 100, label.shape).astype(np.int16) + 400 * label
        for kind, voxels in (("images", image), ("labels", label.astype(np.uint8))):
            write_nifti(root / f"work/patients/{kind}/p{number:02d}.nii.gz", voxels, np.diag([2.0, 2.0, 2.0, 1.0]))
    write_volume(root / "work/ct", analytic_phantom())
    (root / "work/pretrain.yaml").write_text(PRETRAIN)
    (root / "work/task.yaml").write_text(TASK)
    return root


def traced(root: Path, command: str) -> "tuple[subprocess.CompletedProcess[str], list[str]]":
    """A command of medssl, and the system calls that it and its children made."""
    log = root / "log"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",  # Python's own files beside the sources are not medssl's
        "OMP_NUM_THREADS": "1",
    }
    tracer = ["strace", "-f", "-qq", "-y", "-s", "300", "--seccomp-bpf", "-o", str(log), "-e", f"trace={TRACED}"]
    done = subprocess.run(
        [*tracer, sys.executable, "-m", "medssl_cli", *command.split()],
        env=environment,
        cwd=root / "work",
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, [line.split(None, 1)[1] for line in log.read_text(errors="replace").splitlines() if " " in line]


def written(calls: list[str], folder: Path) -> Iterator[str]:
    """Paths that calls opened for writing or made; relative ones lie below the folder that the tracer shows."""
    for call in calls:
        if not WRITING.search(call) or " = -1 " in call:
            continue
        base = re.search(r"AT_FDCWD<([^>]*)>|^\w+\(\d+<([^>]*)>", call)
        for path in re.findall(r'"([^"]*)"', call):
            start = (base and (base[1] or base[2])) or str(folder)
            yield os.path.normpath(f"{start}/{path}" if not path.startswith("/") else path)


def test_the_guard_sees_a_connection_a_look_up_and_a_stray_file(place: Path) -> None:
    script = place / "work" / "loud.py"
    script.write_text(
        "import socket, pathlib, contextlib\n"
        "pathlib.Path.home().joinpath('stray').write_text('x')\n"
        "with contextlib.suppress(OSError): socket.create_connection(('127.0.0.1', 9), 1)\n"
        "with contextlib.suppress(OSError): socket.getaddrinfo('nowhere.invalid', 80)\n"
    )
    log = place / "log"
    command = ["strace", "-f", "-qq", "-y", "-o", str(log), "-e", f"trace={TRACED}", sys.executable, str(script)]
    subprocess.run(command, env={"HOME": str(place / "home"), "PATH": os.environ["PATH"]}, check=True)
    calls = [line.split(None, 1)[1] for line in log.read_text().splitlines() if " " in line]

    assert [call for call in calls if NETWORK.search(call)]
    assert [call for call in calls if LOOK_UP.search(call)]
    assert str(place / "home" / "stray") in set(written(calls, place))
    (place / "home" / "stray").unlink()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[:2]))
def test_commands_are_silent_and_tidy(place: Path, command: str) -> None:
    done, calls = traced(place, command)

    assert done.returncode == 0, done.stderr + done.stdout
    assert len(calls) > 100  # the tracer traces
    assert not [call for call in calls if NETWORK.search(call)]
    assert not [call for call in calls if LOOK_UP.search(call)]
    outside = {path for path in written(calls, place / "work") if not path.startswith((str(place), *FREE))}
    assert not outside
    assert not list((place / "home").rglob("*"))
    assert not list((place / "tmp").rglob("*"))


def test_the_key_of_a_site_is_the_only_file_that_a_command_makes_in_a_home(place: Path) -> None:
    done, _ = traced(place, "key init")

    assert done.returncode == 0, done.stderr
    made = [path for path in (place / "home").rglob("*") if path.is_file()]
    assert [path.parent.name for path in made] == ["medssl"]
    shutil.rmtree(place / "home" / ".config")
