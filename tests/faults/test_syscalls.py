"""A full disk at any system call: refused with a code or exit 74, never a success without its files.

The n-th call of one kind fails in every process of an ingest, for n = 1, 2, ... until it no longer happens
(`MEDSSL_FAULTS=all`), or for a few n by default.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import Exit
from medssl_cli.cache.store import Cache
from medssl_cli.formats.nifti import write_nifti
from tests import warm
from tests.environment import ENVIRONMENT

MOST = 60
FEW = {"fsync": (1, 3, 6), "rename": (1, 2, 3), "mkdir": (1, 3), "pwrite64": (1,), "ftruncate": (1,)}


def can_trace() -> bool:
    """Whether strace is here and allowed to work."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not can_trace(), reason="strace is not installed or may not trace here")


def ingest(source: Path, cache: Path, *tracer: str) -> "subprocess.CompletedProcess[str]":
    """`medssl ingest` under a tracer."""
    command = [sys.executable, "-m", "medssl_cli", "ingest", str(source), "--cache", str(cache), "--workers", "1"]
    return subprocess.run([*tracer, *command], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)


@pytest.mark.parametrize("call", FEW)
def test_a_full_disk_is_never_a_success_without_its_files(tmp_path: Path, call: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 1000, (12, 11, 10)).astype(np.int16)
    for folder, content in (("images", voxels), ("labels", (voxels > 500).astype(np.uint8))):
        (tmp_path / "in" / folder).mkdir(parents=True)
        write_nifti(tmp_path / "in" / folder / "p_1.nii.gz", content, np.diag([1.0, 1.0, 2.0, 1.0]))
    numbers = range(1, MOST) if os.environ.get("MEDSSL_FAULTS") == "all" else FEW[call]
    num_fired = 0
    for number in numbers:
        cache, log = tmp_path / f"cache-{number}", tmp_path / "log"
        kinds = {"rename": "rename,renameat,renameat2", "mkdir": "mkdir,mkdirat"}.get(call, call)
        tracer = ("strace", "-f", "-qq", "-o", str(log), "--seccomp-bpf", "-e", f"trace={kinds}")
        done = ingest(tmp_path / "in", cache, *tracer, "-e", f"inject={kinds}:error=ENOSPC:when={number}")
        has_fired = "(INJECTED)" in log.read_text()
        num_fired += has_fired
        check(done, cache, what=f"{call} number {number}")

        again = warm.run("ingest", tmp_path / "in", "--cache", cache, "--workers", "1", kind="reading")

        assert again.returncode == Exit.OK, again.stderr
        assert_complete(cache)
        assert not [path for path in cache.rglob("*") if path.name.startswith((".tmp-", "writing-"))]
        if not has_fired and len(numbers) > len(FEW[call]):
            break
    assert num_fired or call in ("pwrite64", "ftruncate")


def check(done: "subprocess.CompletedProcess[str]", cache: Path, *, what: str) -> None:
    """A success is complete; a failure has a code, and what it published is sound."""
    assert "Traceback" not in done.stderr, what
    assert "bug in medssl" not in done.stderr, what
    if done.returncode == Exit.OK:
        assert_complete(cache)
        return
    assert done.returncode in (Exit.IO, Exit.PARTIAL, Exit.NOTHING), f"{what}: exit {done.returncode}\n{done.stderr}"
    assert "E_" in done.stderr + done.stdout, what
    if (cache / "cache.json").is_file():
        assert set(Cache.open(cache).verify()) <= {None}, what


def assert_complete(cache: Path) -> None:
    """One sound item with its label."""
    opened = Cache.open(cache)
    assert list(opened.verify()) == [None]
    assert len(opened.records(label_set="seg")) == 1
