"""Losses of SimCLR, MoCo, BYOL and DINO by tensors against their equations written out number by number."""

import pytest
import torch
from torch import Tensor

from medssl_cli.methods.byol import prediction_loss
from medssl_cli.methods.dino import next_centre, self_distillation_loss
from medssl_cli.methods.moco import batch_contrast, queue_contrast
from medssl_cli.nn.contrast import view_contrast
from tests.parity import contrast_literal as literal

SEEDS = range(3)
PATIENTS = [3, 1, 3, 0, 1]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("patients", [None, PATIENTS])
def test_contrast_of_views(seed: int, patients: list[int] | None) -> None:
    first, second = random(seed, 5, 4), random(seed + 10, 5, 4)
    known = None if patients is None else torch.tensor(patients)

    expected = literal.view_contrast(
        first.tolist(), second.tolist(), temperature=0.3, patients=patients or list(range(5))
    )

    found = view_contrast(first, second, temperature=0.3, patients=known)
    assert found.loss.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_contrast_with_a_queue(seed: int) -> None:
    queries, keys, queue = random(seed, 5, 4), random(seed + 10, 5, 4), random(seed + 20, 7, 4)

    expected = literal.queue_contrast(queries.tolist(), keys.tolist(), queue.tolist(), temperature=0.2)

    found = queue_contrast(queries, keys, queue / queue.norm(dim=1, keepdim=True), temperature=0.2)
    assert found.loss.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("patients", [None, PATIENTS])
def test_contrast_within_the_batch(seed: int, patients: list[int] | None) -> None:
    queries, keys = random(seed, 5, 4), random(seed + 10, 5, 4)
    known = None if patients is None else torch.tensor(patients)

    expected = literal.batch_contrast(
        queries.tolist(), keys.tolist(), temperature=0.4, patients=patients or list(range(5))
    )

    found = batch_contrast(queries, keys, temperature=0.4, patients=known)
    assert found.loss.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_prediction(seed: int) -> None:
    first, second, one, other = (random(seed + 10 * number, 5, 4) for number in range(4))

    expected = literal.prediction_loss((first.tolist(), second.tolist()), (one.tolist(), other.tolist()))

    assert prediction_loss((first, second), (one, other)).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_views", [2, 4])
def test_self_distillation(seed: int, num_views: int) -> None:
    students = [random(seed + 10 * view, 3, 6) for view in range(num_views)]
    teachers = [random(seed + 100 * (view + 1), 3, 6) for view in range(2)]
    centre = random(seed + 1000, 6)
    settings = {"temperature": 0.3, "teacher_temperature": 0.2}

    expected = literal.self_distillation(
        [view.tolist() for view in students], [view.tolist() for view in teachers], centre.tolist(), **settings
    )
    moved = literal.next_centre(centre.tolist(), [view.tolist() for view in teachers], momentum=0.7)

    found = self_distillation_loss(students, teachers, centre, **settings)
    assert found.item() == pytest.approx(expected, rel=1e-11)
    assert next_centre(centre, teachers, momentum=0.7).tolist() == pytest.approx(moved, rel=1e-11)
