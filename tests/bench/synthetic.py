"""Scans with the size, smoothness and noise of real ones, made of arithmetic."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.volume import Volume

AIR_HU = -1000
PADDING_HU = -1024
NOISE_HU = 15.0
SPACING_MM = (0.7, 0.7, 1.25)
UID_ROOT = "1.2.826.0.1.3680043.10.543"
FIRST_NUMBER = 1_000_000
TINY_SLICES = 100
TINY_SIZE = 16
LOW_BITS = 10


def synthetic_ct(shape: tuple[int, int, int], *, seed: int, body: float = 1.0) -> NDArray[np.int16]:
    """A body of soft tissue with lungs and bone in a round field of view, with noise, `[X, Y, Z]` in HU.

    Args:
        shape: (X, Y, Z) voxels.
        seed: Of the noise; the anatomy is always the same.
        body: Size of the anatomy; at 1 the body is as wide as four fifths of the field of view.
    """
    generator = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape[:2]), indexing="ij")
    radius = x**2 + y**2
    x, y = x / np.float32(body), y / np.float32(body)
    texture = 20 * np.sin(9 * x) * np.cos(7 * y)
    volume = np.empty(shape, np.int16)
    for index, z in enumerate(np.linspace(-1, 1, shape[2])):
        plane = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 40 + texture, np.float32(AIR_HU))
        for side in (-0.38, 0.38):
            lung = ((x - side) / 0.27) ** 2 + (y / 0.38) ** 2 + z**2 < 1
            plane = np.where(lung, -850 + 2 * texture, plane)
        plane = np.where((x / 0.1) ** 2 + ((y - 0.42) / 0.1) ** 2 < 1, 600 + 5 * texture, plane)
        plane = plane + generator.standard_normal(plane.shape, np.float32) * NOISE_HU
        volume[:, :, index] = np.where(radius < 1, plane, PADDING_HU).round()
    return volume


def write_synthetic_series(folder: Path, *, number: int, num_slices: int, size: int) -> int:
    """One uncompressed CT series.

    Args:
        folder: Created if needed.
        number: Tells series apart; also the seed of their noise.
        num_slices: One file each.
        size: Rows and columns.

    Returns:
        Bytes of pixels.

    Raises:
        StorageError: `E_IO`.
    """
    from medssl_cli.formats.dicom import write_ct_series

    voxels = synthetic_ct((size, size, num_slices), seed=number)
    volume = Volume(voxels[np.newaxis], np.diag([*SPACING_MM, 1.0]), modality="CT", units="HU")
    uid = f"{UID_ROOT}.{number}"
    write_ct_series(
        folder,
        volume,
        patient_id=f"BENCH{number}",
        patient_name=f"Bench^{number}",
        study_uid=f"{uid}.1",
        series_uid=f"{uid}.2",
        frame_of_reference_uid=f"{uid}.3",
        series_description="benchmark",
    )
    return voxels.nbytes


def write_tiny_series(folder: Path, *, num_files: int) -> None:
    """Many small files: series of 100 slices of 16 x 16, each with a patient and two voxels of its own.

    Args:
        folder: Gets one folder per series.
        num_files: Rounded up to whole series; at most 100 million.

    Raises:
        StorageError: `E_IO`.
    """
    first = folder / str(FIRST_NUMBER)
    write_synthetic_series(first, number=FIRST_NUMBER, num_slices=TINY_SLICES, size=TINY_SIZE)
    templates = {path.name: path.read_bytes() for path in first.iterdir()}
    known = str(FIRST_NUMBER).encode()
    for number in range(FIRST_NUMBER + 1, FIRST_NUMBER - (-num_files // TINY_SLICES)):
        mine = folder / str(number)
        mine.mkdir()
        own = np.array(divmod(number - FIRST_NUMBER, 1 << LOW_BITS), "<u2").tobytes()
        for name, data in templates.items():
            (mine / name).write_bytes(data[: -len(own)].replace(known, str(number).encode()) + own)
