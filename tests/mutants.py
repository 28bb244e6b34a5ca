"""Damage to bytes, each a function of a generator: what a bad cable, disk or attacker does to a file."""

import struct
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

HEAD_BYTES: Final = 1800
HOSTILE_BYTES: Final = (0, 1, 0x7F, 0x80, 0xFF)
HOSTILE_WORDS: Final = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 65535)

Fault = Callable[[bytearray, int, np.random.Generator], None]


def flip(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at] ^= 1 << int(generator.integers(8))


def set_byte(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at] = int(generator.choice(HOSTILE_BYTES))


def set_word(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at : at + 4] = struct.pack(generator.choice(["<I", ">I"]), int(generator.choice(HOSTILE_WORDS)))


def insert(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at:at] = generator.bytes(int(generator.integers(1, 50)))


def delete(data: bytearray, at: int, generator: np.random.Generator) -> None:
    del data[at : at + int(generator.integers(1, 50))]


def double(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at:at] = data[at : at + int(generator.integers(1, 200))]


def truncate(data: bytearray, at: int, generator: np.random.Generator) -> None:
    del data[int(generator.integers(len(data))) :]


FAULTS: Final[tuple[Fault, ...]] = (flip, set_byte, set_word, insert, delete, double, truncate)


def damaged(
    data: bytes, generator: np.random.Generator, *, faults: Sequence[Fault] = FAULTS, head_bytes: int = HEAD_BYTES
) -> bytes:
    """One to three faults, seven of ten in the head of the file."""
    mutant = bytearray(data)
    for _ in range(int(generator.integers(1, 4))):
        if not mutant:
            break
        fault = faults[int(generator.integers(len(faults)))]
        reach = min(len(mutant), head_bytes) if generator.random() < 0.7 else len(mutant)
        fault(mutant, int(generator.integers(reach)), generator)
    return bytes(mutant)
