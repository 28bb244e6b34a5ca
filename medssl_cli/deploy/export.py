"""From a run to one proven `model.onnx`.

The file is written under a temporary name, read again, and must give the trained network's answers on whole cached
images through the very code that `infer` runs (`deploy.parity`). Only then it gets its name.
"""

import contextlib
import io
import logging
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from medssl_cli import __version__
from medssl_cli.base.errors import GateError, NothingUsableError, UsageError
from medssl_cli.base.files import (
    TEMPORARY_PREFIX,
    make_output_folder,
    open_regular,
    remove_temporaries,
    replace_file,
    require_place_for_file,
    storage_errors,
    write_atomic,
)
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.data.selection import examples_of, read_images
from medssl_cli.deploy.bundle import Bundle, Parity, attach, load_model, patient_digest
from medssl_cli.deploy.onnx_file import HEAD_BYTES, graph_of, has_contract
from medssl_cli.deploy.parity import (
    HINT,
    SEEN_SPLITS,
    TOLERANCE,
    UNPROVEN,
    Comparison,
    TrainedRun,
    compare,
    expected_contract,
    faults_are_the_files,
    require_contract,
)
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.heads import Head, Port
from medssl_cli.recipe import recipe_hash
from medssl_cli.tasks import TaskNetwork, supervision_of

OPSET: Final = 20
EXAMPLE_SIZES: Final = (2, 7)
"""Of free axes: none may be 0 or 1, which a tracer would take for fixed."""
UNSEEN_SPLITS: Final = ("test", "val")


