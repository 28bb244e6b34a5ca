"""An ingest can wait for a transfer to end, with two looks at the folder and never with a file's time and a clock."""

import os

import pytest

from medssl_cli.base.errors import Exit, InterruptedCleanlyError
from medssl_cli.ingest import settle
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.ingest.settle import wait_until_settled
from tests.dicom_factory import ct_series


class Clock:
    """Time that passes only where somebody sleeps; what happens then is given.

    Args:
        events: Called one after the other, one with each sleep.
    """

    def __init__(self, *events):
        self.now = 0.0
        self.events = list(events)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        if self.events:
            self.events.pop(0)()


@pytest.fixture
def clock(monkeypatch):
    def with_events(*events):
        found = Clock(*events)
        monkeypatch.setattr(settle, "time", found)
        return found

    return with_events


def wait(folder, settle_s=10.0, stopped=lambda: False):
    wait_until_settled([folder], settle_s, folder / "cache", stopped, lambda: None)


def test_names_lengths_and_times_each_start_the_waiting_anew(tmp_path, clock):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    (tmp_path / "cache").mkdir()
    time = clock(
        lambda: (tmp_path / "b").write_bytes(b""),  # 1 s: something new
        lambda: None,
        lambda: path.write_bytes(b"12"),  # 3 s: it grows
        lambda: os.utime(path, ns=(0, 5)),  # 4 s: written again with the same length
        lambda: path.rename(tmp_path / "c"),  # 5 s
        lambda: (tmp_path / "cache" / "item").write_bytes(b"1"),  # 6 s: the cache itself does not count
    )

    wait(tmp_path)

    assert time.events == []
    assert time.now == 15


def test_what_never_settles_ends_after_an_hour(tmp_path, clock):
    path = tmp_path / "a"
    path.touch()
    clock(*[lambda: os.truncate(path, path.stat().st_size + 1)] * 4000)

    with pytest.raises(InterruptedCleanlyError, match="E_NOT_SETTLED") as refused:
        wait(tmp_path)

    assert refused.value.exit_code == Exit.INTERRUPTED


def test_a_stop_ends_the_waiting(tmp_path, clock):
    time = clock()

    wait(tmp_path, stopped=lambda: time.now >= 3)

    assert time.now == 3


def test_an_ingest_takes_what_arrived_while_it_waited(tmp_path, clock):
    ct_series(tmp_path / "in", positions_mm=(0, 5, 10, 15))
    clock(lambda: ct_series(tmp_path / "in", positions_mm=(0, 5, 10, 15, 20, 25)))

    report = ingest([tmp_path / "in"], tmp_path / "cache", IngestOptions(workers=1, settle_s=5))

    assert (report.num_images, report.counts["accepted"]) == (1, 6)
