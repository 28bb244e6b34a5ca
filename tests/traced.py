"""What ONNX Runtime makes of a network that was traced, beside torch."""

import numpy as np
import onnxruntime
import torch

from medssl_cli.deploy.export import onnx_graph
from medssl_cli.heads import MasksHead
from medssl_cli.imaging.geometry import Shape
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.tasks.segmentation.network import SegmentationNetwork, SegmentationOptions


def segmenting(backbone: torch.nn.Module, **options: object) -> SegmentationNetwork:
    """A network of one class around a backbone, as it is deployed."""
    return SegmentationNetwork(
        backbone, SegmentationOptions.model_validate({"classes": {1: "bright"}, **options})
    ).eval()


def graph_of(network: SegmentationNetwork, tile: Shape) -> bytes:
    """What is traced of such a network for tiles of a size."""
    head = MasksHead(classes={1: "bright"}, tile_size=tile, overlap=0.5, nsd_tolerance_mm=2.0)
    seen = Preprocessing(zscore=True)
    return onnx_graph(network, head.inputs(seen, 1), head.outputs(seen))


def require_the_same_logits(network: SegmentationNetwork, tile: Shape) -> None:
    """Three random tiles, seen by torch and by ONNX Runtime."""
    session = onnxruntime.InferenceSession(graph_of(network, tile), providers=["CPUExecutionProvider"])
    tiles = np.random.default_rng(0).random((3, 1, *tile), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(tiles)).numpy()
    np.testing.assert_allclose(session.run(None, {"image": tiles})[0], expected, rtol=1e-3, atol=1e-4)
