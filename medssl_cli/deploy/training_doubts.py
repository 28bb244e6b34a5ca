"""What is said about a scan that is unlike the images of the training, beside the model's answer."""

from collections.abc import Sequence

from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.surprise import CentreEmbedding
from medssl_cli.deploy.training_images import departures, likeness
from medssl_cli.formats.loaded import LoadedImage

BEYOND, UNLIKE = "W_BEYOND_TRAINING", "W_UNLIKE_TRAINING"


class TrainingDoubts:
    """Doubts about one scan; none where the model knows nothing of its training images.

    Args:
        bundle: Bundle of the model.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.centre = None if bundle.embeddings is None else CentreEmbedding()
        self.likeness: dict[str, float] = {}
        self.codes: tuple[str, ...] = ()
        self.details: tuple[str, ...] = ()

    def look_at(self, images: Sequence[LoadedImage]) -> None:
        """Judge the images of a scan, one per channel, whose embedding the model gave to `centre`."""
        known, summary = self._bundle.training, self._bundle.embeddings
        if known is None:
            return
        volumes, has_spacing = [each.volume for each in images], images[0].spacing_kind != "unknown"
        told = departures(known, volumes, self._bundle.preprocessing, has_spacing=has_spacing)
        self.details = tuple(f"{BEYOND}: {each}" for each in told)
        self.codes = (BEYOND,) if told else ()
        if summary is None or self.centre is None or self.centre.value is None:
            return
        self.likeness = likeness(summary, self.centre.value)
        if self.likeness["distance"] > self.likeness["limit"]:
            self.codes = (*self.codes, UNLIKE)
            distance, limit = self.likeness["distance"], self.likeness["limit"]
            share = f"{100 * summary.limit_share:g} % of {summary.num_left_out} images left out"
            self.details = (*self.details, f"{UNLIKE}: distance {distance:.3g}, {share} are within {limit:.3g}")
