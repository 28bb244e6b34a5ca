"""Where the time of a training step goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from medssl_cli.base.files import write_json

ADVICE: Final = {
    "data": "raise data.num_workers, or put the cache on a faster disk",
    "to_device": "copies take longest: train with fewer, larger steps",
    "epoch": "the clustering between epochs takes longest: fewer prototypes, or fewer epochs",
    "forward": "the network takes longest, as it should; precision bf16 or a smaller backbone are faster",
    "backward": "the network takes longest, as it should; precision bf16 or a smaller backbone are faster",
    "optimiser": "the optimiser takes longest: a larger batch, or accumulate, calls it less often",
    "log": "raise log_every and checkpoint_every",
    "rest": "most time is spent outside of the parts that are timed",
}


class Profile:
    """Adds up the time of named parts over some steps; the first step is left out, since it starts everything.

    While it measures, it waits for the device at both ends of each part, so steps may take longer than without.

    Args:
        num_steps: Steps to measure; below 1 nothing is measured and nothing waits.
        device: Device of the training.
    """

    def __init__(self, num_steps: int = 0, *, device: str = "cpu") -> None:
        self._left = num_steps + 1 if num_steps > 0 else 0
        self._device = torch.device(device)
        self._seconds: dict[str, float] = defaultdict(float)
        self._steps: list[float] = []
        self._started: float | None = None

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside to a part of the step."""
        if not self._left:
            yield
            return
        begun = self._now()
        yield
        self._seconds[part] += self._now() - begun

    def end_step(self) -> bool:
        """A step is over and the next begins; returns whether it was the last to be measured."""
        if not self._left:
            return False
        now = self._now()
        if self._started is None:
            self._seconds.clear()
        else:
            self._steps.append(now - self._started)
        self._started = now
        self._left -= 1
        return self._left == 0

    def document(self) -> dict[str, Any]:
        """Seconds per step and share of each part, and which is largest, once a step was measured."""
        total = sum(self._steps)
        seconds = dict(self._seconds) | {"rest": max(0.0, total - sum(self._seconds.values()))}
        bottleneck = max(seconds, key=lambda part: seconds[part])
        return {
            "steps": len(self._steps),
            "step_s": total / len(self._steps),
            "parts": {part: {"s": spent / len(self._steps), "share": spent / total} for part, spent in seconds.items()},
            "bottleneck": bottleneck,
            "advice": ADVICE.get(bottleneck, ""),
        }

    def write(self, path: Path) -> str:
        """Write the document.

        Returns:
            It for people.

        Raises:
            StorageError: `E_IO`.
        """
        found = self.document()
        write_json(path, found)
        parts = sorted(found["parts"].items(), key=lambda entry: -entry[1]["s"])
        lines = [f"  {name:<10}{1000 * part['s']:>9.1f} ms {part['share']:>6.1%}" for name, part in parts]
        head = f"{1000 * found['step_s']:.1f} ms per step, mean of {found['steps']}:"
        return "\n".join([head, *lines, f"bottleneck: {found['bottleneck']}; {found['advice']}"])

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
