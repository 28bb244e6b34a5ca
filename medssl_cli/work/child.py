"""The life of a supervised child process: the other end of `medssl_cli.work.workers`. Few imports: it starts fast."""

import contextlib
import os
import sys
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Final

OUT_OF_MEMORY: Final = "out of memory"
KEEP_BYTES: Final = 2**29
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4


def serve(descriptor: int, parent: int, memory_limit_bytes: int, retire_above_bytes: int) -> None:
    """Say that this process is ready, then answer one task after another until the pipe closes.

    Args:
        descriptor: Descriptor of a socket whose other end is the parent's.
        parent: Process number of the parent.
        memory_limit_bytes: Limit of the address space; 0 for none.
        retire_above_bytes: Resident memory from which this process asks to be replaced.
    """
    confine(parent, memory_limit_bytes)
    _keep_memory()
    pipe = Connection(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send_bytes(ForkingPickler.dumps(("ready", None, False)))
        while True:
            reply = _answer(pipe.recv_bytes())
            pipe.send_bytes(_message(reply, retire_above_bytes))


def _answer(message: bytes) -> tuple[str, Any]:
    """Do the task; whatever is raised, panics of decoders included, becomes a word."""
    try:
        function, task = ForkingPickler.loads(message)
        return "result", function(task)
    except MemoryError:
        return "failure", OUT_OF_MEMORY
    except BaseException as error:  # noqa: BLE001 - decoders written in Rust panic with a BaseException
        return "failure", type(error).__name__


def _message(reply: tuple[str, Any], retire_above_bytes: int) -> Any:
    """A reply, and whether this process has grown too heavy to go on."""
    is_heavy = reply == ("failure", OUT_OF_MEMORY) or _resident_bytes() > retire_above_bytes
    try:
        return ForkingPickler.dumps((*reply, is_heavy))
    except MemoryError:
        return ForkingPickler.dumps(("failure", OUT_OF_MEMORY, True))
    except BaseException as error:  # noqa: BLE001 - objects may refuse to be sent in any way they like
        return ForkingPickler.dumps(("failure", type(error).__name__, is_heavy))


def _resident_bytes() -> int:
    """Memory that this process holds; where the system does not tell, the most that it ever held."""
    import resource

    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def confine(parent: int, memory_limit_bytes: int = 0) -> None:
    """No interrupts from the terminal, core dumps or threads; a memory limit; death with the parent.

    Args:
        parent: Process number of the parent.
        memory_limit_bytes: Limit of the address space; 0 for none.
    """
    import resource
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLOSC_NTHREADS",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    ):
        os.putenv(name, "1")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    die_with_parent(parent)


def limit_data(extra_bytes: int) -> None:
    """Let this process hold so many bytes more than it holds now; what asks for more gets a MemoryError.

    What counts is memory that it may write to and shares with nobody (Linux, setrlimit(2), RLIMIT_DATA), unlike a limit
    of address space, of which libraries reserve far more than they touch. Other systems set no limit here.
    """
    import resource

    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        held = int(status.partition("VmData:")[2].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + extra_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def die_with_parent(parent: int) -> None:
    """End this process when its parent ends, or now if it has ended already (Linux, prctl(2)).

    Args:
        parent: Process number of the parent, as the parent knows it.
    """
    import signal

    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _keep_memory() -> None:
    """Use the memory of one volume again for the next: new pages cost more than the work done in them (mallopt(3))."""
    if sys.platform != "linux":
        return
    import ctypes

    library = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # glibc only
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, KEEP_BYTES)
