"""Several channels and overlapping classes, from nnU-Net's raw layout to scores per region."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.prepared import prepare
from medssl_cli.cache.store import Cache
from medssl_cli.cli.scoring import load_subject
from medssl_cli.data.crops import read_input
from medssl_cli.data.selection import examples_of, read_images
from medssl_cli.deploy.export import export_run
from medssl_cli.deploy.infer import infer
from medssl_cli.engine.evaluate import subject_of_run
from medssl_cli.engine.finetune import Choices, finetune
from medssl_cli.engine.finetuned import load_finetuned
from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.engine.weights import load_encoder
from medssl_cli.formats.nifti import read_nifti
from medssl_cli.imaging.preprocessing import network_input
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.recipe import TaskRecipe
from medssl_cli.report.gallery import Gallery
from medssl_cli.tasks import supervision_of
from tests.brain_set import CHANNELS, SHAPE, brain, nnunet_raw
from tests.listener import Listener
from tests.toy_recipes import task_recipe

NUM_CASES = 11
INCOMPLETE = 5
REGIONS = {
    "whole_tumour": ["edema", "enhancing", "necrosis"],
    "tumour_core": ["enhancing", "necrosis"],
    "enhancing": ["enhancing"],
}


def recipe(steps: int = 110, *, classes: Any = REGIONS, channels: Any = None, **data: Any) -> TaskRecipe:
    named = [{"name": "flair", "percentiles": [1, 99]}, *({"name": name, "zscore": True} for name in CHANNELS[1:])]
    return task_recipe(
        {
            "name": "tumour",
            "backbone": {"name": "plainconv", "channels": [16, 8], "strides": [1, 2], "num_convs": [2, 1]},
            "task": {"name": "segmentation", "classes": classes},
            "data": {"channels": channels or named, "crop_size": list(SHAPE), "batch_size": 2, **data},
            "augmentation": {"flip_prob": 0.0},
            "optimizer": {"learning_rate": 2e-2},
            "steps": steps,
            "validate_every": steps,
            "log_every": 5,
            "evaluation": {"lesions": {"dilation_voxels": 1, "min_volume_mm3": 0}},
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Cases of four channels; one of them has lost its second."""
    root = tmp_path_factory.mktemp("brains")
    folder = nnunet_raw(root, range(NUM_CASES))
    (folder / f"imagesTr/Brain_{INCOMPLETE:03d}_0001.nii.gz").unlink()
    ingest([folder], root / "cache", IngestOptions(workers=1, modality="MR"))
    return Cache.open(root / "cache")


@pytest.fixture(scope="module")
def trained(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Listener]:
    root, heard = tmp_path_factory.mktemp("regions") / "run", Listener()
    finetune(recipe(), cache, root, Choices(), device="cpu", talk=heard)
    return root, heard


def test_examples_hold_the_channels_in_the_order_of_the_recipe_each_by_its_own_rule(cache: Cache) -> None:
    wanted = recipe(channels=[{"name": "t2", "zscore": True}, {"name": "t1gd", "window_hu": [0, 600]}])
    supervision = supervision_of(wanted)

    records = supervision.usable(cache, Silence())
    (item, *_) = prepare(cache, examples_of(cache, records, supervision.preprocessing), supervision.preprocessing)

    found = read_input(item, (0, 0, 0), item.shape, pad_with_low=False)
    volumes = [cache.read_image(cache.record(each.item_id)) for each in
               examples_of(cache, records[:1], supervision.preprocessing)[0].items]  # fmt: skip
    assert found.shape == (2, *SHAPE)
    np.testing.assert_array_equal(found, network_input(volumes, supervision.preprocessing).voxels)
    drawn = [brain(seed)[0] for seed in range(NUM_CASES)]
    assert any(
        all(np.array_equal(np.sort(volume.voxels, None), np.sort(case[name], None))
            for volume, name in zip(volumes, ("t2", "t1ce"), strict=True))
        for case in drawn
    )  # fmt: skip


def test_cases_that_lack_a_channel_are_left_out_and_counted(cache: Cache, trained: tuple[Path, Listener]) -> None:
    _, heard = trained

    assert any("W_EXAMPLE_LEFT_OUT: 1 of 11 cases are no examples: 1 without" in note for note in heard.notes)
    assert any(note.startswith("patients: ") for note in heard.notes)
    with pytest.raises(NothingUsableError, match="E_CHANNEL_MISSING: no image is of the channels dwi"):
        supervision_of(recipe(channels=[{"name": "dwi", "zscore": True}])).usable(cache, Silence())


def test_the_network_has_as_many_inputs_as_the_recipe_has_channels_and_as_many_outputs_as_regions(
    trained: tuple[Path, Listener],
) -> None:
    run = load_finetuned(trained[0])

    first, *_, last = (tensor for name, tensor in run.network.state_dict().items() if name.endswith("weight"))
    assert run.in_channels == first.shape[1] == 4
    assert last.shape[0] == 3
    assert list(run.classes.values()) == list(REGIONS)
    assert run.is_exportable


