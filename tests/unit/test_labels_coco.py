"""Boxes of COCO are in pixel edges; ours are in continuous voxel indices."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.errors import InputError
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
    first, second = read_coco(write(tmp_path / "c.json", DOCUMENT))

    boxes = first.to_grid((100, 80, 1), UNIT).boxes

    assert [(box.name, box.lower, box.upper) for box in boxes] == [
        ("Right Lung", (9.5, 19.5, -0.5), (40.0, 59.5, 0.5)),
        ("mass/x", (-0.5, -0.5, -0.5), (99.5, 79.5, 0.5)),
    ]
    assert first.reference.name == "folder/One.PNG"
    assert second.to_grid((50, 60, 1), UNIT).boxes == ()  # looked at, nothing found


@pytest.mark.parametrize("shape", [(80, 100, 1), (100, 81, 1), (100, 80, 2)], ids=["transposed", "larger", "volume"])
def test_boxes_of_another_picture_size_are_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    first, _ = read_coco(write(tmp_path / "c.json", DOCUMENT))

    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH"):
        first.to_grid(shape, UNIT)


def test_what_hangs_over_by_rounding_is_cut_and_more_is_refused(tmp_path: Path) -> None:
    label, _ = read_coco(write(tmp_path / "c.json", changed("annotations", 0, bbox=[-0.4, 20, 100.9, 60])))
    assert label.to_grid((100, 80, 1), UNIT).boxes[0].lower == (-0.5, 19.5, -0.5)
    assert label.to_grid((100, 80, 1), UNIT).boxes[0].upper == (99.5, 79.5, 0.5)

    label, _ = read_coco(write(tmp_path / "c.json", changed("annotations", 0, bbox=[-2, 20, 30, 40])))
    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH"):
        label.to_grid((100, 80, 1), UNIT)


@pytest.mark.parametrize(
    "document",
    [
        changed("images", 1, id=4),
        changed("images", 1, id="9"),
        changed("images", 1, id=True),
        changed("images", 1, file_name="other/one.png"),
        changed("images", 1, file_name=None),
        changed("images", 1, width=0),
        changed("annotations", 1, id=1),
        changed("annotations", 1, image_id=5),
        changed("annotations", 1, category_id=2),
        changed("annotations", 1, bbox=[1, 2, 3]),
        changed("annotations", 1, bbox=[1, 2, 0, 3]),
        changed("annotations", 1, bbox=[1, 2, float("nan"), 3]),
        changed("annotations", 1, bbox=[1, 2, 1e99, 3]),
        changed("annotations", 1, bbox=[1, 2, "3", 3]),
        changed("annotations", 1, iscrowd=2),
        changed("categories", 1, id=1),
        {**DOCUMENT, "images": [3]},
        {**DOCUMENT, "images": {}},
        [],
    ],
    ids=[
        "image-twice", "text-id", "bool-id", "file-twice", "no-file", "no-width", "annotation-twice", "no-image",
        "no-category", "three-numbers", "no-area", "nan", "huge", "text", "crowd", "category-twice", "not-an-entry",
        "not-a-table", "not-coco",
    ],
)  # fmt: skip
def test_malformed_documents_are_refused(tmp_path: Path, document: Any) -> None:
    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read_coco(write(tmp_path / "c.json", document))


def test_a_document_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("[" * 200_000)

    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read_coco(tmp_path / "c.json")
