"""Boxes of COCO are in pixel edges; ours are in continuous voxel indices."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels.coco import read_coco

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 4, "file_name": "folder/One.PNG", "width": 100, "height": 80, "metadata": {"patient": "Doe"}},
        {"id": 9, "file_name": "two.jpg", "width": 50, "height": 60},
    ],
    "categories": [{"id": 1, "name": "Right Lung"}, {"id": 7, "name": "mass/<x>"}],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 1, "bbox": [10, 20, 30.5, 40], "iscrowd": 0},
        {"id": 2, "image_id": 4, "category_id": 7, "bbox": [0, 0, 100, 80]},
        {"id": 3, "image_id": 4, "category_id": 7, "bbox": [5, 5, 5, 5], "iscrowd": 1},
    ],
}
UNIT = np.eye(4)


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def changed(table: str, index: int, **values: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    document[table][index] |= values
    return document


def test_an_edge_at_pixel_10_is_voxel_index_9_and_a_half(tmp_path: Path) -> None:
    first, second = read_coco(write(tmp_path / "c.json", DOCUMENT)).labels

    boxes = first.to_grid((100, 80, 1), UNIT).boxes

    assert [(box.name, box.lower, box.upper) for box in boxes] == [
        ("Right Lung", (9.5, 19.5, -0.5), (40.0, 59.5, 0.5)),
        ("mass/x", (-0.5, -0.5, -0.5), (99.5, 79.5, 0.5)),
    ]
    assert first.reference.name == "folder/One.PNG"
    assert second.to_grid((50, 60, 1), UNIT).boxes == ()  # looked at, nothing found


@pytest.mark.parametrize("shape", [(80, 100, 1), (100, 81, 1), (100, 80, 2)], ids=["transposed", "larger", "volume"])
def test_boxes_of_another_picture_size_are_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    first, _ = read_coco(write(tmp_path / "c.json", DOCUMENT)).labels

    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH"):
        first.to_grid(shape, UNIT)


def test_what_hangs_over_by_rounding_is_cut_and_more_is_refused(tmp_path: Path) -> None:
    label, _ = read_coco(write(tmp_path / "c.json", changed("annotations", 0, bbox=[-0.4, 20, 100.9, 60]))).labels
    assert label.to_grid((100, 80, 1), UNIT).boxes[0].lower == (-0.5, 19.5, -0.5)
    assert label.to_grid((100, 80, 1), UNIT).boxes[0].upper == (99.5, 79.5, 0.5)

    label, _ = read_coco(write(tmp_path / "c.json", changed("annotations", 0, bbox=[-2, 20, 30, 40]))).labels
    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH"):
        label.to_grid((100, 80, 1), UNIT)


FIRST, SECOND = "folder/One.PNG", "two.jpg"


@pytest.mark.parametrize(
    ("document", "left", "rows"),
    [
        (changed("images", 1, id="9"), [FIRST], [0]),
        (changed("images", 1, id=True), [FIRST], [0]),
        (changed("images", 1, file_name=None), [FIRST], [0]),
        (changed("images", 1, width=0), [FIRST], [0]),
        (changed("images", 1, height=None), [FIRST], [0]),
        (changed("images", 1, id=4), [], [0, 1, 2, 3]),
        (changed("images", 1, file_name="FOLDER\\one.png"), [], [0, 0, 1, 2, 3]),
        (changed("annotations", 1, id=1), [SECOND], [1, 2, 3]),
        (changed("annotations", 1, image_id=5), [FIRST, SECOND], [2]),
        (changed("annotations", 1, image_id="4"), [FIRST, SECOND], [2]),
        (changed("annotations", 1, category_id=2), [SECOND], [1, 2, 3]),
        (changed("annotations", 1, bbox=[1, 2, 3]), [SECOND], [1, 2, 3]),
        (changed("annotations", 1, bbox=None, segmentation=[[1, 1, 5, 1, 5, 5]]), [SECOND], [1, 2, 3]),
        (changed("annotations", 1, bbox=[1, 2, 0, 3]), [SECOND], [1, 2, 3]),
        (changed("annotations", 1, bbox=[9, 2, -3, 3]), [SECOND], [1, 2, 3]),
        (changed("annotations", 1, bbox=[1, 2, 1e99, 3]), [SECOND], [1, 2, 3]),
        (changed("annotations", 1, bbox=[1, 2, "3", 3]), [SECOND], [1, 2, 3]),
        (changed("annotations", 1, iscrowd=2), [SECOND], [1, 2, 3]),
        ({**DOCUMENT, "images": [*DOCUMENT["images"], 3]}, [FIRST, SECOND], [0]),
        ({**DOCUMENT, "annotations": [*DOCUMENT["annotations"], None]}, [FIRST, SECOND], [4]),
    ],
    ids=[
        "text-id", "bool-id", "no-file", "no-width", "half-a-size", "image-twice", "file-twice", "annotation-twice",
        "no-image", "text-image", "no-category", "three-numbers", "outline-only", "no-area", "negative", "huge", "text",
        "crowd", "not-an-image", "not-an-annotation",
    ],
)  # fmt: skip
def test_a_bad_entry_costs_its_picture_and_no_other(
    tmp_path: Path, document: Any, left: list[str], rows: list[int]
) -> None:
    reading = read_coco(write(tmp_path / "c.json", document))

    assert [label.reference.name for label in reading.labels] == left
    assert sorted(row.row for row in reading.refused) == rows
    assert {row.code for row in reading.refused} == {"E_LABEL_FORMAT"}


@pytest.mark.parametrize(
    "document",
    [
        changed("annotations", 1, bbox=[1, 2, float("nan"), 3]),
        changed("categories", 1, id=1),
        changed("categories", 1, name=None),
        {**DOCUMENT, "images": {}},
        {name: DOCUMENT[name] for name in ("images", "annotations")},
        [],
    ],
    ids=["nan", "category-twice", "category-without-name", "not-a-table", "no-categories", "not-coco"],
)
def test_malformed_documents_are_refused(tmp_path: Path, document: Any) -> None:
    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read_coco(write(tmp_path / "c.json", document))


def test_equal_names_in_several_folders_are_several_pictures(tmp_path: Path) -> None:
    document = changed("images", 1, file_name="other/one.png", width=100, height=80)

    first, second = read_coco(write(tmp_path / "c.json", document)).labels

    assert (first.reference.name, second.reference.name) == ("folder/One.PNG", "other/one.png")
    assert first.reference.num_shared == 0


def test_categories_of_one_name_are_one_unless_something_else_tells_them_apart(tmp_path: Path) -> None:
    same = changed("categories", 1, name="Right Lung")
    (label, _) = read_coco(write(tmp_path / "c.json", same)).labels
    assert [box.name for box in label.to_grid((100, 80, 1), UNIT).boxes] == ["Right Lung", "Right Lung"]

    same["categories"][0]["supercategory"] = "patient 1"
    with pytest.raises(InputError, match="E_NAME_COLLISION"):
        read_coco(write(tmp_path / "c.json", same))


def test_names_that_become_equal_are_refused_and_letters_of_every_script_are_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="E_NAME_COLLISION"):
        read_coco(write(tmp_path / "c.json", changed("categories", 0, name="mass/<x")))
    label, _ = read_coco(write(tmp_path / "c.json", changed("categories", 0, name="右肺"))).labels
    assert label.to_grid((100, 80, 1), UNIT).boxes[0].name == "右肺"


def test_what_was_changed_or_left_out_is_counted(tmp_path: Path) -> None:
    document = changed("images", 0, width=None, height=None)

    assert read_coco(write(tmp_path / "c.json", document)).notes == (
        ("W_NAME_CHANGED", "of 1 of 2 categories"),
        ("W_LABEL_NOT_TAKEN", "1 boxes of crowds"),
        ("W_BOX_SIZE_UNKNOWN", "of 1 of 1 pictures with boxes"),
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_documents_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps(DOCUMENT), encoding=encoding)

    assert len(read_coco(tmp_path / "c.json").labels) == 2


def test_a_document_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("[" * 200_000)

    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read_coco(tmp_path / "c.json")


def test_boxes_in_shares_of_the_picture_are_refused(tmp_path: Path) -> None:
    """They would all be stored in the first pixel."""
    document = copy.deepcopy(DOCUMENT)
    for annotation, box in zip(
        document["annotations"], ([0.1, 0.2, 0.3, 0.3], [0, 0, 1, 1], [0.5, 0.5, 0.1, 0.1]), strict=True
    ):
        annotation["bbox"] = box

    with pytest.raises(InputError) as error:
        read_coco(write(tmp_path / "c.json", document))
    assert error.value.code == "E_LABEL_FORMAT"
    assert "shares" in error.value.message
