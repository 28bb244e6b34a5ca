"""What a training says while it runs: `metrics.jsonl` always, TensorBoard beside it, others on request."""

import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from medssl_cli.base.files import read_regular, storage_errors, write_atomic
from medssl_cli.base.plain_json import parse_json

EVENTS: Final = "events.out.tfevents."


class Sink(Protocol):
    """Another place for the numbers."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record finite numbers of one step."""

    def close(self) -> None:
        """Hand over what is left."""


class MetricsLog:
    """Append-only series of numbers by step.

    Args:
        root: Run folder.
        resume_step: Lines after this step belong to work that was lost and will be done again; they go.
        sinks: Get the same numbers.
    """

    def __init__(self, root: Path, *, resume_step: int, sinks: Sequence[Sink] = ()) -> None:
        self._path = root / "metrics.jsonl"
        kept = [entry for entry in _read(root) if entry["step"] <= resume_step] if resume_step else []
        write_atomic(self._path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self._stream = self._path.open("a", encoding="utf-8")
        self._board = EventFile(root / "tensorboard", resume_step=resume_step)
        self._sinks = sinks

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record numbers of one step; NaN becomes null."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        shown = {name: finite.get(name) for name in values}
        self._stream.write(json.dumps({"step": step, **shown}) + "\n")
        self._stream.flush()
        for name, value in values.items():
            self._board.write(name, value, step)
        for sink in self._sinks:
            sink.write(step, finite)
        self._board.flush()

    def close(self) -> None:
        """Flush all."""
        self._stream.close()
        self._board.close()
        for sink in self._sinks:
            sink.close()


class EventFile:
    """Numbers for TensorBoard, in a file that is named after the step that it begins with and after nothing else.

    TensorBoard's own writer puts the machine's name and a process number into the name of the file. Files that begin
    later belong to work that was lost and go; what an earlier one says of later steps, TensorBoard drops.

    Args:
        folder: Made if missing.
        resume_step: Steps done.
    """

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        with storage_errors("the run"):
            folder.mkdir(mode=0o700, exist_ok=True)
            for path in folder.glob(f"{EVENTS}*"):
                begin = path.name.removeprefix(EVENTS)
                if not re.fullmatch(r"\d{10}", begin) or int(begin) < resume_step:
                    continue
                path.unlink()
            stream = (folder / f"{EVENTS}{resume_step:010d}").open("xb")
        self._stream, self._records, self._event = stream, RecordWriter(stream), Event
        self._add(file_version="brain.Event:2")
        if resume_step:
            self._add(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def write(self, name: str, value: float, step: int) -> None:
        """Record a number of one step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))

    def flush(self) -> None:
        """Let TensorBoard see what was recorded."""
        self._records.flush()

    def close(self) -> None:
        """Flush and close."""
        self._records.close()


class NoLog:
    """In the processes that do not write."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Drop it."""

    def close(self) -> None:
        """Nothing to flush."""


def read_metrics(root: Path) -> list[dict[str, Any]]:
    """All recorded training steps of a run, in order; a line that a kill tore off is left out."""
    return [entry for entry in _read(root) if "loss" in entry]


def read_health(root: Path) -> list[dict[str, Any]]:
    """The figures of the embeddings' health, in order; the first are those of the untrained network."""
    return [entry for entry in _read(root) if "loss" not in entry]


def _read(root: Path) -> list[dict[str, Any]]:
    """Whole lines that hold a step and numbers; anything else was torn off by a kill, or is not ours."""
    try:
        lines = read_regular(root / "metrics.jsonl").splitlines()
    except (OSError, ValueError):
        return []
    entries = []
    for line in lines:
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and type(entry.get("step")) is int and all(map(_is_number, entry.values())):
            entries.append(entry)
    return entries


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)
