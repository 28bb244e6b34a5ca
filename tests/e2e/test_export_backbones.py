"""Networks of nnU-Net's kind export to ONNX with the answers that torch gives."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from medssl_cli.deploy.export import onnx_graph
from medssl_cli.heads import MasksHead
from medssl_cli.nn.backbones import plainconv, resenc, unet
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.tasks.segmentation.network import SegmentationNetwork as Task
from medssl_cli.tasks.segmentation.network import SegmentationOptions as Options

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
def test_onnx_gives_torchs_logits(backbone: torch.nn.Module, tmp_path: Path) -> None:
    task = Task(backbone, Options.model_validate({"classes": {1: "bright"}})).eval()

    head = MasksHead(classes={1: "bright"}, tile_size=TILE, overlap=0.5, nsd_tolerance_mm=2.0)
    seen = Preprocessing(zscore=True)
    graph = onnx_graph(task, head.inputs(seen, 1), head.outputs(seen))

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    tiles = np.random.default_rng(0).random((3, 1, *TILE), dtype=np.float32)
    with torch.no_grad():
        expected = task(torch.from_numpy(tiles)).numpy()
    np.testing.assert_allclose(session.run(None, {"image": tiles})[0], expected, rtol=1e-3, atol=1e-4)
