"""Cubes around nodules and other places: where they lie, what is known of them, and whose they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import Exit
from medssl_cli.cache.annotations import add_boxes
from medssl_cli.cache.items import Box
from medssl_cli.cache.splits import held_out_patients, same_people
from medssl_cli.cache.store import Cache
from medssl_cli.data.cubes import CubeOptions, cube_around, cut_cubes, moved_patients
from tests.command import medssl
from tests.nodule_phantoms import nodule_cache, phantom

OPTIONS = CubeOptions(
    label_set="nodules", names=("nodule",), candidates=None, size=(9, 9, 7), spacing_mm=(1.0, 1.0, 1.5), max_others=3
)


@pytest.fixture
def source(tmp_path: Path) -> Cache:
    return nodule_cache(tmp_path / "cache", num_patients=5)


def cubes_of(source: Cache, root: Path) -> Cache:
    return Cache.open_or_create(root, source.marker.key_file(source.root))


def middle(cache: Cache, item: str) -> float:
    """Value of the voxel in the middle of a cube."""
    voxels = cache.read_image(cache.record(item)).voxels[0]
    return float(voxels[tuple(size // 2 for size in voxels.shape)])


def test_the_middle_of_a_cube_is_the_place() -> None:
    made = phantom(3)

    cube = cube_around(made.volume, made.centres_mm[0], OPTIONS)

    assert cube.voxels.shape == (1, 9, 9, 7)
    assert cube.voxels.dtype == np.int16
    np.testing.assert_allclose((cube.affine @ [4, 4, 3, 1])[:3], made.centres_mm[0], atol=1e-9)
    np.testing.assert_allclose(cube.affine[:3, :3], np.diag([1.0, 1.0, 1.5]), atol=1e-9)
    assert cube.voxels[0, 4, 4, 3] > -300


def test_cubes_show_nodules_or_none_and_belong_to_the_same_patients(source: Cache, tmp_path: Path) -> None:
    target = cubes_of(source, tmp_path / "cubes")

    counts = cut_cubes(source, source.records(), target, OPTIONS)

    found = target.records()
    assert (counts.num_nodules, counts.num_others, counts.num_known) == (6, 15, 0)
    assert {record.patient_key for record in found} == {record.patient_key for record in source.records()}
    for record in found:
        is_nodule = record.findings["nodules"]["nodule"]
        assert (middle(target, record.item_id) > -300) == bool(is_nodule)
        assert (record.shape, record.boxes, record.labels) == ((9, 9, 7), {}, {})
    assert not [problem for problem in target.verify() if problem is not None]


def test_test_patients_who_are_none_of_the_cubes_are_known(source: Cache, tmp_path: Path) -> None:
    target = cubes_of(source, tmp_path / "cubes")
    cut_cubes(source, source.records(), target, OPTIONS)
    held_out = held_out_patients(source.records(), 0)
    other = next(record for record in source.records() if record.patient_key not in held_out)

    assert not moved_patients(source, target)
    add_boxes(source, other.item_id, "lungs", [])  # alone with these label sets: held out by the rule

    assert moved_patients(source, target) == {other.patient_key}


def test_cubes_of_one_image_under_two_identities_are_of_one_person(source: Cache, tmp_path: Path) -> None:
    target = cubes_of(source, tmp_path / "cubes")
    first, *others = source.records()
    records = [first.model_copy(update={"fingerprint": "0123456789abcdef"}), *others]
    twin = records[0].model_copy(update={"patient_key": source.pseudonyms.of("patient", "twin"), "series_key": "twin"})

    cut_cubes(source, records, target, OPTIONS)
    cut_cubes(source, [twin], target, replace(OPTIONS, seed=1))  # other random places

    people = same_people(target.records())
    assert people[twin.patient_key] == people[records[0].patient_key]
    assert len(set(people.values())) == len({record.patient_key for record in records})


def test_again_nothing_is_added(source: Cache, tmp_path: Path) -> None:
    target = cubes_of(source, tmp_path / "cubes")
    cut_cubes(source, source.records(), target, OPTIONS)

    again = cut_cubes(source, source.records(), target, OPTIONS)

    assert (again.num_nodules, again.num_others, again.num_known) == (0, 0, 21)


def test_candidates_that_hit_a_nodule_are_nodules(source: Cache, tmp_path: Path) -> None:
    record = next(record for record in source.records() if record.boxes["nodules"])
    nodule = record.boxes["nodules"][0]
    near = np.add(nodule.lower, nodule.upper) / 2 + (1, 0, 0)
    points = [near.tolist(), [1.0, 1.0, 1.0]]
    with source.writing():
        boxes = [Box(name="not_nodule", lower=tuple(point), upper=tuple(point)) for point in points]
        add_boxes(source, record.item_id, "candidates", boxes)
    done = medssl(
        "cache", "crops", tmp_path / "cubes", "--label-set", "nodules", "--candidates", "candidates",
        "--cache", source.root, "--size", 9, 9, 7, "--spacing", 1, 1, 1.5, "--json",
    )  # fmt: skip

    assert done.exit_code == 0, done.stderr
    target = Cache.open(tmp_path / "cubes")
    values = [record.findings["nodules"]["nodule"] for record in target.records()]
    assert (values.count(1.0), values.count(0.0)) == (7, 1)


def test_sets_that_are_not_there_are_named(source: Cache, tmp_path: Path) -> None:
    where = ["cache", "crops", str(tmp_path / "cubes"), "--cache", str(source.root)]

    for arguments in (["--label-set", "other"], ["--label-set", "nodules", "--candidates", "other"]):
        done = medssl(*where, *arguments)
        assert (done.exit_code, "E_NO_LABELS" in done.stderr) == (Exit.NOTHING, True)
        assert "the cache has nodules" in done.stderr
