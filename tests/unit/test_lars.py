"""Layer-wise adaptive rates and SwAV's schedule, against numbers worked by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.nn.lars import Lars


def moved(value: list[float], gradient: list[float], *, steps: int = 1, lr: float = 0.1, **settings: object) -> Tensor:
    parameter = nn.Parameter(torch.tensor(value, dtype=torch.float64))
    group = {"params": [parameter], **{k: settings.pop(k) for k in ["is_adapted"] if k in settings}}
    optimizer = Lars([group], lr=lr, **settings)  # type: ignore[arg-type]
    for _ in range(steps):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return parameter.detach()


def close(found: Tensor, expected: list[float], tolerance: float = 1e-9) -> bool:
    return bool((found - torch.tensor(expected, dtype=torch.float64)).abs().max() < tolerance)


def test_one_step_by_hand() -> None:
    # |p| = 5, |g| = 1: a = 0.001 * 5 / (1 + 0.01 * 5) = 0.0047619; g + 0.01 p = (0.63, 0.84); times a = (0.003, 0.004)
    assert close(moved([3, 4], [0.6, 0.8], weight_decay=1e-2), [2.9997, 3.9996])


def test_momentum_sums_scaled_gradients() -> None:
    # without decay u = 0.001 |p| g / |g|, here along p: lengths 0.005, then 0.001 * 4.9995, plus 0.9 of the first
    second = 4.9995 - 0.1 * (0.9 * 0.005 + 0.001 * 4.9995)

    assert close(moved([3, 4], [0.6, 0.8], steps=2), [0.6 * second, 0.8 * second])


def test_without_decay_the_length_of_the_gradient_does_not_matter() -> None:
    assert close(moved([3, 4], [600, 800]), moved([3, 4], [0.6, 0.8]).tolist())


@pytest.mark.parametrize(
    ("value", "gradient", "expected"),
    # a parameter at 0 would never leave it; a gradient of 0 must not let decay act alone
    [([0, 0], [1, 2], [-0.1, -0.2]), ([3, 4], [0, 0], [3, 4])],
)
def test_zero_lengths_are_left_to_plain_sgd_without_decay(
    value: list[float], gradient: list[float], expected: list[float]
) -> None:
    assert close(moved(value, gradient, weight_decay=0.5), expected)


def test_clipping_never_exceeds_plain_sgd() -> None:
    # a / rate = 0.001 * 5 / 1e-5 / 0.1 > 1: plain SGD; and 0.05 below 1: rate * 0.05 = a
    assert close(moved([3, 4], [6e-6, 8e-6], clip=True), [3 - 6e-7, 4 - 8e-7])
    assert close(moved([3, 4], [0.6, 0.8], clip=True), [3 - 0.005 * 0.6, 4 - 0.005 * 0.8])


def test_a_group_can_be_left_to_sgd() -> None:
    settings = {"weight_decay": 0.1, "momentum": 0.5}
    parameter = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    plain = torch.optim.SGD([parameter], lr=0.1, weight_decay=0.1, momentum=0.5)
    for _ in range(3):
        parameter.grad = torch.tensor([0.6, 0.8], dtype=torch.float64)
        plain.step()

    assert close(moved([3, 4], [0.6, 0.8], steps=3, is_adapted=False, **settings), parameter.tolist())


def test_a_parameter_without_gradient_stays() -> None:
    parameter = nn.Parameter(torch.ones(2))

    Lars([parameter], lr=1.0, weight_decay=1.0).step()

    assert torch.equal(parameter, torch.ones(2))


def test_resuming_is_exact() -> None:
    def train(module: nn.Linear, optimizer: Lars, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            module(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    twin = copy.deepcopy(module)
    optimizer = Lars(module.parameters(), lr=10.0)
    train(module, optimizer, 6)

    first = Lars(twin.parameters(), lr=10.0)
    train(twin, first, 3)
    second = Lars(twin.parameters(), lr=10.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(twin, second, 3)

    assert torch.equal(twin.weight, module.weight)


def test_a_closure_gives_the_loss_and_the_gradients() -> None:
    parameter = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = Lars([parameter], lr=0.1)

    def closure() -> float:
        loss = (parameter * torch.tensor([0.6, 0.8], dtype=torch.float64)).sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == pytest.approx(5.0)
    assert close(parameter.detach(), moved([3, 4], [0.6, 0.8]).tolist())
