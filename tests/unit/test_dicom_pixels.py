"""Pixels: exact length, exact bits, exact scale, whatever the encoding."""

import base64
import hashlib
import os
import zipfile
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom import group_headers
from medssl_cli.formats.dicom.codestream import check_codestream
from medssl_cli.formats.dicom.headers import read_headers
from medssl_cli.formats.dicom.pixels import read_series
from medssl_cli.formats.dicom.scaling import invert, mask_bits, rescale
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Member
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


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless],
)
def test_every_lossless_encoding_gives_the_same_voxels(tmp_path, syntax):
    phantom = analytic_phantom(shape=COMPRESSIBLE)
    series = write_volume(tmp_path, phantom)
    for path in series:
        _transcode(path, syntax)

    image = load(series)

    np.testing.assert_array_equal(image.volume.voxels, phantom.voxels)
    expected = {RLELossless: "medssl/", JPEG2000Lossless: "pylibjpeg-openjpeg/"}.get(syntax, "")
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
    stack = rescale(values[np.newaxis].copy(), [(float(slope), float(intercept))])

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


def test_a_file_whose_header_changes_between_two_reads_is_refused(tmp_path):
    series = ct_series(tmp_path)
    (part,), _ = group(series)
    edit(series[1], PatientName="Other^Name")

    with pytest.raises(InputError, match="E_CHANGED_DURING_READ"):
        read_series(part)


@pytest.mark.parametrize("change", ["longer", "later", "header"])
def test_a_file_that_changes_between_two_reads_is_refused(tmp_path, change):
    """Size, time of change and the bytes before the pixels each tell on their own."""
    series = ct_series(tmp_path)
    (part,), _ = group(series)
    before, content = series[1].stat(), bytearray(series[1].read_bytes())
    if change == "longer":
        content += b"\0"
    elif change == "header":
        content[content.index(b"Phantom")] ^= 1
    series[1].write_bytes(content)
    os.utime(series[1], ns=(before.st_atime_ns, before.st_mtime_ns + (change == "later")))

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
    (header,) = read_headers(path)
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


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize(
    ("values", "is_signed", "bits", "is_read"),
    [
        ((0, 4095), False, 12, True),
        ((0, 4096), False, 12, False),
        ((-2048, 2047), True, 12, True),  # sign extension within the word of 16 bits
        ((-2049, 2047), True, 12, False),
        ((-2048, 2048), True, 12, False),  # which in 12 bits would be -2048
        ((-32768, 32767), True, 16, True),
    ],
)
def test_decompressed_values_are_never_cut_to_fewer_bits(tmp_path, syntax, values, is_signed, bits, is_read):
    """The codestream has words of 16 bits, the header says fewer: of plain pixels the rest may be an overlay."""
    series = write_volume(tmp_path, analytic_phantom(shape=COMPRESSIBLE))
    low, high = values
    for path in series:
        dataset = pydicom.dcmread(path)
        pixels = np.full(COMPRESSIBLE[1::-1], low, "<i2" if is_signed else "<u2")
        pixels[3, 4] = high
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = int(is_signed), 16, 15
        dataset.PixelData, dataset.RescaleIntercept = pixels.tobytes(), "0"
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
        dataset.save_as(path)

    if is_read:
        image = load(series)
        assert (image.volume.voxels.min(), image.volume.voxels[0, 4, 3, 0]) == values
        assert "W_HIGH_BITS" not in image.warnings
    else:
        with pytest.raises(InputError, match="E_CODESTREAM_MISMATCH"):
            load(series)


def test_negative_numbers_whose_sign_is_not_extended_set_no_high_bits():
    """A decoder of 12 bits gives 0x0FFF for -1."""
    values, has_high_bits = mask_bits(np.array([0x0FFF, 5], np.uint16), bits_stored=12, is_signed=True)

    assert (values.tolist(), has_high_bits) == ([-1, 5], False)


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


