"""Hard negatives of a detection: which places count, and that the rest of the loss stays what it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medssl_cli.data.boxes import IGNORED, NO_CLASS
from medssl_cli.tasks.detection.network import Answers, HardNegatives, detection_losses, hardest


def targets_of(*classes: float) -> Tensor:
    """Of one image in 2D, boxes of two voxels around the places that have a class."""
    edges = torch.ones(1, len(classes), 4)
    return torch.cat([edges, torch.tensor(classes).view(1, -1, 1)], dim=2)


SAID = targets_of(0.0, NO_CLASS, NO_CLASS, IGNORED, NO_CLASS, NO_CLASS, 1.0, NO_CLASS)
LOGITS = torch.tensor([0.0, 3, -1, 9, 2, 1, 8, -5])[None, :, None].repeat(1, 1, 2)


@pytest.mark.parametrize(
    ("per_box", "least", "expected"),
    [(1.0, 1, [1, 4]), (0.6, 1, [1, 4]), (0.1, 3, [1, 4, 5]), (9.0, 1, [1, 2, 4, 5, 7])],
)
def test_they_are_the_highest_scores_where_no_box_is(per_box: float, least: int, expected: list[int]) -> None:
    found = hardest(LOGITS, SAID, HardNegatives(per_box=per_box, least=least))

    assert found[0].nonzero()[:, 0].tolist() == expected


def test_each_image_has_its_own_number() -> None:
    empty = targets_of(*[NO_CLASS] * 8)

    found = hardest(LOGITS.repeat(2, 1, 1), torch.cat([SAID, empty]), HardNegatives(per_box=2.0, least=1))

    assert found.sum(dim=1).tolist() == [4, 1]


def test_the_loss_is_the_entropy_of_those_places_by_the_number_of_boxes() -> None:
    logits = LOGITS.clone().requires_grad_()
    answers = Answers(logits, torch.zeros(1, 8), torch.ones(1, 8, 4))

    parts = detection_losses(answers, SAID, "overlap", HardNegatives(per_box=1.0, least=1))

    truth = torch.zeros(8, 2)
    truth[0, 0] = truth[6, 1] = 1
    kept = [0, 1, 4, 6]
    expected = F.binary_cross_entropy_with_logits(LOGITS[0, kept], truth[kept], reduction="sum") / 2
    torch.testing.assert_close(parts["classes"], expected)
    plain = detection_losses(answers, SAID, "overlap")
    assert torch.equal(parts["boxes"], plain["boxes"])
    parts["classes"].backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().sum(dim=1).nonzero()[:, 0].tolist() == kept
