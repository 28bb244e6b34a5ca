"""kill -9 at any moment of a batch costs nothing: typed again until it ends, the command leaves the same masks.

No finished scan is computed twice, and the report tells of every scan.

`MEDSSL_BATCH` and `MEDSSL_KILLS` set how many good scans and kills there are (6 and 2 by default; ten more scans are
broken in ten ways).
"""

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from tests import warm
from tests.batch import make_batch
from tests.toy_model import write_toy_model
from tests.warm import WarmProcess

SCANS = int(os.environ.get("MEDSSL_BATCH", "6"))
KILLS = int(os.environ.get("MEDSSL_KILLS", "2"))


def start(*arguments: object) -> WarmProcess:
    return warm.start(arguments, kind="reading")


def status_of(process: WarmProcess) -> int:
    """How it ends."""
    process.communicate()
    return process.wait()


def digests(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*_toy-seg*"))}


def entries(out: Path) -> list[dict[str, Any]]:
    report = out / "report.json"
    found: list[dict[str, Any]] = json.loads(report.read_text())["results"] if report.exists() else []
    return found


def test_a_batch_killed_again_and_again_gives_the_same_masks(tmp_path: Path) -> None:
    batch = make_batch(tmp_path / "in", SCANS)
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    command = ("infer", batch.folder, "-t", model, "--device", "cpu", "--no-preview", "-q", "-o")
    assert status_of(start(*command, tmp_path / "whole")) == 3
    expected = digests(tmp_path / "whole")
    out, rng = tmp_path / "killed", random.Random(0)
    num_killed, finished = 0, {}
    for num_masks in sorted(rng.choices(range(len(expected)), k=KILLS)):
        process = start(*command, out)
        while process.poll() is None and len(list(out.glob("*_toy-seg*"))) < num_masks:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        num_killed += status_of(process) == -signal.SIGKILL
        stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("*_toy-seg*")}
        assert finished.items() <= stamps.items()  # nobody wrote them again
        done = [entry for entry in entries(out) if entry["status"] == "done"]
        finished = {name: stamps[name] for entry in done for name in entry["outputs"]}
        pending = {name.rpartition("_toy-seg")[0] for name in stamps.keys() - finished.keys()}
        assert len(pending) <= 1  # only the scan at work is computed again

    assert status_of(start(*command, out)) == 3

    assert digests(out) == expected
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*_toy-seg*")}.items() >= finished.items()
    last = {entry["place"]: entry for entry in entries(out)}
    assert {place: entry["code"] for place, entry in last.items() if entry["status"] == "refused"} == batch.codes
    resumed = {name for entry in last.values() if entry["resumed"] for name in entry["outputs"]}
    assert finished.keys() <= resumed
    assert {place for place, entry in last.items() if entry["status"] == "done"} == set(batch.masks)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert num_killed >= KILLS / 2
