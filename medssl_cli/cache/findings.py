"""What the findings of an image say about a class that is made of them: present, absent, or nobody knows."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.items import ItemRecord

Definition = Literal["any", "none"] | tuple[str, ...]
"""A class is there if any finding of the set is, if none is, or if any of those named is."""
PRESENT_FROM: Final = 0.5
NOTHING: Final = ("nofinding", "nofindings")
"""Columns of this name, as in CheXpert, say that nothing was found."""


def finding_names(records: Sequence[ItemRecord], label_set: str) -> list[str]:
    """Every finding that some item of a set has been asked about; "No Finding" is none."""
    names = {name for record in records for name in record.findings.get(label_set, {})}
    return sorted(name for name in names if not _is_nothing(name))


def _is_nothing(name: str) -> bool:
    return "".join(filter(str.isalpha, name.lower())) in NOTHING


def is_there(findings: Mapping[str, float], definition: Definition, names: Sequence[str]) -> bool | None:
    """Whether an image shows a class. None if no finding of it is there and not all of them are known.

    Args:
        findings: Findings of the image; 1 present, 0 absent, between them a probability.
        definition: Definition of the class.
        names: All findings of the set.
    """
    wanted = names if isinstance(definition, str) else definition
    known = [findings[name] >= PRESENT_FROM for name in wanted if name in findings]
    is_healthy = any(value >= PRESENT_FROM for name, value in findings.items() if _is_nothing(name))
    is_all_known = is_healthy or (bool(known) and len(known) == len(wanted))
    found = True if any(known) else False if is_all_known else None
    return not found if definition == "none" and found is not None else found


def targets_of(
    records: Sequence[ItemRecord],
    label_set: str,
    classes: Mapping[str, Definition],
    names: Sequence[str],
    *,
    is_exclusive: bool = False,
) -> NDArray[np.float32]:
    """What is known about each image: `[N, K]`, 1 present, 0 absent, NaN unknown.

    Args:
        records: Records of the images.
        label_set: Name of the set of the findings.
        classes: Definitions by name, K.
        names: All findings of the set.
        is_exclusive: An image that does not show exactly one of the classes is unknown altogether.
    """
    rows = [
        [is_there(record.findings.get(label_set, {}), definition, names) for definition in classes.values()]
        for record in records
    ]
    targets = np.array(
        [[np.nan if value is None else float(value) for value in row] for row in rows], dtype=np.float32
    ).reshape(len(records), len(classes))
    if is_exclusive:
        targets[~(targets.sum(axis=1) == 1)] = np.nan
    return targets
