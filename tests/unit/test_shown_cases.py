"""The worst, median and best images on the pages of classifications and detections: read, drawn and told of."""

import html
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medssl_cli.base.talk import Silence
from medssl_cli.imaging.volume import Volume
from medssl_cli.report.gallery import SPARE, Gallery
from medssl_cli.report.page import Page
from medssl_cli.report.shown_cases import add_shown_cases
from medssl_cli.tasks import Subject
from medssl_cli.tasks.classification.page import classification_picture
from medssl_cli.tasks.classification.scores import ClassificationSubject, agreement
from medssl_cli.tasks.detection.image_boxes import ImageBoxes
from medssl_cli.tasks.detection.page import detection_picture, shown_boxes
from medssl_cli.tasks.detection.scores import DetectionSubject


@dataclass
class CountingCache:
    """Images of noise; counts how often one is read."""

    shape: tuple[int, int, int]
    affine: Any = field(default_factory=lambda: np.eye(4))
    reads: int = 0

    def read_image(self, record: Any) -> Volume:
        self.reads += 1
        rng = np.random.default_rng(int(record.item_id, 16))
        return Volume(rng.normal(size=(1, *self.shape)).astype(np.float32), self.affine, "MR")


def records_of(number: int, shape: tuple[int, int, int]) -> list[Any]:
    spacing = {"affine_array": np.diag([-1.0, 1.0, 1.0, 1.0])}
    return [
        SimpleNamespace(item_id=f"{place:04x}" * 8, patient_key=f"p{place}", shape=shape, **spacing)
        for place in range(number)
    ]


def classification(probabilities: list[float], targets: list[float]) -> ClassificationSubject:
    columns = np.array(probabilities)[:, None], np.array(targets, dtype=np.float32)[:, None]
    return ClassificationSubject(
        name="run",
        task="findings",
        folder=Path("run"),
        records=records_of(len(targets), (20, 16, 1)),
        classes={0: "Mass"},
        probabilities=lambda cache, talk: columns[0],
        targets=lambda cache: columns[1],
        is_exclusive=False,
    )


def detection(number: int, shape: tuple[int, int, int]) -> DetectionSubject:
    """Each image has one box, which is found the farther away the later the image comes."""
    dims = 2 if shape[2] == 1 else 3
    boxes = [np.array([[2.0] * dims + [8.0] * dims]) for _ in range(number)]
    shifts = [np.array([[place * 6 / number] * dims * 2]) for place in range(number)]
    return DetectionSubject(
        name="run",
        task="boxes",
        folder=Path("run"),
        records=records_of(number, shape),
        classes={1: "ball"},
        found=lambda cache, talk: [
            ImageBoxes(own + shift, np.zeros(1, np.int64), np.ones(1) * 0.9)
            for own, shift in zip(boxes, shifts, strict=True)
        ],
        truth=lambda: [ImageBoxes(own, np.zeros(1, np.int64), np.ones(1)) for own in boxes],
        match_overlap=0.5,
    )


def page_of(subject: Subject, cache: CountingCache, limit: int) -> str:
    gallery = Gallery(subject.draw, limit=limit, stage=subject.stage)
    results = subject.score(cache, split="test", talk=Silence(), on_case=gallery.add)  # type: ignore[arg-type]
    return subject.page(results.document, gallery.pictures())


def scenes_of(page: str) -> dict[str, Any]:
    (block,) = re.findall(r'data-scene="([^"]*)"', page)
    found: dict[str, Any] = json.loads(html.unescape(block))
    return found


def test_the_images_that_a_classification_is_most_wrong_about_come_first() -> None:
    """Agreement is the probability that is given to what is known: 0.1, 0.9 and 0.5 of a yes, a no and a yes."""
    subject = classification([0.1, 0.1, 0.5, 0.7], [1, 0, 1, float("nan")])

    page = page_of(subject, CountingCache((20, 16, 1)), 1)

    document = scenes_of(page)
    assert [image["title"] for image in document["images"]] == [
        f"{place}: {item}, agreement {value}"
        for place, item, value in (("worst", "00000000", "0.100"), ("median", "00020002", "0.500"),
                                   ("best", "00010001", "0.900"))
    ]  # fmt: skip
    assert [image["notes"] for image in document["images"]] == [
        ["Mass: 0.100, is there"], ["Mass: 0.500, is there"], ["Mass: 0.100, is not there"],
    ]  # fmt: skip
    assert document["shows"] == "nothing"
    assert page.count("data:image/png") == 3


def test_agreement_is_over_what_is_known() -> None:
    assert agreement({"a": 0.9, "b": 0.2, "c": 0.5}, {"a": 1.0, "b": 1.0, "c": None}) == pytest.approx((0.9 + 0.2) / 2)
    assert np.isnan(agreement({"a": 0.9}, {"a": None}))


def test_images_that_are_not_shown_are_not_read() -> None:
    probabilities = np.random.default_rng(0).random(600).tolist()
    cache = CountingCache((4, 4, 1))

    page_of(classification(probabilities, [1.0] * 600), cache, 1)

    assert cache.reads < 600 / 3
    assert cache.reads >= SPARE
    none = CountingCache((4, 4, 1))
    page_of(classification(probabilities, [1.0] * 600), none, 0)
    assert none.reads == 0


@pytest.mark.parametrize("shape", [(30, 24, 1), (30, 24, 12)])
def test_boxes_that_are_there_and_boxes_found_lie_over_one_another(shape: tuple[int, int, int]) -> None:
    affine = np.eye(4) if shape[2] == 1 else np.diag([-1.0, 1.0, 1.0, 1.0])

    page = page_of(detection(9, shape), CountingCache(shape, affine), 1)

    document = scenes_of(page)
    assert [image["title"].split(":")[0] for image in document["images"]] == ["worst", "median", "best"]
    assert document["shows"] == "both"
    assert document["classes"][0]["name"] == "ball"
    for image in document["images"]:
        there, found = image["boxes"]
        assert (there["is_reference"], there["text"]) == (True, "ball")
        assert (found["is_reference"], found["text"]) == (False, "ball 0.90")
    best = document["images"][2]["boxes"]
    assert (best[0]["low"], best[0]["high"]) == (best[1]["low"], best[1]["high"])
    assert "Dashed: boxes that are there." in page


def test_weak_boxes_are_not_drawn_and_what_is_there_comes_first() -> None:
    box = {"class": "ball", "corners": [1.0, 2.0, 3.0, 4.0]}

    shown = shown_boxes([{**box, "score": 0.5}, {**box, "score": 0.49}], [{**box, "score": 1.0}])

    assert [one.score for one in shown] == [None, 0.5]


def test_pictures_of_both_are_drawn_of_pictures_and_of_volumes() -> None:
    for shape in ((20, 16, 1), (20, 16, 10)):
        volume = Volume(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32), np.eye(4))
        corners = [2.0, 2.0, 8.0, 8.0] if shape[2] == 1 else [2.0, 2.0, 2.0, 8.0, 8.0, 8.0]
        box = {"class": "ball", "corners": corners, "score": 0.9}
        assert min(classification_picture(volume, {"a": 0.3}, {"a": None}).size) > 100
        assert min(detection_picture(volume, [box], [box], {1: "ball"}).size) > 100


def test_a_page_without_pictures_has_no_section_for_them() -> None:
    page = Page("t")

    add_shown_cases(page, [], figure="f", alt="a", classes={})

    assert "Worst" not in page.render()
