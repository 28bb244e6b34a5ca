"""Methods of 2D images, slices and volumes, end to end on toy images: exact resume, two processes as one, transfer."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from onnx import numpy_helper
from torch import Tensor

from medssl_cli.base.errors import Exit, GateError, NothingUsableError, UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.deploy import embeddings, export, proven_file
from medssl_cli.deploy.bundle import Bundle, load_model
from medssl_cli.deploy.embeddings import load_volume_encoder
from medssl_cli.deploy.export import export_run
from medssl_cli.deploy.onnx_file import graph_of, read_head, seal
from medssl_cli.engine.build import build_method
from medssl_cli.engine.metrics_log import read_health
from medssl_cli.engine.pretrain import PretrainSummary, pretrain
from medssl_cli.engine.runs import open_run
from medssl_cli.engine.weights import load_encoder
from medssl_cli.heads import EmbeddingsHead
from medssl_cli.nn.clusters import kmeans
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import PretrainRecipe, dump_recipe, to_yaml
from tests import warm
from tests.command import medssl
from tests.interrupted import interrupted_copy, losses, require_the_same_bits, whole_runs
from tests.listener import Listener
from tests.slice_cache import slice_cache
from tests.toy_cache import toy_cache
from tests.toy_model import changed
from tests.toy_recipes import pretrain_recipe
from tests.two_processes import results_of_each

pytestmark = pytest.mark.slow

STEPS = 6
VIEWS = {"num_local": 2}
SHORT = {"hidden_dim": 16, "projection_dim": 8, "views": VIEWS, "slices_per_volume": 3}
SWAPPED = {"num_prototypes": 6, "queue_length": 8, "queue_starts": 0.3, "freeze_steps": 2}
JOINT = {
    **SHORT,
    "name": "joint",
    "stacks": {"every": 2, "batch_size": 4, "max_slices": 6},
    "swapped": {"images": SWAPPED, "volumes": SWAPPED},
    "clusters": {"images": {"num_prototypes": [5, 7]}, "volumes": {"num_prototypes": [2, 3]}},
    "relation": {"embedding_dim": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0},
}
METHODS: dict[str, dict[str, Any]] = {
    "swav": {**SHORT, **SWAPPED, "name": "swav"},
    "deepclusterv2": {**SHORT, "name": "deepclusterv2", "num_prototypes": [5, 7]},
    "joint": JOINT,
    "joint clusters": {**JOINT, "variant": "deepcluster"},
    "joint dense": {**JOINT, "dense": {"num_points": 16, "width": 8, "projection_dim": 6}},
    "joint in chunks": {**JOINT, "stacks": {**JOINT["stacks"], "chunk_size": 5}},
}
each_method = pytest.mark.parametrize("name", [name for name in METHODS if name != "joint in chunks"])


def recipe(name: str, **changes: object) -> PretrainRecipe:
    return pretrain_recipe(
        {
            "backbone": {"name": "resnet", "depth": 18, "width": 8},
            "method": METHODS[name],
            "data": {"zscore": True, "crop_size": [32, 32, 1], "batch_size": 8},
            "optimizer": {"learning_rate": 1e-2},
            "accumulate": 2,
            "steps": STEPS,
            "checkpoint_every": 2,
            "log_every": 1,
            "health_every": 3,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return slice_cache(tmp_path_factory.mktemp("slices") / "cache")


def weights(root: Path) -> dict[str, np.ndarray]:
    found = safetensors.numpy.load_file(root / "encoder.safetensors")
    if (root / "slices.safetensors").is_file():
        beside = safetensors.numpy.load_file(root / "slices.safetensors")
        found |= {f"slices.{name}": value for name, value in beside.items()}
    return found


@pytest.fixture(scope="module")
def whole_run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The undisturbed run of a method; one for all tests that ask for it."""

    def train(name: str, root: Path) -> PretrainSummary:
        return pretrain(recipe(name), cache, root, device="cpu", talk=Silence())

    return whole_runs(tmp_path_factory.mktemp("whole"), train, steps=STEPS)


@each_method
def test_a_run_that_lost_its_later_checkpoints_ends_with_the_same_bits(
    name: str, cache: Cache, whole_run: Callable[[str], Path], tmp_path: Path
) -> None:
    whole, broken = whole_run(name), tmp_path / "broken"
    interrupted_copy(whole, broken, step=2)

    pretrain(recipe(name), cache, broken, device="cpu", talk=Silence())

    require_the_same_bits(broken, whole)


