"""Layouts of public data sets beyond those of `tests/published`: all comes in right, or is refused by name.

Values are of the pages of each data set; a label holds 4 * 4 * (value's place in its list + 2) voxels of each value.
"""

import json
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.formats.source import place_of
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.ingest.report import ReportEntry

SHAPE = (20, 12, 40)
AFFINE = np.diag([-0.8, -0.8, 3.0, 1.0])
_seeds = iter(range(10_000))


def scan(path: Path, low: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(next(_seeds)).integers(low, 900, SHAPE).astype(np.int16)
    write_nifti(path, voxels, AFFINE)


def labels(path: Path, *values: int, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.zeros(SHAPE, dtype)
    start = 0
    for place, value in enumerate(values):
        voxels[2:6, 3:7, start : start + place + 2] = value
        start += place + 2
    write_nifti(path, voxels, AFFINE)


def sizes(*names: str) -> dict[str, int]:
    return {name: 4 * 4 * (place + 2) for place, name in enumerate(names)}


@dataclass
class Expected:
    """What a data set must become, by the paths of its files.

    Args:
        images: Modality, class sizes and name of the person of each.
        refused: Codes of files.
        noted: Codes that files carry, whatever else they do.
    """

    images: dict[str, tuple[str, dict[str, int], str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    noted: dict[str, str] = field(default_factory=dict)


def brats(root: Path, cases: dict[str, str], words: tuple[str, ...], mark: str = "_", seg: str = "seg") -> Expected:
    """Channels by their words beside one label map; values 1, 2 and 4 as in 2018 and 2021."""
    expected = Expected()
    for case, person in cases.items():
        name = case.rpartition("/")[2]
        for word in words:
            scan(root / case / f"{name}{mark}{word}.nii.gz")
            path = f"{case}/{name}{mark}{word}.nii.gz"
            expected.images[path] = "MR", sizes("class_1", "class_2", "class_4"), person
            expected.noted[path] = "W_CHANNELS"
        labels(root / case / f"{name}{mark}{seg}.nii.gz", 1, 2, 4)
    return expected


def brats23(root: Path) -> Expected:
    cases = {"BraTS-GLI-00000-000": "0", "BraTS-GLI-00000-001": "0", "BraTS-GLI-00005-000": "5"}
    return brats(root, cases, ("t1n", "t1c", "t2w", "t2f"), "-")


def brats20_355(root: Path) -> Expected:
    scan(root / "BraTS20_Training_355/BraTS20_Training_355_t1.nii.gz")
    scan(root / "BraTS20_Training_355/BraTS20_Training_355_t2.nii.gz")
    labels(root / "BraTS20_Training_355/W39_1998.09.19_Segm.nii.gz", 1, 2, 4)
    refused = {"BraTS20_Training_355/W39_1998.09.19_Segm.nii.gz": "E_LABEL_WITHOUT_IMAGE"}
    return Expected(refused=refused)


def brats15(root: Path) -> Expected:
    """The Virtual Skeleton Database: a folder for each file, and a label map called OT."""
    expected = Expected()
    for case, person in {"HGG/brats_2013_pat0001_1": "1", "LGG/brats_tcia_pat105_1": "105"}.items():
        for number, word in enumerate(("Flair", "T1", "T1c", "T2"), 54512):
            name = f"VSD.Brain.XX.O.MR_{word}.{number}"
            scan(root / case / name / f"{name}.nii")
            expected.images[f"{case}/{name}/{name}.nii"] = "MR", sizes("class_1", "class_2", "class_4"), person
        labels(root / case / "VSD.Brain_3more.XX.O.OT.54517/VSD.Brain_3more.XX.O.OT.54517.nii", 1, 2, 4)
    return expected


def isles15(root: Path) -> Expected:
    expected = Expected()
    for case in ("1", "2"):
        for number, word in enumerate(("DWI", "Flair", "T1", "T2"), 70613):
            name = f"VSD.Brain.XX.O.MR_{word}.{number}"
            scan(root / case / name / f"{name}.nii")
            expected.images[f"{case}/{name}/{name}.nii"] = "MR", sizes("class_1"), case
        labels(root / case / "VSD.Brain.XX.O.OT.70618/VSD.Brain.XX.O.OT.70618.nii", 1)
    return expected


def kits21(root: Path) -> Expected:
    """Drawings of three readers for each finding beside what they voted for: the majority's is the label map."""
    expected = Expected()
    for case in ("case_00000", "case_00001"):
        scan(root / case / "imaging.nii.gz", -1000)
        for vote in ("MAJ", "AND", "OR"):
            labels(root / case / f"aggregated_{vote}_seg.nii.gz", 1, 2, 3)
        for reader in (1, 2, 3):
            place = f"{case}/segmentations/kidney_instance-1_annotation-{reader}.nii.gz"
            labels(root / place, 1)
            expected.refused[place] = "S_LABEL_PART"
        expected.images[f"{case}/imaging.nii.gz"] = "unknown", sizes("class_1", "class_2", "class_3"), case
    return expected


def kits23(root: Path) -> Expected:
    expected = Expected()
    for case in ("case_00000", "case_00002"):
        scan(root / case / "imaging.nii.gz", -1000)
        labels(root / case / "segmentation.nii.gz", 1, 2, 3)
        labels(root / case / "instances/tumor_instance-1_annotation-1.nii.gz", 1)
        expected.refused[f"{case}/instances/tumor_instance-1_annotation-1.nii.gz"] = "S_LABEL_PART"
        expected.images[f"{case}/imaging.nii.gz"] = "unknown", sizes("class_1", "class_2", "class_3"), case
    return expected


def packed_labels(root: Path) -> Expected:
    """Labels in an archive beside the folder of images, as they come from a download."""
    expected = Expected()
    for number in ("007", "011"):
        scan(root / f"imagesTr/case_{number}_0000.nii.gz", -1000)
        labels(root / f"labelsTr/case_{number}.nii.gz", 1, 2)
        expected.images[f"imagesTr/case_{number}_0000.nii.gz"] = "CT", sizes("liver", "tumour"), number
    pack(root / "labelsTr", inner="labelsTr/" if root.name.endswith("labels") else "")
    document = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2}}
    (root / "dataset.json").write_text(json.dumps(document))
    return expected


def packed_images(root: Path) -> Expected:
    """The same with both in archives, whose members lie in no folder of their own."""
    expected = packed_labels(root)
    pack(root / "imagesTr", inner="")
    images = {place.replace("imagesTr/", "imagesTr.zip/"): one for place, one in expected.images.items()}
    return Expected(images)


def pack(folder: Path, inner: str) -> None:
    """Put the files of a folder into an archive of its name beside it."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{inner}{path.name}")
    shutil.rmtree(folder)


def list_of_folds(root: Path) -> Expected:
    """A list of another name: pairs that no other rule would find."""
    entries = []
    for number in ("a1", "b2"):
        scan(root / f"ct/{number}/volume.nii.gz", -1000)
        labels(root / f"drawn/{number}/final.nii.gz", 1)
        entries.append({"fold": 0, "image": f"ct/{number}/volume.nii.gz", "label": f"drawn/{number}/final.nii.gz"})
    (root / "liver_folds.json").write_text(json.dumps({"training": entries}))
    images = {f"ct/{n}/volume.nii.gz": ("unknown", sizes("class_1"), n) for n in ("a1", "b2")}
    return Expected(images, {"liver_folds.json": "S_SIDECAR"})


SETS = (
    brats15, brats23, brats20_355, isles15, kits21, kits23, packed_labels, packed_images, list_of_folds,
)  # fmt: skip


@dataclass
class Done:
    """One ingest of everything, each set as an input of its own."""

    root: Path
    expected: dict[str, Expected]
    entries: dict[Path, list[ReportEntry]]
    records: dict[str, ItemRecord]

    def of(self, name: str, path: str) -> list[ReportEntry]:
        return self.entries[(self.root / name / path).resolve()]


def ingested(root: Path, sets: tuple[Any, ...], **options: Any) -> Done:
    expected = {made.__name__: made(root / made.__name__) for made in sets}
    report = ingest([root / name for name in expected], root / "cache", IngestOptions(workers=1, **options))
    entries: dict[Path, list[ReportEntry]] = {}
    last: Path | None = None
    for entry, sources in report.sources:
        for source in sources:
            entries.setdefault(place_of(source), []).append(entry)
            last = place_of(source)
        if not sources and last is not None:
            entries[last].append(entry)
    records = {record.item_id: record for record in Cache.open(root / "cache").records()}
    return Done(root, expected, entries, records)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return ingested(tmp_path_factory.mktemp("public"), SETS)


def check(done: Done, name: str) -> None:
    expected = done.expected[name]
    persons: dict[str, set[str]] = {}
    for path, (modality, named, person) in expected.images.items():
        for entry in done.of(name, path):
            record = done.records[str(entry.item)]
            found = {
                label.classes[value]: number
                for label in record.labels.values()
                for value, number in label.voxels_per_class.items()
            }
            assert (path, record.modality, found) == (path, modality, named)
            persons.setdefault(record.patient_key, set()).add(person)
    assert all(len(names) == 1 for names in persons.values()), persons
    assert len(persons) == len({person for _, _, person in expected.images.values()})
    for path, code in expected.refused.items():
        assert [(path, entry.code) for entry in done.of(name, path)] == [(path, code)]
    for path, code in expected.noted.items():
        assert all(code in entry.warnings for entry in done.of(name, path)), path


@pytest.mark.parametrize("made", SETS, ids=lambda made: made.__name__)
def test_a_public_data_set_comes_in_right_or_is_refused_by_name(done: Done, made: Any) -> None:
    check(done, made.__name__)
