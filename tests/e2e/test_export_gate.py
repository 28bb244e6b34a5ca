"""No file leaves export that says or answers something else than its run, whatever happens between both."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from scipy import ndimage

from medssl_cli.base.errors import GateError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.deploy import export, proven_file, runtime
from medssl_cli.deploy.bundle import Bundle, load_model
from medssl_cli.deploy.card import card_markdown
from medssl_cli.deploy.export import export_network, onnx_graph
from medssl_cli.deploy.onnx_file import graph_of, read_head, seal
from medssl_cli.deploy.parity import LIMITS, NOT_COMPARED, TOLERANCE, shuffled
from medssl_cli.deploy.run_scores import RunFigure, RunScores
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.engine.build import build_task
from medssl_cli.heads import EmbeddingsHead, LargestParts, LesionRule, MasksHead
from medssl_cli.imaging.segment import segment_volume
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe_sections import Algorithm, ClassDetails
from medssl_cli.tasks import supervision_of
from tests.brain_set import nnunet_raw
from tests.e2e.test_export import ToyRun
from tests.listener import Listener
from tests.toy_cache import toy_cache
from tests.toy_model import changed
from tests.toy_recipes import BALLS, CT, task_recipe

# A SwinUNETR passes too, and takes minutes: it goes through the same code.
BACKBONES: dict[str, dict[str, Any]] = {
    "unet": {"name": "unet", "channels": [4, 6], "strides": [1, 2], "num_res_units": 1},
    "plainconv": {"name": "plainconv", "channels": [4, 6], "strides": [1, 2], "num_convs": [1, 1]},
    "resenc": {"name": "resenc", "channels": [4, 6], "strides": [1, 2], "num_blocks": [1, 1]},
    "resnet": {"name": "resnet", "depth": 18, "width": 4, "spatial_dims": 2, "norm": "instance"},
}
TILES = {"resnet": (64, 64, 1)}
NUM_TENSORS = 6
SWAPPED = {1: "ball_2", 2: "ball_1"}
OTHER = Preprocessing(window_hu=(-200, 300), spacing_mm=(2.5, 2.0, 2.0))
LIES: dict[str, Any] = {
    "task": "another",
    "head": EmbeddingsHead(dim=8),
    "preprocessing": OTHER,
    "activation": "sigmoid",
    "classes": SWAPPED,
    "in_channels": 2,
    "modality": "MR",
    "label_set": "another",
    "label_classes": {"ball_1": ("ball_2",), "ball_2": ("ball_1",)},
    "label_ignore": ("another",),  # one in a class would contradict itself, and no such file is read at all
    "tile_size": (8, 16, 16),
    "overlap": 0.25,
    "mirror_axes": (1,),
    "largest": LargestParts(classes=("ball_1",)),
    "lesions": LesionRule(),
    "nsd_tolerance_mm": 1.0,
    "recipe_sha256": "0" * 64,
    "weights_sha256": "0" * 64,
    "manifest_sha256": "0" * 64,
    "trained_on": (),
    "split_seed": 7,
    "fold": 3,
    "class_details": {"ball_1": ClassDetails(colour="#102030")},
    "algorithm": Algorithm(name="another"),
    "intended_use": "Everything",
    "precision": "float16",
    "training": None,
    "scores": RunScores(
        split="test", num_patients=9, num_images=9, figures=(RunFigure(name="mean", metric="dice", mean=1.0),)
    ),
}
WINDOWS = (
    OTHER.model_copy(update={"spacing_mm": (2.0, 2.0, 2.0), "window_hu": (-200, 310)}),
    Preprocessing(zscore=True, spacing_mm=(2.0, 2.0, 2.0)),
    OTHER,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return toy_cache(tmp_path_factory.mktemp("gate") / "cache", num_patients=3, size=20)


def untrained(cache: Cache, backbone: str) -> ToyRun:
    """A run in memory whose network answers with all classes, because its weights are large."""
    recipe = task_recipe(
        {
            "name": "toy-seg",
            "backbone": BACKBONES[backbone],
            "task": BALLS,
            "data": {
                **CT,
                "spacing_mm": [2, 2, 2],
                "crop_size": TILES.get(backbone, (16, 16, 16)),
                "batch_size": 1,
            },
            "inference": {"mirror_axes": [0]},
        }
    )
    network = build_task(recipe).eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for value in network.parameters():
            value += 0.1 * torch.randn(value.shape)
    entries = [{"item": record.item_id, "patient": record.patient_key} for record in cache.records()]
    manifest = {
        "arguments": {"fold": 0},
        "splits": {"train": entries[:1], "val": entries[1:2], "test": entries[2:]},
        "sha256": "c" * 64,
    }
    return ToyRun(recipe, network, manifest, {1: "ball_1", 2: "ball_2"})


_KNOWN: dict[str, bytes] = {}


def graph_for(run: ToyRun) -> bytes:
    """What torch's exporter makes of a network; once, because it is slow."""
    name = run.recipe.backbone.name
    if name not in _KNOWN:
        _KNOWN[name] = graph_of_network(run, run.network)
    return _KNOWN[name]


