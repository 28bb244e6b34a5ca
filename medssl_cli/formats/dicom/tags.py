"""Numbers of the elements that are read, and kinds of objects: all that this project knows of the data dictionary."""

from typing import Final

SOP_CLASS: Final = 0x00080016
TRANSFER_SYNTAX: Final = 0x00020010
MEDIA_SOP_CLASS: Final = 0x00020002
MEDIA_SOP_INSTANCE: Final = 0x00020003
META_TAGS: Final = frozenset((MEDIA_SOP_CLASS, MEDIA_SOP_INSTANCE, TRANSFER_SYNTAX))

# Elements of PS3.6 by keyword: those of `Header`, then those of the allow-list and of frames.
TAGS: Final[dict[str, int]] = {
    "ImageType": 0x00080008,
    "SOPClassUID": SOP_CLASS,
    "SOPInstanceUID": 0x00080018,
    "SeriesDate": 0x00080021,
    "AcquisitionDate": 0x00080022,
    "SeriesTime": 0x00080031,
    "AcquisitionTime": 0x00080032,
    "Modality": 0x00080060,
    "Manufacturer": 0x00080070,
    "FrameType": 0x00089007,
    "PatientID": 0x00100020,
    "IssuerOfPatientID": 0x00100021,
    "PatientSex": 0x00100040,
    "PatientAge": 0x00101010,
    "PatientWeight": 0x00101030,
    "ContrastBolusAgent": 0x00180010,
    "BodyPartExamined": 0x00180015,
    "SliceThickness": 0x00180050,
    "KVP": 0x00180060,
    "RepetitionTime": 0x00180080,
    "EchoTime": 0x00180081,
    "InversionTime": 0x00180082,
    "EchoNumbers": 0x00180086,
    "MagneticFieldStrength": 0x00180087,
    "SpacingBetweenSlices": 0x00180088,
    "TriggerTime": 0x00181060,
    "RadiopharmaceuticalStartTime": 0x00181072,
    "RadionuclideTotalDose": 0x00181074,
    "RadionuclideHalfLife": 0x00181075,
    "RadiopharmaceuticalStartDateTime": 0x00181078,
    "EstimatedRadiographicMagnificationFactor": 0x00181114,
    "ImagerPixelSpacing": 0x00181164,
    "ConvolutionKernel": 0x00181210,
    "FlipAngle": 0x00181314,
    "ViewPosition": 0x00185101,
    "FrameAcquisitionDateTime": 0x00189074,
    "InversionTimes": 0x00189079,
    "EffectiveEchoTime": 0x00189082,
    "DiffusionBValue": 0x00189087,
    "DiffusionGradientOrientation": 0x00189089,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "AcquisitionNumber": 0x00200012,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "FrameOfReferenceUID": 0x00200052,
    "Laterality": 0x00200060,
    "ImageLaterality": 0x00200062,
    "TemporalPositionIdentifier": 0x00200100,
    "NumberOfTemporalPositions": 0x00200105,
    "StackID": 0x00209056,
    "InStackPositionNumber": 0x00209057,
    "FrameLaterality": 0x00209072,
    "TemporalPositionIndex": 0x00209128,
    "NominalCardiacTriggerDelayTime": 0x00209153,
    "FrameAcquisitionNumber": 0x00209156,
    "DimensionIndexValues": 0x00209157,
    "NominalPercentageOfCardiacPhase": 0x00209241,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "CorrectedImage": 0x00280051,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "BurnedInAnnotation": 0x00280301,
    "PixelSpacingCalibrationType": 0x00280A02,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "RescaleType": 0x00281054,
    "LossyImageCompression": 0x00282110,
    "LossyImageCompressionRatio": 0x00282112,
    "Units": 0x00541001,
    "SUVType": 0x00541006,
    "DecayCorrection": 0x00541102,
    "FrameReferenceTime": 0x00541300,
    "PresentationLUTShape": 0x20500020,
}
MODALITY_LUT: Final = 0x00283000
RADIOPHARMACEUTICAL: Final = 0x00540016
SHARED_GROUPS: Final = 0x52009229
FRAME_GROUPS: Final = 0x52009230

# Functional groups whose elements place, scale or order the frames: one item each (PS3.3 C.7.6.16.2).
PLACING_GROUPS: Final = frozenset(
    (
        0x00209111,  # frame content
        0x00209113,  # plane position
        0x00209116,  # plane orientation
        0x00289110,  # pixel measures
        0x00289145,  # pixel value transformation
    )
)

# Functional groups (PS3.3 C.7.6.16) whose elements are read, shared or per frame.
FUNCTIONAL_GROUPS: Final = frozenset(
    (
        0x00189112,  # MR timing and related parameters
        0x00189114,  # MR echo
        0x00189115,  # MR modifier
        0x00189117,  # MR diffusion
        0x00189118,  # cardiac synchronization
        0x00189226,  # MR image frame type
        0x00189314,  # CT reconstruction
        0x00189329,  # CT image frame type
        0x00189751,  # PET frame type
        0x00209071,  # frame anatomy
        0x00209170,  # unassigned shared converted attributes
        0x00209171,  # unassigned per-frame converted attributes
        *PLACING_GROUPS,
    )
)
GRADIENT_DIRECTION: Final = 0x00189076  # within MR diffusion
SEQUENCES: Final = (
    frozenset((MODALITY_LUT, RADIOPHARMACEUTICAL, SHARED_GROUPS, FRAME_GROUPS, GRADIENT_DIRECTION)) | FUNCTIONAL_GROUPS
)

