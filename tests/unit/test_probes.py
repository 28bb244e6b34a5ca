"""Probes: the optimum that calculus asks for, votes by hand, and no look at the images that are scored."""

import math

import pytest
import torch

from medssl_cli.nn.probes import STRENGTHS, TEMPERATURE, _fit, linear_scores, neighbour_scores

NAN = math.nan


def blobs(number: int, *, width: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of two classes that lie apart along one of the directions."""
    random = torch.Generator().manual_seed(seed)
    classes = (torch.arange(number) % 2).float()
    features = torch.randn(number, width, generator=random)
    features[:, 2] += 4 * classes
    return features, classes[:, None]


def test_a_fit_is_where_the_gradient_of_the_penalised_loss_vanishes() -> None:
    features, answers = blobs(60)
    features = features.double()

    weights = _fit(features, answers, 0.1, torch.zeros(7, 1, dtype=torch.float64))

    errors = (features @ weights[:-1] + weights[-1]).sigmoid() - answers
    slope = features.T @ errors / 60 + 0.1 * weights[:-1]
    assert slope.abs().max() < 1e-4
    assert errors.mean().abs() < 1e-4  # the bias is not penalised


def test_a_linear_probe_tells_what_lies_apart() -> None:
    features, answers = blobs(200)

    scores, strengths = linear_scores(features[:100], answers[:100], features[100:], torch.arange(100) % 5)

    assert ((scores > 0) == (answers[100:] > 0)).float().mean() > 0.9
    assert strengths[0] in STRENGTHS


def test_noise_is_penalised_more_than_what_tells_classes_apart() -> None:
    features, answers = blobs(100)
    noise = torch.randn(100, 80, generator=torch.Generator().manual_seed(1))

    _, told = linear_scores(features, answers, features, torch.arange(100) % 5)
    _, untold = linear_scores(noise, answers, noise, torch.arange(100) % 5)

    assert untold[0] > told[0]


def test_more_dimensions_than_images_change_nothing_but_the_time() -> None:
    features, answers = blobs(40)
    wide = torch.cat([features, torch.zeros(40, 60)], dim=1)

    narrow_scores, _ = linear_scores(features[:30], answers[:30], features[30:], torch.arange(30) % 5)
    wide_scores, _ = linear_scores(wide[:30], answers[:30], wide[30:], torch.arange(30) % 5)

    torch.testing.assert_close(wide_scores, narrow_scores, rtol=1e-3, atol=1e-3)


def test_images_of_which_nothing_is_known_do_not_teach() -> None:
    features, answers = blobs(60)
    folds = torch.arange(60) % 5
    unknown = torch.cat([answers, torch.full((60, 1), NAN)])
    more = torch.cat([features, torch.full((60, 6), 50.0)])

    # The features are standardised over all of them, so only the answers are taken away here.
    some, _ = linear_scores(more, unknown, features, torch.cat([folds, folds]))

    assert some.isfinite().all()
    assert ((some > 0) == (answers > 0)).float().mean() > 0.9


def test_a_vote_weighs_neighbours_by_their_cosine() -> None:
    # Around their mean (0, 0): cosines of (1, 0) to the three are 1, -1/2 and -1/2.
    half = math.sqrt(3) / 2
    fitted = torch.tensor([[1.0, 0.0], [-0.5, half], [-0.5, -half]])
    answers = torch.tensor([[1.0], [0.0], [0.0]])

    scores = neighbour_scores(fitted, answers, torch.tensor([[1.0, 0.0]]))

    other = math.exp(-1.5 / TEMPERATURE)
    assert scores.item() == pytest.approx(1 / (1 + 2 * other))


def test_neighbours_of_which_the_answer_is_unknown_do_not_vote() -> None:
    fitted = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0], [-1.0, 0.1]])
    answers = torch.tensor([[NAN, NAN], [1.0, NAN], [0.0, NAN], [0.0, 1.0]])

    scores = neighbour_scores(fitted, answers, torch.tensor([[1.0, 0.0]]))

    assert scores[0, 0] > 0.99
    assert scores[0, 1] == 1


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_a_shift_of_all_embeddings_changes_no_vote(shift: float) -> None:
    features, answers = blobs(100)

    plain = neighbour_scores(features[:50], answers[:50], features[50:])
    moved = neighbour_scores(features[:50] + shift, answers[:50], features[50:] + shift)

    torch.testing.assert_close(moved, plain, rtol=1e-3, atol=1e-4)
    assert ((plain > 0.5) == (answers[50:] > 0)).float().mean() > 0.7
