"""Whose a mask is: what each of its marks was drawn on decides, and nothing is put on two images for their grid."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.formats.labels import Instance, Reference
from medssl_cli.ingest.drawn_on import ImagesOfMarks, ImagesOfMask, images_drawn_on
from medssl_cli.ingest.failures import Failure
from medssl_cli.ingest.known_images import KnownImage
from medssl_cli.ingest.labels import the_image
from medssl_cli.ingest.matching import Index
from medssl_cli.ingest.tasks import StoredImage
from tests.toy_cache import toy_cache

A, B, C, D = (StoredImage(name * 26, "s" * 26, True, (4, 4, 4), np.eye(4), ()) for name in "abcd")
ENHANCED = "2.1"
NONE: frozenset[Instance] = frozenset()


def known() -> list[KnownImage]:
    """Two phases of a classic series; two volumes of one multi-frame object, of four frames each."""
    halves = [frozenset(Instance(ENHANCED, number) for number in numbers) for numbers in (range(1, 5), range(5, 9))]
    return [
        KnownImage(A, "1", "9", frozenset({"1.1", "1.2"})),
        KnownImage(B, "1", "9", frozenset({"1.3", "1.4"})),
        KnownImage(C, "2", "9", frozenset({ENHANCED}), frames=halves[0]),
        KnownImage(D, "2", "9", frozenset({ENHANCED}), frames=halves[1]),
    ]


def of(*instances: str | tuple[str, int]) -> frozenset[Instance]:
    return frozenset(Instance(one) if isinstance(one, str) else Instance(*one) for one in instances)


def one(*images: StoredImage, sources: frozenset[int] | None = None, unknown: int = 0) -> ImagesOfMask:
    return ImagesOfMask((ImagesOfMarks(images, sources),), unknown)


@pytest.mark.parametrize(
    ("sources", "reference", "expected"),
    [
        ([of("1.3"), of("1.4")], Reference(series_uid="1", sop_uids=frozenset({"1.1", "1.2", "1.3", "1.4"})), one(B)),
        ([of((ENHANCED, 2)), of((ENHANCED, 4))], Reference(series_uid="2"), one(C)),
        ([of((ENHANCED, 5))], Reference(series_uid="2", sop_uids=frozenset({ENHANCED})), one(D)),
        ([of("1.1", "1.2")], Reference(), one(A)),
        ([of(("1.3", 1))], Reference(), one(B)),
        ([of("1.3"), NONE], Reference(), one(B)),
        ([of("1.3"), of("1.3", "1.1")], Reference(), one(B)),
        (
            [of("1.1"), of("1.3"), of("1.4")],
            Reference(series_uid="1"),
            ImagesOfMask((ImagesOfMarks((A,), frozenset({0})), ImagesOfMarks((B,), frozenset({1, 2})))),
        ),
        ([of("1.1"), of("7.7")], Reference(series_uid="1"), one(A, sources=frozenset({0}), unknown=1)),
        ([of("1.1"), of("1.3"), NONE], Reference(series_uid="1"), ImagesOfMask(is_ambiguous=True)),
        ([of("1.1"), of("1.3"), of("1.1", "1.3")], Reference(), ImagesOfMask(is_ambiguous=True)),
        ([of(ENHANCED)], Reference(series_uid="2"), one(C, D)),
        ([of((ENHANCED, 9))], Reference(series_uid="2"), ImagesOfMask()),
        ([of(("1.3", 2))], Reference(series_uid="1"), ImagesOfMask()),
        ([of("1.9")], Reference(series_uid="1", frame_of_reference="9"), ImagesOfMask()),
        ([NONE], Reference(series_uid="1", sop_uids=frozenset({"1.9"})), ImagesOfMask()),
        ([NONE], Reference(sop_uids=frozenset({"1.3"}), series_uid="1"), one(B)),
        ([NONE], Reference(series_uid="1"), one(A, B)),
        ([NONE], Reference(all_series=frozenset({"1", "2"})), one(A, B, C, D)),
        ([NONE], Reference(frame_of_reference="9"), one(A, B, C, D)),
        ([NONE], Reference(series_uid="3", frame_of_reference="9"), ImagesOfMask()),
        ([], Reference(), ImagesOfMask()),
    ],
    ids=[
        "second-phase", "frames", "frames-of-the-second", "one-mark-of-two-slices", "frame-1-of-a-single-frame",
        "one-mark-does-not-say", "one-mark-of-two-phases", "each-phase-its-own", "a-mark-of-a-missing-phase",
        "some-do-not-say", "some-of-both", "whole-object", "no-such-frame", "no-such-frame-of-a-single-frame",
        "another-part-of-the-series", "file-names-another-part", "file-names-a-phase", "series", "two-series",
        "frame-of-reference", "another-series", "nothing",
    ],
)  # fmt: skip
def test_what_a_mark_was_drawn_on_decides(
    sources: list[frozenset[Instance]], reference: Reference, expected: ImagesOfMask
) -> None:
    assert images_drawn_on(Index(known(), None), reference, sources) == expected


def test_images_of_earlier_runs_are_found_by_their_series_and_so_are_its_parts(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=3)  # series "0", "1", "2"
    key = cache.pseudonyms.of
    items = {record.series_key: record.item_id for record in cache.records()}

    (part,) = images_drawn_on(Index([], cache), Reference(all_series=frozenset({"1"})), [of("1.1")]).parts
    assert [image.item_id for image in part.images] == [items[key("series", "1")]]

    parts = toy_cache(tmp_path / "parts", num_patients=3, series=("7#p0", "7#p1", "8"))
    (part,) = images_drawn_on(Index([], parts), Reference(all_series=frozenset({"7"})), [of("1.1")]).parts
    assert {image.series_key for image in part.images} == {parts.pseudonyms.of("series", f"7#p{n}") for n in (0, 1)}


def test_of_several_versions_of_a_series_the_largest_is_meant() -> None:
    images = [KnownImage(A, "1", is_superseded=True), KnownImage(B, "1")]

    assert images_drawn_on(Index(images, None), Reference(series_uid="1"), []) == one(B)


def test_of_several_images_the_one_that_takes_most_of_a_mask_is_meant() -> None:
    beside, overlap = Failure("E_LABEL_GRID_MISMATCH", "beside"), Failure("E_SEGMENT_OVERLAP", "overlap")

    assert the_image([A, B], [beside, 0]) == B
    assert the_image([A, B, C], [beside, 0, 2]) == B
    assert the_image([A, B], [beside, overlap]) == overlap
    assert the_image([A, B], [overlap, 2]) == overlap  # it lies on A, and is refused there for another reason
    assert the_image([A, B], [beside, replace(beside, message="further")]) == beside
    two = the_image([A, B, C], [0, beside, 0])
    assert isinstance(two, Failure)
    assert two.code == "E_LABEL_AMBIGUOUS"
