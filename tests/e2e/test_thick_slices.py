"""Slices eight millimetres apart: a network that halves x and y first learns them, exports and infers."""

from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.deploy.bundle import read_bundle
from medssl_cli.deploy.export import export_run
from medssl_cli.deploy.infer import infer
from medssl_cli.engine.build import check_recipe
from medssl_cli.engine.evaluate import split_of_manifest
from medssl_cli.engine.finetune import Choices, finetune
from medssl_cli.engine.runs import open_run
from medssl_cli.formats.nifti import read_nifti, write_nifti
from medssl_cli.recipe import TaskRecipe
from tests.toy_cache import toy_cache
from tests.toy_recipes import BALLS, CT, task_recipe

pytestmark = pytest.mark.slow


def recipe(crop_size: tuple[int, int, int] = (32, 32, 8)) -> TaskRecipe:
    return task_recipe(
        {
            "name": "thick",
            "backbone": {
                "name": "unet",
                "channels": [8, 16, 16],
                "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]],
                "kernel_sizes": [[3, 3, 1], [3, 3, 3], 3],
                "num_res_units": 1,
            },
            "task": BALLS,
            "data": {**CT, "crop_size": crop_size, "batch_size": 2},
            "augmentation": {"flip_prob": 0.0},
            "optimizer": {"learning_rate": 1e-2},
            "steps": 60,
            "validate_every": 30,
            "checkpoint_every": 30,
            "ema_decay": 0.9,
        }
    )


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # raised inside torch's exporter
def test_thick_slices_go_all_the_way(tmp_path: Path) -> None:
    cache: Cache = toy_cache(tmp_path / "cache", num_patients=12, thickness=4)
    finetune(recipe(), cache, tmp_path / "run", Choices(), device="cpu", talk=Silence())
    export_run(tmp_path / "run", tmp_path / "model.onnx", cache_root=cache.root, cases=2)
    record = split_of_manifest(cache, open_run(tmp_path / "run").manifest, "test")[0]
    scan = cache.read_image(record)
    write_nifti(tmp_path / "scan.nii.gz", scan.voxels[0], scan.affine)

    report = infer([tmp_path / "scan.nii.gz"], tmp_path / "model.onnx", out=tmp_path / "out", device="cpu")

    bundle, (result,) = read_bundle(tmp_path / "model.onnx"), report.results
    assert bundle.parity is not None
    assert bundle.parity.max_abs_difference < 1e-3
    assert bundle.head.tile_size == (32, 32, 8)
    mask = read_nifti(tmp_path / "out" / result.outputs[0]).image.volume
    np.testing.assert_allclose(mask.affine, np.diag([2.0, 2, 8, 1]))
    truth, found = cache.read_label(record, "seg").voxels[0] == 1, mask.voxels[0] == 1
    assert truth.shape == found.shape == (32, 32, 8)
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.5  # everything marked: less than 0.1


@pytest.mark.parametrize(
    ("crop_size", "fault"),
    [((32, 32, 7), "7 along z is no multiple of 2"), ((32, 30, 8), "30 along y is no multiple of 4")],
)
def test_the_axis_along_which_a_crop_does_not_fit_is_named(crop_size: tuple[int, int, int], fault: str) -> None:
    with pytest.raises(UsageError, match=f"E_CANVAS: data.crop_size .* is not for unet: {fault}"):
        check_recipe(recipe(crop_size))
