"""What is agreed about caches: their versions, and the words that records use. Imports nothing."""

from typing import Final, Literal

FORMAT_VERSION: Final = 2
RECORD_VERSION: Final = 1
ALLOW_LIST_VERSION: Final = 1
Modality = Literal["CT", "MR", "PT", "CR", "DX", "MG", "US", "XA", "unknown"]


def check_label_set(name: str) -> str:
    """A label set's name is a short word, because it becomes part of a file name.

    Raises:
        ValueError: It is not.
    """
    if not (0 < len(name) <= 32 and name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
        raise ValueError("a label set's name is 1 to 32 letters, digits, - and _")
    return name
