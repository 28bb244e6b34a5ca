"""Images of a cache are put together to examples by what their records say, and by nothing else."""

from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import InputError, NothingUsableError, UsageError
from medssl_cli.cache.items import Entry, ItemRecord, LabelRecord, entry_of
from medssl_cli.cache.splits import held_out_patients, split_items
from medssl_cli.cache.store import Cache
from medssl_cli.data.examples import Example, annotated_examples, examples, examples_with
from tests.small_cache import record_of, volume_of

CASE = {"channel": None, "example": None, "frame": None, "study": None, "patient": "P1"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache.open_or_create(tmp_path_factory.mktemp("examples") / "cache")


def image(cache: Cache, seed: int, modality: str = "MR", **known: str) -> ItemRecord:
    """A record of an image that no file holds; `known` is in the clear."""
    said, of = {**CASE, **known}, cache.pseudonyms.of
    record = record_of(cache, volume_of(seed, modality=modality), str(said["patient"]))
    update = {
        "channel": said["channel"],
        "example_key": said["example"] and of("example", said["example"]),
        "frame_of_reference_key": said["frame"] and of("frame_of_reference", said["frame"]),
        "study_key": of("study", said["study"] or str(said["patient"])),
    }
    return record.model_copy(update=update)


def moved(record: ItemRecord, millimetres: float) -> ItemRecord:
    affine = record.affine_array
    affine[0, 3] += millimetres
    return record.model_copy(update={"affine": tuple(map(tuple, affine.tolist()))})


def turned(record: ItemRecord) -> ItemRecord:
    """The same voxel centres, the first axis the other way round."""
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1, record.shape[0] - 1
    return record.model_copy(update={"affine": tuple(map(tuple, (record.affine_array @ flip).tolist()))})


def pair(cache: Cache, **known: str) -> list[ItemRecord]:
    return [image(cache, seed, channel=word, **known) for seed, word in enumerate(("flair", "t1ce"))]


def test_without_names_every_image_is_an_example_by_itself(cache):
    records = [*pair(cache, example="a"), image(cache, 7)]

    assert [example.items for example in examples(records)] == [
        (record,) for record in sorted(records, key=lambda record: record.item_id)
    ]


def test_images_of_a_case_stand_in_the_order_of_the_channels(cache):
    flair, t1ce = pair(cache, example="a")

    (example,) = examples([t1ce, flair], ("T1Gd", "flair"))

    assert example.items == (t1ce, flair)
    assert (example.first, example.item_id, example.patient_key) == (t1ce, t1ce.item_id, t1ce.patient_key)
    assert example.is_one_grid


def labelled(record: ItemRecord) -> ItemRecord:
    return record.model_copy(update={"labels": {"seg": LabelRecord(sha256="0" * 64, classes={}, voxels_per_class={})}})


def test_an_example_goes_by_the_first_of_its_images_that_is_annotated(cache):
    flair, t1ce = pair(cache, example="a")
    known, other = labelled(t1ce), image(cache, 5, channel="flair", example="b")
    heard: list[str] = []

    ((example, home),) = annotated_examples([flair, known, other], [known], ("flair", "t1ce"), note=heard.append)

    assert example.items == (flair, known)
    assert home == known
    assert heard == []  # a case of which nothing is known is nobody's loss
    assert examples_with([flair, known, other], [known], ("flair", "t1ce")) == [example]


def test_without_names_annotated_images_stay_as_they_are(cache):
    records = [*pair(cache, example="a"), image(cache, 7)]

    assert annotated_examples([], records, (), note=list) == [(Example((record,)), record) for record in records]
    assert examples_with([], records, ()) == [Example((record,)) for record in records]


def test_labels_of_an_image_that_is_no_channel_do_not_count(cache):
    flair, t1ce = pair(cache, example="a")
    t2 = image(cache, 3, channel="t2", example="a")
    whole = [image(cache, seed, channel=word, example="b") for seed, word in ((5, "flair"), (6, "t1ce"))]
    heard: list[str] = []

    with pytest.raises(NothingUsableError, match="E_NO_LABELS: none of the 1 examples of flair, t1ce"):
        annotated_examples([flair, t1ce, t2], [t2], ("flair", "t1ce"), note=heard.append)
    annotated_examples([flair, t1ce, t2, *whole], [t2, whole[0]], ("flair", "t1ce"), note=heard.append)
    assert heard == ["W_EXAMPLE_LEFT_OUT: none of the images of 1 of 2 examples is annotated"]


def test_a_case_that_has_changed_since_is_refused_by_name(cache):
    flair, t1ce = pair(cache, example="a")
    again = image(cache, 5, channel="t1ce", example="a")

    with pytest.raises(InputError, match="E_CHANNEL_AMBIGUOUS: 1 of 1 cases are no examples"):
        examples_with([flair, t1ce, again], [flair], ("flair", "t1ce"))
    with pytest.raises(InputError, match="E_CHANNEL_MISSING: 1 of 1 cases are no examples: 1 without t1ce"):
        examples_with([flair], [flair], ("flair", "t1ce"))
    with pytest.raises(InputError, match="E_CHANNEL_MISSING: 1 of 1 images are of no channel of t1ce"):
        examples_with([flair, t1ce], [flair], ("t1ce",))


def test_one_name_takes_every_image_of_the_channel(cache):
    flair, t1ce = pair(cache, example="a")
    again = image(cache, 5, channel="flair", example="a")

    assert {example.first.item_id for example in examples([flair, t1ce, again], ("flair",))} == {
        flair.item_id, again.item_id,
    }  # fmt: skip


def test_light_entries_give_the_same_examples(cache):
    records = pair(cache, example="a")

    (whole,), (light,) = (examples(one, ("flair", "t1ce")) for one in (records, [entry_of(r) for r in records]))

    assert [item.item_id for item in light.items] == [item.item_id for item in whole.items]
    assert isinstance(light.first, Entry)
    assert light.is_one_grid
    assert np.array_equal(light.first.affine_array, whole.first.affine_array)


def test_series_of_a_study_that_share_a_frame_of_reference_are_of_one_case(cache):
    ct = image(cache, 1, "CT", frame="f", study="s")
    pet = moved(image(cache, 2, "PT", frame="f", study="s"), 5)

    (example,) = examples([ct, pet], ("ct", "pet"))

    assert example.items == (ct, pet)
    assert not example.is_one_grid


@pytest.mark.parametrize("other", [{"frame": "g"}, {"study": "s2"}, {"patient": "P2"}])
def test_series_of_another_frame_study_or_patient_are_not(cache, other):
    ct = image(cache, 1, "CT", frame="f", study="s")
    pet = image(cache, 2, "PT", **{"frame": "f", "study": "s", **other})

    with pytest.raises(
        InputError, match="E_CHANNEL_MISSING: 2 of 2 cases are no examples: 1 without ct, 1 without pet"
    ):
        examples([ct, pet], ("ct", "pet"))


def test_images_without_case_and_frame_are_nobodys_channels(cache):
    with pytest.raises(InputError, match="E_CHANNEL_MISSING"):
        examples(pair(cache), ("flair", "t1ce"))


def test_another_place_is_refused_where_no_frame_of_reference_is_shared(cache):
    flair, t1ce = pair(cache, example="a")

    with pytest.raises(InputError, match="E_CHANNEL_GRID: 1 of 1 cases are no examples: 1 with another place for t1ce"):
        examples([flair, moved(t1ce, 0.5)], ("flair", "t1ce"))
    (example,) = examples([flair, moved(t1ce, 0.01)], ("flair", "t1ce"))
    assert example.is_one_grid


def test_axes_that_run_the_other_way_are_the_same_place_and_another_grid(cache):
    flair, t1ce = pair(cache, example="a")

    (example,) = examples([flair, turned(t1ce)], ("flair", "t1ce"))

    assert not example.is_one_grid


def test_faults_are_counted_by_kind_and_the_first_case_is_named(cache):
    complete = pair(cache, example="a")
    lacking = [image(cache, seed, channel="flair", example=f"b{seed}") for seed in (10, 11)]
    twice = [*pair(cache, example="c"), image(cache, 12, channel="t1ce", example="c")]
    notes: list[str] = []

    found = examples(
        [*complete, *lacking, *twice], ("flair", "t1ce"), incomplete="leave_out", note=notes.append
    )  # fmt: skip

    assert len(found) == 1
    (note,) = notes
    assert note.startswith("W_EXAMPLE_LEFT_OUT: 3 of 4 cases are no examples: 2 without t1ce, 1 with several images")
    assert min(record.item_id for record in lacking)[:10] in note


def test_a_channel_that_nothing_is_names_those_that_are_there(cache):
    with pytest.raises(NothingUsableError, match="E_CHANNEL_MISSING: no image is of the channels adc, dwi; there are"):
        examples(pair(cache, example="a"), ("adc", "dwi"))


def test_one_channel_under_two_names_is_a_fault_of_the_recipe(cache):
    with pytest.raises(UsageError, match="E_RECIPE"):
        examples(pair(cache, example="a"), ("t1w", "t1"))


def test_annotations_of_any_image_are_the_examples(cache):
    flair, t1ce = pair(cache, example="a")
    light = entry_of(t1ce)._replace(label_digests={"seg": "1" * 64}, annotation_sets=("boxes/lidc",))

    (example,) = examples([entry_of(flair), light], ("flair", "t1ce"))

    assert example.label_digests == {"seg": "1" * 64}
    assert example.annotation_sets == ("boxes/lidc",)
    assert example.labelled("seg") == example.annotated("boxes/lidc") == light
    assert example.labelled("other") is None


def test_splits_go_by_the_first_images(cache, tmp_path: Path):
    records = [one for patient in range(12) for one in pair_of(cache, patient)]
    found = examples(records, ("flair", "t1ce"))

    split = split_items(records, [example.first for example in found], seed=0, fold=0)

    train, val, test = ({record.patient_key for record in part} for part in (split.train, split.val, split.test))
    assert len(train | val | test) == len(train) + len(val) + len(test) == 12
    assert test == held_out_patients(records, 0)


def pair_of(cache: Cache, patient: int) -> list[ItemRecord]:
    """Two channels of a patient, the second with a label map."""
    flair, t1ce = (
        image(cache, 100 + 2 * patient + place, channel=word, example="a", patient=f"P{patient}")
        for place, word in enumerate(("flair", "t1ce"))
    )
    label = {"sha256": "0" * 64, "classes": {"1": "a"}, "voxels_per_class": {"1": 5}}
    return [flair, ItemRecord.model_validate(t1ce.model_dump() | {"labels": {"seg": label}})]
