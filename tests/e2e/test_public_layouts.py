"""Public data sets as they are distributed, in small: all of them comes in right, or is refused by name.

Values are of the pages of each data set; a label holds 4 * 4 * (value's place in its list + 2) voxels of each value.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.formats.nifti import encode_nifti, write_nifti
from medssl_cli.formats.policy import Policy
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


def btcv(root: Path) -> Expected:
    for number in ("0001", "0002"):
        scan(root / f"RawData/Training/img/img{number}.nii.gz", -1000)
        labels(root / f"RawData/Training/label/label{number}.nii.gz", 1, 2)
    scan(root / "RawData/Testing/img/img0061.nii.gz", -1000)
    named = sizes("class_1", "class_2")
    folder = "RawData/Training/img"
    return Expected(
        {
            f"{folder}/img0001.nii.gz": ("unknown", named, "1"),
            f"{folder}/img0002.nii.gz": ("unknown", named, "2"),
            "RawData/Testing/img/img0061.nii.gz": ("unknown", {}, "61"),
        }
    )


def btcv_monai(root: Path) -> Expected:
    for number in ("0001", "0002"):
        scan(root / f"imagesTr/img{number}.nii.gz", -1000)
        labels(root / f"labelsTr/label{number}.nii.gz", 1, 2)
    pairs = [
        {"image": f"imagesTr/img{number}.nii.gz", "label": f"labelsTr/label{number}.nii.gz"}
        for number in ("0001", "0002", "0036")
    ]
    document = {
        "modality": {"": "CT"}, "labels": {"0": "background", "1": "spleen", "2": "rkid"}, "numTraining": 80,
        "training": pairs[:1], "validation": pairs[1:], "test": ["imagesTs/img0061.nii.gz"],
    }  # fmt: skip
    (root / "dataset_0.json").write_text(json.dumps(document))
    named = sizes("spleen", "rkid")
    return Expected({f"imagesTr/img{n}.nii.gz": ("CT", named, n) for n in ("0001", "0002")})


def lits(root: Path) -> Expected:
    for number in (2, 20):
        scan(root / f"Training Batch 1/volume-{number}.nii", -1000)
        labels(root / f"Training Batch 1/segmentation-{number}.nii", *((1, 2) if number == 2 else (1,)))
    return Expected(
        {
            "Training Batch 1/volume-2.nii": ("unknown", sizes("class_1", "class_2"), "2"),
            "Training Batch 1/volume-20.nii": ("unknown", sizes("class_1"), "20"),
        }
    )


def msd_spleen(root: Path) -> Expected:
    for number in (2, 10):
        scan(root / f"imagesTr/spleen_{number}.nii.gz", -1000)
        labels(root / f"labelsTr/spleen_{number}.nii.gz", 1)
    (root / "imagesTr/._spleen_2.nii.gz").write_bytes(bytes.fromhex("00051607") + bytes(60))
    document = {
        "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}, "relase": "1.0",
        "training": [
            {"image": f"./imagesTr/spleen_{n}.nii.gz", "label": f"./labelsTr/spleen_{n}.nii.gz"} for n in (2, 10)
        ],
        "test": ["./imagesTs/spleen_1.nii.gz"],
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(document))
    return Expected(
        {f"imagesTr/spleen_{n}.nii.gz": ("CT", sizes("spleen"), str(n)) for n in (2, 10)},
        {"imagesTr/._spleen_2.nii.gz": "S_NOT_AN_IMAGE"},
    )


def msd_brain(root: Path) -> Expected:
    (root / "imagesTr").mkdir(parents=True)
    voxels = np.random.default_rng(next(_seeds)).integers(0, 900, (*SHAPE, 2)).astype(np.int16)
    header = bytearray(encode_nifti(voxels[..., 0], AFFINE)[:352])
    header[40:56] = np.array([4, *SHAPE, 2, 1, 1, 1], "<i2").tobytes()
    (root / "imagesTr/BRATS_001.nii").write_bytes(bytes(header) + voxels.tobytes(order="F"))
    labels(root / "labelsTr/BRATS_001.nii", 1, 2)
    document = {
        "modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "edema", "2": "core"},
        "training": [{"image": "./imagesTr/BRATS_001.nii", "label": "./labelsTr/BRATS_001.nii"}],
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(document))
    return Expected(
        {"imagesTr/BRATS_001.nii": ("MR", sizes("edema", "core"), "1")},
        noted={"imagesTr/BRATS_001.nii": "W_CHANNELS"},
    )


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


def brats18(root: Path) -> Expected:
    cases = {
        "HGG/Brats18_CBICA_AAB_1": "aab", "HGG/Brats18_TCIA01_131_1": "131", "HGG/Brats18_TCIA01_131_2": "131",
        "LGG/Brats18_2013_0_1": "2013",
    }  # fmt: skip
    return brats(root, cases, ("flair", "t1", "t1ce", "t2"))


def brats21(root: Path) -> Expected:
    cases = {"BraTS2021_00000": "0", "BraTS2021_00002": "2"}
    return brats(root, cases, ("flair", "t1", "t1ce", "t2"))


def brats23(root: Path) -> Expected:
    cases = {"BraTS-GLI-00000-000": "0", "BraTS-GLI-00000-001": "0", "BraTS-GLI-00005-000": "5"}
    return brats(root, cases, ("t1n", "t1c", "t2w", "t2f"), "-")


def brats20_355(root: Path) -> Expected:
    scan(root / "BraTS20_Training_355/BraTS20_Training_355_t1.nii.gz")
    scan(root / "BraTS20_Training_355/BraTS20_Training_355_t2.nii.gz")
    labels(root / "BraTS20_Training_355/W39_1998.09.19_Segm.nii.gz", 1, 2, 4)
    refused = {"BraTS20_Training_355/W39_1998.09.19_Segm.nii.gz": "E_LABEL_WITHOUT_IMAGE"}
    return Expected(refused=refused)


def nnunet(root: Path) -> Expected:
    for channel in range(4):
        scan(root / f"imagesTr/BraTS2021_00007_{channel:04d}.nii.gz")
    labels(root / "labelsTr/BraTS2021_00007.nii.gz", 1, 2, 3)
    document = {
        "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}, "file_ending": ".nii.gz",
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
        "regions_class_order": [1, 2, 3],
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(document))
    named = sizes("class_1", "class_2", "enhancing tumor")
    paths = [f"imagesTr/BraTS2021_00007_{channel:04d}.nii.gz" for channel in range(4)]
    return Expected(dict.fromkeys(paths, ("MR", named, "7")), noted=dict.fromkeys(paths, "W_CHANNELS"))


def mmwhs(root: Path) -> Expected:
    for kind in ("ct", "mr"):
        scan(root / f"{kind}_train/{kind}_train_1001_image.nii.gz", -1000 if kind == "ct" else 0)
        labels(root / f"{kind}_train/{kind}_train_1001_label.nii.gz", 205, 500, 850, dtype=np.int16)
    named = sizes("class_205", "class_500", "class_850")
    return Expected({f"{kind}_train/{kind}_train_1001_image.nii.gz": ("unknown", named, kind) for kind in ("ct", "mr")})


def amos(root: Path) -> Expected:
    for name in ("imagesTr/amos_0001", "imagesVa/amos_0008", "imagesTr/amos_0507", "imagesTs/amos_0002"):
        scan(root / f"{name}.nii.gz", -1000 if "507" not in name else 0)
        if "Ts" not in name:
            labels(root / f"{name.replace('images', 'labels')}.nii.gz", 1, 8)
    document = {
        "name": "AMOS", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen", "8": "arota"},
        "training": [{"image": "./imagesTr/amos_0001.nii.gz", "label": "./labelsTr/amos_0001.nii.gz"}],
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(document))
    named = sizes("spleen", "arota")
    return Expected(
        {
            "imagesTr/amos_0001.nii.gz": ("CT", named, "1"),
            "imagesVa/amos_0008.nii.gz": ("CT", named, "8"),
            "imagesTr/amos_0507.nii.gz": ("MR", named, "507"),
            "imagesTs/amos_0002.nii.gz": ("CT", {}, "2"),
        }
    )


def flare(root: Path) -> Expected:
    for number in ("0001", "0011"):
        scan(root / f"FLARE22Train/images/FLARE22_Tr_{number}_0000.nii.gz", -1000)
        labels(root / f"FLARE22Train/labels/FLARE22_Tr_{number}.nii.gz", 1, 2)
    named = sizes("class_1", "class_2")
    folder = "FLARE22Train/images"
    return Expected({f"{folder}/FLARE22_Tr_{n}_0000.nii.gz": ("unknown", named, n) for n in ("0001", "0011")})


def word(root: Path) -> Expected:
    for name in ("imagesTr/word_0002", "imagesVal/word_0001", "imagesTs/word_0014"):
        scan(root / f"{name}.nii.gz", -1000)
        if "Ts" not in name:
            labels(root / f"{name.replace('images', 'labels')}.nii.gz", 1, 2)
    document = {
        "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": [{"image": "imagesTr/word_0002.nii.gz", "label": "labelsTr/word_0002.nii.gz"}],
        "validation": ["imagesVal", "labelsVal"], "testing": "unseen",
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(document))
    named = sizes("liver", "spleen")
    return Expected(
        {
            "imagesTr/word_0002.nii.gz": ("CT", named, "2"),
            "imagesVal/word_0001.nii.gz": ("CT", named, "1"),
            "imagesTs/word_0014.nii.gz": ("CT", {}, "14"),
        }
    )


def totalsegmentator(root: Path) -> Expected:
    expected = Expected()
    for subject, name in (("s0000", "ct"), ("s0001", "ct"), ("s0013", "mri")):
        scan(root / subject / f"{name}.nii.gz", -1000 if name == "ct" else 0)
        labels(root / subject / "segmentations/liver.nii.gz", 1)
        labels(root / subject / "segmentations/rib_left_1.nii.gz")
        spleen = np.zeros(SHAPE, np.uint8)
        spleen[2:6, 3:7, 20:24] = 1
        spleen[2:5, 3, 1] = subject == "s0001"  # three voxels of the liver
        write_nifti(root / subject / "segmentations/spleen.nii.gz", spleen, AFFINE)
        is_shared = subject == "s0001"
        named = {"liver": 4 * 4 * 2 - 3 * is_shared, "spleen": 4 * 4 * 4 + 3 * is_shared}
        expected.images[f"{subject}/{name}.nii.gz"] = "CT" if name == "ct" else "MR", named, subject
    expected.noted["s0001/segmentations/liver.nii.gz"] = "W_LABEL_OVERLAP"
    (root / "meta.csv").write_bytes("\ufeffimage_id;age;gender;split\ns0000;60;m;train\ns0001;50;f;test\n".encode())
    return expected


def acdc(root: Path) -> Expected:
    folder = root / "training/patient001"
    for frame in ("01", "12"):
        scan(folder / f"patient001_frame{frame}.nii.gz")
        labels(folder / f"patient001_frame{frame}_gt.nii.gz", 1, 2, 3)
    voxels = np.zeros((*SHAPE, 2), np.int16)
    header = bytearray(encode_nifti(voxels[..., 0], AFFINE)[:352])
    header[40:56] = np.array([4, *SHAPE, 2, 1, 1, 1], "<i2").tobytes()
    (folder / "patient001_4d.nii").write_bytes(bytes(header) + voxels.tobytes(order="F"))
    (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\n")
    named = sizes("class_1", "class_2", "class_3")
    images = {f"training/patient001/patient001_frame{n}.nii.gz": ("unknown", named, "1") for n in ("01", "12")}
    return Expected(
        images,
        {"training/patient001/patient001_4d.nii": "E_4D_INPUT", "training/patient001/Info.cfg": "S_NOT_AN_IMAGE"},
    )


SETS = (
    btcv, btcv_monai, lits, msd_spleen, brats18, brats21, brats23, brats20_355, nnunet, mmwhs, amos, flare, word,
    totalsegmentator, acdc,
)  # fmt: skip
FOUR_DIMENSIONS = (msd_brain,)


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
            assert isinstance(source, Path)
            entries.setdefault(source, []).append(entry)
            last = source
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


def test_channels_of_a_4d_file_have_the_words_of_its_description(tmp_path: Path) -> None:
    done = ingested(tmp_path, FOUR_DIMENSIONS, policy=Policy(split_4d=True))

    check(done, "msd_brain")
    assert sorted(str(record.channel) for record in done.records.values()) == ["flair", "t1"]
