"""The loss and the options of a classification: weights, unknown answers, classes that exclude each other."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medssl_cli.nn.backbones import Backbone
from medssl_cli.tasks.classification.decode import probabilities
from medssl_cli.tasks.classification.network import ClassificationNetwork as Task
from medssl_cli.tasks.classification.network import ClassificationOptions as Options

NAN = math.nan


class Means(Backbone):
    """The embedding of an image is its mean."""

    def __init__(self) -> None:
        super().__init__(channels=(1,), strides=(1,), embedding_levels=(0,), spatial_dims=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


def task(**options: object) -> Task:
    return Task(Means(), Options.model_validate({"label_set": "toy", "classes": ["a", "b"], **options}))


def test_a_list_of_findings_makes_each_a_class_of_its_own() -> None:
    options = Options.model_validate({"label_set": "toy", "classes": ["Mass", "Edema"]})

    assert options.classes == {"Mass": ("Mass",), "Edema": ("Edema",)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": []},
        {"classes": {}},
        {"classes": {"a": []}},
        {"classes": {"a": {"b": "any"}}},
        {"classes": {"a": "any"}, "is_exclusive": True},
        {"classes": {"a\n": "any"}},
        {"class_weights": "some"},
    ],
)
def test_options_that_cannot_be_told_apart_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Options.model_validate({"label_set": "toy", "classes": ["a"], **wrong})


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (3, 1, 4, 4, 4)])
def test_images_are_two_or_three_dimensional(shape: tuple[int, ...]) -> None:
    assert task()(torch.randn(shape)).shape == (3, 2)


def test_the_loss_of_a_network_that_knows_nothing_is_log_two() -> None:
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    assert task(class_weights="none").loss(torch.zeros(2, 2), targets).total.item() == pytest.approx(math.log(2))


def test_unknown_answers_say_nothing() -> None:
    own = task()
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    with_gap = own.loss(logits, torch.tensor([[1.0, NAN], [0.0, NAN]])).total
    with_gap.backward()

    alone = nn.functional.binary_cross_entropy_with_logits(logits[:, 0].detach(), torch.tensor([1.0, 0.0]))
    assert with_gap.item() == pytest.approx(alone.item())
    assert logits.grad is not None
    assert logits.grad[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize("is_exclusive", [False, True])
def test_a_batch_of_which_nothing_is_known_costs_nothing(is_exclusive: bool) -> None:
    logits = torch.randn(2, 2, requires_grad=True)

    loss = task(is_exclusive=is_exclusive).loss(logits, torch.full((2, 2), NAN)).total
    loss.backward()

    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_balanced_weights_make_a_rare_finding_weigh_as_much_as_its_absence() -> None:
    own = task()
    targets = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, NAN], [0.0, 0.0]])

    own.balance(targets)

    # a: one present, three absent; b: two present, one absent.
    assert own.positive_weights.tolist() == [3, 0.5]
    logits = torch.zeros(4, 2, requires_grad=True)
    own.loss(logits, targets).total.backward()
    assert logits.grad is not None
    # No pull on the bias: both sides weigh the same.
    assert logits.grad.sum(dim=0).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_a_class_without_one_of_its_kinds_keeps_its_weight() -> None:
    own = task()

    own.balance(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    assert own.positive_weights.tolist() == [1, 1]


def test_weights_are_left_alone_where_the_options_say_so() -> None:
    own = task(class_weights="none")

    own.balance(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))

    assert own.positive_weights.tolist() == [1, 1]
    assert own.class_weights.tolist() == [1, 1]


def test_classes_that_exclude_each_other_have_one_cross_entropy_weighed_by_class() -> None:
    own = task(is_exclusive=True)
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [NAN, NAN]])
    own.balance(targets)
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))

    known, classes = logits[:4], torch.tensor([0, 1, 1, 1])
    weights = torch.tensor([1.0, 1 / 3])  # each class counts as much in all
    expected = nn.functional.cross_entropy(known, classes, weight=weights)
    assert own.loss(logits, targets).total.item() == pytest.approx(expected.item())
    assert probabilities(logits.numpy(), is_exclusive=True).sum(axis=1).tolist() == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("is_exclusive", [False, True])
def test_probabilities_are_those_of_the_loss_however_large_the_logits(is_exclusive: bool) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 30, 1000])

    found = probabilities(logits.numpy(), is_exclusive=is_exclusive)

    expected = logits.softmax(dim=1) if is_exclusive else logits.sigmoid()
    np.testing.assert_allclose(found, expected.double().numpy(), rtol=1e-6, atol=1e-30)


def test_weights_ride_in_the_state() -> None:
    own, other = task(), task()
    own.balance(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))

    other.load_state_dict(own.state_dict())

    assert other.positive_weights.tolist() == own.positive_weights.tolist() == [2, 2]
