"""Labels that no name announces, modalities that are corrected, pictures that may be slices: whole ingests."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medssl_cli.base.errors import Exit
from medssl_cli.cache.audit import audit_cache
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.cli.ingest_output import print_report
from medssl_cli.cli.terminal import Terminal
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.formats.policy import Policy
from medssl_cli.ingest.ingest import ingest as run_ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.ingest.report import IngestReport

SHAPE = (10, 9, 8)
AFFINE = np.diag([-1.0, -1.5, 2.0, 1.0])


def ingest(folder: Path, **options: Any) -> IngestReport:
    return run_ingest([folder / "in"], folder / "cache", IngestOptions(workers=1, **options))


def records(folder: Path) -> list[ItemRecord]:
    return Cache.open(folder / "cache").records()


def scan(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.int16), AFFINE)


def mask(path: Path, size: int, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[:size, :2, :2] = 1
    write_nifti(path, voxels, affine)


def voxels_of_labels(folder: Path) -> list[int]:
    found = [label.voxels_per_class for record in records(folder) for label in record.labels.values()]
    return sorted(sum(one.values()) for one in found)


@pytest.mark.parametrize(
    ("image", "label"), [("Bilder/p{}.nii.gz", "Masken/p{}.nii.gz"), ("p{}.nii.gz", "p{}_roi.nii.gz")]
)
def test_what_looks_like_a_label_map_beside_an_image_of_its_name_is_its_label(tmp_path, image, label):
    for number in (1, 2):
        scan(tmp_path / "in" / image.format(number), number)
        mask(tmp_path / "in" / label.format(number), number)

    first, second = (ingest(tmp_path, modality="MR") for _ in range(2))

    assert (first.exit_code, first.num_images, first.num_labels) == (Exit.OK, 2, 2)
    assert first.by_code == {"W_LABEL_BY_CONTENT": 2}
    assert (second.num_images, second.num_labels, second.counts["duplicate"]) == (0, 0, 4)
    assert voxels_of_labels(tmp_path) == [4, 8]


def test_a_label_map_that_comes_later_finds_its_image(tmp_path):
    scan(tmp_path / "in/Bilder/p1.nii.gz", 1)
    ingest(tmp_path, modality="MR")
    mask(tmp_path / "in/Masken/p1.nii.gz", 3)

    report = ingest(tmp_path, modality="MR")

    assert (report.num_images, report.num_labels) == (0, 1)
    assert voxels_of_labels(tmp_path) == [12]


def test_what_looks_like_a_label_map_and_is_nobody_s_is_an_image_with_a_note(tmp_path):
    mask(tmp_path / "in/Masken/p1.nii.gz", 3)
    scan(tmp_path / "in/Bilder/p2.nii.gz", 1)
    scan(tmp_path / "in/Bilder/p3.nii.gz", 2)
    mask(tmp_path / "in/Masken/p3.nii.gz", 2, np.diag([-1.0, -1.5, 3.0, 1.0]))  # another grid

    report = ingest(tmp_path, modality="MR")

    assert (report.num_images, report.num_labels) == (4, 0)
    assert report.by_code == {"W_LABEL_LIKE": 2}
    noted = Counter("W_LABEL_LIKE" in record.provenance.warnings for record in records(tmp_path))
    assert noted == {True: 2, False: 2}


def test_two_label_maps_of_each_other_are_images_with_a_note(tmp_path):
    mask(tmp_path / "in/reader/p1.nii.gz", 3)
    mask(tmp_path / "in/doctor/p1.nii.gz", 2)

    report = ingest(tmp_path, modality="MR")

    assert (report.num_images, report.by_code) == (2, {"W_LABEL_LIKE": 2, "W_NO_PATIENT_KEY": 2})


def test_a_label_map_of_two_images_on_its_grid_is_refused_by_name(tmp_path):
    for seed, folder in enumerate(("alt", "neu")):
        scan(tmp_path / "in" / folder / "p1.nii.gz", seed)
    mask(tmp_path / "in/Masken/p1.nii.gz", 3)
    mask(tmp_path / "in/labels/p1.nii.gz", 3)

    report = ingest(tmp_path, modality="MR")

    assert report.exit_code == Exit.PARTIAL
    assert report.by_code["E_LABEL_AMBIGUOUS"] == 2
    assert voxels_of_labels(tmp_path) == []


def test_channels_are_noted_and_recorded_and_the_cache_still_follows_its_list(tmp_path):
    for seed, word in enumerate(("flair", "t1ce")):
        scan(tmp_path / f"in/p1/p1_{word}.nii.gz", seed)
    mask(tmp_path / "in/p1/p1_seg.nii.gz", 1)

    report = ingest(tmp_path)

    assert report.by_code["W_CHANNELS"] == 2
    assert {(record.channel, record.modality) for record in records(tmp_path)} == {("flair", "MR"), ("t1ce", "MR")}
    assert len({record.patient_key for record in records(tmp_path)}) == 1
    assert not audit_cache(tmp_path / "cache").problems


# The modality of an image


def test_the_same_voxels_under_another_modality_are_corrected_and_not_stored_twice(tmp_path):
    for number in (1, 2):
        scan(tmp_path / f"in/images/p{number}.nii.gz", number)
        mask(tmp_path / f"in/labels/p{number}.nii.gz", number)
    ingest(tmp_path)

    corrected = ingest(tmp_path, modality="MR")

    assert corrected.by_code == {"W_MODALITY_CHANGED": 2}
    assert [record.modality for record in records(tmp_path)] == ["MR", "MR"]
    assert voxels_of_labels(tmp_path) == [4, 8]


def test_a_modality_that_was_known_stays_when_it_is_left_out(tmp_path):
    scan(tmp_path / "in/p1.nii.gz", 1)
    ingest(tmp_path, modality="CT")

    again = ingest(tmp_path)

    assert (again.exit_code, again.num_images) == (Exit.OK, 0)
    assert [record.modality for record in records(tmp_path)] == ["CT"]


def test_a_correction_can_be_corrected_back(tmp_path):
    scan(tmp_path / "in/p1.nii.gz", 1)
    found = []
    for modality in ("CT", "MR", "CT", "MR"):
        ingest(tmp_path, modality=modality)
        found.append([(record.modality, record.units) for record in records(tmp_path)])

    assert found == [[("CT", "HU")], [("MR", "a.u.")]] * 2


def test_a_dry_run_says_that_a_modality_would_change_and_changes_none(tmp_path):
    scan(tmp_path / "in/p1.nii.gz", 1)
    ingest(tmp_path, modality="CT")

    report = ingest(tmp_path, modality="MR", dry_run=True)

    assert "W_MODALITY_CHANGED" in report.by_code
    assert [record.modality for record in records(tmp_path)] == ["CT"]


def test_pictures_that_are_one_patient_by_a_number_are_said_with_the_option(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    names = [*(f"covid-19-pneumonia-{number}" for number in (20, 35, 38, 41, 49)), "legionella-7"]
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 16)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/{name}.png")

    report = ingest(tmp_path, modality="DX", policy=Policy(burned_in="accept"))
    print_report(report, Terminal(quiet=False), None, has_map=False)

    assert report.by_code["W_ONE_PATIENT"] == 5
    assert len({record.patient_key for record in records(tmp_path)}) == 2
    said = capsys.readouterr().err
    assert "W_ONE_PATIENT: 5 images" in said
    assert "--patient-pattern" in said


# Pictures that may be slices


@pytest.mark.parametrize(
    ("modality", "names", "noted"),
    [
        (None, [f"{number:04d}" for number in range(9)], 9),
        ("DX", [f"{number:04d}" for number in range(9)], 0),
        (None, [f"p{number}_0" for number in range(9)], 0),
        ("CT", ["a", "b"], 2),
    ],
)
def test_pictures_that_may_be_slices_of_a_volume_are_noted(tmp_path, modality, names, noted):
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 16)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/{name}.png")

    report = ingest(tmp_path, modality=modality, policy=Policy(burned_in="accept"))

    assert report.by_code.get("W_PICTURE_SLICE", 0) == noted
    assert report.num_images == len(names)
