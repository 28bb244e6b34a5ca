"""Measure on this machine what medssl claims, beside the tools that are installed: `python -m tests.bench --help`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.options import DeviceOption, JsonOption, require_path
from medssl_cli.cli.terminal import result, table

app = typer.Typer(help="Measure speed and size on this machine.", no_args_is_help=True)


def tell(json: bool, document: Any, *tables: tuple[str, Sequence[str], Sequence[Sequence[str]]]) -> None:
    """One document on stdout, or tables with their titles, headings and rows."""
    if json:
        result(document, as_json=True, text="")
        return
    for title, columns, rows in tables:
        table(title, columns, rows)


@app.command()
@guarded
def ingest(
    series: Annotated[int, typer.Option(min=1, help="Synthetic CT series to make.")] = 8,
    slices: Annotated[int, typer.Option(min=4, help="Slices of each.")] = 200,
    size: Annotated[int, typer.Option(min=16, help="Rows and columns of each slice.")] = 512,
    json: JsonOption = False,
) -> None:
    """Time `medssl ingest` beside dcm2niix and dicom2nifti, where installed, on the same uncompressed series.

    Example: python -m tests.bench ingest --series 8 --slices 200
    """
    from tests.bench.ingest import COLUMNS, bench_ingest

    found = bench_ingest(num_series=series, num_slices=slices, size=size)
    title = f"{series} series of {slices} slices of {size} x {size}, ratios to the first line"
    tell(json, found.to_json(), (title, COLUMNS, found.rows()))


@app.command()
@guarded
def memory(
    slices: Annotated[int, typer.Option(min=4, help="Slices of the large series.")] = 600,
    size: Annotated[int, typer.Option(min=16, help="Rows and columns of each slice.")] = 512,
    files: Annotated[int, typer.Option(min=0, help="Small files to ingest together.")] = 200_000,
    json: JsonOption = False,
) -> None:
    """Measure the memory of `medssl ingest`: a large series, then very many small files.

    Example: python -m tests.bench memory --files 10000
    """
    from tests.bench.memory import COLUMNS, bench_memory

    found = list(bench_memory(num_slices=slices, size=size, num_files=files))
    tell(json, [vars(peak) for peak in found], ("one worker", COLUMNS, [peak.row() for peak in found]))


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

    Example: python -m tests.bench read
    """
    from tests.bench.read import COLUMNS, bench_read
    from tests.bench.synthetic import synthetic_ct

    if image is None:
        voxels = synthetic_ct((size, size, slices), seed=0)
    else:
        from medssl_cli.formats.nifti import read_nifti

        voxels = read_nifti(require_path(image)).image.volume.voxels[0]
    found = bench_read(voxels, reads=reads)
    title = f"{' x '.join(map(str, voxels.shape))} voxels of {voxels.dtype}, per CPU second"
    tell(json, [vars(rates) for rates in found], (title, COLUMNS, [rates.row() for rates in found]))


@app.command()
@guarded
def kills(
    way: Annotated[Literal["watch", "listen"], typer.Option(help="How scans arrive.")] = "watch",
    scans: Annotated[int, typer.Option(min=1, help="How many.")] = 1000,
    times: Annotated[int, typer.Option(min=0, help="How often the process is killed.")] = 50,
    json: JsonOption = False,
) -> None:
    """Let small scans arrive while what answers for them is killed (kill -9) at random moments.

    Example: python -m tests.bench kills --way listen --scans 100 --times 10
    """
    from tests.bench.kills import COLUMNS, bench_kills

    found = bench_kills(way, num_scans=scans, num_kills=times)
    tell(json, vars(found), ("a model of one layer, scans of 20 x 18 x 10 voxels", COLUMNS, [found.row()]))


