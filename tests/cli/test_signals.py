"""A stop request has its own exit code from the first moment to the last: 75, and 130 for Ctrl-C, never 128 + n."""

import signal
import subprocess
import sys
import textwrap

import pytest

from tests.environment import ENVIRONMENT

SLOW_START = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            print("starting", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from medssl_cli.cli.start import main
main()
"""
SLOW_END = """
import sys, time
class Last:
    def __del__(self):
        print("ending", flush=True)
        time.sleep(1)
from medssl_cli.cli.start import main
last = Last()
main()
"""
STUBBORN = """
import time
from medssl_cli.base.signals import stop_on_signals
with stop_on_signals() as stop:
    print("working", flush=True)
    while not stop.is_set:
        time.sleep(0.01)
    print("stopping", flush=True)
    time.sleep(60)
"""


def started(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_before_start_up_is_over(number: int, code: int) -> None:
    with started(SLOW_START, "--help") as process:
        assert said(process) == "starting"

        process.send_signal(number)

        assert process.wait(30) == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_a_second_one_ends_at_once(number: int, code: int) -> None:
    with started(STUBBORN) as process:
        assert said(process) == "working"
        process.send_signal(signal.SIGTERM)
        assert said(process) == "stopping"

        process.send_signal(number)

        assert process.wait(30) == code


def test_a_command_that_has_nothing_to_save_ends_at_once() -> None:
    with started(SLOW_START.replace('"typer"', '"yaml"'), "recipes", "check", "heart-seg") as process:
        assert said(process) == "starting"

        process.send_signal(signal.SIGTERM)

        assert process.wait(30) == 75


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_after_the_command_its_exit_code_stays(number: int) -> None:
    """Python gives signals back their defaults before it takes modules apart, which takes half a second."""
    with started(SLOW_END, "models", "show", "no-such-model") as process:
        assert said(process) == "ending"

        process.send_signal(number)

        assert process.wait(30) == 2
