"""Numbered pictures of a folder as slices of one volume."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medssl_cli.base.errors import InputError
from medssl_cli.cache.store import Cache
from medssl_cli.formats.picture_stacks import read_stack, stacks_of
from medssl_cli.formats.policy import Policy
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions

POLICY = Policy(burned_in="accept", stack_pictures=True)


def slices(folder: Path, *names: str, size: tuple[int, int] = (6, 5)) -> list[Path]:
    """Pictures whose grey value is their place in the list, 10 apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        noise = np.random.default_rng(place).integers(0, 9, size[::-1])
        Image.fromarray((10 * place + noise).astype(np.uint8)).save(folder / name)
    return [folder / name for name in names]


def test_slices_lie_in_the_order_of_their_numbers_whatever_the_order_of_their_names(tmp_path: Path) -> None:
    pictures = slices(tmp_path, "a9.png", "a10.png", "a11.png", "a100.png")

    (stack,) = stacks_of(reversed(pictures), min_slices=4)
    image = read_stack(stack, modality="CT", policy=POLICY)

    assert image.volume.shape == (6, 5, 4)
    assert (image.volume.voxels[0] // 10).mean(axis=(0, 1)).tolist() == [0, 1, 2, 3]
    assert image.spacing_kind is None  # a volume
    assert "stack-pictures" in image.repairs
    assert image.details == ("W_PICTURE_STACK: 4 pictures, 88 numbers between them left out",)  # 12 to 99


def test_names_that_differ_in_more_than_their_last_number_are_several_stacks(tmp_path: Path) -> None:
    first = slices(tmp_path, *(f"p1-{number}.png" for number in range(4)))
    second = slices(tmp_path, *(f"p2-{number}.png" for number in range(5)))
    few = slices(tmp_path / "few", "1.png", "2.png", "3.png")
    others = slices(tmp_path, "cover.png")

    found = stacks_of([*first, *second, *few, *others], min_slices=4)

    assert [stack.sources for stack in found] == [tuple(first), tuple(second)]


@pytest.mark.parametrize(
    ("names", "policy", "code"),
    [
        (("1.png", "2.png", "02.png", "3.png"), POLICY, "E_DUP_POSITION"),
        (("1.png", "2.png", "3.png", "4.png"), Policy(burned_in="accept", max_volume_bytes=100), "E_TOO_BIG"),
        (("1.png", "2.png", "3.png", "4.png"), Policy(), "E_BURNED_IN"),
    ],
)
def test_a_stack_that_cannot_be_trusted_is_refused(
    names: tuple[str, ...], policy: Policy, code: str, tmp_path: Path
) -> None:
    (stack,) = stacks_of(slices(tmp_path, *names), min_slices=4)

    with pytest.raises(InputError, match=code):
        read_stack(stack, policy=policy)


def test_pictures_of_several_sizes_are_no_stack(tmp_path: Path) -> None:
    pictures = [*slices(tmp_path, "1.png", "2.png", "3.png"), *slices(tmp_path, "4.png", size=(6, 6))]
    (stack,) = stacks_of(pictures, min_slices=4)

    with pytest.raises(InputError, match="E_MATRIX_VARIES: picture 4 has 6 x 6 pixels of uint8, the first 6 x 5"):
        read_stack(stack, policy=POLICY)


def test_a_slice_that_comes_later_makes_a_new_volume_and_a_bad_one_costs_its_folder_only(tmp_path: Path) -> None:
    options = IngestOptions(workers=1, modality="CT", policy=POLICY)
    slices(tmp_path / "in/NCP/7/70", *(f"{number:04d}.png" for number in range(5)))
    (tmp_path / "in/NCP/8/80").mkdir(parents=True)
    bad = slices(tmp_path / "in/NCP/8/80", *(f"{number:04d}.png" for number in range(4)))[2]
    bad.write_bytes(bad.read_bytes()[:-20])

    first = ingest([tmp_path / "in"], tmp_path / "cache", options)
    again = ingest([tmp_path / "in"], tmp_path / "cache", options)
    slices(tmp_path / "in/NCP/7/70", *(f"{number:04d}.png" for number in range(6)))
    grown = ingest([tmp_path / "in"], tmp_path / "cache", options)

    assert (first.num_images, again.num_images, grown.num_images) == (1, 0, 1)
    assert [entry.num_files for entry in first.entries if entry.state == "accepted"] == [5]
    assert [entry.num_files for entry in first.entries if entry.code == "E_TRUNCATED"] == [4]
    (record,) = Cache.open(tmp_path / "cache").records()  # the smaller volume is superseded
    assert record.shape == (6, 5, 6)
