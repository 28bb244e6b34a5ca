"""Tables of findings: what is taken from them, and what never is."""

from pathlib import Path

import numpy as np
import pytest

from medssl_cli.errors import InputError
from medssl_cli.formats.labels import BoxLabel, FindingsLabel, name_key
from medssl_cli.formats.labels.table import read_table


def table(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_bytes("\r\n".join(lines).encode(encoding))
    return path


def findings(path: Path) -> dict[str | None, dict[str, float]]:
    labels = read_table(path)
    assert all(isinstance(label, FindingsLabel) for label in labels)
    return {
        label.reference.name or label.reference.study or label.reference.patient or label.reference.series_uid: (
            label.findings
        )
        for label in labels
        if isinstance(label, FindingsLabel)
    }


def test_columns_of_zeros_and_ones_are_findings(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.csv",
        "file,Patient Age,Sex,Cardiomegaly,Pleural Effusion,comment,Fold",
        "a.png,1,0,1,0.25,John Doe was here,1",
        "b.png,0,1,0.0,,,0",
        "c.png,1,1,-1,TRUE,,1",
    )

    assert findings(path) == {
        "a.png": {"Cardiomegaly": 1.0, "Pleural Effusion": 0.25},
        "b.png": {"Cardiomegaly": 0.0},
        "c.png": {"Pleural Effusion": 1.0},
    }


def test_names_with_bars_between_them_are_findings_and_every_other_name_is_absent(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age",
        "a.png,Mass|Edema,12,61,77",
        "b.png,No Finding,0,62,50",
    )

    assert findings(path) == {"a.png": {"Mass": 1.0, "Edema": 1.0}, "b.png": {"Mass": 0.0, "Edema": 0.0}}


@pytest.mark.parametrize(
    ("column", "level"),
    [
        ("StudyInstanceUID", "study"),
        ("SeriesInstanceUID", "series_uid"),
        ("PatientID", "patient"),
        ("participant_id", "patient"),
    ],
)
def test_rows_may_be_about_a_study_a_series_or_a_patient(tmp_path: Path, column: str, level: str) -> None:
    (label,) = read_table(table(tmp_path / "t.csv", f"{column},Mass", "1.2.3,1"))

    assert getattr(label.reference, level) == "1.2.3"
    assert label.reference.name is None


def test_a_key_column_of_unknown_name_is_recognised_by_its_values(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "note;Bild;Mass", "x;Scan7.nii.gz;1", "y;scan8.nii.gz;0")

    labels = read_table(path, known=frozenset({"scan7", "scan8", "scan9"}))

    assert [label.reference.name for label in labels] == ["Scan7.nii.gz", "scan8.nii.gz"]
    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read_table(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_encodings_are_told_apart(tmp_path: Path, encoding: str) -> None:
    path = table(tmp_path / "t.csv", "file\tMass\tKommentar", "M\xfcller.png\t1\tgro\xdf", encoding=encoding)

    assert findings(path) == {"M\xfcller.png": {"Mass": 1.0}}


def test_free_text_is_never_taken(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "file,findings", "a.png,the patient Mr. O'Neil has a cough; see 12^3")

    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read_table(path)


def test_more_names_than_findings_can_have_are_free_text(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "file,findings", *[f"{i}.png,Name {i}" for i in range(201)])

    with pytest.raises(InputError, match="E_LABEL_FORMAT: 201 different names"):
        read_table(path)


def test_rows_that_contradict_each_other_are_refused_and_repeated_ones_are_not(tmp_path: Path) -> None:
    assert len(findings(table(tmp_path / "t.csv", "file,Mass", "a.png,1", "a.png,1"))) == 1
    with pytest.raises(InputError, match="E_LABEL_FORMAT: 1 rows contradict"):
        read_table(table(tmp_path / "t.csv", "file,Mass", "a.png,1", "a.png,0"))


@pytest.mark.parametrize(
    "lines",
    [
        ("file",),
        ("file,Age", "a,1"),
        ("Mass,Edema", "1,0"),
        ("file,Mass", "a,1,2"),
        ("file,Mass", ",1"),
        ("file,Mass,Mass", "a,1,1"),
        ("file,Mass", 'a,"1'),
        ("file,Mass", "a,\0"),
    ],
    ids=["one-column", "no-finding", "no-key", "ragged", "empty-key", "name-twice", "open-quote", "zero"],
)
def test_malformed_tables_are_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    path = table(tmp_path / "t.csv", *lines)

    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read_table(path)


def test_boxes_of_a_table_that_says_how_large_the_pictures_are(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.csv", "image,x,y,w,h,width,height,label", "a.png,1,2,3,4,50,40,Mass", "a.png,0,0,5,5,50,40,Edema"
    )

    (label,) = read_table(path)

    assert isinstance(label, BoxLabel)
    boxes = label.to_grid((50, 40, 1), np.eye(4)).boxes
    assert [(box.name, box.lower, box.upper) for box in boxes] == [
        ("Mass", (0.5, 1.5, -0.5), (3.5, 5.5, 0.5)),
        ("Edema", (-0.5, -0.5, -0.5), (4.5, 4.5, 0.5)),
    ]


@pytest.mark.parametrize("header", ["Image Index,Finding Label,x,y,w,h", "Image Index,Finding Label,Bbox [x,y,w,h]"])
def test_boxes_of_the_nih_are_for_1024_pixels(tmp_path: Path, header: str) -> None:
    (label,) = read_table(table(tmp_path / "t.csv", header, "a.png,Mass,863.25,693.5,72,112"))

    assert isinstance(label, BoxLabel)
    assert label.to_grid((1024, 1024, 1), np.eye(4)).boxes[0].lower == (862.75, 693.0, -0.5)
    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH"):
        label.to_grid((320, 320, 1), np.eye(4))


def test_boxes_for_pictures_of_unknown_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="E_LABEL_FORMAT: boxes for pictures of unknown size"):
        read_table(table(tmp_path / "t.csv", "image,x,y,w,h,label", "a.png,1,2,3,4,Mass"))


def test_names_of_one_image_are_the_same_in_every_notation() -> None:
    assert len({name_key(name) for name in ("a/B.nii.gz", "c\\b.PNG", "b", "B.dcm")}) == 1
