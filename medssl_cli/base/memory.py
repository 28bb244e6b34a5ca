"""How a lack of memory is known, whichever library met it."""

from typing import Final

from medssl_cli.base.errors import StorageError

_WORDS: Final = ("out of memory", "tried to allocate", "allocate memory", "bad_alloc", "alloc_failed")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory: Python's own, or that of torch, on the CPU and on a GPU."""
    is_named = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
    return isinstance(error, MemoryError) or is_named


def out_of_memory() -> StorageError:
    """The refusal of a command that has met such an error."""
    return StorageError("E_MEMORY", "there is not enough memory for this")
