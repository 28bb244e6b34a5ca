"""A second, trusting derivation of an image from DICOM files: attributes of pydicom and a few lines of algebra."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import RLELossless

from medssl_cli.formats.dicom import SeriesPart
from medssl_cli.formats.loaded import LoadedImage

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
Array = NDArray[Any]


class UnderivableError(Exception):
    """pydicom cannot read what was accepted; there is nothing to compare with."""


@dataclass(frozen=True)
class Plane:
    """One slice as its own header places it.

    Args:
        values: `[X, Y]` scaled.
        corners: `[4, 3]` RAS mm of pixels (0, 0), (X - 1, 0), (0, Y - 1), (X - 1, Y - 1); None for a projection.
        spacing: Between columns and between rows.
    """

    values: Array
    corners: Array | None
    spacing: tuple[float, float] | None


def check(image: LoadedImage, part: SeriesPart) -> None:
    """Voxels and their places are those of the second derivation.

    Raises:
        AssertionError: They are not.
        UnderivableError: There is none.
    """
    planes = [_plane(header.source, header.frame, header.tile is not None) for header in part.headers]
    if part.headers[0].tile is not None:
        return check_mosaic(image, part.headers[0].source)
    voxels, affine = image.volume.voxels[0], image.volume.affine
    assert voxels.shape == (*planes[0].values.shape, len(planes)), "shape"
    columns, rows = voxels.shape[0] - 1, voxels.shape[1] - 1
    factor = _suv_factor(_read(part.headers[0].source)) if image.volume.units == "SUVbw" else 1.0
    for k, plane in enumerate(planes):
        expected = plane.values * factor
        if image.inverted:
            expected = _inverted(expected, _read(part.headers[k].source))
        assert np.allclose(voxels[..., k], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max()), "values"
        if plane.corners is None:
            if image.spacing_kind != "unknown":
                assert np.allclose(np.diag(affine)[:2], plane.spacing), "spacing"
            continue
        index = np.array([(i, j, k, 1.0) for j in (0, rows) for i in (0, columns)])
        limit = min(0.1, 0.05 * np.linalg.norm(affine[:3, :3], axis=0).min())
        assert np.linalg.norm((index @ affine.T)[:, :3] - plane.corners, axis=1).max() <= limit, "place"
    return None


def check_mosaic(image: LoadedImage, path: Path) -> None:
    """nibabel's reading of a mosaic puts the same value at the same place."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing it warns
            from nibabel.nicom.csareader import read
            from nibabel.nicom.dicomwrappers import MosaicWrapper

            dataset = _read(path)
            csa = read(dataset.private_block(0x29, "SIEMENS CSA HEADER")[0x10].value)
            count = csa["tags"]["NumberOfImagesInMosaic"]["items"]
            count[0] = int(count[0])
            wrapper = MosaicWrapper(dataset, csa)
            values, lps = wrapper.get_data(), wrapper.affine
    except Exception as error:
        raise UnderivableError(type(error).__name__) from error
    to_index = np.linalg.inv(image.volume.affine) @ np.diag([-1, -1, 1, 1]) @ lps
    places = np.array(np.meshgrid(*map(range, values.shape), [1], indexing="ij")).reshape(4, -1)
    found = (to_index @ places)[:3]
    nearest = np.rint(found).astype(int)
    edges = np.linalg.norm(image.volume.affine[:3, :3], axis=0)
    assert (np.abs(found - nearest) * edges[:, None]).max() <= min(0.1, 0.05 * edges.min()), "place"
    assert image.volume.shape == (values.shape[1], values.shape[0], values.shape[2]), "shape"
    assert np.allclose(image.volume.voxels[0][tuple(nearest)], values.reshape(-1), rtol=1e-6), "values"


