"""The `medssl` command. Each sub-command is a thin shell over one engine function; heavy imports wait inside it."""

from collections.abc import Callable
from typing import Annotated

import typer

from medssl_cli.cli import cache as cache_commands
from medssl_cli.cli import key as key_commands
from medssl_cli.cli import models as models_commands
from medssl_cli.cli import recipes as recipes_commands
from medssl_cli.cli import study as study_commands
from medssl_cli.cli import weights as weights_commands
from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.demo import demo
from medssl_cli.cli.doctor import doctor
from medssl_cli.cli.evaluate import evaluate
from medssl_cli.cli.export import export
from medssl_cli.cli.finetune import finetune
from medssl_cli.cli.infer import infer
from medssl_cli.cli.ingest import ingest
from medssl_cli.cli.listen import listen
from medssl_cli.cli.plan import plan
from medssl_cli.cli.pretrain import pretrain

app = typer.Typer(
    name="medssl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Hospital images to a deployed model on one road: ingest, pretrain, finetune, evaluate, export, infer.",
    epilog="Start with `medssl demo`, or `medssl ingest ./dicoms`.",
)

ROAD = "The road"
HELPERS = "Helpers"
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    ROAD: (ingest, plan, pretrain, finetune, evaluate, export, infer),
    HELPERS: (listen, demo, doctor),
}
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(guarded(command))
app.add_typer(recipes_commands.app, name="recipes", rich_help_panel=HELPERS)
app.add_typer(models_commands.app, name="models", rich_help_panel=HELPERS)
app.add_typer(weights_commands.app, name="weights", rich_help_panel=HELPERS)
app.add_typer(cache_commands.app, name="cache", rich_help_panel=HELPERS)
app.add_typer(study_commands.app, name="study", rich_help_panel=HELPERS)
app.add_typer(key_commands.app, name="key", rich_help_panel=HELPERS)


def _print_version(value: bool) -> None:
    if value:
        from medssl_cli import __version__

        typer.echo(f"medssl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hospital images to a deployed model on one road."""


def main() -> None:
    """Entry point of the `medssl` script."""
    app()
