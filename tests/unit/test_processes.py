"""What processes agree on, with a stand-in for the one that launches them. Real ones are in tests/e2e."""

from typing import Any

import pytest

from medssl_cli.base.errors import StorageError, UsageError
from medssl_cli.engine.processes import BUSY, Processes, launched


class FakeFabric:
    """One process of `world_size`; what it hears from the main one is given, what it says is kept."""

    def __init__(self, rank: int = 0, size: int = 2, heard: tuple[Any, ...] = ()) -> None:
        self.world_size, self.global_rank, self.local_rank = size, rank, 0
        self.strategy = self
        self.launcher = None
        self.said: list[Any] = []
        self._heard = list(heard)

    def launch(self) -> None:
        """Nothing to start."""

    def barrier(self) -> None:
        raise RuntimeError("no process group")

    def broadcast(self, value: Any) -> Any:
        self.said.append(value)
        return value if self.global_rank == 0 else self._heard.pop(0)


def test_a_batch_is_dealt_out_evenly_or_refused() -> None:
    processes = Processes(FakeFabric(size=4))

    assert processes.share_of(12) == 3
    with pytest.raises(UsageError, match="E_USAGE"):
        processes.share_of(10)


def test_the_main_process_goes_first_and_keeps_the_others_waiting() -> None:
    order: list[str] = []
    main, other = FakeFabric(rank=0), FakeFabric(rank=1, heard=(BUSY, BUSY, None))

    assert Processes(main).main_first(lambda heartbeat: [heartbeat(), heartbeat(), order.append("main"), 5][-1]) == 5
    assert Processes(other).main_first(lambda heartbeat: [heartbeat(), order.append("other"), 5][-1]) == 5

    assert main.said == [BUSY, BUSY, None]
    assert other.said == [None, None, None]
    assert order == ["main", "other"]


def test_an_error_of_the_main_process_is_everyones_and_said_once() -> None:
    error = UsageError("E_NO_RUN", "nothing there")

    def fail(heartbeat: object) -> None:
        raise error

    with pytest.raises(UsageError) as raised:
        Processes(main := FakeFabric(rank=0)).main_first(fail)
    with pytest.raises(UsageError) as heard:
        Processes(FakeFabric(rank=1, heard=(BUSY, main.said[-1]))).main_first(fail)

    assert raised.value.is_shared
    assert heard.value.is_shared


def test_when_the_main_process_dies_the_others_do_not_go_on() -> None:
    def die(heartbeat: object) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        Processes(main := FakeFabric(rank=0)).main_first(die)
    with pytest.raises(StorageError, match="E_PROCESS_LOST"):
        Processes(FakeFabric(rank=1, heard=(main.said[-1],))).main_first(die)


@pytest.mark.parametrize("words", ["[gloo/transport/tcp/pair.cc] Connection closed by peer", "NCCL error: timed out"])
def test_a_connection_that_breaks_says_that_a_process_is_lost(words: str) -> None:
    with pytest.raises(StorageError, match="E_PROCESS_LOST") as caught, launched(FakeFabric()):
        raise RuntimeError(words)

    assert caught.value.is_shared


@pytest.mark.parametrize(("size", "words"), [(2, "shapes do not match"), (1, "Connection closed by peer")])
def test_other_errors_stay_what_they_are(size: int, words: str) -> None:
    with pytest.raises(RuntimeError, match=words), launched(FakeFabric(size=size)):
        raise RuntimeError(words)


def test_hardware_that_the_cluster_did_not_give_is_a_wrong_option() -> None:
    class Refusing(FakeFabric):
        def launch(self) -> None:
            raise ValueError("You set `devices=4`, but the number of tasks per node is 1")

    with pytest.raises(UsageError, match="E_DEVICE"), launched(Refusing()):
        pytest.fail("it must not begin")
