"""Weights of unknown origin: read by a supervised child process, so that no file can run code here or end this process.

The child accepts tensors and nothing else. It writes them into a safetensors file; the parent opens only that.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from medssl_cli.base.errors import UsageError
from medssl_cli.work.child import limit_data
from medssl_cli.work.workers import OUT_OF_MEMORY, TIMED_OUT, Outcome, supervised_map

WRAPPERS: Final = (
    "state_dict", "network_weights", "net", "classy_state_dict", "base_model", "model_state_dict", "model", "trunk"
)  # fmt: skip
BRANCHES: Final = ("student", "teacher")
MAX_WRAPPERS: Final = 4
MAX_TENSORS: Final = 20_000
MAX_NAME: Final = 256
NAME: Final = re.compile(r"[A-Za-z0-9_.\-]+")
TIMEOUT_S: Final = 600.0
BYTES_PER_S: Final = 5e6  # what a slow network drive gives at least
BASE_MEMORY: Final = 24 * 2**30  # address space, most of which torch reserves and never touches
EXTRA_MEMORY: Final = 256 * 2**20  # data that reading any file may need beside a few times its size
# What trainers store beside the weights. The names stand for an inert placeholder; nothing of them is imported.
HARMLESS: Final = (
    "argparse.Namespace",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "torch.optim.adamw.AdamW",  # VoCo's own trainer stores its optimiser as an object
)
DICTIONARIES: Final = ("builtins.dict", "collections.defaultdict")  # of such an object: filled, and never looked into


@dataclass(frozen=True)
class Order:
    """What a child is asked to do.

    Args:
        source: The untrusted file.
        copy: Safetensors file to write.
        branch: Which of "student" and "teacher" to take where they are wrappers; empty if the caller did not say.
    """

    source: Path
    copy: Path
    branch: str = ""


@dataclass(frozen=True)
class Contents:
    """What a child found.

    Args:
        refusal: Why the file was refused; empty if it was not.
        code: Code with a refusal.
        wrappers: Keys that led to the tensors, outermost first.
        aliases: Names whose values are those of another name, which is in the file.
        num_others: Entries beside the tensors that are none.
    """

    refusal: str = ""
    code: str = "E_WEIGHTS_FILE"
    wrappers: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    num_others: int = 0


class _Refused(Exception):  # noqa: N818 - a verdict, not an error
    """Ends the reading of a file in the child."""

    def __init__(self, reason: str, code: str = "E_WEIGHTS_FILE") -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


def read_untrusted(source: Path, copy: Path, *, branch: str = "") -> Contents:
    """Copy the tensors of a weights file into a safetensors file.

    Args:
        source: Written by torch, or safetensors.
        copy: File to write.
        branch: "student", "teacher" or empty.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_WEIGHTS_FILE`, `E_WEIGHTS_BRANCH`.
    """
    if not source.is_file():
        raise UsageError("E_NOT_FOUND", "no such weights file")
    size = source.stat().st_size
    outcomes: Iterator[Outcome[Order, Contents]] = supervised_map(
        extract_bounded,
        [Order(source, copy, branch)],
        num_workers=1,
        timeout_s=TIMEOUT_S + size / BYTES_PER_S,
        memory_limit_bytes=BASE_MEMORY + 4 * size,
    )
    (outcome,) = outcomes
    if outcome.result is None:
        reason = {TIMED_OUT: "reading it took too long", OUT_OF_MEMORY: "it asks for more memory than it may have"}
        raise UsageError("E_WEIGHTS_FILE", reason.get(outcome.failure, "the process that read it died"))
    if outcome.result.refusal:
        raise UsageError(outcome.result.code, outcome.result.refusal)
    return outcome.result


def extract_bounded(order: Order) -> Contents:
    """The child's work, with no more memory than a few times the file's size."""
    limit_data(EXTRA_MEMORY + 4 * order.source.stat().st_size)
    return extract(order)


def extract(order: Order) -> Contents:
    """Copy the tensors of a file, without a limit; refusals are values."""
    try:
        document = _load(order.source)
        wrappers, entries = _unwrap(document, order.branch)
        tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
        _check(tensors, order.source.stat().st_size)
        aliases = _write(tensors, order.copy)
    except _Refused as refused:
        return Contents(refused.reason, refused.code)
    except MemoryError:
        raise
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise MemoryError from error
        return Contents("it is damaged, or no weights file")
    except Exception as error:  # noqa: BLE001 - whatever a damaged or hostile file provokes
        return Contents(f"it is damaged, or no weights file ({type(error).__name__})")
    return Contents(wrappers=wrappers, aliases=aliases, num_others=len(entries) - len(tensors))


def _load(path: Path) -> Any:
    """The object in a file: tensors, plain values and inert placeholders."""
    with path.open("rb") as stream:
        start = stream.read(16)
    if start[:2] == b"PK":
        _check_zip(path)
        return _load_torch(path, is_zip=True)
    if start[8:9] == b"{":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    return _load_torch(path, is_zip=False)


class _Inert:
    """Stands where a file has something harmless that is no weight; takes anything and does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _dictionary(*_: object) -> dict[Any, Any]:
    """Stands for the constructors of dictionaries; torch fills only what is exactly a dictionary."""
    return {}


def _load_torch(path: Path, *, is_zip: bool) -> Any:
    allowed: list[Any] = [*((_Inert, name) for name in HARMLESS), *((_dictionary, name) for name in DICTIONARIES)]
    with torch.serialization.safe_globals(allowed):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except Exception:
            asked = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
            refused = set(asked) - {*HARMLESS, *DICTIONARIES}
            strange = sorted(name for name in refused if NAME.fullmatch(name) and len(name) <= 60)
            if strange:
                raise _Refused(f"it asks for code to be run, not only for tensors: {', '.join(strange[:3])}") from None
            raise


def _check_zip(path: Path) -> None:
    """torch stores and never compresses: no archive of its own is larger inside than outside."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not is_stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise _Refused("it is an archive, but none that torch wrote")
        if archive.testzip() is not None:
            raise _Refused("its checksums do not match: it was damaged on the way")


def _unwrap(document: Any, branch: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Go down from a trainer's state to the names of tensors.

    Returns:
        The keys on the way, and what lies at its end.
    """
    wrappers: list[str] = []
    while isinstance(document, Mapping) and len(wrappers) < MAX_WRAPPERS:  # one may hold itself
        branches = [name for name in BRANCHES if isinstance(document.get(name), Mapping)]
        if len(branches) == 2 and not branch:
            raise _Refused("it holds a student and a teacher", "E_WEIGHTS_BRANCH")
        inner = [branch] if branch in branches else branches
        found = next((name for name in (*WRAPPERS, *inner) if isinstance(document.get(name), Mapping)), None)
        if found is None:
            break
        wrappers.append(found)
        document = document[found]
    if not isinstance(document, Mapping):
        raise _Refused("there are no named tensors in it")
    return tuple(wrappers), {str(name): value for name, value in document.items()}


def _check(tensors: Mapping[str, Tensor], num_bytes: int) -> None:
    """Plain numbers under plain names, no larger than the file that they came from.

    Tensors that share their values count once: nnU-Net stores most under three names.
    """
    if not tensors:
        raise _Refused("there are no named tensors in it")
    if len(tensors) > MAX_TENSORS or not all(len(name) <= MAX_NAME and NAME.fullmatch(name) for name in tensors):
        raise _Refused("its names are not those of weights")
    for tensor in tensors.values():
        is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not is_plain or tensor.is_complex():
            raise _Refused("it holds tensors that are no plain arrays of numbers")
    distinct = {_place(tensor): tensor.numel() * tensor.element_size() for tensor in tensors.values()}
    if sum(distinct.values()) > num_bytes:
        raise _Refused("its tensors are larger than the file")
    if not all(bool(tensor.isfinite().all()) for tensor in _distinct(tensors).values() if tensor.is_floating_point()):
        raise _Refused("it holds numbers that are not finite")


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same numbers in the same memory."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _distinct(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One name for each place."""
    names = {_place(tensor): name for name, tensor in tensors.items()}
    return {name: tensors[name] for name in names.values()}


def _write(tensors: Mapping[str, Tensor], path: Path) -> dict[str, str]:
    """Write every distinct tensor once; returns the names that are left out, each with the one that is written."""
    import safetensors.torch

    distinct = _distinct(tensors)
    storages = Counter(tensor.untyped_storage().data_ptr() for tensor in distinct.values())
    whole = {
        name: tensor.detach() if storages[tensor.untyped_storage().data_ptr()] == 1 else tensor.detach().clone()
        for name, tensor in distinct.items()
    }
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in whole.items()}, path)
    first = {_place(tensor): name for name, tensor in distinct.items()}
    return {name: first[_place(tensor)] for name, tensor in tensors.items() if name not in distinct}
