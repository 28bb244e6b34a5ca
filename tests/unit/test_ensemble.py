"""An ensemble answers with logits of the mean of its members' probabilities."""

from pathlib import Path

import pytest
import torch
from torch import nn

from medssl_cli.base.errors import UsageError
from medssl_cli.engine.ensemble import Ensemble, ensemble_of, mean_head, mean_point
from medssl_cli.engine.finetuned import FineTunedRun
from medssl_cli.heads import FindingsHead, OperatingPoint
from medssl_cli.recipe import TaskRecipe, find_recipe, load_recipe
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


def test_operating_points_are_the_means_of_those_that_were_chosen_on_unseen_images() -> None:
    first = OperatingPoint(threshold=0.2, rule="youden", sensitivity=0.5, specificity=1.0, num_patients=3)
    second = OperatingPoint(threshold=0.4, rule="youden", sensitivity=1.0, specificity=0.5, num_patients=5)
    untold = OperatingPoint(threshold=0.5, rule="fixed")

    mean = mean_point([first, second])
    assert (mean.threshold, mean.rule, mean.num_patients) == (pytest.approx(0.3), "youden", 8)
    assert (mean.sensitivity, mean.specificity, mean.false_per_image) == (0.75, 0.75, None)
    assert mean_point([first, untold]).rule == "fixed"
    heads = [
        FindingsHead(names=("a",), label_classes={"a": ("a",)}, operating_points={"a": point})
        for point in (first, second)
    ]
    assert mean_head(heads) == heads[0].model_copy(update={"operating_points": {"a": mean}})


def test_boxes_have_no_mean() -> None:
    recipe = load_recipe(find_recipe("heart-seg"))
    assert isinstance(recipe, TaskRecipe)
    boxes = FineTunedRun(Path("fold0"), recipe, {}, nn.Identity(), {"arguments": {}, "splits": {}, "sha256": ""}, "")

    with pytest.raises(UsageError, match="E_TASK_EXPORT"):
        ensemble_of(Path("folds"), [boxes])
