"""Several channels of one case, in the layouts in which they are published, become the same examples."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.base.errors import Exit, InputError, UsageError
from medssl_cli.cache.audit import audit_cache
from medssl_cli.cache.forget import forget_patient
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.data.examples import examples
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.ingest.report import IngestReport
from tests.brain_set import AFFINE, CHANNELS, NAMES, bids, brain, brats21, brats23, decathlon, nnunet_raw
from tests.command import medssl
from tests.dicom_factory import ct_series

LAYOUTS: tuple[Callable[[Path, Iterable[int]], Path], ...] = (nnunet_raw, decathlon, brats21, brats23, bids)


def ingested(tmp_path: Path, *inputs: Path, **options: Any) -> IngestReport:
    return ingest([*inputs], tmp_path / "cache", IngestOptions(workers=1, **options))


def records(tmp_path: Path) -> list[ItemRecord]:
    return Cache.open(tmp_path / "cache").records()


def channels_of(tmp_path: Path) -> list[str | None]:
    return sorted((record.channel for record in records(tmp_path)), key=str)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_examples_by_name(tmp_path: Path, layout: Callable[..., Path]) -> None:
    report = ingested(tmp_path, layout(tmp_path, (1, 2)), modality="MR")

    cache = Cache.open(tmp_path / "cache")
    found = examples(cache.records(), ("t1ce", "FLAIR", "T2w", "t1"))
    assert report.exit_code == Exit.OK
    assert report.by_code["W_CHANNELS"] >= 2
    assert len(found) == 2
    assert len({example.patient_key for example in found}) == 2
    expected = {seed: [brain(seed)[0][name] for name in ("t1ce", "flair", "t2", "t1")] for seed in (1, 2)}
    for example in found:
        stored = [cache.read_image(cache.record(item.item_id)).voxels[0] for item in example.items]
        assert any(all(map(np.array_equal, stored, images)) for images in expected.values())
        assert example.is_one_grid
        labelled = example.labelled("seg")
        assert labelled is not None
        values = np.unique(cache.read_label(cache.record(labelled.item_id), "seg").voxels)
        assert values.tolist() == [0, 1, 2, 3]


def test_regions_and_tissues_of_a_description_name_the_values(tmp_path: Path) -> None:
    ingested(tmp_path, nnunet_raw(tmp_path, (1,)))

    assert [record.labels["seg"].classes for record in records(tmp_path)] == [NAMES] * 4


@pytest.mark.parametrize("order", [CHANNELS, CHANNELS[::-1], ("t2", "flair", "t1ce", "t1")])
def test_the_order_of_the_files_does_not_count(tmp_path: Path, order: tuple[str, ...]) -> None:
    ingested(tmp_path, nnunet_raw(tmp_path, (1,), order=order))

    cache = Cache.open(tmp_path / "cache")
    (example,) = examples(cache.records(), CHANNELS)
    for name, item in zip(CHANNELS, example.items, strict=True):
        assert np.array_equal(cache.read_image(cache.record(item.item_id)).voxels[0], brain(1)[0][name])


def test_a_missing_channel_is_counted_and_named(tmp_path: Path) -> None:
    folder = brats21(tmp_path, (1, 2, 3))
    (folder / "BraTS2021_00002/BraTS2021_00002_t2.nii.gz").unlink()
    ingested(tmp_path, folder)
    notes: list[str] = []

    with pytest.raises(InputError, match=r"E_CHANNEL_MISSING: 1 of 3 cases are no examples: 1 without t2; the first"):
        examples(records(tmp_path), CHANNELS)
    assert len(examples(records(tmp_path), CHANNELS, incomplete="leave_out", note=notes.append)) == 2
    assert len(examples(records(tmp_path), CHANNELS[:3])) == 3
    assert [note.partition(":")[0] for note in notes] == ["W_EXAMPLE_LEFT_OUT"]


def test_two_sessions_of_a_patient_are_two_examples(tmp_path: Path) -> None:
    folder = bids(tmp_path, (1,), "pre")
    shutil.move(bids(tmp_path / "later", (2,), "post") / "sub-02", tmp_path / "sub-02")
    session = folder / "sub-01/ses-post/anat"
    session.mkdir(parents=True)
    for path in (tmp_path / "sub-02/ses-post/anat").iterdir():
        path.rename(session / path.name.replace("sub-02", "sub-01"))
    ingested(tmp_path, folder)

    found = examples(records(tmp_path), CHANNELS)

    assert len(found) == 2
    assert len({example.patient_key for example in found}) == 1
    for example in found:
        assert len({item.example_key for item in example.items}) == 1


def test_two_runs_of_a_channel_are_refused_by_name(tmp_path: Path) -> None:
    folder = bids(tmp_path, (1,))
    anatomy = folder / "sub-01/ses-pre/anat"
    (anatomy / "sub-01_ses-pre_T1w.nii.gz").rename(anatomy / "sub-01_ses-pre_run-1_T1w.nii.gz")
    write_nifti(anatomy / "sub-01_ses-pre_run-2_T1w.nii.gz", brain(7)[0]["t1"], AFFINE)
    ingested(tmp_path, folder)

    with pytest.raises(InputError, match="E_CHANNEL_AMBIGUOUS: 1 of 1 cases are no examples: 1 with several images"):
        examples(records(tmp_path), CHANNELS)
    assert len(examples(records(tmp_path), ("flair", "t2"))) == 1
    assert len(examples(records(tmp_path), ("t1",))) == 2


def test_a_case_without_a_label_map_is_one_too(tmp_path: Path) -> None:
    folder = brats23(tmp_path, (1,))
    (folder / "BraTS-GLI-00001-000/BraTS-GLI-00001-000-seg.nii.gz").unlink()

    report = ingested(tmp_path, folder)

    assert report.by_code["W_CHANNELS"] == 4
    assert [record.modality for record in records(tmp_path)] == ["MR"] * 4
    assert len(examples(records(tmp_path), CHANNELS)) == 1


def test_folders_of_channels_are_named_by_the_user(tmp_path: Path) -> None:
    channels, _ = brain(1)
    for name, folder in (("flair", "first"), ("t1ce", "second")):
        (tmp_path / folder).mkdir()
        write_nifti(tmp_path / folder / "P1.nii.gz", channels[name], AFFINE)
        ingested(tmp_path, tmp_path / folder, modality="MR", channel=name)

    (example,) = examples(records(tmp_path), ("t1ce", "flair"))

    assert [item.channel for item in example.items] == ["t1ce", "flair"]


def test_a_word_of_the_user_is_not_a_word_of_the_list_and_is_shown_by_the_audit(tmp_path: Path) -> None:
    channels, _ = brain(1)
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in/P1.nii.gz", channels["t1"], AFFINE)

    done = medssl("ingest", tmp_path / "in", "--cache", tmp_path / "cache", "--channel", "elastogram")

    assert done.exit_code == Exit.OK
    assert channels_of(tmp_path) == ["elastogram"]
    assert audit_cache(tmp_path / "cache").names == {"elastogram"}


@pytest.mark.parametrize("word", ["Miller^Jane", "p1234567", "20240101", "a b", ""])
def test_what_could_be_a_person_is_no_channel(word: str) -> None:
    with pytest.raises(UsageError, match="a channel is one word"):
        IngestOptions(channel=word)


def test_series_of_dicom_have_the_channel_that_the_user_names(tmp_path: Path) -> None:
    ct_series(tmp_path / "ct", positions_mm=(0, 5, 10, 15))

    ingested(tmp_path, tmp_path / "ct", channel="ct")

    assert channels_of(tmp_path) == ["ct"]


def test_an_image_that_came_alone_learns_its_channel_from_those_that_follow(tmp_path: Path) -> None:
    folder = brats21(tmp_path, (1,))
    case = folder / "BraTS2021_00001"
    (case / "BraTS2021_00001_seg.nii.gz").unlink()
    late = tmp_path / "late"
    late.mkdir()
    for name in CHANNELS[1:]:
        (case / f"BraTS2021_00001_{name}.nii.gz").rename(late / f"BraTS2021_00001_{name}.nii.gz")
    ingested(tmp_path, folder, modality="MR")
    first = channels_of(tmp_path)
    for path in late.iterdir():
        path.rename(case / path.name)

    ingested(tmp_path, folder, modality="MR")

    assert first == [None]
    assert len(examples(records(tmp_path), CHANNELS)) == 1
    assert list(Cache.open(tmp_path / "cache").verify()) == [None] * 4
    assert not audit_cache(tmp_path / "cache").problems


def test_the_same_image_as_another_channel_stays_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in/P1.nii.gz", brain(1)[0]["t1"], AFFINE)
    ingested(tmp_path, tmp_path / "in", modality="MR", channel="t1")

    again = ingested(tmp_path, tmp_path / "in", modality="MR", channel="t2")

    assert again.by_code["W_OTHER_CHANNEL"] == 1
    assert channels_of(tmp_path) == ["t1"]


def test_another_number_of_images_than_declared_is_refused(tmp_path: Path) -> None:
    folder = decathlon(tmp_path, (1,))
    document = json.loads((folder / "dataset.json").read_text())
    document["modality"] = {"0": "FLAIR", "1": "T1w"}
    (folder / "dataset.json").write_text(json.dumps(document))

    report = ingested(tmp_path, folder)

    assert report.by_code["E_4D_INPUT"] == 1


def test_a_cache_of_channels_is_listed_audited_forgotten_and_rebuilt(tmp_path: Path) -> None:
    ingested(tmp_path, nnunet_raw(tmp_path, (1, 2)))
    cache, where = Cache.open(tmp_path / "cache"), ["--cache", str(tmp_path / "cache")]
    before = cache.entries()

    listed = medssl("cache", "ls", *where)
    document = json.loads(medssl("cache", "ls", "--json", *where).stdout)
    cache.rebuild()

    assert all(name in listed.stdout for name in CHANNELS)
    assert sorted(item["channel"] for item in document) == sorted(CHANNELS * 2)
    assert len({item["example_key"] for item in document}) == 2
    assert not audit_cache(tmp_path / "cache").problems
    assert cache.entries() == before
    assert [entry.example_key for entry in before] == [record.example_key for record in cache.records()]
    assert len(examples(before, CHANNELS)) == 2
    erasure = forget_patient(cache, before[0].patient_key, runs=tmp_path / "runs")
    assert len(erasure.items) == 4
    gone = str(before[0].example_key).encode()
    assert not any(gone in path.read_bytes() for path in cache.root.rglob("*") if path.is_file())


def test_folders_that_the_user_names_are_channels_of_one_case_in_one_run(tmp_path: Path) -> None:
    channels, _ = brain(1)
    for name in ("flair", "t1"):
        (tmp_path / name).mkdir()
        write_nifti(tmp_path / name / "P1.nii.gz", channels[name], AFFINE)
    places = [argument for name in ("flair", "t1") for argument in ("--channel", f"{name}={tmp_path / name}")]

    done = medssl("ingest", *places, "--cache", tmp_path / "cache", "--modality", "MR")
    nothing = medssl("ingest", "--cache", tmp_path / "cache")

    assert done.exit_code == Exit.OK
    assert len(examples(Cache.open(tmp_path / "cache").records(), ("t1", "flair"))) == 1
    assert (nothing.exit_code, "no input is named" in nothing.stderr) == (Exit.USAGE, True)
