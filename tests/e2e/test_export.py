"""An exported model gives the trained network's answers, or there is no exported model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from medssl_cli.base.errors import GateError, NothingUsableError, UsageError
from medssl_cli.cache.store import Cache
from medssl_cli.deploy import export, proven_file
from medssl_cli.deploy.bundle import load_model
from medssl_cli.deploy.export import export_network, onnx_graph
from medssl_cli.deploy.parity import compare
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.imaging.segment import segment_volume
from medssl_cli.recipe import TaskRecipe
from tests.toy_cache import toy_cache
from tests.toy_model import write_toy_model
from tests.toy_recipes import BALLS, CT, task_recipe

TILE = (16, 16, 16)


@dataclass(frozen=True)
class ToyRun:
    """A run in memory; its network is untrained, which parity does not mind."""

    recipe: TaskRecipe
    network: nn.Module
    manifest: dict[str, Any]
    classes: dict[int, str]
    weights_sha256: str = "b" * 64
    in_channels: int = 1


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return toy_cache(tmp_path_factory.mktemp("export") / "cache", num_patients=4, size=20)


@pytest.fixture(scope="module")
def run(cache: Cache) -> ToyRun:
    recipe = task_recipe(
        {
            "name": "toy-seg",
            "backbone": {"name": "unet"},
            "task": BALLS,
            "data": {
                **CT,
                "spacing_mm": [1.5, 1.5, 1.5],
                "crop_size": TILE,
                "batch_size": 1,
            },
            "inference": {"mirror_axes": [0]},
        }
    )
    entries = [{"item": record.item_id, "patient": record.patient_key} for record in cache.records()]
    manifest = {
        "arguments": {"fold": 2},
        "splits": {"train": entries[:2], "val": entries[2:3], "test": entries[3:]},
        "sha256": "c" * 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.LeakyReLU(), nn.Conv3d(4, 3, 3, padding=1)
        )
    return ToyRun(recipe, network.eval(), manifest, {1: "ball_1", 2: "ball_2"})


@pytest.fixture(scope="module")
def graph(run: ToyRun) -> bytes:
    """What torch's exporter makes of the network; once, because it is slow."""
    nowhere: Any = None
    bundle = export.make_bundle(run, export.head_of(run, nowhere), licence="")
    return onnx_graph(run.network, bundle.inputs, bundle.outputs)


@pytest.fixture
def _known_graph(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "onnx_graph", lambda *_, **__: graph)


@pytest.fixture
def exported(cache: Cache, run: ToyRun, tmp_path: Path, _known_graph: None) -> Path:
    path = tmp_path / "model" / "model.onnx"
    export_network(run, path, cache=cache, cases=2, tolerance=1e-3)
    return path


def test_the_model_gives_the_networks_masks(cache: Cache, run: ToyRun, exported: Path) -> None:
    @torch.inference_mode()
    def predict(tiles: np.ndarray) -> np.ndarray:
        return run.network(torch.from_numpy(tiles)).numpy()

    model = OnnxModel(exported, "cpu")
    volume = cache.read_image(cache.records()[0])
    data = run.recipe.data

    expected = segment_volume(
        predict, volume, preprocessing=data.preprocessing, tile=TILE, overlap=0.5, mirror_axes=(0,)
    )

    assert len(np.unique(expected)) > 1
    assert float((model.segment(volume) == expected).mean()) >= 0.9999


def test_any_batch_size_gives_the_same_logits(exported: Path) -> None:
    model = OnnxModel(exported, "cpu")
    tiles = np.random.default_rng(0).random((3, 1, *TILE), dtype=np.float32)

    together = model.predict(tiles)

    one_by_one = np.concatenate([model.predict(tile[None]) for tile in tiles])
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)


def test_the_bundle_says_where_the_model_comes_from(cache: Cache, run: ToyRun, exported: Path) -> None:
    _, bundle, _ = load_model(exported)

    assert bundle.task == "toy-seg"
    assert bundle.preprocessing == run.recipe.data.preprocessing
    assert (bundle.head.tile_size, bundle.head.mirror_axes, bundle.fold) == (TILE, (0,), 2)
    assert bundle.parity is not None
    assert bundle.parity.num_cases == 2
    assert bundle.parity.max_abs_difference <= 1e-3
    # Two patients were trained on and one chose the checkpoint; only the fourth is unseen.
    by_split = run.manifest["splits"]
    seen = {entry["patient"]: bundle.has_seen(entry["patient"]) for name in by_split for entry in by_split[name]}
    assert sorted(seen.values()) == [False, True, True, True]
    assert not seen[by_split["test"][0]["patient"]]


def test_the_file_is_self_contained_and_tells_nothing_about_this_machine(exported: Path) -> None:
    model = onnx.load(exported, load_external_data=False)

    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [proven_file.OPSET]
    for trace in (str(Path(__file__).parents[2]), "site-packages", "stack_trace"):
        assert trace.encode() not in exported.read_bytes()
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]


def test_a_model_that_answers_differently_is_not_written(
    cache: Cache, run: ToyRun, graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = onnx.load_from_string(graph)
    for tensor in other.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.1), tensor.name))
    monkeypatch.setattr(export, "onnx_graph", lambda *_, **__: other.SerializeToString())

    with pytest.raises(GateError, match="E_PARITY"):
        export_network(run, tmp_path / "model.onnx", cache=cache, cases=1, tolerance=1e-3)
    assert list(tmp_path.glob("**/*.onnx")) == []


def test_parity_measures_the_difference_that_was_put_in(
    cache: Cache, run: ToyRun, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnnxModel(exported, "cpu")
    exact = model._outputs
    shift = np.array([0, 0, 0.25], np.float32).reshape(1, 3, 1, 1, 1)
    monkeypatch.setattr(model, "_outputs", lambda tiles: [exact(tiles)[0] + shift])
    volumes = [cache.read_image(cache.records()[0])]
    largest = 0.0

    def remember(tiles: np.ndarray) -> np.ndarray:
        nonlocal largest
        logits = exact(tiles)[0].copy()
        largest = max(largest, float(np.abs(logits).max()))
        return logits

    segment_volume(
        remember, volumes[0], preprocessing=run.recipe.data.preprocessing, tile=TILE, overlap=0.5, mirror_axes=(0,)
    )

    parity = compare(run, model.bundle.head, model, volumes).parity

    # One logit is moved by 1/4 everywhere; the measure divides by max(1, largest logit of a tile).
    assert 0.25 / max(1.0, largest) - 1e-4 <= parity.max_abs_difference <= 0.25 + 1e-4
    assert parity.argmax_agreement < 1


def test_a_cache_without_the_runs_images_proves_nothing(run: ToyRun, tmp_path: Path) -> None:
    other = toy_cache(tmp_path / "cache", num_patients=1, size=8)

    with pytest.raises(NothingUsableError, match="cannot be proven"):
        export_network(run, tmp_path / "model.onnx", cache=other, cases=1, tolerance=1e-3)


@pytest.mark.usefixtures("_known_graph")
def test_a_file_of_another_kind_is_not_replaced_but_an_older_model_is(
    cache: Cache, run: ToyRun, tmp_path: Path
) -> None:
    precious = tmp_path / "thesis.onnx"
    precious.write_text("not a model")
    with pytest.raises(UsageError, match="E_OUTPUT_EXISTS"):
        export_network(run, precious, cache=cache, cases=1, tolerance=1e-3)
    assert precious.read_text() == "not a model"

    older = write_toy_model(tmp_path / "older.onnx")
    export_network(run, older, cache=cache, cases=1, tolerance=1e-3)
    assert load_model(older)[1].fold == 2
