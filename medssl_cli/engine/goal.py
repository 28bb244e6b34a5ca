"""What a training is for: all in which one kind of training differs from another."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import DataLoader

from medssl_cli.engine.health import Alarm
from medssl_cli.engine.state import TrainingState


class Goal(Protocol):
    """What is trained, looked at, when, and kept at the end; `trainer.Trainer` does everything else.

    All processes call every method; of what is the same in all of them, the main one writes.
    """

    @property
    def name(self) -> str:
        """Name for people: `fine-tuning`."""

    @property
    def network(self) -> nn.Module:
        """Trained, with all that its loss needs and a `backbone`."""

    @property
    def network_name(self) -> str:
        """What checkpoints call it."""

    @property
    def result(self) -> nn.Module:
        """The network, or the part of it that is kept and averaged."""

    @property
    def baselines(self) -> Mapping[str, float]:
        """Losses of predictors that have learnt nothing, by name."""

    @property
    def look_every(self) -> int:
        """Steps between looks; there is one after the last step too."""

    @property
    def looks_apart(self) -> bool:
        """Looks are logged by themselves, the first before the first step; or else with the numbers of their step."""

    @property
    def ends_with_steps(self) -> bool:
        """The recipe's steps end a training with a time limit too, whichever comes first."""

    def loader(self, first_step: int, last_step: int) -> DataLoader[Any]:
        """One batch of this process per micro-step, with the `item_ids` that it shows."""

    def epoch(self, step: int) -> int | None:
        """Number of the epoch that begins with this step; None within one, and where there are none."""

    def before_epoch(self, state: TrainingState, epoch: int) -> None:
        """Look back at what was shown."""

    def before_step(self, progress: float) -> None:
        """Called before the forward passes of a step."""

    def inputs(self, batch: Any, index: int) -> Any:
        """A batch on the device, as `loss` wants it, with the random numbers of its micro-step."""

    def loss(self, state: TrainingState, inputs: Any, progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What to differentiate, and what to show of it by name."""

    def after_backward(self, progress: float) -> None:
        """Called when the gradients of a step are complete, before the optimiser uses them."""

    def after_step(self, progress: float) -> None:
        """Called when the optimiser has used a step."""

    def look(self, state: TrainingState) -> dict[str, float]:
        """How good the network is at this step, in numbers for the log; it stays as it is."""

    def alarms(self, progress: float) -> Sequence[Alarm]:
        """What gives cause for concern."""

    def facts(self) -> dict[str, Any]:
        """Facts for the page, beside those of `run_facts`."""

    def evidence(self) -> Mapping[str, Tensor]:
        """What the network saw last, by name, for the facts of a broken step."""

    def values(self) -> dict[str, Any]:
        """What a checkpoint should keep of the goal itself, JSON."""

    def restore(self, values: Mapping[str, Any]) -> None:
        """Undo `values`."""

    def finish(self, state: TrainingState) -> None:
        """Write what the training was for, and how it went."""
