"""Scans that are unlike the training images: said beside the answer, which stays as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.deploy import export, training_summary
from medssl_cli.deploy.bundle import Bundle, load_model
from medssl_cli.deploy.card import card_markdown
from medssl_cli.deploy.export import export_network
from medssl_cli.deploy.infer import infer
from medssl_cli.deploy.parity import TOLERANCE
from medssl_cli.deploy.results import ScanResult
from medssl_cli.engine.build import build_task
from medssl_cli.formats.nifti import read_nifti, write_nifti
from tests.e2e.test_export import ToyRun
from tests.toy_cache import toy_cache
from tests.toy_recipes import BALLS, CT, task_recipe

NUM_TRAINED = 12


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return toy_cache(tmp_path_factory.mktemp("unlike") / "cache", num_patients=16, size=20)


@pytest.fixture(scope="module")
def run(cache: Cache) -> ToyRun:
    recipe = task_recipe(
        {
            "name": "toy-seg",
            "backbone": {"name": "unet", "channels": [4, 6], "strides": [1, 2], "num_res_units": 1},
            "task": BALLS,
            "data": {
                **CT,
                "spacing_mm": [2, 2, 2],
                "crop_size": [16, 16, 16],
                "batch_size": 1,
            },
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_task(recipe).eval()
    entries = [{"item": one.item_id, "patient": one.patient_key} for one in cache.records()]
    splits = {"train": entries[:NUM_TRAINED], "val": entries[NUM_TRAINED:15], "test": entries[15:]}
    manifest = {"arguments": {"fold": 0}, "splits": splits, "sha256": "c" * 64}
    return ToyRun(recipe, network, manifest, {1: "ball_1", 2: "ball_2"})


@pytest.fixture(scope="module")
def models(cache: Cache, run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network, once with what it knows of its training images and once without."""
    root = tmp_path_factory.mktemp("models")
    export_network(run, root / "knowing.onnx", cache=cache, cases=1, tolerance=TOLERANCE)
    with pytest.MonkeyPatch.context() as once:
        once.setattr(export, "summary_of", lambda *_: None)
        export_network(run, root / "plain.onnx", cache=cache, cases=1, tolerance=TOLERANCE)
    return {path.stem: path for path in root.glob("*.onnx")}


def bundle_of(path: Path) -> Bundle:
    return load_model(path)[1]


def unseen(cache: Cache) -> ItemRecord:
    return cache.records()[-1]


def asked(model: Path, out: Path, voxels: np.ndarray, affine: np.ndarray) -> ScanResult:
    """What is reported of a scan."""
    out.mkdir()
    write_nifti(out / "scan.nii.gz", voxels.astype(np.int16), affine)
    (result,) = infer([out / "scan.nii.gz"], model, out=out / "out", device="cpu", threads=1).results
    return result


def test_the_bundle_knows_its_training_images_and_no_patient(models: dict[str, Path], cache: Cache) -> None:
    known = bundle_of(models["knowing"]).training

    assert known is not None
    assert (known.num_patients, known.num_images, known.modalities) == (NUM_TRAINED, NUM_TRAINED, {"CT": NUM_TRAINED})
    assert known.spacing_mm is not None
    assert (known.spacing_mm.low, known.spacing_mm.high) == ((2, 2, 2), (2, 2, 2))
    assert known.field_of_view_mm is not None
    assert known.field_of_view_mm.low == (40, 40, 40)
    assert known.embeddings is not None
    assert (known.embeddings.num_images, known.embeddings.num_left_out) == (NUM_TRAINED, NUM_TRAINED + 3)
    told = known.model_dump_json()
    assert not [one for one in cache.records() if one.patient_key in told or one.item_id in told]
    assert bundle_of(models["plain"]).training is None


def test_answers_are_those_of_a_model_that_knows_nothing(models: dict[str, Path], cache: Cache, tmp_path: Path) -> None:
    image = cache.read_image(unseen(cache))

    results = [asked(models[name], tmp_path / name, image.voxels[0], image.affine) for name in ("knowing", "plain")]

    masks = [
        read_nifti(tmp_path / name / "out" / one.outputs[0]).image.volume.voxels
        for name, one in zip(("knowing", "plain"), results, strict=True)
    ]
    assert masks[0].any()
    np.testing.assert_array_equal(*masks)
    assert results[1].unlike == {}
    assert set(results[0].unlike) == {"distance", "percentile", "limit"}
    assert not [code for code in results[0].warnings if code.endswith("_TRAINING")]


def test_a_scan_of_something_else_is_said_to_be_unlike(models: dict[str, Path], cache: Cache, tmp_path: Path) -> None:
    image = cache.read_image(unseen(cache))
    stripes = 400 * (np.indices(image.shape).sum(axis=0) % 2) - 100

    result = asked(models["knowing"], tmp_path / "scan", stripes, image.affine)

    assert "W_UNLIKE_TRAINING" in result.warnings
    assert result.unlike["distance"] > result.unlike["limit"]
    assert result.unlike["percentile"] == 100
    assert "W_UNLIKE_TRAINING: distance" in result.message
    assert ScanResult.from_json(result.to_json()) == result


@pytest.mark.parametrize(
    ("scale", "values", "said"),
    [
        (2.0, 1, "spacing"),
        (0.5, 1, "field of view"),
        (1.0, 20, "values are"),
        (1.0, 0.001, "values are"),
    ],
)
def test_sizes_and_values_outside_of_the_trainings_are_said_with_numbers(
    models: dict[str, Path], cache: Cache, tmp_path: Path, scale: float, values: float, said: str
) -> None:
    image = cache.read_image(unseen(cache))
    affine = image.affine @ np.diag([scale, scale, scale, 1.0])

    result = asked(models["knowing"], tmp_path / "scan", image.voxels[0] * values, affine)

    assert "W_BEYOND_TRAINING" in result.warnings
    assert f"W_BEYOND_TRAINING: {said}" in result.message


def test_with_few_patients_no_distance_is_promised(run: ToyRun, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_summary, "LEAST_PATIENTS", NUM_TRAINED + 1)

    known = training_summary.summary_of(
        run, run.network, export.head_of(run, cache), run.recipe.data.preprocessing, cache
    )

    assert known is not None
    assert known.embeddings is None


def test_a_cache_that_has_lost_the_training_images_says_nothing(run: ToyRun, cache: Cache) -> None:
    lost: dict[str, Any] = {**run.manifest, "splits": {"train": [{"item": "x", "patient": "y"}]}}
    known = training_summary.summary_of(
        ToyRun(run.recipe, run.network, lost, run.classes),
        run.network,
        export.head_of(run, cache),
        run.recipe.data.preprocessing,
        cache,
    )

    assert known is None


def test_the_card_says_what_the_bundle_knows(models: dict[str, Path]) -> None:
    knowing, plain = (card_markdown(bundle_of(models[name])) for name in ("knowing", "plain"))

    assert f"{NUM_TRAINED} images of {NUM_TRAINED} patients" in knowing
    assert "2 x 2 x 2 to 2 x 2 x 2" in knowing
    assert "images lie that were left out" in knowing
    assert "Not evaluated before the export" in knowing
    assert "It cannot tell when a scan is unlike" in plain
