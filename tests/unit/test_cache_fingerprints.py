"""The same image under two identities is found, and never lies on both sides of a split."""

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from medssl_cli.cache import splits
from medssl_cli.cache.fingerprints import NO_CONTENT, NearDuplicate, fingerprint, near_duplicates
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.imaging.volume import Volume
from tests.command import medssl
from tests.small_cache import record_of, stored, volume_of


def body(seed: int, shape: tuple[int, int, int] = (48, 40, 32)) -> np.ndarray:
    """Blobs of tissue in air, in HU: smooth, as images are."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, size) for size in shape], indexing="ij"))
    image = np.full(shape, -1000.0)
    for centre, radius, value in zip(
        rng.random((30, 3)), rng.uniform(0.05, 0.3, 30), rng.uniform(-900, 900, 30), strict=True
    ):
        image[((grid - centre[:, None, None, None]) ** 2).sum(axis=0) < radius**2] = value
    return image


def print_of(voxels: np.ndarray) -> str:
    return fingerprint(Volume(voxels[None], np.eye(4), "CT", "HU"))


def distance(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


@pytest.mark.parametrize("seed", range(10))
def test_noise_compression_and_type_hardly_change_a_fingerprint(seed):
    image = body(seed)
    noisy = image + np.random.default_rng(seed).integers(-1, 2, image.shape)

    original = print_of(image.astype(np.int16))

    assert len(original) == 16
    assert print_of(image.astype(np.int16).astype(np.float32)) == original
    assert print_of((image.astype(np.int16) + 1024).astype(np.uint16)) == original
    assert distance(print_of(noisy.astype(np.int16)), original) <= 1
    assert distance(print_of(np.round(image / 8) * 8), original) <= 3


def test_other_images_have_far_fingerprints():
    """Signs of unrelated projections agree by chance: 32 of 64 bits differ, 16 or fewer less than once in 10,000."""
    prints = [print_of(body(seed)) for seed in range(24)]
    distances = [distance(*pair) for pair in combinations(prints, 2)]

    assert min(distances) > 7
    assert 24 < np.mean(distances) < 40


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 200, 1), (16, 16, 16), (17, 130, 65), (512, 8, 1)])
def test_every_size_has_a_fingerprint_and_an_empty_image_has_no_content(shape):
    assert print_of(np.full(shape, 7.0)) == NO_CONTENT
    assert len(print_of(np.random.default_rng(0).normal(size=shape))) == 16


class Item(NamedTuple):
    """As much as a comparison needs."""

    item_id: str
    patient_key: str
    fingerprint: str | None


def test_pairs_are_those_of_a_comparison_of_all_with_all():
    """Of different patients; of equal fingerprints each is paired with one other only."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**63, 60, dtype=np.uint64)
    prints = {int(centre) for centre in centres}
    for centre in centres:
        flips = sum(1 << int(bit) for bit in rng.choice(64, rng.integers(1, 6), replace=False))
        prints.add(int(centre) ^ flips)
    items = [Item(f"i{index:03}", f"p{index // 2}", f"{value:016x}") for index, value in enumerate(sorted(prints))]
    for most in (0, 1, 3, 5):
        expected = {
            NearDuplicate(a.item_id, b.item_id, distance(str(a.fingerprint), str(b.fingerprint)))
            for a, b in combinations(items, 2)
            if a.patient_key != b.patient_key and distance(str(a.fingerprint), str(b.fingerprint)) <= most
        }
        assert set(near_duplicates(items, most)) == expected
        assert bool(expected) == (most > 0)


def test_copies_of_one_image_give_one_pair_each_and_one_patient_none():
    items = [Item(f"i{number}", f"p{number}", "ab" * 8) for number in range(50)]
    same = [Item(f"s{number}", "p", "cd" * 8) for number in range(50)]
    rest = [Item("x", "x", None), Item("y", "y", NO_CONTENT), Item("z", "z", NO_CONTENT)]

    found = near_duplicates([*items, *same, *rest])

    assert len(found) == 49
    assert {pair.distance for pair in found} == {0}
    assert {pair.first for pair in found} | {pair.second for pair in found} == {item.item_id for item in items}