@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision_is_near_full_precision_and_not_the_same(
    name: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters are given: which one is nearest jumps with the last bit of an embedding, and the loss with it."""

    def assign_in_turn(points: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.arange(len(points), device=points.device) % len(prototypes)
        return labels, (points * prototypes[labels]).sum(dim=1).mean()

    monkeypatch.setattr(kmeans, "_assign", assign_in_turn)
    for kind in ("fp32", "bf16", "fp16"):
        pretrain(recipe(name, precision=kind, steps=1), cache, tmp_path / kind, device="cpu", talk=Silence())

    (expected,) = losses(tmp_path / "fp32")
    for kind in ("bf16", "fp16"):
        (first,) = losses(tmp_path / kind)
        assert first != expected, kind
        assert first == pytest.approx(expected, rel=0.1), kind


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5])
def test_an_epoch_begins_once_whatever_the_number_of_micro_steps(
    accumulate: int, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medssl_cli.methods import deepclusterv2

    begun: list[int] = []
    original = deepclusterv2.Method.before_epoch

    def noted(self: Any, epoch: int, *rest: Any) -> None:
        begun.append(epoch)
        original(self, epoch, *rest)

    monkeypatch.setattr(deepclusterv2.Method, "before_epoch", noted)
    steps = 16 // accumulate
    changed = recipe("deepclusterv2", accumulate=accumulate, steps=steps, checkpoint_every=100, health_every=100)
    pretrain(changed, cache, tmp_path / "run", device="cpu", talk=Silence())

    length = (24 + 3 * 11) // 8  # micro-steps: pictures, and three ranges of each volume of which nobody is tested
    assert begun == list(range((accumulate * (steps - 1)) // length + 1))


def test_the_number_of_workers_changes_nothing(cache: Cache, tmp_path: Path) -> None:
    found = []
    for number in (0, 1):
        data = {"zscore": True, "crop_size": [32, 32, 1], "batch_size": 8, "num_workers": number}
        changed = recipe("joint", data=data, steps=2)
        pretrain(changed, cache, tmp_path / str(number), device="cpu", talk=Silence())
        found.append(losses(tmp_path / str(number)))

    assert found[0] == found[1]


@each_method
def test_health_asks_for_modality_and_level(name: str, whole_run: Callable[[str], Path]) -> None:
    look = read_health(whole_run(name))[-1]

    assert 0 <= look["probe/modality/linear"] <= 1
    assert look["probe/level/chance"] == pytest.approx(1 / 3)


def _train_one_of_two(rank: int, *, root: str, name: str) -> list[Tensor]:
    """Losses and gradients of two micro-steps of one process of two, from batches that both know."""
    return _losses_and_gradients(name, Path(root), rank=rank, size=2)


def _losses_and_gradients(name: str, root: Path, *, rank: int, size: int) -> list[Tensor]:
    from medssl_cli.data.augmentation import Draws
    from medssl_cli.data.views import make_views
    from medssl_cli.methods import SliceRequest, Slices, TrainingSet, Views

    torch.manual_seed(0)
    method = build_method(recipe(name)).double().train()
    method.begin(TrainingSet(torch.arange(8) % 2, torch.arange(8) % 2, num_steps=10))
    stored = torch.load(root / "batches.pt", weights_only=True)

    def views(kind: int, seed: int, request: SliceRequest | None = None) -> Views:
        images, present, positions = (part.chunk(size)[rank] for part in stored[kind])
        ids = torch.arange(8).chunk(size)[rank]
        known = Slices(ids, present, positions, are_volumes=bool(kind))
        draws = Draws(torch.Generator().manual_seed(seed), rank, size)
        declared = method.views() if request is None else replace(method.views(), slices=request)
        return make_views(declared, images, draws, slices=known)

    kinds = [0] if method.views().slices.stacks is None else [0, 1]
    with torch.no_grad():
        method.before_epoch(
            0, lambda request: (views(kind, 5, request) for kind in kinds), torch.Generator().manual_seed(1)
        )
    found = []
    for seed in range(2):
        for kind in kinds:
            method.before_step(0.5)
            method.zero_grad()
            total = method.loss(views(kind, seed), 0.5).total
            total.backward()
            found.append(total.detach())
            found += [
                torch.zeros(()) if parameter.grad is None else parameter.grad.clone()
                for parameter in method.parameters()
                if parameter.requires_grad
            ]
    return found


def _keep_batches(root: Path) -> None:
    """Of images and of volumes, for `_losses_and_gradients`."""
    numbers = torch.Generator().manual_seed(2)
    batches = [
        (torch.rand(8, slices, 1, 37, 37, generator=numbers).double(), torch.ones(8, slices, dtype=torch.bool),
         2.0 * torch.arange(slices).repeat(8, 1))
        for slices in (1, 6)
    ]  # fmt: skip
    torch.save(batches, root / "batches.pt")


@each_method
def test_two_processes_have_the_loss_and_gradients_of_one(name: str, tmp_path: Path) -> None:
    _keep_batches(tmp_path)

    both = results_of_each(tmp_path, partial(_train_one_of_two, root=str(tmp_path), name=name))
    expected = _losses_and_gradients(name, tmp_path, rank=0, size=1)

    for one, other, whole in zip(*both, expected, strict=True):
        torch.testing.assert_close((one + other) / 2, whole, rtol=1e-4, atol=1e-5)


def test_slices_in_chunks_have_the_loss_and_gradients_of_all_at_once(tmp_path: Path) -> None:
    _keep_batches(tmp_path)

    found, expected = (_losses_and_gradients(name, tmp_path, rank=0, size=1) for name in ("joint in chunks", "joint"))

    for chunks, at_once in zip(found, expected, strict=True):
        torch.testing.assert_close(chunks, at_once)


@pytest.mark.parametrize(
    ("name", "strategy", "optimizer"),
    [
        ("joint in chunks", "ddp", {"learning_rate": 1e-2}),
        ("joint clusters", "fsdp", {"name": "lars", "learning_rate": 0.5, "momentum": 0.9}),
    ],
)
def test_two_processes_of_the_command_train_what_one_trains(
    name: str, strategy: str, optimizer: dict[str, Any], cache: Cache, tmp_path: Path
) -> None:
    chosen = recipe(name, steps=3, optimizer=optimizer)
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(dump_recipe(chosen)))
    pretrain(chosen, cache, tmp_path / "one", device="cpu", talk=Silence())
    command = ["pretrain", "--recipe", file, "--cache", cache.root, "--device", "cpu"]

    process = warm.start([*command, "--devices", "2", "--strategy", strategy, "--run", tmp_path / "two"])
    _, talk = process.communicate(timeout=240)

    assert process.returncode == 0, talk
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-3)


def test_the_released_sequence_hands_trunk_and_slices_on(cache: Cache, tmp_path: Path) -> None:
    runs, talk = {}, Listener()
    for stage in ("images", "masked", "volumes"):
        runs[stage] = tmp_path / stage
        changed = recipe("joint", method={**JOINT, "stage": stage}, steps=2)
        before = list(runs.values())[-2] if len(runs) > 1 else None
        pretrain(changed, cache, runs[stage], device="cpu", talk=talk, init=before)

    trunks = {stage: safetensors.numpy.load_file(run / "encoder.safetensors") for stage, run in runs.items()}
    assert all(np.array_equal(trunks["images"][name], trunks["masked"][name]) for name in trunks["images"])
    assert not np.array_equal(trunks["masked"]["conv1.weight"], trunks["volumes"]["conv1.weight"])
    assert any("tensors of slices" in note for note in talk.notes)
    assert load_encoder(runs["volumes"]).patients == load_encoder(runs["images"]).patients


def test_the_sequence_as_released_moves_what_its_stage_moves(cache: Cache, tmp_path: Path) -> None:
    """Stage B leaves trunk and slice map alone and hides the same slices of both views; stage C has no projector."""
    released = {
        **JOINT,
        "mask": {"ratio": 0.4, "shared": True, "loss": "released"},
        "stacks": {"batch_size": 4, "max_slices": 6, "views": "whole", "window": "middle"},
        "swapped": {"volumes": {"num_prototypes": 40, "freeze_steps": 1, "allows_idle": True}},
        "relation": {**JOINT["relation"], "repeats_last": True},
        "freezes_embedding": True,
        "has_volume_projector": False,
    }
    runs: dict[str, Path] = {}
    for stage in ("masked", "volumes"):
        runs[stage] = tmp_path / stage
        changed = recipe("joint", method={**released, "stage": stage}, accumulate=1, steps=2)
        before = runs["masked"] if stage == "volumes" else None
        pretrain(changed, cache, runs[stage], device="cpu", talk=Silence(), init=before)

    kept = {stage: weights(run) for stage, run in runs.items()}
    assert kept["masked"]["slices.embedding.linear.weight"].shape == (16, 8 * (1 + 2 + 4 + 8 + 8))
    moved = {name for name in kept["masked"] if not np.array_equal(kept["masked"][name], kept["volumes"][name])}
    assert {"conv1.weight", "slices.embedding.linear.weight"} <= moved
    assert all(loss > math.log(40 / 4) for loss in losses(runs["volumes"]))  # what 4 volumes leave of 40 prototypes
    method = build_method(recipe("joint", method={**released, "stage": "masked"}))
    learns = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(("backbone.", "volume_encoder.embedding.")) for name in learns)
    assert not any(name.startswith("volume_projector.") for name, _ in method.named_parameters())


def test_a_sequence_of_other_sizes_is_refused(cache: Cache, tmp_path: Path) -> None:
    masked = recipe("joint", method={**JOINT, "stage": "masked"}, steps=1)
    pretrain(masked, cache, tmp_path / "masked", device="cpu", talk=Silence())
    relation = {"embedding_dim": 32, "num_layers": 1, "num_heads": 2}
    other = recipe("joint", method={**JOINT, "stage": "volumes", "relation": relation}, steps=1)

    with pytest.raises(UsageError, match="of slices are missing or of another shape"):
        pretrain(other, cache, tmp_path / "other", device="cpu", talk=Silence(), init=tmp_path / "masked")


@pytest.fixture(scope="module")
def joint_run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("joint") / "run"
    pretrain(recipe("joint", steps=2), cache, root, device="cpu", talk=Silence())
    return root


def test_an_exported_encoder_gives_the_embeddings_of_torch(joint_run: Path, cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"

    written = export_run(joint_run, path, cache_root=cache.root, cases=2)

    _, bundle, _ = load_model(path)
    assert bundle == written
    assert bundle.parity is not None
    assert (bundle.parity.num_cases, bundle.parity.max_abs_difference < 1e-4) == (2, True)
    assert (bundle.head, bundle.task) == (EmbeddingsHead(dim=16), "joint-embeddings")
    assert (bundle.preprocessing.fit, bundle.preprocessing.zscore) == ((32, 32), True)
    model = onnx.load(path)
    assert [entry.name for entry in model.graph.input] == [port.name for port in bundle.inputs]
    assert [entry.name for entry in model.graph.output] == [port.name for port in bundle.outputs]
    patients = {entry["patient"] for entry in open_run(joint_run).manifest["splits"]["train"]}
    assert all(bundle.has_seen(patient) for patient in patients)
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_an_exported_encoder_is_listed_and_gives_no_masks(joint_run: Path, cache: Cache, tmp_path: Path) -> None:
    path, models = tmp_path / "encoder.onnx", ("--models", tmp_path / "models")

    exported = medssl("export", joint_run, path, "--cache", cache.root, "--install", *models)
    listed = medssl("models", "ls", *models)
    inferred = medssl("infer", tmp_path, "-t", path, "-o", tmp_path / "out")
    scored = medssl("evaluate", path, "--cache", cache.root)

    assert exported.exit_code == 0, exported.stderr
    assert re.search(r"joint-embeddings .* embeddings +embeddings of 16 elements", listed.stdout)
    assert (inferred.exit_code, "gives embeddings" in inferred.stderr) == (Exit.USAGE, True)
    assert (scored.exit_code, "E_USAGE" in scored.stderr) == (Exit.USAGE, True)


def test_an_exported_encoder_that_differs_is_not_written(joint_run: Path, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="E_PARITY"):
        export_run(joint_run, tmp_path / "encoder.onnx", cache_root=cache.root, tolerance=-1.0)

    assert list(tmp_path.iterdir()) == []


def changed_words(data: bytes, **changes: Any) -> bytes:
    """An encoder that says something else about itself."""
    bundle = changed(Bundle.model_validate_json(read_head(data, name="x")), **changes)
    return seal(graph_of(data, name="x"), bundle.to_json())


def changed_weights(data: bytes, factor: float) -> bytes:
    """An encoder whose largest tensor is multiplied."""
    model = onnx.load_from_string(graph_of(data, name="x"))
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data) * (each.data_type == 1))
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return seal(model.SerializeToString(), read_head(data, name="x"))


def test_an_encoder_that_was_changed_between_writing_and_reading_is_not_kept(
    joint_run: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_volume_encoder(open_run(joint_run))
    ports = encoder.head.inputs(encoder.preprocessing, 1), encoder.head.outputs(encoder.preprocessing)
    graph = export.onnx_graph(encoder.network, *ports)
    monkeypatch.setattr(embeddings, "onnx_graph", lambda *_: graph)
    write, path = proven_file.write_atomic, tmp_path / "out" / "encoder.onnx"
    seen = encoder.preprocessing
    changes: list[tuple[int, Callable[[bytes], bytes]]] = [
        (1, lambda data: changed_words(data, preprocessing=seen.model_copy(update={"fit": (16, 16)}))),
        (1, lambda data: changed_words(data, preprocessing=Preprocessing(window_hu=(0, 1), fit=(32, 32)))),
        (1, lambda data: changed_words(data, recipe_sha256="0" * 64)),
        (1, lambda data: changed_words(data, dim=17)),
        (1, lambda data: changed_weights(data, 1.1)),
        (1, lambda data: changed_weights(data, float("nan"))),
        (2, lambda data: changed_words(data, licence="another")),
        (2, lambda data: changed_weights(data, 1.1)),
    ]

    for at, change in changes:
        calls: list[Path] = []

        def other(
            path: Path,
            data: bytes,
            *,
            calls: list[Path] = calls,
            at: int = at,
            change: Callable[[bytes], bytes] = change,
            **more: Any,
        ) -> None:
            calls.append(path)
            write(path, change(data) if len(calls) == at else data, **more)

        monkeypatch.setattr(proven_file, "write_atomic", other)
        with pytest.raises(GateError, match="E_PARITY"):
            export_run(joint_run, path, cache_root=cache.root, cases=1)
        assert list(path.parent.iterdir()) == []


def test_only_encoders_of_volumes_are_exported(joint_run: Path, cache: Cache, tmp_path: Path) -> None:
    pretrain(recipe("swav", steps=1), cache, tmp_path / "flat", device="cpu", talk=Silence())
    with pytest.raises(UsageError, match="E_USAGE"):
        load_volume_encoder(open_run(tmp_path / "flat"))
    other = toy_cache(tmp_path / "other", num_patients=2)
    with pytest.raises(NothingUsableError, match="E_CACHE_EMPTY"):
        export_run(joint_run, tmp_path / "encoder.onnx", cache_root=other.root)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="E_OUTPUT_EXISTS"):
        export_run(joint_run, tmp_path / "letter.txt", cache_root=cache.root)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": {"name": "unet"}}, "2 spatial dimensions"),
        ({"data": {"zscore": True, "crop_size": [32, 64, 1], "batch_size": 8}}, "no square"),
        ({"data": {"zscore": True, "crop_size": [32, 32, 1], "batch_size": 8, "spacing_mm": [1, 1, 1]}}, "spacing_mm"),
        ({"method": {**METHODS["swav"], "num_prototypes": 30}}, "16 images assigned at once carry 11"),
        ({"method": {**METHODS["swav"], "queue_length": 12}}, "multiple of the batch"),
    ],
)
def test_recipes_that_cannot_work_are_refused_with_numbers(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match="E_RECIPE") as refused:
        build_method(recipe("swav", **changes))

    assert words in str(refused.value)


def test_more_clusters_than_images_are_refused(cache: Cache, tmp_path: Path) -> None:
    changed = recipe("deepclusterv2", method={**METHODS["deepclusterv2"], "num_prototypes": [500]})

    with pytest.raises(UsageError, match="images to cluster"):
        pretrain(changed, cache, tmp_path / "run", device="cpu", talk=Silence())
