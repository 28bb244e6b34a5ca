"""`medssl plan`: a recipe for the labelled images at hand, with its reasons."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, DeviceOption, JsonOption, QuietOption, SetOption
from medssl_cli.cli.plan_output import bytes_of, head_of, next_words, require_place, show, task_name
from medssl_cli.cli.split_options import SkipMissingOption, SplitFileOption, given_split
from medssl_cli.cli.terminal import Terminal, result


def plan(
    task: Annotated[
        str | None, typer.Option("--task", help="Task recipe whose classes and images are kept; all else is planned.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Set of your own labels: every name in it becomes a class.")
    ] = None,
    cache: CacheOption = DEFAULT_CACHE,
    memory: Annotated[
        str | None, typer.Option(help="Most memory of a step, such as 8GB; default: half of it, or 85% of a GPU's.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, max=1e6, help="Minutes of the training; 60 unless given.")
    ] = None,
    split_file: SplitFileOption = None,
    skip_missing: SkipMissingOption = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Recipe to write; default: stdout.")] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Plan a task from its images: a complete recipe with a reason on every line.

    Spacing, crop, network, batch, intensities, augmentation and steps follow from the labelled images, without those of
    test patients, and from what a step takes on this device. A --split-file of the training says who these are. Keys
    given with --set stay as they are. Read the recipe, change it, keep it.

    Examples:

        medssl plan --labels seg -o my.yaml

        medssl plan --task hippocampus-seg --minutes 40 --memory 4GB -o mine.yaml
    """
    from medssl_cli.base.errors import UsageError
    from medssl_cli.base.files import write_atomic
    from medssl_cli.cache.store import Cache
    from medssl_cli.engine.planning import own_task, plan_task, science_of
    from medssl_cli.plan.draft import recipe_text
    from medssl_cli.recipe import apply_override, find_recipe, load_recipe, raw_recipe

    if (task is None) == (labels is None):
        raise UsageError("E_USAGE", "give one of --task and --labels", hint="medssl plan --labels seg -o my.yaml")
    require_place(output)
    given, _ = given_split(split_file, 0, None, skip_missing=skip_missing)
    opened, terminal = Cache.open(cache), Terminal(quiet=quiet or json)
    name = task_name(output, labels)
    if labels is not None:
        document = own_task(opened, labels, name)
    else:
        path = find_recipe(str(task), ("tasks",))
        document = science_of(raw_recipe(path))
    for override in overrides or []:
        apply_override(document, override)
    with terminal.running():
        found = plan_task(
            document, opened, device=device, talk=terminal, memory_bytes=bytes_of(memory), minutes=minutes, given=given
        )
    text = recipe_text(head_of(found, cache, output), found.draft)
    if output is not None:
        write_atomic(output, text.encode(), is_output=True)
        load_recipe(output)
    if json:
        result(found.document(), as_json=True, text="")
    elif output is None:
        typer.echo(text, nl=False)
    else:
        show(found.fingerprint)
        words = next_words(split_file, skip_missing=skip_missing)
        text = f"{output}\nnext: medssl finetune --task {output} --cache {cache}{words}"
        result(None, as_json=False, text=text)
