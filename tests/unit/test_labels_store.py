"""Annotations find their images, of this run or of an earlier one, and are stored with them."""

import json
from dataclasses import replace
from pathlib import Path, PurePath
from types import SimpleNamespace

import numpy as np
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.cache.annotations import add_boxes, add_findings
from medssl_cli.cache.items import Box, ItemRecord, Provenance
from medssl_cli.cache.store import Cache
from medssl_cli.formats.labels import AnnotationKind, MaskLabel, Reference
from medssl_cli.imaging.volume import Volume
from medssl_cli.ingest.failures import Failure
from medssl_cli.ingest.known_images import KnownImage, names_of
from medssl_cli.ingest.labels import (
    Annotation,
    Choice,
    Matches,
    ReadTask,
    match,
    read_annotations,
    store_annotations,
    verdict,
)
from medssl_cli.ingest.matching import Index
from medssl_cli.ingest.tasks import StoredImage, StoredLabel
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
    return found.annotations


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
        (Reference(series_uid="case4"), []),
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
    names = names_of(known)

    assert {level: sorted(some) for level, some in names.items()} == {
        "sop": ["1.1.1", "1.1.2", "1.1.3", "1.2.1"], "name": ["case3"], "series": ["1.1", "1.2"],
        "study": ["5.1", "5.2"], "patient": ["case3", "p1", "p2"],
    }  # fmt: skip


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


def pictures(known: list[KnownImage], *places: str) -> list[KnownImage]:
    """Images that are files at these places, each another item, all of one patient."""
    return [
        KnownImage(one.image, place=PurePath(place), patients=("same",))
        for one, place in zip(known, places, strict=False)
    ]


@pytest.mark.parametrize(
    ("name", "near", "places", "expected"),
    [
        ("x.png", "in/a", ["in/a/x.png", "in/b/x.png"], "in/a/x.png"),
        ("x.png", "in/a", ["in/a/images/x.png", "in/b/x.png"], "in/a/images/x.png"),
        ("x.png", "in/a", ["in/a/x.png", "in/a/more/x.png"], "in/a/x.png"),
        ("x", "in/a", ["in/b/x.png"], "in/b/x.png"),
        ("x.png", "in/t", ["in/b/x.png", "in/c/x.jpg"], "in/b/x.png"),
        ("x.png", "in", ["in/a/x.png", "in/b/x.png"], None),
        ("x.png", "in/t", ["in/a/x.png", "in/b/x.png"], None),
        ("b/x.png", "in/t", ["in/a/x.png", "in/b/x.png"], "in/b/x.png"),
        ("B\\X.PNG", "in/t", ["in/a/x.png", "in/b/x.png"], "in/b/x.png"),
        ("../b/x.png", "in/a", ["in/a/x.png", "in/b/x.png"], "in/b/x.png"),
        ("./x.png", "in/a", ["in/a/x.png", "in/b/x.png"], "in/a/x.png"),
        ("/data/b/x.png", "in/t", ["in/a/x.png", "data/b/x.png"], "data/b/x.png"),
        ("c/x.png", "in/t", ["in/a/x.png", "in/b/x.png"], ""),
        ("c/x.png", "in/t", ["in/a/x.png"], ""),
        ("b/x.png", "in/a", ["in/a/b/x.png", "in/b/x.png"], "in/a/b/x.png"),
    ],
    ids=[
        "beside", "below", "beside-before-below", "elsewhere", "suffix", "two-below", "two-elsewhere", "folder",
        "other-notation", "up", "dot", "from-the-root", "no-such-folder", "another-folder", "folder-below",
    ],
)  # fmt: skip
def test_files_of_one_name_are_told_apart_by_the_folder_of_the_table_and_their_own(
    known: list[KnownImage], name: str, near: str, places: list[str], expected: str | None
) -> None:
    images = pictures(known, *places)
    index = Index(images, None)

    if expected is None:
        with pytest.raises(InputError, match="E_LABEL_AMBIGUOUS: 2 images"):
            index.find(Reference(name=name), near=PurePath(near))
        return
    found = index.find(Reference(name=name), near=PurePath(near))
    assert found == [one.image for one in images if str(one.place) == expected]


def test_folders_that_all_names_share_need_not_be_those_of_the_images(known: list[KnownImage]) -> None:
    images = pictures(known, "in/p1/x.png", "in/p2/x.png")
    index = Index(images, None)

    assert index.find(Reference(name="CheXpert/train/p2/x.png", num_shared=2)) == [images[1].image]
    assert index.find(Reference(name="CheXpert/train/p3/x.png", num_shared=2)) == []


def test_images_of_this_run_are_never_found_by_their_name_alone_in_the_cache(tmp_path: Path) -> None:
    cache, images = picture_cache(tmp_path / "cache", patients=("A",))
    index = Index([KnownImage(images[0], place=PurePath("in/a/scan.png"))], cache)

    assert index.find(Reference(name="b/scan.png")) == []
    assert [image.item_id for image in Index([], cache).find(Reference(name="b/scan.png"))] == [images[0].item_id]


