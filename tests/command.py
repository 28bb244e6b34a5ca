"""Commands in this process, as a user types them."""

from typer.testing import CliRunner, Result

from medssl_cli.cli.app import app


def medssl(*words: object) -> Result:
    """How `medssl WORDS` ended and what it said."""
    return CliRunner().invoke(app, [str(word) for word in words])
