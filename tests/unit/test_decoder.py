"""The decoder joins any rising strides and ends at the resolution of the image."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from medssl_cli.nn.decoder import UNetDecoder


def feature_maps(channels: tuple[int, ...], strides: tuple[Any, ...], size: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, width, *np.array(size) // stride, generator=generator)
        for width, stride in zip(channels, strides, strict=True)
    ]


@pytest.mark.parametrize(
    "strides", [(1, 2, 4), (2, 4, 8), (4, 8), (1, 4, 8), (1, 2, 4, 8, 16, 32), (3, 6), (2,), (1,)], ids=str
)
def test_logits_lie_on_the_grid_of_the_image(strides: tuple[int, ...]) -> None:
    channels = tuple(2 + level for level in range(len(strides)))
    size = (2 * strides[-1], 3 * strides[-1], 2 * strides[-1])
    decoder = UNetDecoder(channels, strides, out_channels=3, widths=(2,) * (len(strides) - 1))

    with torch.no_grad():
        assert decoder(feature_maps(channels, strides, size)).shape == (2, 3, *size)


@pytest.mark.parametrize(
    "strides",
    [((1, 1, 1), (2, 2, 1), (4, 4, 2)), ((2, 2, 1), (4, 4, 1)), ((1, 3, 2), (1, 6, 4)), ((4, 2, 1),)],
    ids=str,
)
def test_every_axis_is_up_sampled_by_its_own_strides(strides: tuple[tuple[int, ...], ...]) -> None:
    channels = tuple(2 + level for level in range(len(strides)))
    size = (8, 12, 8)
    decoder = UNetDecoder(channels, strides, out_channels=3)

    with torch.no_grad():
        assert decoder(feature_maps(channels, strides, size)).shape == (2, 3, *size)


def test_scores_are_up_sampled_along_each_axis_as_they_are_along_all() -> None:
    """Windows of twice an even factor, of an odd factor, and of one voxel: whatever the other axes do."""
    scores = UNetDecoder((1,), ((2, 3, 1),), out_channels=1).scores
    along_x, along_y, along_z = (UNetDecoder((1,), (step,), out_channels=1).scores for step in (2, 3, 1))

    assert [tuple(scores.kernel_size), tuple(scores.stride), tuple(scores.padding)] == [
        tuple(getattr(part, what)[0] for part in (along_x, along_y, along_z))
        for what in ("kernel_size", "stride", "padding")
    ]


def test_two_dimensions() -> None:
    decoder = UNetDecoder((2, 4, 8), (2, 4, 8), out_channels=2, spatial_dims=2)

    assert decoder(feature_maps((2, 4, 8), (2, 4, 8), (16, 24))).shape == (2, 2, 16, 24)


@pytest.mark.parametrize("num_res_units", [0, 2])
def test_thick_slices_have_kernels_of_their_own_at_each_level(num_res_units: int) -> None:
    channels, strides = (2, 3, 4), ((1, 1, 1), (2, 2, 1), (4, 4, 2))
    kernels = ((3, 3, 1), 3)
    decoder = UNetDecoder(channels, strides, 3, kernel_sizes=kernels, num_res_units=num_res_units)

    shapes = [
        {tuple(module.kernel_size) for module in level.modules() if isinstance(module, torch.nn.Conv3d)} - {(1, 1, 1)}
        for level in decoder.levels
    ]

    assert shapes == [{(3, 3, 1)}, {(3, 3, 3)}]
    with torch.no_grad():
        assert decoder(feature_maps(channels, strides, (8, 8, 4))).shape == (2, 3, 8, 8, 4)


@pytest.mark.parametrize("kernels", [2, (3,), ((3, 3), 3), (3, 9)])
def test_kernels_that_have_no_middle_or_no_level_are_refused(kernels: Any) -> None:
    with pytest.raises(ValueError, match="kernel_sizes"):
        UNetDecoder((2, 3, 4), (1, 2, 4), 3, kernel_sizes=kernels)


@pytest.mark.parametrize("num_res_units", [0, 2])
def test_backward_reaches_every_parameter_and_every_map(num_res_units: int) -> None:
    decoder = UNetDecoder((2, 4, 8), (1, 2, 4), out_channels=3, num_res_units=num_res_units)
    maps = [feature.requires_grad_() for feature in feature_maps((2, 4, 8), (1, 2, 4), (8, 8, 8))]

    # Squared: the first power of scores that follow a norm sums to a constant.
    decoder(maps).square().sum().backward()

    tensors = {**dict(decoder.named_parameters()), **{f"map {level}": m for level, m in enumerate(maps)}}
    unreached = [key for key, t in tensors.items() if t.grad is None or not t.grad.abs().sum() > 0]
    assert unreached == []


def test_constant_maps_stay_constant_inside_the_image_when_the_scores_are_up_sampled() -> None:
    # Weights of 1 / (windows over one voxel): 2 per axis where windows of 2 * scale overlap by half, so 8 in 3D.
    decoder = UNetDecoder((1,), (2,), out_channels=1)
    with torch.no_grad():
        for parameter in decoder.scores.parameters():
            parameter.fill_(1 / 8 if parameter.ndim > 1 else 0.0)
        logits = decoder([torch.full((1, 1, 4, 4, 4), 5.0)])

    assert torch.equal(logits[..., 1:-1, 1:-1, 1:-1], torch.full((1, 1, 6, 6, 6), 5.0))


@pytest.mark.parametrize(
    ("channels", "strides", "widths"),
    [
        ((2, 4), (1,), None),
        ((2, 4), (2, 2), None),
        ((2, 4), (2, 3), None),
        ((2, 4), (4, 2), None),
        ((2, 4), (1, 2), (2, 4)),
        ((2, 4), ((1, 1, 1), (1, 1, 1)), None),
        ((2, 4), ((1, 1, 2), (2, 2, 1)), None),
        ((2, 4), ((1, 1, 2), (2, 2, 3)), None),
    ],
)
def test_maps_that_do_not_go_together_are_refused(
    channels: tuple[int, ...], strides: tuple[Any, ...], widths: tuple[int, ...] | None
) -> None:
    with pytest.raises(ValueError, match="strides"):
        UNetDecoder(channels, strides, out_channels=2, widths=widths)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # raised inside torch's exporter
def test_onnx_gives_the_same_logits_at_a_size_it_was_not_exported_at(tmp_path: Path) -> None:
    channels, strides = (2, 4, 8), (2, 4, 8)
    decoder = UNetDecoder(channels, strides, out_channels=3, num_res_units=2).eval()
    any_size = dict.fromkeys((0, 2, 3, 4), torch.export.Dim.DYNAMIC)
    path = tmp_path / "decoder.onnx"

    torch.onnx.export(
        decoder,
        (feature_maps(channels, strides, (16, 24, 32)),),
        path,
        dynamo=True,
        verbose=False,
        input_names=["fine", "middle", "coarse"],
        dynamic_shapes=([any_size] * 3,),
    )

    maps = feature_maps(channels, strides, (24, 16, 40))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {i.name: m.numpy() for i, m in zip(session.get_inputs(), maps, strict=True)})
    with torch.no_grad():
        expected = decoder(maps)
    # Sums of about 27 * 20 products of order one in float32: 1e-4 is a thousand roundings.
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-4)
