"""Tables of findings: what is taken from them, and what never is."""

from pathlib import Path

import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import FindingsLabel, Reading, folders_of, name_key
from medssl_cli.formats.labels.table import read_table
from medssl_cli.formats.table_choice import TableChoice


def table(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_bytes("\r\n".join(lines).encode(encoding))
    return path


def read(path: Path, *lines: str, encoding: str = "utf-8", **choice: object) -> Reading:
    """A table of these lines, as it is read when a user names it."""
    return read_table(table(path / "t.csv", *lines, encoding=encoding), choice=TableChoice(**choice))  # type: ignore[arg-type]


def refused_lines(reading: Reading) -> list[int]:
    return [row.row for row in reading.refused]


def findings(path: Path | Reading) -> dict[str | None, dict[str, float]]:
    labels = (path if isinstance(path, Reading) else read_table(path)).labels
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
    (label,) = read(tmp_path, f"{column},Mass", "1.2.3,1").labels

    assert getattr(label.reference, level) == "1.2.3"
    assert label.reference.name is None


# Whose a row is


@pytest.mark.parametrize("order", [1, -1], ids=["patient-first", "study-first"])
def test_the_most_specific_key_decides_whatever_the_order_of_the_columns(tmp_path: Path, order: int) -> None:
    header, one, other = (
        ",".join([*pair[::order], value])
        for pair, value in ((("PatientID", "StudyInstanceUID"), "Mass"), (("P", "1.1"), "1"), (("P", "1.2"), "0"))
    )

    labels = read(tmp_path, header, one, other).labels

    assert [label.reference.study for label in labels] == ["1.1", "1.2"]
    assert [label.reference.patient for label in labels] == [None, None]
    assert [label.reference.also.patient for label in labels if label.reference.also] == ["P", "P"]


@pytest.mark.parametrize(
    ("columns", "level"),
    [
        ("Patient ID,series_uid,StudyUID,SOPInstanceUID,Image Index", "sop_uids"),
        ("patient-id,SERIES UID,study uid,Image_Index", "name"),
        ("Patienten-ID,Serie,Untersuchung", "series_uid"),
        ("Patient,Étude", "study"),
        ("Patientennummer,Befundtext", "patient"),
        ("Befundtext,Bild-Datei", "name"),
    ],
)
def test_key_columns_are_known_in_many_spellings(tmp_path: Path, columns: str, level: str) -> None:
    (label,) = read(tmp_path, f"{columns},Mass", ",".join(f"k{n}" for n in columns.split(",")) + ",1").labels

    assert getattr(label.reference, level)


def test_a_key_column_of_unknown_name_is_recognised_by_its_values(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "note;Scheibe;Mass", "x;Scan7.nii.gz;1", "y;scan8.nii.gz;0")

    labels = read_table(path, known={"name": frozenset({"scan7", "scan8", "scan9"})}).labels

    assert [label.reference.name for label in labels] == ["Scan7.nii.gz", "scan8.nii.gz"]
    with pytest.raises(InputError, match=r"E_LABEL_FORMAT: none of 3 columns") as raised:
        read_table(path)
    assert "--key-column" in raised.value.hint
    with pytest.raises(InputError, match="S_SIDECAR"):
        read_table(path, is_named=False)


def test_of_unknown_columns_that_name_images_the_most_specific_counts(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "Mensch,Termin,Mass", "P,1.1,1", "P,1.2,0")

    labels = read_table(path, known={"patient": frozenset({"p"}), "study": frozenset({"1.1", "1.2"})}).labels

    assert [label.reference.study for label in labels] == ["1.1", "1.2"]


@pytest.mark.parametrize("header", ["id,label", "Nr.,abnormal"])
def test_a_user_can_name_the_key_and_the_labels(tmp_path: Path, header: str) -> None:
    key, label = header.split(",")

    reading = read(tmp_path, f"Alter,{header}", "1,a,1", "0,b,0", key_column=key, label_columns=(label,))

    assert findings(reading) == {"a": {label: 1.0}, "b": {label: 0.0}}
    for wrong in ({"key_column": "no such"}, {"key_column": key, "label_columns": ("no such",)}):
        with pytest.raises(InputError, match="E_LABEL_FORMAT: 0 of 3 columns have a name given"):
            read(tmp_path, f"Alter,{header}", "1,a,1", **wrong)


def test_a_row_without_a_key_costs_itself(tmp_path: Path) -> None:
    reading = read(tmp_path, "file,Mass", "a,1", ",1", "NA,0", "b,0")

    assert set(findings(reading)) == {"a", "b"}
    assert refused_lines(reading) == [3, 4]


@pytest.mark.parametrize("before", ["", "/", "C:\\\\", "./", "../../"])
def test_what_all_names_of_a_table_have_in_common_is_counted(tmp_path: Path, before: str) -> None:
    before = before.replace("\\\\", "\\")

    labels = read(tmp_path, "path,Mass", f"{before}set/train/p1/a.png,1", f"{before}set/train/p2/a.png,0").labels

    assert [label.reference.num_shared for label in labels] == [2, 2]
    assert folders_of(f"{before}Set/train/p1/a.png") == ("set", "train", "p1")


# What a table is written in


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_are_told_apart(tmp_path: Path, encoding: str) -> None:
    path = table(tmp_path / "t.csv", "file\tMass\tKommentar", "M\xfcller.png\t1\tgro\xdf", encoding=encoding)

    assert findings(path) == {"M\xfcller.png": {"Mass": 1.0}}


@pytest.mark.parametrize("mark", ["sep=;", "sep=,", "SEP=\t", "sep=|"])
def test_the_separator_may_be_announced_in_the_first_line(tmp_path: Path, mark: str) -> None:
    lines = [cells.replace(" ", mark[4:]) for cells in ("file Mass", "a 1", "b x", "c 0 0")]

    reading = read(tmp_path, mark, *lines, label_columns=("Mass",))

    assert [(row.code, row.row) for row in reading.refused] == [("E_LABEL_FORMAT", 5), ("E_LABEL_COLUMN", 4)]


def test_the_separator_is_the_one_that_cuts_all_rows_alike(tmp_path: Path) -> None:
    assert findings(read(tmp_path, "Datei;Mass [0,1]", "a;0,25", "b;1")) == {
        "a": {"Mass 01": 0.25},
        "b": {"Mass 01": 1.0},
    }


def test_a_field_may_hold_line_ends_and_rows_are_numbered_by_lines(tmp_path: Path) -> None:
    reading = read(tmp_path, "file,note,Mass", 'a,"two', 'lines",1', "b,,1,9", "", ",,", "c,,0")

    assert findings(reading) == {"a": {"Mass": 1.0}, "c": {"Mass": 0.0}}
    assert refused_lines(reading) == [4]


@pytest.mark.parametrize("header", ["file,Mass", "file,Mass,", "file,Mass,,,"])
def test_separators_too_many_at_the_end_are_nothing(tmp_path: Path, header: str) -> None:
    assert findings(read(tmp_path, header, "a,1,", "b,0,,", "c,1")) == {
        "a": {"Mass": 1.0},
        "b": {"Mass": 0.0},
        "c": {"Mass": 1.0},
    }


# What is a finding


@pytest.mark.parametrize("missing", ["", "NA", "N/A", "nan", "NaN", "null", "NULL", "none", "<NA>", "#N/A"])
def test_a_missing_value_says_nothing(tmp_path: Path, missing: str) -> None:
    reading = read(tmp_path, "file,Edema,Mass", "a,1,1", f"b,{missing},0", f"c,{missing},{missing}")

    assert findings(reading) == {"a": {"Edema": 1.0, "Mass": 1.0}, "b": {"Mass": 0.0}}
    assert reading.num_silent == 1
    assert not reading.refused


@pytest.mark.parametrize("bad", ["yes", "2", "1.01", "-0.5", "0,5", "1e9"])
def test_a_column_of_findings_with_anything_else_is_refused_and_the_others_are_taken(tmp_path: Path, bad: str) -> None:
    reading = read(tmp_path, "file,Edema,Mass", "a,1,1", f'b,"{bad}",0', "c,0,0")

    assert findings(reading) == {"a": {"Mass": 1.0}, "b": {"Mass": 0.0}, "c": {"Mass": 0.0}}
    (column,) = reading.refused
    assert (column.code, column.row) == ("E_LABEL_COLUMN", 3)
    assert column.reason == "column 2 holds something else than 0 to 1 in 1 of 3 fields"


def test_columns_that_are_no_findings_are_counted_by_reason(tmp_path: Path) -> None:
    reading = read(tmp_path, "file,Alter,kg,leer,Geschlecht,Mass", "a,61,70,,1,1", "b,55,81,NA,0,0")

    assert findings(reading)["a"] == {"Mass": 1.0}
    assert reading.notes == (
        (
            "W_LABEL_NOT_TAKEN",
            "4 of 6 columns are no findings: 2, 5 named after persons, times or technique, "
            "3 of other values than 0 to 1, 4 without a value",
        ),
    )


def test_names_of_columns_keep_their_letters_and_changed_ones_are_counted(tmp_path: Path) -> None:
    reading = read(tmp_path, "file,肺炎,auffa\u0308llig,Mass (<5 mm)", "a,1,0,1", "b,0,1,0")

    assert findings(reading)["a"] == {"肺炎": 1.0, "auff\xe4llig": 0.0, "Mass 5 mm": 1.0}
    assert ("W_NAME_CHANGED", "of 2 of 3 columns") in reading.notes


@pytest.mark.parametrize("header", ["file,Mass (1),Mass [1]", "file,Mass,Mass"])
def test_columns_that_would_get_one_name_are_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(InputError, match="E_NAME_COLLISION"):
        read(tmp_path, header, "a,1,0")


def test_no_finding_is_kept_as_what_it_is(tmp_path: Path) -> None:
    assert findings(read(tmp_path, "Path,No Finding,Edema", "a,1,", "b,,1")) == {
        "a": {"No Finding": 1.0},
        "b": {"Edema": 1.0},
    }


def test_lists_of_names_are_taken_beside_columns_of_numbers(tmp_path: Path) -> None:
    reading = read(tmp_path, "file,Finding Labels,has_tube", "a,Mass|Edema,1", "b,No Finding,0", "c,NA,0")

    assert findings(reading) == {
        "a": {"Mass": 1.0, "Edema": 1.0, "has_tube": 1.0},
        "b": {"Mass": 0.0, "Edema": 0.0, "has_tube": 0.0},
        "c": {"has_tube": 0.0},
    }


@pytest.mark.parametrize(
    "lists",
    [
        ("['mass', 'pleural effusion']", "['normal']", "[]"),
        ('["mass", "pleural effusion"]', '["No Finding"]', "[ ]"),
        ("['mass' 'pleural effusion']", "['normal']", "nan"),
    ],
)
def test_lists_in_brackets_are_findings_and_the_technique_beside_them_is_not(
    tmp_path: Path, lists: tuple[str, str, str]
) -> None:
    """The columns of PadChest: numbers from 0 to 1 that say how, where and in which order a picture was stored."""
    quoted = ['"' + text.replace('"', '""') + '"' for text in lists]
    reading = read(
        tmp_path,
        "Unnamed: 0,ImageID,ImageDir,PixelRepresentation_DICOM,SpatialResolution_DICOM,RelativeXRayExposure,Labels",
        *(f"{row},{name}.png,0,0,0.175,1,{text}" for row, (name, text) in enumerate(zip("abc", quoted, strict=True))),
    )

    assert findings(reading) == {
        "a.png": {"mass": 1.0, "pleural effusion": 1.0},
        "b.png": {"mass": 0.0, "pleural effusion": 0.0},
    }
    assert not reading.refused
    ((code, said),) = reading.notes
    assert code == "W_LABEL_NOT_TAKEN"
    assert "5 of 7 columns" in said


@pytest.mark.parametrize("text", ["[1, 2]", "['mass', oedema]", "['mass'"])
def test_what_only_looks_like_a_list_in_brackets_is_free_text(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, "file,Labels", f'a.png,"{text}"')
    assert error.value.code == "E_LABEL_FORMAT"


@pytest.mark.parametrize("number", ["Unnamed: 0", "idx", "row"])
def test_numbers_of_rows_are_no_findings(tmp_path: Path, number: str) -> None:
    assert findings(read(tmp_path, f"{number},file,Mass", "0,a.png,1", "1,b.png,0", "2,c.png,1")) == {
        "a.png": {"Mass": 1.0}, "b.png": {"Mass": 0.0}, "c.png": {"Mass": 1.0},
    }  # fmt: skip


@pytest.mark.parametrize("column", ["class_name", "label", "Finding Labels", "diagnosis"])
def test_one_row_for_each_finding_is_a_list_of_them(tmp_path: Path, column: str) -> None:
    reading = read(
        tmp_path,
        f"file,{column}",
        *("a.png,Mass", "a.png,Edema", "b.png,No Finding", "c.png,Edema", "d.png,Mass", "d.png,No Finding"),
    )

    assert findings(reading) == {
        "a.png": {"Mass": 1.0, "Edema": 1.0},
        "b.png": {"Mass": 0.0, "Edema": 0.0},
        "c.png": {"Mass": 0.0, "Edema": 1.0},
    }
    assert set(refused_lines(reading)) == {6, 7}


def test_rows_of_each_reader_are_a_list_of_what_that_reader_saw(tmp_path: Path) -> None:
    reading = read(tmp_path, "file,rad_id,class_name", "a,R1,Mass", "a,R1,Edema", "a,R2,No finding", "a,R3,Mass")

    assert findings(reading) == {"a": {"Mass": pytest.approx(2 / 3), "Edema": pytest.approx(1 / 3)}}


def test_a_list_that_says_nothing_and_something_costs_its_row(tmp_path: Path) -> None:
    reading = read(tmp_path, "file,findings", "a,Mass", "b,No Finding|Mass", "c,normal")

    assert findings(reading) == {"a": {"Mass": 1.0}, "c": {"Mass": 0.0}}
    assert refused_lines(reading) == [3]


def test_numbers_of_classes_are_no_names_of_findings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="E_LABEL_FORMAT: 3 different names"):
        read(tmp_path, "file,label", "a,2", "b,3", "c,4")


