"""`medssl listen`. Imports no torch."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli import reading_options as choices
from medssl_cli.cli.infer_options import CaOption, DeviceOption, LogFileOption, MaxRamOption, StowOption, ThreadsOption
from medssl_cli.cli.infer_output import Teller
from medssl_cli.cli.log_file import LogFile
from medssl_cli.cli.options import ModelsOption, QuietOption, bytes_of, models_folder
from medssl_cli.cli.pacs_access import stow_destinations
from medssl_cli.cli.places import outside_caches
from medssl_cli.cli.terminal import Terminal

NETWORK = "Network"
LIMITS = "Queue"


def listen(
    task: Annotated[
        list[str],
        typer.Option("--task", "-t", metavar="NAME[: RULE]", help="Model, and which series it gets; may be repeated."),
    ],
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TITLE[=HOST:PORT]", help="Who may send, and where its results go.", rich_help_panel=NETWORK
        ),
    ] = None,
    send_to: Annotated[
        list[str] | None, typer.Option(metavar="TITLE", help="Peer that gets all results.", rich_help_panel=NETWORK)
    ] = None,
    stow: StowOption = None,
    ca_bundle: CaOption = None,
    title: Annotated[str, typer.Option(help="AE title of this service.", rich_help_panel=NETWORK)] = "MEDSSL",
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=NETWORK)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of DICOM.", rich_help_panel=NETWORK)] = 11112,
    monitor_port: Annotated[
        int, typer.Option(min=0, max=65535, help="/healthz and /metrics on 127.0.0.1.", rich_help_panel=NETWORK)
    ] = 11180,
    tls_cert: Annotated[Path | None, typer.Option(help="Own certificate, PEM.", rich_help_panel=NETWORK)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.", rich_help_panel=NETWORK)] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Who signs others', PEM.", rich_help_panel=NETWORK)] = None,
    spool: Annotated[Path, typer.Option(help="Folder of the queue.", rich_help_panel=LIMITS)] = Path("medssl-spool"),
    settle: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="A study is complete after so long.", rich_help_panel=LIMITS)
    ] = 30.0,
    keep: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="Keep images and results.", rich_help_panel=LIMITS)
    ] = 24.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Studies that may wait.", rich_help_panel=LIMITS)] = 1000,
    min_free_gib: Annotated[
        float, typer.Option("--min-free", min=0, metavar="GIB", help="Disk that stays free.", rich_help_panel=LIMITS)
    ] = 5.0,
    gaps: choices.GapsOption = choices.Gaps.refuse,
    tilt: choices.TiltOption = choices.Resample.refuse,
    shear: choices.ShearOption = choices.Resample.refuse,
    nonfinite: choices.NonfiniteOption = choices.Nonfinite.refuse,
    min_slices: choices.MinSlicesOption = 4,
    burned_in: choices.BurnedInOption = choices.BurnedIn.accept_risk,
    models: ModelsOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_ram_gib: MaxRamOption = None,
    log_file: LogFileOption = None,
    quiet: QuietOption = False,
) -> None:
    """Receive DICOM studies, ask models about them and send DICOM SEG back: a service, until SIGTERM.

    Examples:

        medssl listen --task heart-seg --peer PACS=10.0.0.5:104 --host 0.0.0.0

        medssl listen -t 'ct-organs: modality=CT,slices>=40,newest' --peer CT1 --peer PACS=pacs:104 --send-to PACS
    """
    from medssl_cli.base.signals import stop_on_signals
    from medssl_cli.deploy.infer import InferSettings
    from medssl_cli.deploy.model_store import ModelStore, resolve_model
    from medssl_cli.formats.policy import Policy
    from medssl_cli.service.listen import ListenSettings, tls_contexts
    from medssl_cli.service.listen import listen as run_listen
    from medssl_cli.service.peers import Peer, require_title
    from medssl_cli.service.receiver import ReceiverLimits
    from medssl_cli.service.worker import TaskRule

    settings = ListenSettings(
        outside_caches(spool), require_title(title), host, port, [Peer.parse(text) for text in peer or ()],
        send_to or (), monitor_port, settle, keep * 3600, ReceiverLimits(max_queue, bytes_of(min_free_gib)),
        *tls_contexts(tls_cert, tls_key, tls_ca),
    )  # fmt: skip
    store, rules = ModelStore(models_folder(models)), [TaskRule.parse(text) for text in task]
    wanted = [(resolve_model(rule.task, store), rule.series) for rule in rules]
    terminal, log = Terminal(quiet=quiet), LogFile(log_file)

    def say(text: str) -> None:
        terminal.note(text)
        log.note(text)

    with stop_on_signals() as stop, stow_destinations(stow, ca_bundle, terminal, lambda: stop.is_set) as others:
        policy = Policy(
            gaps.value, tilt.value, shear.value, nonfinite=nonfinite.value, min_slices=min_slices,
            burned_in=burned_in.value if burned_in else None,
        )  # fmt: skip
        how = InferSettings(
            device, threads, None if max_ram_gib is None else bytes_of(max_ram_gib), policy=policy,
            say=Teller(log, prints=False, as_json=False), is_stopped=lambda: stop.is_set,
        )  # fmt: skip
        run_listen(settings, wanted, how, others=others, say=say)
