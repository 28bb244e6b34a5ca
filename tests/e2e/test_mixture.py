"""Pre-training on a mixture: every image by the rules of its own part, and exact resume."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine import sources
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.engine.runs import open_run
from medssl_cli.engine.weights import load_encoder
from medssl_cli.imaging.preprocessing import network_input
from medssl_cli.recipe import PretrainRecipe
from tests.e2e.test_slice_methods import METHODS
from tests.e2e.test_slice_methods import recipe as slice_recipe
from tests.environment import give_known_key
from tests.listener import Listener
from tests.slice_cache import slice_cache
from tests.toy_cache import toy_cache
from tests.unit.test_mixture import recipe as box_recipe

pytestmark = pytest.mark.slow

BODY = {"spacing_mm": [2, 2, 2], "window_hu": [-100, 200]}
MIXTURE = [{**BODY, "weight": 2}, {**BODY, "spacing_mm": [3, 3, 3], "window_hu": [-300, 300], "cache": "chest"}]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, Cache]:
    """Both at 2 mm: 16 voxels, and 24 that are 16 at 3 mm."""
    root = tmp_path_factory.mktemp("caches")
    for name in ("abdomen", "chest"):
        give_known_key(root / name)
    return toy_cache(root / "abdomen", num_patients=4, size=16), toy_cache(root / "chest", num_patients=3, size=24)


def boxes(mixture: Any = MIXTURE) -> PretrainRecipe:
    return box_recipe(mixture, num_workers=0).model_copy(update={"steps": 3, "checkpoint_every": 1})


def test_each_image_is_prepared_as_its_part_says_and_a_run_resumes_exactly(
    caches: tuple[Cache, Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[np.ndarray] = []
    make_views = sources.make_views

    def watched(request: Any, images: Any, *args: Any, **others: Any) -> Any:
        shown.extend(images.numpy().copy())
        return make_views(request, images, *args, **others)

    monkeypatch.setattr(sources, "make_views", watched)
    root, (abdomen, chest) = tmp_path / "run", caches
    wanted = boxes()
    pretrain(wanted, abdomen, root, device="cpu", talk=Silence(), others={"chest": chest})

    assert {image.shape for image in shown} == {(1, 16, 16, 16)}
    known = [
        [network_input([cache.read_image(record)], part.preprocessing).voxels for record in cache.records()]
        for cache, part in zip(caches, wanted.data.parts, strict=True)
    ]
    from_part = [sum(any(np.array_equal(image, voxels) for voxels in part) for image in shown) for part in known]
    assert sum(from_part) == len(shown) == 12
    assert min(from_part) > 0

    broken = tmp_path / "broken"
    shutil.copytree(root, broken)
    for path in (broken / "summary.json", broken / "encoder.safetensors", broken / "checkpoints"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (broken / "checkpoints").mkdir()
    first = min((root / "checkpoints").iterdir(), key=lambda path: path.name)
    shutil.copy(first, broken / "checkpoints") if first.is_file() else shutil.copytree(
        first, broken / "checkpoints" / first.name
    )
    pretrain(wanted, abdomen, broken, device="cpu", talk=Silence(), others={"chest": chest})
    assert load_encoder(broken).sha256 == load_encoder(root).sha256

    with pytest.raises(UsageError):
        pretrain(boxes([MIXTURE[0]]), abdomen, root, device="cpu", talk=Silence())


def test_slices_and_radiographs_are_mixed_by_weight_each_with_its_own_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters keep a memory of every image, so its places must be those of images, not of draws."""
    cache, heard = slice_cache(tmp_path / "cache", num_volumes=6, num_pictures=8), Listener()
    mixture = [
        {"modality": "CT", "window_hu": [-100, 200]},
        {"modality": "DX", "zscore": True, "weight": 3},
    ]
    wanted = slice_recipe("joint clusters", steps=2, method={**METHODS["joint clusters"], "slices_per_volume": 2})
    document = {**wanted.data.model_dump(), "mixture": mixture}
    wanted = wanted.model_copy(update={"data": type(wanted.data).model_validate(document)})
    prepared: list[Any] = []
    dataset = sources.SliceDataset

    def kept(items: Any, *args: Any, **others: Any) -> Any:
        prepared.extend(items)
        return dataset(items, *args, **others)

    monkeypatch.setattr(sources, "SliceDataset", kept)
    pretrain(wanted, cache, tmp_path / "run", device="cpu", talk=heard)

    windows = {cache.record(item.item_id).modality: item.intensity for item in prepared}
    assert (windows["CT"].low, windows["CT"].high) == (-100, 200)
    assert windows["DX"].low >= 0
    assert len(prepared) == len(open_run(tmp_path / "run").manifest["splits"]["train"])
    assert [note.partition(":")[0].split(",")[0] for note in heard.notes[:2]] == ["part 1", "part 2"]
