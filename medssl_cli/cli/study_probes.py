"""`medssl study probes`."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, DeviceOption, JsonOption, QuietOption
from medssl_cli.cli.places import outside_caches
from medssl_cli.cli.terminal import Terminal, result, table


def probes(
    init: Annotated[
        list[str], typer.Option(help="Run folder of `medssl pretrain`; {seed} in it stands for the seed. Repeatable.")
    ],
    ask: Annotated[
        list[str], typer.Option(metavar="SET[:FINDING]", help="A set of findings, or modality, or level. Repeatable.")
    ],
    cache: CacheOption = DEFAULT_CACHE,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 3,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("runs/probes"),
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare what pre-trainings know, by linear and nearest-neighbour probes of their frozen encoders.

    Same questions, patients and splits for all; the untrained network is one of the arms. Answered probes are not asked
    again. Writes results.json, results.csv and plot.svg.

    Examples:

        medssl study probes --init 'runs/joint-{seed}' --init 'runs/swav-{seed}' --ask nih:any --ask level

        medssl study probes --init runs/swav --seeds 1 --ask modality
    """
    from medssl_cli.base.files import write_atomic
    from medssl_cli.base.plain_json import dump
    from medssl_cli.cache.store import Cache
    from medssl_cli.study.arms import arm_names, split_inits
    from medssl_cli.study.probes import compare_probes, parse_asked, probes_csv, probes_plot

    asked = [parse_asked(text) for text in ask]
    terminal = Terminal(quiet=quiet)
    terminal.note(f"cache {cache} · results {outside_caches(out)}")
    with terminal.running():
        document = compare_probes(
            arm_names(split_inits(init)), asked, Cache.open(cache), out, num_seeds=seeds, device=device, talk=terminal
        )
    write_atomic(out / "results.json", dump(document).encode())
    write_atomic(out / "results.csv", probes_csv(document).encode())
    write_atomic(out / "plot.svg", probes_plot(document))
    if json:
        result(document, as_json=True, text="")
        return
    rows = [
        (
            level["question"],
            level["probe"],
            level["arm"],
            f"{level['mean']:.3f}",
            ", ".join(f"{value:.3f}" for value in level["per_seed"]),
            "" if level["arm"] == "untrained" else f"{level['gained']:+.3f}",
        )
        for level in document["levels"]
    ]
    table("AUROC on test patients", ("question", "probe", "arm", "mean", "each seed", "minus untrained"), rows)
    typer.echo(f"plot: {out / 'plot.svg'}")
