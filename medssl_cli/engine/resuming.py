"""Whether a command may go on with a run that an earlier one began, and what has changed since.

What decides what is learnt must be the same, and is named where it is not. How often a training writes and who reads
for it may change. It may become longer: everything that depends on the share of the training that is done, such as
the learning rate, then follows the new length from where the run is.
"""

from collections.abc import Mapping
from typing import Any, Final

OPERATIONAL: Final = frozenset({"log_every", "checkpoint_every", "health_every", "data.num_workers"})
"""Keys of a recipe that change nothing that is learnt."""
LENGTHS: Final = frozenset({"steps", "max_minutes"})
"""May grow."""
SINCE: Final = {"init": "encoder_sha256"}
"""Arguments of a manifest that earlier versions did not write, and what they wrote that says enough."""
SHOWN: Final = 4
Change = tuple[Any, Any]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, Change]:
    """Keys at which two documents differ, dotted, with the old and the new value; None where one has no such key."""
    found: dict[str, Change] = {}
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = (before, after)
    return found


def recipe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Change]:
    """Changes of a recipe that matter."""
    return {key: change for key, change in differences(old, new).items() if key not in OPERATIONAL}


def argument_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Change]:
    """Changes of a manifest's arguments that matter."""
    new_keys = {key for key, known in SINCE.items() if key not in old and known in old}
    return differences(old, {key: value for key, value in new.items() if key not in new_keys})


def longer(changes: Mapping[str, Change]) -> dict[str, Change]:
    """Changes that make a training longer."""
    return {key: (old, new) for key, (old, new) in changes.items()
            if key in LENGTHS and old is not None and new is not None and new > old}  # fmt: skip


def described(changes: Mapping[str, Change]) -> str:
    """Changes for a message: `data.batch_size 2 -> 4`."""
    shown = [f"{key} {_short(old)} -> {_short(new)}" for key, (old, new) in list(changes.items())[:SHOWN]]
    more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return ", ".join(shown) + more


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = "true" if value is True else "false" if value is False else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
