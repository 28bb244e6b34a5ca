"""Which codes the program gave while tests ran in this process: those of errors, ledgers, images, results and notes.

A test that makes an error itself proves nothing: only what modules of the program make counts. What a test makes in
another process is seen only if it comes back as a value, as everything from the children of an ingest does. A code that
only a command in a process of its own gives needs a test of the part that gives it.
"""

import re
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from medssl_cli.cli.terminal import Terminal
from medssl_cli.codes import CODES
from medssl_cli.deploy.infer import ScanResult
from medssl_cli.engine.ingest.report import Entry
from medssl_cli.engine.talk import Silence
from medssl_cli.errors import MedsslError
from medssl_cli.formats import LoadedImage
from medssl_cli.formats.dicom import Refusal
from medssl_cli.formats.discover import Found

_WORD = re.compile(r"\b[EWS]_[A-Z0-9_]+\b")
given: set[str] = set()


def watch() -> None:
    """Note the codes of everything that is made from now on."""
    _after(MedsslError, "__init__", lambda error, *_: [error.code])
    _after(Entry, "__init__", lambda entry, *_: [entry.code, *entry.warnings])
    _after(LoadedImage, "__init__", lambda image, *_: image.warnings)
    _after(ScanResult, "__init__", lambda result, *_: result.warnings)
    _after(Refusal, "__init__", lambda refusal, *_: [refusal.code])
    _after(Found, "__init__", lambda found, *_: [found.code])
    for kind in (Terminal, Silence):
        _after(kind, "note", lambda _, text, *__: _WORD.findall(text))


def missing() -> list[str]:
    """Codes in use that were not given."""
    return sorted(name for name, code in CODES.items() if not code.is_retired and name not in given)


def _after(kind: type, method: str, codes: Callable[..., Iterable[str]]) -> None:
    original = getattr(kind, method)

    @wraps(original)
    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        maker = sys._getframe(1).f_globals.get("__name__", "")
        if maker.startswith("medssl_cli.") and maker != "medssl_cli.errors":
            given.update(codes(self, *args))
        return result

    setattr(kind, method, noting)
