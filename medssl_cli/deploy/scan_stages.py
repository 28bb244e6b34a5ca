"""A scan between its stages: read before its turn, and answered before it is written."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from medssl_cli.deploy.probability_file import ProbabilityFile
from medssl_cli.deploy.training_doubts import TrainingDoubts
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.imaging.memory import WRITING_COPIES


@dataclass
class ReadScan:
    """What was read of a scan before its turn.

    Args:
        digest: SHA-256 of its bytes.
        images: Images; None where they were not wanted or could not be read.
        error: Why not.
        seconds: How long it took.
    """

    digest: str
    images: list[LoadedImage] | None
    error: Exception | None
    seconds: float

    def taken(self) -> list[LoadedImage] | None:
        """The images, which are not kept here any longer; None where they were not wanted."""
        if self.error is not None:
            raise self.error
        images, self.images = self.images, None
        return images


@dataclass(frozen=True)
class Answered:
    """What the model said of a scan, before it is written.

    Args:
        image: The scan, or the first image of its case.
        answer: Answer of the model.
        doubts: How unlike the training images it is.
        digest: SHA-256 of what was read.
        seconds: Time until now.
        probabilities: Those of every class, where they are wanted.
    """

    image: LoadedImage
    answer: Any
    doubts: TrainingDoubts
    digest: str
    seconds: float
    probabilities: ProbabilityFile | None = None

    @property
    def writing_bytes(self) -> float:
        """The memory that writing it takes."""
        masks = self.answer.nbytes if isinstance(self.answer, np.ndarray) else 0
        return self.image.volume.voxels.nbytes + masks * (1 + WRITING_COPIES)
