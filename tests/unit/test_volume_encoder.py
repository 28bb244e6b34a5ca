"""From slices to volumes: what the embedding is, and what it may and may not depend on."""

import math

import pytest
import torch
from torch.nn import functional as F

from medssl_cli.nn.backbones import resnet
from medssl_cli.nn.slices.embedding import SliceEmbedding, levels
from medssl_cli.nn.slices.volume_encoder import SliceNetwork, VolumeEncoder, VolumeOptions

TINY = {"embedding_dim": 16, "num_layers": 2, "num_heads": 2}


def slice_network(**options: object) -> SliceNetwork:
    torch.manual_seed(0)
    backbone = resnet.build(1, depth=18, width=8)
    network = SliceNetwork(backbone, VolumeEncoder(backbone.channels, VolumeOptions(**{**TINY, **options}))).eval()
    for parameter in network.volume_encoder.parameters():  # offsets and weights that begin at zero would hide much
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network


def volumes(batch: int = 2, slices: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.rand(batch, slices, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    return images, torch.ones(batch, slices, dtype=torch.bool), 2.5 * torch.arange(slices).repeat(batch, 1)


def test_levels_weigh_alike_whatever_their_scale() -> None:
    maps = [torch.rand(3, 4, 8, 8), 100 * torch.rand(3, 6, 4, 4), 0.01 * torch.rand(3, 8, 2, 2)]

    found = levels(maps)

    parts = [level.mean(dim=(2, 3)) / level.mean(dim=(2, 3)).norm(dim=1, keepdim=True) for level in maps]
    torch.testing.assert_close(found, torch.cat(parts, dim=1))
    torch.testing.assert_close(found.norm(dim=1), torch.full((3,), math.sqrt(3)))
    assert levels(maps, repeats_last=True).norm(dim=1).tolist() == pytest.approx([2.0] * 3)


def test_the_resnet_of_the_paper_has_3840_elements_or_5888_as_released() -> None:
    channels = resnet.build(1).channels

    assert SliceEmbedding(channels, 8).linear.in_features == 3840
    assert SliceEmbedding(channels, 8, repeats_last=True).linear.in_features == 5888


def test_a_volume_of_one_slice_has_the_slice_embedding_of_the_image() -> None:
    network = slice_network()
    image = torch.rand(1, 1, 32, 32)

    slices, volume = network(image[:, None], torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1))

    torch.testing.assert_close(slices[:, 0], network.volume_encoder.embedding(network.backbone(image)))
    assert volume.isfinite().all()


def test_padding_changes_nothing() -> None:
    network = slice_network()
    images, present, positions = volumes()
    padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, 3), value=7.0)

    slices, volume = network(padded, F.pad(present, (0, 3)), F.pad(positions, (0, 3)))

    expected_slices, expected = network(images, present, positions)
    torch.testing.assert_close(volume, expected)
    torch.testing.assert_close(slices[:, :5], expected_slices)
    assert (slices[:, 5:] == 0).all()


def test_order_matters_with_relations_and_not_without() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    images, present, positions = volumes()
    changes = {}
    for relation in ("deformable", "none"):
        network = slice_network(relation=relation)
        shuffled = network(images[:, order], present, positions)[1]
        changes[relation] = (shuffled - network(images, present, positions)[1]).abs().max().item()

    assert changes["none"] < 1e-5 < 1e-3 < changes["deformable"]


def test_equal_volumes_of_a_batch_have_equal_embeddings() -> None:
    network = slice_network(pooling="attention")
    images, present, positions = volumes(batch=1)

    found = network(images.repeat(2, 1, 1, 1, 1), present.repeat(2, 1), positions.repeat(2, 1))[1]

    torch.testing.assert_close(found[0], found[1])
