"""Tables, boxes and points on their way from a folder to the cache: whose they are, what is refused, what is said."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image

from medssl_cli.base.errors import Exit
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.formats.policy import Policy
from medssl_cli.ingest.ingest import ingest as run_ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.ingest.report import IngestReport
from tests import every_kind as kinds
from tests.command import medssl
from tests.dicom_factory import ct_series

ACCEPTED = Policy(burned_in="accept")
SIZE = (64, 48)


def picture(path: Path, seed: int, **options: Any) -> float:
    """A picture of noise; the sum of its voxels tells it apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 255, SIZE[::-1], dtype=np.uint8)
    Image.fromarray(voxels).save(path, **options)
    return float(voxels.sum())


def ingest(tmp_path: Path, *inputs: str, **options: Any) -> IngestReport:
    named = [tmp_path / name for name in inputs or ("in",)]
    return run_ingest(named, tmp_path / "cache", IngestOptions(workers=1, modality="DX", policy=ACCEPTED, **options))


def records(tmp_path: Path) -> Iterator[tuple[float, ItemRecord]]:
    cache = Cache.open(tmp_path / "cache")
    return ((float(cache.read_image(record).voxels.sum()), record) for record in cache.iterate())


def findings(tmp_path: Path) -> dict[float, dict[str, float]]:
    return {total: record.findings.get("seg", {}) for total, record in records(tmp_path)}


def boxes(tmp_path: Path) -> dict[float, int | None]:
    return {total: len(record.boxes["seg"]) if record.boxes else None for total, record in records(tmp_path)}


def said(report: IngestReport) -> dict[str, str]:
    return {entry.code: entry.message for entry in report.entries if entry.code.startswith("E_")}


def test_a_table_speaks_of_the_pictures_beside_it_now_and_when_it_comes_later(tmp_path: Path) -> None:
    """Of two folders with pictures of the same names, one has a table; the other gets one after its pictures."""
    sums = {
        (split, n): picture(tmp_path / f"in/{split}/{n}.png", 10 * at + n)
        for at, split in enumerate(("train", "test"))
        for n in (1, 2)
    }
    (tmp_path / "in/train/labels.csv").write_text("filename,Mass\n1.png,1\n2.png,0\n")

    first = ingest(tmp_path)

    found = {key: findings(tmp_path)[total] for key, total in sums.items()}
    assert found == {("train", 1): {"Mass": 1.0}, ("train", 2): {"Mass": 0.0}, ("test", 1): {}, ("test", 2): {}}
    (tmp_path / "in/test/labels.csv").write_text("filename,Mass\n1.png,0.5\n3.png,1\n")
    second = ingest(tmp_path)

    assert findings(tmp_path)[sums["test", 1]] == {"Mass": 0.5}
    assert findings(tmp_path)[sums["train", 1]] == {"Mass": 1.0}
    assert (first.exit_code, second.exit_code) == (Exit.OK, Exit.OK)
    assert second.by_code["W_LABEL_UNMATCHED"] == 1


def test_a_name_that_fits_two_pictures_costs_its_row_and_the_report_says_where(tmp_path: Path) -> None:
    sums = [
        picture(tmp_path / f"in/{folder}/{name}.png", seed)
        for seed, (folder, name) in enumerate((("a", "x"), ("b", "x"), ("b", "y")))
    ]
    (tmp_path / "in/labels.csv").write_text("file,Mass\nx.png,1\ny.png,1\nz.png,1\n")

    report = ingest(tmp_path)

    assert report.exit_code == Exit.PARTIAL
    assert said(report) == {
        "E_LABEL_AMBIGUOUS": "1 of 3 rows refused, the first in line 2: 2 images have the name of the row, and nothing "
        "tells which; stored with 1 images"
    }
    assert "W_LABEL_UNMATCHED: 1 of 3 rows name no image" in [entry.message for entry in report.entries]
    assert [findings(tmp_path)[total] for total in sums] == [{}, {}, {"Mass": 1.0}]
    assert (report.num_labels, report.num_refused) == (1, 1)


