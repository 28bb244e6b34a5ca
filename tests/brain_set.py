"""A small set of brain tumours with four channels and nested regions, in the layouts in which such sets are published.

Every case is one seed: the same voxels in every layout, whatever the order of channels there. Each channel shows
another part of the tumour, so that no channel alone tells its three tissues apart:

    tissue      value  flair  t1  t1ce  t2
    edema         1     +      .   .    +
    necrosis      2     .      -   .    +
    enhancing     3     +      .   +    .
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl_cli.formats.nifti import encode_nifti, write_nifti

CHANNELS = ("flair", "t1", "t1ce", "t2")
REGIONS = {"whole_tumour": [1, 2, 3], "tumour_core": [2, 3], "enhancing_tumour": [3]}
NAMES = {1: "edema", 2: "necrosis", 3: "enhancing"}
SHAPE = (24, 24, 16)
AFFINE = np.diag([-1.5, -1.5, 2.0, 1.0])
_BRIGHT = {"flair": (1, 0, 1), "t1": (0, -1, 0), "t1ce": (0, 0, 1), "t2": (1, 1, 0)}


def brain(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[dict[str, NDArray[np.int16]], NDArray[np.uint8]]:
    """The four channels of a case, 0 outside of the head, and its label map.

    Every head lies elsewhere and has a pattern of its own: else all of them would count as images of one person.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    size = np.array(shape)[:, None, None, None]
    own = np.random.default_rng([seed, 1])
    away = own.uniform(-0.15, 0.15, 3)[:, None, None, None]
    head = np.linalg.norm((grid - size / 2 + 0.5) / size - away, axis=0) < 0.48
    centre = (np.array(shape) * rng.uniform(0.4, 0.6, 3))[:, None, None, None]
    radius = np.linalg.norm((grid - centre) / size, axis=0)
    label = np.select([radius < 0.09, radius < 0.16, radius < 0.27], [2, 3, 1], 0).astype(np.uint8)
    pattern = own.uniform(-40, 40, (8, 8, 8))[tuple(grid * 8 // size)]
    channels = {}
    for name in CHANNELS:
        tissue = 400 + pattern + 200 * np.choose(label, (0, *_BRIGHT[name]))
        channels[name] = (np.where(head | (label > 0), tissue + rng.normal(0, 15, shape), 0)).astype(np.int16)
    return channels, label


def nnunet_raw(root: Path, seeds: Iterable[int], *, order: tuple[str, ...] = ("t1", "t1ce", "t2", "flair")) -> Path:
    """nnU-Net's raw layout: `imagesTr/Brain_001_0000.nii.gz`, regions as lists of values in `dataset.json`."""
    folder = root / "Dataset137_Brain"
    for seed in seeds:
        channels, label = brain(seed)
        for number, name in enumerate(order):
            _write(folder / f"imagesTr/Brain_{seed:03d}_{number:04d}.nii.gz", channels[name])
        _write(folder / f"labelsTr/Brain_{seed:03d}.nii.gz", label)
    written = {"flair": "Flair", "t1": "T1", "t1ce": "T1ce", "t2": "T2"}
    document = {
        "channel_names": {str(number): written[name] for number, name in enumerate(order)},
        "labels": {"background": 0, **REGIONS, **{name: value for value, name in NAMES.items()}},
        "regions_class_order": [1, 2, 3],
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def decathlon(root: Path, seeds: Iterable[int]) -> Path:
    """The Decathlon's layout: one 4D file a case, `modality` names its channels."""
    folder = root / "Task01_BrainTumour"
    for seed in seeds:
        channels, label = brain(seed)
        _write_4d(folder / f"imagesTr/BRATS_{seed:03d}.nii", [channels[name] for name in CHANNELS])
        _write(folder / f"labelsTr/BRATS_{seed:03d}.nii.gz", label)
    document = {
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", **{str(value): name for value, name in NAMES.items()}},
        "training": [
            {"image": f"./imagesTr/BRATS_{seed:03d}.nii", "label": f"./labelsTr/BRATS_{seed:03d}.nii.gz"}
            for seed in seeds
        ],
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def brats21(root: Path, seeds: Iterable[int]) -> Path:
    """BraTS 2021: `BraTS2021_00001/BraTS2021_00001_flair.nii.gz`."""
    return _beside(root / "brats21", seeds, "BraTS2021_{:05d}".format, "_", dict(zip(CHANNELS, CHANNELS, strict=True)))


def brats23(root: Path, seeds: Iterable[int]) -> Path:
    """BraTS 2023: `BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2f.nii.gz`."""
    words = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w"}
    return _beside(root / "brats23", seeds, "BraTS-GLI-{:05d}-000".format, "-", words)


def bids(root: Path, seeds: Iterable[int], session: str = "pre") -> Path:
    """BIDS: suffixes, and the entity `ce-` for T1 with contrast; labels in `derivatives`."""
    folder = root / "bids"
    suffixes = {"flair": "FLAIR", "t1": "T1w", "t1ce": "ce-GAD_T1w", "t2": "T2w"}
    for seed in seeds:
        channels, label = brain(seed)
        place, name = f"sub-{seed:02d}/ses-{session}/anat", f"sub-{seed:02d}_ses-{session}"
        for channel, suffix in suffixes.items():
            _write(folder / place / f"{name}_{suffix}.nii.gz", channels[channel])
        _write(folder / "derivatives/manual" / place / f"{name}_dseg.nii.gz", label)
    return folder


def _beside(folder: Path, seeds: Iterable[int], named: Callable[[int], str], mark: str, words: dict[str, str]) -> Path:
    for seed in seeds:
        channels, label = brain(seed)
        case = named(seed)
        for name in CHANNELS:
            _write(folder / case / f"{case}{mark}{words[name]}.nii.gz", channels[name])
        _write(folder / case / f"{case}{mark}seg.nii.gz", label)
    return folder


def _write(path: Path, voxels: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, voxels, AFFINE)


def _write_4d(path: Path, images: list[NDArray[np.int16]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytearray(encode_nifti(images[0], AFFINE)[:352])
    header[40:56] = np.array([4, *images[0].shape, len(images), 1, 1, 1], "<i2").tobytes()
    path.write_bytes(bytes(header) + b"".join(image.tobytes(order="F") for image in images))
