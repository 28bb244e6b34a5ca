"""What an answer says, one structure, finding or box at a time: the statements of a DICOM measurement report."""

from collections.abc import Mapping
from typing import Final

from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.candidates import CANDIDATES
from medssl_cli.deploy.class_words import class_code
from medssl_cli.deploy.whole_answers import WholeAnswer
from medssl_cli.formats.anatomy_codes import PRIVATE_SCHEME, Code
from medssl_cli.formats.sr_statements import (
    DIAMETER,
    LONG_AXIS,
    MAXIMUM,
    MEAN,
    MILLILITRE,
    MILLIMETRE,
    MINIMUM,
    NO_UNITS,
    NUM_PARTS,
    PROBABILITY,
    SHORT_AXIS,
    STANDARD_DEVIATION,
    THRESHOLD,
    VOLUME,
    Amount,
    Statement,
    length_along,
    place_towards,
)
from medssl_cli.imaging.measuring import Measurement
from medssl_cli.imaging.volume import Volume

_ARBITRARY: Final[Code] = ("[arb'U]", "UCUM", "arbitrary unit")
_VALUES: Final[dict[str, tuple[Code, Code]]] = {
    "HU": (("112031", "DCM", "Attenuation Coefficient"), ("[hnsf'U]", "UCUM", "Hounsfield unit")),
    "SUVbw": (
        ("126401", "DCM", "SUVbw"),
        ("g/ml{SUVbw}", "UCUM", "Standardized Uptake Value body weight"),
    ),
    "Bq/ml": (("110821", "DCM", "Nuclear Medicine Tomographic Activity"), ("Bq/ml", "UCUM", "Becquerels/milliliter")),
}
"""What the values of a scan are, and their unit, by its units. (PS3.16 CID 7180, 7181)"""
_MR_SIGNAL: Final[Code] = ("110852", "DCM", "MR signal intensity")
_OTHER_SIGNAL: Final[Code] = ("pixel-value", PRIVATE_SCHEME, "Pixel value")


def of_masks(
    measurements: Mapping[int, Measurement],
    scan: Volume,
    classes: Mapping[int, str],
    bundle: Bundle,
    *,
    has_segments: bool,
) -> list[Statement]:
    """What is measured of every class or region; of one that was not found that its volume is none.

    Args:
        measurements: By label, or by place of the region from 1 on.
        scan: The scan that was measured.
        classes: Names by value, or by place from 1 on.
        bundle: Bundle of the model.
        has_segments: A segmentation was made, which lists classes up to the last that was found; if none was, all.
    """
    last = max(measurements, default=0) or max(classes)
    return [
        Statement(
            name,
            class_code(bundle, name),
            _amounts(measurements[value], scan) if value in measurements else (Amount(VOLUME, 0.0, MILLILITRE),),
            is_cut_off=bool(measurements[value].cut_off) if value in measurements else None,
            segment=value if has_segments and value <= last else None,
        )
        for value, name in sorted(classes.items())
    ]


def _amounts(found: Measurement, scan: Volume) -> tuple[Amount, ...]:
    """The numbers of one class."""
    own = _MR_SIGNAL if scan.modality == "MR" else _OTHER_SIGNAL
    what, unit = _VALUES.get(scan.units, (own, _ARBITRARY))
    values = (
        (MEAN, found.mean), (STANDARD_DEVIATION, found.sd), (MINIMUM, found.minimum), (MAXIMUM, found.maximum),
    )  # fmt: skip
    lengths = (
        (LONG_AXIS, found.long_axis_mm),
        (SHORT_AXIS, found.short_axis_mm),
        *zip(map(length_along, range(3)), found.extent_mm, strict=True),
        *zip(map(place_towards, range(3)), (-found.centre_mm[0], -found.centre_mm[1], found.centre_mm[2]), strict=True),
    )
    return (
        Amount(VOLUME, found.volume_ml, MILLILITRE),
        *(Amount(what, value, unit, derivation) for derivation, value in values),
        *(Amount(each, value, MILLIMETRE) for each, value in lengths),
        Amount(NUM_PARTS, found.parts, NO_UNITS),
    )


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
