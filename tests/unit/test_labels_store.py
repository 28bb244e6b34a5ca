"""Annotations find their images, of this run or of an earlier one, and are stored with them."""

import json
from dataclasses import replace
from pathlib import Path, PurePath
from types import SimpleNamespace

import numpy as np
import pytest

from medssl_cli.cache.annotations import add_boxes, add_findings
from medssl_cli.cache.items import Box, ItemRecord, Provenance
from medssl_cli.cache.store import Cache
from medssl_cli.engine.ingest.failures import Failure
from medssl_cli.engine.ingest.labels import (
    Annotation,
    Choice,
    Matches,
    ReadTask,
    match,
    names_of,
    read_annotations,
    store_annotations,
    verdict,
)
from medssl_cli.engine.ingest.matching import Index, KnownImage
from medssl_cli.engine.ingest.tasks import StoredImage, StoredLabel
from medssl_cli.errors import InputError
from medssl_cli.formats.labels import AnnotationKind, MaskLabel, Reference
from medssl_cli.imaging.volume import Volume
from tests.toy_cache import toy_cache
from tests.unit.test_labels_rtstruct import square, structure_set

BOX = Box(name="nodule", lower=(1, 2, 3), upper=(4, 5, 6.5), diameter_mm=7.25, num_readers=3)


def image_of(cache: Cache, number: int) -> StoredImage:
    return StoredImage.of(cache.records()[number])


def picture_cache(root: Path, *, patients: tuple[str, ...] = ("A", "B")) -> tuple[Cache, list[StoredImage]]:
    """One picture of 100 x 80 pixels for each patient, all called scan.png."""
    cache = Cache.open_or_create(root)
    for value, patient in enumerate(patients):
        volume = Volume(np.full((1, 100, 80, 1), value, np.uint8), np.eye(4), "DX")
        key = cache.pseudonyms.of
        record = ItemRecord(
            item_id=cache.item_id(volume), patient_key=key("patient", patient), study_key=key("study", patient),
            series_key=key("series", "scan"), has_patient_identity=True, modality="DX", units="a.u.",
            shape=volume.shape, dtype="uint8", affine=tuple(map(tuple, np.eye(4).tolist())), image_sha256="0" * 64,
            spacing_kind="unknown",
            provenance=Provenance(
                source_kind="picture", num_files=1, medssl_version="0.1.0", key_id=cache.pseudonyms.key_id
            ),
        )  # fmt: skip
        with cache.writing():
            cache.add(volume, record)
    by_patient = {record.patient_key: StoredImage.of(record) for record in cache.records()}
    return cache, [by_patient[cache.pseudonyms.of("patient", patient)] for patient in patients]


def read(source: Path, kind: AnnotationKind, choice: Choice | None = None) -> tuple[Annotation, ...]:
    found = read_annotations(ReadTask(source, kind, choice or Choice()))
    assert not isinstance(found, Failure), found
    return found


def store(matches: Matches, cache: Cache, choice: Choice | None = None) -> list[StoredLabel | Failure]:
    with cache.writing():
        return [answer for task in matches.tasks(cache.root, choice or Choice()) for answer in store_annotations(task)]


# Boxes and findings in the store


def test_boxes_and_findings_are_kept_with_their_item(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=2)
    item = cache.records()[0].item_id

    with cache.writing():
        assert add_boxes(cache, item, "readers", [BOX])
        assert add_findings(cache, item, "report", {"Mass": 1.0, "Edema": 0.0})

    for one in (cache, Cache.open(cache.root)):
        record = one.records()[0]
        assert record.boxes == {"readers": (BOX,)}
        assert record.findings == {"report": {"Mass": 1.0, "Edema": 0.0}}
        assert "seg" in record.labels
    assert not any(cache.verify())


def test_the_same_again_is_no_change_and_something_else_is_a_conflict(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=1)
    item = cache.records()[0].item_id

    with cache.writing():
        assert add_boxes(cache, item, "seg", [BOX])
        assert not add_boxes(cache, item, "seg", [BOX])
        assert add_findings(cache, item, "seg", {"Mass": 1.0})
        assert not add_findings(cache, item, "seg", {"Mass": 1.0})
        with pytest.raises(InputError, match="E_LABEL_CONFLICT"):
            add_boxes(cache, item, "seg", [])
        with pytest.raises(InputError, match="E_LABEL_CONFLICT"):
            add_findings(cache, item, "seg", {"Mass": 0.0})
        with pytest.raises(ValueError, match="label set"):
            add_findings(cache, item, "../seg", {"Mass": 0.0})


# Which image is meant


