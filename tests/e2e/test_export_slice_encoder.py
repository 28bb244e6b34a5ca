"""The slice encoder as an ONNX graph: free numbers of volumes and slices, the numbers of torch."""

import contextlib
import io
import logging
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from medssl_cli.nn.slices.encoder import AttentionPool, SliceEncoder

pytestmark = pytest.mark.slow

NAMES = ["slices", "is_present", "positions_mm"]
LARGEST_DIFFERENCE = 1e-4


class Volume(nn.Module):
    """Slices to slices and one vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = SliceEncoder(32, num_layers=2, num_heads=4, reference_spacing_mm=3.0)
        self.pool = AttentionPool(32)
        for parameter in self.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)

    def forward(self, slices: Tensor, is_present: Tensor, positions_mm: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self.encoder(slices, is_present, positions_mm)
        return encoded, self.pool(encoded, is_present)


def inputs(num_volumes: int, num_slices: int) -> tuple[Tensor, Tensor, Tensor]:
    slices = torch.randn(num_volumes, num_slices, 32, generator=torch.Generator().manual_seed(num_slices))
    num_present = torch.arange(num_slices, num_slices - num_volumes, -1)
    return (
        slices,
        torch.arange(num_slices) < num_present[:, None],
        2.5 * torch.arange(num_slices).expand(num_volumes, -1),
    )


@pytest.fixture(scope="module")
def graph() -> bytes:
    module = Volume().eval()
    free = {0: torch.export.Dim("volumes"), 1: torch.export.Dim("slices")}
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, inputs(2, 7), dynamo=True, opset_version=20, input_names=NAMES, dynamic_shapes=(free,) * 3
            )
    finally:
        logging.disable(logging.NOTSET)
    assert program is not None
    return program.model_proto.SerializeToString()


def test_onnx_gives_the_numbers_of_torch(graph: bytes) -> None:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    module = Volume().eval()
    for num_volumes, num_slices in [(3, 5), (1, 16), (2, 64)]:
        given = inputs(num_volumes, num_slices)
        with torch.no_grad():
            expected = module(*given)

        found = session.run(None, {name: part.numpy() for name, part in zip(NAMES, given, strict=True)})

        for one, other in zip(found, expected, strict=True):
            assert one.shape == tuple(other.shape)
            assert np.abs(one - other.numpy()).max() < LARGEST_DIFFERENCE
