"""What an evaluation scores: something that segments, and the images to try it on."""

from dataclasses import dataclass
from pathlib import Path

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.engine.build import task_options
from medssl_cli.engine.devices import resolve_device
from medssl_cli.engine.evaluate import Segment, split_of_manifest
from medssl_cli.engine.finetune import load_finetuned, torch_predict
from medssl_cli.imaging.segment import segment_volume


@dataclass(frozen=True)
class Subject:
    """A model, the images to score it on, and how.

    Args:
        name: Of the run or file.
        task: Name of the task.
        folder: Where results go by default.
        segment: Image to label map.
        records: The split.
        label_set: Name of the reference labels.
        classes: Names by value.
        nsd_tolerance_mm: Surface distance that counts as agreement.
    """

    name: str
    task: str
    folder: Path
    segment: Segment
    records: list[ItemRecord]
    label_set: str
    classes: dict[int, str]
    nsd_tolerance_mm: float


def subject_of_run(path: Path, cache: Cache, *, split: str, device: str) -> Subject:
    """The best network of a run, on a split of the run's own manifest.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_DEVICE`.
        NothingUsableError: `E_CACHE_EMPTY`.
    """
    run = load_finetuned(path)
    place = resolve_device(device)
    predict = torch_predict(run.network.to(place), place)
    recipe = run.recipe
    return Subject(
        name=path.name,
        task=recipe.name,
        folder=path,
        segment=lambda volume: segment_volume(
            predict,
            volume,
            preprocessing=recipe.data.preprocessing,
            tile=recipe.tile_size,
            overlap=recipe.inference.overlap,
            mirror_axes=recipe.inference.mirror_axes,
        ),
        records=split_of_manifest(cache, run.manifest, split),
        label_set=task_options(recipe).label_set,
        classes=run.classes,
        nsd_tolerance_mm=recipe.evaluation.nsd_tolerance_mm,
    )
