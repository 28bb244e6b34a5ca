"""Networks of nnU-Net's kind export to ONNX with the answers that torch gives."""

import pytest
import torch

from medssl_cli.nn.backbones import plainconv, resenc, unet
from tests.traced import require_the_same_logits, segmenting

SIZES = {"channels": (4, 6, 8), "strides": (1, 2, 2)}
THICK = {**SIZES, "strides": (1, (2, 2, 1), 2), "kernel_sizes": ((3, 3, 1), 3, 3)}
COARSE = {**THICK, "strides": ((2, 2, 1), (2, 2, 1), 2)}
TILE = (16, 8, 16)


@pytest.mark.parametrize(
    "backbone",
    [
        resenc.build(1, **SIZES, num_blocks=(1, 2, 1)),
        plainconv.build(1, **SIZES, num_convs=(1, 2, 1)),
        resenc.build(1, **THICK, num_blocks=(1, 2, 1)),
        plainconv.build(1, **THICK, num_convs=(1, 2, 1)),
        unet.build(1, **COARSE, num_res_units=2),
    ],
    ids=["resenc", "plainconv", "resenc, thick slices", "plainconv, thick slices", "unet, thick slices"],
)
def test_onnx_gives_torchs_logits(backbone: torch.nn.Module) -> None:
    require_the_same_logits(segmenting(backbone), TILE)
