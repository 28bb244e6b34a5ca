"""What to do about an error that brings no hint of its own: no error is printed without one."""

from typing import Final

from medssl_cli.errors import Exit, MedsslError

BY_CODE: Final[dict[str, str]] = {
    "E_NOT_FOUND": "check the spelling, and which folder you are in",
    "E_RECIPE_NOT_FOUND": "check the spelling; medssl recipes ls lists those that come with medssl",
    "E_RECIPE": "medssl recipes show NAME prints a recipe that works; medssl recipes check tries yours",
    "E_CANVAS": "choose sizes that fit with --set, and try them with medssl recipes check",
    "E_DEVICE": "choose from: auto, cpu, cuda, cuda:N; medssl doctor says what this machine has",
    "E_OUTPUT_EXISTS": "choose another name, or remove it first",
    "E_RUN_UNFINISHED": "run the command that made it again until it is finished",
    "E_NOTHING_USABLE": "name files or folders that hold DICOM series or NIfTI files",
    "E_MODEL_CORRUPT": "copy the file again from where it came, or export it again",
    "E_CHECKPOINT_CORRUPT": "remove the run folder and train again",
    "E_GATE_DICE": "the page of the evaluation shows the worst images",
}
BY_EXIT: Final[dict[Exit, str]] = {
    Exit.USAGE: "medssl COMMAND --help says what it takes",
    Exit.PARTIAL: "the report says what was refused, and why",
    Exit.NOTHING: "medssl cache ls shows what there is",
    Exit.GATE: "nothing that failed the check was kept; medssl doctor looks for causes",
    Exit.IO: "free space or fix permissions, then run the same command again",
    Exit.INTERRUPTED: "run the same command again to go on",
}


def hint_of(error: MedsslError) -> str:
    """The error's own hint, or the one for its code, or the one for its exit code."""
    return error.hint or BY_CODE.get(error.code) or BY_EXIT.get(error.exit_code) or "medssl doctor looks for causes"
