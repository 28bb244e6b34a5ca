"""Lists that others publish beside their data find the images as they were ingested, channels and all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.cache.named_splits import GivenSplit, Matched, NamedItems, split_by_names
from medssl_cli.cache.split_files import read_split
from medssl_cli.cache.store import Cache
from tests.published import abdomen, brain, chest, heart
from tests.published.files import Published
from tests.published.road import Road

Make = Callable[[Path], Published]


def ingested(make: Make, root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Published, Cache]:
    made = make(root)
    road = Road(made, root, monkeypatch)
    road.ingest()
    return made, Cache.open(road.cache)


def matched(cache: Cache, *given: str, fold: int = 0) -> Matched:
    found = NamedItems(cache.records(), cache.pseudonyms).match(read_split(given).parts(fold))
    assert not found.ambiguous
    return found


def sizes(found: Matched) -> dict[str, int]:
    return {part: len(items) for part, items in found.parts.items()}


@pytest.mark.parametrize(
    ("make", "given", "wanted", "missing"),
    [
        (abdomen.btcv_list, ("dataset_0.json",), {"train": 4, "val": 1, "test": 1}, ["imagesTr/img0036.nii.gz"]),
        (abdomen.msd_spleen, ("dataset.json",), None, []),
        (abdomen.totalsegmentator, ("meta.csv",), None, []),
        (brain.brats21, ("brats21_folds.json",), {"train": 16, "val": 4}, []),
        (
            chest.cc_ccii,
            ("train=CC_CCII_fold0_train.csv", "val=CC_CCII_fold0_valid.csv"),
            {"train": 7, "val": 6},
            [],
        ),
        (chest.nih, ("train=train_val_list.txt", "test=test_list.txt"), {"train": 10, "test": 3}, []),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_published_list_finds_its_images(
    make: Make,
    given: tuple[str, ...],
    wanted: dict[str, int] | None,
    missing: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, cache = ingested(make, tmp_path, monkeypatch)
    monkeypatch.chdir(made.folder)

    found = matched(cache, *given)

    assert found.missing == missing
    assert wanted is None or sizes(found) == wanted
    assert all(found.parts.values())


def test_a_list_that_parts_the_frames_of_a_patient_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, cache = ingested(heart.acdc, tmp_path, monkeypatch)
    by_frame = {
        "train": ["patient001_frame01.nii.gz", "patient005_frame01.nii.gz"],
        "val": ["training/patient001/patient001_frame12.nii.gz"],
    }
    (tmp_path / "frames.json").write_text(json.dumps(by_frame))
    labelled = [record for record in cache.records() if record.labels]

    with pytest.raises(UsageError, match=r"E_SPLIT_PATIENT: .* 1 in train and val; patient001_frame01.nii.gz and "):
        split_by_names(
            cache.records(),
            labelled,
            GivenSplit(read_split([str(tmp_path / "frames.json")])),
            cache.pseudonyms,
            seed=0,
            fold=0,
        )
