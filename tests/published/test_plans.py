"""Every published data set can be planned from its own labels, as it comes in from its folder as distributed."""

import io
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.planning import own_task, plan_task
from medssl_cli.engine.step_cost import StepCost
from medssl_cli.formats.dicom import write_ct_series
from medssl_cli.formats.nifti import read_nifti
from medssl_cli.imaging.volume import Volume
from medssl_cli.recipe import load_recipe
from tests.published import brain, chest, heart
from tests.published.files import Published, affine_of
from tests.published.road import FAST, TINY, Road, done

SETS = (brain.msd_brain, heart.mmwhs_ct, chest.vindr)


@pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)
def test_its_own_labels_are_planned(
    make: Callable[[Path], Published], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    road = Road(make(tmp_path), tmp_path, monkeypatch)
    road.ingest()
    cache = Cache.open(road.cache)
    (label_set, *_) = sorted(
        {name for record in cache.records() for kind in (record.labels, record.boxes, record.findings) for name in kind}
    )

    cost = StepCost(step_s=1.0, memory_bytes=10**6)
    plan = plan_task(
        own_task(cache, label_set, "mine"),
        cache,
        device="cpu",
        talk=Silence(),
        minutes=1.0,
        measure=lambda recipe: cost,
    )

    wanted = {name for image in road.made.images.values() for name in image.labels}
    assert plan.fingerprint.num_images > 0
    assert wanted <= set(plan.recipe.task.options["classes"])


def dicom_case(folder: Path, patient: int) -> Path:
    """The four channels of a patient as series of one study, each in a folder called after its channel."""
    for number, (name, voxels) in enumerate(brain.head(patient).items(), start=1):
        write_ct_series(
            folder / name,
            Volume(voxels[None], affine_of(1, brain.SPACING), "CT", "HU"),
            patient_id="P1",
            patient_name="Nobody^None",
            study_uid="1.2.3",
            series_uid=f"1.2.3.{number}",
            frame_of_reference_uid="1.2.3.9",
            series_description="no word",
        )
    return folder


def test_the_regions_of_a_data_set_go_all_the_way_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net's raw layout with lists of values: plan, two steps, scores of each region, a segment of each region."""
    road = Road(brain.nnunet_brats(tmp_path), tmp_path, monkeypatch)
    road.ingest()
    recipe, regions = tmp_path / "tumours.yaml", ["whole tumor", "tumor core", "enhancing tumor"]
    where, held_out = ("--cache", road.cache), road.made.listed("val", ["BraTS2021_00008"])
    given = [f"--set={setting}" for setting in (*FAST, TINY, "data.crop_size=[16, 16, 8]", "data.modality=null")]

    counted = done("cache", "labels", *where)["labels"]
    planned = done("plan", "--labels", "seg", *where, "--device", "cpu", "-o", recipe, *given)
    done("finetune", "--task", recipe, *where, "--run", road.run, "--device", "cpu", "--split-file", f"val={held_out}")
    scores = road.evaluate()
    road.export()
    asked = dicom_case(tmp_path / "scans/case", 6)
    done("infer", asked, "--task", road.model, "--out", tmp_path / "answers", "--device", "cpu", "--no-preview")

    assert {row["name"]: row["number"] for row in counted if row["kind"] == "region"} == {
        "whole tumor": 4 * 32 * (3 * 4 + 2),  # on four channels; of five patients one does not enhance
        "tumor core": 4 * 32 * (2 * 4 + 1),
    }
    assert planned["recipe"]["task"]["classes"] == {
        "whole tumor": [1, 2, "enhancing tumor"],
        "tumor core": [2, "enhancing tumor"],
        "enhancing tumor": ["enhancing tumor"],
    }
    assert "overlap" in planned["reasons"]["task.name"]
    assert "regions that overlap" in recipe.read_text()
    assert load_recipe(recipe).data.channel_names == ("flair", "t1", "t1ce", "t2")
    assert list(scores["structures"]) == regions
    (answer,) = (tmp_path / "answers").glob("**/*.dcm")
    found = hd.seg.segread(io.BytesIO(answer.read_bytes()))
    assert [each.SegmentLabel for each in found.SegmentSequence] == regions
    masks = {path.name: read_nifti(path).image.volume for path in (tmp_path / "answers").glob("**/*.nii.gz")}
    assert len(masks) == len(regions)
    assert sum(int(np.sum(mask.voxels)) for mask in masks.values()) == int(found.get_volume().array.sum())
