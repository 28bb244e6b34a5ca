"""The benchmark's restatement of the released step computes what our method does, for the same crops and weights."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medssl_cli.data.augmentation import Draws
from medssl_cli.data.views import make_views
from medssl_cli.methods.voco import Method, Options
from medssl_cli.nn.backbones import Backbone
from tests.bench.published_voco import (
    V1,
    V2,
    PublishedStep,
    overlaps,
    projector,
    regulariser,
    similarities,
    v1_terms,
    v2_term,
)

CROP = (4, 4, 6)


class Pooled(Backbone):
    """One convolution; remembers what it was asked to embed."""

    def __init__(self) -> None:
        super().__init__(channels=(5,), strides=(1,), embedding_levels=(0,))
        self.conv = nn.Conv3d(1, 5, 3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        self.seen.append(x)
        return [torch.tanh(self.conv(x))]


def test_the_loss_is_ours_for_the_same_crops_and_weights() -> None:
    torch.manual_seed(0)
    options = Options(
        num_random_crops=2, projector_dim=8, dropout_prob=0.0, flip_prob=0.0, rot90_prob=0.0, shift_prob=0.0
    )
    ours = Method(Pooled(), options, CROP)
    canvases = torch.rand(3, 1, *ours.views().size)
    released = PublishedStep(ours.backbone, V2, cell=CROP, crop_size=CROP, has_dropout=False)
    released.student, released.teacher = nets = (projector_like(ours.student), projector_like(ours.teacher))
    assert all(len(list(net.parameters())) == 6 for net in nets)
    ours.before_step(0.0)

    losses = ours.loss(make_views(ours.views(), canvases, Draws(torch.Generator().manual_seed(1))), 0.0)
    crops = ours.backbone.seen[-1]
    labels = []
    for index, canvas in enumerate(canvases[:, 0]):
        firsts = crops[2 * index : 2 * index + 2, 0, 0, 0, 0]
        starts = [(canvas == first).nonzero()[0].tolist() for first in firsts]
        labels.append(np.stack([overlaps((x, y), 3, CROP[:2]) for x, y, _ in starts]))
    terms = released.losses(crops, labels)

    assert float(torch.stack(terms).sum().detach()) == pytest.approx(float(losses.total.detach()), abs=1e-6)


def projector_like(given: nn.Module | None) -> nn.Sequential:
    assert given is not None
    weights = [parameter.detach().clone() for parameter in given.parameters()]
    made = projector(weights[0].shape[1], weights[0].shape[0])
    for parameter, value in zip(made.parameters(), weights, strict=True):
        parameter.data = value
    return made


def test_terms_are_those_of_the_derived_vectors() -> None:
    bases = torch.eye(4, dtype=torch.float64)
    queries = torch.tensor([[1, 1, 1, 1], [3, 4, 0, 0], [-1, 2, 2, 0]], dtype=torch.float64)
    labels = torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]], dtype=torch.float64)
    logits = similarities(queries, bases)

    assert logits.flatten().tolist() == pytest.approx([*[0.5] * 4, 0.6, 0.8, 0, 0, 0, 2 / 3, 2 / 3, 0])
    # Costs: 4 x 0.25 x -ln 0.75; 0.5 (-ln 0.9 - ln 0.7); 2 x 0.5 x -ln (5 / 6); over labels that sum to 3.
    by_hand = (-np.log(0.75) - 0.5 * (np.log(0.9) + np.log(0.7)) - np.log(5 / 6)) / 3
    assert float(v1_terms(logits, labels)[0]) == pytest.approx(by_hand, abs=2e-6)
    assert float(v1_terms(logits, labels)[1]) == 0
    assert float(v2_term(logits, labels)) == pytest.approx(by_hand, abs=3e-6)
    # Cosines of the pairs: 1/2, 0 and sqrt(3)/2; squares 1/4, 0, 3/4.
    fan = torch.tensor([[1, 0], [0.5, 0.75**0.5], [0, 1]], dtype=torch.float64)
    assert float(regulariser(fan)) == pytest.approx(1 / 3)


def test_labels_are_areas() -> None:
    # (16, 48) on cells of 64: 48/64 and 16/64 along x, 16/64 and 48/64 along y.
    assert overlaps((16, 48), 3, (64, 64)).tolist() == [0.1875, 0.5625, 0, 0.0625, 0.1875, 0, 0, 0, 0]


@pytest.mark.parametrize("form", [V1, V2], ids=["v1", "v2"])
def test_a_step_moves_weights_and_teachers(form: object) -> None:
    torch.manual_seed(0)
    cell = (6, 6, 9) if form is V1 else CROP
    released = PublishedStep(Pooled(), form, cell=cell, crop_size=CROP)
    before = [
        parameter.detach().clone() for parameter in [*released.backbone.parameters(), *released.teacher.parameters()]
    ]

    terms = released.step(torch.rand(2, 1, *released.canvas_size), 0)

    after = [*released.backbone.parameters(), *released.teacher.parameters()]
    assert len(terms) == 3
    assert all(np.isfinite(terms))
    assert all((old != new).any() for old, new in zip(before, after, strict=True))
    assert released.backbone.seen[0].shape == (2 * (2 + form.grid**2), 1, *CROP)
