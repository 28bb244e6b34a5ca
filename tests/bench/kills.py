"""Scans that arrive while the process that answers for them is killed again and again: what is lost or done twice."""

import json
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from medssl_cli.formats.nifti import write_nifti
from tests import warm
from tests.batch import AFFINE, phantom, write_series
from tests.dicom_nodes import Service, TakingNode, storescu
from tests.toy_model import write_toy_model

Way = Literal["watch", "listen"]
NUM_SLICES: Final = 5
"""Slices of a study that is sent: every object costs its sender, its receiver and the disk."""
COLUMNS: Final = ("way", "scans", "kills", "lost", "computed twice", "arrived twice", "seconds")


@dataclass(frozen=True)
class Survival:
    """What became of scans that arrived under kills.

    Args:
        way: How they arrive.
        scans: How many there were.
        kills: How often the process was killed while it worked.
        lost: Scans without an answer.
        computed_twice: Scans that were computed again although the report held them.
        arrived_twice: Objects that were sent again, with the same UID.
        seconds: In all.
    """

    way: Way
    scans: int
    kills: int
    lost: int
    computed_twice: int
    arrived_twice: int
    seconds: float

    def row(self) -> tuple[str, ...]:
        """A line of the table."""
        numbers = (self.scans, self.kills, self.lost, self.computed_twice, self.arrived_twice)
        return self.way, *map(str, numbers), f"{self.seconds:.0f}"


def bench_kills(way: Way, *, num_scans: int, num_kills: int) -> Survival:
    """Let scans arrive, and kill what answers for them at random moments of the work."""
    with tempfile.TemporaryDirectory(prefix="medssl-kills-") as folder:
        root = Path(folder)
        model = write_toy_model(root / "model.onnx", modality="CT")
        run = _watched if way == "watch" else _listened
        return run(root, model, num_scans, num_kills)


def _moments(num_scans: int, num_kills: int) -> list[float]:
    """Numbers of answers after which there is a kill."""
    generator = random.Random(0)
    return sorted(generator.uniform(0, 0.97 * num_scans) for _ in range(num_kills))


def _computed(reports: list[Path]) -> Counter[tuple[str, str]]:
    """How often each content of a scan was computed, by the lines of reports: a late slice makes another content."""
    found: Counter[tuple[str, str]] = Counter()
    for path in reports:
        for line in path.read_bytes().splitlines()[1:]:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut by a kill
            found[entry["key"], entry["input_sha256"]] += entry["status"] == "done" and not entry["resumed"]
    return found


def _wait(is_true: Callable[[], bool]) -> None:
    while not is_true():
        time.sleep(0.02)


def _watched(root: Path, model: Path, num_scans: int, num_kills: int) -> Survival:
    """NIfTI files that are moved into a folder one after the other."""
    source, out, made = root / "in", root / "out", root / "made"
    source.mkdir()
    made.mkdir()
    write_nifti(made / "scan.nii", phantom(), AFFINE)

    def arrive() -> None:
        for number in range(num_scans):
            shutil.copy(made / "scan.nii", made / "copy")
            (made / "copy").rename(source / f"s{number:05d}.nii")
            time.sleep(0.02)

    def start() -> warm.WarmProcess:
        command = ("infer", "--watch", source, "--settle", 0.2, "-t", model, "--device", "cpu", "--no-preview", "-q")
        return warm.start((*command, "-o", out), kind="reading")

    def answers() -> int:
        return len(list(out.glob("*_toy-seg.nii.gz")))

    begin, process, generator = time.monotonic(), start(), random.Random(1)
    feeding = threading.Thread(target=arrive, daemon=True)
    feeding.start()
    for moment in _moments(num_scans, num_kills):
        _wait(lambda moment=moment: answers() >= moment)  # type: ignore[misc]
        time.sleep(generator.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = start()
    feeding.join()
    _wait(lambda: len(_computed([out / "report.jsonl"])) >= num_scans)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    counts = _computed([out / "report.jsonl"])
    twice = sum(number > 1 for number in counts.values())
    return Survival("watch", num_scans, num_kills, num_scans - answers(), twice, 0, time.monotonic() - begin)


def _studies(node: TakingNode) -> set[str]:
    """Studies of which a result has arrived."""
    return {str(one.StudyInstanceUID) for one in list(node.objects.values())}


def _listened(root: Path, model: Path, num_scans: int, num_kills: int) -> Survival:
    """Studies that are sent until they are acknowledged."""
    with TakingNode().running() as node:
        service = Service(model, root / "spool", [f"CT1=127.0.0.1:{node.port}"], options=("--max-queue", 10**6))

        def arrive() -> None:
            for number in range(num_scans):
                slices = write_series(root / "made", number, phantom(number)[:, :, :NUM_SLICES])
                while storescu(service.port, slices):
                    time.sleep(0.1)
                shutil.rmtree(root / "made")

        begin, generator = time.monotonic(), random.Random(1)
        service.start()
        feeding = threading.Thread(target=arrive, daemon=True)
        feeding.start()
        for moment in _moments(num_scans, num_kills):
            _wait(lambda moment=moment: len(node.objects) >= moment)  # type: ignore[misc]
            time.sleep(generator.uniform(0, 0.3))
            service.kill()
            service.start()
        feeding.join()
        _wait(lambda: not any(service.waiting().values()))  # a study that is lost never arrives
        service.stop()
    counts = _computed(list((root / "spool").glob("studies/*/results/*/report.jsonl")))
    lost = num_scans - len(_studies(node))
    computed_twice = sum(number > 1 for number in counts.values())
    arrived_twice = len(node.arrivals) - len(node.objects)
    return Survival("listen", num_scans, num_kills, lost, computed_twice, arrived_twice, time.monotonic() - begin)
