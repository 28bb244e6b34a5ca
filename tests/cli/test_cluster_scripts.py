"""The batch scripts of the guide for clusters: they are bash, name commands that exist, requeue what they should."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.test_docs import ROOT, blocks, parse

GUIDE = ROOT / "docs" / "guides" / "clusters.md"
SCRIPTS = blocks(GUIDE, "bash")


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_it_is_bash(script: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)

    assert checked.returncode == 0, checked.stderr


def test_its_medssl_commands_exist_with_these_options() -> None:
    lines = [line for script in SCRIPTS for line in script.replace("\\\n", " ").splitlines()]
    found = [line.partition("medssl ")[2].rstrip(" &") for line in lines if " medssl " in f" {line}"]

    assert len(found) >= 3
    for line in found:
        parse([word.strip('"') for word in line.split()])


@pytest.fixture
def requeueing(tmp_path: Path) -> dict[str, str]:
    """The script that requeues, with stand-ins for SLURM's commands and for medssl; its environment."""
    (script,) = [script for script in SCRIPTS if "--signal=B:USR1" in script]
    (tmp_path / "job.sh").write_text(script)
    stand_ins = {
        "srun": 'exec "$@"',
        "medssl": f"trap 'exit 75' USR1\ntouch {tmp_path}/started\n"
        f"while [ ! -e {tmp_path}/end ]; do sleep 0.05; done\nexit 3",
        "scontrol": f'echo "$@" > {tmp_path}/scontrol.txt',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}


def run_until_started(tmp_path: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    job = subprocess.Popen(["bash", str(tmp_path / "job.sh")], env=environment)
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    return job


def test_a_job_whose_time_is_up_saves_and_is_queued_again(tmp_path: Path, requeueing: dict[str, str]) -> None:
    job = run_until_started(tmp_path, requeueing)

    job.send_signal(signal.SIGUSR1)

    assert job.wait(timeout=60) == 75
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"


def test_a_job_that_ends_by_itself_keeps_its_status_and_is_not_queued_again(
    tmp_path: Path, requeueing: dict[str, str]
) -> None:
    job = run_until_started(tmp_path, requeueing)

    (tmp_path / "end").touch()

    assert job.wait(timeout=60) == 3
    assert not (tmp_path / "scontrol.txt").exists()
