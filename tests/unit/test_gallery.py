"""Which pictures an evaluation keeps: the worst, the median and the best, each once, in bounded memory."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from medssl_cli.report.gallery import SPARE, Gallery


def gallery_of(figures: list[float], *, limit: int) -> tuple[Gallery, list[float]]:
    """A gallery that has seen images with these figures, and what it has drawn of them."""
    drawn: list[float] = []

    def draw(figure: Any, *_: Any) -> Image.Image:
        drawn.append(figure)
        return Image.new("RGB", (1, 1))

    gallery = Gallery(draw, limit=limit)
    for place, figure in enumerate(figures):
        gallery.add(f"item-{place:04d}", figure, lambda own=figure: own, None, None)
    return gallery, drawn


def shown_of(gallery: Gallery) -> dict[str, list[float]]:
    places: dict[str, list[float]] = {"worst": [], "median": [], "best": []}
    for shown in gallery.pictures():
        places[shown.place].append(shown.figure)
    return places


@pytest.mark.parametrize("seed", range(8))
def test_the_worst_the_median_and_the_best_are_kept_whatever_the_order(seed: int) -> None:
    figures = np.random.default_rng(seed).permutation(41).tolist()

    assert shown_of(gallery_of(figures, limit=1)[0]) == {"worst": [0], "median": [20], "best": [40]}
    assert shown_of(gallery_of(figures, limit=3)[0]) == {
        "worst": [0, 1, 2],
        "median": [19, 20, 21],
        "best": [38, 39, 40],
    }


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, {"worst": [], "median": [], "best": []}),
        (1, {"worst": [0], "median": [], "best": []}),
        (3, {"worst": [0, 1], "median": [], "best": [2]}),
        (5, {"worst": [0, 1], "median": [2], "best": [3, 4]}),
    ],
)
def test_of_few_images_each_is_shown_once(number: int, expected: dict[str, list[float]]) -> None:
    assert shown_of(gallery_of(list(range(number)), limit=2)[0]) == expected


def test_many_images_are_neither_all_drawn_nor_all_kept() -> None:
    figures = np.random.default_rng(0).random(1000).tolist()
    gallery, drawn = gallery_of(figures, limit=2)
    ranks = np.argsort(np.argsort(figures))
    median = [int(ranks[figures.index(figure)]) for figure in shown_of(gallery)["median"]]

    assert len(drawn) < 400
    assert len(gallery._pictures) <= 3 * 2 + SPARE
    assert all(abs(rank - 500) < 50 for rank in median)


def test_images_that_are_all_alike_are_not_all_drawn() -> None:
    gallery, drawn = gallery_of([0.0] * 200, limit=2)

    assert len(gallery.pictures()) == 6
    assert len(drawn) <= 200
    assert len(gallery._pictures) <= 3 * 2 + SPARE


def test_nothing_is_drawn_where_nothing_is_asked_for_or_no_figure_exists() -> None:
    assert gallery_of([0.5, 0.6], limit=0)[1] == []
    assert gallery_of([0.5], limit=0)[0].pictures() == []
    assert gallery_of([float("nan")], limit=2)[1] == []
