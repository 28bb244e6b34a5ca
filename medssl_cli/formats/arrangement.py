"""What a layout makes of the files of an input: images, label maps, and what is neither."""

from dataclasses import dataclass, field
from pathlib import PurePath

from medssl_cli.formats.source import Source


@dataclass(frozen=True)
class ImageFile:
    """An image and what its surroundings say about it.

    Args:
        source: Where it is.
        stem: Its name without suffixes, and without the number or word of its channel among several.
        modality: If the surroundings say it.
        patient: If the layout says it (BIDS), in the clear.
        channel: Which image of its case it is: a word of `name_words.is_channel_word`.
        parts: Modality ("" if unknown) and channel of each 3D image of a 4D file, if they are declared.
        has_siblings: Other images are channels of the same case.
        example: What the layout calls its case, in the clear; None if it is alone.
        partners: Images that it may be a label map of, if its voxels look like one.
    """

    source: Source
    stem: str
    modality: str | None = None
    patient: str | None = None
    channel: str | None = None
    parts: tuple[tuple[str, str], ...] = ()
    has_siblings: bool = False
    example: str | None = None
    partners: tuple[Source, ...] = ()


@dataclass(frozen=True)
class LabelFile:
    """A label map and the images that it may belong to; each must still lie on the same grid.

    Args:
        source: Where it is.
        images: Several for several channels; none if it has lost its image.
        classes: Names of its values, if declared.
        class_name: As it is written; it marks this one class with any value but 0. Files of the same image and set
            with class names make up one label set.
        ignore: Value of voxels that nobody judged.
        set_name: Tells label sets of one image apart; "" for the only or main one.
        names_below: A table below this folder may name its values (BIDS).
        is_by_content: Its voxels, and no name, say that it is a label map.
        fault: Code with which it is refused, whatever it holds.
        regions: Values of each region that is declared beside the classes, by its name.
    """

    source: Source
    images: tuple[Source, ...]
    classes: dict[int, str] | None = None
    class_name: str | None = None
    ignore: int | None = None
    set_name: str = ""
    names_below: PurePath | None = None
    is_by_content: bool = False
    fault: str = ""
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrangement:
    """Images and labels of an input, and the files that a layout says are neither, with a code."""

    images: list[ImageFile] = field(default_factory=list)
    labels: list[LabelFile] = field(default_factory=list)
    skipped: list[tuple[Source, str]] = field(default_factory=list)
