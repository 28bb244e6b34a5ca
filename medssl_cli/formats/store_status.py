"""What the status of an object that a node has not stored says. (PS3.4 table B.2-1, PS3.7 annex C)"""

from typing import Final

NO_SUCH_CLASS: Final = 0x0122
"""SOP Class not supported."""


def is_for_good(status: int) -> bool:
    """Whether the same object would be refused again: its kind is not taken, or it is not understood.

    A7xx is no such answer: the node is out of resources, and has them again some day.
    """
    return status == NO_SUCH_CLASS or 0xA900 <= status <= 0xA9FF or 0xC000 <= status <= 0xCFFF
