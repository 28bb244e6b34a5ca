"""Classification of volumes with a network of 2D images: the mean of the slices, or f_intra and f_inter."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medssl_cli.cache.prepared import prepare
from medssl_cli.cache.store import Cache
from medssl_cli.data.whole import read_stack
from medssl_cli.nn.backbones import resnet
from medssl_cli.nn.slices.volume_encoder import SliceNetwork
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.tasks.classification.network import ClassificationNetwork as Task
from medssl_cli.tasks.classification.network import ClassificationOptions as Options
from tests.finding_cache import finding_cache

RELATION = {"embedding_dim": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}


def task(**changes: Any) -> Task:
    torch.manual_seed(0)
    return Task(
        resnet.build(1, 2, depth=18, width=4),
        Options.model_validate({"label_set": "toy", "classes": ["a", "b"], **changes}),
    ).eval()


def stack(batch: int = 2, depth: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.randn(batch, 1, 32, 32, depth, generator=torch.Generator().manual_seed(1))
    return images, torch.ones(batch, depth, dtype=torch.bool), 5.0 * torch.arange(depth).repeat(batch, 1)


@torch.no_grad()
def test_without_a_relation_a_volume_is_the_mean_of_its_slices() -> None:
    model, (images, present, positions) = task(), stack()

    embedded = model.embed(images, present, positions)

    each = torch.stack([model.embed(images[..., place]) for place in range(5)])
    torch.testing.assert_close(embedded, each.mean(dim=0))
    torch.testing.assert_close(model.embed(images), embedded)


@torch.no_grad()
def test_with_a_relation_the_embedding_is_that_of_joint_pretraining() -> None:
    model, (images, present, positions) = task(relation=RELATION), stack()
    assert model.volume_encoder is not None

    _, expected = SliceNetwork(model.backbone, model.volume_encoder)(images.movedim(-1, 1), present, positions)

    torch.testing.assert_close(model.embed(images, present, positions), expected)
    assert set(model.kept()) == {"slices"}


@torch.no_grad()
@pytest.mark.parametrize("relation", [None, RELATION])
def test_padding_changes_nothing(relation: dict[str, Any] | None) -> None:
    model, (images, present, positions) = task(relation=relation), stack()
    noise = torch.randn(2, 1, 32, 32, 3)
    padded = torch.cat([images, noise], dim=-1)
    is_present = torch.cat([present, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    further = torch.cat([positions, torch.full((2, 3), 99.0)], dim=1)

    torch.testing.assert_close(model(padded, is_present, further), model(images, present, positions))


@torch.no_grad()
def test_with_a_relation_positions_matter_and_a_single_image_is_a_volume_of_one_slice() -> None:
    model, (images, present, positions) = task(relation=RELATION), stack()
    for parameter in model.parameters():  # a new relation looks at fixed places
        parameter.add_(0.1 * torch.randn(parameter.shape))

    assert not torch.equal(model(images, present, positions), model(images, present, 3 * positions))
    torch.testing.assert_close(model(images[..., 0]), model(images[..., :1]))


def test_a_relation_is_not_for_networks_of_volumes() -> None:
    backbone = resnet.build(1, 3, depth=18, width=4)

    with pytest.raises(ValueError, match="relation needs a backbone of 2D images"):
        Task(backbone, Options.model_validate({"label_set": "toy", "classes": ["a"], "relation": RELATION}))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return finding_cache(tmp_path_factory.mktemp("toy") / "cache", num_patients=1, shape=(20, 10, 7), modality="CT")


@pytest.mark.parametrize(("most", "shown"), [(10, range(7)), (7, range(7)), (4, range(0, 7, 2)), (3, range(0, 7, 3))])
def test_a_stack_is_the_volumes_own_slices_over_its_whole_depth(cache: Cache, most: int, shown: range) -> None:
    item = prepare(cache, cache.records()[:1], Preprocessing(zscore=True, fit=(20, 20)))[0]

    images, is_present, positions_mm = read_stack(item, (20, 20, most))

    assert images.shape == (1, 20, 20, most)
    assert is_present.tolist() == [place < len(shown) for place in range(most)]
    assert positions_mm[: len(shown)].tolist() == list(shown)
    whole, _, _ = read_stack(item, (20, 20, 7))
    np.testing.assert_array_equal(images[..., : len(shown)], whole[..., list(shown)])
    assert images[..., len(shown) :].abs().sum() == 0