# The picture 7 (8 row + column) of 6 rows and 8 columns, in encodings that pydicom cannot write.
STREAMS = {
    HTJ2KLossless: (
        "/0//UQApQAAAAAAIAAAABgAAAAAAAAAAAAAACAAAAAYAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQ"
        "kJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAFEAAf+TwAAm9/4FB3QAAADAABLAABKA/gAHdADaAYd0"
        "AMAAEsAAEgDuAMJ0AN0SMwDAACaAAFUAJKEjQnUAbrfb/cAQgb62AP/Z"
    ),
    JPEGLSLossless: (
        "/9j/6AAgU1BJRkYAAgAAAQAAAAYAAAAIChAGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsQAAYACAEBEQD/+AANAf//ABIAQwEUAED/2gAI"
        "AQEAAAAAoGwNgXA2BcEwPHCB0DIKgiDQSB0cIJBIKCgoKBkboKCgoKBAgqbIECBAgQIImqBAgQIECDD/2Q=="
    ),
    JPEGLosslessSV1: (
        "/9j/xAAXAAEBAQEAAAAAAAAAAAAAAAAFAwYQ/8MACxAABgAIAQARAP/aAAgBAAAGAADr3ve977hxxxxxxzcOOOOOOObhxxxxxxzcOOOO"
        "OOObhxxxxxxw/9k="
    ),
}


@pytest.mark.parametrize("syntax", STREAMS, ids=lambda syntax: syntax.keyword)
def test_encodings_that_others_write_are_decoded_by_the_pinned_decoder(tmp_path, syntax):
    series = ct_series(tmp_path, size=(8, 6))
    frame = base64.b64decode(STREAMS[syntax])
    for path in series:
        dataset = pydicom.dcmread(path)
        dataset.BitsStored, dataset.HighBit, dataset.RescaleIntercept = 16, 15, "0"
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)

    image = load(series)

    assert image.volume.voxels[0, :, :, 3].T.ravel().tolist() == [7 * number for number in range(48)]
    assert image.decoder.startswith("pylibjpeg-")
    assert "W_LOSSY" not in image.warnings


HEIGHTS = (0.0, 4.0, 8.0, 12.0, 16.0)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless]
)
def test_frames_of_one_file_are_slices_wherever_they_stand(tmp_path, syntax):
    """Frames are written in a shuffled order; each holds a constant, ten times its height."""
    path = enhanced_mr(tmp_path / "mr.dcm", syntax=syntax, order=(3, 0, 4, 1, 2))

    image = load([path])

    assert image.volume.shape == (40, 33, 5)
    assert image.volume.voxels[0, 7, 9].tolist() == [0, 40, 80, 120, 160]
    assert image.volume.affine[2, 2:].tolist() == [4, 0]
    assert image.num_files == 1


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_offset_tables_are_not_believed(tmp_path, syntax):
    path = enhanced_mr(tmp_path / "mr.dcm", syntax=syntax)
    dataset = pydicom.dcmread(path)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=5))
    lying = encapsulate(frames, has_bot=True)
    table = np.frombuffer(lying[8 : 8 + 4 * 5], "<u4")[::-1]
    edit(path, PixelData=lying[:8] + table.tobytes() + lying[28:])

    assert load([path]).volume.voxels[0, 7, 9].tolist() == [0, 40, 80, 120, 160]


def test_frames_in_several_fragments_are_put_together(tmp_path):
    path = enhanced_mr(tmp_path / "mr.dcm", syntax=JPEG2000Lossless)
    frames = list(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=5))
    edit(path, PixelData=encapsulate(frames, fragments_per_frame=2, has_bot=False))

    assert load([path]).volume.voxels[0, 7, 9].tolist() == [0, 40, 80, 120, 160]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize(("kept", "code"), [(4, "E_TRUNCATED"), (6, "E_PIXEL_LENGTH")])
def test_another_number_of_compressed_frames_is_refused(tmp_path, syntax, kept, code):
    path = enhanced_mr(tmp_path / "mr.dcm", syntax=syntax)
    frames = list(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=5))
    edit(path, PixelData=encapsulate([*frames, frames[0]][:kept], has_bot=False))

    with pytest.raises(InputError, match=code):
        load([path])


def test_compressed_pixels_without_their_end_are_truncated(tmp_path):
    path = enhanced_mr(tmp_path / "mr.dcm", syntax=RLELossless)
    path.write_bytes(path.read_bytes()[:-8])

    with pytest.raises(InputError, match="E_TRUNCATED"):
        load([path])


@pytest.mark.parametrize("change", [-2, 2, -2 * 40 * 33])
def test_native_frames_of_another_length_are_refused(tmp_path, change):
    path = enhanced_mr(tmp_path / "mr.dcm", syntax=ExplicitVRLittleEndian)
    words = pydicom.dcmread(path).PixelData
    edit(path, PixelData=words[:change] if change < 0 else words + bytes(change))

    with pytest.raises(InputError, match=r"E_PIXEL_LENGTH|E_TRUNCATED"):
        load([path])