def graph_of_network(run: ToyRun, network: torch.nn.Module) -> bytes:
    bundle = export.make_bundle(run, head_of(run), licence="")
    return onnx_graph(network, bundle.inputs, bundle.outputs)


def head_of(run: ToyRun) -> Any:
    """Of masks, for which no image is needed."""
    nowhere: Any = None
    return export.head_of(run, nowhere)


@pytest.fixture
def run(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> ToyRun:
    found = untrained(cache, "unet")
    monkeypatch.setattr(export, "onnx_graph", lambda *_, **__: graph_for(found))
    return found


def tampering(monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes], *, at: int = 0) -> None:
    """Let a write of export put something else on the disk than it was given.

    Args:
        monkeypatch: Of the test.
        change: From the bytes that were meant to those that are written.
        at: Which write: the first makes the file that is compared, the second adds the proof.
    """
    write, calls = proven_file.write_atomic, []

    def other(path: Path, data: bytes, **options: Any) -> None:
        calls.append(path)
        write(path, change(data) if len(calls) == at + 1 else data, **options)

    monkeypatch.setattr(proven_file, "write_atomic", other)


def with_bundle(data: bytes, **changes: Any) -> bytes:
    """A sealed model that says something else about itself."""
    bundle = changed(Bundle.model_validate_json(read_head(data, name="x")), **changes)
    return seal(graph_of(data, name="x"), bundle.to_json())


def with_tensor(data: bytes, number: int, factor: float) -> bytes:
    """A sealed model, one of whose tensors is multiplied."""
    model = onnx.load_from_string(graph_of(data, name="x"))
    tensor = floats(model)[number]
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name))
    return seal(model.SerializeToString(), read_head(data, name="x"))


def floats(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]


def refused(run: ToyRun, cache: Cache, folder: Path) -> str:
    """What the gate says; no file remains, not even a temporary one."""
    path = folder / "out" / "model.onnx"
    with pytest.raises(GateError, match="E_PARITY") as caught:
        export_network(run, path, cache=cache, cases=1, tolerance=TOLERANCE)
    assert list(path.parent.iterdir()) == []
    return caught.value.message


def test_what_is_written_and_not_touched_passes(run: ToyRun, cache: Cache, tmp_path: Path) -> None:
    path, notes = tmp_path / "out" / "model.onnx", list[str]()

    bundle = export_network(run, path, cache=cache, cases=2, tolerance=TOLERANCE, tell=notes.append)

    assert load_model(path)[1] == bundle
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]
    assert bundle.parity is not None
    assert (bundle.parity.num_cases, bundle.parity.argmax_agreement, notes) == (2, 1.0, [])
    # What the process held is noted in steps of 16 MiB; the libraries alone take more than one.
    assert bundle.memory_bytes is not None
    assert 2**24 < bundle.memory_bytes < 2**31
    assert bundle.memory_bytes % 2**24 == 0


def test_every_word_of_a_bundle_is_compared_or_known_not_to_be_the_runs() -> None:
    said = {*Bundle.model_fields, *(set(MasksHead.model_fields) - {"kind"})}
    assert set(LIES) | set(NOT_COMPARED) == said