def test_columns_that_name_different_images_cost_the_row(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("ab"):
        kinds.picture(tmp_path / f"in/{name}.dcm", seed=seed, patient=f"SYN-{name}", StudyInstanceUID=f"1.2.{seed}")
    (tmp_path / "in/labels.csv").write_text(
        "PatientID,StudyInstanceUID,Mass\nSYN-a,1.2.0,1\nSYN-a,1.2.1,0\nSYN-a,1.2.7,0\n"
    )

    report = ingest(tmp_path)

    assert said(report) == {
        "E_LABEL_KEYS": "1 of 3 rows refused, the first in line 3: two columns of the row name different images; "
        "stored with 1 images"
    }
    assert sorted(findings(tmp_path).values(), key=str) == [{"Mass": 1.0}, {}]


def test_boxes_of_several_pictures_one_of_them_wrong(tmp_path: Path) -> None:
    """A table and a COCO file: the picture with a box that leaves it gets none, the others get theirs."""
    sums = [picture(tmp_path / f"in/{name}.png", seed) for seed, name in enumerate("abc")]
    (tmp_path / "boxes.csv").write_text(
        "image_id,class,x_min,y_min,x_max,y_max\na,Mass,1,2,3,4\nb,Mass,1,2,3,4\nb,Mass,50,2,90,4\n"
    )
    coco = {
        "images": [{"id": n, "file_name": f"{name}.png", "width": 64, "height": 48} for n, name in enumerate("ab")],
        "categories": [{"id": 1, "name": "Mass"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 2, 2]},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 2, 40, 2]},
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(coco))

    images = ingest(tmp_path)
    by_table = ingest(tmp_path, "boxes.csv")
    by_coco = ingest(tmp_path, "boxes.json", label_set="coco")

    assert images.exit_code == Exit.OK
    assert said(by_table) == {
        "E_LABEL_GRID_MISMATCH": "2 of 3 rows refused, the first in line 4: a box leaves the picture by 26 pixels; "
        "stored with 1 images"
    }
    assert said(by_coco) == {
        "E_LABEL_GRID_MISMATCH": "1 of 2 annotations refused, the first in annotation 2: a box leaves the picture by "
        "26 pixels; stored with 1 images"
    }
    assert (by_table.exit_code, by_coco.exit_code) == (Exit.PARTIAL, Exit.PARTIAL)
    assert (by_table.num_labels, by_coco.num_labels) == (1, 1)
    assert "W_BOX_SIZE_UNKNOWN" in by_table.by_code
    assert {total: {key: len(some) for key, some in record.boxes.items()} for total, record in records(tmp_path)} == {
        sums[0]: {"seg": 1, "coco": 1}, sums[1]: {}, sums[2]: {},
    }  # fmt: skip
    (tmp_path / "boxes.csv").write_text("image_id,class,x_min,y_min,x_max,y_max\nb,Mass,1,2,3,4\nb,Mass,50,2,60,4\n")
    assert ingest(tmp_path, "boxes.csv").exit_code == Exit.OK
    assert boxes(tmp_path)[sums[1]] == 2