def test_tiles_are_cut_from_their_picture(tmp_path):
    """Six slices of 3 rows and 4 columns in a picture of 3 by 2 tiles; values count through the picture."""
    series = ct_series(tmp_path, positions_mm=[0], size=(8, 9))
    picture = np.arange(72, dtype="<u2").reshape(9, 8)
    edit(series[0], PixelData=picture.tobytes(), RescaleIntercept="0")
    (header,) = read_headers(series[0])
    tiles = [
        replace(
            header,
            Rows=3,
            Columns=4,
            tile=(3 * (k // 2), 4 * (k % 2)),
            picture_shape=(9, 8),
            ImagePositionPatient=(0.0, 0.0, 5.0 * k),
        )
        for k in range(6)
    ]

    (part,), _ = group_headers(tiles)
    voxels = read_series(part).volume.voxels

    expected = [
        picture[3 * row : 3 * row + 3, 4 * column : 4 * column + 4].T for row in range(3) for column in range(2)
    ]
    np.testing.assert_array_equal(voxels[0], np.stack(expected, axis=2))


def test_bytes_of_big_endian_words_are_put_in_order(tmp_path):
    """PS3.5 A.2: 8-bit pixels in a big-endian OW element lie in pairs the wrong way round; in OB they do not."""
    for kind in ("OW", "OB"):
        series = ct_series(tmp_path / kind, positions_mm=[0, 5, 10, 15], size=(5, 3))
        for path in series:
            dataset = pydicom.dcmread(path)
            dataset.BitsAllocated = dataset.BitsStored = 8
            dataset.HighBit, dataset.RescaleIntercept = 7, "0"
            stored = np.arange(16, dtype=np.uint8)
            dataset["PixelData"].VR = kind
            dataset.PixelData = (stored.reshape(-1, 2)[:, ::-1] if kind == "OW" else stored).tobytes()
            for _ in dataset:
                pass
            dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            pydicom.dcmwrite(path, dataset, force_encoding=True, implicit_vr=False, little_endian=False)

        assert load(series).volume.voxels[0, :, :, 0].T.ravel().tolist() == list(range(15))


def test_voxels_are_laid_out_for_the_writer(tmp_path):
    """C-contiguous `[1, X, Y, Z]`: nothing downstream has to copy them again."""
    assert load(ct_series(tmp_path)).volume.voxels.flags.c_contiguous


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("is_signed", [False, True])
def test_inversion_runs_through_the_range_that_the_bits_hold(bits, is_signed):
    low = -(2 ** (bits - 1)) if is_signed else 0
    values = np.array([low, low + 1, low + 2**bits - 1], np.int16 if is_signed else np.uint16)

    inverse = invert(values, bits_stored=bits)

    assert inverse.tolist() == [low + 2**bits - 1, low + 2**bits - 2, low]


@given(
    hnp.arrays(st.sampled_from([np.uint8, np.int16, np.uint16, np.int32]), (3, 2, 2)),
    st.lists(st.tuples(st.integers(-9, 9).filter(bool), st.integers(-40_000, 40_000)), min_size=3, max_size=3),
)
def test_whole_scales_of_each_slice_are_exact_integers(values, scales):
    expected = [v.astype(object) * slope + intercept for v, (slope, intercept) in zip(values, scales, strict=True)]

    stack = rescale(values.copy(), [(float(slope), float(intercept)) for slope, intercept in scales])

    is_representable = np.min(expected) >= -(2**31) and np.max(expected) < 2**32
    is_representable &= np.min(expected) >= 0 or np.max(expected) < 2**31
    if is_representable:
        assert stack.dtype.kind in "iu"
        assert (stack.astype(object) == np.array(expected)).all()
    else:
        np.testing.assert_allclose(stack, np.array(expected, np.float64), rtol=1e-6)


def test_values_beyond_32_bit_floats_are_refused():
    with pytest.raises(InputError, match="E_NONFINITE_VOXELS"):
        rescale(np.full((1, 2, 2), 2**31 - 1, np.int32), [(1e30, 0.0)])


def test_slices_of_both_signs_share_one_dtype(tmp_path):
    series = ct_series(tmp_path)  # stored: height + 1024, unsigned
    words = np.full((5, 6), -30, "<i2")
    edit(series[0], PixelRepresentation=1, BitsStored=16, HighBit=15, PixelData=words.tobytes(), RescaleIntercept="0")

    assert load(series).volume.voxels[0, 0, 0].tolist() == [-30, 5, 10, 15, 20]


def test_a_volume_beyond_the_limit_is_refused_before_it_is_read(tmp_path):
    series = ct_series(tmp_path)

    with pytest.raises(InputError, match="E_TOO_BIG"):
        load(series, Policy(max_volume_bytes=6 * 5 * 5 * 4 - 1))


def test_the_range_of_padding_values_does_not_count_as_implausible(tmp_path):
    volume = analytic_phantom()
    voxels = np.clip(volume.voxels, -1000, 3000)
    voxels[0, :6] = -2000
    voxels[0, 2] = -1990
    series = write_volume(tmp_path, type(volume)(voxels, volume.affine, "CT", "HU"))
    for path in series:
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", "SS", -2000 + 1024)
        dataset.add_new("PixelPaddingRangeLimit", "SS", -1990 + 1024)
        dataset.save_as(path)

    assert "W_HU_IMPLAUSIBLE" not in load(series).warnings


def test_a_constant_image_is_noted(tmp_path):
    series = ct_series(tmp_path)
    for height, path in enumerate(series):
        edit(path, RescaleIntercept=str(-1024 - 5 * height))

    assert "W_CONSTANT_IMAGE" in load(series).warnings


def test_a_member_of_an_archive_is_read_like_a_file(tmp_path):
    series = ct_series(tmp_path / "ct")
    archive = tmp_path / "ct.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in series:
            target.write(path, path.name)
    members = [Member(archive, index, PurePosixPath(path.name)) for index, path in enumerate(series)]

    (part,), _ = group_headers([header for member in members for header in read_headers(member)])

    np.testing.assert_array_equal(read_series(part).volume.voxels, load(series).volume.voxels)


def enhanced_mr(path, *, syntax, order=(0, 1, 2, 3, 4)):
    """An enhanced MR object of five frames; what functional groups a reader needs and no more."""
    (source,) = ct_series(path.parent, positions_mm=[0], size=(40, 33))
    dataset = pydicom.dcmread(source)
    source.unlink()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    dataset.Modality, dataset.NumberOfFrames = "MR", len(order)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, name)
    shared, measures, plane, values = (pydicom.Dataset() for _ in range(4))
    measures.PixelSpacing, plane.ImageOrientationPatient = [0.7, 0.9], [1, 0, 0, 0, 1, 0]
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = "1", "0", "US"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [values]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for number in order:
        group_of_frame, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [0, 0, HEIGHTS[number]]
        group_of_frame.PlanePositionSequence = [position]
        dataset.PerFrameFunctionalGroupsSequence.append(group_of_frame)
    frames = [np.full((33, 40), 10 * int(HEIGHTS[number]), "<u2") for number in order]
    dataset.PixelData = b"".join(frame.tobytes() for frame in frames)
    dataset.save_as(path)
    if syntax != ExplicitVRLittleEndian:
        _transcode(path, syntax)
    return path


@pytest.mark.parametrize("syntax", [HTJ2KLossless, JPEGLosslessSV1], ids=["htj2k", "jpeg"])
def test_streams_of_every_coding_are_not_cut_to_the_bits_of_the_header(tmp_path, syntax):
    """The largest value of the stream is 7 (8 * 5 + 7) = 329, of 9 bits; pydicom cuts these codings if it may."""
    series = write_volume(tmp_path, analytic_phantom(shape=(8, 6, 4)))
    frame = base64.b64decode("".join(STREAMS[syntax]))
    for path in series:
        dataset = pydicom.dcmread(path)
        dataset.PixelData, dataset.PixelRepresentation, dataset.RescaleIntercept = encapsulate([frame]), 0, "0"
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.BitsStored, dataset.HighBit = 9, 8
        dataset.save_as(path)
    assert load(series).volume.voxels.max() == 329

    edit(series[1], BitsStored=8, HighBit=7)

    with pytest.raises(InputError, match="E_CODESTREAM_MISMATCH: decompressed values need more than the 8 bits"):
        load(series)


@pytest.mark.parametrize("lost", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_one_slice_without_the_scale_of_the_others_is_refused(tmp_path, lost, index):
    series = ct_series(tmp_path)
    for path in series:
        edit(path, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4", RescaleSlope="2", RescaleIntercept="3")
    edit(series[index], **{lost: None})

    with pytest.raises(InputError, match="E_VALUE_INVALID"):
        load(series)


def test_a_scale_that_changes_nothing_may_be_missing(tmp_path):
    series = ct_series(tmp_path)
    for path in series:
        edit(path, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4", RescaleSlope="1", RescaleIntercept="0")
    edit(series[2], RescaleSlope=None, RescaleIntercept=None)

    # The writer of these slices stores heights in mm with an intercept of -1024.
    assert load(series).volume.voxels[0, 0, 0].tolist() == [1024, 1029, 1034, 1039, 1044]
