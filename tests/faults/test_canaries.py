"""Release gate G7: of thousands of words planted in what is ingested, none is found in what comes out.

Searched are the cache, reports, pages, exports, both standard streams, the working, home and temporary folders, packed
data included. Names of classes and findings are kept by design (docs/concepts/annotations.md) and carry none.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless

from medssl_cli.errors import Exit
from tests.canaries import (
    ACCENTED,
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
from tests.dicom_factory import edit

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (*MODALITIES, "archive", "volumes", "pictures", "annotations")
FEWEST_WORDS = 480
KINDS = {"accented", "date", "time", "times of files"}
pytestmark = pytest.mark.filterwarnings("ignore")


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
        command = [sys.executable, "-m", "medssl_cli", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, cwd=self.out, env=self.environment)
        printed = done.stdout + done.stderr
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


def annotations(folder: Path, canaries: Canaries, series: Path, picture: Path) -> None:
    """LIDC, COCO and RTSTRUCT-like texts around what is taken from them."""
    folder.mkdir()
    uid = pydicom.dcmread(series, stop_before_pixels=True).SeriesInstanceUID
    words = canaries.words_of(6)
    corners = "".join(
        f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in ((0, 0), (4, 0), (4, 4), (0, 4))
    )
    region = f"<roi><imageZposition>10</imageZposition><inclusion>TRUE</inclusion>{corners}</roi>"
    (folder / f"{canaries.word()}.xml").write_text(
        f'<?xml version="1.0"?><!-- {words[0]} --><LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>'
        f"<SeriesInstanceUid>{uid}</SeriesInstanceUid><ResponseDescription>{words[1]}</ResponseDescription>"
        f"<DateRequest>1943-02-17</DateRequest></ResponseHeader><readingSession><servicingRadiologistID>{words[2]}"
        f"</servicingRadiologistID><unblindedReadNodule><noduleID>{words[3]}</noduleID>{region}</unblindedReadNodule>"
        "</readingSession></LidcReadMessage>"
    )
    image = {"id": 1, "file_name": picture.name, "width": 10, "height": 8, "date_captured": "1943-02-17"}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "caption": canaries.word()}
    coco = {
        "info": {"description": words[4], "contributor": ACCENTED}, "licenses": [{"name": words[5], "id": 1}],
        "images": [image], "annotations": [box], "categories": [{"id": 1, "name": "mass"}], canaries.word(): [],
    }  # fmt: skip
    (folder / f"{canaries.word()}.json").write_text(json.dumps(coco, ensure_ascii=False), encoding="utf-8")


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
    plant("annotations", lambda folder: annotations(folder, canaries, paths["CT"][0], paths["pictures"][0]) or [])
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

    assert report["stored"] == {"images": 12, "labels": 6}
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

    for command in ("ls --json", "ls", f"show {item}", "verify", "duplicates", "manifest manifest.json", "export exported", "audit"):
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


SABOTAGE = """
import os, signal, sys
def decode_pixel_data(data, *args, **options):
    for stream in (1, 2):
        os.write(stream, bytes(data))
    os.kill(os.getpid(), signal.SIGSEGV)
decode = get_parameters = decode_pixel_data
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
