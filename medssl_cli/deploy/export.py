"""From a fine-tuned run to one proven `model.onnx`.

The exported model must give the trained network's answers on whole cached images, through the very code that `infer`
runs. If it does not, no file is written.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medssl_cli import __version__
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.classes import parse_classes, parse_ignored
from medssl_cli.deploy.bundle import Bundle, Parity, attach, patient_digest
from medssl_cli.deploy.onnx_file import has_contract, unseal
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.errors import GateError, NothingUsableError, UsageError
from medssl_cli.files import remove_temporaries, storage_errors, write_atomic
from medssl_cli.imaging.segment import segment_volume
from medssl_cli.imaging.tiling import Predict
from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.overlap import dice
from medssl_cli.recipe import TaskRecipe, recipe_hash

OPSET: Final = 20
EXAMPLE_BATCH: Final = 2
MIN_AGREEMENT: Final = 0.9999
MIN_DICE: Final = 0.9999
UNSEEN_SPLITS: Final = ("test", "val")
SEEN_SPLITS: Final = ("train", "val")


class TrainedRun(Protocol):
    """What export needs of a fine-tuned run; `engine.finetuned.FineTunedRun` is one."""

    @property
    def recipe(self) -> TaskRecipe:
        """Locked recipe."""

    @property
    def classes(self) -> dict[int, str]:
        """Names by label value."""

    @property
    def network(self) -> nn.Module:
        """On the CPU, `[B, C, *tile]` to logits `[B, K, *tile]`."""

    @property
    def manifest(self) -> dict[str, Any]:
        """`manifest.json`."""

    @property
    def weights_sha256(self) -> str:
        """Digest of the weights."""

    @property
    def in_channels(self) -> int:
        """Channels of an image."""


def export_run(
    run_dir: Path,
    model_path: Path,
    *,
    cache_root: Path,
    cases: int = 4,
    tolerance: float = 1e-3,
    licence: str = "not stated",
) -> Bundle:
    """Export a finished run to ONNX and prove that it still gives the same answers.

    Args:
        run_dir: Written by `finetune`.
        model_path: File to write; a medssl model of that name is replaced.
        cache_root: The cache of the run; images of its test and validation patients serve as proof.
        cases: Whole images to compare.
        tolerance: Largest allowed difference of a logit, relative to max(1, largest logit of the tile).
        licence: Of the weights.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_NO_CACHE`, `E_OUTPUT_EXISTS` if another kind of file is there.
        UsageError: `E_TASK_EXPORT`, the run is of a task whose models are not exported yet.
        NothingUsableError: `E_CACHE_EMPTY` if the cache has none of the run's images.
        GateError: `E_PARITY`; no file is written.
        StorageError: `E_IO`.
    """
    from medssl_cli.engine.finetuned import load_finetuned

    run = load_finetuned(run_dir)
    if not run.is_exportable:
        raise UsageError(
            "E_TASK_EXPORT",
            f"models of the task {run.recipe.task.name} are not exported yet",
            hint="medssl evaluate scores the run folder itself",
        )
    return export_network(
        run,
        model_path,
        cache=Cache.open(cache_root),
        cases=cases,
        tolerance=tolerance,
        licence=licence,
    )


def export_network(
    run: TrainedRun, model_path: Path, *, cache: Cache, cases: int, tolerance: float, licence: str = "not stated"
) -> Bundle:
    """`export_run` for a run in memory."""
    _refuse_foreign_file(model_path)
    records = proof_records(run.manifest, cache, cases)
    graph = onnx_graph(run.network, in_channels=run.in_channels, tile=run.recipe.tile_size)
    unproven = make_bundle(run, licence=licence)
    sealed = attach(graph, unproven)
    onnx_model = OnnxModel.of_bytes(sealed, unproven, unseal(sealed, name=model_path.name)[1])
    parity = measure_parity(run.network, onnx_model, [cache.read_image(record) for record in records])
    _require(parity, tolerance)
    bundle = unproven.model_copy(update={"parity": parity})
    with storage_errors(model_path.name):
        model_path.parent.mkdir(parents=True, exist_ok=True)
    remove_temporaries(model_path.parent)
    write_atomic(model_path, attach(graph, bundle))
    return bundle


def make_bundle(run: TrainedRun, *, licence: str) -> Bundle:
    """All that the run says about its model, before the proof."""
    recipe, splits = run.recipe, run.manifest["splits"]
    seen = {patient_digest(entry["patient"]) for name in SEEN_SPLITS for entry in splits.get(name, ())}
    return Bundle(
        task=recipe.name,
        preprocessing=recipe.data.preprocessing,
        classes=run.classes,
        in_channels=run.in_channels,
        modality=recipe.data.modality,
        label_set=recipe.task.options.get("label_set", "seg"),
        label_classes=parse_classes(recipe.task.options.get("classes", run.classes)),
        label_ignore=parse_ignored(recipe.task.options.get("ignore", ())),
        tile_size=recipe.tile_size,
        overlap=recipe.inference.overlap,
        mirror_axes=recipe.inference.mirror_axes,
        nsd_tolerance_mm=recipe.evaluation.nsd_tolerance_mm,
        medssl_version=__version__,
        recipe_sha256=recipe_hash(recipe),
        weights_sha256=run.weights_sha256,
        manifest_sha256=run.manifest["sha256"],
        trained_on=tuple(sorted(seen)),
        split_seed=recipe.split_seed,
        fold=run.manifest["arguments"]["fold"],
        intended_use=recipe.intended_use,
        licence=licence,
    )


def proof_records(manifest: dict[str, Any], cache: Cache, cases: int) -> list[ItemRecord]:
    """Items to compare on: patients that the network was not trained on, in the run's order.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`.
    """
    known = {record.item_id: record for record in cache.records()}
    wanted = [entry["item"] for name in UNSEEN_SPLITS for entry in manifest["splits"].get(name, ())]
    found = [known[item] for item in wanted if item in known][:cases]
    if not found:
        raise NothingUsableError(
            "E_CACHE_EMPTY",
            "the cache holds no test or validation image of the run, so the export cannot be proven",
            hint="name the cache that the run was trained on with --cache",
        )
    return found


def onnx_graph(network: nn.Module, *, in_channels: int, tile: tuple[int, int, int]) -> bytes:
    """Trace a network to a self-contained ONNX model with a free batch size and a fixed tile.

    Shifted-window transformers break at other tile sizes than the traced one, so none is promised.
    """
    network.eval()
    example = torch.zeros(EXAMPLE_BATCH, in_channels, *tile)
    with silence():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        proto = program.model_proto
    strip(proto)
    serialised: bytes = proto.SerializeToString()
    return serialised


def measure_parity(network: nn.Module, onnx_model: OnnxModel, volumes: Sequence[Volume]) -> Parity:
    """Compare torch and ONNX Runtime on whole images: logits of every tile, and masks on the images' own grids."""
    bundle = onnx_model.bundle
    worst = _Worst()
    for volume in volumes:
        expected = segment_volume(
            _compared(network, onnx_model.predict, worst),
            volume,
            preprocessing=bundle.preprocessing,
            tile=bundle.tile_size,
            overlap=bundle.overlap,
            mirror_axes=bundle.mirror_axes,
        )
        found = onnx_model.segment(volume)
        worst.agreement = min(worst.agreement, float((expected == found).mean()))
        for value in bundle.classes:
            if (expected == value).any() or (found == value).any():
                worst.dice = min(worst.dice, dice(found == value, expected == value))
    return Parity(
        max_abs_difference=worst.difference,
        argmax_agreement=worst.agreement,
        min_dice=worst.dice,
        num_cases=len(volumes),
    )