def test_free_text_is_never_taken(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "file,findings", "a.png,the patient Mr. O'Neil has a cough; see 12^3")

    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read_table(path)


def test_more_names_than_findings_can_have_are_free_text(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "file,findings", *[f"{i}.png,Name {i}" for i in range(201)])

    with pytest.raises(InputError, match="E_LABEL_FORMAT: 201 different names"):
        read_table(path)


def test_rows_of_one_key_are_united_and_contradictions_cost_that_key_only(tmp_path: Path) -> None:
    reading = read(tmp_path, "file,Mass,Edema", "a,1,", "a,1,", "a,,0", "b,1,0", "b,0,0", "c,0,1")

    assert findings(reading) == {"a": {"Mass": 1.0, "Edema": 0.0}, "c": {"Mass": 0.0, "Edema": 1.0}}
    assert [(row.row, row.reason) for row in reading.refused] == [
        (6, "the row contradicts an earlier row of the same key"),
        (5, "it stands with a row that is refused"),
    ]
    assert [label.rows for label in reading.labels] == [(2, 3, 4), (7,)]


def test_findings_of_several_readers_become_the_share_that_saw_them(tmp_path: Path) -> None:
    lines = ("image_id,rad_id,Mass,Edema", "a,R1,1,0", "a,R2,1,", "a,R3,0,", "b,R1,0,0", "c,R1,1,0", "c,R1,0,0")

    fused = read(tmp_path, *lines)
    kept = read(tmp_path, *lines, readers="keep")

    assert findings(fused) == {"a": {"Mass": 2 / 3, "Edema": 0.0}, "b": {"Mass": 0.0, "Edema": 0.0}}
    assert ("W_READERS_FUSED", "of 1 images or patients") in fused.notes
    assert refused_lines(fused) == [7, 6]  # one reader contradicts himself
    assert findings(kept) == {"b": {"Mass": 0.0, "Edema": 0.0}}


