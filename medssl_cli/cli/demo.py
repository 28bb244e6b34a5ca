"""`medssl demo`."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.options import JsonOption, QuietOption
from medssl_cli.cli.terminal import Terminal, result, table


def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes.")] = Path("medssl-demo"),
    quick: Annotated[bool, typer.Option(help="A few steps only: shows that everything works, nothing else.")] = False,
    fresh: Annotated[bool, typer.Option(help="Remove what an earlier demo left in the folder.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run the whole road on phantoms that medssl draws itself, with the commands that you would type.

    Writes real DICOM series, ingests them, pre-trains, fine-tunes, evaluates, exports and infers, and ends with one
    HTML page. Nothing is downloaded. Phantoms are not evidence.

    Example:

        medssl demo
    """
    from medssl_cli.demo.road import commands_for_own_data
    from medssl_cli.demo.run import run_demo

    terminal = Terminal(quiet=quiet)
    terminal.note(f"folder {folder}")
    done = run_demo(folder, quick=quick, fresh=fresh, progress=terminal)
    if json:
        result(done.to_document(), as_json=True, text="")
        return
    table("Dice on phantoms that no training has seen", ("structure", "from scratch", "pre-trained"), done.table())
    typer.echo("Phantoms are not evidence: this shows that the road works on this machine, nothing more.\n")
    typer.echo("The commands that ran (in " + str(folder) + "):")
    for step in done.steps:
        typer.echo(f"  {step.step.command}   # {step.seconds:.0f} s")
    typer.echo("\nThe same on your own scans:")
    for command in commands_for_own_data():
        typer.echo(f"  {command}")
    typer.echo(f"\npage: {done.page}")
