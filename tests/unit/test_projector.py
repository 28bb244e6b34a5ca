"""Projector and momentum teacher: what self-supervised methods put behind a backbone."""

import math

import pytest
import torch
from torch import nn

from medssl_cli.methods.voco.projector import Projector
from medssl_cli.nn.distributed import BatchNorm
from medssl_cli.nn.momentum import cosine_momentum, random_like, update_teacher


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


def test_a_random_twin_has_the_same_entries_at_other_places() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20))

    twin = random_like(layers)

    for parameter, other in zip(layers.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter.flatten().sort().values, other.flatten().sort().values)
    assert not torch.equal(layers[0].weight, twin[0].weight)
    assert torch.equal(twin[1].weight, torch.ones(20))
    correlation = torch.corrcoef(torch.stack([layers[0].weight.flatten(), twin[0].weight.flatten()]))[0, 1]
    assert abs(correlation.item()) < 5 / math.sqrt(600)


def test_momentum_rises_along_half_a_cosine() -> None:
    seen = [cosine_momentum(progress, first=0.9, last=0.996) for progress in (0, 0.25, 0.5, 1)]

    assert seen == pytest.approx([0.9, 0.996 - 0.096 * (1 + math.sqrt(0.5)) / 2, 0.948, 0.996])


def test_normalisation_over_processes_is_the_plain_one_in_a_single_process() -> None:
    torch.manual_seed(0)
    plain = Projector(12, 8).double()
    torch.manual_seed(0)
    synced = Projector(12, 8, sync_norm=True).double()
    embeddings = torch.randn(20, 12, dtype=torch.float64)

    assert isinstance(synced.layer1[1], BatchNorm)
    assert list(synced.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(synced(embeddings), plain(embeddings))


def test_normalisation_per_row_would_keep_what_all_rows_share() -> None:
    """Why it is over rows: with a component that all rows have, per-row normalisation leaves them nearly parallel."""
    torch.manual_seed(0)
    embeddings = torch.randn(20, 64, dtype=torch.float64) * 0.1 + torch.randn(64, dtype=torch.float64)
    over_rows = Projector(64, 32).double()
    per_row = Projector(64, 32).double()
    per_row.load_state_dict(over_rows.state_dict())
    for layer in (per_row.layer1, per_row.layer2):
        layer[1] = nn.LayerNorm(32, elementwise_affine=False).double()

    def mean_cosine(projector: nn.Module) -> float:
        unit = nn.functional.normalize(projector(embeddings).detach(), dim=1)
        return float(((unit @ unit.T).sum() - 20) / (20 * 19))

    assert mean_cosine(per_row) > 0.95
    assert mean_cosine(over_rows) < 0.6
