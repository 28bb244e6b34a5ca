"""Split files: every published form is read, names find their images, and no patient is in two parts."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.cache.named_splits import GivenSplit, NamedItems, split_by_names
from medssl_cli.cache.split_files import NamedParts, SplitFile, read_split
from medssl_cli.cache.splits import Split
from medssl_cli.cache.store import Cache
from tests.small_cache import record_of, volume_of

KEY = Pseudonyms(b"k" * 32)


def written(folder: Path, content: object, name: str = "split.json") -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


FORMS = {
    "nnU-Net's splits_final.json": [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c", "a"], "val": ["b"]}],
    "lists of names": {"train": ["a", "b"], "validation": ["c"], "test": ["d"]},
    "MONAI's entries": {
        "name": "set", "": "odd", "numTraining": 2,
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}, {"image": ["b_0.nii", "b_1.nii"]}],
        "validation": [{"image": "c"}],
    },
    "JSON with a byte order mark": "\ufeff" + json.dumps({"train": ["a"], "val": ["b"]}),
    "MONAI's folds": {"training": [{"fold": 0, "image": "a"}, {"fold": 1, "image": "b"}, {"fold": 1, "image": "c"}]},
    "the Decathlon's dataset.json": {"training": [{"image": "a", "label": "a"}], "test": ["d"]},
    "a table of parts": "name,split\na,train\nb,train\nc,val\nd,test\n",
    "a table as TotalSegmentator writes it": "\ufeffimage_id;age;split\ns1;60;train\ns2;61;val\n",
    "a table of folds": "case,fold\na,0\nb,1\nc,1\nd,test\n",
    "a table of scans": "patient_id,scan_id,split\n328,1805,train\n329,1,val\n",
}  # fmt: skip
READ = {
    "nnU-Net's splits_final.json": (NamedParts(("a", "b"), ("c",)), NamedParts(("c", "a"), ("b",))),
    "lists of names": (NamedParts(("a", "b"), ("c",), ("d",)),),
    "MONAI's entries": (NamedParts(("./imagesTr/a.nii.gz", "b_0.nii"), ("c",)),),
    "JSON with a byte order mark": (NamedParts(("a",), ("b",)),),
    "MONAI's folds": (NamedParts(("b", "c"), ("a",)), NamedParts(("a",), ("b", "c"))),
    "the Decathlon's dataset.json": (NamedParts(("a",), None, ("d",)),),
    "a table of parts": (NamedParts(("a", "b"), ("c",), ("d",)),),
    "a table as TotalSegmentator writes it": (NamedParts(("s1",), ("s2",)),),
    "a table of folds": (NamedParts(("b", "c"), ("a",), ("d",)), NamedParts(("a",), ("b", "c"), ("d",))),
    "a table of scans": (NamedParts(("328/1805",), ("329/1",)),),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(tmp_path: Path, form: str, encoding: str) -> None:
    path = Path(written(tmp_path, FORMS[form]))
    path.write_bytes(path.read_text().removeprefix("\ufeff" * (encoding != "utf-8")).encode(encoding))

    assert read_split([str(path)]).folds == READ[form]


def test_lists_of_names_are_of_the_part_that_is_said(tmp_path: Path) -> None:
    text = written(tmp_path, "# official\na.png\n\nb.png\n", "test_list.txt")
    table = written(tmp_path, "Image Index,Finding\nc.png,x\n", "val.csv")

    assert read_split([f"test={text}", f"validation={table}"]).folds == (
        NamedParts(None, ("c.png",), ("a.png", "b.png")),
    )
    assert read_split([f"test={text}"]).num_folds is None  # the rule makes folds of the others


HEARTS = [f"la_{number:03d}" for number in (3, 4, 5, 7, 9, 10, 11, 14, *range(16, 25), 26, 29, 30)]


@pytest.mark.parametrize("form", ["dataset.json", "list"])
def test_the_rule_of_nnunet_needs_no_list_of_folds(tmp_path: Path, form: str) -> None:
    """Of the Decathlon's hearts, fold 0 of the rule is published: it validates on these four."""
    files = [f"./imagesTr/{name}_0000.nii.gz" for name in reversed(HEARTS)]
    content = {"training": [{"image": name} for name in files]} if form == "dataset.json" else "\n".join(files)

    folds = read_split([f"nnunet={written(tmp_path, content)}"]).folds

    assert folds[0].val == ("la_007", "la_016", "la_021", "la_024")
    assert [len(fold.val or ()) for fold in folds] == [4] * 5
    assert {name for fold in folds for name in fold.val or ()} == set(HEARTS)
    assert all(sorted((*(fold.train or ()), *(fold.val or ()))) == HEARTS for fold in folds)
    with pytest.raises(UsageError, match="E_SPLIT_FILE: 2 names make no 5 folds"):
        read_split([f"nnunet={written(tmp_path, ['a', 'b'])}"])


