"""From stored label maps to a recipe's classes: by name, in any dtype, everywhere labels are used; or refused."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medssl_cli.base.classes import IGNORE, WantedClasses, parse_classes
from medssl_cli.base.errors import InputError, NothingUsableError, UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.audit import audit_cache
from medssl_cli.cache.items import LabelRecord
from medssl_cli.cache.own_classes import declared_in, everything_in
from medssl_cli.cache.prepared import prepare
from medssl_cli.cache.store import Cache
from medssl_cli.cache.targets import LabelSurvey, class_voxels, table_of, tables_of, to_classes
from medssl_cli.cache.transfer import export_items
from medssl_cli.data.crops import read_classes
from medssl_cli.data.label_checks import say_unseen
from medssl_cli.imaging.volume import Volume
from medssl_cli.nn.voxel_losses import frequencies, voxel_losses
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.tasks.segmentation.scores import evaluate, reference_of
from tests.listener import Listener
from tests.small_cache import label_of, stored, volume_of
from tests.toy_cache import Marked, toy_cache

DIGEST = "0" * 64
GRID = Preprocessing(window_hu=(-100.0, 300.0))


def wanted(classes: Any, ignore: tuple[Any, ...] = ()) -> WantedClasses:
    return WantedClasses(parse_classes(classes), ignore)


def label(names: dict[int, str], voxels: dict[int, int] | None = None, ignore: int | None = None) -> LabelRecord:
    """A label map that calls values so, each with ten voxels; values without a name are called as ingest does."""
    return LabelRecord(
        sha256=DIGEST,
        classes={value: name or f"class_{value}" for value, name in names.items()},
        voxels_per_class=voxels if voxels is not None else dict.fromkeys(names, 10),
        ignore=ignore,
    )


def classes_of(record: LabelRecord, recipe: WantedClasses) -> dict[int, int]:
    values = np.array(sorted(record.voxels_per_class))
    return dict(zip(values.tolist(), to_classes(values, table_of(record, recipe)).tolist(), strict=True))


WITH_LIVER = label({1: "kidney", 2: "liver", 3: "spleen"})
WITHOUT_LIVER = label({1: "kidney", 2: "spleen"})
NAMELESS = label({1: "", 2: "", 3: ""})


# Mapping.


@pytest.mark.parametrize(
    ("record", "recipe", "expected"),
    [
        (WITH_LIVER, ["spleen", "liver"], {1: 0, 2: 2, 3: 1}),
        (WITHOUT_LIVER, ["spleen", "liver"], {1: 0, 2: 1}),
        (WITHOUT_LIVER, {1: "kidney", 2: "liver", 3: "spleen"}, {1: 1, 2: 3}),
        (NAMELESS, {1: "kidney", 2: "liver", 3: "spleen"}, {1: 1, 2: 2, 3: 3}),
        (WITH_LIVER, {"organs": ["liver", "spleen"]}, {1: 0, 2: 1, 3: 1}),
        (WITH_LIVER, {"second": [2]}, {1: 0, 2: 1, 3: 0}),
        (NAMELESS, {"second": [2, 3]}, {1: 0, 2: 1, 3: 1}),
        (WITH_LIVER, {"anything": "any"}, {1: 1, 2: 1, 3: 1}),
        (label({1: "Liver"}), {"liver": ["Liver", "liver"]}, {1: 1}),
        (label({1: "lesion", 2: "lesion"}), ["lesion"], {1: 1, 2: 1}),
        (label({205: "", 65_535: ""}), {"low": [205], "high": [65_535]}, {205: 1, 65_535: 2}),
    ],
)
def test_each_label_map_is_read_by_what_it_calls_its_values(
    record: LabelRecord, recipe: Any, expected: dict[int, int]
) -> None:
    assert classes_of(record, wanted(recipe)) == expected


def test_what_nobody_judged_is_ignored_whether_the_label_map_or_the_recipe_says_so() -> None:
    assert classes_of(WITH_LIVER, wanted(["liver"], ("spleen",))) == {1: 0, 2: 1, 3: IGNORE}
    assert classes_of(NAMELESS, wanted({"liver": [2]}, (3,))) == {1: 0, 2: 1, 3: IGNORE}
    assert classes_of(WITH_LIVER, wanted({"organ": "any"}, ("spleen",))) == {1: 1, 2: 1, 3: IGNORE}
    assert table_of(label({1: "a"}, ignore=2), wanted(["a"])).tolist() == [0, 1, IGNORE, 0]


def test_values_beyond_what_a_label_map_knows_are_background() -> None:
    table = table_of(label({1: "a"}), wanted(["a"]))

    assert to_classes(np.array([0, 1, 2, 60_000], dtype=np.uint16), table).tolist() == [0, 1, 0, 0]


REGIONS = {"abdomen": ["kidney", "liver", "spleen"], "upper": ["liver", "spleen"], "liver": ["liver"]}


def test_regions_say_of_each_voxel_which_of_them_it_is_in() -> None:
    table = table_of(label({1: "kidney", 2: "liver", 3: "spleen", 4: "cyst"}, ignore=5), wanted(REGIONS, ("cyst",)))

    #                        background, kidney, liver, spleen, cyst, nobody judged, larger values
    assert table.tolist() == [
        [0, 1, 1, 1, IGNORE, IGNORE, 0],
        [0, 0, 1, 1, IGNORE, IGNORE, 0],
        [0, 0, 1, 0, IGNORE, IGNORE, 0],
    ]
    voxels = np.arange(8).reshape(2, 2, 2)
    assert to_classes(voxels, table).tolist() == [row[voxels.clip(max=6)].tolist() for row in table]


def test_a_voxel_of_several_regions_counts_for_each() -> None:
    recipe = wanted(REGIONS)

    assert class_voxels(WITH_LIVER, recipe) == {1: 30, 2: 20, 3: 10}
    assert class_voxels(WITHOUT_LIVER, recipe) == {1: 20, 2: 10}
    survey = LabelSurvey([WITHOUT_LIVER, label({1: "bone"})], recipe)
    assert survey.unseen() == ["liver"]
    assert survey.notes()[-1].endswith("background: bone (1 image)")
    LabelSurvey([WITH_LIVER, WITHOUT_LIVER], recipe).refuse_contradictions()


def test_a_region_of_anything_holds_what_no_other_names_but_nothing_ignored() -> None:
    table = table_of(WITH_LIVER, wanted({"marked": "any", "liver": ["liver"]}, ("kidney",)))

    assert table[:, 1:4].tolist() == [[IGNORE, 1, 1], [IGNORE, 1, 0]]


def test_equal_tables_are_one_array() -> None:
    first, second, third = tables_of([WITH_LIVER, WITHOUT_LIVER, WITH_LIVER], wanted(["spleen"]))

    assert first is third
    assert first is not second


def test_classes_of_everything_go_by_name_too() -> None:
    records = [WITH_LIVER, WITHOUT_LIVER, label({7: ""})]

    everything = everything_in(records)

    assert list(everything.classes) == ["kidney", "liver", "spleen", "class_7"]
    assert [classes_of(record, everything) for record in records] == [{1: 1, 2: 2, 3: 3}, {1: 1, 2: 3}, {7: 4}]


def regions_of(values: dict[int, str], **regions: tuple[int, ...]) -> LabelRecord:
    return label(values).model_copy(update={"regions": regions})


def test_declared_regions_are_classes_that_overlap_and_their_nameless_values_are_none() -> None:
    records = [regions_of({1: "", 2: "", 3: "enhancing", 5: ""}, core=(2, 3), whole=(1, 2, 3)), label({1: "", 2: ""})]

    offered = declared_in(records)

    assert offered.classes == {
        "whole": (1, 2, "enhancing"),
        "core": (2, "enhancing"),
        "enhancing": ("enhancing",),
        "class_5": ("class_5", 5),
    }
    assert offered.activation == "sigmoid"
    assert class_voxels(records[0], offered) == {1: 30, 2: 20, 3: 10, 4: 10}


def test_one_region_beside_other_structures_is_a_class_that_excludes_them() -> None:
    assert declared_in([regions_of({1: "", 2: "", 3: "liver"}, tumour=(1, 2))]).activation == "softmax"


def test_regions_of_the_same_values_are_offered_once_and_what_nobody_shows_not_at_all() -> None:
    offered = declared_in([regions_of({1: "", 2: ""}, whole=(1, 2), all=(1, 2), rest=(8, 9))])

    assert offered.classes == {"whole": (1, 2)}


@pytest.mark.parametrize("other", [regions_of({1: "", 4: ""}, core=(1, 4)), label({2: "core"})])
def test_a_name_of_different_regions_is_no_class_that_could_be_offered(other: LabelRecord) -> None:
    with pytest.raises(UsageError, match="'core' is") as refused:
        declared_in([regions_of({1: "", 2: ""}, core=(1, 2)), other])

    assert refused.value.code == "E_LABEL_CLASSES"


def test_a_region_asked_for_by_its_name_is_refused_with_the_way_to_write_it() -> None:
    records = [regions_of({1: "", 2: "", 3: "enhancing"}, core=(2, 3))]

    with pytest.raises(UsageError, match="no label map has 'core'") as refused:
        LabelSurvey(records, wanted(["core"])).refuse_contradictions()

    assert "task.classes: {core: [2, enhancing]}" in str(refused.value.hint)


# What is refused.


@pytest.mark.parametrize(
    ("records", "recipe", "words"),
    [
        ([WITH_LIVER, WITHOUT_LIVER], {"liver": [2]}, "value 2 is called 'liver' in some .* and 'spleen' in others"),
        (
            [WITH_LIVER, WITHOUT_LIVER],
            (["kidney"], (2,)),
            "value 2 is called 'liver' in some .* and 'spleen' in others",
        ),
        (
            [WITHOUT_LIVER, NAMELESS],
            {2: "liver"},
            "value 2 is called 'spleen' in some label maps and nothing in others",
        ),
        ([WITHOUT_LIVER], {2: "liver"}, "value 2 is 'liver' in the recipe and 'spleen' in the label maps"),
        ([WITHOUT_LIVER], ["liver"], "no label map has 'liver'; they have kidney, spleen"),
        ([WITH_LIVER], {"organs": ["liver", "spleeen"]}, "no label map has 'spleeen'"),
        ([WITH_LIVER], ["Liver"], "no label map has 'Liver'"),
        ([WITH_LIVER], (["liver"], ("splen",)), "no label map has 'splen'"),
        ([NAMELESS], ["liver"], "1 of 1 label maps have no names, only values 1, 2, 3: 'liver' cannot"),
        (
            [WITH_LIVER, NAMELESS],
            ["liver"],
            "value 2 is called 'liver' in some label maps and nothing in others: there 'liver' cannot",
        ),
        ([WITH_LIVER, label({9: ""})], ["liver"], "1 of 2 label maps have no names, only values 9"),
        (
            [WITH_LIVER, label({1: "kidney", 2: ""})],
            {"organs": ["kidney", "liver"]},
            "value 2 is called 'liver' in some label maps and nothing in others: there 'organs' cannot",
        ),
        (
            [WITH_LIVER, NAMELESS],
            {"second": ["class_2"]},
            "value 2 is called 'liver' in some label maps and nothing in others",
        ),
        (
            [WITH_LIVER, label({2: "Liver"})],
            ["liver"],
            "'liver' is called 'liver' by the classes and 'Liver' in 1 of 2",
        ),
        (
            [label({1: "left_kidney"}), label({1: "Left-Kidney"})],
            {1: "left_kidney"},
            "'left_kidney' is called 'left_kidney' by the classes and 'Left-Kidney' in 1 of 2",
        ),
        ([NAMELESS], {"lung": [9]}, "no label map has a voxel of lung; they have value 1, value 2, value 3"),
        ([WITH_LIVER], (["liver"], (2,)), "value 2, called 'liver', is in the class 'liver' and in ignore"),
        (
            [WITH_LIVER],
            ({"second": [2]}, ("liver",)),
            "value 2, called 'liver', is in the class 'second' and in ignore",
        ),
        ([WITH_LIVER], {"liver": ["liver"], "second": [2]}, "value 2, called 'liver', is in the classes 'liver' and"),
    ],
)
def test_names_and_values_that_contradict_each_other_are_refused(
    records: list[LabelRecord], recipe: Any, words: str
) -> None:
    classes, ignore = recipe if isinstance(recipe, tuple) else (recipe, ())

    with pytest.raises(UsageError, match=f"E_LABEL_CLASSES: {words}") as refusal:
        LabelSurvey(records, wanted(classes, ignore)).refuse_contradictions()

    assert refusal.value.hint


@pytest.mark.parametrize(
    ("records", "recipe"),
    [
        ([WITH_LIVER, WITHOUT_LIVER], {1: "kidney", 2: "liver", 3: "spleen"}),
        ([WITH_LIVER, WITHOUT_LIVER], {1: "liver"}),  # the values of a recipe are for label maps without names
        ([WITH_LIVER], {"second": [2]}),
        ([NAMELESS], ["class_2"]),
        ([label({1: "liver"}, ignore=2)], (["liver"], ("ignore",))),
        ([NAMELESS], {1: "a", 2: "b", 4: "c"}),
        ([WITH_LIVER, NAMELESS], {2: "liver"}),
        ([WITH_LIVER, label({}, {})], ["liver"]),  # an empty label map says nothing against a name
        ([label({205: "", 500: ""})], {"left_ventricle": ["left_ventricle", 1, 500]}),
        ([label({1: "vessel", 2: "Vessel"}), label({1: "Vessel"})], ["vessel"]),  # both in one label map: two things
        ([WITH_LIVER, label({2: "Liver"})], {"liver": ["liver", "Liver"]}),
        ([WITH_LIVER], ({"organ": "any"}, ("liver",))),
    ],
)
def test_names_and_values_that_agree_are_taken(records: list[LabelRecord], recipe: Any) -> None:
    classes, ignore = recipe if isinstance(recipe, tuple) else (recipe, ())

    LabelSurvey(records, wanted(classes, ignore)).refuse_contradictions()


def test_the_hint_for_a_value_without_a_name_gives_the_name_and_the_value_that_belong_together() -> None:
    with pytest.raises(UsageError) as refusal:
        LabelSurvey([WITH_LIVER, NAMELESS], wanted({"organ": ["spleen"]})).refuse_contradictions()

    assert refusal.value.hint == "if they are the same, add the value, task.classes: {organ: [spleen, 3]}"


def test_labels_of_another_spelling_score_nothing_as_background() -> None:
    records = [WITH_LIVER, label({2: "Liver"})]
    with pytest.raises(
        UsageError, match="E_LABEL_CLASSES: 'liver' is called 'liver' by the classes and 'Liver' in 1 of 2"
    ):
        LabelSurvey(records, wanted(["liver", "spleen"])).refuse_other_spellings()


def test_what_becomes_background_and_that_names_decide_is_said() -> None:
    notes = LabelSurvey([WITH_LIVER, WITHOUT_LIVER], wanted({1: "kidney", 3: "spleen"})).notes()

    assert notes == [
        "classes are matched by name, not by value: spleen is value 2 or 3",
        "W_LABELS_LEFT_OUT: labels that the recipe does not name are background: liver (1 image)",
    ]
    assert LabelSurvey([NAMELESS], wanted({1: "a", 2: "b", 3: "c"})).notes() == []
    joined_with_a_value = LabelSurvey([WITH_LIVER], wanted({"both": ["liver", 3]})).notes()
    assert "value 3 of 'both' is called 'spleen': it is not taken, as it has a name" in joined_with_a_value
    assert LabelSurvey([WITH_LIVER], wanted({"any": "any"})).notes() == []


def test_voxels_of_classes_are_counted_and_classes_without_any_are_named(tmp_path: Path) -> None:
    recipe = wanted({"organs": ["liver", "spleen"], "kidney": ["kidney"], "lung": [9]})

    assert class_voxels(WITH_LIVER, recipe) == {1: 20, 2: 10}
    assert LabelSurvey([WITH_LIVER, WITHOUT_LIVER], recipe).unseen() == ["lung"]

    cache, heard = toy_cache(tmp_path / "cache", num_patients=1, size=12, num_classes=3), Listener()
    say_unseen({"training": cache.records()}, "seg", wanted(["ball_1", "ball_3"]), heard)
    assert heard.notes == ["W_CLASS_ABSENT: no voxel of 'ball_3' in the 1 training images"]


# The cache: values above 255, and the value of what nobody judged.


@pytest.mark.parametrize(("high", "dtype"), [(255, "uint8"), (256, "uint16"), (850, "uint16"), (65_535, "uint16")])
def test_values_are_stored_in_the_smallest_dtype_and_come_back(tmp_path: Path, high: int, dtype: str) -> None:
    cache = Cache.open_or_create(tmp_path / "cache")
    record = stored(cache, volume_of())
    values = np.random.default_rng(0).choice([0, 1, high], record.shape).astype(np.int32)

    with cache.writing():
        assert cache.add_label(record.item_id, "seg", label_of(values), {1: "a", high: "b"})
        assert not cache.add_label(record.item_id, "seg", label_of(values.astype(np.float64)), {1: "a", high: "b"})

    record = cache.record(record.item_id)
    voxels = cache.read_label(record, "seg").voxels[0]
    assert voxels.dtype == dtype
    assert np.array_equal(voxels, values)
    assert record.labels["seg"].voxels_per_class == {v: int((values == v).sum()) for v in (1, high)}
    (item,) = prepare(cache, [record], GRID.model_copy(update={"spacing_mm": (1.0, 1.0, 1.0)}), label_set="seg")
    assert set(item.points) == {1, high}
    assert list(cache.verify()) == [None]
    assert not audit_cache(cache.root).problems
    export_items(cache, tmp_path / "out", [record])
    exported = np.asarray(nibabel.load(tmp_path / "out" / f"{record.item_id}_seg.nii.gz").dataobj)
    assert exported.dtype == dtype
    assert np.array_equal(exported, values)


@pytest.mark.parametrize("value", [-1, 65_536])
def test_values_that_no_label_map_can_hold_are_refused(tmp_path: Path, value: int) -> None:
    cache = Cache.open_or_create(tmp_path / "cache")
    record = stored(cache, volume_of())

    with cache.writing(), pytest.raises(InputError, match="E_LABEL_VALUES"):
        cache.add_label(record.item_id, "seg", label_of(np.full(record.shape, value)), {})


def test_the_value_of_what_nobody_judged_is_no_class_of_a_record(tmp_path: Path) -> None:
    cache = Cache.open_or_create(tmp_path / "cache")
    record = stored(cache, volume_of())
    values = np.random.default_rng(0).integers(0, 3, record.shape)

    with cache.writing():
        cache.add_label(record.item_id, "seg", label_of(values), {1: "liver"}, ignore=2)
        with pytest.raises(InputError, match="E_LABEL_CONFLICT"):
            cache.add_label(record.item_id, "seg", label_of(values), {1: "liver"})

    found = cache.record(record.item_id).labels["seg"]
    assert (found.ignore, found.classes) == (2, {1: "liver"})
    assert found.voxels_per_class == {1: int((values == 1).sum())}
    assert "ignore" not in label({1: "a"}).model_dump(mode="json")  # so that older records keep their digests


# Where labels are used.


def test_a_reference_lies_on_the_grid_of_the_first_image_of_its_example(tmp_path: Path) -> None:
    """The labelled image runs along its axes the other way than the first one."""
    cache = Cache.open_or_create(tmp_path / "cache")
    volume = volume_of()
    record = stored(cache, volume)
    values = np.random.default_rng(0).integers(0, 3, record.shape)
    with cache.writing():
        cache.add_label(record.item_id, "seg", label_of(values), {1: "edge", 2: "core"})
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1, record.shape[0] - 1
    first = Volume(volume.voxels[:, ::-1], volume.affine @ flip)

    classes = reference_of(cache, cache.record(record.item_id), "seg", wanted(["edge", "core"]), first)
    regions = reference_of(
        cache, cache.record(record.item_id), "seg", wanted({"all": ["edge", "core"], "core": ["core"]}), first
    )

    assert np.array_equal(classes, values[::-1])
    assert np.array_equal(regions, np.stack([values[::-1] > 0, values[::-1] == 2]))


def swapped(number: int, balls: np.ndarray) -> Marked:
    """In every second patient the two balls have each other's value, and another value above 255 is around."""
    voxels = balls.astype(np.uint16)
    names = {1: "ball_1", 2: "ball_2"}
    if number % 2:
        voxels = np.choose(balls, [0, 300, 1]).astype(np.uint16)
        names = {300: "ball_1", 1: "ball_2"}
    voxels[0, 0, 0] = 7
    return Marked(voxels, names, ignore=7)


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Cache, Cache]:
    """A cache whose values mean different things in every second patient, and the same with values that do not."""
    mixed = toy_cache(tmp_path / "mixed", num_patients=3, size=16, mark=swapped)
    return mixed, toy_cache(tmp_path / "plain", num_patients=3, size=16)


