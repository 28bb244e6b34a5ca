"""Siemens mosaics: slices are cut out and placed by the vendor's header, or refused."""

import contextlib
import struct

import numpy as np
import pydicom
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom import read_headers
from medssl_cli.formats.dicom.mosaic import parse_csa
from tests.dicom_factory import ct_series, load

COUNT, ROWS, COLUMNS = 5, 4, 6  # 5 slices need 3 x 3 tiles: four stay empty
SPACING, STEP_MM = (1.5, 1.25), 3.0


@pytest.mark.parametrize("up", [1, -1], ids=["ascending", "descending"])
def test_slices_lie_where_the_normal_of_the_vendor_says(tmp_path, up):
    """The slice's number is its voxels' value; the first slice lies at z = 10 and the others follow the normal."""
    image = load([_mosaic(tmp_path, normal=(0, 0, up))])

    assert image.volume.shape == (COLUMNS, ROWS, COUNT)
    for k in range(COUNT):
        (number,) = np.unique(image.volume.voxels[0, :, :, k])
        assert (image.volume.affine @ [0, 0, k, 1])[2] == pytest.approx(10 + up * STEP_MM * number)


def test_the_position_of_a_mosaic_is_that_of_a_picture_as_large(tmp_path):
    """The middle of the mosaic's grid and of each slice's grid are the same point."""
    headers = read_headers(_mosaic(tmp_path))
    picture_middle = (-50 + SPACING[1] * (3 * COLUMNS - 1) / 2, -60 + SPACING[0] * (3 * ROWS - 1) / 2)

    for k, header in enumerate(headers):
        x, y, z = header.ImagePositionPatient
        middle = (x + SPACING[1] * (COLUMNS - 1) / 2, y + SPACING[0] * (ROWS - 1) / 2)
        assert middle == pytest.approx(picture_middle)
        assert z == 10 + STEP_MM * k
    assert [header.tile for header in headers] == [(0, 0), (0, 6), (0, 12), (4, 0), (4, 6)]
    assert {(header.Rows, header.Columns, header.picture_shape) for header in headers} == {(4, 6, (12, 18))}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"csa": b""}, "E_MOSAIC_UNSUPPORTED"),
        ({"csa": b"\x4e\0\0\0\x4d\0\0\0"}, "E_MOSAIC_UNSUPPORTED"),  # version 1 has no signature
        ({"protocol_number": 4}, "E_MOSAIC_UNSUPPORTED"),  # numbered backwards
        ({"count": 6}, "E_VALUE_INVALID"),  # not what (0019,100A) says
        ({"count": 0, "stated": 0}, "E_VALUE_INVALID"),
        ({"count": 40, "stated": 40}, "E_VALUE_INVALID"),  # 7 x 7 tiles do not divide 18 columns
        ({"normal": (0, 1, 0)}, "E_VALUE_INVALID"),
        ({"normal": (0, 0)}, "E_GEOM_MISSING"),
        ({"SpacingBetweenSlices": None}, "E_GEOM_MISSING"),
        ({"ImagePositionPatient": None}, "E_GEOM_MISSING"),
        ({"SpacingBetweenSlices": "-3"}, "E_SPACING_INVALID"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_mosaic_that_cannot_be_placed_is_refused(tmp_path, changes, code):
    with pytest.raises(InputError) as refused:
        read_headers(_mosaic(tmp_path, **changes))

    assert refused.value.code == code


def test_the_vendors_header_may_be_cut_or_lie_anywhere():
    whole = _csa(count=5, normal=(0, 0, 1), protocol_number=0)
    assert parse_csa(whole) == {
        "NumberOfImagesInMosaic": (5,), "SliceNormalVector": (0, 0, 1), "ProtocolSliceNumber": (0,),
    }  # fmt: skip
    for length in range(8, len(whole) - 4):
        with pytest.raises(InputError, match="E_DICOM_PARSE"):
            parse_csa(whole[:length])
    for at in range(8, len(whole) - 3):
        for number in (0, -1, 2**31 - 1, 65_536):
            with contextlib.suppress(InputError):  # and nothing else
                parse_csa(whole[:at] + struct.pack("<i", number) + whole[at + 4 :])


def _mosaic(folder, *, csa=None, count=COUNT, stated=COUNT, normal=(0, 0, 1), protocol_number=0, **attributes):
    path = ct_series(folder)[0]
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.4", "MR"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-50, -60, 10], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SpacingBetweenSlices = list(SPACING), STEP_MM
    del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
    numbers = np.arange(9).reshape(3, 3).repeat(ROWS, axis=0).repeat(COLUMNS, axis=1)
    dataset.Rows, dataset.Columns = numbers.shape
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.PixelData = numbers.astype("<u2").tobytes()
    dataset.add_new((0x0019, 0x10), "LO", "SIEMENS MR HEADER")
    dataset.add_new((0x0019, 0x100A), "US", stated)
    dataset.add_new((0x0029, 0x11), "LO", "SIEMENS CSA HEADER")
    if csa is None:
        csa = _csa(count=count, normal=normal, protocol_number=protocol_number)
    dataset.add_new((0x0029, 0x1110), "OB", csa)
    for name, value in attributes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def _csa(*, count, normal, protocol_number):
    """A header of version 2 with three elements, in the layout of nibabel's description."""
    elements = {
        "NumberOfImagesInMosaic": (count,),
        "SliceNormalVector": normal,
        "ProtocolSliceNumber": (protocol_number,),
    }
    out = b"SV10\x04\x03\x02\x01" + struct.pack("<II", len(elements), 77)
    for name, numbers in elements.items():
        out += struct.pack("<64si4siii", name.encode(), len(numbers), b"FD\0\0", 4, 6, 77)
        texts = [f"{number:.8f}".encode() + b"\0" for number in numbers] + [b""] * (6 - len(numbers))
        for text in texts:
            out += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + bytes(-len(text) % 4)
    return out
