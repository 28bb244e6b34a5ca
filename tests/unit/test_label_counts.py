"""What a recipe has to choose from: names and counts of classes, boxes and findings."""

from pathlib import Path

from medssl_cli.cache.items import Box
from medssl_cli.cache.label_counts import count_labels
from tests.command import medssl
from tests.toy_cache import toy_cache


def test_every_name_is_counted_once_per_set(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=6, size=16)
    first, second, *rest = cache.records()
    box = Box(name="nodule", lower=(0, 0, 0), upper=(1, 1, 1))
    seg = first.labels["seg"].model_copy(update={"regions": {"both": (1, 2)}})
    records = [
        first.model_copy(
            update={
                "labels": {"seg": seg},
                "boxes": {"luna": (box, box)},
                "findings": {"nih": {"mass": 1.0, "effusion": 0.0}},
            }
        ),
        second.model_copy(update={"findings": {"nih": {"mass": 0.0}}, "patient_key": first.patient_key}),
        *rest,
    ]

    found = count_labels(records)

    by_name = {(each.label_set, each.kind, each.name): each.counts for each in found.rows}
    voxels = sum(record.labels["seg"].voxels_per_class[1] for record in records)
    assert by_name["seg", "class", "ball_1"] == (6, 5, voxels)
    assert by_name["seg", "region", "both"] == (1, 1, sum(seg.voxels_per_class.values()))
    assert by_name["luna", "box", "nodule"] == (1, 1, 2)
    assert by_name["nih", "finding", "mass"] == (1, 1, 1)
    assert by_name["nih", "finding", "effusion"] == (0, 0, 1)
    assert found.patients["labelled"] == 5 == found.patients["held out for testing"] + found.patients["to train with"]


def test_a_spacing_that_nobody_knows_is_not_called_a_millimetre(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=1, size=8)
    (record,) = cache.records()
    cache.catalog.put(record.model_copy(update={"spacing_kind": "unknown"}))

    done = medssl("cache", "ls", "--cache", cache.root)

    assert done.exit_code == 0
    assert "unknown" in done.stdout
    assert "2.00" not in done.stdout
    assert "boxes" not in done.stdout
