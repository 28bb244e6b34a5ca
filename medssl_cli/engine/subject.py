"""What an evaluation of a run scores: its best network, on a split of its own manifest."""

from pathlib import Path

from medssl_cli.cache.store import Cache
from medssl_cli.engine.devices import resolve_device
from medssl_cli.engine.evaluate import split_of_manifest
from medssl_cli.engine.finetuned import load_finetuned
from medssl_cli.engine.results import Subject
from medssl_cli.engine.supervision import supervision_of


def subject_of_run(path: Path, cache: Cache, *, split: str, device: str) -> Subject:
    """The best network of a run, on a split of the run's own manifest.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_DEVICE`.
        NothingUsableError: `E_CACHE_EMPTY`.
    """
    run = load_finetuned(path)
    place = resolve_device(device)
    records = split_of_manifest(cache, run.manifest, split)
    return supervision_of(run.recipe).subject(
        run.network.to(place), place, name=path.name, folder=path, records=records
    )
