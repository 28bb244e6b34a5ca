"""Where a training shows itself while it runs, beside its run folder, and its page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from medssl_cli.base.files import write_atomic
from medssl_cli.base.talk import Talk
from medssl_cli.engine.goal import Goal
from medssl_cli.engine.health import say_new
from medssl_cli.engine.metrics_log import Sink, read_metrics
from medssl_cli.engine.processes import Processes
from medssl_cli.engine.runs import manifest_of, read_document
from medssl_cli.recipe import Training, dump_recipe

Page = Callable[[Mapping[str, Any]], str]
"""What is known of a run to its page, HTML."""


@dataclass(frozen=True)
class Outlets:
    """Where a training shows itself beside its run folder.

    Args:
        page: Turns the run's facts into `page.html`.
        sinks: Get the numbers too.
    """

    page: Page | None = None
    sinks: Sequence[Sink] = ()


def run_facts(root: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a page shows of every training, as plain data."""
    splits = manifest_of(root)["splits"]
    entries, others = splits["train"], splits.get("unlabelled", [])
    return {
        "run": root.name,
        "recipe": recipe,
        "metrics": read_metrics(root),
        "environment": read_document(root / "environment.json"),
        "num_items": len(entries),
        "num_patients": len({entry["patient"] for entry in entries}),
        "num_unlabelled_items": len(others),
        "num_unlabelled_patients": len({entry["patient"] for entry in others}),
    }


class LivePage:
    """`RUN/page.html`, drawn again and again, and the alarms on it, which are told too.

    Args:
        root: Run folder.
        recipe: How it is trained.
        processes: The main one draws.
        talk: Told each alarm once.
        outlets: Make the page.
        begun_at: Share of the training that earlier calls have done.
    """

    def __init__(
        self,
        root: Path,
        recipe: Training,
        processes: Processes,
        talk: Talk,
        outlets: Outlets,
        *,
        begun_at: float,
    ) -> None:
        self._root, self._recipe, self._processes, self._talk = root, recipe, processes, talk
        self._draw, self._begun_at, self._begun, self._told = outlets.page, begun_at, monotonic(), set[str]()

    def show(self, goal: Goal, progress: float) -> None:
        """Say what is wrong, draw the page.

        Args:
            goal: Goal of the training.
            progress: Share of it that is done.
        """
        if not self._processes.is_main:
            return
        alarms = goal.alarms(progress)
        say_new(alarms, self._told, self._talk)
        if self._draw is None:
            return
        document = {
            **run_facts(self._root, dump_recipe(self._recipe)),
            "progress": progress,
            "time_left_s": self._time_left_s(progress),
            "alarms": [asdict(alarm) for alarm in alarms],
            "baselines": dict(goal.baselines),
            **goal.facts(),
        }
        write_atomic(self._root / "page.html", self._draw(document).encode())

    def _time_left_s(self, progress: float) -> float | None:
        """Time that the rest takes at the speed of this call; None before its first step and after the last."""
        done = progress - self._begun_at
        return (monotonic() - self._begun) * (1 - progress) / done if done > 0 and progress < 1 else None