def _plane(path: Path, frame: int, is_mosaic: bool) -> Plane:
    if is_mosaic:
        return Plane(np.zeros((1, 1)), None, None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _derived(_read(path), frame)
    except Exception as error:
        raise UnderivableError(type(error).__name__) from error


def _read(path: Path) -> Dataset:
    """From memory: a length that lies then costs nothing."""
    return pydicom.dcmread(io.BytesIO(path.read_bytes()))


def _derived(dataset: Dataset, frame: int) -> Plane:
    groups = [dataset]
    if "PerFrameFunctionalGroupsSequence" in dataset:
        own = dataset.PerFrameFunctionalGroupsSequence[frame]
        groups = [item for group in (own, *dataset.SharedFunctionalGroupsSequence[:1]) for item in _items(group)]
    words = _words(dataset)
    stored = words if words.ndim == 2 else words[frame]
    slope, intercept = _of(groups, "RescaleSlope", 1), _of(groups, "RescaleIntercept", 0)
    values = stored.T.astype(np.float64) * float(slope) + float(intercept)
    philips = dataset.get_private_item(0x2005, 0x0E, "Philips MR Imaging DD 001").value if _is_philips(dataset) else 0
    if dataset.Modality == "MR" and philips > 0:
        values /= float(slope) * philips
    spacing = _of(groups, "PixelSpacing", None)
    place = _of(groups, "ImagePositionPatient", None)
    if place is None:
        spacing = spacing or dataset.get("ImagerPixelSpacing")
        return Plane(values, None, (float(spacing[1]), float(spacing[0])) if spacing else None)
    cosines = np.array(_of(groups, "ImageOrientationPatient", None), dtype=np.float64)
    step_x, step_y = cosines[:3] * float(spacing[1]), cosines[3:] * float(spacing[0])
    last_x, last_y = values.shape[0] - 1, values.shape[1] - 1
    corners = [np.array(place, dtype=np.float64) + i * step_x + j * step_y for j in (0, last_y) for i in (0, last_x)]
    return Plane(values, np.array(corners) @ LPS_TO_RAS, (float(spacing[1]), float(spacing[0])))


def _words(dataset: Dataset) -> Array:
    """Stored values of all frames, cut to the bits that are stored."""
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = "pydicom" if syntax == RLELossless else "pylibjpeg" if syntax.is_compressed else ""
    words = pixel_array(dataset, raw=True, decoding_plugin=plugin).astype(np.int64)
    bits = int(dataset.BitsStored)
    words &= (1 << bits) - 1
    if dataset.PixelRepresentation == 1:
        words -= (words >> (bits - 1)) << bits
    return words


def _items(group: Dataset) -> list[Dataset]:
    """The items of the functional groups that place and scale a frame, if they are where they belong."""
    names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    found = [group.get(name) or [] for name in (*names, "PixelValueTransformationSequence")]
    return [items[0] for items in found if len(items) == 1]


def _of(groups: list[Dataset], name: str, default: Any) -> Any:
    return next((group[name].value for group in groups if name in group and group[name].value is not None), default)


def _is_philips(dataset: Dataset) -> bool:
    try:
        return "Philips" in dataset.get((0x2005, 0x10), "").value
    except AttributeError:
        return False


def _inverted(values: Array, dataset: Dataset) -> Array:
    """Only for unscaled pictures: 2^b - 1 - x."""
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    stored = (values - intercept) / slope
    top = -1 if dataset.PixelRepresentation == 1 else 2 ** int(dataset.BitsStored) - 1
    return (top - stored) * slope + intercept


def _suv_factor(dataset: Dataset) -> float:
    """SUVbw for BQML with decay correction to the start of the series, all on one day; 1 for GML."""
    if dataset.Units == "GML":
        return 1.0
    tracer = dataset.RadiopharmaceuticalInformationSequence[0]
    seconds = [
        int(text[:2]) * 3600 + int(text[2:4] or 0) * 60 + float(text[4:] or 0)
        for text in (tracer.RadiopharmaceuticalStartTime, min(dataset.SeriesTime, dataset.AcquisitionTime))
    ]
    delay = (seconds[1] - seconds[0]) % 86400
    dose = float(tracer.RadionuclideTotalDose)
    if dataset.DecayCorrection == "START":
        dose *= 2 ** (-delay / float(tracer.RadionuclideHalfLife))
    return float(dataset.PatientWeight) * 1000 / dose
