"""What a site accepts beyond the strict default, and which repairs it has asked for."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Policy:
    """Rules for every reader of an ingest. The defaults refuse; each departure is recorded in item and report.

    Args:
        gaps: What to do with missing slices: interpolate the missing positions linearly (`E_MISSING_SLICES`), and take
            what is left of a series of which files were refused (`E_INCOMPLETE_SERIES`).
        tilt: What to do with a leaning stack (`E_GANTRY_TILT`): resample onto an upright grid.
        shear: What to do with non-orthogonal axes of NIfTI, NRRD and MetaImage (`E_AFFINE_SHEAR`): resample.
        nifti_affine: Which affine counts where the two of a NIfTI file disagree (`E_SFORM_QFORM_CONFLICT`).
        assume_orientation: Three letters, e.g. "RAS": towards which sides the voxel axes of an image run that does
            not say so (`E_NO_ORIENTATION`).
        nonfinite: What to do with NaN and infinite voxels (`E_NONFINITE_VOXELS`): give them the image's minimum.
        split_4d: Store each 3D image of a 4D file as an item (`E_4D_INPUT`).
        min_slices: Fewest slices that make a volume (`E_TOO_FEW_SLICES`).
        burned_in: Pictures that may carry writing. None: the rule of each kind of image (X-rays with a warning,
            ultrasound and angiography refused, pictures without a DICOM header refused until this is given);
            "refuse": whatever does not say that it is free of it; "accept": what may be free of it; "accept-risk":
            everything, ultrasound, angiography and secondary captures of X-rays included.
        allow_headerless: Try files without the DICOM signature that look like a bare data set.
        allow_detached: Read `.nhdr` and `.mhd` whose data lie in another file of the same folder.
        keep_demographics: Store sex, and age in steps of five years.
        max_volume_bytes: Decoded size of one image.
        predictions: Take masks and segmentations that `medssl infer` wrote, as labels (`S_PREDICTION`).
        stack_pictures: Take the numbered pictures of a folder as slices of one volume (`W_PICTURE_SLICE`).
    """

    gaps: Literal["refuse", "interpolate"] = "refuse"
    tilt: Literal["refuse", "resample"] = "refuse"
    shear: Literal["refuse", "resample"] = "refuse"
    nifti_affine: Literal["agree", "sform", "qform"] = "agree"
    assume_orientation: str | None = None
    nonfinite: Literal["refuse", "background"] = "refuse"
    split_4d: bool = False
    min_slices: int = 4
    burned_in: Literal["refuse", "accept", "accept-risk"] | None = None
    allow_headerless: bool = False
    allow_detached: bool = False
    keep_demographics: bool = False
    max_volume_bytes: int = 8 * 2**30
    predictions: bool = False
    stack_pictures: bool = False

    @property
    def departures(self) -> dict[str, Any]:
        """Fields that are not at their defaults, for the report."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


STRICT = Policy()
