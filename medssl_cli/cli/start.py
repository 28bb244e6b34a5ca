"""Entry point of the `medssl` script: signals have their exit codes before anything that takes time is imported."""

import signal

from medssl_cli.engine.signals import end_at_once


def main() -> None:
    """Run the command that was typed; a stop request ends it with 75 (130 for Ctrl-C) even while it starts."""
    signal.signal(signal.SIGTERM, end_at_once)
    signal.signal(signal.SIGINT, end_at_once)
    from medssl_cli.cli.app import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
