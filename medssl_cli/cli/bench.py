"""`medssl bench`: measure on this machine, beside the tools that are installed."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli import bench_training
from medssl_cli.cli.bench_labels import labels
from medssl_cli.cli.bench_probes import probes
from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.options import JsonOption, require_path
from medssl_cli.cli.terminal import result, table

app = typer.Typer(help="Measure speed and size on this machine.", no_args_is_help=True)
app.command()(guarded(labels))
app.command()(guarded(probes))
app.command()(guarded(bench_training.pretrain))
app.command()(guarded(bench_training.slices))
app.command()(guarded(bench_training.catalog))


@app.command()
@guarded
def ingest(
    series: Annotated[int, typer.Option(min=1, help="Synthetic CT series to make.")] = 8,
    slices: Annotated[int, typer.Option(min=4, help="Slices of each.")] = 200,
    size: Annotated[int, typer.Option(min=16, help="Rows and columns of each slice.")] = 512,
    json: JsonOption = False,
) -> None:
    """Time `medssl ingest` beside dcm2niix and dicom2nifti, where installed, on the same uncompressed series.

    Example: medssl bench ingest --series 8 --slices 200
    """
    from medssl_cli.bench.ingest import COLUMNS, bench_ingest

    found = bench_ingest(num_series=series, num_slices=slices, size=size)
    if json:
        result(found.to_json(), as_json=True, text="")
    else:
        title = f"{series} series of {slices} slices of {size} x {size}, ratios to the first line"
        table(title, COLUMNS, found.rows())


@app.command()
@guarded
def memory(
    slices: Annotated[int, typer.Option(min=4, help="Slices of the large series.")] = 600,
    size: Annotated[int, typer.Option(min=16, help="Rows and columns of each slice.")] = 512,
    files: Annotated[int, typer.Option(min=0, help="Small files to ingest together.")] = 200_000,
    json: JsonOption = False,
) -> None:
    """Measure the memory of `medssl ingest`: a large series, then very many small files.

    Example: medssl bench memory --files 10000
    """
    from medssl_cli.bench.memory import COLUMNS, bench_memory

    found = list(bench_memory(num_slices=slices, size=size, num_files=files))
    if json:
        result([vars(peak) for peak in found], as_json=True, text="")
    else:
        table("one worker", COLUMNS, [peak.row() for peak in found])


@app.command()
@guarded
def read(
    image: Annotated[Path | None, typer.Option(help="A NIfTI file; default: a synthetic CT.")] = None,
    slices: Annotated[int, typer.Option(min=4, help="Slices of the synthetic CT.")] = 160,
    size: Annotated[int, typer.Option(min=16, help="Rows and columns of the synthetic CT.")] = 512,
    reads: Annotated[int, typer.Option(min=1, help="Random places per round and kind of read.")] = 40,
    json: JsonOption = False,
) -> None:
    """Time random crops and slices from the cache's arrays beside nnU-Net's settings and a memory map.

    Example: medssl bench read
    """
    from medssl_cli.bench.read import COLUMNS, bench_read
    from medssl_cli.bench.synthetic import synthetic_ct

    if image is None:
        voxels = synthetic_ct((size, size, slices), seed=0)
    else:
        from medssl_cli.formats.nifti import read_nifti

        voxels = read_nifti(require_path(image)).image.volume.voxels[0]
    found = bench_read(voxels, reads=reads)
    if json:
        result([vars(rates) for rates in found], as_json=True, text="")
    else:
        shape = " x ".join(str(length) for length in voxels.shape)
        table(f"{shape} voxels of {voxels.dtype}, per CPU second", COLUMNS, [rates.row() for rates in found])
