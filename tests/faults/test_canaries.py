"""Release gate G7: of thousands of words planted in what is ingested, none is found in what comes out.

Searched are the cache, reports, pages, exports, both standard streams, the working, home and temporary folders, packed
data included. Names of classes and findings are kept by design (docs/concepts/annotations.md) and carry none.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless

from medssl_cli.base.errors import Exit
from medssl_cli.base.files import sha256_json
from medssl_cli.cache.audit import audit_cache
from tests import warm
from tests.canaries import (
    MODALITIES,
    SOURCE_TIME_NS,
    STORAGE,
    Canaries,
    age,
    attributes,
    canaries_below,
    canaries_in,
    plant_pictures,
    plant_series,
    plant_volumes,
    plant_zip,
)
from tests.canary_labels import plant_labels
from tests.dicom_factory import edit

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (*MODALITIES, "archive", "volumes", "pictures", "annotations")
FEWEST_WORDS = 480
KINDS = {"accented", "date", "time", "times of files"}
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


class Site:
    """Where medssl runs: the folders that it could write to, what it printed, and what may be found nowhere there."""

    def __init__(self, root: Path) -> None:
        self.inputs, self.out, self.private = root / "in", root / "out", root / "private"
        self.canaries = Canaries()
        for folder in (self.inputs, self.out / "tmp", self.out / "home", self.private):
            folder.mkdir(parents=True)
        (self.private / "site.key").write_bytes(bytes(range(32)))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MEDSSL_")},
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "HOME": str(self.out / "home"), "XDG_CONFIG_HOME": str(self.out / "home"), "TMPDIR": str(self.out / "tmp"),
        }  # fmt: skip

    def medssl(self, *arguments: str | Path, exit_code: Exit = Exit.OK) -> bytes:
        """What a command prints on both streams, which is looked through with everything that it left behind."""
        if self.environment["PYTHONPATH"] == str(ROOT):
            done = warm.run(*arguments, environment=self.environment, kind="reading", folder=self.out)
        else:  # a fork has loaded the usual libraries
            command = [sys.executable, "-m", "medssl_cli", *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, cwd=self.out, env=self.environment, text=True)
        printed = f"{done.stdout}{done.stderr}".encode(errors="surrogateescape")
        assert done.returncode == exit_code, printed.decode(errors="replace")
        assert canaries_in(printed) == set()
        return printed

    def ingest(self, *arguments: str | Path, exit_code: Exit = Exit.OK) -> bytes:
        """`medssl ingest` of all inputs with the site's key."""
        options = ("--cache", "cache", "--key-file", self.private / "site.key", "--workers", "1")
        return self.medssl("ingest", self.inputs, *options, *arguments, exit_code=exit_code)

    def few(self) -> Dataset:
        """Canaries of the patient and the study only: quicker to write."""
        return self.canaries.dataset({0x0010, 0x0020})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, dict[str, set[str]]]:
    """A site that has taken one of everything, and the words of each source."""
    site = Site(tmp_path_factory.mktemp("accepted"))
    canaries, words = site.canaries, {}
    paths: dict[str, list[Path]] = {}

    def plant(source: str, function: Callable[[Path], list[Path]]) -> None:
        before = set(canaries.words)
        paths[source] = function(site.inputs / source)
        words[source] = canaries.words - before

    for modality in MODALITIES:
        plant(modality, lambda folder, modality=modality: plant_series(folder, modality, canaries))  # type: ignore[misc]
    plant("volumes", lambda folder: plant_volumes(folder, canaries))
    plant("pictures", lambda folder: plant_pictures(folder, canaries))
    spare = site.private / "spare"
    plant("archive", lambda folder: [plant_zip(site.inputs, series_elsewhere(site, spare), canaries)])
    plant("annotations", lambda folder: plant_labels(folder, canaries, paths))
    age(site.inputs)
    shutil.rmtree(spare)
    site.ingest("--burned-in", "accept", "--report", "report.json")
    return site, words


def series_elsewhere(site: Site, folder: Path) -> list[Path]:
    """A series for an archive; its voxels are its own."""
    return plant_series(folder, "MR", site.canaries, site.few(), lowest_mm=100)


