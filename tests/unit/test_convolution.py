"""The convolution for CPUs: outputs and gradients are those of the library, and of the definition."""

import pytest
import torch
from torch import nn

from medssl_cli.nn import convolution
from medssl_cli.nn.backbones import resnet
from medssl_cli.nn.convolution import Conv2d, convolve, image_gradient, kernel_gradient

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


def take(way, monkeypatch):
    """Let every convolution of a test go one way, whatever is faster here."""
    monkeypatch.setattr(convolution, "_is_gradient_faster", lambda *_: way == "gradient")
    monkeypatch.setattr(convolution, "FEW_PIXELS", 10_000 if way == "products" else 0)
    monkeypatch.setattr(convolution, "MANY_CHANNELS", 1)


@pytest.mark.parametrize("way", ["gradient", "products"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_outputs_and_gradients_are_those_of_the_library(layer, layout, way, monkeypatch):
    take(way, monkeypatch)
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


def test_products_are_the_definition():
    torch.manual_seed(0)
    edge, stride, padding = 3, 2, 1
    images, kernel, gradient = torch.randn(2, 3, 5, 6), torch.randn(4, 3, edge, edge), torch.randn(2, 4, 3, 3)
    padded = nn.functional.pad(images, (padding,) * 4)
    output, of_kernel, of_padded = torch.zeros(2, 4, 3, 3), torch.zeros_like(kernel), torch.zeros_like(padded)
    for p in range(3):
        for q in range(3):
            for i in range(edge):
                for j in range(edge):
                    pixel = padded[:, :, stride * p + i, stride * q + j]
                    output[:, :, p, q] += pixel @ kernel[:, :, i, j].T
                    of_kernel[:, :, i, j] += gradient[:, :, p, q].T @ pixel
                    of_padded[:, :, stride * p + i, stride * q + j] += gradient[:, :, p, q] @ kernel[:, :, i, j]

    torch.testing.assert_close(convolve(images, kernel, stride, padding), output)
    torch.testing.assert_close(kernel_gradient(gradient, images, edge, stride, padding), of_kernel)
    of_images = of_padded[:, :, padding:-padding, padding:-padding]
    torch.testing.assert_close(image_gradient(gradient, kernel, (5, 6), stride, padding), of_images)


@pytest.mark.parametrize("way", ["gradient", "products"])
def test_half_precision_is_as_near_to_full_precision_as_the_library_is(way, monkeypatch):
    take(way, monkeypatch)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    torch.manual_seed(0)
    exact = nn.Conv2d(32, 16, 3, padding=1, bias=False)
    images = torch.randn(4, 32, 5, 5)
    direction = torch.randn(4, 16, 5, 5)

    def gradients(network, *, is_half):
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
            output = network(x)
        output.float().backward(direction)
        return output.float(), x.grad, network.weight.grad

    networks = [kind(32, 16, 3, padding=1, bias=False) for kind in (Conv2d, nn.Conv2d)]
    for network in networks:
        network.load_state_dict(exact.state_dict())
    truth = gradients(exact, is_half=False)
    ours, library = (gradients(network, is_half=True) for network in networks)

    for mine, theirs, true in zip(ours, library, truth, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - true).norm() < 1.5 * (theirs - true).norm()


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_the_way_depends_on_the_processor_and_the_size_of_the_map(capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    network = Conv2d(64, 4, 3, padding=1, bias=False)
    of_few_channels = Conv2d(4, 4, 3, padding=1, bias=False)

    small, large = (network(torch.randn(1, 64, edge, edge)).grad_fn.name() for edge in (2, 8))

    assert of_few_channels(torch.randn(1, 4, 8, 8)).grad_fn.name() != OWN
    assert (small, large) == (OWN, OWN if capability == "AVX2" else "ConvolutionBackward0")


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"}, {"padding": "same"}, {"bias": True},
        {"stride": (1, 2)},
    ],
    ids=str,
)  # fmt: skip
def test_what_it_does_not_know_is_left_to_the_library(options, monkeypatch):
    take("products", monkeypatch)
    network = Conv2d(64, 4, 3, **{"padding": 1, "bias": False} | options)

    output = network(torch.randn(1, 64, 6, 6))

    assert output.grad_fn.name() != OWN
    assert torch.isfinite(output).all()


def test_other_half_precision_and_inference_are_left_to_the_library(monkeypatch):
    take("gradient", monkeypatch)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    narrow = Conv2d(64, 4, 3, padding=1, bias=False)

    assert narrow(torch.randn(1, 64, 4, 4)).grad_fn.name() == OWN
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert narrow(torch.randn(1, 64, 4, 4)).grad_fn.name() != OWN
    with torch.no_grad():
        assert narrow(torch.randn(1, 64, 4, 4)).grad_fn is None
    narrow.weight.requires_grad_(False)
    assert narrow(torch.randn(1, 64, 4, 4, requires_grad=True)).grad_fn.name() != OWN


@pytest.mark.parametrize("way", ["gradient", "products"])
@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_has_the_gradients_of_one_of_plain_convolutions(depth, way, monkeypatch):
    take(way, monkeypatch)
    torch.manual_seed(0)
    monkeypatch.setattr(convolution, "_precision_here", lambda *_: torch.float64)  # so that no rounding is amplified
    networks = [resnet.ResNet(1, depth, 8, kind, nn.BatchNorm2d).double() for kind in (Conv2d, nn.Conv2d)]
    networks[1].load_state_dict(networks[0].state_dict())
    images = torch.randn(4, 1, 64, 48, dtype=torch.float64)

    for network in networks:
        sum(level.square().mean() for level in network(images)).backward()

    for (name, ours), (_, theirs) in zip(*(network.named_parameters() for network in networks), strict=True):
        assert (ours.grad - theirs.grad).norm() < 1e-9 * theirs.grad.norm(), name
