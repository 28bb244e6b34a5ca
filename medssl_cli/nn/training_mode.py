"""Networks in training or evaluation for a while."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def in_mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """A network in a mode, then in the one before; an exception may end it, as where chunks are computed again."""
    was_training = network.training
    network.train(training)
    try:
        yield
    finally:
        network.train(was_training)
