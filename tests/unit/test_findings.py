"""What findings say about classes: present, absent, or nobody knows."""

import math
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.cache.findings import finding_names, is_there, targets_of
from medssl_cli.cache.splits import held_out_patients, probe_patients, split_items
from medssl_cli.cache.store import Cache
from tests.finding_cache import finding_cache

NAMES = ["Edema", "Mass"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return finding_cache(tmp_path_factory.mktemp("findings") / "cache", num_patients=20)


@pytest.mark.parametrize(
    ("findings", "answer"),
    [
        ({"Edema": 1, "Mass": 0}, True),
        ({"Edema": 0, "Mass": 0}, False),
        ({"Edema": 1}, True),  # what else there is does not matter
        ({"Edema": 0}, None),  # there may be a mass
        ({}, None),
        ({"No Finding": 1}, False),
        ({"No Finding": 0}, None),
        ({"No Finding": 0, "Edema": 0, "Mass": 0}, False),
        ({"Edema": 0.5, "Mass": 0}, True),
        ({"Edema": 0.4, "Mass": 0}, False),
    ],
)
def test_any_finding_is_there_if_one_is_and_absent_if_all_are_known_to_be(
    findings: dict[str, float], answer: bool | None
) -> None:
    assert is_there(findings, "any", NAMES) is answer
    assert is_there(findings, "none", NAMES) is (None if answer is None else not answer)


def test_a_class_looks_at_its_own_findings_only() -> None:
    assert is_there({"Mass": 0}, ("Mass",), NAMES) is False
    assert is_there({"Mass": 1}, ("Edema",), NAMES) is None
    assert is_there({"Edema": 0, "Mass": 1}, ("Edema", "Mass"), NAMES) is True


def test_no_finding_is_the_name_of_none(cache: Cache) -> None:
    records = cache.records()
    named = records[0].model_copy(update={"findings": {"toy": {"No Finding": 1.0, "Mass": 0.0}}})

    assert finding_names(records, "toy") == ["Ball", "Haze"]
    assert finding_names([named], "toy") == ["Mass"]


def test_targets_are_one_row_per_image_with_nan_for_what_nobody_knows(cache: Cache) -> None:
    records = cache.records()
    targets = targets_of(records, "toy", {"ball": ("Ball",), "haze": ("Haze",)}, ["Ball", "Haze"])

    assert targets.shape == (40, 2)
    assert targets[:, 0].sum() == 20
    assert np.isnan(targets[:, 1]).sum() == 8  # every fifth of 40
    for record, row in zip(records, targets, strict=True):
        assert row[0] == record.findings["toy"]["Ball"]
        known = record.findings["toy"].get("Haze", math.nan)
        assert row[1] == known or (math.isnan(row[1]) and math.isnan(known))


def test_of_classes_that_exclude_each_other_an_image_shows_exactly_one_or_is_unknown(cache: Cache) -> None:
    classes = {"neither": "none", "ball": ("Ball",), "haze": ("Haze",)}
    targets = targets_of(cache.records(), "toy", classes, ["Ball", "Haze"], is_exclusive=True)

    is_known = ~np.isnan(targets).any(axis=1)
    assert (targets[is_known].sum(axis=1) == 1).all()
    assert np.isnan(targets[~is_known]).all()
    for record, row in zip(cache.records(), targets, strict=True):
        found = record.findings["toy"]
        if found.get("Haze") == 1 and found["Ball"] == 1:
            assert np.isnan(row).all()


def test_patients_with_findings_are_held_out_from_pretraining_as_those_with_label_maps_are(cache: Cache) -> None:
    held_out = held_out_patients(cache.records(), 0)

    assert len(held_out) == 4  # of 20
    assert held_out == held_out_patients(cache.entries(), 0)
    split = split_items(cache.records(), cache.records(), seed=0, fold=0)
    assert {record.patient_key for record in split.test} == held_out


def test_entries_know_the_sets_of_findings_with_and_without_a_catalog(cache: Cache) -> None:
    assert {entry.annotation_sets for entry in cache.entries()} == {("findings/toy",)}
    assert {record.annotation_sets for record in cache.scan()} == {("findings/toy",)}


def test_what_needs_no_labels_is_asked_of_unlabelled_patients_too(tmp_path: Path) -> None:
    cache = finding_cache(tmp_path / "cache", num_patients=10, label_set=None)

    assert probe_patients(cache.entries(), seed=0, is_pseudo=False) == set()
    assert len(probe_patients(cache.entries(), seed=0, is_pseudo=True)) == 2
