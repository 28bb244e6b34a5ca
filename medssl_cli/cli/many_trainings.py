"""Where the trainings of one command are done: the options that say so."""

from typing import TYPE_CHECKING, Annotated

import typer

from medssl_cli.base.errors import UsageError

if TYPE_CHECKING:
    from medssl_cli.engine.trainings import Places

JobsOption = Annotated[
    int,
    typer.Option("--jobs", min=1, help="Trainings at once, each in a process with its share of cores and devices."),
]
ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", metavar="ADDRESS", help="Dask scheduler whose workers do the trainings."),
]


def require_one_place(jobs: int, cluster: str | None) -> None:
    """Refuse several trainings at once both here and elsewhere.

    Raises:
        UsageError: `E_USAGE`.
    """
    if jobs > 1 and cluster is not None:
        raise UsageError("E_USAGE", "--jobs and --cluster say where trainings are done", hint="give one of them")


def typed_places(jobs: int, cluster: str | None) -> "Places":
    """Where they are done, as typed."""
    from functools import partial

    from medssl_cli.engine.trainings import Places
    from medssl_cli.work.cluster import cluster_workers

    return Places(jobs, None if cluster is None else partial(cluster_workers, cluster))
