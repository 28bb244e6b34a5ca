"""The queue of studies on disk. Every state is a file that is there or is not: a kill loses and doubles nothing.

    SPOOL/lock                                  held by the one service that works here
    SPOOL/studies/STUDY/files/INSTANCE.dcm      what has arrived; an object is acknowledged when it lies here
    SPOOL/studies/STUDY/senders.json            who sent it
    SPOOL/studies/STUDY/attempts.json           how often the work on this content was begun
    SPOOL/studies/STUDY/results/TASK/           what `infer` writes, its report included
    SPOOL/studies/STUDY/done.json               the content that was answered for, and how that ended

A study is answered for when `done.json` names what its files are now; a late slice makes it due again.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import (
    read_regular,
    remove_temporaries,
    storage_errors,
    sync_directory,
    write_atomic,
    write_json,
)
from medssl_cli.base.plain_json import parse_json
from medssl_cli.deploy.again import wait_s

DIGEST_LENGTH: Final = 32
TRASH: Final = ".trash-"
_MAX_STATE_BYTES: Final = 2**20


@dataclass
class WaitingStudy:
    """A study that is not answered for, as this process knows it.

    Args:
        since: When its last object arrived, on the clock of the spool.
        not_before: When it may be tried again.
        tries: How often results could not be sent.
        attempts: How often the work on what has arrived was begun, and did not come to an end.
    """

    since: float
    not_before: float = 0.0
    tries: int = 0
    attempts: int = 0


@dataclass
class Spool:
    """Studies that arrive, and what became of them.

    Args:
        root: A folder of its own.
        settle_s: A study is complete when nothing of it has arrived for so long.
        clock: Seconds; for tests.
    """

    root: Path
    settle_s: float
    clock: Callable[[], float] = time.monotonic
    _waiting: dict[str, WaitingStudy] = field(default_factory=dict)
    _arriving: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Around all use: no other process works here, and what the last one left is known.

        Raises:
            UsageError: `E_SPOOL_BUSY`; `E_USAGE`, the folder holds something else.
            StorageError: `E_IO`.
        """
        with storage_errors("the queue"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            strangers = sorted({path.name for path in self.root.iterdir()} - {"lock", "studies"})
            if strangers:
                raise UsageError(
                    "E_USAGE", f"the folder of the queue holds other things: {strangers[0]}", hint="name an empty one"
                )
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UsageError("E_SPOOL_BUSY", "another medssl listen works in this folder") from error
            with storage_errors("the queue"):
                self._find_left_behind()
            yield
        finally:
            os.close(descriptor)

    def _find_left_behind(self) -> None:
        self._studies.mkdir(mode=0o700, exist_ok=True)
        sync_directory(self.root)
        for path in sorted(self._studies.iterdir()):
            if path.name.startswith(TRASH):
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_dir():
                (path / "files").mkdir(mode=0o700, exist_ok=True)
                remove_temporaries(path / "files")
                remove_temporaries(path)
                if not self.is_answered(path.name):
                    self._waiting[path.name] = self._left_behind(path.name)

    def _left_behind(self, study: str) -> WaitingStudy:
        """A study that an earlier process has not answered for.

        One that several processes died of waits, so that deaths in quick succession, of whatever cause, use up no
        attempts.
        """
        now, attempts = self.clock(), self._attempts(study)
        return WaitingStudy(now, not_before=now + wait_s(attempts - 2) if attempts > 1 else 0.0, attempts=attempts)

    @property
    def _studies(self) -> Path:
        return self.root / "studies"

    def folder(self, study: str) -> Path:
        """Where a study lies."""
        return self._studies / study

    def files(self, study: str) -> Path:
        """Where its objects lie."""
        return self.folder(study) / "files"

    @property
    def num_waiting(self) -> int:
        """Studies that are not answered for."""
        return len(self._waiting)

    def is_new(self, study: str) -> bool:
        """Whether nothing of a study waits or is filed."""
        return study not in self._waiting and not self.folder(study).is_dir()

    def receive(self, study_uid: str, instance_uid: str, data: bytes, sender: str) -> str:
        """File an object; when this returns, a power cut does not lose it.

        Args:
            study_uid: StudyInstanceUID.
            instance_uid: SOPInstanceUID; an object that is here already with these bytes is not written again.
            data: A DICOM file.
            sender: Its AE title.

        Returns:
            What the study is called here.

        Raises:
            StorageError: `E_IO`.
        """
        study = name_of(study_uid)
        with self._lock:
            self._arriving[study] += 1
        try:
            with storage_errors("an object"):
                self._file(study, self.files(study) / f"{name_of(instance_uid)}.dcm", data, sender)
        finally:
            with self._lock:
                self._arriving[study] -= 1
                if not self._arriving[study]:
                    del self._arriving[study]
        return study

    def _file(self, study: str, path: Path, data: bytes, sender: str) -> None:
        with self._lock:
            if not path.parent.is_dir():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_directory(path.parent.parent)
                sync_directory(self._studies)
            senders = self.senders(study)
            if sender not in senders:
                write_json(self.folder(study) / "senders.json", {"senders": [*senders, sender]})
        is_known = path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
        if not is_known:
            write_atomic(path, data)
        with self._lock:
            if not is_known or not self.is_answered(study):
                self._waiting[study] = WaitingStudy(self.clock())

    def due(self) -> list[str]:
        """Studies that are complete and not answered for, those first that were tried least and wait longest."""
        now = self.clock()
        with self._lock:
            ready = [
                (waiting.attempts, waiting.since, study)
                for study, waiting in self._waiting.items()
                if now - waiting.since >= self.settle_s and now >= waiting.not_before and study not in self._arriving
            ]
        return [study for _, _, study in sorted(ready)]

    def content(self, study: str) -> str:
        """Digest of what has arrived of a study: names, lengths and times of its files."""
        told = []
        for path in sorted(self.files(study).glob("*.dcm")):
            status = path.stat()
            told.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def is_answered(self, study: str) -> bool:
        """Whether what has arrived so far is answered for."""
        return bool(self.done(study).get("content") == self.content(study))

    def begin(self, study: str) -> tuple[str, int]:
        """Note that the work on a study begins.

        Returns:
            What its content is, and how often the work on that has begun.
        """
        content, waiting = self.content(study), self._waiting[study]
        waiting.attempts += 1
        write_json(self.folder(study) / "attempts.json", {"content": content, "attempts": waiting.attempts})
        return content, waiting.attempts

    def _attempts(self, study: str) -> int:
        """What an earlier process has noted."""
        state = self._state(study, "attempts.json")
        number = state.get("attempts")
        return number if isinstance(number, int) and state.get("content") == self.content(study) else 0

    def finish(self, study: str, content: str, outcome: dict[str, Any]) -> None:
        """Note that a study is answered for.

        Args:
            study: Which.
            content: What it was when the work began; if more has arrived since, it waits on.
            outcome: How that ended.

        Raises:
            StorageError: `E_IO`.
        """
        write_json(self.folder(study) / "done.json", {**outcome, "content": content, "at": time.time()})
        with self._lock, contextlib.suppress(OSError):
            (self.folder(study) / "attempts.json").unlink(missing_ok=True)
            if self.is_answered(study):
                self._waiting.pop(study, None)

    def postpone(self, study: str, seconds: float, *, has_failed: bool = False) -> None:
        """Try a study again later.

        Args:
            study: Which.
            seconds: How much later, at least.
            has_failed: This counts as an attempt; else it was none that failed.
        """
        with self._lock:
            waiting = self._waiting[study]
            waiting.not_before = self.clock() + seconds
            if not has_failed:
                waiting.tries, waiting.attempts = waiting.tries + 1, 0
                (self.folder(study) / "attempts.json").unlink(missing_ok=True)

    def tries(self, study: str) -> int:
        """How often a study was postponed."""
        return self._waiting[study].tries

    def senders(self, study: str) -> list[str]:
        """AE titles that sent something of a study."""
        found = self._state(study, "senders.json").get("senders")
        return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []

    def done(self, study: str) -> dict[str, Any]:
        """How the last answer for a study ended; empty if there is none."""
        return self._state(study, "done.json")

    def expire(self, keep_s: float) -> int:
        """Remove studies that were answered for so long ago, images and results; returns how many."""
        expired = 0
        for path in self._studies.iterdir():
            at = self.done(path.name).get("at")
            if path.name in self._waiting or not isinstance(at, int | float) or time.time() - at < keep_s:
                continue
            trash = path.with_name(f"{TRASH}{path.name}")
            with self._lock:
                if path.name in self._arriving or path.name in self._waiting or not self.is_answered(path.name):
                    continue
                path.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)
            expired += 1
        return expired

    def states(self) -> dict[str, int]:
        """How many studies are in which state."""
        with self._lock:
            waiting = dict(self._waiting)
        now = self.clock()
        arriving = sum(now - one.since < self.settle_s for one in waiting.values())
        unsent = sum(one.tries > 0 for one in waiting.values())
        return {"arriving": arriving, "waiting": len(waiting) - arriving - unsent, "unsent": unsent}

    def oldest_s(self) -> float:
        """How long the study that waits longest has been complete."""
        with self._lock:
            since = min((one.since for one in self._waiting.values()), default=None)
        return 0.0 if since is None else max(0.0, self.clock() - since - self.settle_s)

    def free_bytes(self) -> int:
        """Room on the disk."""
        return shutil.disk_usage(self.root).free

    def _state(self, study: str, name: str) -> dict[str, Any]:
        """A small file; empty if it is not there or damaged."""
        with contextlib.suppress(OSError, ValueError):
            document = parse_json(read_regular(self.folder(study) / name, max_bytes=_MAX_STATE_BYTES))
            return document if isinstance(document, dict) else {}
        return {}


def name_of(uid: str) -> str:
    """What a UID is called on disk: nothing that a sender chose becomes part of a path."""
    return hashlib.sha256(uid.encode("utf-8", "surrogateescape")).hexdigest()[:DIGEST_LENGTH]
