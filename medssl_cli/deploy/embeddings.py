"""From a pre-training to one proven `model.onnx` that turns slices of volumes into embeddings.

Through the same seal and the same gate as the models of tasks. The head `EmbeddingsHead` says what the network takes
and gives; numbers of volumes and of slices are free.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from medssl_cli import __version__
from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.cache.prepared import PreparedItem, prepare
from medssl_cli.cache.store import Cache
from medssl_cli.data.examples import examples_with
from medssl_cli.data.slices import read_slices
from medssl_cli.deploy.bundle import Bundle, Precision, patient_digest
from medssl_cli.deploy.parity import (
    LIMITS,
    SEEN_SPLITS,
    Comparison,
    ParityLimits,
    faults_are_the_files,
    require_contract,
)
from medssl_cli.deploy.proven_file import attach_unproven, onnx_graph, refuse_foreign_file, write_proven
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.engine.build import build_method
from medssl_cli.engine.runs import Run, open_run
from medssl_cli.engine.weights import BESIDE, begin_with, load_encoder
from medssl_cli.heads import EmbeddingsHead
from medssl_cli.imaging.geometry import spacing_mm
from medssl_cli.nn.slices.volume_encoder import SliceNetwork
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import PretrainRecipe, recipe_hash

EMBEDDINGS: Final = "embeddings"
"""What a method calls the network that it exports, see `MethodBase.exports`."""
INTENDED_USE: Final = "Research only; not a medical device"
COMPARED_SLICES: Final = (5, 16, 64)
Given = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]


@dataclass(frozen=True)
class VolumeEncoderRun:
    """A finished pre-training with its encoder of volumes, on the CPU."""

    run: Run
    network: SliceNetwork
    weights_sha256: str

    @property
    def head(self) -> EmbeddingsHead:
        """What the encoder answers with."""
        return EmbeddingsHead(dim=self.network.volume_encoder.embedding_dim)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the encoder sees of a slice."""
        data = self.run.recipe.data
        return data.fitted(data.crop_size[:2])


def export_embeddings(
    run_dir: Path,
    path: Path,
    *,
    cache_root: Path,
    cases: int,
    limits: ParityLimits,
    precision: Precision = "float32",
    licence: str = "not stated",
) -> Bundle:
    """Export the encoder of a pre-training and prove that it still gives the same embeddings.

    Args:
        run_dir: Written by `pretrain` with a method that has such an encoder.
        path: File to write.
        cache_root: The cache of the run; volumes that it was trained on serve as proof.
        cases: Volumes to compare, each with 5, 16 and 64 slices.
        limits: How far an element may be from the run's.
        precision: Numbers that the file computes in.
        licence: Licence of the weights.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_NO_CACHE`, `E_OUTPUT_EXISTS`, `E_USAGE` for other runs.
        NothingUsableError: `E_CACHE_EMPTY`, the cache has none of the run's volumes.
        GateError: `E_PARITY`; no file is written.
    """
    trained = load_volume_encoder(open_run(run_dir))
    refuse_foreign_file(path)
    volumes = proof_volumes(trained, Cache.open(cache_root), cases)
    unproven = _bundle(trained, licence=licence, precision=precision)
    graph = onnx_graph(trained.network, unproven.inputs, unproven.outputs, precision)

    def proven(model: OnnxModel) -> Comparison:
        require_contract(expected_contract(trained, precision), model.bundle)
        return compare(trained.network, model, volumes, limits)

    return write_proven(path, attach_unproven(graph, unproven), proven)[1]


def load_volume_encoder(run: Run) -> VolumeEncoderRun:
    """Backbone and volume encoder of a finished pre-training.

    Raises:
        UsageError: `E_USAGE`, it has no volume encoder; `E_RUN_UNFINISHED`.
    """
    if not isinstance(run.recipe, PretrainRecipe):
        raise UsageError("E_USAGE", f"{run.root.name} is no pre-training", hint="export it as a task")
    encoder = load_encoder(run.root)
    method = build_method(run.recipe)
    network: Any = method.exports().get(EMBEDDINGS)
    if network is None or not set(BESIDE) <= encoder.beside.keys():
        raise UsageError(
            "E_USAGE",
            f"{run.root.name} has no encoder of volumes that could be exported as it is",
            hint="fine-tune it first, and export that run",
        )
    begin_with(method, encoder)
    return VolumeEncoderRun(run, network.eval(), encoder.sha256)


def expected_contract(trained: VolumeEncoderRun, precision: Precision = "float32") -> dict[str, Any]:
    """What the file must say about itself, by field of the bundle."""
    run, splits = trained.run, trained.run.manifest["splits"]
    assert isinstance(run.recipe, PretrainRecipe)
    seen = {patient_digest(entry["patient"]) for name in SEEN_SPLITS for entry in splits.get(name, ())}
    return {
        "task": f"{run.recipe.method.name}-embeddings",
        "preprocessing": trained.preprocessing,
        "head": trained.head,
        "in_channels": len(trained.preprocessing.rules),
        "modality": run.recipe.data.modality,
        "label_set": "",
        "recipe_sha256": recipe_hash(run.recipe),
        "weights_sha256": trained.weights_sha256,
        "manifest_sha256": run.manifest["sha256"],
        "trained_on": tuple(sorted(seen)),
        "split_seed": run.recipe.split_seed,
        "fold": run.manifest["arguments"].get("fold", 0),
        "intended_use": INTENDED_USE,
        "precision": precision,
    }


def _bundle(trained: VolumeEncoderRun, *, licence: str, precision: Precision) -> Bundle:
    """All that the run says about its encoder, before the proof."""
    return Bundle(**expected_contract(trained, precision), medssl_version=__version__, licence=licence)


def proof_volumes(trained: VolumeEncoderRun, cache: Cache, cases: int) -> Sequence[PreparedItem]:
    """Volumes of the run that the cache still has.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`.
    """
    wanted = {entry["item"] for entry in trained.run.manifest["splits"]["train"]}
    entries = [entry for entry in cache.entries() if entry.item_id in wanted and entry.is_volume]
    if not entries:
        raise NothingUsableError(
            "E_CACHE_EMPTY",
            "the cache holds no volume of the run, so the export cannot be proven",
            hint="name the cache that the run was trained on with --cache",
        )
    names = trained.preprocessing.channel_names
    everything = cache.entries() if names else entries
    return prepare(cache, examples_with(everything, entries[:cases], names), trained.preprocessing)


@torch.inference_mode()
def compare(
    network: SliceNetwork, model: OnnxModel, volumes: Sequence[PreparedItem], limits: ParityLimits = LIMITS["float32"]
) -> Comparison:
    """Compare torch with a file: the embeddings of volumes, each with a few, some and many slices."""
    found = Comparison(num_cases=len(volumes), num_marked=len(volumes), limits=limits)
    for item in volumes:
        for number in COMPARED_SLICES:
            given = example(item, number)
            with faults_are_the_files():
                answers = model.compute(*given)
            for expected, answer in zip(network(*map(torch.from_numpy, given)), answers, strict=True):
                found.measure(expected.numpy(), answer)
    return found


def example(item: PreparedItem, number: int) -> Given:
    """So many slices of a volume, evenly spaced, some more than once where it has fewer; the last one is padding."""
    places = np.linspace(0, item.shape[2] - 1, number).round().astype(int)
    images = torch.cat([read_slices(item, range(place, place + 1)) for place in places])
    is_present = np.arange(number)[None] < number - 1
    positions = np.linspace(0, item.shape[2] - 1, number)[None] * spacing_mm(item.affine)[2]
    return images[None].numpy(), is_present, positions.astype(np.float32)
