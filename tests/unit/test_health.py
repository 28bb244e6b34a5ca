"""Figures of the embeddings' health, against cases whose answer is known, and the alarms that they raise."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from medssl_cli.engine.health import Alarm, alarms, collapse_alarms, figures, learning_alarms, say_new, write_matrix
from medssl_cli.engine.probe import Question, questions
from medssl_cli.nn.health import (
    balanced_accuracy,
    embedding_std,
    linear_accuracy,
    mean_cosine,
    neighbour_accuracy,
    rank_me,
)
from tests.listener import Listener


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_spread_directions_have_the_reference_standard_deviation() -> None:
    assert embedding_std(normal(4000, 16)) == pytest.approx(16**-0.5, rel=0.01)


def test_equal_embeddings_have_none_whatever_their_length() -> None:
    direction = normal(1, 16)

    assert embedding_std(direction * torch.arange(1.0, 9.0)[:, None]) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("rank", [1, 2, 5, 8])
def test_the_effective_rank_counts_equally_used_directions(rank: int) -> None:
    # Singular values: `rank` ones, so every share is 1 / rank and the entropy log(rank).
    embeddings = torch.zeros(40, 8)
    embeddings[:rank, :rank] = torch.eye(rank)

    assert rank_me(embeddings) == pytest.approx(rank, rel=1e-4)


def test_an_unevenly_used_second_direction_counts_less() -> None:
    # Shares 0.9 and 0.1: exp(-(0.9 log 0.9 + 0.1 log 0.1)) = 1.384.
    embeddings = torch.zeros(10, 4)
    embeddings[0, 0], embeddings[1, 1] = 0.9, 0.1

    assert rank_me(embeddings) == pytest.approx(math.exp(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1))), rel=1e-4)


def test_balanced_accuracy_weighs_classes_alike() -> None:
    classes = torch.tensor([0] * 9 + [1])

    assert balanced_accuracy(torch.zeros(10, dtype=torch.long), classes) == 0.5
    assert balanced_accuracy(classes, classes) == 1


@pytest.mark.parametrize("read", [neighbour_accuracy, linear_accuracy])
def test_probes_read_what_is_there_and_nothing_else(read: object) -> None:
    classes = torch.arange(90) % 3
    is_fitted = torch.arange(90) < 45
    noise = normal(90, 12)
    told = noise + 6 * torch.eye(12)[classes]

    assert read(told, classes, is_fitted) > 0.95  # type: ignore[operator]
    assert read(noise, classes, is_fitted) < 0.6  # type: ignore[operator]


def test_a_rare_class_is_not_given_up_by_the_linear_probe() -> None:
    classes = (torch.arange(120) % 12 == 0).long()
    embeddings = normal(120, 4) + 4 * classes[:, None]

    assert linear_accuracy(embeddings, classes, torch.arange(120) % 2 == torch.arange(120) // 60) > 0.9


def test_the_mean_cosine_leaves_the_diagonal_out() -> None:
    assert mean_cosine(torch.eye(4)) == 0
    assert mean_cosine(torch.ones(4, 4)) == 1


def test_questions_are_split_by_patient_and_need_both_classes_on_both_sides() -> None:
    patients = [f"p{index // 8}" for index in range(64)]
    answers: dict[str, list[int | None]] = {
        "asked": [index % 2 for index in range(64)],
        "same for all": [1] * 64,
        "one patient only": [int(index < 8) for index in range(64)],
        "known of half": [None if index % 4 > 1 else index % 2 for index in range(64)],
        "with a rare class": [2 if index == 0 else index % 2 for index in range(64)],
    }

    found = questions(answers, patients, np.random.default_rng(0))

    assert sorted(found) == ["asked", "known of half", "with a rare class"]
    for question in found.values():
        sides = [
            {patient for patient, fitted in zip(patients, question.is_fitted, strict=True) if fitted == side}
            for side in (True, False)
        ]
        assert not sides[0] & sides[1]
        assert [len(side) for side in sides] == [4, 4]
    assert int(found["known of half"].is_asked.sum()) == 32
    assert int(found["with a rare class"].is_asked.sum()) == 63


def look(embeddings: Tensor, cosines: Tensor) -> dict[str, float]:
    classes = torch.arange(len(embeddings)) % 2
    asked = Question(classes, torch.arange(len(embeddings)) < len(embeddings) // 2, torch.ones(len(embeddings)).bool())
    return figures(embeddings, {"parity": asked}, {"base_cosines": cosines, "logits": torch.zeros(2, 3)})


def test_collapsed_embeddings_raise_an_alarm_with_the_numbers() -> None:
    first = look(normal(64, 16), torch.eye(5))
    healthy = look(normal(64, 16, seed=1), torch.eye(5))
    one_place = look(normal(1, 16) + 1e-3 * normal(64, 16), torch.full((5, 5), 0.999))

    assert first["health/base_cosines"] == 0
    assert "health/logits" not in first
    assert first["probe/parity/chance"] == 0.5
    assert collapse_alarms(first, healthy) == []
    (alarm,) = collapse_alarms(first, one_place)
    assert alarm.code == "W_COLLAPSE"
    for word in ("standard deviation fell from 0.2", "effective rank fell from 1", "base_cosines have a mean of 0.999"):
        assert word in alarm.message


def test_a_collapse_to_one_line_is_seen_by_the_rank_alone() -> None:
    first = look(normal(64, 16), torch.eye(5))
    line = look(normal(64, 1) * normal(1, 16), torch.eye(5))

    (alarm,) = collapse_alarms(first, line)

    assert line["health/std"] > 0.5 * first["health/std"]
    assert "effective rank" in alarm.message
    assert "standard deviation" not in alarm.message


@pytest.mark.parametrize(
    ("losses", "progress", "is_raised"),
    [
        ([1.0] * 50, 0.4, False),  # too early to say
        ([1.0] * 50, 0.5, True),
        ([1.0] * 45 + [0.5] * 5, 0.5, False),  # the last tenth counts
        ([0.5] * 45 + [0.7] * 5, 1.0, True),  # below the worst, not below the best
        ([], 1.0, False),
    ],
)
def test_a_loss_above_the_best_trivial_one_raises_an_alarm(
    losses: list[float], progress: float, is_raised: bool
) -> None:
    found = learning_alarms(losses, {"zero": 0.9, "constant": 0.6}, progress)

    assert [alarm.code for alarm in found] == ["W_NOT_LEARNING"] * is_raised
    assert all("constant has 0.6" in alarm.message for alarm in found)
    assert learning_alarms(losses, {}, progress) == []


def test_an_alarm_is_told_once_until_it_has_passed() -> None:
    talk, said = Listener(), set[str]()
    late = learning_alarms([1.0], {"constant": 0.6}, 1.0)
    collapsed = collapse_alarms(look(normal(64, 16), torch.eye(5)), look(torch.ones(64, 16), torch.ones(5, 5)))

    for found in (late, late + collapsed, late, [], late):
        say_new(found, said, talk)

    assert [note.split(":")[0] for note in talk.notes] == ["W_NOT_LEARNING", "W_COLLAPSE", "W_NOT_LEARNING"]
    assert talk.notes[0].startswith("W_NOT_LEARNING: after 100% of the steps the loss is 1.0000")


def test_matrices_are_drawn_white_blue_and_red(tmp_path: Path) -> None:
    write_matrix(tmp_path / "plots", "cosines", torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), is_first=True)

    picture = Image.open(tmp_path / "plots" / "cosines-start.png")
    half = picture.width // 4
    colours = [picture.getpixel((x, y)) for y in (half, 3 * half) for x in (half, 3 * half)]
    assert colours[1] == (255, 255, 255)
    assert colours[0][2] > colours[0][0]  # blue
    assert colours[2][0] > colours[2][2]  # red
    assert colours[3] == tuple(round(255 + 0.5 * (end - 255)) for end in colours[0])


def test_what_a_method_says_of_its_clusters_is_an_alarm(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "usage": 0.01}\n')

    found = alarms(tmp_path, {}, 0.1, lambda logged: [f"usage {entry['usage']}" for entry in logged])

    assert found == [Alarm("W_CLUSTERS", "usage 0.01")]
    say_new(found, set(), listener := Listener())
    assert listener.notes == ["W_CLUSTERS: usage 0.01"]
