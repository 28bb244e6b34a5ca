"""From a traced network to a file that is proven before it has its name.

It is written under a temporary name, read again, compared, and only then named; see `deploy.parity` for the comparison.
"""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.base.files import candidate_for, make_output_folder, open_regular, remove_temporaries, write_atomic
from medssl_cli.deploy.bundle import Bundle, Parity, Precision, attach, load_model
from medssl_cli.deploy.folding import folded
from medssl_cli.deploy.half import in_float16
from medssl_cli.deploy.onnx_file import HEAD_BYTES, graph_of, has_contract
from medssl_cli.deploy.parity import HINT, UNPROVEN, Comparison, faults_are_the_files
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.heads import Port

OPSET: Final = 20
MEMORY_STEP_BYTES: Final = 2**24
"""What is noted of memory is a multiple of this: a few pages more or less are chance."""
EXAMPLE_SIZES: Final = (2, 7)
"""Sizes of free axes: none may be 0 or 1, which a tracer would take for fixed."""


def refuse_foreign_file(path: Path) -> None:
    """Refuse to write where something else than a model lies.

    Raises:
        UsageError: `E_OUTPUT_EXISTS`.
    """
    if os.path.lexists(path) and not _begins_like_a_model(path):
        raise UsageError("E_OUTPUT_EXISTS", f"{path.name} exists and is not a medssl model", hint="choose another name")


def onnx_graph(
    network: nn.Module, inputs: Sequence[Port], outputs: Sequence[Port], precision: Precision = "float32"
) -> bytes:
    """Trace a network to a self-contained ONNX model whose sizes are those of its ports, free ones by their names.

    Shifted-window transformers break at other tile sizes than the traced one, so none is promised.

    Args:
        network: The network.
        inputs: What it takes.
        outputs: What it gives.
        precision: Numbers that the model computes in; it takes and gives float32.
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
        proto = folded(program.model_proto)
        if precision == "float16":
            proto = in_float16(proto)
    strip(proto)
    serialised: bytes = proto.SerializeToString()
    return serialised


def attach_unproven(graph: bytes, bundle: Bundle) -> bytes:
    """A graph with a bundle that says the worst about itself, should it be left behind."""
    return attach(graph, bundle.model_copy(update={"parity": UNPROVEN}))


def write_proven(path: Path, data: bytes, prove: Callable[[OnnxModel], Comparison]) -> tuple[Comparison, Bundle]:
    """Write a model under a temporary name, read it again, compare it, add the proof, and only then name it.

    Args:
        path: Path of the model.
        data: The sealed model.
        prove: Compares the file with its run: first what it says, then what it answers.

    Raises:
        GateError: `E_PARITY`; no file is left.
    """
    make_output_folder(path.parent)
    remove_temporaries(path.parent)
    with candidate_for(path) as candidate:
        write_atomic(candidate, data, is_output=True)
        with faults_are_the_files():
            model = OnnxModel(candidate, "cpu")
        with contextlib.closing(model):
            comparison = prove(model)
        comparison.require()
        return comparison, _set_proof(candidate, comparison.parity, model.sha256, _noted_bytes(model.measured_bytes))


def _set_proof(path: Path, parity: Parity, compared: str, memory_bytes: int | None) -> Bundle:
    """Write the proof into a proven file, and see that nothing else of it has changed.

    Args:
        path: Path of the file.
        parity: The proof.
        compared: SHA-256 of what was compared.
        memory_bytes: Memory of the process that answered; None where the system does not tell.

    Raises:
        GateError: `E_PARITY`.
    """
    proven, before, digest = load_model(path)
    wanted = before.model_copy(update={"parity": parity, "memory_bytes": memory_bytes})
    write_atomic(path, attach(graph_of(proven, name=path.name), wanted), is_output=True)
    with faults_are_the_files():
        written, bundle, _ = load_model(path)
    if digest != compared or bundle != wanted or graph_of(written, name=path.name) != graph_of(proven, name=path.name):
        raise GateError("E_PARITY", "the written file is another one than was compared", hint=HINT)
    return bundle


def _noted_bytes(num_bytes: int) -> int | None:
    return -(-num_bytes // MEMORY_STEP_BYTES) * MEMORY_STEP_BYTES or None


def _example(port: Port) -> torch.Tensor:
    """What a network is traced with."""
    sizes = [size if isinstance(size, int) else EXAMPLE_SIZES[axis] for axis, size in enumerate(port.sizes)]
    return torch.ones(sizes, dtype=torch.bool) if port.is_bool else torch.zeros(sizes)


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
