"""Every preprocessing that a recipe can name, for every kind of image: training, evaluation and runtime see the same.

Architecture, section 4.4. What a recipe may not combine is refused by name; what is not wired yet is listed as a debt,
and an entry that works must be removed.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medssl_cli.base.errors import UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.annotations import add_boxes, add_findings
from medssl_cli.cache.items import Box, ItemRecord, Provenance
from medssl_cli.cache.prepared import prepare
from medssl_cli.cache.store import Cache
from medssl_cli.data.boxes import from_canvas, to_canvas
from medssl_cli.data.pieces import read_pieces
from medssl_cli.data.selection import examples_of
from medssl_cli.data.slices import ImageIndex, SliceDataset, StepPlan
from medssl_cli.deploy.bundle import Bundle, load_model
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.engine.build import build_task
from medssl_cli.heads import BoxesHead, FindingsHead, Head, MasksHead, OperatingPoint
from medssl_cli.imaging.geometry import Shape, reorient_to_ras
from medssl_cli.imaging.placement import move_boxes, placement_of
from medssl_cli.imaging.preprocessing import network_input
from medssl_cli.imaging.restoring import restore_labels
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import Named, TaskRecipe
from medssl_cli.tasks import supervision_of
from tests.environment import give_known_key
from tests.orientations import reorient_like
from tests.toy_model import toy_bundle, write_toy_model
from tests.toy_recipes import task_recipe

Array = NDArray[np.float32]
SPACING: Final = (1.0, 1.5, 2.0)
VOLUME: Final = (12, 14, 9)
PICTURE: Final = (12, 14, 1)
SQUARE: Final = 64
ZSCORE: Final = {"zscore": True}
FLAT: Final = {"name": "resnet", "depth": 18, "width": 4}
SOLID: Final = {**FLAT, "spatial_dims": 3}


@dataclass(frozen=True)
class Kind:
    """One kind of image and of work.

    Args:
        shape: Of the images in the axes of RAS.
        task: What is learnt from them.
        backbone: Of the task.
        size: What a network of whole images sees; None for crops, which are as large as the grid here.
        flat_fit: The same of one slice.
        solid_fit: A size (x, y, z) to fit to.
        refused: Options that such a recipe may not name.
    """

    shape: Shape
    task: dict[str, Any]
    backbone: dict[str, Any]
    size: Shape | None = None
    flat_fit: tuple[int, int] = (24, 42)
    solid_fit: Shape = (24, 42, 36)
    refused: frozenset[str] = frozenset()


MASKS: Final = {"name": "segmentation", "label_set": "seg", "classes": {1: "block"}}
FINDINGS: Final = {"name": "classification", "label_set": "toy", "classes": ["bright"]}
BOXES: Final = {"name": "detection", "label_set": "marks", "classes": ["block"], "num_levels": 2, "width": 8}
WHOLE_FLAT: Final = {
    "flat_fit": (SQUARE, SQUARE),
    "refused": frozenset({"spacing", "fit x y z", "stretch"}),
    "backbone": FLAT,
}
KINDS: Final = {
    "volumes, masks": Kind(VOLUME, MASKS, SOLID),
    "radiographs, masks": Kind(PICTURE, MASKS, FLAT, solid_fit=(24, 42, 4)),
    "volumes, findings": Kind(
        VOLUME,
        FINDINGS,
        SOLID,
        size=(SQUARE, SQUARE, SQUARE),
        solid_fit=(SQUARE, SQUARE, SQUARE),
        refused=frozenset({"spacing", "fit x y", "stretch"}),
    ),
    "stacks, findings": Kind(VOLUME, FINDINGS, size=(SQUARE, SQUARE, 5), **WHOLE_FLAT),
    "radiographs, findings": Kind(PICTURE, FINDINGS, size=(SQUARE, SQUARE, 1), **WHOLE_FLAT),
    "radiographs, boxes": Kind(PICTURE, BOXES, size=(SQUARE, SQUARE, 1), **WHOLE_FLAT),
}
RULES: Final = {
    "window": {"window_hu": [0, 100]},
    "zscore": ZSCORE,
    "percentiles": {"percentiles": [2, 98]},
    "one channel": {"channels": [{"name": "flair", "zscore": True}]},
    "two channels": {"channels": [{"name": "flair", "zscore": True}, {"name": "t1", "window_hu": [0, 100]}]},
}
GEOMETRIES: Final = {
    "spacing": lambda kind: {"spacing_mm": [0.5, 0.75, 2.0 if kind.shape[2] > 1 else 1.0]},
    "fit x y": lambda kind: {"fit": list(kind.flat_fit)},
    "fit x y z": lambda kind: {"fit": list(kind.solid_fit)},
    "stretch": lambda kind: {"stretch": list(kind.solid_fit)},
    "foreground": lambda kind: {"foreground_crop": True},
    "foreground above": lambda kind: {"foreground_crop": True, "foreground_above": 20},
}
OPTIONS: Final[dict[str, Callable[[Kind], dict[str, Any]]]] = {
    **{name: lambda kind, rule=rule: rule for name, rule in RULES.items()},  # type: ignore[misc]
    **{name: lambda kind, make=make: {**make(kind), **ZSCORE} for name, make in GEOMETRIES.items()},  # type: ignore[misc]
    "foreground, fit x y": lambda kind: {"foreground_crop": True, "fit": list(kind.flat_fit), **ZSCORE},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_option = pytest.mark.parametrize("option", OPTIONS)


def stored(shape: Shape) -> tuple[Volume, Volume]:
    """An image whose axes run otherwise than RAS, with a block of 60 to 110 in noise of 1 to 40, and its mask."""
    rng = np.random.default_rng(shape[2])
    ras = rng.integers(1, 40, shape).astype(np.int16)
    ras[:1], ras[:, -2:] = 0, 0
    inside = np.zeros(shape, np.uint8)
    inside[2:10, 4:11, 3:7] = 1
    if shape[2] == 1:
        inside[2:10, 4:11] = 1
    ras[inside == 1] = rng.integers(60, 110, int(inside.sum()))
    affine = np.zeros((4, 4))
    affine[0, 1], affine[1, 0], affine[2, 2] = -SPACING[0], SPACING[1], SPACING[2] if shape[2] > 1 else 1.0
    affine[:, 3] = (30, -20, 10, 1)
    image, label = (np.ascontiguousarray(reorient_like(part[None], affine)) for part in (ras, inside))
    return Volume(image, affine, "MR"), Volume(label, affine, "MR")


def beside(shape: Shape) -> Volume:
    """The second channel of a case: other values at the same places; of volumes its axes run as RAS."""
    image, _ = stored(shape)
    voxels, affine = 255 - 2 * image.voxels, image.affine
    if shape[2] > 1:
        voxels, affine = reorient_to_ras(voxels, affine)
    return Volume(np.ascontiguousarray(voxels), affine, "MR")


def block_of(label: Volume) -> NDArray[np.float64]:
    """The block's corners `[1, 2, 3]` in continuous voxel indices."""
    places = np.argwhere(label.voxels[0])
    return np.array([[places.min(axis=0) - 0.5, places.max(axis=0) + 0.5]])


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[Shape, Cache]:
    """One case of two images of each shape, with everything that is known about one of them."""
    found = {}
    for shape in (VOLUME, PICTURE):
        root = tmp_path_factory.mktemp("cache") / "cache"
        give_known_key(root)
        cache, (volume, label) = Cache.open_or_create(root), stored(shape)
        with cache.writing():
            for image, channel in ((beside(shape), "t1"), (volume, "flair")):
                record = record_of(cache, image, channel)
                assert cache.add(image, record)
            assert cache.add_label(record.item_id, "seg", label, {1: "block"})
            add_findings(cache, record.item_id, "toy", {"bright": 1.0})
            lower, upper = block_of(label)[0].tolist()
            add_boxes(cache, record.item_id, "marks", [Box(name="block", lower=tuple(lower), upper=tuple(upper))])
        found[shape] = cache
    return found