def test_half_a_million_items_are_compared_without_comparing_all_pairs(monkeypatch):
    from medssl_cli.cache import fingerprints

    monkeypatch.setattr(fingerprints, "MAX_COMPARISONS", 3_000_000)
    values = np.random.default_rng(0).integers(0, 2**63, 100_000, dtype=np.uint64)
    items = [Item(f"i{index:06}", f"p{index}", f"{int(value):016x}") for index, value in enumerate(values)]
    items[70_000] = Item("i070000", "p70000", f"{int(values[3]) ^ 0x8000000000010001:016x}")

    assert near_duplicates(items) == [NearDuplicate("i000003", "i070000", 3)]


def test_the_command_lists_pairs_of_patients(tmp_path: Path):
    cache = Cache.open_or_create(tmp_path / "cache")
    voxels = body(1).astype(np.int16)
    first = stored(cache, Volume(voxels[None], np.eye(4), "CT", "HU"), "P1")
    second = stored(cache, Volume(voxels[None] + np.int16(1), np.eye(4), "CT", "HU"), "P2")
    stored(cache, Volume(voxels[None] + np.int16(2), np.eye(4), "CT", "HU"), "P2")

    done = medssl("cache", "duplicates", "--cache", cache.root)

    assert done.exit_code == 0
    assert done.stdout.count("W_NEAR_DUPLICATE") == 2
    assert first.item_id in done.stdout
    assert second.item_id in done.stdout


@pytest.fixture
def cohort(tmp_path: Path) -> list[ItemRecord]:
    """Thirty labelled patients; the first ten share an image with the next ten, one by one."""
    cache = Cache.open_or_create(tmp_path / "cache")
    template = record_of(cache, volume_of()).model_dump()
    label = {"sha256": "0" * 64, "classes": {1: "a"}, "voxels_per_class": {1: 1}}
    return [
        ItemRecord.model_validate(
            {
                **template,
                "item_id": cache.pseudonyms.of("item", str(number)),
                "patient_key": cache.pseudonyms.of("patient", str(number)),
                "fingerprint": f"{number % 10 if number < 20 else number:016x}" if number else "f" * 16,
                "labels": {"seg": label},
            }
        )
        for number in range(30)
    ]


@pytest.mark.parametrize("fold", range(5))
def test_patients_who_share_an_image_are_on_one_side(cohort, fold):
    split = splits.split_items(cohort, cohort, seed=0, fold=fold)

    sides = [{record.patient_key for record in part} for part in (split.train, split.val, split.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 30
    for number in range(1, 10):
        pair = {cohort[number].patient_key, cohort[number + 10].patient_key}
        assert sum(bool(pair & side) for side in sides) == 1


def test_the_same_print_of_another_shape_or_of_nothing_joins_nobody(cohort):
    apart = [
        cohort[0].model_copy(update={"patient_key": f"{letter}" * 26, "fingerprint": value, "shape": (5, 5, depth)})
        for letter, value, depth in (("a", "ab" * 8, 1), ("b", "ab" * 8, 2), ("c", NO_CONTENT, 3), ("d", NO_CONTENT, 3))
    ]

    assert Counter(splits.same_people(apart).values()) == Counter({letter * 26: 1 for letter in "abcd"})


def test_sharing_is_passed_on(cohort):
    chain = [
        cohort[0].model_copy(update={"patient_key": letter * 26, "fingerprint": value * 16})
        for letter, value in (("c", "1"), ("b", "1"), ("b", "2"), ("a", "2"), ("d", "3"))
    ]

    assert splits.same_people(chain) == {
        letter * 26: person * 26 for letter, person in zip("abcd", "aaad", strict=True)
    }