WRONG = (
    "", "{", "[]", "[1, 2]", '["a", "b"]', "{}", '{"train": []}', '{"train": [{"image": ""}]}', '{"train": [[]]}',
    '{"train": ["a"], "training": ["b"]}', '{"training": [{"fold": 0, "image": "a"}]}', "name,colour\na,red\n",
    "name,split\na,blue\n", "colour,split\nred,train\n", '[{"train": ["a"]}, 3]', "a\0b", "[" * 100,
    '{"train": [NaN]}', '{"training": [{"fold": "x", "image": "a"}]}', f'{{"train": ["{"a" * 2000}"]}}',
    "name,split\na,train\nb,val,too,many\n", '{"test": ["a"]}', '{"train": ["a"], "train": ["b"], "val": ["c"]}',
)  # fmt: skip


@pytest.mark.parametrize("content", WRONG)
def test_anything_else_is_refused(tmp_path: Path, content: str) -> None:
    prefix = "nnunet=" if content.startswith('{"test"') else ""

    with pytest.raises(UsageError, match="E_SPLIT_FILE"):
        read_split([prefix + written(tmp_path, content)])


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for given in (str(tmp_path / "nowhere.json"), str(tmp_path), "test=/dev/null", "/dev/zero"):
        with pytest.raises(UsageError, match="E_SPLIT_FILE"):
            read_split([given])


# --- names ---------------------------------------------------------------------------------------------------------


def item(cache: Cache, seed: int, patient: str, series: str, **more: object) -> ItemRecord:
    """An image of its own, labelled, whose file is called so."""
    label = {"sha256": "0" * 64, "classes": {1: "a"}, "voxels_per_class": {1: 1}}
    record = record_of(cache, volume_of(seed), patient, series)
    return ItemRecord.model_validate({**record.model_dump(), "fingerprint": None, "labels": {"seg": label}, **more})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache.open_or_create(tmp_path_factory.mktemp("site") / "cache")


@pytest.fixture(scope="module")
def cohort(cache: Cache) -> list[ItemRecord]:
    """Twelve patients with one image each, and `p12` with two frames."""
    single = [item(cache, number, f"p{number}", f"scan_{number:02d}") for number in range(12)]
    frames = [item(cache, 20 + frame, "p12", f"scan_12_frame{frame}") for frame in (1, 2)]
    return [*single, *frames]


def split(cache: Cache, records: Sequence[ItemRecord], *folds: NamedParts, **options: object) -> Split:
    given = GivenSplit(SplitFile(folds, b""), bool(options.pop("skips_missing", False)))
    options = {"seed": 0, "fold": 0, **options}
    return split_by_names(records, records, given, cache.pseudonyms, **options)[0]  # type: ignore[arg-type]


def names(*numbers: int) -> tuple[str, ...]:
    return tuple(f"scan_{number:02d}" for number in numbers)


def places(records: Sequence[ItemRecord], cohort: Sequence[ItemRecord]) -> list[int]:
    return sorted(cohort.index(record) for record in records)


@pytest.mark.parametrize(
    "name",
    ["scan_03", "scan_03.nii.gz", "./imagesTr/scan_03.nii.gz", "imagesTr\\scan_03.mha", "p3", "elsewhere/p3", "p3/x"],
)
def test_a_name_finds_its_image(cache: Cache, cohort: list[ItemRecord], name: str) -> None:
    found = NamedItems(cohort, cache.pseudonyms).match(NamedParts((name,)))

    assert found.parts == {"train": {cohort[3].item_id}}
    assert not found.missing


@pytest.mark.parametrize("name", ["scan_3", "scan_030", "p", "", "/", ".", "SCAN_03", "scan_03_frame1"])
def test_a_name_that_is_another_finds_nothing(cache: Cache, cohort: list[ItemRecord], name: str) -> None:
    assert NamedItems(cohort, cache.pseudonyms).match(NamedParts((name,))).missing == [name]


def test_the_name_of_a_case_means_all_of_its_channels(cache: Cache) -> None:
    case = cache.pseudonyms.of("example", "p", "somewhere/Brain_001")
    channels = [item(cache, 50 + n, "p", f"Brain_001_{n:04d}", channel=f"c{n}", example_key=case) for n in range(2)]
    other = item(cache, 60, "q", "Brain_002-t1n", channel="t1")

    found = NamedItems([*channels, other], cache.pseudonyms).match(NamedParts(("Brain_001",), ("Brain_002",)))

    assert found.parts == {"train": {one.item_id for one in channels}, "val": {other.item_id}}


def test_images_that_are_called_the_same_are_told_apart_by_their_folder(cache: Cache) -> None:
    both = [item(cache, 70 + n, patient, "ct") for n, patient in enumerate(("s0000", "s0001"))]
    named = NamedItems(both, cache.pseudonyms)

    assert named.match(NamedParts(("set/s0001/ct.nii.gz",))).parts == {"train": {both[1].item_id}}
    assert named.match(NamedParts(("ct.nii.gz",))).ambiguous == ["ct.nii.gz"]
    with pytest.raises(UsageError, match=r"E_SPLIT_NAMES: 1 of 1 names .* several patients: ct"):
        split(cache, both, NamedParts(("ct",)))


