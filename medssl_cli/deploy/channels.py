"""Which channel a scan is and of which case, as far as the user, names, folders and DICOM say it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from medssl_cli.deploy.naming import file_name
from medssl_cli.formats.arrangement import ImageFile
from medssl_cli.formats.cases import example_below, hint_of_folder
from medssl_cli.formats.given_channels import GivenChannels
from medssl_cli.formats.name_words import channel_of_modality
from medssl_cli.formats.open import count_images
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Source, place_of
from medssl_cli.formats.table import stem_of


@dataclass(frozen=True)
class ChannelFinder:
    """Finds the channel and the case of every scan.

    Args:
        given: What the user says.
        root_of: The input that each source was found under.
        policy: What is accepted.
        has_channels: The model names its channels, so that the images of a 4D file of which a description names the
            channels are taken one by one.
        images: What layouts say about files.
    """

    given: GivenChannels
    root_of: Mapping[Source, Path]
    policy: Policy
    has_channels: bool
    images: dict[Source, ImageFile] = field(default_factory=dict)

    def of_file(self, source: Source, kind: str) -> list[str]:
        """The channel of each image of a file, "" where nothing says it."""
        image = self.images.get(source)
        declared = [channel for _, channel in image.parts] if image and self.has_channels else []
        policy = replace(self.policy, split_4d=True)
        if len(declared) > 1 and self.given.at(source) is None and count_images(source, kind, policy) == len(declared):
            return declared
        word = self.given.channel_of(source, image.channel if image else None) or ""
        return [word] * count_images(source, kind, self.policy)

    def case_of(self, source: Source, parts: Sequence[str]) -> tuple[str, str]:
        """What the images of a file's case have in common, and what outputs of the case are called.

        Args:
            source: The file.
            parts: Parts of its path below the input.
        """
        image, given = self.images.get(source), self.given.at(source)
        stem = image.stem if image else stem_of(parts[-1])
        if given or (self.given.of_all and (image is None or image.channel is None)):
            word, root = given or (self.given.of_all, self.root_of[source])
            case = example_below(source, {root}, stem, word)
            return f"given/{case}", file_name((*parts[:-1], f"{PurePath(case).name}.nii.gz"))
        if image is None or image.example is None:
            return "", ""
        return f"{image.patient or ''}/{image.example}", file_name((*parts[:-1], f"{image.stem}.nii.gz"))

    def of_series(self, sources: Sequence[Source], modality: str) -> tuple[str, str]:
        """The channel of a DICOM series and its case; "" for the case where DICOM says which series belong together."""
        if given := self.given.at(sources[0]):
            return given[0], ""
        folders = {place_of(source).parent for source in sources}
        if len(folders) == 1 and (hint := hint_of_folder(*folders)):
            return hint.channel, hint.example
        return self.given.of_all or channel_of_modality(modality), ""
