"""Nothing that could name a patient leaves the source: unique words are planted in it and looked for everywhere."""

import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medssl_cli.base.errors import Exit
from tests import warm
from tests.dicom_factory import ct_series

pytestmark = pytest.mark.slow

WORDS = [
    "PatientName",
    "PatientID",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "PatientComments",
    "PatientInsurancePlanCodeSequence",
    "MilitaryRank",
    "EthnicGroup",
    "Occupation",
    "AdditionalPatientHistory",
    "ReferringPhysicianName",
    "ReferringPhysicianAddress",
    "PerformingPhysicianName",
    "NameOfPhysiciansReadingStudy",
    "OperatorsName",
    "RequestingPhysician",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "ProtocolName",
    "StudyDescription",
    "SeriesDescription",
    "ImageComments",
    "AccessionNumber",
    "StudyID",
    "RequestedProcedureDescription",
    "PerformedProcedureStepDescription",
    "ScheduledProcedureStepID",
    "IssuerOfPatientID",
    "BodyPartExamined",
    "DerivationDescription",
    "ContrastBolusAgent",
    "SoftwareVersions",
]
SEQUENCES = {"PatientInsurancePlanCodeSequence"}
DATES = {
    "PatientBirthDate": "19310417",
    "StudyDate": "19870923",
    "SeriesDate": "19870924",
    "AcquisitionDate": "19870925",
    "ContentDate": "19870926",
    "StudyTime": "132457.918273",
    "AcquisitionTime": "132458.918274",
}
UIDS = {
    "StudyInstanceUID": "1.2.826.0.1.918273645.1",
    "FrameOfReferenceUID": "1.2.826.0.1.918273645.3",
}
SERIES_UID = "1.2.826.0.1.918273645.2"
FOLDER, STEM = "zqfolder", "zqfile"


def word(number: int) -> str:
    """A word that occurs nowhere by chance, and is valid for every text VR."""
    return f"ZQX{number:02}KV"


def planted() -> set[str]:
    """Everything that must not be found again."""
    words = {word(number) for number in range(len(WORDS) + 10)}
    return words | set(DATES.values()) | {"918273645", FOLDER, STEM}


def series(folder: Path) -> list[Path]:
    """A CT series whose headers, private elements, paths and preambles name the patient."""
    written = ct_series(folder / FOLDER, positions_mm=[0, 5, 10, 15, 20, 25], series_uid=SERIES_UID)
    paths = []
    for number, path in enumerate(written):
        dataset = pydicom.dcmread(path)
        for index, keyword in enumerate(WORDS):
            if keyword not in SEQUENCES:
                setattr(dataset, keyword, word(index))
        for keyword, value in {**DATES, **UIDS}.items():
            setattr(dataset, keyword, value)
        nested = Dataset()
        nested.PatientComments = word(len(WORDS))
        dataset.ReferencedPatientPhotoSequence = [nested]
        private = dataset.private_block(0x0029, word(len(WORDS) + 1), create=True)
        private.add_new(0x10, "LO", word(len(WORDS) + 2))
        private.add_new(0x11, "OB", word(len(WORDS) + 3).encode() + b"\0" * 7)
        dataset.preamble = word(len(WORDS) + 4).encode().ljust(128, b"\0")
        target = path.with_name(f"{STEM}-{number}-{word(len(WORDS) + 5)}.dcm")
        dataset.save_as(target)
        path.unlink()
        paths.append(target)
    return paths


def nifti(folder: Path, name: str = "") -> Path:
    """A NIfTI file with words in its free text, its extension and its name."""
    folder.mkdir(parents=True, exist_ok=True)
    header = nibabel.Nifti1Header()
    for number, field in enumerate(("descrip", "aux_file", "intent_name", "db_name"), start=6):
        header[field] = word(len(WORDS) + number).encode()
    image = nibabel.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4), header)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", word(0).encode()))
    path = folder / f"{STEM}_{word(1)}{name}.nii.gz"
    nibabel.save(image, path)
    return path


def test_the_source_is_full_of_words(tmp_path: Path) -> None:
    """The guard guards something: every word is in the bytes or the names of what is ingested."""
    paths = [*series(tmp_path), nifti(tmp_path)]

    found = set(leaks(tmp_path, b"".join(str(path).encode() for path in paths)))
    assert len(WORDS) >= 30
    assert planted() - {word(WORDS.index(name)) for name in SEQUENCES} <= found


