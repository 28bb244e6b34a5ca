"""What a user says about channels: `flair=PATH` of a file or folder, `flair` of all inputs that do not say it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from medssl_cli.base.errors import UsageError
from medssl_cli.formats.name_words import is_channel_word, same_channel
from medssl_cli.formats.source import Source, place_of


def require_word(word: str, *, is_whole: bool = True) -> None:
    """Refuse what names no channel; the message does not repeat it, for it could be a person.

    Args:
        word: Word of the channel.
        is_whole: Nothing else is wrong with what was written.

    Raises:
        UsageError: `E_USAGE`.
    """
    if not is_channel_word(word) or not is_whole:
        raise UsageError(
            "E_USAGE",
            "a channel is one word such as flair, t1ce or adc: small letters, 16 characters and two digits at most",
            hint="--channel WORD=PATH is about a file or folder, one --channel WORD about all other inputs",
        )


def _require_one_word(places: Sequence[tuple[str, Path]]) -> None:
    """Refuse a place that is given two channels."""
    word, place = places[-1]
    other = next((known for known, path in places if path == place and known != word), None)
    if other is not None:
        raise UsageError(
            "E_USAGE",
            f"one file or folder is given two channels, {other} and {word}",
            hint="leave one --channel out",
        )


@dataclass(frozen=True)
class GivenChannels:
    """Channels by place.

    Args:
        places: Word and absolute path of each file or folder that is of one channel, whatever its name says.
        of_all: Word of images of which nothing else says their channel; "" for none.
    """

    places: tuple[tuple[str, Path], ...] = ()
    of_all: str = ""

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Self:
        """What the options say.

        Args:
            texts: `WORD=PATH`, or `WORD` once.

        Raises:
            UsageError: `E_USAGE`.
        """
        places: list[tuple[str, Path]] = []
        of_all = ""
        for text in texts:
            name, mark, path = text.partition("=")
            word = same_channel(name)
            require_word(word, is_whole=bool(path) if mark else not of_all)
            if mark:
                places.append((word, Path(path).resolve()))
                _require_one_word(places)
            else:
                of_all = word
        return cls(tuple(places), of_all)

    @property
    def words(self) -> set[str]:
        """All channels that are named."""
        return {word for word, _ in self.places} | ({self.of_all} - {""})

    @property
    def paths(self) -> list[Path]:
        """Files and folders, which are inputs like the others."""
        return [path for _, path in self.places]

    def channel_of(self, source: Source, stated: str | None) -> str | None:
        """The channel of a file.

        Args:
            source: The file.
            stated: What its layout says.
        """
        place = self.at(source)
        return place[0] if place else stated or self.of_all or None

    def at(self, source: Source) -> tuple[str, Path] | None:
        """The channel of the innermost place that holds a file, and the place."""
        place = place_of(source)
        holders = [one for one in self.places if place == one[1] or one[1] in place.parents]
        return max(holders, key=lambda one: len(one[1].parts), default=None)
