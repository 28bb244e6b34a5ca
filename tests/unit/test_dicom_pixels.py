"""Pixels: exact length, exact bits, exact scale, whatever the encoding."""

import hashlib

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from medssl_cli.errors import InputError
from medssl_cli.formats.dicom.codestream import check_codestream
from medssl_cli.formats.dicom.headers import read_header
from medssl_cli.formats.dicom.pixels import mask_bits, read_series, rescale
from tests.dicom_factory import analytic_phantom, ct_series, edit, group, load, write_volume

COMPRESSIBLE = (40, 33, 4)  # JPEG 2000 with its five resolutions needs 32 pixels a side


def test_left_is_left(tmp_path):
    """One bright voxel at the patient's left: x of RAS+ is negative there, whatever way the columns run."""
    phantom = analytic_phantom()
    voxels = np.full(phantom.voxels.shape, -1000, np.int16)
    voxels[0, 20, 4, 5] = 700  # x = 12 - 0.9 * 20 = -6 mm; its mirror image, column 3, would lie at +9.3 mm

    image = load(write_volume(tmp_path, type(phantom)(voxels, phantom.affine, "CT", "HU")))

    (found,) = np.argwhere(image.volume.voxels[0] == 700)
    assert (image.volume.affine @ [*found, 1])[0] == pytest.approx(-6)


def test_the_analytic_phantom_is_read_exactly(tmp_path):
    phantom = analytic_phantom()

    image = load(write_volume(tmp_path, phantom))

    np.testing.assert_array_equal(image.volume.voxels, phantom.voxels)
    np.testing.assert_allclose(image.volume.affine, phantom.affine, atol=1e-6)
    assert (image.volume.voxels.dtype, image.volume.modality, image.volume.units) == (np.int16, "CT", "HU")
    assert (image.num_files, image.decoder, image.source_kind) == (14, "", "dicom")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless])
def test_every_lossless_encoding_gives_the_same_voxels(tmp_path, syntax):
    phantom = analytic_phantom(shape=COMPRESSIBLE)
    series = write_volume(tmp_path, phantom)
    for path in series:
        _transcode(path, syntax)

    image = load(series)

    np.testing.assert_array_equal(image.volume.voxels, phantom.voxels)
    expected = {RLELossless: "pydicom/", JPEG2000Lossless: "pylibjpeg-openjpeg/"}.get(syntax, "")
    assert image.decoder.startswith(expected)


def test_rescale_is_applied_slice_by_slice(tmp_path):
    series = ct_series(tmp_path, positions_mm=[0, 5, 10, 15])  # stored: height + 1024
    for number, path in enumerate(series):
        edit(path, RescaleSlope=str(number + 1), RescaleIntercept=str(-1024 * (number + 1)))

    assert load(series).volume.voxels[0, 0, 0].tolist() == [0, 10, 30, 60]


def test_fractions_become_float32(tmp_path):
    series = ct_series(tmp_path)
    edit(series[0], RescaleSlope="0.3")

    assert load(series).volume.voxels.dtype == np.float32


def test_bits_above_those_stored_are_masked_and_reported(tmp_path):
    series = ct_series(tmp_path)
    dataset = pydicom.dcmread(series[0])
    words = np.frombuffer(dataset.PixelData, "<u2") | 0xF000
    edit(series[0], PixelData=words.tobytes())

    image = load(series)

    assert image.volume.voxels[0, 0, 0].tolist() == [0, 5, 10, 15, 20]
    assert "W_HIGH_BITS" in image.warnings


def test_the_bits_of_the_12_bit_examples():
    # 0xFFFF is 4095 unsigned and -1 signed in 12 bits; 0x0F0F is 3855, or 3855 - 4096 = -241.
    words = np.array([0xFFFF, 0x0F0F, 0x0001], np.uint16)

    assert mask_bits(words, bits_stored=12, is_signed=False)[0].tolist() == [4095, 3855, 1]
    assert mask_bits(words, bits_stored=12, is_signed=True)[0].tolist() == [-1, -241, 1]
    assert not mask_bits(np.array([0xFFFF], np.uint16), bits_stored=12, is_signed=True)[1]  # sign extension


@given(st.integers(1, 16), st.booleans(), hnp.arrays(np.uint16, 8))
def test_masked_bits_are_arithmetic_modulo_the_bits_stored(bits, is_signed, words):
    values, _ = mask_bits(words, bits_stored=bits, is_signed=is_signed)

    low = -(2 ** (bits - 1)) if is_signed else 0
    assert ((low <= values.astype(int)) & (values.astype(int) < low + 2**bits)).all()
    assert ((values.astype(int) - words.astype(int)) % 2**bits == 0).all()