@pytest.fixture
def known(tmp_path: Path) -> list[KnownImage]:
    cache = toy_cache(tmp_path / "cache", num_patients=4)
    images = [image_of(cache, number) for number in range(4)]
    return [
        KnownImage(images[0], "1.1", "9.1", frozenset({"1.1.1", "1.1.2"}), "5.1", ("P1", "H\\P1")),
        KnownImage(images[1], "1.1", "9.1", frozenset({"1.1.3"}), "5.1", ("P1", "H\\P1")),  # another phase of it
        KnownImage(images[2], "1.2", "9.2", frozenset({"1.2.1"}), "5.2", ("P2",)),
        KnownImage(images[3], place=PurePath("in/p3/Case3.NII.GZ"), patients=("case3",)),
    ]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (Reference(sop_uids=frozenset({"1.1.3", "8"}), series_uid="1.2"), [1]),
        (Reference(series_uid="1.1"), [0, 1]),
        (Reference(series_uid="case3"), []),
        (Reference(series_uid="Case3"), [3]),
        (Reference(frame_of_reference="9.2"), [2]),
        (Reference(frame_of_reference="9.1"), []),
        (Reference(series_uid="7", frame_of_reference="9.2"), []),
        (Reference(sop_uids=frozenset({"8"}), frame_of_reference="9.2"), []),
        (Reference(study="5.1"), [0, 1]),
        (Reference(patient="P1"), [0, 1]),
        (Reference(patient="H\\P1"), [0, 1]),
        (Reference(name="p3/case3.nii"), [3]),
        (Reference(name="1.2", series_uid="1.2", study="1.2", patient="1.2"), [2]),
        (Reference(name="P2", series_uid="P2", study="P2", patient="P2"), [2]),
        (Reference(), []),
    ],
    ids=[
        "instance-before-series", "series", "another-case", "series-as-file-name", "frame", "frame-of-two",
        "other-series",
        "other-instance", "study", "patient", "patient-with-issuer", "file", "any-series", "any-patient", "nothing",
    ],
)  # fmt: skip
def test_the_most_specific_word_decides(known: list[KnownImage], reference: Reference, expected: list[int]) -> None:
    found = Index(known, None).find(reference)

    assert [image.item_id for image in found] == [known[number].image.item_id for number in expected]


def test_names_of_the_images_are_known_to_tables(known: list[KnownImage]) -> None:
    assert {"1.1", "5.2", "p2", "case3"} <= names_of(known)


def test_a_known_image_says_what_its_headers_say() -> None:
    image = StoredImage("a", "b", True, (1, 1, 1), np.eye(4), ())
    headers = [
        SimpleNamespace(
            source=Path(f"in/{number}.dcm"), SeriesInstanceUID="1.1", FrameOfReferenceUID="", StudyInstanceUID="5.1",
            SOPInstanceUID=f"1.1.{number}", PatientID="P1", IssuerOfPatientID="H", NumberOfFrames=1, frame=0,
        )
        for number in (1, 2)
    ]  # fmt: skip

    assert KnownImage.of_series(image, headers) == KnownImage(
        image, "1.1", None, frozenset({"1.1.1", "1.1.2"}), "5.1", ("P1", "H\\P1"), None
    )
    assert KnownImage.of_series(image, headers[:1]).place == Path("in/1.dcm")


def test_files_of_one_name_are_told_apart_by_their_folders_or_not_at_all(known: list[KnownImage]) -> None:
    here, there = (
        replace(known[number], place=PurePath(f"in/{folder}/x.png"), patients=(folder,))
        for number, folder in ((0, "a"), (1, "b"))
    )
    index = Index([here, there], None)

    assert index.find(Reference(name="b/x.png")) == [there.image]
    assert index.find(Reference(name="x.png")) == []
    same = Index([here, replace(there, patients=here.patients)], None)
    assert same.find(Reference(name="x.png")) == [here.image, there.image]


def test_later_labels_find_images_by_pseudonym(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=3)  # series, study and patient "0", "1", "2"
    expected = next(r.item_id for r in cache.records() if r.series_key == cache.pseudonyms.of("series", "1"))
    index = Index([], cache)

    for reference in (Reference(series_uid="1"), Reference(study="1"), Reference(patient="1"), Reference(name="1.png")):
        assert [image.item_id for image in index.find(reference)] == [expected]
    assert index.find(Reference(series_uid="3")) == []


def test_a_name_that_pictures_of_several_patients_have_is_nobodys(tmp_path: Path) -> None:
    cache, _ = picture_cache(tmp_path / "cache")

    assert Index([], cache).find(Reference(name="scan.png")) == []


# From a file to the cache


def test_a_structure_set_becomes_the_label_map_of_its_series(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=1)
    (record,) = cache.records()
    path = structure_set(tmp_path / "rt.dcm", {"Heart": [square(3.5, 4.5, 9.5, 20.5, 2)]}, record.affine_array)
    choice = Choice(label_set="contours")
    annotations = read(path, "rtstruct", choice)

    matches = match(annotations, [KnownImage(image_of(cache, 0), series_uid="1.2.3.4")], cache)

    assert isinstance(annotations[0].label, MaskLabel)
    assert annotations[0].label.painter is None  # voxels and contours stay in the child
    assert store(matches, cache, choice) == [StoredLabel(is_new=True, warnings=())]
    assert store(matches, cache, choice) == [StoredLabel(is_new=False, warnings=())]
    (record,) = cache.records()
    assert record.labels["contours"].classes == {1: "Heart"}
    assert record.labels["contours"].voxels_per_class == {1: 96}
    assert cache.read_label(record, "contours").voxels[0, 4:10, 5:21, 2].all()