@pytest.mark.parametrize("spacing", [None, (3.0, 3.0, 3.0)])
def test_crops_and_their_centres_go_by_name(mixed: tuple[Cache, Cache], spacing: Any) -> None:
    recipe, grid = wanted(["ball_1", "ball_2"]), GRID.model_copy(update={"spacing_mm": spacing})
    found = []
    for cache in mixed:
        records = sorted(cache.records(), key=lambda record: float(cache.read_image(record).voxels.sum()))
        tables = tables_of([record.labels["seg"] for record in records], recipe)
        items = prepare(cache, records, grid, label_set="seg", tables=tables, num_workers=1)
        found.append([(read_classes(item, (0, 0, 0), item.shape), item.points) for item in items])

    for (by_name, points), (by_value, plain) in zip(*found, strict=True):
        assert by_name is not None
        assert by_value is not None
        assert by_name[0, 0, 0] == IGNORE
        by_name[0, 0, 0] = 0
        assert np.array_equal(by_name, by_value)
        assert set(points) == set(plain) == {1, 2}
        for place, voxels in points.items():
            assert all(by_value[tuple(voxel)] == place for voxel in voxels)


def test_scores_go_by_name_and_leave_out_what_nobody_judged(mixed: tuple[Cache, Cache]) -> None:
    cache, plain = mixed
    truth = {
        float(plain.read_image(record).voxels.sum()): plain.read_label(record, "seg").voxels[0].astype(np.uint8)
        for record in plain.records()
    }

    def segment(volume: Any) -> np.ndarray:
        answer = truth[float(volume.voxels.sum())].copy()
        answer[0, 0, 0] = 1  # wrong only where nobody judged
        return answer

    scores = evaluate(
        segment,
        cache,
        cache.records(),
        label_set="seg",
        wanted=wanted(["ball_1", "ball_2"]),
        nsd_tolerance_mm=1.0,
        talk=Silence(),
    )

    assert {name: metrics["dice"].mean for name, metrics in scores.estimates.items()} == {"ball_1": 1.0, "ball_2": 1.0}