@app.command()
@guarded
def batches(
    scans: Annotated[int, typer.Option(min=1, help="NIfTI files of one call; a tenth, too.")] = 10_000,
    series: Annotated[int, typer.Option(min=0, help="DICOM series of 20 slices; a tenth, too.")] = 500,
    overlapped: Annotated[int, typer.Option(min=2, help="Scans that are timed apart and overlapped.")] = 20,
    size: Annotated[int, typer.Option(min=16, help="Voxels along each side of these.")] = 128,
    network: Annotated[float, typer.Option(min=0, help="Seconds of the stub of a network for each.")] = 0.2,
    json: JsonOption = False,
) -> None:
    """Measure the memory of one call of `infer` over many scans, and what overlapping them gains.

    Example: python -m tests.bench batches --scans 1000 --series 100
    """
    from tests.bench.batches import COLUMNS, OVERLAP_COLUMNS, bench_memory_of_batch, bench_overlap

    peaks = [bench_memory_of_batch("nifti", num_scans=number) for number in (max(1, scans // 10), scans)]
    if series:
        peaks += [bench_memory_of_batch("series", num_scans=number) for number in (max(1, series // 10), series)]
    gain = bench_overlap(num_scans=overlapped, size=size, network_s=network)
    memory_table = "one call, a model that costs nothing", COLUMNS, [one.row() for one in peaks]
    overlap_table = f"scans of {size}^3 voxels", OVERLAP_COLUMNS, [gain.row()]
    tell(json, {"memory": [vars(one) for one in peaks], "overlap": vars(gain)}, memory_table, overlap_table)


@app.command()
@guarded
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

    Example: python -m tests.bench pretrain --threads 1
    """
    import torch

    from tests.bench.pretrain import COLUMNS, LOADER_COLUMNS, SETTINGS, bench_pretrain

    if threads is not None:
        torch.set_num_threads(threads)
    found = bench_pretrain(SETTINGS[size], device=device, rounds=rounds)
    title = f"{found.batch_size} volumes per step, {found.device}, {found.num_threads} threads"
    loader_table = "prepared images, from the page cache", LOADER_COLUMNS, found.loader_rows()
    tell(json, found.to_json(), (title, COLUMNS, found.rows()), loader_table)


@app.command()
@guarded
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

    Example: python -m tests.bench slices --threads 1
    """
    import torch

    from tests.bench.slices import COLUMNS, SETTINGS, bench_slices

    if threads is not None:
        torch.set_num_threads(threads)
    found = bench_slices(SETTINGS[size], device=device, rounds=rounds, precision=precision)
    title = f"{found.device}, {precision}, {found.num_threads} threads, medians of {rounds}"
    tell(json, found.to_json(), (title, COLUMNS, found.rows()))


@app.command()
@guarded
def catalog(
    items: Annotated[int, typer.Option(min=1, help="Items of the synthetic cache.")] = 160_000,
    json: JsonOption = False,
) -> None:
    """Measure what very many items cost before the first step of a pre-training.

    Example: python -m tests.bench catalog --items 10000
    """
    from tests.bench.catalog import COLUMNS, bench_catalog

    found = bench_catalog(items)
    tell(json, [vars(stage) for stage in found], (f"{items} items", COLUMNS, [stage.row() for stage in found]))


@app.command()
@guarded
def nodules(
    seeds: Annotated[int, typer.Option(min=1, help="Trainings, each on other phantoms.")] = 3,
    scans: Annotated[int, typer.Option(min=10, help="Phantoms of each training; a quarter more is searched.")] = 40,
    steps: Annotated[int, typer.Option(min=1, help="Of each training.")] = 400,
    json: JsonOption = False,
) -> None:
    """Find nodules of known place: DICOM and LUNA16's table in, `candidates.csv` out, scored in world millimetres.

    Example: python -m tests.bench nodules --seeds 3
    """
    from tests.bench.nodules import COLUMNS, bench_nodules

    found = bench_nodules(seeds=seeds, scans=scans, steps=steps)
    tell(
        json,
        [one.to_json() for one in found],
        (f"{scans} phantoms to learn from, {steps} steps", COLUMNS, [one.row() for one in found]),
    )


@app.command()
@guarded
def infer(
    slices: Annotated[int, typer.Option(min=4, help="Slices of the synthetic CT.")] = 100,
    size: Annotated[int, typer.Option(min=16, help="Its rows and columns.")] = 256,
    body: Annotated[float, typer.Option(min=0.1, max=1.2, help="Size of the anatomy in its field of view.")] = 1.0,
    network: Annotated[
        Literal["unet", "plainconv", "swinunetr", "pointwise"],
        typer.Option(help="A small U-Net, nnU-Net's size, SwinUNETR-48, or one convolution of one voxel."),
    ] = "unet",
    classes: Annotated[int, typer.Option(min=2, max=255, help="Outputs of the network.")] = 8,
    spacing: Annotated[float, typer.Option(min=0.1, help="Millimetres that the network sees.")] = 1.5,
    max_ram: Annotated[float | None, typer.Option(min=0.1, metavar="GIB", help="For medssl infer.")] = None,
    every_tile: Annotated[bool, typer.Option("--every-tile", help="Also without reusing constant tiles.")] = False,
    scan: Annotated[Literal["nifti", "dicom"], typer.Option(help="What the CT lies in; nnU-Net gets NIfTI.")] = "nifti",
    against: Annotated[Literal["monai", "nnunetv2", "both"], typer.Option(help="What runs beside.")] = "monai",
    nnunet_python: Annotated[Path | None, typer.Option(help="Python of an environment with nnunetv2.")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Without it.")] = False,
    first_tile: Annotated[bool, typer.Option("--first-tile", help="Only what comes before it, of medssl.")] = False,
    model: Annotated[Path | None, typer.Option(help="The model; made and kept there if there is none.")] = None,
    json: JsonOption = False,
) -> None:
    """Time `medssl infer` beside MONAI's eager sliding window with its usual transforms, and nnU-Net's predictor.

    One network, one thread; nnU-Net's is its own, of the size of plainconv.

    Example: python -m tests.bench infer --size 512 --slices 200
    """
    from tests.bench import first_tile as start
    from tests.bench.infer import COLUMNS, InferSetup, Other, bench_infer, bench_start

    both: tuple[Other, ...] = ("monai", "nnunetv2")
    others = () if alone else tuple(one for one in both if against in (one, "both"))
    if "nnunetv2" in others and (network != "plainconv" or nnunet_python is None):
        raise UsageError("E_USAGE", "nnunetv2 needs --network plainconv and --nnunet-python PYTHON")
    setup = InferSetup(
        slices,
        size,
        body,
        network,
        classes,
        spacing,
        max_ram,
        every_tile,
        scan == "dicom",
        others,
        nnunet_python,
        model,
    )
    title = f"CT of {size} x {size} x {slices}, {network}, {classes} classes"
    if first_tile:
        moments = bench_start(setup)
        tell(json, [vars(each) for each in moments], (title, start.COLUMNS, [each.row() for each in moments]))
        return
    found = bench_infer(setup)
    if json:
        runs = [vars(run) for run in found.runs]
        tiles = {"tiles": found.num_tiles, "constant_tiles": found.num_constant}
        result({"voxels": found.num_voxels, **tiles, "runs": runs}, as_json=True, text="")
        return
    table(f"{title}, {found.num_constant} of {found.num_tiles} tiles constant", COLUMNS, found.rows())


@app.command()
@guarded
def unlike(
    model: Annotated[Path, typer.Argument(help="An exported model that knows its training images.")],
    inside: Annotated[Path, typer.Option(help="The cache that it was trained on; its test patients are judged.")],
    outside: Annotated[list[Path], typer.Option(help="A cache of other images; again for more.")],
    most: Annotated[int, typer.Option(min=1, help="Images of each kind at most.")] = 100,
    json: JsonOption = False,
) -> None:
    """Measure how well a model tells other images from held-out ones like those of its training.

    Example: python -m tests.bench unlike hippocampus.onnx --inside hippo --outside acdc --outside heads
    """
    from tests.bench.unlike import COLUMNS, bench_unlike

    found = list(bench_unlike(require_path(model), require_path(inside), outside, most=most))
    tell(
        json,
        [group.to_json() for group in found],
        (f"{model.name}: distance from the training images", COLUMNS, [group.row() for group in found]),
    )


if __name__ == "__main__":
    app()
