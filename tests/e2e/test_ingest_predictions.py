"""What `medssl infer` wrote is neither an image nor a reference label of an ingest, unless it is asked for by name."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.cache.store import Cache
from medssl_cli.deploy.infer import infer
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.formats.policy import Policy
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from tests.batch import AFFINE, phantom, write_series
from tests.toy_model import write_toy_model


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series and a file with their masks: in the folders where labels lie, beside the images, and anywhere."""
    folder = tmp_path_factory.mktemp("study")
    model = write_toy_model(folder.parent / "model.onnx", modality="CT", task="toy")
    write_series(folder / "ct", 1)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    write_nifti(folder / "images" / "a.nii.gz", phantom(2), AFFINE)
    infer([folder / "ct", folder / "images" / "a.nii.gz"], model, out=folder / "out", device="cpu")
    shutil.copy(folder / "out" / "a_toy.nii.gz", folder / "labels" / "a.nii.gz")
    return folder


def ingested(study: Path, cache: Path, **policy: Any) -> tuple[dict[str, int], Cache]:
    options = IngestOptions(modality="CT", workers=1, policy=Policy(**policy))
    return ingest([study], cache, options).by_code, Cache.open(cache)


def test_by_itself_it_is_neither(study: Path, tmp_path: Path) -> None:
    codes, cache = ingested(study, tmp_path / "cache")

    assert codes["S_PREDICTION"] == 5  # two masks, one of them twice, a segmentation, and a table of measurements
    assert len(cache.records()) == 2
    assert cache.records(label_set="seg") == []


def test_asked_for_by_name_it_is_a_label_and_never_an_image(study: Path, tmp_path: Path) -> None:
    codes, cache = ingested(study, tmp_path / "cache", predictions=True)

    assert codes["S_PREDICTION"] == 2  # the masks that no layout makes labels
    records = cache.records(label_set="seg")
    assert len(cache.records()) == len(records) == 2
    for record in records:
        label = cache.read_label(record, "seg").voxels[0]
        assert label.sum() == (cache.read_image(record).voxels[0] > 50).sum()
        np.testing.assert_array_equal(label > 0, cache.read_image(record).voxels[0] > 50)