def leaks(folder: Path, *streams: bytes) -> Iterator[str]:
    """Planted words in any file's bytes, packed or not, in any path below the folder, and in what was printed."""
    contents = [*streams, *(str(path.relative_to(folder)).encode() for path in folder.rglob("*"))]
    for path in folder.rglob("*"):
        if path.is_file():
            contents.append(path.read_bytes())
            if contents[-1].startswith(b"\x1f\x8b"):
                contents.append(gzip.decompress(contents[-1]))
    for text, content in itertools.product(planted(), contents):
        if text.lower().encode() in content.lower() or text.encode("utf-16-le") in content:
            yield text


def medssl(folder: Path, *arguments: object) -> tuple[int, bytes]:
    """Run a command in a folder; its exit code and everything that it prints."""
    done = warm.run(*arguments, kind="reading", folder=folder)
    return done.returncode, f"{done.stdout}{done.stderr}".encode(errors="surrogateescape")


def ingested(tmp_path: Path, *, exit_code: Exit) -> tuple[Path, bytes]:
    """Ingest, list, show, verify and export; the folder of everything that was written, and all that was printed."""
    out = tmp_path / "out"
    out.mkdir()
    code, printed = medssl(out, "ingest", tmp_path / "in", "--cache", "cache", "--report", "report.json")
    assert code == exit_code, printed.decode()
    commands = ["ingest ../in --cache cache --json", "cache ls --cache cache", "cache ls --json --cache cache"]
    commands += ["cache audit --cache cache", "cache duplicates --cache cache", "key show --key-file cache/site.key"]
    commands += ["cache verify --cache cache"] if exit_code == Exit.NOTHING else ["cache export nifti --cache cache"]
    for command in commands:
        code, more = medssl(out, *command.split())
        assert code in (Exit.OK, exit_code), more.decode()
        printed += more
    return out, printed


def test_an_accepted_series_and_volume_leave_no_trace(tmp_path: Path) -> None:
    series(tmp_path / "in")
    nifti(tmp_path / "in")

    out, printed = ingested(tmp_path, exit_code=Exit.OK)

    assert len(list(out.glob("nifti/*.nii.gz"))) == 2
    assert (out / "report.json").is_file()
    assert not set(leaks(out, printed))


def _without_a_slice(paths: list[Path]) -> None:
    paths[2].unlink()


def _truncated(paths: list[Path]) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:-100])


def _truncated_in_the_header(paths: list[Path]) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:700])


def _two_patients(paths: list[Path]) -> None:
    dataset = pydicom.dcmread(paths[0])
    dataset.PatientID = word(1).lower()
    dataset.save_as(paths[0])


def _odd_values(paths: list[Path]) -> None:
    """A name where a number belongs, which a parser's message would quote."""
    for path in paths:
        content = path.read_bytes()
        spacing = content.index(b"\x28\x00\x30\x00DS")
        length = int.from_bytes(content[spacing + 6 : spacing + 8], "little")
        value = word(0).encode().ljust(length)[:length]
        path.write_bytes(content[: spacing + 8] + value + content[spacing + 8 + length :])


@pytest.mark.parametrize("damage", [_without_a_slice, _truncated, _truncated_in_the_header, _two_patients, _odd_values])
def test_a_refused_series_leaves_no_trace(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    damage(series(tmp_path / "in"))
    scan = nifti(tmp_path / "in")
    scan.write_bytes(scan.read_bytes()[:-20])

    out, printed = ingested(tmp_path, exit_code=Exit.NOTHING)

    assert b"E_" in printed
    assert not set(leaks(out, printed))


def test_a_mistyped_file_of_labels_is_refused_without_its_name(tmp_path: Path) -> None:
    image = nifti(tmp_path / "in" / "images")
    (tmp_path / "in" / "labels").mkdir()
    (tmp_path / "in" / "labels" / image.name).write_bytes(image.read_bytes())
    (tmp_path / "in" / "labels" / f"{STEM}_orphan.nii.gz").write_bytes(image.read_bytes())

    out, printed = ingested(tmp_path, exit_code=Exit.PARTIAL)

    assert b"E_LABEL_VALUES" in printed
    assert b"E_LABEL_WITHOUT_IMAGE" in printed
    assert not set(leaks(out, printed))


def test_the_private_map_is_the_one_place_with_names_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    series(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()

    code, printed = medssl(out, "ingest", tmp_path / "in", "--cache", "cache", "--private-map", "map.json")

    assert code == Exit.OK
    assert STEM in (out / "map.json").read_text()
    assert (out / "map.json").stat().st_mode & 0o077 == 0
    (out / "map.json").unlink()
    assert not set(leaks(out, printed))
    assert {path.stat().st_mode & 0o077 for path in (out / "cache").rglob("*")} == {0}
