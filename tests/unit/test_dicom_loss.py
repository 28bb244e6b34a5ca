"""How strong a lossy compression was: as the header states it, or as the file's length tells."""

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from tests.dicom_factory import ct_series, edit, load


def to_jpeg(path, quality):
    """Smooth grey values as JPEG baseline; bytes of the codestream."""
    dataset = pydicom.dcmread(path)
    ramp = np.linspace(0, 255, dataset.Rows * dataset.Columns).reshape(dataset.Rows, dataset.Columns)
    stream = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(stream, "JPEG", quality=quality)
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.save_as(path)
    return len(stream.getvalue())


def test_a_stated_ratio_is_kept_and_the_strongest_one_counts(tmp_path):
    series = ct_series(tmp_path)
    for number, path in enumerate(series):
        edit(path, LossyImageCompression="01", LossyImageCompressionRatio=str(10 + number))

    image = load(series)

    assert image.acquisition.lossy_ratio == 14
    assert image.details == ("W_LOSSY: ratio 14",)


def test_without_one_the_length_of_the_file_tells(tmp_path):
    series = ct_series(tmp_path, size=(64, 48))
    num_bytes = sum(to_jpeg(path, quality=60) for path in series)

    image = load(series)

    assert image.acquisition.lossy_ratio == pytest.approx(len(series) * 64 * 48 / num_bytes, rel=0.1)
    assert image.warnings.count("W_LOSSY") == len(image.details) == 1


def test_where_nothing_tells_the_ratio_none_is_made_up(tmp_path):
    series = ct_series(tmp_path)
    for path in series:
        edit(path, LossyImageCompression="01")

    image = load(series)

    assert "W_LOSSY" in image.warnings
    assert (image.acquisition.lossy_ratio, image.details) == (None, ())
