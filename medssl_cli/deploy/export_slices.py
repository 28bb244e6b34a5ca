"""From a joint pre-training to one proven ONNX file that turns slices into slice and volume embeddings.

Inputs: `images` [B, S, 1, X, Y], network input of the recipe's size, as `imaging.preprocessing` makes it;
`is_present` [B, S], false where a slice is padding; `positions_mm` [B, S] along the slices' normal. Outputs:
`slice_embeddings` [B, S, E] of each slice by itself and `volume_embedding` [B, E]. B and S are free. The metadata
`medssl.slices` of the file says what the images must be.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from medssl_cli import __version__
from medssl_cli.cache.prepared import PreparedItem, prepare
from medssl_cli.cache.store import Cache
from medssl_cli.data.slices import read_slices
from medssl_cli.deploy.export import OPSET, candidate_for, silence, strip
from medssl_cli.deploy.onnx_file import MAX_BYTES
from medssl_cli.deploy.parity import HINT, TOLERANCE
from medssl_cli.engine.build import build_method
from medssl_cli.engine.runs import Run, open_run
from medssl_cli.engine.weights import begin_with, load_encoder
from medssl_cli.errors import GateError, NothingUsableError, UsageError
from medssl_cli.files import read_regular, write_atomic
from medssl_cli.imaging.geometry import spacing_mm
from medssl_cli.nn.slices.volume_encoder import SliceNetwork
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import PretrainRecipe, recipe_hash

METADATA: Final = "medssl.slices"
EMBEDDINGS: Final = "embeddings"
"""What a method calls the network that it exports, see `MethodBase.exports`."""
INPUTS: Final = ["images", "is_present", "positions_mm"]
OUTPUTS: Final = ["slice_embeddings", "volume_embedding"]
COMPARED_SLICES: Final = (5, 16, 64)

Given = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]


@dataclass(frozen=True)
class SliceModel:
    """What was written.

    Args:
        model: Of the file.
        embedding_dim: E.
        size: X and Y.
        num_cases: Volumes that torch and ONNX Runtime were compared on, each with 5, 16 and 64 slices.
        max_abs_difference: Between both, divided by max(1, largest element).
        sha256: Of the file.
    """

    model: str
    embedding_dim: int
    size: int
    num_cases: int
    max_abs_difference: float
    sha256: str


def export_slices(
    run_dir: Path, path: Path, *, cache_root: Path, cases: int = 4, tolerance: float = TOLERANCE
) -> SliceModel:
    """Export the encoder of a joint pre-training and prove that it still gives the same embeddings.

    Args:
        run_dir: Written by `pretrain` with the method `joint`.
        path: File to write.
        cache_root: The cache of the run; volumes that it was trained on serve as proof.
        cases: Volumes to compare.
        tolerance: Largest allowed difference of an element, relative to max(1, largest element).

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_NO_CACHE`, `E_OUTPUT_EXISTS`, `E_USAGE` for other runs.
        NothingUsableError: `E_CACHE_EMPTY`, the cache has none of the run's volumes.
        GateError: `E_PARITY`; no file is written.
    """
    run = open_run(run_dir)
    network = load_network(run)
    assert isinstance(run.recipe, PretrainRecipe)
    size = run.recipe.data.crop_size[0]
    _refuse_foreign_file(path)
    volumes = proof_volumes(run, Cache.open(cache_root), cases)
    graph = trace(network, size)
    with candidate_for(path) as candidate:
        write_atomic(candidate, with_metadata(graph, facts_of(run)), is_output=True)
        proven = read_regular(candidate, max_bytes=MAX_BYTES)
        worst = _worst(run, network, proven, volumes)
        if not worst <= tolerance:
            raise GateError(
                "E_PARITY",
                f"on {len(volumes)} volumes embeddings differ from torch by {worst:.1e} ({tolerance:.0e} allowed)",
                hint=HINT,
            )
        facts = {**_facts_in(proven), "max_abs_difference": worst}
        write_atomic(candidate, with_metadata(proven, facts), is_output=True)
        data = read_regular(candidate, max_bytes=MAX_BYTES)
        if _facts_in(data) != {**facts_of(run), "max_abs_difference": worst} or _graph_in(data) != _graph_in(proven):
            raise GateError("E_PARITY", "the written file is another one than was compared", hint=HINT)
    dim = network.volume_encoder.embedding_dim
    return SliceModel(path.name, dim, size, len(volumes), worst, hashlib.sha256(data).hexdigest())


def facts_of(run: Run) -> dict[str, Any]:
    """What the file must say about the images that its network takes, and where it comes from."""
    return {
        "medssl": __version__,
        "preprocessing": _preprocessing(run).model_dump(mode="json"),
        "size": run.recipe.data.crop_size[0],
        "recipe_sha256": recipe_hash(run.recipe),
    }


def _worst(run: Run, network: SliceNetwork, data: bytes, volumes: Sequence[PreparedItem]) -> float:
    """Largest difference between the run's network and a file's, after the file has said what the run says.

    Raises:
        GateError: `E_PARITY`.
    """
    said, expected = _facts_in(data), facts_of(run)
    others = sorted(name for name in expected.keys() | said.keys() if expected.get(name) != said.get(name))
    if others:
        raise GateError("E_PARITY", f"the written file differs from the run in: {', '.join(others)}", hint=HINT)
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return max(
            largest_difference(network, session, example(item, number))
            for item in volumes
            for number in COMPARED_SLICES
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        name = type(error).__name__
        raise GateError("E_PARITY", f"ONNX Runtime cannot use the written file ({name})", hint=HINT) from error


def _facts_in(data: bytes) -> dict[str, Any]:
    metadata = {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props}
    facts: dict[str, Any] = json.loads(metadata[METADATA])
    return facts


def _graph_in(data: bytes) -> bytes:
    """A model without what it says about itself."""
    proto = onnx.load_from_string(data)
    del proto.metadata_props[:]
    graph: bytes = proto.SerializeToString(deterministic=True)
    return graph


def load_network(run: Run) -> SliceNetwork:
    """Backbone and volume encoder of a finished joint pre-training, on the CPU.

    Raises:
        UsageError: `E_USAGE`, it has no volume encoder; `E_RUN_UNFINISHED`.
    """
    if not isinstance(run.recipe, PretrainRecipe):
        raise UsageError("E_USAGE", f"{run.root.name} is no pre-training", hint="export it as a task")
    encoder = load_encoder(run.root)
    method = build_method(run.recipe)
    network: Any = method.exports().get(EMBEDDINGS)
    if network is None or not method.kept().keys() <= encoder.beside.keys():
        raise UsageError(
            "E_USAGE",
            f"{run.root.name} has no encoder of volumes that could be exported as it is",
            hint="fine-tune it first, and export that run",
        )
    begin_with(method, encoder)
    return network.eval()


def proof_volumes(run: Run, cache: Cache, cases: int) -> Sequence[PreparedItem]:
    """Volumes of the run that the cache still has.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`.
    """
    wanted = {entry["item"] for entry in run.manifest["splits"]["train"]}
    entries = [entry for entry in cache.entries() if entry.item_id in wanted and entry.is_volume][:cases]
    if not entries:
        raise NothingUsableError(
            "E_CACHE_EMPTY",
            "the cache holds no volume of the run, so the export cannot be proven",
            hint="name the cache that the run was trained on with --cache",
        )
    return prepare(cache, entries, _preprocessing(run))


def _preprocessing(run: Run) -> Preprocessing:
    """What the network sees of a slice."""
    data = run.recipe.data
    return data.fitted(data.crop_size[:2])


def example(item: PreparedItem, number: int) -> Given:
    """So many slices of a volume, evenly spaced, some more than once where it has fewer; the last one is padding."""
    places = np.linspace(0, item.shape[2] - 1, number).round().astype(int)
    images = torch.cat([read_slices(item, range(place, place + 1)) for place in places])
    is_present = np.arange(number)[None] < number - 1
    positions = np.linspace(0, item.shape[2] - 1, number)[None] * spacing_mm(item.affine)[2]
    return images[None].numpy(), is_present, positions.astype(np.float32)


def trace(network: SliceNetwork, size: int) -> bytes:
    """An ONNX graph with free numbers of volumes and slices."""
    free = {0: torch.export.Dim("volumes"), 1: torch.export.Dim("slices")}
    shown = torch.zeros(2, 7, 1, size, size), torch.ones(2, 7, dtype=torch.bool), torch.arange(7.0).repeat(2, 1)
    with silence():
        program = torch.onnx.export(
            network,
            shown,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=(free, free, free),
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        proto = program.model_proto
    strip(proto)
    serialised: bytes = proto.SerializeToString()
    return serialised


@torch.inference_mode()
def largest_difference(network: SliceNetwork, session: Any, given: Given) -> float:
    """Between torch and ONNX Runtime, over both outputs; infinite if either is not finite."""
    expected = network(*(torch.from_numpy(part) for part in given))
    found = session.run(OUTPUTS, dict(zip(INPUTS, given, strict=True)))
    distances = [
        float(np.abs(one - other.numpy()).max()) / max(1.0, float(other.abs().max()))
        for one, other in zip(found, expected, strict=True)
    ]
    return max(distances) if np.isfinite(distances).all() else float("inf")


def with_metadata(graph: bytes, facts: dict[str, Any]) -> bytes:
    """The model with facts about it inside."""
    proto = onnx.load_from_string(graph)
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(facts, sort_keys=True)})
    data: bytes = proto.SerializeToString()
    return data


def _refuse_foreign_file(path: Path) -> None:
    try:
        is_ours = not os.path.lexists(path) or METADATA.encode() in read_regular(path, max_bytes=MAX_BYTES)
    except (OSError, ValueError):
        is_ours = False
    if not is_ours:
        raise UsageError("E_OUTPUT_EXISTS", f"{path.name} exists and is not such a model", hint="choose another name")
