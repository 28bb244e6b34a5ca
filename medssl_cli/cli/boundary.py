"""The one place that turns failures into messages and exit codes."""

import functools
import os
import resource
import sys
import traceback
from collections.abc import Callable
from typing import Final, ParamSpec

import typer

from medssl_cli.base.errors import Exit, MedsslError, UsageError
from medssl_cli.base.files import private_files
from medssl_cli.base.memory import lacks_memory, out_of_memory

P = ParamSpec("P")
TRAINING_PACKAGES: Final = frozenset(
    ("einops", "lightning_fabric", "matplotlib", "monai", "onnx", "onnxscript", "safetensors", "tensorboard", "torch")
)
"""Modules that only training, export and studies import; docs/deploy/requirements-infer.txt leaves them out."""


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command: an error the user can act on is printed as such, anything else is a bug and says so."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Blosc2 lets this variable overrule its caller, and several threads do not give the same bytes every time.
        os.environ["BLOSC_NTHREADS"] = "1"
        try:
            with private_files():
                command(*args, **kwargs)
        except MedsslError as error:
            report(error)
            raise typer.Exit(int(error.exit_code)) from None
        except KeyboardInterrupt:
            typer.echo("\ninterrupted; run the same command again to go on", err=True)
            raise typer.Exit(int(Exit.CTRL_C)) from None
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(int(Exit.OK)) from None
        except OSError as error:
            report_os_error(error)
            raise typer.Exit(int(Exit.IO)) from None
        except (typer.Exit, typer.Abort):
            raise
        except ModuleNotFoundError as error:
            report_missing(error)
            raise typer.Exit(int(Exit.USAGE if is_of_training(error) else Exit.BUG)) from None
        except Exception as error:  # noqa: BLE001 - the boundary
            if lacks_memory(error):
                report(refusal := out_of_memory())
                raise typer.Exit(int(refusal.exit_code)) from None
            report_bug(error)
            raise typer.Exit(int(Exit.BUG)) from None

    return run


def report(error: MedsslError) -> None:
    """`error: CODE: what` and `hint: what to do` on stderr."""
    typer.echo(f"error: {error.code}: {_plain(error.message)}", err=True)
    typer.echo(f"\nhint: {_plain(error.hint)}", err=True)


def _plain(text: str) -> str:
    """A text whose control characters, which a terminal would obey, are written out."""
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


def is_of_training(error: ModuleNotFoundError) -> bool:
    """Whether what is missing is a package that an installation for inference goes without."""
    return (error.name or "").partition(".")[0] in TRAINING_PACKAGES


def report_missing(error: ModuleNotFoundError) -> None:
    """A package of training that is not installed is no bug; any other module is."""
    if not is_of_training(error):
        report_bug(error)
        return
    hint = "an installation for inference leaves it out; pip install . installs all that medssl needs"
    report(UsageError("E_EXTRA_MISSING", f"this command needs {error.name}, which is not installed", hint=hint))


def report_os_error(error: OSError) -> None:
    """The operating system refused; its text without the path, which may name a patient."""
    typer.echo(f"error: E_IO: {error.strerror or type(error).__name__}", err=True)
    typer.echo("\nhint: free space or fix permissions, then run the same command again", err=True)
    if os.environ.get("MEDSSL_DEBUG"):
        traceback.print_exc()


def report_bug(error: Exception) -> None:
    """Where a bug happened, without the exception's text: it may quote a patient's data."""
    if os.environ.get("MEDSSL_DEBUG"):
        traceback.print_exc()
        return
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    for frame in frames:
        typer.echo(f"  {os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}", err=True)  # noqa: PTH119
    typer.echo(f"error: this is a bug in medssl: {type(error).__name__}", err=True)
    typer.echo("\nhint: MEDSSL_DEBUG=1 shows the whole message (it may quote patient data); please report it", err=True)
