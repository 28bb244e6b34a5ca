"""Readings of lung nodules: outlines run outside of the nodule, and readers are brought together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels.lidc import read_lidc
from medssl_cli.imaging.geometry import Affine

SHAPE = (60, 50, 8)
AFFINE: Affine = np.diag([-0.5, -0.5, 2.0, 1.0])
AFFINE[:3, 3] = (10, 20, -100)
SERIES = "1.3.6.1.4.1.14519.5.2.1"
Corners = list[tuple[int, int]]


def square(left: int, top: int, right: int, bottom: int) -> Corners:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def region(corners: Corners, height_mm: float, *, inclusion: str = "TRUE") -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in corners)
    return f"<roi><imageZposition>{height_mm} </imageZposition><inclusion>{inclusion}</inclusion>{edges}</roi>"


def nodule(*regions: str) -> str:
    return f"<unblindedReadNodule><noduleID>N</noduleID>{''.join(regions)}</unblindedReadNodule>"


def readings(path: Path, *readers: str, root: str = "LidcReadMessage", before: str = "", series: str = SERIES) -> Path:
    sessions = "".join(f"<readingSession>{reader}</readingSession>" for reader in readers)
    header = f"<ResponseHeader><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>"
    path.write_text(f'<?xml version="1.0"?>{before}<{root} xmlns="http://www.nih.gov">{header}{sessions}</{root}>')
    return path


def refused(read: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        read()
    return caught.value.code


def test_voxels_strictly_inside_of_the_outlines_of_two_readers_are_the_mask(tmp_path: Path) -> None:
    first = nodule(region(square(10, 20, 16, 26), -96))
    second = nodule(region(square(12, 20, 20, 26), -96))
    _, mask = read_lidc(readings(tmp_path / "r.xml", first, second))

    expected = np.zeros(SHAPE, np.uint8)
    expected[13:16, 21:26, 2] = 1  # inside both: 12 < x < 16 and 20 < y < 26, on slice (-96 + 100) / 2
    assert np.array_equal(mask.to_grid(SHAPE, AFFINE), expected)
    assert mask.classes == {1: "nodule"}
    assert mask.reference.series_uid == SERIES


def test_an_exclusion_cuts_with_its_outline(tmp_path: Path) -> None:
    reader = nodule(region(square(12, 22, 14, 24), -96, inclusion="FALSE"), region(square(10, 20, 16, 26), -96))
    _, mask = read_lidc(readings(tmp_path / "r.xml", reader, reader))

    labels = mask.to_grid(SHAPE, AFFINE)
    assert labels.sum() == 25 - 9
    assert not labels[12:15, 22:25].any()


def test_one_reader_alone_is_no_consensus_but_has_a_box(tmp_path: Path) -> None:
    reader = nodule(region(square(10, 20, 16, 26), -96), region(square(11, 20, 16, 26), -94))
    boxes, mask = read_lidc(readings(tmp_path / "r.xml", reader, ""))

    (box,) = boxes.to_grid(SHAPE, AFFINE).boxes

    assert not mask.to_grid(SHAPE, AFFINE).any()
    assert box.num_readers == 1
    assert (box.lower, box.upper) == ((10.5, 20.5, 1.5), (15.5, 25.5, 3.5))
    assert box.diameter_mm == pytest.approx(np.hypot(6, 6) * 0.5, rel=1e-3)


def test_readers_of_the_same_nodule_are_one_box_and_others_are_not(tmp_path: Path) -> None:
    here, shifted, there = square(10, 20, 16, 26), square(12, 20, 18, 26), square(40, 20, 46, 26)
    path = readings(
        tmp_path / "r.xml",
        nodule(region(here, -96)) + nodule(region(there, -96)),
        nodule(region(shifted, -96)),
        nodule(region([(12, 23)], -96)),
    )

    boxes = read_lidc(path)[0].to_grid(SHAPE, AFFINE).boxes

    assert [(box.name, box.num_readers) for box in boxes] == [("nodule", 3), ("nodule", 1)]
    assert boxes[0].lower == (11.5, 20.5, 1.5)  # the mean of those who drew an outline
    assert boxes[0].upper == (16.5, 25.5, 2.5)


def test_a_nodule_under_3_mm_is_a_point(tmp_path: Path) -> None:
    (box,) = read_lidc(readings(tmp_path / "r.xml", nodule(region([(30, 40)], -90))))[0].to_grid(SHAPE, AFFINE).boxes

    assert (box.name, box.diameter_mm) == ("nodule_under_3mm", None)
    assert (box.lower, box.upper) == ((29.5, 39.5, 4.5), (30.5, 40.5, 5.5))


def test_what_lies_above_or_below_the_image_is_counted_and_left_out(tmp_path: Path) -> None:
    inside, outside = nodule(region(square(10, 20, 16, 26), -96)), nodule(region(square(10, 20, 16, 26), -200))

    placed = read_lidc(readings(tmp_path / "r.xml", inside + outside))[0].to_grid(SHAPE, AFFINE)

    assert (len(placed.boxes), placed.num_outside) == (1, 1)
    boxes = read_lidc(readings(tmp_path / "r.xml", outside))[0]
    assert refused(lambda: boxes.to_grid(SHAPE, AFFINE)) == "E_LABEL_GRID_MISMATCH"


def test_a_scan_without_nodules_has_no_boxes(tmp_path: Path) -> None:
    boxes, mask = read_lidc(readings(tmp_path / "r.xml", "", ""))

    assert boxes.to_grid(SHAPE, AFFINE).boxes == ()
    assert not mask.to_grid(SHAPE, AFFINE).any()


@pytest.mark.parametrize(
    ("reader", "code"),
    [
        (nodule(region(square(10, 20, 16, 26), -95)), "E_CONTOUR"),
        (nodule(region(square(10, 20, 16, 26), -86), region(square(10, 20, 16, 26), -84)), "E_CONTOUR"),
        (nodule(region(square(10, 20, 60, 26), -96)), "E_LABEL_GRID_MISMATCH"),
    ],
    ids=["between-slices", "partly-outside", "beside-the-image"],
)
def test_outlines_that_do_not_fit_the_image_are_refused(tmp_path: Path, reader: str, code: str) -> None:
    boxes, mask = read_lidc(readings(tmp_path / "r.xml", reader))

    assert refused(lambda: boxes.to_grid(SHAPE, AFFINE)) == code
    assert refused(lambda: mask.to_grid(SHAPE, AFFINE)) == code


def test_slices_that_are_not_axial_are_refused(tmp_path: Path) -> None:
    boxes, _ = read_lidc(readings(tmp_path / "r.xml", nodule(region(square(10, 20, 16, 26), -96))))

    assert refused(lambda: boxes.to_grid(SHAPE, AFFINE[[0, 2, 1, 3]])) == "E_CONTOUR"


@pytest.mark.parametrize(
    "reader",
    [
        "<unblindedReadNodule></unblindedReadNodule>",
        nodule(region([], -96)),
        nodule(region(square(10, 20, 16, 26), -96, inclusion="MAYBE")),
        nodule(region(square(10, 20, 16, 26), -96, inclusion="FALSE")),
        nodule(region(square(10, 20, 16, 26), float("nan"))),
        nodule(region(square(10, 20, 16, 99999), -96)),
        nodule(region(square(10, 20, 16, 26), -96).replace("16<", "16.5<")),
        nodule(region(square(10, 20, 16, 26), -96).replace("<yCoord>20</yCoord>", "", 1)),
        nodule(region(square(10, 20, 16, 26), -96).replace("<roi>", "<roi><roi>")),
    ],
    ids=["empty", "no-points", "maybe", "only-cuts", "nan", "huge", "half-pixel", "half-point", "not-xml"],
)
def test_malformed_readings_are_refused(tmp_path: Path, reader: str) -> None:
    path = readings(tmp_path / "r.xml", reader)

    assert refused(lambda: read_lidc(path)) == "E_LABEL_FORMAT"


def test_files_that_are_not_readings_of_ct_are_refused(tmp_path: Path) -> None:
    for path in (
        readings(tmp_path / "other.xml", "", root="Report"),
        readings(tmp_path / "none.xml"),
        readings(tmp_path / "uid.xml", "", series="Doe^John"),
    ):
        assert refused(lambda path=path: read_lidc(path)) == "E_LABEL_FORMAT"


BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-16", "utf-16-le", "cp037", "utf-7"], ids=["utf8", "utf16", "utf16le", "ebcdic", "utf7"]
)
def test_entities_are_refused_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    text = readings(tmp_path / "r.xml", nodule(region(square(10, 20, 16, 26), -96)), before=BOMB).read_text()
    declared = text.replace('version="1.0"', f'version="1.0" encoding="{encoding}"')
    (tmp_path / "r.xml").write_bytes(declared.encode(encoding))

    assert refused(lambda: read_lidc(tmp_path / "r.xml")) == "E_LABEL_FORMAT"