@pytest.mark.parametrize("field", LIES)
def test_a_file_that_says_something_else_than_its_run_is_caught(
    run: ToyRun, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    tampering(monkeypatch, lambda data: with_bundle(data, **{field: LIES[field]}))

    assert field in refused(run, cache, tmp_path) or field in (
        "head",
        "tile_size",
        "in_channels",
        "activation",
    )  # the graph says no first


@pytest.mark.parametrize("backbone", ["unet", "plainconv"])
def test_half_precision_goes_through_the_same_gate(cache: Cache, tmp_path: Path, backbone: str) -> None:
    run = untrained(cache, backbone)
    paths = {precision: tmp_path / f"{precision}.onnx" for precision in LIMITS}

    bundles = {name: export_network(run, path, cache=cache, cases=2, precision=name) for name, path in paths.items()}

    assert {name: bundle.precision for name, bundle in bundles.items()} == {name: name for name in LIMITS}
    differences = {name: bundle.parity.max_abs_difference for name, bundle in bundles.items() if bundle.parity}
    assert differences["float32"] < 1e-4 < differences["float16"] < LIMITS["float16"].tolerance
    kernels = [value for value in onnx.load(paths["float16"]).graph.initializer if len(value.dims) == 5]
    assert kernels
    assert {value.data_type for value in kernels} == {onnx.TensorProto.FLOAT16}
    assert "computed in float16" in card_markdown(bundles["float16"])
    with pytest.raises(GateError, match="E_PARITY"):
        export_network(run, tmp_path / "strict.onnx", cache=cache, cases=2, precision="float16", tolerance=TOLERANCE)


@pytest.fixture
def run_of_largest(run: ToyRun) -> ToyRun:
    """The run has learnt to keep the largest part of everything, which changes its answers."""
    run.network.learnt = LargestParts(foreground=True, classes=("ball_1", "ball_2")).model_dump(mode="json")  # type: ignore[assignment]
    return run


def test_parts_that_a_run_drops_are_dropped_by_the_file(run_of_largest: ToyRun, cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "out" / "model.onnx"

    bundle = export_network(run_of_largest, path, cache=cache, cases=2, tolerance=TOLERANCE)

    assert isinstance(bundle.head, MasksHead)
    assert bundle.head.largest == LargestParts(foreground=True, classes=("ball_1", "ball_2"))
    assert load_model(path)[1] == bundle
    model = OnnxModel(path, "cpu", threads=1)
    answer = model.segment(cache.read_image(cache.records()[0]))
    model.close()
    assert ndimage.label(answer == 1, np.ones((3, 3, 3)))[1] == 1


@pytest.mark.parametrize(
    "lie", [None, LargestParts(), LargestParts(foreground=True), LargestParts(classes=("ball_2",))]
)
def test_a_file_that_drops_other_parts_than_its_run_is_caught_by_its_answers(
    run_of_largest: ToyRun,
    cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lie: LargestParts | None,
) -> None:
    monkeypatch.setattr(export, "require_contract", lambda *_: None)
    tampering(monkeypatch, lambda data: with_bundle(data, largest=lie))

    assert refused(run_of_largest, cache, tmp_path)


@pytest.mark.parametrize("field", ["classes", "preprocessing"])
def test_a_bundle_that_is_made_wrongly_is_caught_too(
    run: ToyRun, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    make = export.make_bundle
    monkeypatch.setattr(
        export, "make_bundle", lambda *args, **more: changed(make(*args, **more), **{field: LIES[field]})
    )

    refused(run, cache, tmp_path)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_tensor_more_than_it_was_is_caught_if_it_moves_an_answer(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    run = untrained(cache, backbone)
    graph = graph_for(run)
    monkeypatch.setattr(export, "onnx_graph", lambda *_, **__: graph)
    sealed = seal(graph, export.make_bundle(run, head_of(run), licence="").to_json())
    tiles = np.random.default_rng(0).random((1, 1, *run.recipe.tile_size), dtype=np.float32)
    exact = logits(graph, tiles)
    number_of_all = len(floats(onnx.load_from_string(graph)))
    moving = [
        number
        for number in range(0, number_of_all, max(1, number_of_all // NUM_TENSORS))
        if np.abs(logits(graph_of(with_tensor(sealed, number, 1.1), name="x"), tiles) - exact).max()
        > 10 * TOLERANCE * max(1.0, np.abs(exact).max())
    ]
    assert len(moving) >= 2

    for number in moving[:3]:
        with monkeypatch.context() as once:
            tampering(once, lambda data, number=number: with_tensor(data, number, 1.1))  # type: ignore[misc]
            assert "logits" in refused(run, cache, tmp_path)


def logits(graph: bytes, tiles: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"image": tiles})[0]
    return found


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_file_that_gives_no_numbers_is_caught(
    run: ToyRun, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    tampering(monkeypatch, lambda data: with_tensor(data, 0, factor))

    refused(run, cache, tmp_path)


def test_a_network_that_gives_no_numbers_is_caught(run: ToyRun, cache: Cache, tmp_path: Path) -> None:
    with torch.no_grad():
        next(run.network.parameters()).fill_(float("nan"))

    assert "not finite" in refused(run, cache, tmp_path)


def test_a_damaged_file_is_caught(run: ToyRun, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tampering(monkeypatch, lambda data: data[:-200] + data[-100:])

    assert "damaged" in refused(run, cache, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: with_bundle(data, classes=SWAPPED),
        lambda data: with_tensor(data, 0, 1.1),
        lambda data: data[:-1] + (b"1" if data.endswith(b"0") else b"0"),
    ],
    ids=["words", "weights", "bytes"],
)
def test_nothing_changes_after_the_comparison(
    run: ToyRun,
    cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[bytes], bytes],
) -> None:
    tampering(monkeypatch, change, at=1)

    refused(run, cache, tmp_path)


def test_a_file_that_was_exchanged_after_the_comparison_is_caught(
    run: ToyRun, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = proven_file._set_proof

    def exchanged(path: Path, *given: Any) -> Bundle:
        path.write_bytes(with_tensor(path.read_bytes(), 0, 1.1))
        return make(path, *given)

    monkeypatch.setattr(proven_file, "_set_proof", exchanged)

    assert "another one" in refused(run, cache, tmp_path)


@pytest.mark.parametrize(
    "rule",
    [
        *({"preprocessing": each} for each in WINDOWS),
        {"mirror_axes": ()},
        {"mirror_axes": (1,)},
        {"overlap": 0.8},
    ],
    ids=["window", "zscore", "spacing", "no mirror", "another mirror", "overlap"],
)
def test_an_inference_that_follows_other_rules_is_caught_by_its_answers_alone(
    run: ToyRun, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any]
) -> None:
    monkeypatch.setattr(runtime, "segment_volume", lambda *args, **given: segment_volume(*args, **{**given, **rule}))

    refused(run, cache, tmp_path)


def test_names_are_compared_by_what_they_mark(
    run: ToyRun, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "require_contract", lambda *_: None)
    tampering(monkeypatch, lambda data: with_bundle(data, classes=SWAPPED))

    assert "volumes of" in refused(run, cache, tmp_path)


def test_images_in_which_nothing_is_found_are_said_to_prove_little(run: ToyRun, cache: Cache, tmp_path: Path) -> None:
    silent = replace(run, network=torch.nn.Sequential(run.network, Background()))
    listener = Listener()

    graph = graph_of_network(run, silent.network)
    with pytest.MonkeyPatch.context() as once:
        once.setattr(export, "onnx_graph", lambda *_, **__: graph)
        export_network(silent, tmp_path / "model.onnx", cache=cache, cases=1, tolerance=TOLERANCE, tell=listener.note)

    assert [note.partition(":")[0] for note in listener.notes] == ["W_PROOF_EMPTY"]


class Background(torch.nn.Module):
    """Nothing is found anywhere."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits + torch.tensor([1000.0, 0.0, 0.0]).view(1, 3, 1, 1, 1)


def test_noise_is_made_of_the_images_own_voxels_and_no_larger_than_needed(run: ToyRun, cache: Cache) -> None:
    volume = cache.read_image(cache.records()[0])

    noise = shuffled(volume, run.recipe)

    assert noise.shape == volume.shape
    np.testing.assert_array_equal(np.sort(noise.voxels, axis=None), np.sort(volume.voxels, axis=None))
    assert (noise.voxels != volume.voxels).mean() > 0.9
    large = replace(volume, voxels=np.tile(volume.voxels, (1, 1, 10, 1)))
    assert shuffled(large, run.recipe).shape == (20, 24, 20)  # 1.5 tiles of 16 voxels at 2 mm are 24 voxels


REGIONS = {"whole": ["edema", "enhancing", "necrosis"], "core": ["enhancing", "necrosis"]}
CHANNELS = [{"name": "t1ce", "zscore": True}, {"name": "flair", "percentiles": [1, 99]}]
RULES = Preprocessing.model_validate({"channels": CHANNELS})
EXCHANGED = RULES.model_copy(update={"channels": tuple(reversed(RULES.channels or ()))})
ANOTHER_RULE = Preprocessing.model_validate({"channels": [CHANNELS[0], {"name": "flair", "percentiles": [1, 90]}]})


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    root = tmp_path_factory.mktemp("brains")
    ingest([nnunet_raw(root, (1, 2))], root / "cache", IngestOptions(workers=1, modality="MR"))
    return Cache.open(root / "cache")


@pytest.fixture(scope="module")
def regions(brains: Cache) -> ToyRun:
    """A run of two channels and two regions, whose network answers everywhere."""
    recipe = task_recipe(
        {
            "name": "toy-regions",
            "backbone": {"name": "unet"},
            "task": {"name": "segmentation", "classes": REGIONS},
            "data": {"channels": CHANNELS, "crop_size": [16, 16, 16], "batch_size": 1},
        }
    )
    records = supervision_of(recipe).usable(brains, Silence())
    entries = [{"item": record.item_id, "patient": record.patient_key} for record in records]
    manifest = {"arguments": {"fold": 0}, "splits": {"val": entries[:1], "test": entries[1:]}, "sha256": "c" * 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv3d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 1))
    return ToyRun(recipe, network.eval(), manifest, {1: "whole", 2: "core"}, in_channels=2)


@pytest.fixture
def traced(regions: ToyRun, monkeypatch: pytest.MonkeyPatch) -> ToyRun:
    if "regions" not in _KNOWN:
        _KNOWN["regions"] = graph_of_network(regions, regions.network)
    monkeypatch.setattr(export, "onnx_graph", lambda *_, **__: _KNOWN["regions"])
    return regions


def test_channels_and_regions_pass_and_are_plain_data(traced: ToyRun, brains: Cache, tmp_path: Path) -> None:
    path, listener = tmp_path / "model.onnx", Listener()

    export_network(traced, path, cache=brains, cases=2, tolerance=TOLERANCE, tell=listener.note)

    _, bundle, _ = load_model(path)
    assert isinstance(bundle.head, MasksHead)
    assert (bundle.head.activation, bundle.head.words) == ("sigmoid", ("whole", "core"))
    assert bundle.preprocessing == RULES
    assert bundle.preprocessing.channel_names == ("t1ce", "flair")
    assert bundle.parity is not None
    assert (bundle.parity.num_cases, bundle.parity.argmax_agreement, listener.notes) == (2, 1.0, [])


@pytest.mark.parametrize(
    ("field", "lie"),
    [
        ("preprocessing", EXCHANGED),
        ("preprocessing", ANOTHER_RULE),
        ("classes", {1: "core", 2: "whole"}),
        ("activation", "softmax"),
        ("in_channels", 1),
        ("label_classes", {"whole": ("edema", "enhancing"), "core": ("enhancing",)}),
    ],
    ids=["order of channels", "rule of a channel", "names of regions", "activation", "number", "members"],
)
@pytest.mark.parametrize("is_told", [True, False], ids=["words", "answers"])
def test_a_lie_about_channels_or_regions_is_caught(
    traced: ToyRun,
    brains: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    lie: Any,
    is_told: bool,
) -> None:
    if not is_told and field != "label_classes":  # only evaluation asks what labels mean, so answers cannot tell
        monkeypatch.setattr(export, "require_contract", lambda *_: None)
    tampering(monkeypatch, lambda data: with_bundle(data, **{field: lie}))

    assert refused(traced, brains, tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        lambda images, given: (images[::-1], given),
        lambda images, given: (images, {**given, "preprocessing": ANOTHER_RULE}),
        lambda images, given: (images, {**given, "activation": "softmax"}),
    ],
    ids=["order of channels", "rule of a channel", "activation"],
)
def test_a_runtime_that_treats_channels_otherwise_is_caught_by_its_answers_alone(
    traced: ToyRun, brains: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Callable[..., Any]
) -> None:
    def another(predict: Any, images: Any, **given: Any) -> Any:
        images, given = other(images, given)
        return segment_volume(predict, images, **given)

    monkeypatch.setattr(runtime, "segment_volume", another)

    refused(traced, brains, tmp_path)
