"""Chunked window attention gives what MONAI's own blocks give, and the same gradients."""

import copy

import numpy as np
import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer

from medssl_cli.nn import window_attention
from medssl_cli.nn.window_attention import attend_in_chunks, chunked_attention, fused_attention, window_groups


def transformer(spatial_dims: int = 3, **options: bool) -> SwinTransformer:
    torch.manual_seed(0)
    network = SwinTransformer(
        in_chans=1,
        embed_dim=6,
        window_size=(7,) * spatial_dims,
        patch_size=(2,) * spatial_dims,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 3, 2),
        spatial_dims=spatial_dims,
        use_v2=True,
        **options,
    )
    for name, parameter in network.named_parameters():
        if "bias" in name:  # zero at first, which would hide what padding and relative positions do
            torch.nn.init.normal_(parameter, std=0.5)
    return network


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((32, 32, 32), {}),  # stages of 16, 8, 4 and 2 tokens: padding by 5 and 6, then windows of the image's size
        ((16, 32, 48), {}),  # 24 tokens and a window on one axis only
        ((32, 32, 32), {"qkv_bias": False}),  # padding is zero
        ((32, 32, 32), {"use_checkpoint": True}),
        ((64, 96), {}),
    ],
    ids=["cube", "box", "no bias", "checkpoints", "2D"],
)
def test_results_and_gradients_are_monais(
    size: tuple[int, ...], options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_attention, "CPU_CHUNK_BYTES", 2**20)  # several chunks
    monai = transformer(len(size), **options).double()
    ours = copy.deepcopy(monai)
    attend_in_chunks(ours)
    images = torch.randn(2, 1, *size, dtype=torch.float64)

    expected, found = monai(images), ours(images)
    for maps in (expected, found):
        sum(level.pow(3).sum() for level in maps).backward()

    for level, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, level, atol=1e-9, rtol=1e-9)
    assert list(ours.state_dict()) == list(monai.state_dict())
    for (name, parameter), other in zip(monai.named_parameters(), ours.parameters(), strict=True):
        if parameter.grad is not None:
            assert other.grad is not None, name
            scale = parameter.grad.abs().max()
            torch.testing.assert_close(other.grad, parameter.grad, atol=1e-9 * float(scale), rtol=1e-7)


@pytest.mark.parametrize("shift", [(0, 0), (3, 3), (3, 0)])
def test_every_token_is_in_one_window(shift: tuple[int, int]) -> None:
    groups = window_groups((16, 10), (7, 7), shift)

    tokens = np.concatenate([group.tokens.reshape(-1) for group in groups])
    assert sorted(tokens) == list(range(160))
    for group in groups:
        assert sorted([*group.places, *group.padding]) == list(range(49))
        assert group.mask.shape == (len(group.places), 49)


def test_the_number_of_chunks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(6, 2, count, 4, generator=generator) for count in (5, 7, 7))
    bias = torch.randn(2, 5, 7, generator=generator)
    at_once = chunked_attention(queries, keys, values, bias)

    monkeypatch.setattr(window_attention, "CPU_CHUNK_BYTES", 1)

    torch.testing.assert_close(chunked_attention(queries, keys, values, bias), at_once)


def test_the_fused_kernel_gives_the_same_results_and_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(6, 2, count, 8, generator=generator) for count in (5, 7, 7)]
    tensors.append(torch.randn(2, 5, 7, generator=generator))
    direction = torch.randn(6, 2, 5, 8, generator=generator)

    results = []
    for attention in (chunked_attention, fused_attention):
        inputs = [tensor.clone().requires_grad_() for tensor in tensors]
        attended = attention(*inputs)
        attended.backward(direction)
        results.append([attended.detach(), *(tensor.grad for tensor in inputs)])

    for chunked, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, chunked, atol=1e-5, rtol=1e-5)


def test_a_transformer_with_the_fused_kernel_is_monais(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_attention, "chunked_attention", fused_attention)  # as on CUDA
    monai = transformer()
    ours = copy.deepcopy(monai)
    attend_in_chunks(ours)
    images = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))

    for level, other in zip(monai(images), ours(images), strict=True):
        torch.testing.assert_close(other, level, atol=1e-5, rtol=1e-5)
