"""Projector and momentum teacher: what self-supervised methods put behind a backbone."""

import pytest
import torch
from torch import nn

from medssl_cli.nn.momentum import update_teacher
from medssl_cli.nn.projector import Projector


def test_teacher_approaches_a_resting_student_geometrically() -> None:
    student, teacher = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.ones_(student.weight)
    nn.init.zeros_(teacher.weight)
    seen = {}
    for update in range(1, 51):
        update_teacher(teacher, student, momentum=0.9)
        seen[update] = teacher.weight.item()

    for update in (1, 2, 5, 10, 22, 50):
        assert seen[update] == pytest.approx(1 - 0.9**update, abs=1e-6)
    assert seen[22] == pytest.approx(0.9, abs=0.002)  # 90 % of the gap is gone
    assert student.weight.item() == 1


def test_teacher_copies_buffers() -> None:
    student, teacher = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    student.running_mean += 3.0  # type: ignore[operator]

    update_teacher(teacher, student, momentum=0.5)

    assert torch.equal(teacher.running_mean, student.running_mean)  # type: ignore[arg-type]


def test_projector_ignores_what_all_rows_share() -> None:
    torch.manual_seed(0)
    projector = Projector(12, 8).double()
    embeddings = torch.randn(20, 12, dtype=torch.float64)

    shifted = projector(embeddings + torch.randn(12, dtype=torch.float64))

    torch.testing.assert_close(shifted, projector(embeddings))


def test_projector_has_no_state_but_three_linear_layers_and_the_same_output_in_evaluation() -> None:
    projector = Projector(12, 8)
    embeddings = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))

    names = [f"layer{layer}.0.{part}" for layer in (1, 2, 3) for part in ("weight", "bias")]
    assert list(projector.state_dict()) == names
    assert torch.equal(projector.eval()(embeddings), projector.train()(embeddings))