# Private elements: creator as it begins, group, last byte of the element (PS3.5 7.8). Each is named in the docs.
PRIVATE: Final[dict[str, tuple[bytes, int, int]]] = {
    "siemens_mosaic_images": (b"SIEMENS MR HEADER", 0x0019, 0x0A),
    "siemens_b_value": (b"SIEMENS MR HEADER", 0x0019, 0x0C),
    "siemens_direction": (b"SIEMENS MR HEADER", 0x0019, 0x0E),
    "siemens_csa": (b"SIEMENS CSA HEADER", 0x0029, 0x10),
    "ge_direction_x": (b"GEMS_ACQU_01", 0x0019, 0xBB),
    "ge_direction_y": (b"GEMS_ACQU_01", 0x0019, 0xBC),
    "ge_direction_z": (b"GEMS_ACQU_01", 0x0019, 0xBD),
    "ge_locations": (b"GEMS_RELA_01", 0x0021, 0x4F),
    "ge_b_value": (b"GEMS_PARM_01", 0x0043, 0x39),
    "philips_b_value": (b"Philips Imaging DD 001", 0x2001, 0x03),
    "philips_scale_slope": (b"Philips MR Imaging DD 001", 0x2005, 0x0E),
    "philips_direction_x": (b"Philips MR Imaging DD 001", 0x2005, 0xB0),
    "philips_direction_y": (b"Philips MR Imaging DD 001", 0x2005, 0xB1),
    "philips_direction_z": (b"Philips MR Imaging DD 001", 0x2005, 0xB2),
    "philips_shared_item": (b"Philips MR Imaging DD 005", 0x2005, 0x0E),
    "philips_frame_item": (b"Philips MR Imaging DD 005", 0x2005, 0x0F),
    "philips_suv_factor": (b"Philips PET Private Group", 0x7053, 0x00),
}
PRIVATE_ITEMS: Final = ("philips_shared_item", "philips_frame_item")  # sequences with one item each
PRIVATE_BLOCKS: Final = range(0x10, 0x20)

_PRIVATE_TAGS: Final = frozenset(
    tag
    for name, (_, group, low) in PRIVATE.items()
    for block in PRIVATE_BLOCKS
    for tag in (group << 16 | block, group << 16 | block << 8 | low)
    if name not in PRIVATE_ITEMS
)
WANTED_TAGS: Final = (
    frozenset(TAGS.values()) | _PRIVATE_TAGS | {MODALITY_LUT, RADIOPHARMACEUTICAL, SHARED_GROUPS, FRAME_GROUPS}
)

# Elements of Philips, within the functional groups: sequences with one item, and what is read of it; other makers and
# other blocks may keep a plain value under the same number.
_PHILIPS_BLOCKS: Final = [0x2005 << 16 | block << 8 for block in PRIVATE_BLOCKS]
PRIVATE_SEQUENCES: Final = frozenset(block | low for block in _PHILIPS_BLOCKS for low in (0x0E, 0x0F))
_PRIVATE_CREATORS: Final = frozenset(0x2005 << 16 | block for block in PRIVATE_BLOCKS)
INNER_TAGS: Final = (
    frozenset(TAGS.values()) | FUNCTIONAL_GROUPS | {GRADIENT_DIRECTION} | PRIVATE_SEQUENCES | _PRIVATE_CREATORS
)

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
CT_IMAGE: Final = f"{_STORAGE}2"
MR_IMAGE: Final = f"{_STORAGE}4"
PET_IMAGE: Final = f"{_STORAGE}128"
SEGMENTATION: Final = f"{_STORAGE}66.4"
STRUCTURE_SET: Final = f"{_STORAGE}481.3"

# What Modality may say in objects of a class; the first is usual.
MODALITIES: Final[dict[str, tuple[str, ...]]] = {
    CT_IMAGE: ("CT",),
    MR_IMAGE: ("MR",),
    PET_IMAGE: ("PT",),
    f"{_STORAGE}1": ("CR", "DX", "RG"),
    f"{_STORAGE}1.1": ("DX", "CR"),
    f"{_STORAGE}1.1.1": ("DX", "CR"),
    f"{_STORAGE}1.2": ("MG",),
    f"{_STORAGE}1.2.1": ("MG",),
    f"{_STORAGE}12.1": ("XA",),
    f"{_STORAGE}12.2": ("RF", "XA"),
    f"{_STORAGE}6.1": ("US",),
    f"{_STORAGE}3.1": ("US",),
    f"{_STORAGE}2.1": ("CT",),
    f"{_STORAGE}2.2": ("CT",),
    f"{_STORAGE}4.1": ("MR",),
    f"{_STORAGE}4.3": ("MR",),
    f"{_STORAGE}4.4": ("MR",),
    f"{_STORAGE}130": ("PT",),
    f"{_STORAGE}128.1": ("PT",),
}
ENHANCED: Final = frozenset(f"{_STORAGE}{end}" for end in ("2.1", "2.2", "4.1", "4.3", "4.4", "130", "128.1"))
ENHANCED_PROJECTION: Final = frozenset(f"{_STORAGE}{end}" for end in ("12.1.1", "12.2.1"))
CINE: Final = frozenset(f"{_STORAGE}{end}" for end in ("3.1", "6.1", "12.1", "12.2"))
NUCLEAR_MEDICINE: Final = f"{_STORAGE}20"
SLICE_MODALITIES: Final = ("CT", "MR", "PT")
RADIOGRAPHS: Final = ("CR", "DX", "MG")
ONE_CAPTURE: Final = f"{_STORAGE}7"
SECONDARY_CAPTURE: Final = frozenset(f"{_STORAGE}7{end}" for end in ("", ".1", ".2", ".3", ".4"))
