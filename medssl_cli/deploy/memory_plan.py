"""The memory that one scan and the model take together, planned before the scan is read."""

import math
from dataclasses import dataclass
from typing import Any, Final

from medssl_cli.base.errors import InputError
from medssl_cli.deploy.limits import GIB
from medssl_cli.imaging.placement import ChannelImages

PROGRAM_BYTES: Final = 2**28
"""Bytes of this program and its libraries, without any image."""


def sizes_of(images: ChannelImages) -> dict[str, Any]:
    """What a plan is told about images that were read."""
    first, num_voxels = images[0], sum(image.voxels.size for image in images)
    return {
        "shape": first.shape,
        "affine": first.affine,
        "num_channels": math.ceil(num_voxels / math.prod(first.shape)),
        "bytes_per_voxel": max(image.voxels.itemsize for image in images),
    }


@dataclass(frozen=True)
class MemoryPlan:
    """What will be needed, and what may be.

    Args:
        parts: Bytes by what they are for; not all of them exist at once.
        scan_bytes: The most of these that there is at once.
        model_bytes: Bytes of the process that runs the model: measured after a call of the network, before that what it
            has at least.
        allowed_bytes: Bytes that are allowed for everything together.
        tiles: Calls of the network.
    """

    parts: dict[str, float]
    scan_bytes: float
    model_bytes: float
    allowed_bytes: float
    tiles: float

    @property
    def needed_bytes(self) -> float:
        """Everything together."""
        return PROGRAM_BYTES + self.scan_bytes + self.model_bytes

    @property
    def reading_bytes(self) -> float:
        """What is held of a scan while it is read, and until its turn."""
        return sum(self.parts.get(name, 0.0) for name in ("scan", "reading"))

    @property
    def model_room_bytes(self) -> float:
        """What is left for the model's process."""
        return max(0.0, self.allowed_bytes - PROGRAM_BYTES - self.scan_bytes)

    @property
    def is_roomy(self) -> bool:
        """Whether the model's process may grow to twice of what it has."""
        return self.model_room_bytes >= 2 * self.model_bytes

    def require_fit(self) -> None:
        """Refuse what does not fit.

        Raises:
            InputError: `E_TOO_BIG`.
        """
        if self.needed_bytes > self.allowed_bytes:
            raise InputError(
                "E_TOO_BIG",
                f"this image at the model's spacing needs about {self.needed_bytes / GIB:.3g} GiB, "
                f"{self.allowed_bytes / GIB:.3g} GiB are allowed",
                hint="raise --max-ram of medssl infer if there is as much memory; else leave the image out",
            )

    def to_json(self) -> dict[str, Any]:
        """In bytes, and how many tiles there are."""
        parts = {name: round(size) for name, size in self.parts.items()}
        together = {"program": PROGRAM_BYTES, "model": self.model_bytes, "needed": self.needed_bytes}
        return {**parts, **{name: round(size) for name, size in together.items()}, "allowed": round(self.allowed_bytes)}

    @property
    def text(self) -> str:
        """One line for people."""
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.parts.items() if size > GIB / 200)
        return (
            f"about {self.tiles:.0f} tiles, {self.needed_bytes / GIB:.2f} of {self.allowed_bytes / GIB:.2f} GiB: "
            f"program {PROGRAM_BYTES / GIB:.2f}, model {self.model_bytes / GIB:.2f}, {parts} (not all at once)"
        )
