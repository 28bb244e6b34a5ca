"""Named tensors in a file: the same tensors and words give the same bytes, and what comes back is checked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_LENGTH = 8


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file.

    The library writes several words of metadata in random order, so that equal files would have different digests. Here
    the header (8 bytes of its length, JSON padded with spaces to a multiple of 8) is written again with sorted words.

    Args:
        tensors: Tensors by name, of any device and layout.
        metadata: Words that say what they are.
    """
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    if not metadata:
        return data
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    words = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[_LENGTH:start])}
    header = json.dumps(words, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _LENGTH)
    return b"".join((len(header).to_bytes(_LENGTH, "little"), header, memoryview(data)[start:]))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file of unknown origin; they take no more memory than the file is large.

    Raises:
        ValueError: It is damaged, or something else.
    """
    if not path.is_file():
        raise ValueError("not a regular file")
    try:
        with safe_open(path, framework="pt") as opened:
            file: Any = opened
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError("no intact safetensors file") from error
