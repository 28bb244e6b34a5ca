"""Figures of classification beside scikit-learn's, on random scores with and without ties."""

import math

import numpy as np
import pytest

from medssl_cli.metrics.operating import brier, operating_curve, reliability, sensitivity_at, threshold_rows
from medssl_cli.metrics.ranking import auroc, average_precision, balanced_accuracy, calibration_error

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed: pip install '.[dev]'")
sklearn_calibration = pytest.importorskip("sklearn.calibration")


@pytest.fixture(params=range(8))
def drawn(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and what is so; every second set has ties."""
    rng = np.random.default_rng(request.param)
    is_positive = rng.random(60) < 0.3
    is_positive[:2] = True, False
    probabilities = 1 / (1 + np.exp(-rng.normal(2 * is_positive - 1, 1.5)))
    return np.floor(probabilities * 20) / 20 + 0.025 if request.param % 2 else probabilities, is_positive


def test_figures_of_a_ranking_equal_those_of_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    scores, is_positive = drawn
    weights = np.random.default_rng(0).integers(0, 4, len(scores)).astype(float)
    weights[:2] = 1

    for weighed in (None, weights):
        given = {"sample_weight": weighed}
        assert float(auroc(scores, is_positive, weighed)) == pytest.approx(
            sklearn_metrics.roc_auc_score(is_positive, scores, **given), abs=1e-9
        )
        assert float(average_precision(scores, is_positive, weighed)) == pytest.approx(
            sklearn_metrics.average_precision_score(is_positive, scores, **given), abs=1e-9
        )
        assert float(brier(scores, is_positive, weighed)) == pytest.approx(
            sklearn_metrics.brier_score_loss(is_positive, scores, **given), abs=1e-9
        )
        false_share, true_share, _ = sklearn_metrics.roc_curve(is_positive, scores, drop_intermediate=False, **given)
        for least in (0.5, 0.8, 0.9, 0.95, 1.0):
            expected = true_share[false_share <= 1 - least + 1e-9].max()
            assert float(sensitivity_at(scores, is_positive, least, weighed)) == pytest.approx(expected, abs=1e-9)


def test_curves_equal_those_of_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    scores, is_positive = drawn
    curve = operating_curve(scores, is_positive)

    false_share, true_share, thresholds = sklearn_metrics.roc_curve(is_positive, scores, drop_intermediate=False)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(is_positive, scores)

    np.testing.assert_allclose(curve.false_share, false_share, atol=1e-9)
    np.testing.assert_allclose(curve.sensitivity, true_share, atol=1e-9)
    np.testing.assert_allclose(curve.thresholds[1:], thresholds[1:], atol=1e-9)
    np.testing.assert_allclose(curve.precision[1:], precision[::-1][1:], atol=1e-9)  # theirs begins with a 1
    np.testing.assert_allclose(curve.sensitivity, recall[::-1], atol=1e-9)
    assert math.isnan(curve.precision[0])


def test_bins_of_probabilities_equal_those_of_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, is_positive = drawn
    bins = reliability(probabilities, is_positive)

    shares, means = sklearn_calibration.calibration_curve(is_positive, probabilities, n_bins=10)

    np.testing.assert_allclose([each.share for each in bins], shares, atol=1e-9)
    np.testing.assert_allclose([each.probability for each in bins], means, atol=1e-9)
    assert sum(each.number for each in bins) == len(probabilities)
    gaps = [each.number * abs(each.share - each.probability) for each in bins]
    assert calibration_error(probabilities, is_positive) == pytest.approx(sum(gaps) / len(probabilities), abs=1e-9)


def test_the_table_of_thresholds_equals_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, is_positive = drawn

    for row in threshold_rows(probabilities, is_positive, (0.1, 0.5, 0.9)):
        is_yes = probabilities >= row.threshold
        assert row.num_yes == is_yes.sum()
        for value, figure, positive in (
            (row.sensitivity, sklearn_metrics.recall_score, 1),
            (row.specificity, sklearn_metrics.recall_score, 0),
            (row.positive_value, sklearn_metrics.precision_score, 1),
            (row.negative_value, sklearn_metrics.precision_score, 0),
        ):
            expected = figure(is_positive, is_yes, pos_label=positive, zero_division=math.nan)
            assert value == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert float(balanced_accuracy(is_yes.astype(int), is_positive.astype(int))) == pytest.approx(
            sklearn_metrics.balanced_accuracy_score(is_positive, is_yes), abs=1e-9
        )