def test_labels_that_have_nothing_in_common_with_a_model_are_refused(mixed: tuple[Cache, Cache]) -> None:
    cache, _ = mixed

    with pytest.raises(UsageError, match="E_LABEL_CLASSES: the label maps have ball_1, ball_2, the model heart"):
        evaluate(
            lambda volume: np.zeros(volume.shape, np.uint8),
            cache,
            cache.records(),
            label_set="seg",
            wanted=wanted({1: "heart"}),
            nsd_tolerance_mm=1.0,
            talk=Silence(),
        )
    with pytest.raises(NothingUsableError, match="E_TOO_FEW_PATIENTS"):
        evaluate(
            lambda volume: np.zeros(volume.shape, np.uint8),
            cache,
            [],
            label_set="seg",
            wanted=wanted({1: "heart"}),
            nsd_tolerance_mm=1.0,
            talk=Silence(),
        )


def test_what_is_ignored_changes_no_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (1, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    hidden, other = labels.clone(), logits.clone()
    hidden[..., 2:] = IGNORE
    other[..., 2:] = 100 * torch.randn(other[..., 2:].shape, generator=torch.Generator().manual_seed(2))

    part = voxel_losses(logits[..., :2], labels[..., :2])

    for losses in (voxel_losses(logits, hidden), voxel_losses(other, hidden)):
        for name, value in part.items():
            torch.testing.assert_close(losses[name], value)
    assert torch.equal(frequencies(hidden, 3), frequencies(labels[..., :2], 3))
    everything = voxel_losses(logits, torch.full_like(labels, IGNORE))
    assert everything["cross_entropy"].item() == 0
    assert everything["dice"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", [-1, 65_536, 10**15])
def test_a_record_whose_values_no_label_map_can_hold_is_damaged(value: int) -> None:
    with pytest.raises(ValidationError):
        label({value: "a"})
