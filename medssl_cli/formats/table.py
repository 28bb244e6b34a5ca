"""The table of all formats of images: what `images/` holds, found by being there."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from medssl_cli.formats.dicom import SeriesPart
    from medssl_cli.formats.loaded import LoadedImage
    from medssl_cli.formats.policy import Policy
    from medssl_cli.formats.source import Source
    from medssl_cli.imaging.geometry import Affine, Shape


class Announced(NamedTuple):
    """Size and affine of an image, and bytes of each of its voxels at least, as headers announce them."""

    shape: "Shape"
    affine: "Affine"
    bytes_per_voxel: float


class FileReader(Protocol):
    """What reads all images of one file, or refuses the file with `InputError`."""

    def __call__(
        self, source: "Source", *, modality: str, policy: "Policy", is_label: bool
    ) -> "Sequence[LoadedImage]": ...


@dataclass(frozen=True)
class ImageFormat:
    """One format of images.

    Args:
        suffixes: Suffixes of its files, in small letters, each with its dot; names of images lose them.
        recognises: Whether the first bytes of a file, `discover.HEAD_BYTES` of them, are those of the format.
        read: Reads the images of one file; None where files are put together first, see `formats.series`.
        count: How many images a file gives, told by its header; one if this is not given.
        companions: Other files that the images are read from; none if this is not given.
        announced: What the header of a file, or the headers of slices, announce about the image; None where only
            reading tells. It raises `InputError` where the reader will refuse the file.
        value_names: Names that a label map gives to its own values; none if this is not given.
        is_told_by_name: A file that has one of the suffixes, and is not recognised, is a damaged one and no other file.
        is_flat: Its images are pictures without a place in the patient.
        has_foreign_decoder: Libraries that may die decode it: a process of its own should read it.
    """

    suffixes: tuple[str, ...]
    recognises: "Callable[[bytes, Policy], bool]"
    read: FileReader | None = None
    count: "Callable[[Source, Policy], int] | None" = None
    companions: "Callable[[Source, Policy], Sequence[Source]] | None" = None
    announced: "Callable[[Source | SeriesPart, Policy], Announced | None] | None" = None
    value_names: "Callable[[Source], Mapping[int, str]] | None" = None
    is_told_by_name: bool = False
    is_flat: bool = False
    has_foreign_decoder: bool = False


@cache
def image_formats() -> dict[str, ImageFormat]:
    """All formats by their names, sorted."""
    from medssl_cli.formats import images

    names = sorted(module.name for module in pkgutil.iter_modules(images.__path__))
    found = {name: importlib.import_module(f"{images.__name__}.{name}").FORMAT for name in names}
    return {name: one for name, one in found.items() if isinstance(one, ImageFormat)}


@cache
def image_suffixes() -> tuple[str, ...]:
    """Suffixes of all formats, the longest first."""
    suffixes = {suffix for one in image_formats().values() for suffix in one.suffixes}
    return tuple(sorted(suffixes, key=lambda suffix: (-len(suffix), suffix)))


def stem_of(name: str) -> str:
    """A file's name without the suffix of any image format; other dots belong to the name."""
    lower = name.lower()
    longest = next((suffix for suffix in image_suffixes() if lower.endswith(suffix)), "")
    return name[: len(name) - len(longest)] or name


def is_file_of_images(kind: str) -> bool:
    """Whether a file of a kind holds whole images."""
    found = image_formats().get(kind)
    return found is not None and found.read is not None


def is_file_of_slices(kind: str) -> bool:
    """Whether files of a kind are put together to images."""
    found = image_formats().get(kind)
    return found is not None and found.read is None
