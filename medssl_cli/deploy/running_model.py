"""A model in a process of its own, within limits of memory and time: opened, asked, and opened again when it died.

What it does there costs one scan a code, and the next scan gets a new process. ONNX Runtime runs on the device that was
asked for, or there is an error: never on another one in silence.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import GateError, InputError, UsageError
from medssl_cli.deploy.bundle import Bundle, checked_model, opened_model
from medssl_cli.deploy.device_check import noise_of, require_agreement
from medssl_cli.deploy.devices import device_of, parse_device, unusable
from medssl_cli.deploy.limits import GIB, limits_of
from medssl_cli.deploy.model_process import ModelFailure, ModelProcess
from medssl_cli.deploy.session import CPU, NOT_FINITE, OUT_OF_MEMORY, WRONG_OUTPUT
from medssl_cli.heads import MasksHead
from medssl_cli.work.workers import TIMED_OUT, available_cores

MAX_FAILURES: Final = 3
"""A model that breaks its limits so often in a row is not asked again: a tile has the same size in every scan."""


class UnusableModelError(UsageError):
    """A model that no scan can be given to, found out when the first was to be."""


class RunningModel:
    """An exported model, checked, and its process: what is below `OnnxModel`, which says what the arguments mean.

    Attributes:
        measured_bytes: The most memory that the process was seen to hold after a call; 0 before the first.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_MODEL_INVALID`, `E_MODEL_LIMIT`, `E_DEVICE`.
        GateError: `E_MODEL_CORRUPT`.
    """

    def __init__(
        self,
        path: Path,
        device: str,
        *,
        threads: int | None,
        max_ram_bytes: int | None,
        tile_timeout_s: float | None,
        opens_late: bool,
    ) -> None:
        wanted = parse_device(device)
        process = ModelProcess()  # it imports ONNX Runtime while this process reads the file
        try:
            num_bytes, bundle, sha256 = _given(process, path)
            limits = limits_of(bundle, num_bytes, max_ram_bytes=max_ram_bytes, tile_timeout_s=tile_timeout_s)
            self.bundle, self.sha256, self.limits, self._process = bundle, sha256, limits, process
            self._path = path
            self._prepare(device_of(*wanted), num_bytes, threads=threads)
            if opens_late and self.device == "cpu":
                self._stage = "given"
            else:
                self._open(wanted)
        except BaseException:
            process.close()
            if hasattr(self, "_process"):
                self._process.close()
            raise

    _stage: Literal["given", "loading", "ready"] = "ready"

    def _prepare(self, device: str, num_bytes: int, *, threads: int | None) -> None:
        """Know all that is to be known before the model is loaded; one whose weights alone are too large never is."""
        cores = available_cores()
        self.device, self._threads = device, min(threads or cores, cores)
        self._failures: list[InputError] = []
        self._call = 0
        self._room_bytes, self.measured_bytes = self.limits.model_bytes, 0
        # What a proof notes is what the CPU takes; other devices have memory of their own.
        is_cpu = device == "cpu"
        self._proven_bytes = (self.bundle.memory_bytes or 0) if is_cpu else 0
        self._least_bytes = max(num_bytes, self._proven_bytes) if is_cpu else 0
        if num_bytes > self._room_bytes:
            raise self._too_large(OUT_OF_MEMORY)

    def _open(self, wanted: tuple[str, int]) -> None:
        if self.device == "openvino":
            self._open_compared()
            return
        answer = self._load()
        if self.device != "cpu" and answer["provider"] == CPU:
            if wanted[0] != "auto":
                raise unusable(self.device, answer["missing"])
            self.device = "cpu"
            self._restart()

    def _open_compared(self) -> None:
        """Load the model on a device that is not taken on trust: it must answer noise as the CPU does."""
        device, self.device = self.device, "cpu"
        self._load()
        noise = noise_of(self.bundle.inputs)
        expected = self.compute(*noise)
        self.device = device
        answer = self._restart()
        if answer["provider"] == CPU:
            raise unusable(device, answer["missing"])
        head = self.bundle.head
        activation = head.activation if isinstance(head, MasksHead) else None
        require_agreement(device, expected, self.compute(*noise), activation=activation)
        self.measured_bytes = 0

    def begin_opening(self) -> None:
        """Let a model that opens late be loaded while this process does something else."""
        if self._stage == "given":
            self._stage = "loading"
            self._begin_load()

    def open(self) -> None:
        """Wait until a model that opens late is loaded.

        Raises:
            UnusableModelError: `E_MODEL_INVALID`, `E_MODEL_LIMIT`.
        """
        self.begin_opening()
        if self._stage == "loading":
            self._stage = "ready"
            try:
                self._loaded()
            except UsageError as error:
                raise UnusableModelError(error.code, error.message, hint=error.hint) from error

    def close(self) -> None:
        """End the model's process; the next call would start another one."""
        self._stage = "ready"
        self._process.close()

    def begin_call(self, call: int) -> None:
        """Try anew, however often the model failed in other calls of `infer` than this one."""
        if call != self._call:
            self._call = call
            self._failures.clear()

    def _outputs(self, *inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        """What `compute` gives, in arrays that hold until the next call."""
        if len(self._failures) >= MAX_FAILURES:
            raise self._failures[-1]
        self.open()
        try:
            if not self._process.is_alive:
                self._restart()
            found = self._process.compute(
                inputs,
                _output_shapes(self.bundle, inputs),
                memory_bytes=self._room_bytes,
                timeout_s=self.limits.tile_s * len(inputs[0]),
            )
            self.measured_bytes = max(self.measured_bytes, self._process.resident_bytes)
        except ModelFailure as failure:
            self._failures.append(self._error_of(str(failure)))
            raise self._failures[-1] from None
        self._failures.clear()
        return found

    def compute(self, *inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        """All outputs of the network for its inputs, float32 and bool arrays.

        Raises:
            InputError: `E_RUNTIME`, ONNX Runtime failed or an output is not what the bundle says, or not finite;
                `E_MODEL_LIMIT`, the model took more memory or time than it may.
        """
        return [each.copy() for each in self._outputs(*inputs)]

    def predict(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        """The first output of the network, such as logits `[B, K, *tile]` of tiles `[B, C, *tile]`; see `compute`."""
        return self.compute(*inputs)[0]

    def _restart(self) -> dict[str, Any]:
        """Load the model in a new process, from its file.

        Raises:
            GateError: `E_MODEL_CORRUPT`, the file is another one now, or gone.
        """
        self._process.close()
        process, found = ModelProcess(), ""
        with contextlib.suppress(UsageError, GateError):
            _, _, found = _given(process, self._path)
        if found != self.sha256:
            process.close()
            told = f"{self._path.name} was replaced or removed while it was used"
            raise GateError("E_MODEL_CORRUPT", told, hint="run the command again")
        self._process = process
        return self._load()

    def _load(self) -> dict[str, Any]:
        """Let the process load the model that it was given, and wait until it is loaded."""
        self._begin_load()
        return self._loaded()

    def _begin_load(self) -> None:
        self._process.begin_load(device=self.device, threads=self._threads, memory_bytes=self.limits.model_bytes)

    def _loaded(self) -> dict[str, Any]:
        """What the process says of the model, which takes and gives what the bundle promises."""
        try:
            answer = self._process.loaded(memory_bytes=self.limits.model_bytes, timeout_s=self.limits.tile_s)
        except ModelFailure as failure:
            word = str(failure)
            if word in (OUT_OF_MEMORY, TIMED_OUT):
                raise self._too_large(word) from None
            raise UsageError("E_MODEL_INVALID", f"ONNX Runtime cannot load {self._path.name} ({word})") from None
        _check_signature(answer, self.bundle, self._path.name)
        return answer

    def _too_large(self, word: str) -> UsageError:
        return UsageError("E_MODEL_LIMIT", f"loading {self._path.name} takes {self._excess(word)}")

    def _excess(self, word: str) -> str:
        if word == TIMED_OUT:
            return f"more than {self.limits.tile_s:.0f} seconds"
        return f"more than {self._room_bytes / GIB:.3g} GiB of memory"

    def _error_of(self, word: str) -> InputError:
        """What a failed call means for the scan that it belongs to."""
        on_gpu = "" if not self.device.startswith("cuda") else "free memory of the GPU, or try --device cpu"
        if word == TIMED_OUT or (word == OUT_OF_MEMORY and not on_gpu):
            return InputError("E_MODEL_LIMIT", f"one call of the model takes {self._excess(word)}")
        if word == NOT_FINITE:
            return InputError("E_RUNTIME", "the model's output is not finite (NaN or infinity)")
        if word == WRONG_OUTPUT:
            return InputError("E_RUNTIME", "the model's output has another size or type than its bundle says")
        return InputError("E_RUNTIME", f"ONNX Runtime {word}", hint=on_gpu)


def _given(process: ModelProcess, path: Path) -> tuple[int, Bundle, str]:
    """Give a model to a process, and check every byte of what it was given; its size, bundle and SHA-256."""
    with opened_model(path) as stream:
        data = process.take(stream)
    return len(data), *checked_model(data, path.name)


def _output_shapes(bundle: Bundle, inputs: Sequence[NDArray[Any]]) -> list[list[int]]:
    """Shapes of the outputs, whose free axes have the lengths that the inputs give them."""
    known: dict[int | str, int] = {}
    for port, array in zip(bundle.inputs, inputs, strict=True):
        known.update(zip(port.sizes, array.shape, strict=True))
    return [[known[size] if isinstance(size, str) else size for size in port.sizes] for port in bundle.outputs]


def _check_signature(answer: dict[str, Any], bundle: Bundle, name: str) -> None:
    """The graph must take and give what the bundle promises."""
    for found, ports in ((answer["inputs"], bundle.inputs), (answer["outputs"], bundle.outputs)):
        is_right = len(found) == len(ports) and all(
            len(shape) == len(port.sizes)
            and all(
                isinstance(size, str) or size == other for size, other in zip(port.sizes[1:], shape[1:], strict=True)
            )
            and (name_of == port.name or len(ports) == 1)
            for (name_of, shape), port in zip(found, ports, strict=True)
        )
        if not is_right:
            raise UsageError("E_MODEL_INVALID", f"the graph of {name} does not match its bundle")