def test_weights_of_another_number_of_channels_are_refused(
    cache: Cache, trained: tuple[Path, Listener], tmp_path: Path
) -> None:
    encoder = load_encoder(trained[0])
    one = recipe(channels=[{"name": "flair", "zscore": True}])

    assert encoder.in_channels == 4
    with pytest.raises(UsageError, match=r"E_WEIGHTS_MISMATCH: 0 tensors missing, 0 unexpected, [1-9]"):
        finetune(one, cache, tmp_path / "run", Choices(encoder=encoder), device="cpu", talk=Silence())


def test_regions_are_learnt_and_scored_one_by_one(cache: Cache, trained: tuple[Path, Listener]) -> None:
    root, _ = trained
    losses = [row["loss"] for row in read_metrics(root) if "loss" in row]
    assert losses[-1] < losses[0] / 2

    subject = subject_of_run(root, cache, split="test", device="cpu")
    gallery = Gallery(subject.draw, limit=2)
    results = subject.score(cache, split="test", talk=Silence(), on_case=gallery.add)

    structures = results.document["structures"]
    assert list(structures) == list(REGIONS)
    for scores in structures.values():
        assert scores["dice"]["mean"] > scores["constant_predictor_dice"] + 0.3
        assert scores["hd95_mm"]["mean"] is not None
        assert 0 < scores["nsd"]["mean"] <= 1
    page = subject.page(results.document, gallery.pictures())
    assert all(name in page for name in REGIONS)
    assert "Structures overlap" in page
    assert page.count("<img") >= 2


def test_the_exported_model_scores_like_the_run_and_infer_draws_what_was_scored(
    cache: Cache, trained: tuple[Path, Listener], tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    export_run(trained[0], model, cache_root=cache.root, cases=2)
    of_run = subject_of_run(trained[0], cache, split="test", device="cpu")
    of_model: Any = load_subject(model, cache, split="test", device="cpu")

    ours, theirs = (
        subject.score(cache, split="test", talk=Silence()).document["structures"] for subject in (of_run, of_model)
    )
    report = infer([cache.root.parent / "Dataset137_Brain"], model, out=tmp_path / "out", device="cpu")

    for name in REGIONS:
        assert {"lesion_dice", "lesion_sensitivity", "false_per_scan"} <= theirs[name].keys() == ours[name].keys()
        assert theirs[name]["dice"]["mean"] == pytest.approx(ours[name]["dice"]["mean"], abs=1e-4)
        assert theirs[name]["nsd"]["mean"] == pytest.approx(ours[name]["nsd"]["mean"], abs=1e-4)
    assert {one.code for one in report.results if one.status == "refused"} == {"E_CHANNEL_MISSING"}
    results = {one.name: one for one in report.results if one.status == "done"}
    assert len(results) == NUM_CASES - 1
    for example in examples_of(cache, of_model.records, recipe().data.preprocessing):
        images = read_images(cache, example)
        (seed,) = [seed for seed in range(NUM_CASES) if np.array_equal(brain(seed)[0]["flair"], images[0].voxels[0])]
        (result,) = [one for name, one in results.items() if f"Brain_{seed:03d}" in name]
        drawn = [read_nifti(tmp_path / "out" / name).image.volume.voxels[0]
                 for name in result.outputs if name.endswith(".nii.gz")]  # fmt: skip
        np.testing.assert_array_equal(np.stack(drawn), of_model.segment(images))


def test_every_third_crop_or_more_shows_the_smallest_region(cache: Cache) -> None:
    wanted = recipe(crop_size=[8, 8, 8])
    wanted = wanted.model_copy(update={"foreground_prob": 1.0})
    supervision = supervision_of(wanted)

    dataset: Any = supervision.dataset(cache, supervision.usable(cache, Silence()), Silence())

    crops = [dataset[step, 0].label for step in range(40)]
    assert {crop.shape for crop in crops} == {(3, 8, 8, 8)}
    assert sum(crop[2].any() for crop in crops) > 40 / 3
    assert all((crop[0] >= crop[1]).all() and (crop[1] >= crop[2]).all() for crop in crops)


def test_classes_that_exclude_each_other_stay_a_softmax(cache: Cache, tmp_path: Path) -> None:
    disjoint = recipe(80, classes=["edema", "necrosis", "enhancing"])
    finetune(disjoint, cache, tmp_path / "run", Choices(), device="cpu", talk=Silence())

    subject = subject_of_run(tmp_path / "run", cache, split="test", device="cpu")
    results = subject.score(cache, split="test", talk=Silence())

    assert load_finetuned(tmp_path / "run").network.state_dict()["decoder.scores.weight"].shape[0] == 4
    assert results.document["structures"]["edema"]["dice"]["mean"] > 0.4
