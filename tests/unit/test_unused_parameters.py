"""Parameters that a step does not use."""

import torch
from torch import nn

from medssl_cli.methods.joint.unused_parameters import UnusedParameters


class Two(nn.Module):
    """A part that is used and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)


def test_every_parameter_gets_a_gradient_and_the_idle_lose_theirs_afterwards() -> None:
    network = Two()
    idle = UnusedParameters(network)

    loss = network.used(torch.ones(1, 2)).sum()
    (loss + idle.zero([network.used])).backward()

    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(parameter.grad.abs().sum() == 0 for parameter in network.unused.parameters())
    idle.drop_gradients()
    assert all(parameter.grad is not None for parameter in network.used.parameters())
    assert all(parameter.grad is None for parameter in network.unused.parameters())


def test_what_one_of_several_losses_used_keeps_its_gradient() -> None:
    network = Two()
    idle = UnusedParameters(network)

    for part in (network.used, network.unused):
        (part(torch.ones(1, 2)).sum() + idle.zero([part])).backward()
    idle.drop_gradients()

    assert all(parameter.grad is not None for parameter in network.parameters())


def test_where_everything_is_used_nothing_is_added() -> None:
    network = Two()

    assert UnusedParameters(network).zero([network]) == 0.0
