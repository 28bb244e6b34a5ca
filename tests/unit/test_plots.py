"""Plots: they show what they are given, on light and dark pages, and their bytes depend on nothing else."""

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest

from medssl_cli.metrics.statistics import Estimate
from medssl_cli.report.curves import Panel, share_curves
from medssl_cli.report.plots import (
    INK,
    SERIES_COLOURS,
    Curve,
    Group,
    Level,
    _smoothed,
    group_comparison,
    level_curves,
    loss_curves,
    structure_scores,
)

GROUP = Group({"a": 0.7, "b": 0.8, "c": math.nan}, Estimate(0.75, 0.7, 0.8, 0.95, 2, 1))
EMPTY = Group({}, Estimate(math.nan, math.nan, math.nan, 0.95, 0, 0))
LEVEL = Level(GROUP.estimate, [0.72])
CURVE = Curve(range(100), np.linspace(2, 0.5, 100).tolist())

PLOTS = {
    "loss": lambda: loss_curves({"total": CURVE, "teacher & student": CURVE}, baselines={"chance": 1.1}),
    "groups": lambda: group_comparison({"scratch": GROUP, "pre-trained": GROUP, "none": EMPTY}),
    "levels": lambda: level_curves(
        {
            "500 steps": {
                "scratch": {5: Level(GROUP.estimate, [0.7, 0.8]), 10: Level(EMPTY.estimate, [])},
                "pre-trained": {5: LEVEL},
            },
            "1500 steps": {"scratch": {5: LEVEL}},
        },
        xlabel="labelled patients",
        ylabel="Dice",
    ),
    "shares": lambda: share_curves(
        [
            Panel("ROC", "false", "true", np.linspace(0, 1, 2000).tolist(), np.linspace(0, 1, 2000).tolist(), (0, 1)),
            Panel("reliability", "said", "so", [0.1, 0.9], [0.2, 0.8], (0, 1), numbers=[3, 9]),
            Panel("nothing", "x", "y", [0.0], [math.nan], (math.nan, math.nan), is_stepped=True),
        ]
    ),
    "structures": lambda: structure_scores(
        {"LV": {"scratch": GROUP, "pre-trained": EMPTY}, "RV": {"scratch": GROUP}},
        limits=(0, 1),
    ),
}


@pytest.fixture(params=PLOTS)
def plot(request):
    return PLOTS[request.param]


def words(svg: bytes) -> str:
    return " ".join(
        "".join(element.itertext()) for element in ET.fromstring(svg).iter() if element.tag.endswith("text")
    )


def test_an_svg_follows_the_text_colour_of_the_page(plot):
    svg = plot().decode()

    assert "currentColor" in svg
    assert INK not in svg
    assert "#000000" not in svg
    assert "#ffffff" not in svg


def test_the_same_data_give_the_same_bytes(plot):
    assert plot() == plot()


def test_losses_are_named_beside_the_baselines_they_must_pass():
    text = words(PLOTS["loss"]())

    assert "total" in text
    assert "teacher & student" in text
    assert "chance (1.1)" in text


def test_means_are_written_beside_their_dots():
    assert words(PLOTS["groups"]()).count("0.750") == 2


def test_structures_and_methods_are_named():
    text = words(PLOTS["structures"]())

    assert all(name in text for name in ("LV", "RV", "scratch", "pre-trained"))


def test_curves_of_shares_are_named_and_thinned_out():
    assert all(name in words(PLOTS["shares"]()) for name in ("ROC", "reliability", "nothing", "said", "so"))
    assert len(PLOTS["shares"]()) < 40_000


def test_a_long_training_makes_no_large_file():
    curve = Curve(range(200_000), np.random.default_rng(0).random(200_000).tolist())

    assert len(loss_curves({"total": curve})) < 100_000


def test_a_training_of_one_step_or_none_can_be_drawn():
    loss_curves({"total": Curve([0], [1.0]), "other": Curve([], [])})


def test_smoothing_averages_a_window_and_leaves_out_what_is_missing():
    values = np.arange(160, dtype=float)
    values[80] = np.nan

    smoothed = _smoothed(values)  # 160 values: windows of 2 on either side

    assert smoothed[10] == 10
    assert smoothed[80] == pytest.approx((78 + 79 + 81 + 82) / 4)
    assert smoothed[0] == pytest.approx((0 + 1 + 2) / 3)


def test_what_is_missing_for_long_stays_missing():
    assert np.isnan(_smoothed(np.full(50, np.nan))).all()


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", WCAG 2.2."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", SERIES_COLOURS)
def test_series_stand_out_from_a_light_and_a_dark_page(colour):
    dark_card = luminance("#161b22")
    levels = (dark_card, luminance(colour), 1.0)

    for darker, lighter in pairwise(levels):
        assert (lighter + 0.05) / (darker + 0.05) >= 3  # WCAG 2.2, 1.4.11: graphics need 3:1
