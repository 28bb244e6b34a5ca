"""From a joint pre-training to one proven ONNX file that turns slices into slice and volume embeddings.

Inputs: `images` [B, S, 1, X, Y], network input of the recipe's size, as `data.slices.read_slices` makes it;
`is_present` [B, S], false where a slice is padding; `positions_mm` [B, S] along the slices' normal. Outputs:
`slice_embeddings` [B, S, E] of each slice by itself and `volume_embedding` [B, E]. B and S are free. The metadata
`medssl.slices` of the file says what the images must be.
"""

import hashlib
import json
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
from medssl_cli.deploy.export import OPSET, silence, strip
from medssl_cli.engine.build import build_method
from medssl_cli.engine.runs import Run, open_run
from medssl_cli.engine.weights import begin_with, load_encoder
from medssl_cli.errors import GateError, NothingUsableError, UsageError
from medssl_cli.files import make_output_folder, write_atomic
from medssl_cli.imaging.geometry import spacing_mm
from medssl_cli.nn.volume_encoder import SliceNetwork
from medssl_cli.recipe import PretrainRecipe, recipe_hash
from medssl_cli.tasks import SLICES

METADATA: Final = "medssl.slices"
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
    run_dir: Path, path: Path, *, cache_root: Path, cases: int = 4, tolerance: float = 1e-4
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
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    worst = max(
        largest_difference(network, session, example(item, number, size))
        for item in volumes
        for number in COMPARED_SLICES
    )
    if not worst <= tolerance:
        raise GateError(
            "E_PARITY",
            f"on {len(volumes)} volumes embeddings differ from torch by {worst:.1e} ({tolerance:.0e} allowed)",
            hint="no file was written; please report the recipe and the versions that medssl doctor prints",
        )
    facts = {
        "medssl": __version__,
        "preprocessing": run.recipe.data.preprocessing.model_dump(mode="json"),
        "size": size,
        "recipe_sha256": recipe_hash(run.recipe),
        "max_abs_difference": worst,
    }
    data = with_metadata(graph, facts)
    make_output_folder(path.parent)
    write_atomic(path, data, is_output=True)
    dim = network.volume_encoder.embedding_dim
    return SliceModel(path.name, dim, size, len(volumes), worst, hashlib.sha256(data).hexdigest())


def load_network(run: Run) -> SliceNetwork:
    """Backbone and volume encoder of a finished joint pre-training, on the CPU.

    Raises:
        UsageError: `E_USAGE`, it has no volume encoder; `E_RUN_UNFINISHED`.
    """
    if not isinstance(run.recipe, PretrainRecipe):
        raise UsageError("E_USAGE", f"{run.root.name} is no pre-training", hint="export it as a task")
    encoder = load_encoder(run.root)
    if SLICES not in encoder.beside:
        raise UsageError(
            "E_USAGE",
            f"{run.root.name} has no encoder of volumes: only pre-training with joint can be exported as it is",
            hint="fine-tune it first, and export that run",
        )
    method = build_method(run.recipe)
    begin_with(method, encoder)
    volume_encoder: Any = method.kept()[SLICES]
    return SliceNetwork(method.backbone, volume_encoder).eval()


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
    return prepare(cache, entries, run.recipe.data.preprocessing)


def example(item: PreparedItem, number: int, size: int) -> Given:
    """So many slices of a volume, evenly spaced, some more than once where it has fewer; the last one is padding."""
    places = np.linspace(0, item.shape[2] - 1, number).round().astype(int)
    images = torch.cat([read_slices(item, range(place, place + 1), size) for place in places])
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
    """Between torch and ONNX Runtime, over both outputs."""
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
    if path.exists() and METADATA.encode() not in path.read_bytes():
        raise UsageError("E_OUTPUT_EXISTS", f"{path.name} exists and is not such a model", hint="choose another name")
