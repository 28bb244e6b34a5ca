"""What a model may cost: from its tiles, from what is free, and from what the user says."""

from pathlib import Path

import pytest

from medssl_cli.deploy import limits
from medssl_cli.deploy.limits import GIB, free_memory_bytes, limits_of
from tests.toy_model import toy_bundle


def test_a_large_network_has_room_and_a_small_one_no_room_for_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: 100 * GIB)

    large = limits_of(toy_bundle(tile_size=(96, 96, 96)), 250 * 2**20)
    small = limits_of(toy_bundle(tile_size=(16, 16, 16)), 2**20)

    # A SwinUNETR of 48 features holds 5 GiB for such a tile, and takes half a minute on two busy cores.
    assert 10 * GIB < large.model_bytes < 20 * GIB
    assert 200 < large.tile_s < 600
    assert small.model_bytes < 2 * GIB
    assert small.tile_s < 60
    assert large.max_ram_bytes == small.max_ram_bytes == pytest.approx(80 * GIB)


def test_no_model_gets_more_than_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: 5 * GIB)

    found = limits_of(toy_bundle(tile_size=(96, 96, 96)), 250 * 2**20)

    assert found.model_bytes == found.max_ram_bytes == pytest.approx(4 * GIB)


def test_the_limit_of_a_container_is_what_max_ram_is_a_share_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_group_room", lambda root, membership: 1e9)

    assert limits_of(toy_bundle(), 2**20).max_ram_bytes == pytest.approx(0.8e9)


def test_a_tile_of_absurd_size_buys_no_time() -> None:
    assert limits_of(toy_bundle(tile_size=(10**6, 10**6, 10**6)), 2**20).tile_s == 3600


def test_the_user_decides() -> None:
    found = limits_of(toy_bundle(), 2**20, max_ram_bytes=7 * GIB, tile_timeout_s=3.5)

    assert (found.max_ram_bytes, found.model_bytes, found.tile_s) == (7 * GIB, 7 * GIB, 3.5)


def test_free_memory_is_that_of_the_machine_within_its_own_bounds() -> None:
    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)

    assert 0 < free_memory_bytes() <= total * 1024


@pytest.mark.parametrize(
    ("files", "membership", "room"),
    [
        ({"job/memory.max": "1000", "job/memory.current": "400"}, "0::/job", 600),
        ({"job/memory.max": "max", "job/memory.current": "400"}, "0::/job", float("inf")),
        (
            {"job/memory.max": "1000", "job/memory.current": "900", "job/memory.stat": "anon 1\ninactive_file 300\n"},
            "0::/job",
            400,
        ),
        ({"memory.max": "500", "memory.current": "450", "job/memory.max": "max"}, "0::/job", 50),
        (
            {"memory/job/memory.limit_in_bytes": "1000", "memory/job/memory.usage_in_bytes": "100"},
            "9:memory:/job",
            900,
        ),
        ({"job/memory.max": "100", "job/memory.current": "400"}, "0::/job", 0),
        # The tightest of the whole path decides: the slice of a pod, three levels above the process.
        (
            {
                "memory.max": "9000",
                "memory.current": "1000",
                "pods/memory.max": "700",
                "pods/memory.current": "500",
                "pods/pod/memory.max": "max",
                "pods/pod/memory.current": "500",
                "pods/pod/box/memory.max": "600",
                "pods/pod/box/memory.current": "100",
            },
            "0::/pods/pod/box/inner",
            200,
        ),
        # Version 1 beside an empty tree of version 2, as on hosts that have both; 2^63 less a page is no limit.
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "5000",
                "memory/docker/memory.limit_in_bytes": "800",
                "memory/docker/memory.usage_in_bytes": "300",
                "memory/docker/box/memory.limit_in_bytes": "9223372036854771712",
                "memory/docker/box/memory.usage_in_bytes": "300",
            },
            "5:cpu,cpuacct:/other\n4:memory:/docker/box\n0::/",
            500,
        ),
        # Inside a container without a namespace of groups its own group is mounted as the root.
        (
            {"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "100"},
            "9:memory:/docker/0123",
            900,
        ),
        ({}, "0::/job", float("inf")),
        ({}, "nonsense", float("inf")),
    ],
)
def test_the_limit_of_a_container_counts(tmp_path: Path, files: dict[str, str], membership: str, room: float) -> None:
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    (tmp_path / "membership").write_text(membership + "\n")

    assert limits._group_room(tmp_path / "groups", tmp_path / "membership") == room
