"""Damaged zip archives: refused with a code, or every member that is served is what a second reader unpacks.

Every mutant is a function of its number. `MEDSSL_FUZZ` multiplies their number, `MEDSSL_FUZZ_SEED` is the first one.
"""

import io
import os
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from medssl_cli.base.errors import CODES, InputError
from medssl_cli.formats.archives import Archive, open_archive
from medssl_cli.work.workers import Workers
from tests.mutants import damaged
from tests.zip_factory import STORED, Raw, zip_bytes

COUNT = 300 * int(os.environ.get("MEDSSL_FUZZ", "1"))
FIRST = int(os.environ.get("MEDSSL_FUZZ_SEED", "0"))
END_BYTES = 300
MEMBERS = tuple(
    np.random.default_rng(number).integers(0, 9, 40 + 90 * number, dtype=np.uint8).tobytes() for number in range(4)
)


def sound(number: int) -> bytes:
    """An archive of four members: made by hand, or by the standard library with or without data descriptors."""
    if number % 3 == 0:
        raw = [Raw(b"a/%d.dcm" % k, data, STORED if k % 2 else 8) for k, data in enumerate(MEMBERS)]
        return zip_bytes(*raw, comment=b"nothing")
    stream = io.BytesIO()
    if number % 3 == 1:
        stream = _Unseekable()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for k, data in enumerate(MEMBERS):
            archive.writestr(f"a/{k}.dcm", data)
    return stream.getvalue()


class _Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def mutant_of(number: int) -> bytes:
    """Damage in front, where the first member begins, or behind, where the directory is."""
    generator = np.random.default_rng([number, 7])
    data = sound(number)
    if generator.random() < 0.5:
        return damaged(data, generator)
    return data[:-END_BYTES] + damaged(data[-END_BYTES:], generator)


def judge(number: int) -> str:
    """What becomes of a mutant: the code of the archive, or for each member a code or "read"."""
    return verdict(mutant_of(number))


def verdict(data: bytes) -> str:
    """As `judge`, of the bytes of an archive."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.zip")
        path.write_bytes(data)
        try:
            archive = open_archive(path)
        except InputError as error:
            return _checked(error, path)
        return " ".join(_member(archive, index, data, path) for index in range(len(archive))) or "empty"


def _member(archive: Archive, index: int, data: bytes, path: Path) -> str:
    try:
        content = b"".join(archive.stream(archive.entry(index)))
    except InputError as error:
        return _checked(error, path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as again:
            expected = again.read(again.infolist()[index])
    except Exception as error:  # noqa: BLE001
        # The other reader compares more of the local header with the directory; what came out has the right checksum.
        return f"underivable:{type(error).__name__}" if content in MEMBERS else "WRONG"
    return "read" if content == expected else "WRONG"


def _checked(error: InputError, path: Path) -> str:
    return error.code if error.code in CODES and str(path) not in error.message else "UNREGISTERED"


def test_damage_is_refused_with_a_code_or_read_as_it_is():
    numbers = range(FIRST, FIRST + COUNT)
    with Workers(2, memory_limit_bytes=2**31) as workers:
        outcomes = list(workers.map(judge, numbers, timeout_s=60))

    assert {outcome.task: outcome.failure for outcome in outcomes if outcome.failure} == {}
    words: Counter[str] = Counter()
    for outcome in outcomes:
        words.update(str(outcome.result).split())
    unknown = {word for word in words if word not in CODES and not word.startswith(("read", "empty", "underivable"))}
    assert not unknown, [outcome.task for outcome in outcomes if unknown & set(str(outcome.result).split())]
    assert words["read"] > COUNT // 4  # most damage moves the directory or the members
    assert len(words) > 5


def test_sound_archives_are_read():
    assert {verdict(sound(number)) for number in range(3)} == {"read read read read"}