@given(
    hnp.arrays(np.uint16, (3, 4)),
    st.integers(-5, 5).filter(bool),
    st.integers(-70_000, 70_000),
)
def test_whole_scales_lose_nothing(values, slope, intercept):
    stack = rescale([values], [(float(slope), float(intercept))])

    assert stack.dtype.kind in "iu"
    assert ((stack[0].astype(object) - intercept) == values.astype(object) * slope).all()


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, "E_PHOTOMETRIC"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "E_PHOTOMETRIC"),
        ({"SamplesPerPixel": 3}, "E_PHOTOMETRIC"),
        ({"RescaleSlope": None}, "E_VALUE_INVALID"),
        ({"RescaleSlope": "0"}, "E_SCALE"),
        ({"RescaleSlope": "1e7"}, "E_SCALE"),
        ({"RescaleIntercept": "-1e300"}, "E_SCALE"),
        ({"PixelData": bytes(6 * 5 * 2 + 2)}, "E_PIXEL_LENGTH"),
        ({"PixelData": bytes(6 * 5 * 2 - 2)}, "E_PIXEL_LENGTH"),
    ],
)
def test_pixels_without_a_sure_meaning_are_refused(tmp_path, attributes, code):
    series = ct_series(tmp_path)
    edit(series[1], **attributes)

    with pytest.raises(InputError) as refused:
        load(series)

    assert refused.value.code == code


def test_a_file_that_changes_between_two_reads_is_refused(tmp_path):
    series = ct_series(tmp_path)
    (part,), _ = group(series)
    edit(series[1], PatientName="Other^Name")

    with pytest.raises(InputError, match="E_CHANGED_DURING_READ"):
        read_series(part)


def test_a_file_cut_within_its_pixels_is_truncated(tmp_path):
    series = ct_series(tmp_path)
    series[1].write_bytes(series[1].read_bytes()[:-3])

    with pytest.raises(InputError, match="E_TRUNCATED"):
        load(series)


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"RescaleType": "US"}, "W_HU_IMPLAUSIBLE"),
        ({"RescaleIntercept": "-3000"}, "W_HU_IMPLAUSIBLE"),
        ({"LossyImageCompression": "01"}, "W_LOSSY"),
    ],
)
def test_doubts_are_recorded(tmp_path, options, warning):
    series = ct_series(tmp_path)
    for path in series:
        edit(path, **options)

    assert warning in load(series).warnings


@pytest.mark.parametrize(("padding", "is_plausible"), [(-2000 + 1024, True), (-1, False)])
def test_declared_padding_does_not_count_as_implausible(tmp_path, padding, is_plausible):
    volume = analytic_phantom()
    voxels = np.clip(volume.voxels, -1000, 3000)
    voxels[0, :6] = -2000  # a quarter of the picture; stored with 1024 added
    series = write_volume(tmp_path, type(volume)(voxels, volume.affine, "CT", "HU"))
    for path in series:
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", "SS", padding)
        dataset.save_as(path)

    assert ("W_HU_IMPLAUSIBLE" not in load(series).warnings) == is_plausible


def test_philips_scale_slope_gives_floating_point_values(tmp_path):
    series = ct_series(tmp_path)
    for path in series:
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        dataset.Modality = "MR"
        block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0E, "FL", 0.25)
        dataset.save_as(path)

    image = load(series)

    # Stored P = height + 1024, RS = 1, RI = -1024, SS = 1/4: (P RS + RI) / (RS SS) = 4 height.
    assert image.volume.voxels[0, 0, 0].tolist() == [0, 20, 40, 60, 80]
    assert image.volume.units == "a.u."


def test_a_codestream_that_contradicts_the_header_is_refused(tmp_path):
    path = write_volume(tmp_path, analytic_phantom(shape=COMPRESSIBLE))[0]
    _transcode(path, JPEG2000Lossless)
    header = read_header(path)
    frame = next(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
    size_at, precision_at = 8, 42

    check_codestream(header, [frame])
    for wrong in (
        frame[:size_at] + (99).to_bytes(4, "big") + frame[size_at + 4 :],
        frame[:precision_at] + bytes([frame[precision_at] ^ 0x80]) + frame[precision_at + 1 :],
        frame[:precision_at] + bytes([6]) + frame[precision_at + 1 :],
        b"\0\0\0\x0cjP  \r\n\x87\n" + frame,
    ):
        with pytest.raises(InputError, match="E_CODESTREAM_MISMATCH"):
            check_codestream(header, [wrong])
    with pytest.raises(InputError, match="E_TRUNCATED"):
        check_codestream(header, [frame, frame])


def test_garbage_in_the_codestream_is_a_refusal_not_a_crash(tmp_path):
    series = write_volume(tmp_path, analytic_phantom(shape=COMPRESSIBLE))
    _transcode(series[0], JPEG2000Lossless)
    dataset = pydicom.dcmread(series[0])
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    edit(series[0], PixelData=encapsulate([frame[:60] + hashlib.sha256(frame).digest()]))

    with pytest.raises(InputError, match="E_PIXEL_DECODE"):
        load(series)


def _transcode(path, syntax: UID) -> None:
    dataset = pydicom.dcmread(path)
    if syntax.is_compressed:
        dataset.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    for _ in dataset:  # reading an element decodes it; undecoded ones would be written in their old byte order
        pass
    dataset.file_meta.TransferSyntaxUID = syntax
    encoding = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
    pydicom.dcmwrite(path, dataset, force_encoding=True, **encoding)