def report_of(site: Site) -> dict[str, object]:
    document: dict[str, object] = json.loads((site.out / "report.json").read_text())
    return document


def test_the_sources_are_full_of_canaries(accepted: tuple[Site, dict[str, set[str]]]) -> None:
    """The search finds every single one of them where they were planted, so finding none elsewhere means something."""
    site, words = accepted

    found = canaries_below(site.inputs)

    assert site.canaries.words <= found
    assert found >= KINDS
    assert sum(name.startswith("9182736") for name in found) > len(MODALITIES)
    assert all(len(words[modality]) >= FEWEST_WORDS for modality in MODALITIES)
    assert {vr for _, vr, _ in attributes()} >= {"AE", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "SQ", "ST", "TM", "UC"}
    assert {path.stat().st_mtime_ns for path in site.inputs.rglob("*")} == {SOURCE_TIME_NS}


def test_everything_was_taken(accepted: tuple[Site, dict[str, set[str]]]) -> None:
    site, _ = accepted
    report = report_of(site)

    assert report["stored"] == {"images": 12, "labels": 7}
    counts = report["counts"]
    assert isinstance(counts, dict)
    assert counts["quarantined"] == 0


@pytest.mark.parametrize("source", SOURCES)
def test_no_word_of_an_accepted_source_survives(accepted: tuple[Site, dict[str, set[str]]], source: str) -> None:
    site, words = accepted

    assert len(words[source]) >= (FEWEST_WORDS if source in MODALITIES else 5)
    assert not words[source] & canaries_below(site.out)


def test_no_date_number_accent_or_time_of_a_file_survives(accepted: tuple[Site, dict[str, set[str]]]) -> None:
    site, _ = accepted
    changes = {str(path.stat().st_ctime_ns).encode() for path in site.inputs.rglob("*")}

    assert canaries_below(site.out) == set()
    contents = [path.read_bytes() for path in site.out.rglob("*") if path.is_file()]
    assert len(contents) > 30
    assert not any(change in content for change in changes for content in contents)


def test_what_is_listed_verified_and_exported_holds_none(accepted: tuple[Site, dict[str, set[str]]]) -> None:
    site, _ = accepted
    item = next(site.out.glob("cache/items/*/*")).name

    for command in (
        "ls --json",
        "ls",
        f"show {item}",
        "verify",
        "duplicates",
        "manifest manifest.json",
        "export exported",
        "audit",
    ):
        name, *rest = command.split()
        site.medssl("cache", name, *rest, "--cache", "cache")

    assert len(list((site.out / "exported").rglob("*.nii.gz"))) >= 12
    assert canaries_below(site.out) == set()
    shutil.rmtree(site.out / "exported")


def test_a_second_run_and_its_memory_of_files_hold_none(accepted: tuple[Site, dict[str, set[str]]]) -> None:
    site, _ = accepted

    site.ingest("--burned-in", "accept", "--json")
    site.ingest("--burned-in", "accept", "--reread", "--json")

    assert canaries_below(site.out) == set()


def test_a_dry_run_writes_nothing_and_says_nothing(site: Site) -> None:
    plant_series(site.inputs, "CT", site.canaries, site.few())
    plant_volumes(site.inputs / "volumes", site.canaries)

    site.ingest("--dry-run", "--report", "report.json")

    assert {path.name for path in site.out.rglob("*") if path.is_file()} == {"report.json"}
    assert canaries_below(site.out) == set()


def test_only_the_private_map_outside_names_files(site: Site) -> None:
    paths = plant_series(site.inputs, "MR", site.canaries, site.few())

    site.ingest("--private-map", site.private / "map.json")
    site.medssl("cache", "audit", "--cache", "cache")

    named = (site.private / "map.json").read_text()
    assert all(path.parent.name in named for path in paths)
    assert canaries_below(site.out) == set()


