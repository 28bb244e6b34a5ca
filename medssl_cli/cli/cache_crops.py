"""`medssl cache crops`: cubes around nodules and other marks, for a classification that tells them apart."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, JsonOption, QuietOption
from medssl_cli.cli.terminal import Terminal, result


def crops(
    cubes: Annotated[Path, typer.Argument(help="Cache of the cubes: new, or one to add to.")],
    label_set: Annotated[str, typer.Option(help="Set of boxes of the nodules; also that of the cubes' findings.")],
    candidates: Annotated[
        str | None, typer.Option(help="Set of boxes or points to cut where they hit no nodule; default: random places.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Boxes that are nodules; repeatable; default: nodule.")
    ] = None,
    size: Annotated[tuple[int, int, int], typer.Option(min=4, max=512, metavar="X Y Z", help="Voxels of a cube.")] = (
        64,
        64,
        64,
    ),
    spacing: Annotated[
        tuple[float, float, float],
        typer.Option(min=0.05, max=50, metavar="X Y Z", help="Millimetres between its voxels."),
    ] = (0.7, 0.7, 0.7),
    per_image: Annotated[int, typer.Option(min=0, max=100_000, help="Most cubes without a nodule per image.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of those.")] = 0,
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Cut cubes around nodules and around other marks into a cache of small volumes, each with a finding.

    Example: medssl cache crops ./cubes --label-set nodules --candidates candidates
    """
    from medssl_cli.cache.store import Cache
    from medssl_cli.data.cubes import CubeOptions, cut_cubes, moved_patients
    from medssl_cli.data.selection import no_annotations, with_annotations

    options = CubeOptions(label_set, tuple(name or ["nodule"]), candidates, size, spacing, per_image, seed)
    terminal = Terminal(quiet=quiet)
    terminal.note(f"cache {cache} · cubes {cubes}")
    opened = Cache.open(cache)
    records = with_annotations(opened, "boxes", label_set, modality=None, is_flat=False, talk=terminal)
    if candidates is not None and not any(candidates in record.boxes for record in records):
        raise no_annotations("boxes", candidates, {known for record in records for known in record.boxes})
    target = Cache.open_or_create(cubes, opened.marker.key_file(opened.root))
    with terminal.running():
        counts = cut_cubes(
            opened, records, target, options, progress=lambda done, total: terminal.progress("cutting", done, total)
        )
    if moved := moved_patients(opened, target):
        terminal.note(
            f"{len(moved)} test patients of the volumes are none of the cubes, as their label sets differ: to score "
            "both networks together, train them by one --split-file of patients"
        )
    text = f"{counts.num_nodules} cubes with and {counts.num_others} without {options.names[0]}"
    known = f", {counts.num_known} were there" if counts.num_known else ""
    result(asdict(counts), as_json=json, text=f"{text}{known} · next: medssl finetune --task ... --cache {cubes}")


COMMANDS = (crops,)
