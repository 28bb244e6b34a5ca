"""What an answer says, one structure, finding or box at a time: the statements of a DICOM measurement report."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.candidates import CANDIDATES
from medssl_cli.deploy.class_words import class_code
from medssl_cli.deploy.outputs import volumes_ml
from medssl_cli.deploy.whole_answers import WholeAnswer
from medssl_cli.formats.dicom_sr import (
    DIAMETER,
    MILLILITRE,
    MILLIMETRE,
    NO_UNITS,
    PROBABILITY,
    THRESHOLD,
    VOLUME,
    Amount,
    Statement,
)
from medssl_cli.imaging.geometry import Affine


def of_masks(
    answer: NDArray[np.uint8], affine: Affine, classes: Mapping[int, str], bundle: Bundle, *, has_segments: bool
) -> list[Statement]:
    """The volume of every class or region.

    Args:
        answer: Label map `[X, Y, Z]`, or masks of regions `[K, X, Y, Z]`.
        affine: Affine of its grid.
        classes: Names by value, or by place from 1 on.
        bundle: Bundle of the model.
        has_segments: A segmentation was made, which lists classes up to the last that was found; if none was, all.
    """
    found = (
        [int(answer.max())] if answer.ndim == 3 else [place for place, mask in enumerate(answer, start=1) if mask.any()]
    )
    last = max(found, default=0) or max(classes)
    volumes = volumes_ml(answer, affine, classes)
    return [
        Statement(
            name,
            class_code(bundle, name),
            (Amount(VOLUME, volumes[name], MILLILITRE),),
            segment=value if has_segments and value <= last else None,
        )
        for value, name in sorted(classes.items())
    ]


def of_whole(answer: WholeAnswer, bundle: Bundle) -> list[Statement]:
    """Every finding with its probability; or every box, and of each class without any that it was not found."""
    if answer.findings:
        return [
            Statement(
                name,
                class_code(bundle, name),
                _scored(answer, name, score),
                is_present=score >= answer.thresholds[name] if name in answer.thresholds else None,
            )
            for name, score in answer.findings.items()
        ]
    is_volume = answer.head == CANDIDATES
    said = []
    for box in answer.boxes:
        size = () if box.diameter_mm is None else (Amount(DIAMETER, box.diameter_mm, MILLIMETRE),)
        said.append(
            Statement(
                box.name,
                class_code(bundle, box.name),
                (*_scored(answer, box.name, box.score), *size),
                is_present=box.is_yes,
                box_mm=box.corners if is_volume else None,
                box_pixels=None if is_volume else box.corners,
            )
        )
    with_boxes = {box.name for box in answer.boxes}
    names = getattr(bundle.head, "names", ())
    absent = [name for name in names if name not in with_boxes]
    return said + [Statement(name, class_code(bundle, name), is_present=False) for name in absent]


def _scored(answer: WholeAnswer, name: str, score: float) -> tuple[Amount, ...]:
    """A probability, and the operating point if the model has one."""
    scored = Amount(PROBABILITY, score, NO_UNITS)
    if name not in answer.thresholds:
        return (scored,)
    return scored, Amount(THRESHOLD, answer.thresholds[name], NO_UNITS)