def test_images_of_one_file_are_meant_together(known: list[KnownImage]) -> None:
    images = pictures(known, "in/x.nii", "in/x.nii")

    assert Index(images, None).find(Reference(name="x.nii")) == [one.image for one in images]


def test_other_columns_of_the_row_tell_images_of_one_name_apart_and_must_not_contradict(
    known: list[KnownImage],
) -> None:
    images = [replace(known[0], place=PurePath("in/a/x.dcm")), replace(known[2], place=PurePath("in/b/x.dcm"))]
    index = Index(images, None)

    assert index.find(Reference(name="x.dcm", also=Reference(patient="P2"))) == [images[1].image]
    assert index.find(Reference(name="a/x.dcm", also=Reference(patient="nobody"))) == [images[0].image]
    assert index.find(Reference(study="5.1", also=Reference(patient="P1"))) == [images[0].image]
    for reference in (
        Reference(study="5.1", also=Reference(patient="P2")),
        Reference(name="a/x.dcm", also=Reference(study="5.2")),
        Reference(sop_uids=frozenset({"1.1.1"}), also=Reference(series_uid="1.2")),
    ):
        with pytest.raises(InputError, match="E_LABEL_KEYS"):
            index.find(reference)


def test_patients_known_by_their_files_only_are_those_near_the_table(known: list[KnownImage]) -> None:
    images = pictures(known, "in/train/same_1.png", "in/test/same_1.png")
    index = Index(images, None)

    assert index.find(Reference(patient="same"), near=PurePath("in/train")) == [images[0].image]
    assert index.find(Reference(patient="same"), near=PurePath("in")) == [one.image for one in images]


def test_a_patient_id_may_be_the_whole_name_of_a_file(known: list[KnownImage]) -> None:
    images = pictures(known, "in/0004cfab-14fd.png")

    assert Index(images, None).find(Reference(patient="0004cfab-14fd")) == [images[0].image]


def test_a_finding_of_one_slice_is_not_one_of_its_volume(known: list[KnownImage]) -> None:
    index = Index(known, None)

    assert index.find(Reference(sop_uids=frozenset({"1.2.1"})), is_whole=True) == [known[2].image]
    with pytest.raises(InputError, match="E_LABEL_AMBIGUOUS: the row is about one slice"):
        index.find(Reference(sop_uids=frozenset({"1.1.1"})), is_whole=True)


def test_later_labels_find_images_by_pseudonym(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=3)  # series, study and patient "0", "1", "2"
    expected = next(r.item_id for r in cache.records() if r.series_key == cache.pseudonyms.of("series", "1"))
    index = Index([], cache)

    for reference in (Reference(series_uid="1"), Reference(study="1"), Reference(patient="1"), Reference(name="1.png")):
        assert [image.item_id for image in index.find(reference)] == [expected]
    assert index.find(Reference(series_uid="3")) == []


def test_a_name_that_pictures_of_several_patients_have_is_nobodys(tmp_path: Path) -> None:
    cache, _ = picture_cache(tmp_path / "cache")

    with pytest.raises(InputError, match="E_LABEL_AMBIGUOUS"):
        Index([], cache).find(Reference(name="scan.png"))


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

    (stored,) = store(matches, cache, Choice(label_set="x"))
    assert isinstance(stored, StoredLabel)
    assert (stored.is_new, stored.warnings) == (True, ("W_EMPTY_LABEL",))
    assert "7" in stored.message  # the number of the structure


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
    assert answers == [StoredLabel(is_new=True, warnings=())]
    stored = {record.patient_key: record.findings for record in cache.records()}
    assert stored[cache.pseudonyms.of("patient", "B")] == {"seg": {"Mass": 1.0, "Edema": 0.0}}
    assert stored[cache.pseudonyms.of("patient", "A")] == {}


def test_one_answer_for_a_file_of_masks() -> None:
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
    message = "W_LABEL_UNMATCHED: 1 labels, or images that they were drawn on, are not here"
    assert verdict([old], 1) == StoredLabel(is_new=False, warnings=("W_LABEL_UNMATCHED",), message=message)


def test_a_row_that_gives_boxes_and_a_finding_counts_once(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,x,y,w,h,Target\na,1,2,3,4,1\na,5,6,7,8,1\nb,,,,,0\nc,,,,,1\n,1,2,3,4,1\n")

    found = read_annotations(ReadTask(tmp_path / "t.csv", "table"))

    assert not isinstance(found, Failure)
    assert found.num_rows == 5
    assert match(found.annotations, []).num_unmatched == {tmp_path / "t.csv": 4}


def test_failures_of_reading_are_values(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n")

    for kind in ("seg", "rtstruct", "lidc", "luna", "coco", "table"):
        found = read_annotations(ReadTask(tmp_path / "t.csv", kind))  # type: ignore[arg-type]
        assert isinstance(found, Failure)
        assert found.code == "E_LABEL_FORMAT"
        assert str(tmp_path) not in found.message