def record_of(cache: Cache, volume: Volume, channel: str) -> ItemRecord:
    """Of an image of the one case."""
    return ItemRecord(
        item_id=cache.item_id(volume),
        patient_key=cache.pseudonyms.of("patient", "p"),
        study_key=cache.pseudonyms.of("study", "p"),
        series_key=cache.pseudonyms.of("series", channel),
        has_patient_identity=True,
        modality="MR",
        units="a.u.",
        shape=volume.shape,
        dtype="int16",
        affine=tuple(map(tuple, volume.affine.tolist())),
        image_sha256="0" * 64,
        spacing_kind="unknown" if volume.shape[2] == 1 else None,
        channel=channel,
        example_key=cache.pseudonyms.of("example", "p"),
        provenance=Provenance(source_kind="nifti", num_files=1, medssl_version="0.1.0", key_id=cache.pseudonyms.key_id),
    )


def annotated(cache: Cache) -> list[ItemRecord]:
    """The image of the case that something is known about."""
    return [record for record in cache.records() if record.labels]


def recipe_of(kind: Kind, option: str) -> TaskRecipe:
    """A recipe that names an option; its crops are as large as the grid."""
    data = OPTIONS[option](kind)
    size = kind.size or placement_of([stored(kind.shape)[0]], Preprocessing.model_validate(data)).shape
    return task_recipe(
        {
            "backbone": kind.backbone,
            "task": kind.task,
            "data": {**data, "crop_size": list(size), "batch_size": 1},
        }
    )