# --- splits --------------------------------------------------------------------------------------------------------


def test_parts_are_those_of_the_file_and_nobody_else_counts(cache: Cache, cohort: list[ItemRecord]) -> None:
    found = split(cache, cohort, NamedParts(names(0, 1, 2), names(3, 4), names(5)))

    assert [places(part, cohort) for part in (found.train, found.val, found.test)] == [[0, 1, 2], [3, 4], [5]]


def test_folds_are_those_of_the_file(cache: Cache, cohort: list[ItemRecord]) -> None:
    folds = NamedParts(names(0, 1), names(2)), NamedParts(names(2, 1), names(0))

    assert places(split(cache, cohort, *folds, fold=1).val, cohort) == [0]
    with pytest.raises(UsageError, match="E_SPLIT_FILE: fold 2 is asked for, the split file names 2"):
        split(cache, cohort, *folds, fold=2)


def test_of_a_test_list_alone_the_others_make_folds(cache: Cache, cohort: list[ItemRecord]) -> None:
    folds = [split(cache, cohort, NamedParts(test=names(0, 1, 2)), fold=fold, num_folds=3) for fold in range(3)]

    assert all(places(found.test, cohort) == [0, 1, 2] for found in folds)
    assert sorted(place for found in folds for place in places(found.val, cohort)) == list(range(3, 14))
    for found in folds:
        people = [{record.patient_key for record in part} for part in (found.train, found.val, found.test)]
        assert sum(map(len, people)) == len(set.union(*people)) == 13


def test_a_part_that_no_file_names_is_what_is_left(cache: Cache, cohort: list[ItemRecord]) -> None:
    found = split(cache, cohort, NamedParts(None, names(0), names(1)))

    assert places(found.train, cohort) == list(range(2, 14))


def test_fewer_training_patients_are_among_those_of_the_file(cache: Cache, cohort: list[ItemRecord]) -> None:
    parts = NamedParts(names(0, 1, 2, 3), names(4))

    few, many = (split(cache, cohort, parts, num_train=number) for number in (1, 3))
    assert set(places(few.train, cohort)) < set(places(many.train, cohort)) < {0, 1, 2, 3}
    with pytest.raises(NothingUsableError, match="E_TOO_FEW_PATIENTS"):
        split(cache, cohort, parts, num_train=9)


def test_unknown_names_are_counted_and_named_or_left_out_on_request(cache: Cache, cohort: list[ItemRecord]) -> None:
    parts = NamedParts(("scan_00", "img0036", "scan_99"), names(1))

    with pytest.raises(UsageError, match=r"E_SPLIT_NAMES: 2 of 4 names .* not in the cache: img0036, scan_99"):
        split(cache, cohort, parts)
    given = GivenSplit(SplitFile((parts,), b""), skips_missing=True)
    found, said = split_by_names(cohort, cohort, given, cache.pseudonyms, seed=0, fold=0)
    assert places(found.train, cohort) == [0]
    assert said.startswith("W_SPLIT_NAMES: 2 of 4 names")


def test_names_without_labels_are_counted(cache: Cache, cohort: list[ItemRecord]) -> None:
    given = GivenSplit(SplitFile((NamedParts(names(0), names(1), names(2, 3)),), b""))

    found, said = split_by_names(cohort, cohort[:3], given, cache.pseudonyms, seed=0, fold=0)

    assert places(found.test, cohort) == [2]
    assert said == "1 of 4 names of the split file have no labels of the task"


def test_a_patient_in_two_parts_is_refused(cache: Cache, cohort: list[ItemRecord]) -> None:
    parts = NamedParts(("scan_12_frame1", "scan_00"), ("scan_12_frame2",), names(3))

    with pytest.raises(UsageError, match=r"E_SPLIT_PATIENT: .*: 1 in train and val; scan_12_frame1 and scan_12_frame2"):
        split(cache, cohort, parts)


def test_one_image_under_two_identities_in_two_parts_is_refused(cache: Cache, cohort: list[ItemRecord]) -> None:
    twins = [record.model_copy(update={"fingerprint": "1" * 16}) for record in cohort[:2]]

    with pytest.raises(UsageError, match="E_SPLIT_PATIENT"):
        split(cache, [*twins, *cohort[2:]], NamedParts(names(0, 3), names(1)))


def test_the_digest_of_a_manifest_tells_files_apart_and_no_names() -> None:
    one, other = (GivenSplit(SplitFile((NamedParts(("a",)),), data)) for data in (b"a", b"b"))

    assert one.document(KEY) == one.document(KEY) != other.document(KEY)
    assert one.document(Pseudonyms(b"x" * 32)) != one.document(KEY)