def test_wrong_flags_are_refused_without_a_word(site: Site) -> None:
    plant_series(site.inputs, "MR", site.canaries, site.few())

    site.ingest("--no-such-flag", exit_code=Exit.USAGE)
    site.ingest("--modality", "QQ", exit_code=Exit.USAGE)
    site.ingest("--max-quarantine", "many", exit_code=Exit.USAGE)
    site.medssl("ingest", "--help")

    assert canaries_below(site.out) == set()


def _without_a_slice(paths: list[Path]) -> None:
    paths[2].unlink()


def _cut(paths: list[Path]) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:-100])


def _mangled(paths: list[Path]) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"\x28\0\x10\0US", b"\x28\0\x10\0??"))


def _word_for_a_number(paths: list[Path]) -> None:
    """What a parser's own message would quote."""
    for path in paths:
        content = path.read_bytes()
        spacing = content.index(b"\x28\0\x30\0DS") + 6
        length = int.from_bytes(content[spacing : spacing + 2], "little")
        name = path.parent.name.encode()[:length].ljust(length)
        path.write_bytes(content[: spacing + 2] + name + content[spacing + 2 + length :])


def _two(paths: list[Path]) -> None:
    for path in paths[2:]:
        path.unlink()


def _conflicting(paths: list[Path]) -> None:
    twin = paths[0].with_name(f"twin {paths[0].name}")
    shutil.copyfile(paths[0], twin)
    dataset = pydicom.dcmread(twin)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(twin)


def _first(**values: object) -> Callable[[list[Path]], None]:
    return lambda paths: edit(paths[0], **values)


def _each(**values: object) -> Callable[[list[Path]], None]:
    def damage(paths: list[Path]) -> None:
        for path in paths:
            edit(path, **values)

    return damage


