"""What the outputs of a scan are called: by the scan alone, so that no other scan, added or removed, changes it.

A NIfTI file that lies directly in the input gives its own name; any other file its path below the input with a digest
of that path, so that two paths never give one name. A DICOM series is called after its modality and a digest of its
UIDs, wherever its files lie.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from medssl_cli.base.names import is_name_character, safe_name
from medssl_cli.formats.table import stem_of

DIGEST_LENGTH: Final = 12
MAX_CHARACTERS: Final = 60
MAX_BYTES: Final = 120
MAX_WORD_BYTES: Final = 40
"""A file name holds 255 bytes: these, a digest, the task's 64, and suffixes."""
_PLAIN_SUFFIX: Final = ".nii.gz"
_ENDS_IN_DIGEST: Final = re.compile(rf"-[0-9a-f]{{{DIGEST_LENGTH}}}")


def file_name(parts: Sequence[str], *, image: int | None = None) -> str:
    """Name of an image in a file.

    Args:
        parts: Parts of the file's path below the input; its own name comes last.
        image: Which 3D image of a 4D file, from 0.
    """
    name = parts[-1]
    plain = name.removesuffix(_PLAIN_SUFFIX)
    is_known_suffix = plain != name or stem_of(name) != name
    if len(parts) == 1 and image is None and is_known_suffix and _is_plain(plain, has_suffix=plain == name):
        return plain
    suffix = "" if image is None else f"_{image}"
    identity = "/".join(parts) + ("" if image is None else f"#{image}")
    return f"{_shown('_'.join((*parts[:-1], plain)))}{suffix}-{short_digest(identity)}"


def _is_plain(name: str, *, has_suffix: bool) -> bool:
    """Whether a name may be used as it is, and can be no other scan's."""
    is_ambiguous = not has_suffix and stem_of(name) != name
    is_safe = safe_name(name) == name and not name.startswith(".")
    return is_safe and not is_ambiguous and not _ENDS_IN_DIGEST.search(name[-DIGEST_LENGTH - 1 :]) and _fits(name)


def series_name(modality: str, *uids: str) -> str:
    """Name of a DICOM series, or of a part of one.

    Args:
        modality: As the header says.
        uids: UIDs of study and series; what tells the part from others, if it is one.
    """
    return f"{_shown(modality or 'series')}-{short_digest(chr(0).join(uids))}"


def region_words(names: Sequence[str]) -> list[str]:
    """Ends of the names of files that hold one region each; numbered where disks could not tell them apart."""
    plain = [re.sub(r"[/ ]", "_", name) for name in names]
    words = [_beginning("".join(filter(is_name_character, word))) for word in plain]
    if words != plain or len({word.casefold() for word in words}) < len(words):
        return [f"{number}-{word}" for number, word in enumerate(words, start=1)]
    return words


def _beginning(word: str) -> str:
    """As much of a word as a name has room for."""
    return word.encode()[:MAX_WORD_BYTES].decode(errors="ignore")


def short_digest(text: str) -> str:
    """48 bits of a digest, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:DIGEST_LENGTH]


def _fits(name: str) -> bool:
    return len(name) <= MAX_CHARACTERS and len(name.encode()) <= MAX_BYTES


def _shown(text: str) -> str:
    """The end of a text, as much of it as a name may have, in characters that a name may hold."""
    letters = [letter for letter in unicodedata.normalize("NFC", text) if is_name_character(letter) and letter != "/"]
    kept = "".join(letters[-MAX_CHARACTERS:])
    while not _fits(kept):
        kept = kept[1:]
    return kept.strip(" .-") or "scan"