def test_a_dry_run_judges_and_writes_nothing(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=1)
    (record,) = cache.records()
    good = structure_set(tmp_path / "good.dcm", {"Heart": [square(3.5, 4.5, 9.5, 20.5, 2)]}, record.affine_array)
    bad = structure_set(tmp_path / "bad.dcm", {"Heart": [square(3.5, 4.5, 9.5, 20.5, 99)]}, record.affine_array)
    matches = match(
        (*read(good, "rtstruct"), *read(bad, "rtstruct")), [KnownImage(image_of(cache, 0), series_uid="1.2.3.4")]
    )
    choice = Choice(label_set="contours")

    answers = [a for task in matches.tasks(cache.root, choice, dry_run=True) for a in store_annotations(task)]

    assert answers[0] == StoredLabel(is_new=True, warnings=())
    assert isinstance(answers[1], Failure)
    assert answers[1].code == "E_CONTOUR"
    assert list(cache.records()[0].labels) == ["seg"]


def test_an_empty_label_is_stored_with_a_warning(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=1)
    affine = cache.records()[0].affine_array
    path = structure_set(tmp_path / "rt.dcm", {"Heart": [square(3.1, 4.1, 3.4, 4.4, 2)]}, affine)
    matches = match(read(path, "rtstruct"), [KnownImage(image_of(cache, 0), series_uid="1.2.3.4")])

    assert store(matches, cache, Choice(label_set="x")) == [StoredLabel(is_new=True, warnings=("W_EMPTY_LABEL",))]


def test_boxes_of_pictures_reach_the_picture_of_their_size(tmp_path: Path) -> None:
    cache, images = picture_cache(tmp_path / "cache")
    document = {
        "images": [{"id": 1, "file_name": "scan.png", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "Lung"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    other = StoredImage("z" * 26, "z" * 26, True, (50, 40, 1), np.eye(4), ())
    known = [
        KnownImage(images[0], place=PurePath("large/scan.png"), patients=("A",)),
        KnownImage(other, place=PurePath("small/scan.png"), patients=("A",)),
    ]

    matches = match(read(tmp_path / "coco.json", "coco"), known, cache)

    assert store(matches, cache) == [StoredLabel(is_new=True, warnings=())]
    record = next(record for record in cache.records() if record.item_id == images[0].item_id)
    assert record.boxes["seg"] == (Box(name="Lung", lower=(9.5, 19.5, -0.5), upper=(39.5, 59.5, 0.5)),)


def test_findings_reach_every_image_of_a_patient_and_rows_without_one_are_counted(tmp_path: Path) -> None:
    cache, _ = picture_cache(tmp_path / "cache", patients=("A", "B"))
    (tmp_path / "t.csv").write_text("PatientID,Mass,Edema\nB,1,0\nC,1,1\n")

    matches = match(read(tmp_path / "t.csv", "table"), [], cache)
    answers = store(matches, cache)

    assert matches.num_unmatched == {tmp_path / "t.csv": 1}
    message = "W_LABEL_UNMATCHED: 1 labels, or images that they were drawn on, are not here"
    assert verdict(answers, 1) == StoredLabel(is_new=True, warnings=("W_LABEL_UNMATCHED",), message=message)
    stored = {record.patient_key: record.findings for record in cache.records()}
    assert stored[cache.pseudonyms.of("patient", "B")] == {"seg": {"Mass": 1.0, "Edema": 0.0}}
    assert stored[cache.pseudonyms.of("patient", "A")] == {}


def test_one_answer_for_a_file_of_many_labels() -> None:
    good, old = StoredLabel(is_new=True, warnings=("W_EMPTY_LABEL",)), StoredLabel(is_new=False, warnings=())
    bad, fatal = Failure("E_CONTOUR", "beside"), Failure("E_IO", "disk full", is_fatal=True)

    assert verdict([old, old], 0) == old
    assert verdict([good, old], 0) == good
    assert verdict([good, bad, bad], 0) == replace(good, refused=(bad, bad))
    assert verdict([bad], 0) == bad
    assert verdict([bad, fatal], 0) == Failure("E_IO", "disk full (2 of 2 labels)", is_fatal=True)
    without = verdict([], 5)
    assert isinstance(without, Failure)
    assert without.code == "E_LABEL_WITHOUT_IMAGE"


def test_failures_of_reading_are_values(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n")

    for kind in ("seg", "rtstruct", "lidc", "luna", "coco", "table"):
        found = read_annotations(ReadTask(tmp_path / "t.csv", kind))  # type: ignore[arg-type]
        assert isinstance(found, Failure)
        assert found.code == "E_LABEL_FORMAT"
        assert str(tmp_path) not in found.message
