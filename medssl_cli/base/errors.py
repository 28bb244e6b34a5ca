"""Every failure a user can meet: its stable code, what happened, what to do, and the exit code it leads to."""

from enum import IntEnum

from medssl_cli.base.codes import CODES


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    BUG = 1
    USAGE = 2
    PARTIAL = 3
    NOTHING = 4
    GATE = 5
    IO = 74
    INTERRUPTED = 75
    CTRL_C = 130


class MedsslError(Exception):
    """A failure that the user can act on.

    Args:
        code: A key of `CODES`.
        message: What happened and where, with numbers; never a patient's data or a path of the source.
        hint: What to do about it; without one, the code's remedy.

    Attributes:
        is_shared: Every one of several processes that work together raises it, so only the main one says it.

    Raises:
        KeyError: The code is not registered.
    """

    exit_code: Exit = Exit.BUG
    is_shared: bool = False

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        if code not in CODES:
            raise KeyError(f"unregistered code {code}")
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.hint = hint or CODES[code].remedy

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.message, self.hint)


def _rebuild(kind: "type[MedsslError]", code: str, message: str, hint: str) -> "MedsslError":
    return kind(code, message, hint=hint)


class UsageError(MedsslError):
    """A wrong option, argument or recipe."""

    exit_code = Exit.USAGE


class InputError(MedsslError):
    """One input cannot be trusted; others may be fine."""

    exit_code = Exit.PARTIAL


class MarkError(InputError):
    """One mark of a file of labels is at fault.

    Args:
        code: Stable code.
        message: What is wrong with it.
        hint: What to do about it.
        row: Where it stands in its file; a line of a table, or the number of an entry; 0 for none.
    """

    def __init__(self, code: str, message: str, *, hint: str = "", row: int = 0) -> None:
        super().__init__(code, message, hint=hint)
        self.row = row


class NothingUsableError(MedsslError):
    """There is nothing to work on."""

    exit_code = Exit.NOTHING


class GateError(MedsslError):
    """A check that must hold does not."""

    exit_code = Exit.GATE


class StorageError(MedsslError):
    """The disk or the network refused."""

    exit_code = Exit.IO


class InterruptedCleanlyError(MedsslError):
    """The work was stopped by a signal, its state is saved."""

    exit_code = Exit.INTERRUPTED