def test_a_turned_picture_gets_no_boxes_that_may_lie_elsewhere(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(tmp_path / "in/a.png", 1, exif=exif)
    (tmp_path / "in/boxes.csv").write_text("image,class,x,y,w,h\na.png,Mass,1,2,3,4\n")

    report = ingest(tmp_path)

    assert set(said(report)) == {"E_LABEL_ORIENTATION"}
    assert list(boxes(tmp_path).values()) == [None]


def test_points_of_two_series_one_of_them_outside(tmp_path: Path) -> None:
    """The one is stored and counted, the other refused by its line; a corrected table brings it in."""
    uids = ["1.2.1", "1.2.2"]
    for seed, uid in enumerate(uids):
        paths = ct_series(tmp_path / f"in/{uid}", series_uid=uid, patient_id=f"SYN-{uid}")
        for path in paths:
            dataset = pydicom.dcmread(path)
            dataset.PixelData = (np.frombuffer(dataset.PixelData, np.uint16) + seed).astype(np.uint16).tobytes()
            dataset.save_as(path)
    ingest(tmp_path)
    x, y, z = map(float, pydicom.dcmread(paths[0]).ImagePositionPatient)
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
    (tmp_path / "points.csv").write_text(f"{header}{uids[0]},{x},{y},{z},6\n{uids[1]},{x},{y},{z + 900},6\n")

    first = ingest(tmp_path, "points.csv")
    (tmp_path / "points.csv").write_text(f"{header}{uids[0]},{x},{y},{z},6\n{uids[1]},{x},{y},{z},6\n")
    second = ingest(tmp_path, "points.csv")

    assert (first.exit_code, first.num_labels) == (Exit.PARTIAL, 1)
    assert said(first)["E_LABEL_GRID_MISMATCH"].startswith("1 of 2 rows refused, the first in line 3: 1 of 1 points")
    assert (second.exit_code, second.num_labels) == (Exit.OK, 1)
    assert sorted(len(record.boxes["seg"]) for _, record in records(tmp_path)) == [1, 1]


def test_files_that_are_named_and_label_nothing_are_refused_with_a_reason(tmp_path: Path) -> None:
    picture(tmp_path / "in/p1.png", 1)
    texts = {
        "no-key.csv": "Kennung,abnormal\na,1\n",
        "no-key.tsv": "Kennung\tabnormal\na\t1\n",
        "one-column.csv": "file\n",
        "empty.csv": "",
        "no-finding.txt": "file,note\np1.png,cough\n",
        "unknown.csv": "file,Mass\np1.png,NA\n",
        "no-categories.json": '{"images": [], "annotations": []}',
        "nothing.json": '{"images": [], "annotations": [], "categories": []}',
        "other.json": '{"shapes": []}',
        "other.xml": "<annotation/>",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "workbook.xlsx").write_bytes(b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml")
    (tmp_path / "notes.txt").write_text("first, second\n")  # most texts are no tables
    (tmp_path / "in/p1.json").write_text('{"Modality": "DX"}')  # of the image beside it

    report = ingest(tmp_path, "in", "in/p1.json", "notes.txt", "workbook.xlsx", *texts)

    assert report.exit_code == Exit.PARTIAL
    assert report.by_code["E_LABEL_FORMAT"] == len(texts) + 1
    assert all(entry.message for entry in report.entries if entry.code == "E_LABEL_FORMAT")
    assert {entry.code for entry in report.entries} == {"", "E_LABEL_FORMAT", "S_SIDECAR", "S_NOT_AN_IMAGE"}


def test_a_table_in_a_folder_that_names_no_image_is_a_sidecar_and_one_that_does_is_read(tmp_path: Path) -> None:
    sums = [picture(tmp_path / f"in/p{n}.png", n) for n in (1, 2)]
    (tmp_path / "in/other.csv").write_text("what,size\nroom,12\n")
    (tmp_path / "in/labels.csv").write_text("Aufnahme;abnormal\np1;1\np2;0,25\n")
    (tmp_path / "in/broken.csv").write_text('a,b\n"c,d\n')
    (tmp_path / "in/survival.csv").write_text("Brats18ID,Age,Survival\np1,60,289\np2,52,616\n")
    (tmp_path / "in/participants.tsv").write_text("participant_id\tage\nsub-01\t40\n")
    (tmp_path / "in/scans.tsv").write_text("filename\tquality\nsub-01.png\t1\n")

    report = ingest(tmp_path)

    assert (report.exit_code, report.by_code["S_SIDECAR"]) == (Exit.OK, 5)
    assert [findings(tmp_path)[total] for total in sums] == [{"abnormal": 1.0}, {"abnormal": 0.25}]


def test_a_text_as_a_spreadsheet_saves_it_is_read_beside_its_images(tmp_path: Path) -> None:
    total = picture(tmp_path / "in/p1.png", 1)
    (tmp_path / "in/labels.txt").write_text("Datei\tAuff\xe4llig\np1.png\t1\n", encoding="utf-16")

    assert ingest(tmp_path).exit_code == Exit.OK
    assert findings(tmp_path)[total] == {"Auff\xe4llig": 1.0}


def test_options_name_the_key_and_the_labels_of_a_table_that_comes_later(tmp_path: Path) -> None:
    total = picture(tmp_path / "in/p1.png", 1)
    (tmp_path / "labels.csv").write_text("id,Age,score,rater\np1,1,0.5,A\n")
    ingest(tmp_path)

    without = ingest(tmp_path, "labels.csv")
    options = ["--key-column", "id", "--label-column", "score", "--readers", "keep", "--workers", "1", "--json"]
    done = medssl("ingest", tmp_path / "labels.csv", "--cache", tmp_path / "cache", *options)

    assert set(said(without)) == {"E_LABEL_FORMAT"}
    assert "--key-column" in next(entry.hint for entry in without.entries)
    assert done.exit_code == Exit.OK
    policy = json.loads(done.stdout)["policy"]
    assert [policy[name] for name in ("key_column", "label_columns", "readers")] == ["id", ["score"], "keep"]
    assert findings(tmp_path)[total] == {"score": 0.5}


def test_tables_that_contradict_each_other_are_refused_row_by_row(tmp_path: Path) -> None:
    sums = [picture(tmp_path / f"in/p{n}.png", n) for n in (1, 2)]
    (tmp_path / "in/a.csv").write_text("file,Mass\np1.png,1\n")
    (tmp_path / "in/b.csv").write_text("file,Mass\np1.png,0\np2.png,0\n")

    report = ingest(tmp_path)

    assert set(said(report)) == {"E_LABEL_CONFLICT"}
    assert said(report)["E_LABEL_CONFLICT"].startswith("1 of 2 rows refused, the first in line 2")
    assert [findings(tmp_path)[total] for total in sums] == [{"Mass": 1.0}, {"Mass": 0.0}]


def test_boxes_find_their_place_on_smaller_copies_or_are_refused(tmp_path: Path) -> None:
    """Copies of 64 x 48: of a picture ten times as large, of a square one that was padded or stretched, of none."""
    sums = [picture(tmp_path / f"in/p{n}.png", n) for n in range(3)]
    (tmp_path / "train.csv").write_text(
        "image_id,class_name,x_min,y_min,x_max,y_max,width,height\n"
        "p0,Mass,100,50,200,150,640,480\np1,Mass,100,50,200,150,640,640\np2,Mass,100,50,200,150,,\n"
    )
    ingest(tmp_path)
    options = ["--cache", tmp_path / "cache", "--workers", "1", "--json"]

    known = medssl("ingest", tmp_path / "train.csv", *options)
    said_more = ["--box-size", "640x480", "--box-copies", "stretched"]
    all_of_them = medssl("ingest", tmp_path / "train.csv", *options, *said_more)
    wrong = medssl("ingest", tmp_path / "train.csv", *options, "--box-size", "0x480")

    assert [done.exit_code for done in (known, all_of_them, wrong)] == [Exit.PARTIAL, Exit.OK, Exit.USAGE]
    assert "--box-size is columns and rows" in wrong.stderr
    report = json.loads(known.stdout)
    assert [entry.get("code", "") for entry in report["items"]] == ["", "E_LABEL_GRID_MISMATCH"]
    assert "W_BOXES_SCALED: of 1 pictures, from 640 x 480 to 64 x 48 pixels" in report["items"][0]["message"]
    assert "box_size" not in report["policy"]
    report = json.loads(all_of_them.stdout)
    assert "of 3 pictures, from 640 x 480 to 64 x 48 pixels, or of 1 other sizes" in report["items"][0]["message"]
    assert [report["policy"][name] for name in ("box_size", "box_copies")] == [[640, 480], "stretched"]
    corners = {total: record.boxes["seg"][0] for total, record in records(tmp_path)}
    assert [corners[total].lower[:2] for total in sums] == [(9.5, 4.5), (9.5, 3.25), (9.5, 4.5)]
    assert [corners[total].upper[:2] for total in sums] == [(19.5, 14.5), (19.5, 10.75), (19.5, 14.5)]


def test_spellings_of_one_name_that_say_different_things_cost_the_image(tmp_path: Path) -> None:
    """Half of the boxes teach that there is nothing at the others, and one of two lists that the other's is absent."""
    sums = [picture(tmp_path / f"in/{name}.png", seed) for seed, name in enumerate("ab")]
    (tmp_path / "in/found.csv").write_text("file,Finding Labels\na.png,Mass\nA.PNG,Edema\nb.png,Mass\nb,Mass\n")
    (tmp_path / "boxes.csv").write_text("file,class,x,y,w,h\na.png,Mass,1,2,3,4\nin/a,Mass,5,6,7,8\nb,Mass,1,2,3,4\n")

    found = ingest(tmp_path)
    drawn = ingest(tmp_path, "boxes.csv")

    for report, number in ((found, 4), (drawn, 3)):
        assert said(report) == {
            "E_LABEL_FORMAT": f"2 of {number} rows refused, the first in line 2: rows call one image by different "
            "spellings of its name, and say different things; stored with 1 images"
        }
    assert [findings(tmp_path)[total] for total in sums] == [{}, {"Mass": 1.0, "Edema": 0.0}]
    assert [boxes(tmp_path)[total] for total in sums] == [None, 1]
