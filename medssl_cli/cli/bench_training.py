"""`medssl bench pretrain` and `medssl bench catalog`."""

from typing import Annotated, Literal

import typer

from medssl_cli.cli.options import DeviceOption, JsonOption
from medssl_cli.cli.terminal import result, table


def pretrain(
    size: Annotated[
        Literal["small", "full"],
        typer.Option(help="small: width 12, crops of 32 x 32 x 64. full: the published width 48 and 64^3, for a GPU."),
    ] = "small",
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each kind.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: its own choice.")] = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Time steps of VoCo as released and as here, in turn on the same canvases, and what the data loader delivers.

    Example: medssl bench pretrain --threads 1
    """
    import torch

    from medssl_cli.bench.pretrain import COLUMNS, LOADER_COLUMNS, SETTINGS, bench_pretrain

    if threads is not None:
        torch.set_num_threads(threads)
    found = bench_pretrain(SETTINGS[size], device=device, rounds=rounds)
    if json:
        result(found.to_json(), as_json=True, text="")
        return
    table(f"{found.batch_size} volumes per step, {found.device}, {found.num_threads} threads", COLUMNS, found.rows())
    table("prepared images, from the page cache", LOADER_COLUMNS, found.loader_rows())


def slices(
    size: Annotated[
        Literal["small", "medium", "full"],
        typer.Option(help="small: a narrow ResNet-18 at 64 pixels. medium, full: ResNet-50 at 96 and 224 pixels."),
    ] = "small",
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each kind.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: its own choice.")] = None,
    device: DeviceOption = "cpu",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of all forward passes.")] = "fp32",
    json: JsonOption = False,
) -> None:
    """Time steps of SwAV as released and as here, in turn on the same pictures, and joint steps beside their trunk.

    Everything in one process, loading too: nothing hides behind anything.

    Example: medssl bench slices --threads 1
    """
    import torch

    from medssl_cli.bench.slices import COLUMNS, SETTINGS, bench_slices

    if threads is not None:
        torch.set_num_threads(threads)
    found = bench_slices(SETTINGS[size], device=device, rounds=rounds, precision=precision)
    if json:
        result(found.to_json(), as_json=True, text="")
        return
    title = f"{found.device}, {precision}, {found.num_threads} threads, medians of {rounds}"
    table(title, COLUMNS, found.rows())


def catalog(
    items: Annotated[int, typer.Option(min=1, help="Items of the synthetic cache.")] = 160_000,
    json: JsonOption = False,
) -> None:
    """Measure what very many items cost before the first step of a pre-training.

    Example: medssl bench catalog --items 10000
    """
    from medssl_cli.bench.catalog import COLUMNS, bench_catalog

    found = bench_catalog(items)
    if json:
        result([vars(stage) for stage in found], as_json=True, text="")
    else:
        table(f"{items} items", COLUMNS, [stage.row() for stage in found])
