"""Tables that memory need not hold: what goes in comes out, in order, and a folder without room is a code."""

import threading

import pytest

from medssl_cli.base.errors import StorageError
from medssl_cli.work import scratch
from medssl_cli.work.scratch import ScratchTables, as_key, packed, unpacked


def test_any_text_is_a_key_and_keys_are_in_the_order_of_texts() -> None:
    texts = ["", "1.2", "1.2.3", "1.20", "a\udcff", "ä", "\U0001f600"]
    tables = ScratchTables("CREATE TABLE t (key BLOB)")
    for text in reversed(texts):
        tables.run("INSERT INTO t VALUES (?)", as_key(text))

    assert [row[0] for row in tables.run("SELECT key FROM t ORDER BY key")] == [as_key(text) for text in texts]


def test_what_was_packed_is_equal_again() -> None:
    assert unpacked(packed({"a": (1, None)})) == {"a": (1, None)}


def test_threads_take_turns() -> None:
    tables = ScratchTables("CREATE TABLE t (number INTEGER)")

    def insert() -> None:
        for number in range(50):
            tables.run("INSERT INTO t VALUES (?)", number)

    threads = [threading.Thread(target=insert) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert tables.value("SELECT COUNT(*) FROM t") == 200


def test_a_temporary_folder_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "MEMORY_BYTES", 2**16)
    tables = ScratchTables("PRAGMA max_page_count = 20; CREATE TABLE t (data BLOB)")

    with pytest.raises(StorageError, match="E_IO") as caught:
        tables.run("INSERT INTO t VALUES (?)", bytes(30 * 4096))
    assert "TMPDIR" in caught.value.hint
