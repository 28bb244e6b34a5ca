"""Arrays on disk: same bytes for same voxels, opened once, and never a state of the file that is gone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blosc2
import numpy as np
import pytest

from medssl_cli.base.errors import GateError
from medssl_cli.cache.arrays import encode, open_array, read_array, write_array

VOXELS = np.arange(40 * 30 * 20, dtype=np.int16).reshape(40, 30, 20)


def test_an_array_is_opened_once_per_thread(tmp_path: Path) -> None:
    path = tmp_path / "image.b2nd"
    write_array(path, VOXELS)

    first = open_array(path)
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(open_array, path).result()

    assert open_array(path) is first
    assert elsewhere is not first


def test_a_file_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "image.b2nd"
    write_array(path, VOXELS)
    before = open_array(path)
    write_array(path, VOXELS + 1)

    assert np.array_equal(read_array(path), VOXELS + 1)
    assert np.array_equal(before[:], VOXELS)  # who reads on sees one state, not a mixture


@pytest.mark.parametrize("change", [-4096, -1, 1], ids=lambda number: f"{number:+d} bytes")
def test_a_file_of_another_length_than_its_header_says_is_refused(tmp_path: Path, change: int) -> None:
    path = tmp_path / "image.b2nd"
    data = encode(VOXELS)
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))

    with pytest.raises(GateError) as caught:
        open_array(path)

    assert caught.value.code == "E_CACHE_CORRUPT"


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.b2nd"
    path.write_bytes(b"")

    with pytest.raises(GateError):
        open_array(path)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_voxels_come_back_exactly(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "image.b2nd"
    voxels = (VOXELS % 251).astype(dtype)
    write_array(path, voxels)

    assert open_array(path).dtype == np.dtype(dtype)
    assert np.array_equal(read_array(path), voxels)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("shape", [(150, 140, 70), (33, 9, 130), (1, 300, 5)], ids=str)
def test_random_boxes_equal_those_of_the_whole(tmp_path: Path, dtype: str, shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "image.b2nd"
    voxels = generator.normal(100, 30, shape).astype(dtype)
    write_array(path, voxels)

    for _ in range(30):
        ends = [sorted(generator.integers(0, size + 1, 2)) for size in shape]
        box = tuple(slice(int(low), int(high)) for low, high in ends)
        assert np.array_equal(open_array(path)[box], voxels[box])


def test_a_block_that_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.b2nd"
    data = bytearray(encode(np.random.default_rng(0).normal(40, 30, (90, 80, 40)).astype(np.int16)))
    middle = len(data) // 4
    data[middle : 3 * middle] = b"\xff" * (2 * middle)
    path.write_bytes(data)

    with pytest.raises(GateError) as caught:
        read_array(path)

    assert caught.value.code == "E_CACHE_CORRUPT"


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 1), (33, 32, 8), (130, 129, 65), (260, 20, 70)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_chunks_are_cut_as_the_library_cuts_them(shape: tuple[int, int, int], dtype: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    array = blosc2.ndarray_from_cframe(encode(voxels))
    expected = blosc2.empty(shape, np.dtype(dtype), chunks=array.chunks, blocks=array.blocks, cparams=array.cparams)
    expected[...] = voxels

    assert np.array_equal(array[...], voxels)
    assert [array.schunk.get_chunk(number) for number in range(array.schunk.nchunks)] == [
        expected.schunk.get_chunk(number) for number in range(expected.schunk.nchunks)
    ]
