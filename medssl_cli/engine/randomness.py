"""Randomness as a function of (seed, purpose, step): the same after a restart, with any number of workers."""

import contextlib
from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """Independent streams of one run's seed."""

    INITIALISATION = 10
    LOSS = 11
    NETWORK = 12
    AUGMENTATION = 13
    HEALTH = 14
    LABELLED = 15
    EVERYTHING = 16
    CLUSTERS = 17
    UNLABELLED = 21


def stream_seed(seed: int, purpose: Purpose, step: int = 0, rank: int = 0) -> int:
    """A 63-bit seed for one stream at one step of one process."""
    state = np.random.SeedSequence([seed, int(purpose), step, rank]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator(seed: int, purpose: Purpose, step: int = 0) -> torch.Generator:
    """A CPU generator for one stream at one step, in the same state in every process."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, step))


@contextlib.contextmanager
def implicit_randomness(seed: int, purpose: Purpose, step: int = 0, rank: int = 0) -> Iterator[None]:
    """Make what draws from torch's own generator (weight initialisation, dropout) a function of the stream too."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.random.manual_seed(stream_seed(seed, purpose, step, rank))
        yield
