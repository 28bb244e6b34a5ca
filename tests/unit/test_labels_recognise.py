"""Which files hold labels is told from their content."""

import io
import json
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medssl_cli.formats.labels.recognise import (
    annotation_kind,
    recognise_csv,
    recognise_dicom,
    recognise_text,
    recognise_xml,
)

SEG, LABEL_MAP, RTSTRUCT = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("66.4", "66.7", "481.3"))
CT, RTDOSE = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "481.2"))


@pytest.mark.parametrize(
    ("uid", "kind"), [(SEG, "seg"), (LABEL_MAP, "seg"), (RTSTRUCT, "rtstruct"), (CT, None), (RTDOSE, None)]
)
def test_dicom_objects_by_their_class(uid: str, kind: str | None) -> None:
    dataset, stream = Dataset(), io.BytesIO()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = uid
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2"
    dataset.save_as(stream, enforce_file_format=True)

    assert recognise_dicom(stream.getvalue()) == kind
    assert recognise_dicom(stream.getvalue()[1:]) is None
    assert recognise_dicom(stream.getvalue()[:150]) is None


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b'<?xml version="1.0"?>\n<LidcReadMessage uid="1">', "lidc"),
        (b"<ns1:LidcReadMessage>", "lidc"),
        (b"<annotation><folder>", None),
        (b"", None),
    ],
)
def test_xml_by_its_root(head: bytes, kind: str | None) -> None:
    assert recognise_xml(head) == kind
    assert recognise_text(head) == kind


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("seriesuid,coordX,coordY,coordZ,diameter_mm", "luna"),
        ("Image Index,Finding Labels,Patient ID", "table"),
        ("StudyInstanceUID;Mass", "table"),
        ("coordZ;coordX,seriesUID;coordY", "luna"),
        ("x,y", "table"),
    ],
)
def test_tables_by_their_columns(line: str, kind: str) -> None:
    line = line.replace(";", ",")
    assert recognise_csv(line.split(",")) == kind
    assert recognise_text(line.encode() + b"\n1,2,3") == kind


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (json.dumps({"info": {}, "images": [], "annotations": [], "categories": []}, indent=2), "json", "coco"),
        (json.dumps({"images": [], "annotations": []}), "json", "coco"),
        (json.dumps({"images": [], "labels": []}), "json", None),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\r\n1,2,3,4,5\r\n", "csv", "luna"),
        ("\xef\xbb\xbfPatientID;Mass\n", "csv", "table"),
        ("a,b\n", "csv", "table"),
        ("a\n", "csv", None),
        ("<LidcReadMessage/>", "xml", "lidc"),
        ("<a/>", "xml", None),
        ("", "dicom", None),
    ],
    ids=[
        "coco",
        "coco-without-names",
        "other-json",
        "luna",
        "findings",
        "other-csv",
        "one-column",
        "lidc",
        "other-xml",
        "empty",
    ],
)
def test_files_by_their_content(tmp_path: Path, content: str, kind: str, expected: str | None) -> None:
    (tmp_path / "file").write_bytes(content.encode("latin-1"))

    assert annotation_kind(tmp_path / "file", kind) == expected
    assert annotation_kind(tmp_path / "missing", kind) is None
