"""Tiles of nothing but one value are asked about once, and the masks are the same to the byte."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.imaging.constant_tiles import ConstantTiles, constant_values
from medssl_cli.imaging.memory import volume_memory
from medssl_cli.imaging.segment import segment_volume
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Channel, Preprocessing
from tests.toy_model import TILE, write_region_model, write_toy_model

SHAPE = (60, 52, 30)
SIZE = (12, 10, 8)
WINDOW = Preprocessing(window_hu=(-175.0, 250.0), spacing_mm=(1.0, 1.0, 1.0))
AFFINE = np.diag([-0.9, -0.9, 1.1, 1.0])


class PlaceDependent:
    """A network of fixed random numbers whose answer differs from voxel to voxel even where its input does not.

    Args:
        num: Outputs K.
        channels: Inputs C.
    """

    def __init__(self, num: int = 3, channels: int = 1) -> None:
        drawn = np.random.default_rng(0)
        self.weights = drawn.normal(size=(num, channels, *SIZE)).astype(np.float32)
        self.biases = drawn.normal(size=(num, *SIZE)).astype(np.float32)
        self.num_calls = 0

    def __call__(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        self.num_calls += 1
        found: NDArray[np.float32] = np.einsum("bcxyz,kcxyz->bkxyz", tiles, self.weights) + self.biases
        return found


def body_in_air() -> NDArray[np.int16]:
    """An ellipse of noise around water in air of -1000 HU, which no scanner makes so smooth, and in noisy air."""
    voxels = np.random.default_rng(1).normal(-1000, 30, SHAPE)  # all below the window
    x, y, _ = np.indices(SHAPE)
    inside = ((x - 36) / 14) ** 2 + ((y - 24) / 9) ** 2 < 1
    voxels[inside] += 1000 + 100 * np.random.default_rng(2).random(int(inside.sum()))
    return voxels.astype(np.int16)


def padded() -> NDArray[np.int16]:
    """The same, with a frame of a value far below air, as scanners write it outside of the circle they see."""
    voxels = body_in_air()
    voxels[:12], voxels[:, 46:] = -2000, -2000
    return voxels


SCANS = {
    "a body in air": body_in_air(),
    "constant padding": padded(),
    "nothing but air": np.full(SHAPE, -1000, np.int16),
    "no air at all": np.random.default_rng(3).integers(-100, 200, SHAPE).astype(np.int16),
    "smaller than a tile": np.full((5, 6, 3), -1000, np.int16),
}


def answer(predict: Any, voxels: NDArray[Any], **given: Any) -> NDArray[np.uint8]:
    images = [Volume(voxels[np.newaxis], AFFINE, "CT", "HU")] * given.pop("channels", 1)
    return segment_volume(predict, images, **{"preprocessing": WINDOW, "tile": SIZE, "overlap": 0.5, **given})


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
def test_masks_are_the_same_to_the_byte(name: str, activation: str, mirror_axes: tuple[int, ...]) -> None:
    every, few, tiles = PlaceDependent(), PlaceDependent(), ConstantTiles()
    given: dict[str, Any] = {"activation": activation, "mirror_axes": mirror_axes}

    expected = answer(every, SCANS[name], **given)
    found = answer(tiles.remembering(few), SCANS[name], **given)

    assert expected.tobytes() == found.tobytes()
    assert expected.any()  # this network finds something in air, and it is found in every tile of air
    assert tiles.num_calls == every.num_calls == few.num_calls + tiles.num_reused
    assert (tiles.num_reused > 0) == (name not in ("no air at all",) and every.num_calls > 1)


def test_of_air_alone_the_network_is_asked_once_in_all_scans() -> None:
    network, tiles = PlaceDependent(), ConstantTiles()

    for _ in range(3):
        answer(tiles.remembering(network), SCANS["nothing but air"])

    assert network.num_calls == 1
    tiles.forget()
    answer(tiles.remembering(network), SCANS["nothing but air"])
    assert network.num_calls == 2


def test_channels_have_values_of_their_own() -> None:
    # Beside the body the first channel is constant and so is the second, each at the z-score of its own zero.
    rules = (Channel(name="a", zscore=True), Channel(name="b", window_hu=(-175.0, 250.0)))
    every, few, tiles = PlaceDependent(channels=2), PlaceDependent(channels=2), ConstantTiles()
    brain = np.maximum(body_in_air() + 500, 0).astype(np.int16)
    given: dict[str, Any] = {"preprocessing": Preprocessing(channels=rules, spacing_mm=(1.0, 1.0, 1.0)), "channels": 2}

    expected = answer(every, brain, **given)

    assert answer(tiles.remembering(few), brain, **given).tobytes() == expected.tobytes()
    assert 0 < few.num_calls < every.num_calls


def test_constant_is_said_of_bits() -> None:
    tile = np.zeros((1, 2, 4, 4, 4), np.float32)
    tile[0, 1] = np.nan
    assert constant_values(tile) is not None
    assert constant_values(tile) != constant_values(tile[:, :1].copy())
    for place in ((0, 0, 0), (1, 2, 3), (3, 3, 3)):
        other = tile.copy()
        other[(0, 0, *place)] = -0.0
        assert constant_values(other) is None


def test_an_answer_outlives_the_buffer_that_it_came_in() -> None:
    buffer = np.zeros((1, 1, *SIZE), np.float32)

    def predict(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        buffer[...] = tiles + 1
        return buffer

    network = ConstantTiles().remembering(predict)
    first = network(np.zeros((1, 1, *SIZE), np.float32))
    network(np.random.default_rng(0).random((1, 1, *SIZE), dtype=np.float32))

    assert (first == 1).all()
    assert (network(np.zeros((1, 1, *SIZE), np.float32)) == 1).all()


@pytest.mark.parametrize("head", ["classes", "regions"])
def test_onnx_runtime_gives_the_same_bytes(tmp_path: Path, head: str) -> None:
    path = tmp_path / "model.onnx"
    if head == "classes":
        write_toy_model(path, preprocessing=WINDOW)
    else:
        write_region_model(path, ("a", "b"), ("whole", "core"))
    corner = SCANS["a body in air"][np.newaxis, :40, :32, :16] + np.int16(300)
    images = [Volume(corner, np.eye(4))] * (1 + (head == "regions"))

    with closing(OnnxModel(path, "cpu", every_tile=True)) as every, closing(OnnxModel(path, "cpu")) as few:
        expected = every.segment(images)
        assert few.segment(images).tobytes() == expected.tobytes()
        tiles = few.constant_tiles

    assert every.constant_tiles is None
    assert tiles is not None
    assert 0 < tiles.num_reused < tiles.num_calls


def test_the_answer_is_kept_only_where_there_is_memory_for_it(tmp_path: Path) -> None:
    path, shape = write_toy_model(tmp_path / "model.onnx"), (64, 64, 64)
    answer_bytes = 4 * 2 * int(np.prod(TILE))
    given: dict[str, Any] = {"preprocessing": WINDOW, "tile": TILE, "overlap": 0.5, "num_outputs": 2}
    with_it, without = (volume_memory(shape, AFFINE, is_kept=is_kept, **given) for is_kept in (True, False))
    assert with_it.total - without.total == answer_bytes

    with closing(OnnxModel(path, "cpu", max_ram_bytes=2**31)) as model:
        assert model.memory_plan(shape, AFFINE).parts["kept"] == answer_bytes
        model.measured_bytes = 2**30  # twice as much is not left beside the program
        assert model.memory_plan(shape, AFFINE).parts["kept"] == 0