def export_run(
    run_dir: Path,
    model_path: Path,
    *,
    cache_root: Path,
    cases: int = 4,
    tolerance: float = TOLERANCE,
    licence: str = "not stated",
    tell: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export a finished run to ONNX and prove that it still gives the same answers.

    Args:
        run_dir: Written by `finetune`, or by `pretrain` with a method that exports something.
        model_path: File to write; a medssl model of that name is replaced.
        cache_root: The cache of the run; images of its test and validation patients serve as proof.
        cases: Whole images to compare.
        tolerance: Largest allowed difference of a logit, relative to max(1, largest logit of the tile).
        licence: Of the weights.
        tell: Told what is worth knowing.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_NO_CACHE`, `E_OUTPUT_EXISTS` if another kind of file is there.
        UsageError: `E_TASK_EXPORT`, the run is of a task whose answers no exported model gives; `E_USAGE`, a
            pre-training without an encoder of volumes.
        NothingUsableError: `E_CACHE_EMPTY` if the cache has none of the run's images.
        InputError: `E_CHANNEL_MISSING`, `E_CHANNEL_AMBIGUOUS`, `E_CHANNEL_GRID`, it has lost some of their channels.
        GateError: `E_PARITY`; no file is written. `E_RUN_CORRUPT`, `E_CHECKPOINT_CORRUPT`.
        StorageError: `E_IO`.
    """
    from medssl_cli.engine.finetuned import load_finetuned
    from medssl_cli.engine.runs import is_pretraining

    if is_pretraining(run_dir):
        from medssl_cli.deploy.embeddings import export_embeddings

        return export_embeddings(run_dir, model_path, cache_root=cache_root, cases=cases, tolerance=tolerance,
                                 licence=licence)  # fmt: skip
    run = load_finetuned(run_dir)
    if not run.is_exportable:
        raise UsageError(
            "E_TASK_EXPORT",
            f"answers of the task {run.recipe.task.name} are of no kind that an exported model can give",
            hint="medssl evaluate scores the run folder itself",
        )
    return export_network(
        run,
        model_path,
        cache=Cache.open(cache_root),
        cases=cases,
        tolerance=tolerance,
        licence=licence,
        tell=tell,
    )


def export_network(
    run: TrainedRun,
    model_path: Path,
    *,
    cache: Cache,
    cases: int,
    tolerance: float,
    licence: str = "not stated",
    tell: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """`export_run` for a run in memory."""
    refuse_foreign_file(model_path)
    records = proof_records(run.manifest, cache, cases)
    head = head_of(run, cache)
    unproven = make_bundle(run, head, licence=licence)
    network = run.network.exported(head) if isinstance(run.network, TaskNetwork) else run.network
    graph = onnx_graph(network, unproven.inputs, unproven.outputs)
    preprocessing = supervision_of(run.recipe).preprocessing
    images = [read_images(cache, example) for example in examples_of(cache, records, preprocessing)]

    def proven(model: OnnxModel) -> Comparison:
        require_contract(expected_contract(run, head), model.bundle)
        return compare(run, head, model, images)

    comparison, bundle = write_proven(model_path, attach_unproven(graph, unproven), proven, tolerance=tolerance)
    if not comparison.num_marked:
        tell("W_PROOF_EMPTY: the model marks nothing in the images of the proof; answers were compared on noise only")
    return bundle


def head_of(run: TrainedRun, cache: Cache) -> Head:
    """How the answers of a run's network are read; its operating points are chosen on the validation images.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`, the cache has not all of these images with their labels.
    """
    from medssl_cli.engine.evaluate import labelled_split
    from medssl_cli.engine.predict import torch_predict

    supervision = supervision_of(run.recipe)
    return supervision.head(
        run.network,
        torch_predict(run.network, "cpu"),
        lambda: (cache, labelled_split(cache, run.manifest, "val", supervision)),
    )


def attach_unproven(graph: bytes, bundle: Bundle) -> bytes:
    """A graph with a bundle that says the worst about itself, should it be left behind."""
    return attach(graph, bundle.model_copy(update={"parity": UNPROVEN}))


def write_proven(
    path: Path, data: bytes, prove: Callable[[OnnxModel], Comparison], *, tolerance: float
) -> tuple[Comparison, Bundle]:
    """Write a model under a temporary name, read it again, compare it, add the proof, and only then name it.

    Args:
        path: Of the model.
        data: The sealed model.
        prove: Compares the file with its run: first what it says, then what it answers.
        tolerance: Largest allowed difference of the network's numbers.

    Raises:
        GateError: `E_PARITY`; no file is left.
    """
    with candidate_for(path) as candidate:
        write_atomic(candidate, data, is_output=True)
        with faults_are_the_files():
            model = OnnxModel(candidate, "cpu")
        with contextlib.closing(model):
            comparison = prove(model)
        comparison.require(tolerance)
        return comparison, _set_proof(candidate, comparison.parity, model.sha256)


@contextlib.contextmanager
def candidate_for(path: Path) -> Iterator[Path]:
    """A temporary name beside a file's own; what lies there when the block ends without an error gets the real name.

    Raises:
        UsageError: `E_OUTPUT_SPECIAL`.
        StorageError: `E_IO`.
    """
    require_place_for_file(path)
    make_output_folder(path.parent)
    remove_temporaries(path.parent)
    candidate = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}")
    try:
        yield candidate
        with storage_errors(path.name):
            replace_file(candidate, path)
    finally:
        candidate.unlink(missing_ok=True)


def _set_proof(path: Path, parity: Parity, compared: str) -> Bundle:
    """Write the proof into a proven file, and see that nothing else of it has changed.

    Args:
        path: Of the file.
        parity: The proof.
        compared: SHA-256 of what was compared.

    Raises:
        GateError: `E_PARITY`.
    """
    proven, before, digest = load_model(path)
    wanted = before.model_copy(update={"parity": parity})
    write_atomic(path, attach(graph_of(proven, name=path.name), wanted), is_output=True)
    with faults_are_the_files():
        written, bundle, _ = load_model(path)
    if digest != compared or bundle != wanted or graph_of(written, name=path.name) != graph_of(proven, name=path.name):
        raise GateError("E_PARITY", "the written file is another one than was compared", hint=HINT)
    return bundle


def make_bundle(run: TrainedRun, head: Head, *, licence: str) -> Bundle:
    """All that the run says about its model, before the proof."""
    recipe, splits, supervision = run.recipe, run.manifest["splits"], supervision_of(run.recipe)
    seen = {patient_digest(entry["patient"]) for name in SEEN_SPLITS for entry in splits.get(name, ())}
    return Bundle(
        task=recipe.name,
        preprocessing=supervision.preprocessing,
        head=head,
        in_channels=run.in_channels,
        modality=recipe.data.modality,
        label_set=supervision.label_set,
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
    """Annotated images of the examples to compare on: patients that the network was not trained on, in the run's order.

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


def onnx_graph(network: nn.Module, inputs: Sequence[Port], outputs: Sequence[Port]) -> bytes:
    """Trace a network to a self-contained ONNX model whose sizes are those of its ports, free ones by their names.

    Shifted-window transformers break at other tile sizes than the traced one, so none is promised.
    """
    network.eval()
    free = {size: torch.export.Dim(size) for port in inputs for size in port.sizes if isinstance(size, str)}
    with silence():
        program = torch.onnx.export(
            network,
            tuple(_example(port) for port in inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=[port.name for port in inputs],
            output_names=[port.name for port in outputs],
            dynamic_shapes=tuple(
                {axis: free[size] for axis, size in enumerate(port.sizes) if isinstance(size, str)} for port in inputs
            ),
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        proto = program.model_proto
    strip(proto)
    serialised: bytes = proto.SerializeToString()
    return serialised


def _example(port: Port) -> torch.Tensor:
    """What a network is traced with."""
    sizes = [size if isinstance(size, int) else EXAMPLE_SIZES[axis] for axis, size in enumerate(port.sizes)]
    return torch.ones(sizes, dtype=torch.bool) if port.is_bool else torch.zeros(sizes)


def refuse_foreign_file(path: Path) -> None:
    """Refuse to write where something else than a model lies.

    Raises:
        UsageError: `E_OUTPUT_EXISTS`.
    """
    if os.path.lexists(path) and not _begins_like_a_model(path):
        raise UsageError("E_OUTPUT_EXISTS", f"{path.name} exists and is not a medssl model", hint="choose another name")


def _begins_like_a_model(path: Path) -> bool:
    try:
        with open_regular(path) as stream:
            return has_contract(stream.read(HEAD_BYTES))
    except (OSError, ValueError):
        return False


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
