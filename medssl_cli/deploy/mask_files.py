"""The files of a mask: NIfTI, DICOM objects and a preview; of regions, which may overlap, a NIfTI file for each.

A picture or a DICOM object that cannot be made costs a note and no mask.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import MedsslError
from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.class_words import algorithm_name, class_codes, class_colours
from medssl_cli.deploy.measurements import rounded
from medssl_cli.deploy.naming import region_words
from medssl_cli.deploy.outputs import nifti_mask
from medssl_cli.deploy.whole_answers import REGIONS, WholeAnswer
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.seg_storage import SegStorage
from medssl_cli.heads import MasksHead
from medssl_cli.imaging.measuring import Measurement, measured
from medssl_cli.imaging.volume import Volume
from medssl_cli.report import Colour
from medssl_cli.tasks import load_part, task_of_head

if TYPE_CHECKING:
    from medssl_cli.formats.dicom import Header
    from medssl_cli.formats.dicom_seg import SegmentationObject
    from medssl_cli.formats.series import SeriesPart

Output = Literal[
    "nifti",
    "seg",
    "seg-deflated",
    "seg-labelmap",
    "seg-labelmap-rle",
    "seg-labelmap-deflated",
    "rtstruct",
    "sr",
    "preview",
    "json",
    "probabilities",
]
"""Kinds of files; of DICOM SEG also how it is stored, where that is chosen."""
Preview = Callable[[Volume, NDArray[np.uint8] | WholeAnswer, Mapping[int, str], Mapping[int, Colour]], bytes]
"""A picture (PNG) of an image with its label map `[X, Y, Z]`, findings or boxes; names and colours by number."""

NOT_WRITTEN: Final = {
    "seg": "W_SEG_NOT_WRITTEN",
    "rtstruct": "W_RTSTRUCT_NOT_WRITTEN",
    "sr": "W_SR_NOT_WRITTEN",
    "preview": "W_PREVIEW_NOT_WRITTEN",
}
DICOM_SUFFIXES: Final[dict[Output, str]] = {"seg": ".dcm", "rtstruct": ".rtstruct.dcm", "sr": ".sr.dcm"}
"""Ends of the names of objects of a DICOM series; a report comes after the segmentation that it names."""
PROBABILITIES_SUFFIX: Final = ".probabilities.nii.gz"
_SUFFIXES: Final[dict[Output, str]] = {**DICOM_SUFFIXES, "preview": ".png", "probabilities": PROBABILITIES_SUFFIX}
_WHOLE_SUFFIXES: Final[dict[Output, str]] = {"json": ".json", "sr": DICOM_SUFFIXES["sr"], "preview": ".png"}


@dataclass(frozen=True)
class Target:
    """A file that will hold a result.

    Args:
        kind: Kind of the file.
        path: Its name.
        place: Place of the region whose mask it holds, from 1 on; 0 where it holds all of the answer.
        storage: How a DICOM SEG is stored.
    """

    kind: Output
    path: Path
    place: int = 0
    storage: SegStorage = SegStorage.binary


@dataclass
class Made:
    """What was made of one scan.

    Args:
        files: Files by their paths.
        warnings: About the scan and the files.
        reasons: Why some files are not there.
        fields: Fields for the report.
    """

    files: dict[Path, bytes]
    warnings: list[str]
    reasons: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    def note_missing(self, kind: Output, error: Exception) -> None:
        """Say that a file could not be made, and why."""
        code, told = NOT_WRITTEN[kind], type(error).__name__
        self.warnings.append(code)
        if isinstance(error, MedsslError):
            self.warnings.append(error.code)
            told = error.message
        self.reasons.append(f"{code}: {told}")


def stem_of_mask(path: Path) -> str:
    """The name of a NIfTI file without its suffixes."""
    return path.name[: path.name.lower().rindex(".nii")]


def mask_targets(mask: Path, head: MasksHead, outputs: Collection[Output], *, is_series: bool) -> list[Target]:
    """The files of an answer.

    Args:
        mask: Path of the mask of a label map; those of regions have their names at its end.
        head: Head of the model.
        outputs: Which are wanted.
        is_series: The scan is a DICOM series, so that DICOM objects can name it.
    """
    stem, storage = stem_of_mask(mask), seg_storage(outputs)
    targets = [Target("nifti", mask)]
    if head.are_regions:
        words = region_words(head.words)
        targets = [
            Target("nifti", mask.with_name(f"{stem}_{word}.nii.gz"), place) for place, word in enumerate(words, start=1)
        ]
    wanted = {*outputs, *(() if storage is None else ("seg",))}
    targets += [
        Target(kind, mask.with_name(f"{stem}{suffix}"), storage=storage or SegStorage.binary)
        for kind, suffix in _SUFFIXES.items()
    ]
    return [one for one in targets if one.kind in wanted and (is_series or one.kind not in DICOM_SUFFIXES)]


def seg_storage(outputs: Collection[Output]) -> SegStorage | None:
    """How a DICOM SEG is stored, by what is wanted; None for none."""
    return next((storage for storage in SegStorage if storage.value in outputs), None)


def whole_targets(folder: Path, stem: str, outputs: Collection[Output], *, is_series: bool) -> list[Target]:
    """The files of findings or boxes.

    Args:
        folder: Folder of the outputs.
        stem: Their name without suffixes.
        outputs: Which are wanted beside the JSON file.
        is_series: The scan is a DICOM series, so that a DICOM object can name it.
    """
    targets = [Target(kind, folder / f"{stem}{suffix}") for kind, suffix in _WHOLE_SUFFIXES.items()]
    return [
        one
        for one in targets
        if one.kind == "json" or (one.kind in outputs and (is_series or one.kind not in DICOM_SUFFIXES))
    ]


@dataclass(frozen=True)
class MaskFiles:
    """Makes the files of a scan's mask.

    Args:
        bundle: Bundle of the model.
        model_sha256: SHA-256 of the model.
        series: Series of a DICOM scan, which DICOM objects name.
        preview: Draws a picture.
    """

    bundle: Bundle
    model_sha256: str
    series: "SeriesPart | None"
    preview: Preview | None

    def made(self, targets: Sequence[Target], image: LoadedImage, answer: NDArray[np.uint8]) -> Made:
        """The files, in the order of their targets.

        Args:
            targets: Which files.
            image: The scan, or the first image of its case.
            answer: Label map `[X, Y, Z]`, or masks of regions `[K, X, Y, Z]`.
        """
        by_place = {place: rounded(each) for place, each in measured(answer, image.volume).items()}
        found = Made({}, [*image.warnings, *(() if by_place else ("W_EMPTY_SEGMENTATION",))])
        for target in targets:
            if target.kind == "probabilities":
                continue  # too large to be held: its own file is published for itself
            if target.kind == "nifti":
                found.files[target.path] = self._nifti(target, image, answer)
                continue
            try:
                self._add(target, image.volume, answer, by_place, found)
            except Exception as error:  # noqa: BLE001 - the mask is there all the same
                found.note_missing(target.kind, error)
        names = self._classes
        found.fields["volumes_ml"] = {
            name: by_place[place].volume_ml if place in by_place else 0.0 for place, name in sorted(names.items())
        }
        found.fields["measurements"] = {names[place]: each for place, each in by_place.items()}
        found.fields["value_units"] = image.volume.units
        if answer.ndim == 4:
            found.fields["head"] = REGIONS
        return found

    @property
    def _classes(self) -> dict[int, str]:
        """Names by value."""
        return self.bundle.head.classes if isinstance(self.bundle.head, MasksHead) else {}

    @staticmethod
    def _nifti(target: Target, image: LoadedImage, answer: NDArray[np.uint8]) -> bytes:
        """A label map, or the mask of one region."""
        labels = answer[target.place - 1] if target.place else answer
        is_compressed = target.path.name.lower().endswith(".gz")
        return nifti_mask(
            labels, image.volume.affine, like_header=image.nifti_header, is_compressed=is_compressed
        )  # fmt: skip

    def _add(
        self,
        target: Target,
        volume: Volume,
        answer: NDArray[np.uint8],
        measurements: Mapping[int, Measurement],
        found: Made,
    ) -> None:
        """A picture or a DICOM object."""
        if target.kind == "preview":
            found.files[target.path] = self._picture(volume, answer)
            return
        if target.kind == "rtstruct":
            found.files[target.path] = self._structure_set(volume, answer)
            return
        if target.kind == "sr":
            segmentations = [data for path, data in found.files.items() if path.name == _named(target, "seg")]
            found.files[target.path] = self._report(volume, measurements, segmentations)
            return
        made = self._seg(volume, answer, target.storage)
        found.files[target.path] = made.data
        if made.note:
            found.warnings.append("W_SEG_ATTRIBUTES")
            found.reasons.append(f"W_SEG_ATTRIBUTES: {made.note}")

    def _picture(self, volume: Volume, answer: NDArray[np.uint8]) -> bytes:
        """Preview of regions, each over the larger ones."""
        if self.preview is None:
            raise AssertionError("nobody can draw")
        decode = load_part(task_of_head(self.bundle.head.kind), "decode")
        colours = class_colours(self.bundle, self._classes)
        return self.preview(volume, decode.painted(answer, answer), self._classes, colours)

    def _seg(self, volume: Volume, answer: NDArray[np.uint8], storage: SegStorage) -> "SegmentationObject":
        """A segment for each class or region."""
        from medssl_cli.formats.dicom_seg import write_segmentation

        return write_segmentation(
            answer,
            self._headers,
            self._classes,
            affine=volume.affine,
            codes=class_codes(self.bundle, self._classes),
            storage=storage,
            **self._made_by,
        )

    @property
    def _headers(self) -> "Sequence[Header]":
        return self.series.headers if self.series is not None else ()

    @property
    def _made_by(self) -> dict[str, Any]:
        """What DICOM objects say of the model."""
        name, algorithm = algorithm_name(self.bundle), self.bundle.algorithm
        return {"model_sha256": self.model_sha256, "algorithm_name": name, "algorithm": algorithm}

    def _structure_set(self, volume: Volume, answer: NDArray[np.uint8]) -> bytes:
        """A structure for each class or region."""
        from medssl_cli.formats.dicom_rtstruct import write_structure_set

        return write_structure_set(
            answer,
            self._headers,
            self._classes,
            affine=volume.affine,
            codes=class_codes(self.bundle, self._classes),
            **self._made_by,
        )

    def _report(self, volume: Volume, measurements: Mapping[int, Measurement], segmentations: Sequence[bytes]) -> bytes:
        """What is measured of each class or region; of its segment, if there is a segmentation."""
        from medssl_cli.deploy.statements import of_masks
        from medssl_cli.formats.dicom_sr import write_report

        segmentation = next(iter(segmentations), None)
        said = of_masks(measurements, volume, self._classes, self.bundle, has_segments=segmentation is not None)
        return write_report(said, self._headers, segmentation=segmentation, **self._made_by)


def _named(target: Target, kind: Output) -> str:
    """The name of another object of the same answer."""
    return target.path.name.removesuffix(_SUFFIXES[target.kind]) + _SUFFIXES[kind]
