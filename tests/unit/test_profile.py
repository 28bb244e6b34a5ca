"""Where a step's time goes, with a clock that the test moves."""

import json
import re
from pathlib import Path

import pytest

from medssl_cli.engine import profile as profiles
from medssl_cli.engine import trainer
from medssl_cli.engine.profile import ADVICE, Profile


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(profiles, "time", clock)
    return clock


def step(profile: Profile, clock: Clock, **seconds: float) -> bool:
    for part, spent in seconds.items():
        with profile(part):
            clock.now += spent
    clock.now += 1  # outside of all parts
    return profile.end_step()


def test_parts_are_means_over_the_steps_after_the_first(clock: Clock, tmp_path: Path) -> None:
    profile = Profile(2)
    ends = [
        step(profile, clock, data=50, forward=50),
        step(profile, clock, data=5, forward=2),
        step(profile, clock, data=3, forward=2),
        step(profile, clock, data=1000),  # no longer measured
    ]

    text = profile.write(tmp_path / "profile.json")

    assert ends == [False, False, True, False]
    found = json.loads((tmp_path / "profile.json").read_text())
    assert found["steps"] == 2
    assert found["step_s"] == 7  # (5 + 2 + 1 + 3 + 2 + 1) / 2
    assert {part: entry["s"] for part, entry in found["parts"].items()} == {"data": 4, "forward": 2, "rest": 1}
    assert sum(entry["share"] for entry in found["parts"].values()) == pytest.approx(1)
    assert found["bottleneck"] == "data"
    assert ADVICE["data"] in text


@pytest.mark.parametrize("steps", [0, -1])
def test_nothing_is_measured_unless_asked_for(steps: int, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Profile(steps, device="cuda")
    monkeypatch.setattr(Profile, "_now", None)  # no clock is read and no device waited for

    assert not step(profile, clock, data=1)


def test_every_part_of_the_loop_has_advice() -> None:
    source = Path(str(trainer.__file__)).read_text(encoding="utf-8")
    parts = set(re.findall(r'profile\("(\w+)"\)', source))

    assert parts == set(ADVICE) - {"rest"}
