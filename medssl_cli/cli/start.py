"""Entry point of the `medssl` script: signals have their exit codes before anything that takes time is imported."""

import signal

from medssl_cli.base.signals import STOP_SIGNALS, end_at_once


def main() -> None:
    """Run the command that was typed; a stop request ends it with 75 (130 for Ctrl-C) even while it starts.

    When the command is over, its exit code is settled: a signal that comes while the interpreter shuts down, which
    gives signals back their defaults, must not turn it into 128 + n.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, end_at_once)
    try:
        from medssl_cli.cli.app import main as run

        signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
