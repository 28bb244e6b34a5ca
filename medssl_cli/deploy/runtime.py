"""What an exported model answers, and what memory an answer will take; its process is that of `running_model`."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.deploy.memory_plan import MemoryPlan, sizes_of
from medssl_cli.deploy.running_model import RunningModel
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


class OnnxModel(RunningModel):
    """An exported model, checked and ready to run.

    Args:
        path: `model.onnx` written by `medssl export`.
        device: `auto` (CUDA if it works, else CPU), `cpu`, `cuda`, `cuda:N`; `gpu` is another word for `cuda`;
            `openvino`, the CPU by another library, whose answers are compared with those of `cpu` first.
        threads: Threads on the CPU; as many as there are cores by default, and never more.
        max_ram_bytes: Most memory for a scan and the model together; a share of what is free by default.
        tile_timeout_s: Longest time for one call of the network; by default it grows with the tile.
        every_tile: Ask the network about every tile, constant ones too (`ConstantTiles`); the answers are the same.
        opens_late: On the CPU, let ONNX Runtime load the model no sooner than a scan is known to fit into memory; what
            is wrong with it then is an `UnusableModelError`. Without, it is loaded here.

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
        opens_late: bool = False,
    ) -> None:
        super().__init__(
            path,
            device,
            threads=threads,
            max_ram_bytes=max_ram_bytes,
            tile_timeout_s=tile_timeout_s,
            opens_late=opens_late,
        )
        self.constant_tiles = None if every_tile else ConstantTiles()

    beside_bytes: float = 0.0
    """Memory that is taken by work on other scans meanwhile."""

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
        """What the model's process will hold: seen, or noted by the proof, else what hardly any model exceeds."""
        return self.measured_bytes or self._proven_bytes or self.limits.usual_bytes

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
        model_bytes = max(self._process.resident_bytes, self.measured_bytes or self._least_bytes)
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

    def refuse_too_big(self, shape: Shape, affine: Affine, **sizes: Any) -> None:
        """Refuse an image of which an answer would surely take too much memory, whether the model is loaded or not.

        Raises:
            InputError: `E_TOO_BIG`.
        """
        self.memory_plan(shape, affine, **sizes).require_fit()

    def require_memory(self, shape: Shape, affine: Affine, **sizes: Any) -> MemoryPlan:
        """Refuse an image of which an answer would take more memory than is allowed; see `memory_plan`.

        Where it is close and the bundle does not say what the network takes, it is called once before, to learn that.

        Raises:
            InputError: `E_TOO_BIG`, `E_RUNTIME`, `E_MODEL_LIMIT`.
            UnusableModelError: See `open`.
        """
        self.refuse_too_big(shape, affine, **sizes)
        self.open()

        def planned() -> MemoryPlan:
            plan = self.memory_plan(shape, affine, **sizes)
            plan.require_fit()
            self._room_bytes = int(min(plan.model_room_bytes, self.limits.model_bytes))
            return plan

        plan, head = planned(), self.bundle.head
        is_known = self.measured_bytes or self._proven_bytes
        is_close = plan.model_room_bytes < self.limits.usual_bytes
        if isinstance(head, MasksHead) and is_close and not is_known:
            self._outputs(np.zeros((1, self.bundle.in_channels, *head.tile_size), np.float32))
            plan = planned()
        return plan

    @staticmethod
    def _num_outputs(head: MasksHead) -> int:
        return len(head.words) + (not head.are_regions)