@dataclass
class _Worst:
    difference: float = 0.0
    agreement: float = 1.0
    dice: float = 1.0


def _compared(network: nn.Module, other: Predict, worst: _Worst) -> Predict:
    """The network as a `Predict` that also measures how far another one is from it."""

    @torch.inference_mode()
    def predict(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        expected: NDArray[np.float32] = network(torch.from_numpy(tiles)).float().numpy()
        distance = float(np.abs(expected - other(tiles)).max()) / max(1.0, float(np.abs(expected).max()))
        worst.difference = max(worst.difference, distance) if np.isfinite(distance) else 1e9
        return expected

    return predict


def _require(parity: Parity, tolerance: float) -> None:
    is_equal = (
        parity.max_abs_difference <= tolerance
        and parity.argmax_agreement >= MIN_AGREEMENT
        and parity.min_dice >= MIN_DICE
    )
    if not is_equal:
        raise GateError(
            "E_PARITY",
            f"on {parity.num_cases} images the ONNX model differs from torch: logits by "
            f"{parity.max_abs_difference:.1e} ({tolerance:.0e} allowed), argmax agreement "
            f"{parity.argmax_agreement:.6f}, Dice {parity.min_dice:.6f} ({MIN_AGREEMENT} needed)",
            hint="no file was written; please report the recipe and the versions that medssl doctor prints",
        )


def _refuse_foreign_file(path: Path) -> None:
    if path.exists() and not (path.is_file() and has_contract(path.read_bytes())):
        raise UsageError("E_OUTPUT_EXISTS", f"{path.name} exists and is not a medssl model", hint="choose another name")


def strip(proto: Any) -> None:
    """Remove what the exporter notes about its own machine: stack traces with paths."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without the exporter's prints, warnings and logs; they are about its own future."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
