"""Gradients of the convolution for CPUs: those of the library, and of the definition."""

import pytest
import torch
from torch import nn

from medssl_cli.nn.backbones import resnet
from medssl_cli.nn.convolution import Conv2d, kernel_gradient

OWN = "_ConvolutionBackward"
LAYERS = [
    # channels in and out, edge, stride, padding, height, width
    (32, 8, 3, 1, 1, 5, 4),
    (32, 8, 3, 2, 1, 7, 5),
    (36, 3, 5, 3, 2, 11, 8),
    (8, 4, 1, 1, 0, 3, 6),
    (8, 4, 1, 2, 0, 9, 6),
    (8, 4, 1, 2, 1, 9, 6),
    (4, 4, 2, 2, 0, 4, 3),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_outputs_and_gradients_are_those_of_the_library(layer, layout):
    channels_in, channels_out, edge, stride, padding, height, width = layer
    torch.manual_seed(0)
    ours = Conv2d(channels_in, channels_out, edge, stride, padding, bias=False).to(memory_format=layout)
    library = nn.Conv2d(channels_in, channels_out, edge, stride, padding, bias=False).to(memory_format=layout)
    library.load_state_dict(ours.state_dict())
    images = torch.randn(3, channels_in, height, width).to(memory_format=layout)
    inputs = [images.clone().requires_grad_() for _ in range(2)]

    outputs = [network(x) for network, x in zip([ours, library], inputs, strict=True)]
    direction = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(direction)

    assert outputs[0].grad_fn.name() == OWN
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.weight.grad, library.weight.grad, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_kernel_is_its_definition():
    torch.manual_seed(0)
    edge, stride, padding = 3, 2, 1
    images, gradient = torch.randn(2, 3, 5, 6), torch.randn(2, 4, 3, 3)
    padded = nn.functional.pad(images, (padding,) * 4)
    expected = torch.zeros(4, 3, edge, edge)
    for p in range(3):
        for q in range(3):
            for i in range(edge):
                for j in range(edge):
                    pixel = padded[:, :, stride * p + i, stride * q + j]
                    expected[:, :, i, j] += gradient[:, :, p, q].T @ pixel

    torch.testing.assert_close(kernel_gradient(gradient, images, edge, stride, padding), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"}, {"padding": "same"}, {"bias": True},
        {"stride": (1, 2)},
    ],
    ids=str,
)  # fmt: skip
def test_what_it_does_not_know_is_left_to_the_library(options):
    network = Conv2d(64, 4, 3, **{"padding": 1, "bias": False} | options)

    output = network(torch.randn(1, 64, 6, 6))

    assert output.grad_fn.name() != OWN
    assert torch.isfinite(output).all()


def test_wide_maps_of_few_channels_half_precision_and_inference_are_left_to_the_library():
    network = Conv2d(4, 4, 3, padding=1, bias=False)
    narrow = Conv2d(64, 4, 3, padding=1, bias=False)

    assert network(torch.randn(1, 4, 8, 8)).grad_fn.name() != OWN
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert narrow(torch.randn(1, 64, 4, 4)).grad_fn.name() != OWN
    with torch.no_grad():
        assert narrow(torch.randn(1, 64, 4, 4)).grad_fn is None
    narrow.weight.requires_grad_(False)
    assert narrow(torch.randn(1, 64, 4, 4, requires_grad=True)).grad_fn.name() != OWN


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_has_the_gradients_of_one_of_plain_convolutions(depth):
    torch.manual_seed(0)
    networks = [resnet.ResNet(1, depth, 8, kind, nn.BatchNorm2d) for kind in (Conv2d, nn.Conv2d)]
    networks[1].load_state_dict(networks[0].state_dict())
    images = torch.randn(4, 1, 64, 48)

    for network in networks:
        sum(level.square().mean() for level in network(images)).backward()

    for (name, ours), (_, theirs) in zip(*(network.named_parameters() for network in networks), strict=True):
        assert (ours.grad - theirs.grad).norm() < 1e-4 * theirs.grad.norm(), name