@pytest.mark.parametrize(
    "lines",
    [
        ("file",),
        ("file,Age", "a,1"),
        ("Mass,Edema", "1,0"),
        ("file,Mass", 'a,"1'),
        ("file,Mass", "a,\0"),
    ],
    ids=["one-column", "no-finding", "no-key", "open-quote", "zero"],
)
def test_malformed_tables_are_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read(tmp_path, *lines)


def test_many_rows_take_no_time_to_speak_of(tmp_path: Path) -> None:
    reading = read(tmp_path, "path,Mass", *(f"p{i % 97}/view{i}.png,{i % 2}" for i in range(20_000)))

    assert len(reading.labels) == 20_000


def test_names_of_one_image_are_the_same_in_every_notation() -> None:
    assert len({name_key(name) for name in ("a/B.nii.gz", "c\\b.PNG", "b", "B.dcm")}) == 1


def test_listed_names_that_differ_in_spelling_only_are_refused_and_signs_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="E_NAME_COLLISION: 1 of 2 names differ"):
        read(tmp_path, "file,Finding Labels", "a,Pleural Effusion", "b,pleural_effusion")

    assert findings(read(tmp_path, "file,Finding Labels", "a,ER+", "b,ER-"))["a"] == {"ER+": 1.0, "ER-": 0.0}
