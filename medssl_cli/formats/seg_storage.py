"""How the voxels of a DICOM SEG are stored: a bit for each segment, or a number for each voxel; as they are or packed.

A label map (DICOM 2024c) has one frame a slice however many classes there are; many viewers know bits only. Bits have
no lossless codec that is widely read, so both are packed by deflating the object, and label maps also by run lengths.
"""

from enum import StrEnum
from typing import Final

PLAIN: Final = "1.2.840.10008.1.2.1"
RUN_LENGTHS: Final = "1.2.840.10008.1.2.5"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"


class SegStorage(StrEnum):
    """Form of the pixels of a DICOM SEG, and how they are packed; values are what `--formats` calls them."""

    binary = "seg"
    binary_deflated = "seg-deflated"
    labelmap = "seg-labelmap"
    labelmap_rle = "seg-labelmap-rle"
    labelmap_deflated = "seg-labelmap-deflated"

    @property
    def is_label_map(self) -> bool:
        """Whether a pixel is the number of its segment, so that segments cannot overlap."""
        return self.value.startswith("seg-labelmap")

    @property
    def transfer_syntax(self) -> str:
        """UID of what the file is coded in (PS3.5 annex A)."""
        if self.value.endswith("deflated"):
            return DEFLATED
        return RUN_LENGTHS if self is SegStorage.labelmap_rle else PLAIN
