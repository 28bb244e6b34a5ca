"""Every failure a user can meet: its stable code, what it means, what to do, and the exit code it leads to.

Codes are append-only and never change their meaning. `E_` refuses, `W_` accepts with a note, `S_` skips by rule.
"""

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    BUG = 1
    USAGE = 2
    PARTIAL = 3
    NOTHING = 4
    GATE = 5
    IO = 74
    INTERRUPTED = 75
    CTRL_C = 130


CODES: Final[dict[str, str]] = {
    # Recipes, options, plugins
    "E_USAGE": "An option or argument cannot be used as given",
    "E_RECIPE": "A recipe has unknown keys, wrong types or impossible values",
    "E_RECIPE_NOT_FOUND": "No recipe of that name or path",
    "E_RECIPE_CHANGED": "The run directory was started with another recipe or other data",
    "E_UNKNOWN_NAME": "No method, task or backbone of that name",
    "E_NOT_FOUND": "A path that the command needs does not exist",
    "E_OUTPUT_EXISTS": "The output exists already and differs",
    # Cache and store
    "E_NO_CACHE": "The folder is not a medssl cache",
    "E_CACHE_VERSION": "The cache was written by a newer medssl",
    "E_CACHE_CORRUPT": "A stored file does not match its recorded SHA-256",
    "E_CACHE_EMPTY": "The cache holds nothing that the command could use",
    "E_NO_LABELS": "The cache holds no labels of the set that the task asks for",
    "E_TOO_FEW_PATIENTS": "Too few patients to split",
    "E_SPLIT_LEAK": "The model has seen patients of the split that it would be evaluated on",
    "W_SPLIT_LEAK": "Pre-training has seen images (not labels) of test patients",
    "E_IO": "Reading or writing failed: disk full, read-only or damaged",
    "E_KEY": "The site key is missing, damaged or another one than the cache was made with",
    "W_EPHEMERAL_KEY": "The cache has a key of its own: patients cannot be linked with other caches",
    "E_PRIVACY": "The audit found something in the cache that the allow-list does not allow",
    "W_NEAR_DUPLICATE": "Two images are nearly the same; if they belong to different patients, one identity is wrong",
    "W_SUPERSEDED": "Two versions of this series are in the cache; only the larger one is used",
    "E_FORGOTTEN": "The patient was removed from this cache on request and is not taken again",
    # Discovery
    "S_NOT_AN_IMAGE": "Not an image: no known signature",
    "S_NON_IMAGE": "A DICOM object that holds no image (report, structure set, presentation state)",
    "S_LOCALIZER": "A localizer (scout) image",
    "S_SECONDARY_CAPTURE": "A screenshot or other secondary capture",
    "S_UNSUPPORTED_MODALITY": "An image of a modality that this version does not take",
    "S_SPECIAL_FILE": "Not a regular file (pipe, socket, device)",
    "S_LINK_OUTSIDE": "A symbolic link that leaves the input folder or leads nowhere",
    "S_ARCHIVE": "An archive; unpack it first",
    "S_DERIVED": "A derived image (projection, subtraction, reformatted)",
    "E_ARCHIVE": "The archive cannot be read",
    "E_ARCHIVE_CRC": "A member of the archive is damaged",
    "E_ARCHIVE_ENCRYPTED": "The archive is encrypted",
    "E_ARCHIVE_OVERLAP": "Members of the archive overlap: it was made to deceive",
    "E_ARCHIVE_BOMB": "The archive unpacks to more than the limit",
    "E_NESTED_ARCHIVE": "An archive inside an archive",
    "S_SIDECAR": "A file that describes a data set and holds no image",
    "E_PERMISSION": "The file cannot be read with the permissions of this user",
    "E_CHANGED_DURING_READ": "The file changed while it was read",
    # Parsing
    "E_DICOM_PARSE": "The file says it is DICOM and cannot be parsed",
    "E_TRUNCATED": "The file ends before its data do",
    "E_DICOM_DEPTH": "The data set is nested deeper than the limit",
    "E_DICOM_TOO_BIG": "The data set has more elements or a longer header than the limit",
    "E_DICOM_LENGTH": "An element claims to be longer than the file",
    "E_DEFLATE_BOMB": "The deflated data set unpacks to more than the limit",
    "W_PREAMBLE_NONZERO": "The 128 bytes before the DICOM signature are not empty; they were not read",
    "E_PIXEL_LENGTH": "The pixel data are longer or shorter than the header says",
    "E_PIXEL_DECODE": "The pixel data cannot be decoded",
    "E_CODESTREAM_MISMATCH": "The compressed image and the DICOM header disagree on size, precision or sign",
    "E_DECODER_CRASH": "The decoder process died or hung on this series",
    "E_TOO_BIG": "The image is larger than the limit",
    "E_PHOTOMETRIC": "Colour, palette or an unknown photometric interpretation",
    "E_VALUE_INVALID": "A header value that the geometry or the pixel scale needs is not a finite number",
    "E_ENHANCED_UNSUPPORTED": "Enhanced multi-frame DICOM is not supported yet",
    "E_MOSAIC_UNSUPPORTED": "Siemens mosaics are not supported yet",
    "E_DEFLATED": "Deflated DICOM is not supported yet",
    "E_NIFTI_HEADER": "The NIfTI header is not valid",
    "E_NIFTI_DIMS": "The dimensions of the NIfTI file are impossible",
    "E_NRRD_HEADER": "The NRRD header is not valid or not supported",
    "E_METAIMAGE_HEADER": "The MetaImage header is not valid or not supported",
    "E_DETACHED_DATA": "The voxels lie in another file",
    "E_PICTURE_PARSE": "The picture cannot be read",
    "E_4D_INPUT": "The image has more than three dimensions",
    "E_DATATYPE": "Complex, colour or other voxel types that cannot be used",
    "E_SCALE": "An impossible intensity scale factor",
    "E_NONFINITE_VOXELS": "The image holds NaN or infinite voxels",
    "E_GZ_CRC": "The gzip stream is damaged: checksum or length do not match",
    "E_GZ_TRUNCATED": "The gzip stream ends too early",
    "E_GZ_TRAILING": "Bytes follow the gzip stream",
    "E_GZ_BOMB": "The gzip stream unpacks to more than the header announces",
    "W_SCL_IGNORED": "An intercept without a slope in the NIfTI header was ignored",
    "W_EXTENSION_MISMATCH": "File name and content disagree about compression",
    # Geometry
    "E_GEOM_MISSING": "Position, orientation or spacing is missing",
    "E_TOO_FEW_SLICES": "Fewer than four slices do not make a volume",
    "E_MISSING_SLICES": "Slices are missing: some gaps are multiples of the spacing",
    "E_SPACING_NOT_UNIFORM": "The distance between slices changes",
    "E_SPACING_INVALID": "A voxel spacing is zero, negative or not finite",
    "E_GANTRY_TILT": "The slices are stacked at an angle (gantry tilt)",
    "E_PIXEL_SPACING_VARIES": "The pixel spacing differs between slices",
    "E_MATRIX_VARIES": "The image matrix differs between slices",
    "E_ORIENTATION_VARIES": "The slice orientation differs within the series",
    "E_IOP_NOT_ORTHONORMAL": "The direction cosines are not orthonormal",
    "E_FRAME_OF_REFERENCE_VARIES": "The frame of reference differs within the series",
    "E_DUP_POSITION": "Several slices share a position and nothing tells them apart consistently",
    "E_DUP_SOP_CONFLICT": "The same SOP Instance UID occurs with different bytes",
    "E_PATIENT_MIX": "One series carries several patient identities",
    "E_GEOMETRY_INEXACT": "The slices do not fit one affine within tolerance",
    "E_NO_ORIENTATION": "The file does not say how the image lies in the patient",
    "E_AFFINE_INVALID": "The affine is singular or not finite",
    "E_PIXDIM_MISMATCH": "Voxel sizes and affine disagree",
    "E_SFORM_QFORM_CONFLICT": "The two affines of the NIfTI file disagree",
    "E_AFFINE_SHEAR": "The axes of the image are not orthogonal",
    "W_AFFINE_ORTHONORMALISED": "A negligible shear was removed from the affine",
    "W_SLICE_JITTER": "Slice positions deviate a little from one affine",
    "W_INSTANCE_GAP": "Instance numbers have gaps: the first or last slices may be missing",
    "W_SPLIT_BY_INSTANCE": "Only instance numbers tell the time points or directions of this series apart",
    "E_INCOMPLETE_SERIES": "Fewer instances arrived than the series has",
    "E_NO_PATIENT_GEOMETRY": "An image of this kind has no place in the patient that could be trusted",
    # Meaning of the pixels
    "W_HU_IMPLAUSIBLE": "CT values are outside of what Hounsfield units allow",
    "W_HIGH_BITS": "Bits above BitsStored were set and masked",
    "W_LOSSY": "The image was compressed with loss",
    "W_CONSTANT_IMAGE": "All voxels have the same value",
    "E_BURNED_IN": "The header says that annotations are burned into the picture",
    "W_BURNED_IN_UNKNOWN": "The header does not say whether writing is burned into the picture",
    "W_SUV_UNAVAILABLE": "A header element that the standardised uptake value needs is missing; values stay in Bq/ml",
    "W_DERIVED": "A derived image was accepted",
    "W_UNKNOWN_MODALITY": "The modality is not known",
    "W_NO_PATIENT_KEY": "No patient identity: grouped by study or file instead",
    # Labels
    "E_LABEL_GRID_MISMATCH": "Label and image do not lie on the same grid",
    "E_LABEL_VALUES": "The label is not a map of small whole numbers, or has undeclared classes",
    "E_LABEL_WITHOUT_IMAGE": "No image belongs to this label",
    "E_LABEL_CONFLICT": "The item has another label of the same set already",
    "E_LABEL_FORMAT": "The file of labels cannot be read as what it says it is",
    "E_CONTOUR": "Contours do not lie on the slices of their series",
    "E_SEGMENT_OVERLAP": "Structures overlap; a label map holds one class per voxel",
    "W_LABEL_UNMATCHED": "Some rows of a table of labels name no image of the input",
    "W_EMPTY_LABEL": "The label marks no voxel",
    # A PACS
    "E_PACS": "The PACS cannot be reached or answers with an error",
    "E_PACS_BUSY": "The PACS is busy or failing; what is retrieved is kept",
    "E_PACS_DENIED": "The PACS refused the credentials",
    "E_INCOMPLETE_RETRIEVE": "Not all instances of the series arrived",
    "E_UID_MISMATCH": "The PACS sent an instance of another study or series than was asked for",
    # Training, export, inference
    "E_DIVERGED": "The loss is not a finite number",
    "E_CHECKPOINT_CORRUPT": "No checkpoint of the run is intact",
    "W_CHECKPOINT_FALLBACK": "The last checkpoint is damaged; the one before it was used",
    "E_WEIGHTS_MISMATCH": "The weights do not fit the network",
    "E_CANVAS": "Crop size, grid and image size do not fit together",
    "E_NO_RUN": "The folder is not a medssl run",
    "E_RUN_UNFINISHED": "The run has no checkpoint that could be used",
    "E_PARITY": "The exported model does not give the trained model's answers",
    "E_NO_MODEL": "No installed model of that name",
    "E_MODEL_INVALID": "The ONNX file is not a medssl model",
    "E_RUNTIME": "ONNX Runtime failed while it computed",
    "E_MODEL_CORRUPT": "The ONNX file does not match its recorded SHA-256",
    "E_MODALITY_MISMATCH": "The image is of another modality than the model was trained on",
    "E_DEVICE": "The requested device is not available",
    "E_GATE_DICE": "The Dice is below the required minimum",
    "E_OUTPUT_CHECK": "The written mask does not read back identically",
    "W_SEG_NOT_WRITTEN": "The series' headers do not allow a DICOM SEG; the NIfTI mask was written",
    "W_EMPTY_SEGMENTATION": "The model found none of its structures",
    "E_INTERRUPTED": "Stopped cleanly on request; run the same command again to go on",
    "E_NOTHING_USABLE": "Nothing in the input could be used",
    "E_WORKER_CRASH": "A worker process died",
    "E_WORKER_OOM": "A worker ran out of memory on this input",
    "E_CLUSTER": "The cluster cannot be reached or lost its workers",
    "W_LIB": "A library warned; its words are not repeated because they may quote the input",
    "E_DEMO_STEP": "A command of the demo failed",
}


class MedsslError(Exception):
    """A failure that the user can act on.

    Args:
        code: A key of `CODES`.
        message: What happened and where, with numbers; never a patient's data or a path of the source.
        hint: What to do about it.

    Raises:
        KeyError: The code is not registered.
    """

    exit_code: Exit = Exit.BUG

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        if code not in CODES:
            raise KeyError(f"unregistered code {code}")
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.message, self.hint)


def _rebuild(kind: "type[MedsslError]", code: str, message: str, hint: str) -> "MedsslError":
    return kind(code, message, hint=hint)


class UsageError(MedsslError):
    """A wrong option, argument or recipe."""

    exit_code = Exit.USAGE


class InputError(MedsslError):
    """One input cannot be trusted; others may be fine."""

    exit_code = Exit.PARTIAL


class NothingUsableError(MedsslError):
    """There is nothing to work on."""

    exit_code = Exit.NOTHING


class GateError(MedsslError):
    """A check that must hold does not."""

    exit_code = Exit.GATE


class StorageError(MedsslError):
    """The disk or the network refused."""

    exit_code = Exit.IO


class InterruptedCleanlyError(MedsslError):
    """The work was stopped by a signal, its state is saved."""

    exit_code = Exit.INTERRUPTED