def preprocessing_of(recipe: TaskRecipe) -> Preprocessing:
    """What the run says and the model carries."""
    return supervision_of(recipe).preprocessing


class Seen(Exception):  # noqa: N818 - no error: the way to look at what a network is given
    """The network was called with an array."""


def seen_by(work: Callable[[Callable[..., Any]], object]) -> Array:
    """What is given first to the network that some work calls."""

    def predict(images: Array, *_: Any) -> Any:
        raise Seen(images)

    with pytest.raises(Seen) as caught:
        work(predict)
    found: Array = caught.value.args[0]
    return found[0]


def training_input(cache: Cache, recipe: TaskRecipe) -> Array:
    dataset: Any = supervision_of(recipe).dataset(cache, annotated(cache), Silence())
    return np.asarray(dataset[0, 0].image)


def evaluation_input(cache: Cache, recipe: TaskRecipe) -> Array:
    supervision = supervision_of(recipe)
    if recipe.task.name != "segmentation":
        supervision.begin(build_task(recipe), supervision.dataset(cache, annotated(cache), Silence()))
    return seen_by(supervision.validator(cache, annotated(cache)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxModel]:
    """The runtime; each test gives it a contract."""
    with closing(OnnxModel(write_toy_model(tmp_path_factory.mktemp("model") / "model.onnx"), "cpu")) as found:
        yield found


def carried(recipe: TaskRecipe) -> Bundle:
    """The contract as it comes out of a file."""
    preprocessing = preprocessing_of(recipe)
    bundle = toy_bundle(
        preprocessing=preprocessing, head=head_of(recipe), in_channels=len(preprocessing.rules)
    )  # fmt: skip
    return Bundle.model_validate_json(bundle.to_json())


def head_of(recipe: TaskRecipe) -> Head:
    """What a model of a recipe answers with; no image chose its operating points."""
    size, options = recipe.data.crop_size, recipe.task.options
    named = {name: ("any", OperatingPoint(threshold=0.5, rule="fixed")) for name in options["classes"]}
    points = {"label_classes": {name: what for name, (what, _) in named.items()},
              "operating_points": {name: point for name, (_, point) in named.items()}}  # fmt: skip
    if recipe.task.name == MASKS["name"]:
        return MasksHead(classes={1: "block"}, tile_size=recipe.tile_size, overlap=0.5, nsd_tolerance_mm=2.0)
    if recipe.task.name == FINDINGS["name"]:
        as_stacks = size[2] > 1 and recipe.backbone == Named(**FLAT)
        return FindingsHead(names=tuple(named), num_slices=size[2] if as_stacks else None, **points)
    limits = {"min_score": 0.05, "max_overlap": 0.5, "max_boxes": 10, "match_overlap": 0.5}
    return BoxesHead(names=tuple(named), strides=(16, 32, 64), **limits, **points)


def images_for(recipe: TaskRecipe, shape: Shape) -> list[Volume]:
    """The images of the case that a recipe takes."""
    by_name = {"flair": stored(shape)[0], "t1": beside(shape)}
    return [by_name[name] for name in preprocessing_of(recipe).channel_names or ("flair",)]


def runtime_input(model: OnnxModel, recipe: TaskRecipe, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> Array:
    images, bundle = images_for(recipe, kind.shape), carried(recipe)

    def answer(predict: Callable[..., Any]) -> None:
        monkeypatch.setattr(model, "bundle", bundle)
        monkeypatch.setattr(model, "_outputs", lambda *inputs: [predict(*inputs)])
        model.answer(images[0] if len(images) == 1 else images)

    return seen_by(answer)


def is_allowed(kind: str, option: str) -> bool:
    return option not in KINDS[kind].refused and not (
        option == "foreground, fit x y" and "fit x y" in KINDS[kind].refused
    )


@each_kind
@each_option
def test_training_evaluation_and_runtime_see_the_same(
    kind: str, option: str, caches: dict[Shape, Cache], model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, cache = KINDS[kind], caches[KINDS[kind].shape]
    recipe = recipe_of(what, option)
    if not is_allowed(kind, option):
        with pytest.raises(UsageError, match="whole images"):
            training_input(cache, recipe)
        return

    trained = training_input(cache, recipe)

    assert trained.dtype == np.float32
    assert trained.std() > 0.1
    assert trained.shape[0] == len(recipe.data.rules)
    np.testing.assert_allclose(evaluation_input(cache, recipe), trained, rtol=0, atol=1e-6)
    np.testing.assert_allclose(runtime_input(model, recipe, what, monkeypatch), trained, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "option"),
    [(kind, option) for kind in KINDS for option in OPTIONS if is_allowed(kind, option)],
)
def test_what_is_known_comes_back_exactly(
    kind: str, option: str, caches: dict[Shape, Cache], model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, cache = KINDS[kind], caches[KINDS[kind].shape]
    recipe, (image, label) = recipe_of(what, option), stored(what.shape)
    images = images_for(recipe, what.shape)
    placement = placement_of(images, preprocessing_of(recipe))
    box = block_of(label)

    np.testing.assert_allclose(
        move_boxes(move_boxes(box, placement.to_grid), placement.to_source), box, rtol=0, atol=1e-6
    )
    if what.task is BOXES:
        (record,), example = annotated(cache), examples_of(cache, annotated(cache), preprocessing_of(recipe))
        (item,) = prepare(cache, example, preprocessing_of(recipe))
        rows = np.array([[*(box[0, 0, :2] + 0.5), *(box[0, 1, :2] + 0.5), 0.0]])
        on_square = to_canvas(rows, record, item)
        np.testing.assert_allclose(from_canvas(on_square, record, item), rows, rtol=0, atol=1e-6)
        inside = item.intensity.apply(placement.filled(placement.sampled(image.voxels), outside=0))[0]
        low, high = on_square[0, :2].round().astype(int), on_square[0, 2:4].round().astype(int)
        block = inside[low[0] : high[0], low[1] : high[1]]
        assert block.mean() > inside.mean() + inside.std() / 2
    if what.task is MASKS:
        there = placement.labels(label.voxels)[0]
        monkeypatch.setattr(model, "bundle", carried(recipe))
        logits = np.stack([there == 0, there == 1])[None].astype(np.float32)
        monkeypatch.setattr(model, "_outputs", lambda tiles: [logits])
        np.testing.assert_array_equal(model.segment(images), label.voxels[0])


def test_slices_of_pre_training_are_those_of_its_probes_and_of_its_export(caches: dict[Shape, Cache]) -> None:
    cache, (image, _) = caches[VOLUME], stored(VOLUME)
    data = recipe_of(KINDS["stacks, findings"], "zscore").data
    preprocessing = data.fitted((SQUARE, SQUARE))
    items = prepare(cache, annotated(cache), preprocessing)
    index = ImageIndex([True], ["MR"], per_volume=3, balance=1.0, seed=0)

    dataset = SliceDataset(items, index, StepPlan(1, 1, 2), max_slices=VOLUME[2], seed=0)

    trained = dataset.volume(0, None).images
    assert torch.equal(read_pieces(items[0], (SQUARE, SQUARE, 1), num_slices=VOLUME[2]), trained)
    carried = Preprocessing.model_validate_json(preprocessing.model_dump_json())
    seen = network_input([image], carried).voxels
    np.testing.assert_allclose(seen.transpose(3, 0, 1, 2), trained.numpy(), rtol=0, atol=1e-6)


def test_every_option_that_a_recipe_can_name_is_here() -> None:
    named = {key for option in OPTIONS.values() for kind in KINDS.values() for key in option(kind)}

    assert named | {"orientation"} == set(Preprocessing.model_fields)  # of orientations there is one


def test_every_kind_is_exported() -> None:
    assert all(supervision_of(recipe_of(kind, "zscore")).is_exportable for kind in KINDS.values())


def test_old_models_mean_what_they_meant() -> None:
    """A file of the version before `fit`, `channels` and `foreground_crop`, kept as it was written."""
    path = Path(__file__).parents[1] / "golden" / "models" / "toy-of-one-channel.onnx"

    _, bundle, _ = load_model(path)

    assert bundle.preprocessing == Preprocessing(spacing_mm=(2.0, 2.0, 3.0), window_hu=(0.0, 100.0))
    image, _ = stored(VOLUME)
    with closing(OnnxModel(path, "cpu")) as model:
        found = model.segment(image)
    expected = network_input([image], bundle.preprocessing)
    bright = np.stack([expected.voxels[0] * 0, expected.voxels[0] - 0.5])
    np.testing.assert_array_equal(found, restore_labels(bright, expected.placement))
    assert found.any()
