"""Gradients of a loss over all embeddings, computed chunk by chunk, equal those of one pass."""

import pytest
import torch
from torch import nn

from medssl_cli.methods.joint.chunks import in_chunks


def network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).double()


def gradients(model: nn.Sequential, images: torch.Tensor, size: int | None) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    embeddings = in_chunks(model, model, images, size)
    loss = (embeddings @ embeddings.T).logsumexp(dim=1).sum()  # every image sees every other
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("size", [1, 3, 7, 20])
@pytest.mark.parametrize("kind", ["group", "frozen batch"])
def test_chunks_give_the_gradients_of_one_pass(kind: str, size: int) -> None:
    model = network(nn.GroupNorm(2, 8) if kind == "group" else nn.BatchNorm2d(8))
    images = torch.randn(7, 1, 6, 6, dtype=torch.float64)
    model(images)
    if kind == "frozen batch":
        model.eval()

    expected_loss, expected = gradients(model, images, None)
    loss, found = gradients(model, images, size)

    assert loss == pytest.approx(expected_loss, rel=1e-12)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_dropout_is_the_same_in_the_second_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Dropout(0.5)).double()
    images = torch.ones(6, 4, dtype=torch.float64)

    embeddings = in_chunks(model, model, images, 2)
    embeddings.sum().backward()

    kept = (embeddings != 0).sum(0).double() * 2  # each kept output passes its input on, scaled by two
    torch.testing.assert_close(model[0].weight.grad, kept[:, None].expand(4, 4))


def test_statistics_of_a_batch_norm_are_counted_once() -> None:
    images = torch.randn(6, 1, 6, 6, dtype=torch.float64)
    means = []
    for backward in (False, True):
        model = network(nn.BatchNorm2d(8, momentum=0.3))
        model(images[:1])
        embeddings = in_chunks(model, model, images, 3)
        if backward:
            embeddings.sum().backward()
        means.append(model[1].running_mean.clone())

    torch.testing.assert_close(means[0], means[1], rtol=0, atol=0)
