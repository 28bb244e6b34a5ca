"""What inference wrote is known by its mark, whatever program packed or renamed it; nothing else bears the mark."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medssl_cli.cli.preview import draw_preview
from medssl_cli.formats.nifti import encode_nifti
from medssl_cli.formats.predictions import is_prediction
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import ct_series

MASK = np.zeros((4, 5, 6), np.uint8)


def marked() -> bytes:
    return encode_nifti(MASK, np.eye(4), is_prediction=True)


def through(data: bytes, path: Path, kind: type) -> bytes:
    """What nibabel makes of a file when it writes it again."""
    image = nib.Nifti1Image.from_bytes(data)
    nib.save(kind(np.asarray(image.dataobj), image.affine, image.header), path)
    return path.read_bytes()


@pytest.mark.parametrize("big_endian", [False, True])
def test_masks_are_known_plain_and_compressed_in_both_byte_orders(big_endian: bool) -> None:
    like = bytearray(encode_nifti(MASK, np.eye(4))[:348])
    if big_endian:
        header = nib.Nifti1Header(bytes(like)).as_byteswapped(">")
        like = bytearray(header.binaryblock)
    data = encode_nifti(MASK, np.eye(4), like_header=bytes(like), is_prediction=True)

    assert is_prediction(data)
    assert is_prediction(gzip.compress(data)[:4096])
    assert nib.Nifti1Image.from_bytes(data).header["intent_name"] == b"medssl mask"


def test_masks_stay_known_when_another_program_writes_them_again(tmp_path: Path) -> None:
    assert is_prediction(through(marked(), tmp_path / "a.nii", nib.Nifti1Image))
    assert is_prediction(through(marked(), tmp_path / "b.nii.gz", nib.Nifti1Image))
    assert is_prediction(through(marked(), tmp_path / "c.nii", nib.Nifti2Image))


def test_one_of_the_two_texts_is_enough() -> None:
    for offset, length in ((148, 80), (328, 16)):
        data = bytearray(marked())
        data[offset : offset + length] = bytes(length)
        assert is_prediction(bytes(data))
    data[148:228] = bytes(80)
    data[328:344] = bytes(16)
    assert not is_prediction(bytes(data))


NO_PREDICTIONS = {
    "nothing": b"",
    "cut gzip": b"\x1f\x8b",
    "text": b"medssl mask",
    "cut PNG": b"\x89PNG\r\n\x1a\n",
    "a map of ours": encode_nifti(MASK, np.eye(4)),
    "zeros": bytes(4096),
    "cut DICOM": b"\0" * 128 + b"DICM",
}


@pytest.mark.parametrize("data", NO_PREDICTIONS.values(), ids=NO_PREDICTIONS)
def test_nothing_else_is_a_prediction(data: bytes) -> None:
    assert not is_prediction(data)
    assert not is_prediction(gzip.compress(data))


def test_a_preview_is_known() -> None:
    picture = draw_preview(Volume(MASK[None].astype(np.int16), np.eye(4)), MASK, {1: "a"})

    assert is_prediction(picture[:4096])
    assert picture.count(b"medssl preview") == 1


@pytest.mark.parametrize("syntax", [pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian])
def test_a_segmentation_is_known_by_who_made_it(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    (path,) = ct_series(tmp_path, positions_mm=[0])
    dataset = pydicom.dcmread(path)
    expected = []
    for sop_class, manufacturer in (
        (pydicom.uid.SegmentationStorage, "medssl"),
        (pydicom.uid.SegmentationStorage, "someone"),
        (pydicom.uid.CTImageStorage, "medssl"),
    ):
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
        dataset.Manufacturer = manufacturer
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(tmp_path / "out.dcm", implicit_vr=syntax.is_implicit_VR, little_endian=True)
        expected.append(is_prediction((tmp_path / "out.dcm").read_bytes()[:4096]))

    assert expected == [True, False, False]
