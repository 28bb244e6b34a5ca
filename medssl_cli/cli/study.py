"""`medssl study`: questions to one's own data."""

import typer

from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.study_labels import labels
from medssl_cli.cli.study_probes import probes

app = typer.Typer(help="Compare pre-trainings on your own data.", no_args_is_help=True)
app.command()(guarded(labels))
app.command()(guarded(probes))