REFUSALS: dict[str, Callable[[list[Path]], None]] = {
    "E_MISSING_SLICES": _without_a_slice,
    "E_TRUNCATED": _cut,
    "E_DICOM_PARSE": _mangled,
    "E_VALUE_INVALID": _word_for_a_number,
    "E_TOO_FEW_SLICES": _two,
    "E_DUP_SOP_CONFLICT": _conflicting,
    "E_PATIENT_MIX": _first(PatientID="9182736000"),
    "E_FRAME_OF_REFERENCE_VARIES": _first(FrameOfReferenceUID="1.2.826.0.1.9182736.1.1"),
    "E_ORIENTATION_VARIES": _first(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
    "E_PIXEL_SPACING_VARIES": _first(PixelSpacing=[3, 3]),
    "E_BURNED_IN": _each(BurnedInAnnotation="YES"),
    "E_PHOTOMETRIC": _each(PhotometricInterpretation="PALETTE COLOR"),
    "S_LOCALIZER": _each(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    "S_SECONDARY_CAPTURE": _each(SOPClassUID=f"{STORAGE}7", Modality="OT"),
    "S_NON_IMAGE": _each(SOPClassUID=f"{STORAGE}88.11", Modality="SR", PixelData=None),
    "S_UNSUPPORTED_MODALITY": _each(SOPClassUID=f"{STORAGE}77.1.4", Modality="XC"),
}


def damaged_files(folder: Path, canaries: Canaries) -> set[str]:
    """Volumes, pictures, archives and tables that are refused, with words where their errors are; the codes."""
    nifti, nrrd, meta = plant_volumes(folder, canaries)
    archive = plant_zip(folder, [nrrd], canaries)
    png, jpeg, _, table = plant_pictures(folder, canaries)
    nifti.write_bytes(nifti.read_bytes()[:-6] + b"\0" * 6)
    nrrd.write_bytes(nrrd.read_bytes().replace(b"sizes: 4 5 6", f"sizes: {canaries.word()}".encode()))
    meta.write_bytes(meta.read_bytes().replace(b"DimSize = 4 5 6", f"DimSize = {canaries.word()}".encode()))
    content = bytearray(archive.read_bytes())
    content[content.index(b"NRRD0005") + 9 if b"NRRD0005" in content else 120] ^= 1
    archive.write_bytes(content)
    png.write_bytes(png.read_bytes()[:-40])
    jpeg.write_bytes(jpeg.read_bytes()[:-40])
    table.write_text(f"Image Index,x_min,y_min,x_max,y_max,label\n{jpeg.name},{canaries.word()},1,2,3,mass\n")
    (folder / f"{canaries.word()}.txt").write_text(canaries.word())
    (folder / f"{canaries.word()}.nii").write_text(canaries.word() * 50)
    return {"E_GZ_CRC", "E_NRRD_HEADER", "E_METAIMAGE_HEADER", "E_ARCHIVE_CRC", "E_PICTURE_PARSE", "S_NOT_AN_IMAGE"}


def test_no_refusal_tells_what_it_refuses(site: Site) -> None:
    """Every kind of refusal in one input; the message of each is printed, and stands in the report and on the page."""
    for code, damage in REFUSALS.items():
        damage(plant_series(site.inputs / code, "CT", site.canaries, site.few()))
    expected = set(REFUSALS) | damaged_files(site.inputs / "files", site.canaries)
    age(site.inputs)
    assert len(canaries_below(site.inputs)) > FEWEST_WORDS

    site.ingest("--report", "report.json", "--burned-in", "accept", exit_code=Exit.PARTIAL)

    counted = report_of(site)["by_code"]
    assert isinstance(counted, dict)
    assert expected - set(counted) == set()
    assert canaries_below(site.out) == set()


def sealed(document: dict[str, Any]) -> bytes:
    """A record as its writer would have written it, with a digest that fits."""
    return json.dumps({**document, "record_sha256": sha256_json(document)}, indent=2, sort_keys=True).encode() + b"\n"


def test_the_audit_finds_what_is_planted_into_the_cache(site: Site) -> None:
    plant_series(site.inputs, "CT", site.canaries, site.few())
    site.ingest()
    cache = site.out / "cache"
    (record,) = cache.glob("items/*/*/item.json")
    original = record.read_bytes()
    document = json.loads(original)
    del document["record_sha256"]
    assert sealed(document) == original
    assert not audit_cache(cache).problems

    for planted in (
        {**document, "study_description": "a"},
        {**document, "findings": {"seg": {"Doe^Jane": 1.0}}},
        {**document, "provenance": {**document["provenance"], "decoder": "1943-02-17"}},
        {**document, "provenance": {**document["provenance"], "warnings": ["Smith"]}},
        {**document, "acquisition": {**document["acquisition"], "body_part": "a"}},
    ):
        record.write_bytes(sealed(planted))
        assert audit_cache(cache).problems
    record.write_bytes(original)
    for name in ("notes.txt", "items/notes.txt", f"{record.parent.relative_to(cache)}/header.json", "reports/a.dcm"):
        (cache / name).write_text("a")
        (cache / name).chmod(0o600)
        assert audit_cache(cache).problems
        (cache / name).unlink()
    assert not audit_cache(cache).problems


SABOTAGE = """
import os, signal, sys
def decode_pixel_data(data, *args, **options):
    for stream in (1, 2):
        os.write(stream, bytes(data))
    os.kill(os.getpid(), signal.SIGSEGV)
decode = encode = encode_pixel_data = get_parameters = decode_pixel_data
__version__ = "2.6.0"
"""


def test_a_decoder_that_tells_all_and_dies_leaves_no_word(site: Site) -> None:
    """The library that decodes JPEG 2000 is replaced by one that prints what it is given, and crashes."""
    (site.private / "libraries" / "openjpeg").mkdir(parents=True)
    (site.private / "libraries" / "openjpeg" / "__init__.py").write_text(SABOTAGE)
    (site.private / "libraries" / "openjpeg" / "utils.py").write_text(SABOTAGE)
    site.environment["PYTHONPATH"] = f"{site.private / 'libraries'}{os.pathsep}{ROOT}"
    for path in plant_series(site.inputs, "MR", site.canaries, site.few()):
        dataset = pydicom.dcmread(path)
        dataset.Rows = dataset.Columns = 64
        dataset.PixelData = bytes(range(256)) * 32
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        dataset.save_as(path)

    printed = site.ingest("--report", "report.json", exit_code=Exit.NOTHING)

    assert b"E_DECODER_CRASH" in printed
    assert canaries_below(site.out) == set()
