"""What a training has cost: seconds of a processor, over all calls that went on with it, in `RUN/cost.json`.

On a CPU they are seconds of its cores, which do not depend on what else the machine does; elsewhere of the clock, as
nobody shares the device. What a killed call did after its last checkpoint is not in it, as it is not in the weights.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from medssl_cli.base.errors import MedsslError
from medssl_cli.base.files import write_json
from medssl_cli.base.strict import NonNegativeFloat, Strict
from medssl_cli.engine.runs import read_document

COST: Final = "cost.json"
Unit = Literal["CPU", "GPU"]


class Cost(Strict):
    """`cost.json`.

    Args:
        unit: Name of what the seconds are.
        seconds: Seconds of all processes together.
    """

    unit: Unit
    seconds: NonNegativeFloat


def cost_of(root: Path) -> Cost | None:
    """What a run has cost; None if it does not say, as those of earlier versions."""
    try:
        return Cost.model_validate(read_document(root / COST))
    except (MedsslError, ValidationError):
        return None


@dataclass
class CostMeter:
    """Seconds since it was made, added to those of earlier calls.

    Args:
        root: Run folder.
        device: Device of the training.
        num_processes: How many do the same work.
        is_going_on: Whether earlier calls have done part of the training.
    """

    root: Path
    device: str
    num_processes: int = 1
    is_going_on: bool = False

    def __post_init__(self) -> None:
        self._unit: Unit = "CPU" if self.device.startswith("cpu") else "GPU"
        self._clock: Callable[[], float] = time.process_time if self._unit == "CPU" else time.monotonic
        before = cost_of(self.root) if self.is_going_on else None
        self._before = before.seconds if before is not None and before.unit == self._unit else 0.0
        self._begun = self._clock()

    def write(self) -> None:
        """Write down what it has cost so far."""
        seconds = self._before + (self._clock() - self._begun) * self.num_processes
        document: dict[str, Any] = Cost(unit=self._unit, seconds=round(seconds, 3)).model_dump(mode="json")
        write_json(self.root / COST, document)
