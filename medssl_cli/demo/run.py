"""One demo: phantoms, every command of the road in a process of its own, and the page.

Every step is a `medssl` process in the demo's folder, so what it prints can be typed again, there or on one's own
scans. A second run into the same folder goes on where the first one stopped.
"""

import hashlib
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final, Protocol

from medssl_cli.base.errors import Exit, MedsslError, UsageError
from medssl_cli.base.files import storage_errors, write_atomic, write_json
from medssl_cli.demo.cohort import write_cohort
from medssl_cli.demo.road import CACHE, FULL, QUICK, DemoResult, Size, Step, StepResult, read_document, road

SETTINGS: Final = "demo-settings.json"
SEED: Final = 0


class Progress(Protocol):
    """How the demo says what it does; the terminal of the command line is one."""

    def note(self, text: str) -> None:
        """One line."""

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        """How far a long step is."""


class StepFailedError(MedsslError):
    """A command of the demo failed; it has said why itself, and its exit code is passed on."""


def run_demo(folder: Path, *, quick: bool = False, fresh: bool = False, progress: Progress) -> DemoResult:
    """Draw phantoms, run the whole road on them and write the page.

    Args:
        folder: Where everything goes; what is finished there already is used again.
        quick: A few steps on a few phantoms: shows that everything works and nothing else.
        fresh: Remove what an earlier demo has left in the folder.
        progress: Told what happens.

    Raises:
        StepFailedError: A command failed.
        StorageError: `E_IO`.
    """
    from medssl_cli.demo.page import write_page  # matplotlib: only needed at the end

    size = QUICK if quick else FULL
    with storage_errors("the demo"):
        if fresh:
            _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, size)
    cohort = write_cohort(
        folder / "scans",
        size.num_unlabelled,
        size.num_labelled,
        SEED,
        lambda done, total: progress.progress("drawing phantoms", done, total),
    )
    _fix_key(folder / CACHE)
    done = []
    steps = road(size)
    for number, step in enumerate(steps, start=1):
        progress.note(f"\n[{number}/{len(steps)}] {step.title}\n$ {step.command}")
        done.append(_run(step, folder))
    scores = {name: read_document(folder / "results" / name / "scores.json") for name in ("scratch", "pretrained")}
    result = DemoResult(folder, folder / "demo.html", tuple(done), cohort, scores)
    write_page(result)
    write_json(folder / "demo.json", result.to_document())
    return result


def _run(step: Step, folder: Path) -> StepResult:
    """Run one command in the demo's folder; its progress goes to this process's stderr."""
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "medssl_cli", *step.arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if process.returncode not in step.accepts:
        raise _failure(step, process.returncode)
    return StepResult(step, time.monotonic() - started, process.stdout)


def _failure(step: Step, code: int) -> StepFailedError:
    error = StepFailedError(
        "E_DEMO_STEP",
        f"exit code {code} of: {step.command}",
        hint="its error stands above; run the demo again to go on from here, or with --fresh to start over",
    )
    error.exit_code = Exit(code) if code in set(Exit) else Exit.BUG
    return error


def _clear(folder: Path) -> None:
    """Remove what a demo writes, and nothing else that may lie in the folder."""
    for part in ("scans", CACHE, "runs", "models", "results", "masks"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for file in (SETTINGS, "demo.html", "demo.json"):
        (folder / file).unlink(missing_ok=True)


def _claim(folder: Path, size: Size) -> None:
    """Take a folder for a demo of one size, whose finished steps may be used again."""
    mark = folder / SETTINGS
    if mark.is_file() and read_document(mark) == asdict(size):
        return
    if any(folder.iterdir()):
        what = "a demo of another size" if mark.is_file() else "other files"
        raise UsageError(
            "E_OUTPUT_EXISTS", f"{folder} holds {what}", hint="choose another folder, or start over with --fresh"
        )
    write_json(mark, asdict(size))


def _fix_key(cache: Path) -> None:
    """Give a new cache a known key: splits follow the keys of patients, and phantoms need no pseudonyms."""
    if not cache.exists():
        with storage_errors("the demo's cache"):
            cache.mkdir(parents=True, mode=0o700)
        write_atomic(cache / "site.key", hashlib.sha256(b"medssl demo").digest())
