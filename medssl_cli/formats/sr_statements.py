"""What measurement reports say: the codes of their numbers and units, and statements of a structure, finding or box.

Codes are those of DICOM where it has one (PS3.16 CID 7464, 7469, 7180, 7181); units are of UCUM.
"""

from dataclasses import dataclass
from typing import Final

from medssl_cli.formats.anatomy_codes import PRIVATE_SCHEME, Code, StructureCode

VOLUME: Final[Code] = ("118565006", "SCT", "Volume")
DIAMETER: Final[Code] = ("81827009", "SCT", "Diameter")
LONG_AXIS: Final[Code] = ("103339001", "SCT", "Long axis")
SHORT_AXIS: Final[Code] = ("103340004", "SCT", "Short axis")
MEAN: Final[Code] = ("373098007", "SCT", "Mean")
STANDARD_DEVIATION: Final[Code] = ("386136009", "SCT", "Standard Deviation")
MINIMUM: Final[Code] = ("255605001", "SCT", "Minimum")
MAXIMUM: Final[Code] = ("56851009", "SCT", "Maximum")
NUM_PARTS: Final[Code] = ("parts", PRIVATE_SCHEME, "Number of connected parts")
PROBABILITY: Final[Code] = ("122157", "DCM", "Probability")
THRESHOLD: Final[Code] = ("threshold", PRIVATE_SCHEME, "Operating point")
MILLILITRE: Final[Code] = ("mL", "UCUM", "milliliter")
MILLIMETRE: Final[Code] = ("mm", "UCUM", "millimeter")
NO_UNITS: Final[Code] = ("1", "UCUM", "no units")
PRESENCE: Final[Code] = ("121052", "DCM", "Presence of property")
PRESENT: Final[Code] = ("52101004", "SCT", "Present")
ABSENT: Final[Code] = ("272519000", "SCT", "Absent")
CUT_OFF: Final[Code] = ("cut-off", PRIVATE_SCHEME, "Cut off at the edge of the image")
YES: Final[Code] = ("373066001", "SCT", "Yes")
NO: Final[Code] = ("373067005", "SCT", "No")
DERIVATION: Final = "121401"


def length_along(axis: int) -> Code:
    """The code of a size along an axis of the patient: 0 from right to left, 1 front to back, 2 top to bottom."""
    word, meaning = (("rl", "right to left"), ("ap", "front to back"), ("si", "top to bottom"))[axis]
    return f"extent-{word}", PRIVATE_SCHEME, f"Extent from {meaning}"


def place_towards(axis: int) -> Code:
    """The code of a coordinate of a centre of mass in the patient (LPS+), x, y or z."""
    word, meaning = (("x", "left"), ("y", "back"), ("z", "head"))[axis]
    return f"centre-{word}", PRIVATE_SCHEME, f"Center of mass {word}, towards the {meaning}"


@dataclass(frozen=True)
class Amount:
    """One number of a statement: what it is, its unit, and of many values which (mean, maximum ...)."""

    what: Code
    value: float
    unit: Code
    derivation: Code | None = None

    @property
    def stored(self) -> float:
        """Nine digits of it: a decimal string (DS) has room for 16 characters."""
        return float(f"{self.value:.9g}")


@dataclass(frozen=True)
class Statement:
    """What a report says about one structure, finding or box.

    Args:
        name: Name of the class.
        code: What it is.
        amounts: Its numbers.
        is_present: Whether it is there, where the model says so.
        is_cut_off: Whether it reaches the edge of the image, so that there is more of it than was measured.
        segment: Number of its segment in the segmentation that the report names.
        box_mm: Low and high corner of a box in RAS+ millimetres.
        box_pixels: Low and high corner (x, y) of a box in pixel edges of the first slice.
    """

    name: str
    code: StructureCode
    amounts: tuple[Amount, ...] = ()
    is_present: bool | None = None
    is_cut_off: bool | None = None
    segment: int | None = None
    box_mm: tuple[float, ...] | None = None
    box_pixels: tuple[float, ...] | None = None

    @property
    def finding(self) -> Code:
        """The code of what was found; a private one, which says the name, where none is known."""
        return self.code.type
