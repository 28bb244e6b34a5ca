"""ONNX Runtime on the device that was asked for, or an error: never another one in silence.

A model runs in a process of its own, within limits of memory and time: what it does there costs one scan a code, and
the next scan gets a new process.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import GateError, InputError, UsageError
from medssl_cli.deploy.bundle import Bundle, load_model
from medssl_cli.deploy.device_check import noise_of, require_agreement
from medssl_cli.deploy.devices import device_of, parse_device, unusable
from medssl_cli.deploy.limits import GIB, Limits, limits_of
from medssl_cli.deploy.memory_plan import MemoryPlan, sizes_of
from medssl_cli.deploy.model_process import ModelFailure, ModelProcess
from medssl_cli.deploy.session import CPU, NOT_FINITE, OUT_OF_MEMORY, WRONG_OUTPUT
from medssl_cli.deploy.surprise import CentreEmbedding
from medssl_cli.heads import BoxesHead, MasksHead
from medssl_cli.imaging.constant_tiles import ConstantTiles
from medssl_cli.imaging.geometry import Affine, Shape
from medssl_cli.imaging.kept_probabilities import ProbabilityPlanes
from medssl_cli.imaging.memory import parts_of, volume_memory
from medssl_cli.imaging.placement import ChannelImages
from medssl_cli.imaging.preprocessing import channel_images
from medssl_cli.imaging.segment import Progress, segment_volume
from medssl_cli.imaging.tiling import Predict
from medssl_cli.imaging.volume import Volume
from medssl_cli.tasks import load_part, task_of_head
from medssl_cli.work.workers import TIMED_OUT, available_cores

MAX_FAILURES: Final = 3
"""A model that breaks its limits so often in a row is not asked again: a tile has the same size in every scan."""


class OnnxModel:
    """An exported model, checked and ready to run.

    Args:
        path: `model.onnx` written by `medssl export`.
        device: `auto` (CUDA if it works, else CPU), `cpu`, `cuda`, `cuda:N`; `gpu` is another word for `cuda`;
            `openvino`, the CPU by another library, whose answers are compared with those of `cpu` first.
        threads: Threads on the CPU; as many as there are cores by default, and never more.
        max_ram_bytes: Most memory for a scan and the model together; a share of what is free by default.
        tile_timeout_s: Longest time for one call of the network; by default it grows with the tile.
        every_tile: Ask the network about every tile, constant ones too (`ConstantTiles`); the answers are the same.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_MODEL_INVALID`, `E_MODEL_LIMIT`, `E_DEVICE`.
        GateError: `E_MODEL_CORRUPT`.
    """

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        *,
        threads: int | None = None,
        max_ram_bytes: int | None = None,
        tile_timeout_s: float | None = None,
        every_tile: bool = False,
    ) -> None:
        self.constant_tiles = None if every_tile else ConstantTiles()
        wanted = parse_device(device)
        process = ModelProcess()  # it imports ONNX Runtime while this process reads the file
        try:
            data, bundle, sha256 = load_model(path)
            limits = limits_of(bundle, len(data), max_ram_bytes=max_ram_bytes, tile_timeout_s=tile_timeout_s)
            self._open(data, bundle, sha256, process, wanted, limits, threads=threads, name=path.name)
        except BaseException:
            process.close()
            if hasattr(self, "_process"):
                self._process.close()
            raise
        self._read_again = lambda: _unchanged(path, sha256)

    _read_again: Callable[[], bytes]
    beside_bytes: float = 0.0
    """Memory that is taken by work on other scans meanwhile."""

    def _open(
        self,
        data: bytes,
        bundle: Bundle,
        sha256: str,
        process: ModelProcess,
        wanted: tuple[str, int],
        limits: Limits,
        *,
        threads: int | None,
        name: str,
    ) -> None:
        self.bundle, self.sha256, self.limits = bundle, sha256, limits
        cores = available_cores()
        self._name, self._threads, self._process = name, min(threads or cores, cores), process
        self._failures: list[InputError] = []
        self._call = 0
        self._room_bytes, self._measured_bytes = limits.model_bytes, 0
        self.device = device_of(*wanted)
        if self.device == "openvino":
            self._open_compared(data)
            return
        answer = self._load(data)
        if self.device != "cpu" and answer["provider"] == CPU:
            if wanted[0] != "auto":
                raise unusable(self.device, answer["missing"])
            self.device = "cpu"
            self._restart(data)

    def _open_compared(self, data: bytes) -> None:
        """Load the model on a device that is not taken on trust: it must answer noise as the CPU does."""
        device, self.device = self.device, "cpu"
        self._load(data)
        noise = noise_of(self.bundle.inputs)
        expected = self.compute(*noise)
        self.device = device
        answer = self._restart(data)
        if answer["provider"] == CPU:
            raise unusable(device, answer["missing"])
        head = self.bundle.head
        activation = head.activation if isinstance(head, MasksHead) else None
        require_agreement(device, expected, self.compute(*noise), activation=activation)
        self._measured_bytes = 0

    def close(self) -> None:
        """End the model's process; the next call would start another one."""
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
        try:
            if not self._process.is_alive:
                self._restart(self._read_again())
            found = self._process.compute(
                inputs,
                _output_shapes(self.bundle, inputs),
                memory_bytes=self._room_bytes,
                timeout_s=self.limits.tile_s * len(inputs[0]),
            )
            self._measured_bytes = max(self._measured_bytes, self._process.resident_bytes)
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

    def answer(
        self,
        images: Volume | ChannelImages,
        *,
        progress: Progress | None = None,
        probabilities: ProbabilityPlanes | None = None,
        centre: CentreEmbedding | None = None,
    ) -> Any:
        """What the model says of an example: a mask, or what `decode.py` of the task with its head returns.

        Args:
            images: One per channel in the order of the bundle's, in one frame of reference; a single one needs no
                sequence.
            progress: Called after every call of the network.
            probabilities: Gets the probabilities of a model of masks, too.
            centre: Gets the embedding of the example, of a model that gives embeddings.

        Raises:
            InputError: `E_TOO_BIG` before anything is allocated, `E_RUNTIME`, `E_MODEL_LIMIT`.
            UsageError: `E_USAGE`, the model gives embeddings, of which nothing is made here.
        """
        head = self.bundle.head
        if isinstance(head, MasksHead):
            return self.segment(images, progress=progress, probabilities=probabilities, centre=centre)
        decode = load_part(task_of_head(head.kind), "decode")
        self._require_channels(channel_images(images))
        on_centre = None if centre is None else centre.heed
        told = {"progress": progress, "on_centre": on_centre} if isinstance(head, BoxesHead) else {}
        predict = self.predict if centre is None else centre.watched(self.compute)
        answer = decode.answer(predict, images, preprocessing=self.bundle.preprocessing, head=head, **told)
        if centre is not None:
            centre.complete(self.compute)
        return answer

    def segment(
        self,
        images: Volume | ChannelImages,
        *,
        progress: Progress | None = None,
        probabilities: ProbabilityPlanes | None = None,
        centre: CentreEmbedding | None = None,
    ) -> NDArray[np.uint8]:
        """What a model of masks says of an example, on the grid of its first image; see `segment_volume`.

        Raises:
            InputError: `E_TOO_BIG` before anything is allocated, `E_RUNTIME`, `E_MODEL_LIMIT`.
        """
        head = self.bundle.head
        assert isinstance(head, MasksHead)
        plan = self._require_channels(channel_images(images), has_probabilities=probabilities is not None)
        predict = (lambda tiles: self._outputs(tiles)[0]) if centre is None else centre.watched(self._outputs)
        answer = segment_volume(
            self._remembering(plan, predict),
            images,
            preprocessing=self.bundle.preprocessing,
            tile=head.tile_size,
            overlap=head.overlap,
            mirror_axes=head.mirror_axes,
            activation=head.activation,
            num_outputs=self._num_outputs(head),
            progress=progress,
            probabilities=probabilities,
            on_centre=None if centre is None else centre.heed,
        )
        if centre is not None:
            centre.complete(self._outputs)
        found: NDArray[np.uint8] = load_part(task_of_head(head.kind), "decode").finished(
            answer, head.largest, head.classes
        )
        return found

    def _remembering(self, plan: MemoryPlan, predict: Predict) -> Predict:
        """The same network, that is not asked twice about a constant tile where there is memory to keep the answer."""
        if self.constant_tiles is None:
            return predict
        if not plan.parts["kept"]:
            self.constant_tiles.forget()
            return predict
        return self.constant_tiles.remembering(predict)

    def _require_channels(self, images: ChannelImages, *, has_probabilities: bool = False) -> MemoryPlan:
        """Refuse another number of images than the model takes, and more of them than memory holds."""
        if len(images) != self.bundle.in_channels:
            message = f"the model takes {self.bundle.in_channels} images of one patient at once, here are {len(images)}"
            raise InputError("E_RUNTIME", message)
        return self.require_memory(**sizes_of(images), has_probabilities=has_probabilities)

    @property
    def allowed_bytes(self) -> float:
        """What is allowed for a scan and the model."""
        return self.limits.max_ram_bytes - self.beside_bytes

    @property
    def expected_bytes(self) -> int:
        """What the model's process will hold: what it was seen to hold, before that what hardly any model exceeds."""
        return self._measured_bytes or self.limits.usual_bytes

    def memory_plan(
        self,
        shape: Shape,
        affine: Affine,
        *,
        num_channels: int = 1,
        bytes_per_voxel: float = 4,
        has_probabilities: bool = False,
    ) -> MemoryPlan:
        """What an answer about an image takes, the model included; nothing is allocated.

        Args:
            shape: Size (X, Y, Z) of the image.
            affine: Its affine.
            num_channels: How many images of this size there are at once.
            bytes_per_voxel: Bytes per voxel of the image as it is held.
            has_probabilities: Probabilities of a model of masks are written, too.
        """
        head, preprocessing = self.bundle.head, self.bundle.preprocessing
        model_bytes = max(self._process.resident_bytes, self._measured_bytes)
        if isinstance(head, MasksHead):
            sizes: dict[str, Any] = {
                "num_channels": num_channels,
                "bytes_per_voxel": bytes_per_voxel,
                "model_bytes": model_bytes,
                "has_probabilities": has_probabilities,
            }
            keeping = self._plan_of_masks(head, shape, affine, is_kept=self.constant_tiles is not None, **sizes)
            return keeping if keeping.is_roomy else self._plan_of_masks(head, shape, affine, is_kept=False, **sizes)
        memory = volume_memory(
            shape,
            affine,
            preprocessing=preprocessing,
            tile=self.bundle.call_size,
            overlap=head.overlap if isinstance(head, BoxesHead) else 0.0,
            num_outputs=0,
            num_channels=num_channels,
            num_masks=0,
            bytes_per_voxel=bytes_per_voxel,
        )
        parts = parts_of(memory)
        if isinstance(head, BoxesHead):
            parts["decoding"] = head.decoding_bytes(preprocessing)
        scan_bytes = memory.total + parts.get("decoding", 0)
        return MemoryPlan(parts, scan_bytes, model_bytes, self.allowed_bytes, memory.tiles)

    def _plan_of_masks(
        self, head: MasksHead, shape: Shape, affine: Affine, *, model_bytes: float, **sizes: Any
    ) -> MemoryPlan:
        """See `memory_plan`; `sizes` are those of `volume_memory`."""
        memory = volume_memory(
            shape,
            affine,
            preprocessing=self.bundle.preprocessing,
            tile=head.tile_size,
            overlap=head.overlap,
            num_outputs=self._num_outputs(head),
            num_masks=len(head.words) if head.are_regions else 1,
            is_mirrored=bool(head.mirror_axes),
            **sizes,
        )
        tiles = memory.tiles * 2 ** len(head.mirror_axes)
        return MemoryPlan(parts_of(memory), memory.total, model_bytes, self.allowed_bytes, tiles)

    def require_memory(self, shape: Shape, affine: Affine, **sizes: Any) -> MemoryPlan:
        """Refuse an image of which an answer would take more memory than is allowed; see `memory_plan`.

        Where it is close, the network is called once before, to learn what it takes.

        Raises:
            InputError: `E_TOO_BIG`, `E_RUNTIME`, `E_MODEL_LIMIT`.
        """

        def planned() -> MemoryPlan:
            plan = self.memory_plan(shape, affine, **sizes)
            plan.require_fit()
            self._room_bytes = int(min(plan.model_room_bytes, self.limits.model_bytes))
            return plan

        plan, head = planned(), self.bundle.head
        is_close = plan.model_room_bytes < self.limits.usual_bytes
        if isinstance(head, MasksHead) and is_close and not self._measured_bytes:
            self._outputs(np.zeros((1, self.bundle.in_channels, *head.tile_size), np.float32))
            plan = planned()
        return plan

    @staticmethod
    def _num_outputs(head: MasksHead) -> int:
        return len(head.words) + (not head.are_regions)

    def _restart(self, data: bytes) -> dict[str, Any]:
        self._process.close()
        self._process = ModelProcess()
        return self._load(data)

    def _load(self, data: bytes) -> dict[str, Any]:
        """Give the model to its process, and see that it takes and gives what the bundle promises."""
        limits = self.limits
        try:
            answer = self._process.load(
                data,
                device=self.device,
                threads=self._threads,
                memory_bytes=limits.model_bytes,
                timeout_s=limits.tile_s,
            )
        except ModelFailure as failure:
            word = str(failure)
            if word in (OUT_OF_MEMORY, TIMED_OUT):
                raise UsageError("E_MODEL_LIMIT", f"loading {self._name} takes {self._excess(word)}") from None
            raise UsageError("E_MODEL_INVALID", f"ONNX Runtime cannot load {self._name} ({word})") from None
        _check_signature(answer, self.bundle, self._name)
        return answer

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


def _unchanged(path: Path, sha256: str) -> bytes:
    """A model's bytes once more, for a new process.

    Raises:
        GateError: `E_MODEL_CORRUPT`, the file is another one now, or gone.
    """
    data, found = b"", ""
    with contextlib.suppress(UsageError):
        data, _, found = load_model(path)
    if found != sha256:
        told = f"{path.name} was replaced or removed while it was used"
        raise GateError("E_MODEL_CORRUPT", told, hint="run the command again")
    return data


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
