"""Scans with their answers as a page shows them: read once more, from the files that hold them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.base.errors import InputError
from medssl_cli.base.files import sha256_file
from medssl_cli.deploy.answer_pictures import Drawable, answer_picture, answer_scene
from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.class_words import class_colours, shown_classes
from medssl_cli.deploy.mask_files import PROBABILITIES_SUFFIX
from medssl_cli.deploy.outputs import read_mask
from medssl_cli.deploy.results import ScanResult
from medssl_cli.deploy.scan_reader import ScanReader
from medssl_cli.deploy.scans import Scan
from medssl_cli.deploy.whole_answers import REGIONS, FoundBox, WholeAnswer
from medssl_cli.heads import MasksHead
from medssl_cli.imaging.volume import Volume
from medssl_cli.report.pictures import with_few_colours
from medssl_cli.report.viewer import Scene
from medssl_cli.tasks import load_part, task_of_head

PICTURE_BYTES: Final = 85_000
PICTURE_WIDTH_PX: Final = 700
SMALLER: Final = 0.8
MASK_SUFFIXES: Final = (".nii", ".nii.gz")


@dataclass(frozen=True)
class ShownCase:
    """A scan with its answer.

    Args:
        scene: For the slice viewer.
        picture: A small picture.
    """

    scene: Scene
    picture: Image.Image


@dataclass(frozen=True)
class CaseReader:
    """Reads scans once more, with what was found in them.

    Args:
        bundle: Bundle of the model.
        reader: Reads the scans.
        folder: Outputs lie there.
    """

    bundle: Bundle
    reader: ScanReader
    folder: Path

    def read(self, scan: Scan, result: ScanResult, *, max_bytes: int) -> ShownCase | None:
        """A scan as a page shows it; None of one that cannot be read or drawn any more.

        Args:
            scan: The scan.
            result: What became of it.
            max_bytes: Most that its voxels take, compressed.
        """
        classes = shown_classes(self.bundle)
        try:
            volume = self.reader.read_all(scan)[0].volume
            answer = self._answer(result, volume)
            picture = small_picture(answer_picture(volume, answer, classes, class_colours(self.bundle, classes)))
            return ShownCase(answer_scene(volume, answer, max_bytes=max_bytes), picture)
        except Exception:  # noqa: BLE001 - the scan has its row on the page all the same
            return None

    def _answer(self, result: ScanResult, volume: Volume) -> Drawable:
        """What the report and its files say was found in a scan."""
        head = self.bundle.head
        if not isinstance(head, MasksHead):
            boxes = tuple(
                FoundBox(box["class"], box["score"], box["is_yes"], tuple(box["corners"]), box.get("diameter_mm"))
                for box in result.boxes
            )
            return WholeAnswer(result.head, result.findings, boxes, result.thresholds)
        names = [
            name
            for name in result.outputs
            if name.lower().endswith(MASK_SUFFIXES) and not name.endswith(PROBABILITIES_SUFFIX)
        ]
        masks = np.stack([self._mask(name, result, volume) for name in names])
        painted: NDArray[np.uint8] = load_part(task_of_head(head.kind), "decode").painted(masks, masks)
        return painted if result.head == REGIONS else masks[0]

    def _mask(self, name: str, result: ScanResult, volume: Volume) -> NDArray[np.uint8]:
        """A mask that is as it was written."""
        path = self.folder / name
        if sha256_file(path) != result.outputs_sha256.get(name):
            raise InputError("E_CHANGED_DURING_READ", f"{name} is another file now")
        mask = read_mask(path, self.reader.policy)
        if mask.shape != volume.shape:
            raise InputError("E_CHANGED_DURING_READ", f"{name} is on another grid than its scan")
        return mask


def small_picture(picture: Image.Image, *, max_bytes: int = PICTURE_BYTES) -> Image.Image:
    """A picture of few colours, made smaller until it fits.

    Args:
        picture: Any picture.
        max_bytes: Most that it takes as PNG.
    """
    scale = min(1.0, PICTURE_WIDTH_PX / picture.width)
    while True:
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        reduced = picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
        found = with_few_colours(reduced)
        buffer = io.BytesIO()
        found.save(buffer, format="PNG")
        if buffer.tell() <= max_bytes or max(size) == 1:
            return found
        scale *= SMALLER


def worth_showing(results: Sequence[ScanResult]) -> list[ScanResult]:
    """Results that are done, those with warnings or something found first, else in their order."""
    return sorted((one for one in results if one.status == "done"), key=lambda one: not _is_remarkable(one))


def _is_remarkable(result: ScanResult) -> bool:
    is_found = any(score >= result.thresholds.get(name, 1.0) for name, score in result.findings.items())
    return bool(result.warnings) or is_found or any(box["is_yes"] for box in result.boxes)
