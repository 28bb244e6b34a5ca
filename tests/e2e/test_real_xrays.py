"""Chest X-rays and their table of findings through the real commands, from files to scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.cache.store import Cache
from tests import warm

pytestmark = [pytest.mark.real_data, pytest.mark.slow]
SMALL = [
    "backbone={name: resnet, depth: 18, width: 8}",
    "data.crop_size=[32, 32, 1]",
    "data.num_workers=0",
    "steps=4",
    "validate_every=4",
]


def medssl(*arguments: object) -> Any:
    """The JSON document of a command."""
    done = warm.run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_any_finding_against_none_from_files_to_scores(shared_data: Path, tmp_path: Path) -> None:
    source, where = shared_data / "nih_cxr_1000", ("--cache", tmp_path / "cache")
    read = ("--label-set", "nih", "--modality", "DX", "--burned-in", "accept", "--patient-pattern", r"^(\d+)_")
    settings = [part for setting in SMALL for part in ("--set", setting)]

    medssl("ingest", source / "images320", source / "labels_share.csv", *where, *read)
    tuned = medssl(
        "finetune", "--task", "xray-abnormal", *where, "--run", tmp_path / "run", "--device", "cpu", *settings
    )
    scores = medssl("evaluate", tmp_path / "run", *where, "--device", "cpu")

    records = Cache.open(tmp_path / "cache").records()
    assert len(records) == 422
    assert len({record.patient_key for record in records}) == 263  # as the table of the data set has
    # 195 of the 422 rows of the table name a finding: grep -cv 'No Finding', less the heading.
    assert sum(any(record.findings["nih"].values()) for record in records) == 195
    assert tuned["num_train_patients"] + scores["num_patients"] < 263  # the others validate
    assert scores["num_patients"] == 53  # every fifth of 263
    assert scores["classes"]["abnormal"]["num_known"] == scores["num_items"]
    assert 0 <= scores["mean_auroc"]["low"] <= scores["mean_auroc"]["high"] <= 1
