"""Slice-wise segmentation end to end on toy volumes: it learns, exports, and takes over a joint pre-training."""

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import safetensors.torch
import torch

from medssl_cli.base.errors import UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.splits import Split
from medssl_cli.cache.store import Cache
from medssl_cli.deploy.export import export_run
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.engine.build import build_task, check_recipe
from medssl_cli.engine.evaluate import split_of_manifest
from medssl_cli.engine.finetune import Choices, finetune
from medssl_cli.engine.finetuned import load_finetuned
from medssl_cli.engine.predict import torch_predict
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.engine.weights import load_encoder
from medssl_cli.imaging.volume import Volume
from medssl_cli.recipe import TaskRecipe
from medssl_cli.tasks import supervision_of
from tests.listener import Listener
from tests.slice_cache import slice_cache
from tests.toy_recipes import BALLS, CT, pretrain_recipe, task_recipe

RESNET = {"name": "resnet", "depth": 18, "width": 8}
RELATION = {"embedding_dim": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
JOINT = {
    "name": "joint",
    "variant": "deepcluster",
    "hidden_dim": 16,
    "projection_dim": 8,
    "views": {"num_local": 0},
    "slices_per_volume": 2,
    "stacks": {"every": 2, "batch_size": 4, "max_slices": 6},
    "clusters": {"images": {"num_prototypes": [5]}, "volumes": {"num_prototypes": [2]}},
    "relation": RELATION,
}


def recipe(**changes: Any) -> TaskRecipe:
    task = {**BALLS, "decoder": {"norm": "batch"}}
    unet = {"channels": [8, 16], "strides": [1, 2], "num_res_units": 0, "norm": "batch"}
    document = {
        "name": "slices",
        "backbone": {"name": "unet", "spatial_dims": 2, **unet},
        "task": {**task, "relation": {**RELATION, "slice_spacing_mm": 2.0}},
        "data": {**CT, "crop_size": [16, 16, 4], "batch_size": 8},
        "augmentation": {"flip_prob": 0.0, "affine_prob": 0.5},
        "optimizer": {"learning_rate": 2e-2},
        "steps": 60,
        "validate_every": 30,
        "checkpoint_every": 30,
        "channels_last": True,
        "ema_decay": 0.9,
        "inference": {"tile_size": [32, 16, 5]},  # wider than the images, narrower than they are high and deep
    }
    document |= {key: value for key, value in changes.items() if key != "task"}
    document["task"] |= changes.get("task", {})
    return task_recipe(document)


def on_resnet(**relation: Any) -> TaskRecipe:
    return recipe(
        backbone=RESNET,
        task={"relation": {**RELATION, "slice_spacing_mm": 2.0, **relation}},
        data={"modality": "CT", "zscore": True, "crop_size": [32, 32, 3], "batch_size": 2},
        inference={"tile_size": [32, 32, 4]},
        steps=1,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return slice_cache(tmp_path_factory.mktemp("slices") / "cache")


@pytest.fixture(scope="module")
def run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finetune") / "run"
    finetune(recipe(), cache, root, Choices(), device="cpu", talk=Silence())
    return root


@pytest.fixture(scope="module")
def model(cache: Cache, run: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_run(run, path, cache_root=cache.root, cases=2)
    return OnnxModel(path, "cpu")


@pytest.fixture(scope="module")
def joint(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = pretrain_recipe(
        {
            "backbone": RESNET,
            "method": JOINT,
            "data": {"zscore": True, "crop_size": [32, 32, 1], "batch_size": 8},
            "optimizer": {"learning_rate": 1e-2},
            "accumulate": 2,
        }
    )
    root = tmp_path_factory.mktemp("joint") / "run"
    pretrain(found, cache, root, device="cpu", talk=Silence())
    return root


def test_fine_tuning_learns_the_balls(cache: Cache, run: Path, tmp_path: Path) -> None:
    tuned = load_finetuned(run)
    records = split_of_manifest(cache, tuned.manifest, "test")
    subject = supervision_of(tuned.recipe).subject(
        tuned.network, torch_predict(tuned.network, "cpu"), name="run", folder=tmp_path, records=records
    )

    results = subject.score(cache, split="test", talk=Silence())

    shares = [structure["constant_predictor_dice"] for structure in results.document["structures"].values()]
    assert results.value > 0.6
    assert max(shares) < 0.1


def test_the_exported_model_gives_the_same_masks_and_takes_scans_of_any_size(model: OnnxModel) -> None:
    assert model.bundle.head.tile_size == (32, 16, 5)
    assert model.bundle.parity is not None
    assert model.bundle.parity.max_abs_difference < 1e-3
    for shape in [(7, 40, 1), (33, 16, 12)]:
        voxels = np.random.default_rng(0).integers(-200, 300, (1, *shape), dtype=np.int16)
        mask = model.segment(Volume(voxels, np.diag([2.0, 2, 2, 1]), "CT", "HU"))
        assert mask.shape == shape


def test_slices_that_are_not_as_far_apart_as_the_recipe_says_are_told_of(cache: Cache) -> None:
    talk = Listener()
    wrong = recipe(task={"relation": {**RELATION, "slice_spacing_mm": 10.0}})
    for told in (recipe(), wrong):
        supervision = supervision_of(told)
        records = supervision.usable(cache, Silence())
        supervision.check(cache, records, Split(tuple(records), (), ()), talk)

    assert [note for note in talk.notes if "mm apart" in note] == [
        "slices of 14 of 14 images are not 10 mm apart, as task.relation.slice_spacing_mm says; they are 2 to 2 mm"
    ]


def test_tiles_of_one_slice_do_as_well(cache: Cache, run: Path) -> None:
    tuned = load_finetuned(run)
    single = recipe(task={"relation": None}, inference={"tile_size": [16, 16, 1]}, steps=1)
    network = build_task(single)
    network.load_state_dict({k: v for k, v in tuned.network.state_dict().items() if not k.startswith("relation.")})
    validate = supervision_of(single).validator(cache, split_of_manifest(cache, tuned.manifest, "val"))

    def predict(tiles: np.ndarray) -> np.ndarray:
        assert tiles.shape[2:] == (16, 16, 1)
        with torch.inference_mode():
            return network.eval()(torch.from_numpy(tiles)).numpy()

    assert 0 < validate(predict).score <= 1


def test_a_joint_run_gives_its_trunk_and_its_slice_encoder(cache: Cache, joint: Path, tmp_path: Path) -> None:
    talk, encoder = Listener(), load_encoder(joint)
    kept = safetensors.torch.load_file(joint / "slices.safetensors")
    finetune(on_resnet(), cache, tmp_path / "run", Choices(encoder=encoder), device="cpu", talk=talk)

    begun = next(note for note in talk.notes if note.startswith("from --init"))
    assert begun.endswith(f"; {len(kept)} tensors of slices")
    # One step at a learning rate that has only begun to rise leaves the weights where they were, nearly.
    found = load_finetuned(tmp_path / "run").network.state_dict()
    for name, value in kept.items():
        torch.testing.assert_close(found[f"relation.volume_encoder.{name}"], value, rtol=0, atol=1e-3)


def test_an_encoder_without_slices_says_that_they_start_anew(cache: Cache, joint: Path, tmp_path: Path) -> None:
    talk = Listener()
    shutil.copy(joint / "encoder.safetensors", tmp_path)
    encoder = load_encoder(tmp_path / "encoder.safetensors")
    finetune(on_resnet(), cache, tmp_path / "run", Choices(encoder=encoder), device="cpu", talk=talk)

    assert any(note.endswith("it has no weights of slices, which start anew too") for note in talk.notes)


def test_a_slice_encoder_of_another_size_is_refused(cache: Cache, joint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of slices are missing or of another shape") as caught:
        finetune(
            on_resnet(embedding_dim=32),
            cache,
            tmp_path / "run",
            Choices(encoder=load_encoder(joint)),
            device="cpu",
            talk=Silence(),
        )

    assert caught.value.code == "E_WEIGHTS_MISMATCH"
    assert "task.relation" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"data": {"zscore": True, "crop_size": [15, 16, 4], "batch_size": 1}}, "E_CANVAS"),
        ({"inference": {"tile_size": [16, 17, 4]}}, "E_CANVAS"),
        ({"backbone": {"name": "unet", "channels": [8, 16], "strides": [1, 2]}, "inference": {}}, "E_RECIPE"),
        (
            {"data": {"zscore": True, "spacing_mm": [1.0, 1.0, 3.0], "crop_size": [16, 16, 4], "batch_size": 1}},
            "E_RECIPE",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_work(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_recipe(recipe(**changes))

    assert caught.value.code == code


@pytest.mark.real_data
def test_a_heart_is_segmented_slice_by_slice(shared_data: Path, model: OnnxModel) -> None:
    path = sorted((shared_data / "acdc" / "images").glob("*.nii.gz"))[0]
    image = nibabel.load(path)
    volume = Volume(image.get_fdata()[None].astype(np.float32), image.affine, "MR")

    assert model.segment(volume).shape == image.shape
