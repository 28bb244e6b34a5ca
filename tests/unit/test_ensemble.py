"""An ensemble answers with logits of the mean of its members' probabilities."""

import pytest
import torch
from torch import nn

from medssl_cli.engine.ensemble import Ensemble
from medssl_cli.tasks import TaskNetwork


class Fixed(nn.Module):
    """Answers the same, whatever it is asked."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.answer


def members(number: int = 3, *, scale: float = 3.0) -> list[nn.Module]:
    random = torch.Generator().manual_seed(0)
    return [Fixed(scale * torch.randn(2, 4, 3, 3, 3, generator=random)) for _ in range(number)]


def test_softmax_of_its_answer_is_the_mean_of_theirs() -> None:
    own = members()

    answer = Ensemble(own, "softmax")(torch.zeros(1))

    mean = torch.stack([member(torch.zeros(1)).softmax(dim=1) for member in own]).mean(dim=0)
    torch.testing.assert_close(answer.softmax(dim=1), mean)


def test_sigmoid_of_its_answer_is_the_mean_of_theirs() -> None:
    own = members()

    answer = Ensemble(own, "sigmoid")(torch.zeros(1))

    mean = torch.stack([member(torch.zeros(1)).sigmoid() for member in own]).mean(dim=0)
    torch.testing.assert_close(answer.sigmoid(), mean)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_certain_members_give_finite_answers(activation: str) -> None:
    sure = members(scale=1e4)

    answer = Ensemble(sure, activation)(torch.zeros(1))  # type: ignore[arg-type]

    assert bool(answer.isfinite().all())


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_equal_members_change_nothing(activation: str) -> None:
    (one,) = members(1)

    answer = Ensemble([one, one], activation)(torch.zeros(1))  # type: ignore[arg-type]

    probabilities = [getattr(each, activation)(*((1,) if activation == "softmax" else ())) for each in (answer, one())]
    torch.testing.assert_close(*probabilities)


def test_it_is_a_network_of_a_task_that_is_not_trained() -> None:
    ensemble = Ensemble(members(2), "softmax")

    assert isinstance(ensemble, TaskNetwork)
    assert ensemble.activation == "softmax"
    with pytest.raises(NotImplementedError):
        ensemble.loss(torch.zeros(1), torch.zeros(1))
