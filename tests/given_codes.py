"""Which codes the program gave while tests ran in this process: those of errors, reports, images, results and notes.

A test that makes an error itself proves nothing: only what modules of the program make counts. What a test makes in
another process is seen only if it comes back as a value, as everything from the children of an ingest does. A code that
only a command in a process of its own gives needs a test of the part that gives it.
"""

import re
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import typer

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import MedsslError
from medssl_cli.base.talk import Silence
from medssl_cli.deploy.infer import ScanResult
from medssl_cli.formats.dicom import Refusal, SeriesPart
from medssl_cli.formats.discover import Found
from medssl_cli.formats.labels import Flaw, Reading, RefusedRow
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.ingest.failures import Failure
from medssl_cli.ingest.report import ReportEntry
from medssl_cli.ingest.tasks import StoredLabel

_WORD = re.compile(r"\b[EWS]_[A-Z0-9_]+\b")
_PASS_ON = ("medssl_cli.base.errors", "medssl_cli.cli.boundary")  # what others made
given: set[str] = set()


def watch() -> None:
    """Note the codes of everything that is made from now on."""
    for kind in (MedsslError, Failure, Refusal, Found, Flaw, RefusedRow):
        _after(kind, "__init__", lambda one, *_: [one.code])
    for kind in (LoadedImage, SeriesPart, StoredLabel):
        _after(kind, "__init__", lambda one, *_: one.warnings)
    for kind in (ReportEntry, ScanResult):
        _after(kind, "__init__", lambda one, *_: [one.code, *one.warnings])
    _after(Reading, "__init__", lambda one, *_: [code for code, _ in one.notes])
    _after(Silence, "note", lambda _, text: _WORD.findall(text), is_overridden=True)
    _after(typer, "echo", lambda text="", *_: _WORD.findall(str(text)))


def missing() -> list[str]:
    """Codes in use that were not given."""
    return sorted(name for name, code in CODES.items() if not code.is_retired and name not in given)


def _caller(depth: int) -> str:
    """The module that called; `dataclasses.replace` stands for the one that called it."""
    frame = sys._getframe(depth + 1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in ("dataclasses", "copy"):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))


def _after(place: Any, name: str, codes: Callable[..., Iterable[str]], *, is_overridden: bool = False) -> None:
    """Note codes after each call of a function or method by the program.

    Args:
        place: Where it is.
        name: What it is called.
        codes: Gets the arguments of the call.
        is_overridden: A class of a test stands between the program and the method.
    """
    original = getattr(place, name)

    @wraps(original)
    def noting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        maker = _caller(2 if is_overridden else 1)
        if maker.startswith("medssl_cli.") and maker not in _PASS_ON:
            given.update(code for code in codes(*args) if isinstance(code, str))  # a hostile file may hold anything
        return result

    setattr(place, name, noting)
