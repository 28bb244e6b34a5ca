"""`medssl cache`: is it whole, is it private, and who has to leave."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.cache_listing import end
from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, JsonOption, QuietOption, require_path
from medssl_cli.cli.terminal import announce, result


def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Remove what is damaged; ingest the source again.")] = False,
    manifest: Annotated[Path | None, typer.Option(help="Compare with what `medssl cache manifest` wrote.")] = None,
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check every stored byte against its SHA-256; exit code 5 if any is damaged.

    Example: medssl cache verify --repair
    """
    from medssl_cli.base.errors import Exit
    from medssl_cli.cache.store import Cache
    from medssl_cli.cache.verify import compare_with_manifest, read_manifest, repair_cache

    announce(f"cache {cache}", quiet=quiet)
    opened = Cache.open(cache)
    expected = None if manifest is None else read_manifest(manifest)
    found = list(opened.verify())
    problems = [problem for problem in found if problem is not None]
    checked = len({problem.item_id for problem in problems}) + sum(problem is None for problem in found)
    lines = [f"{problem.code}: item {problem.item_id}: {problem.detail}" for problem in problems]
    summary = f"{checked} items checked, {len({problem.item_id for problem in problems})} damaged"
    document = {"checked": checked, "problems": [vars(problem) for problem in problems]}
    if repair and problems:
        with opened.writing():
            num_items, num_entries = repair_cache(cache)
            opened.rebuild()
        summary += f"; {num_items} items and {num_entries} additions to items removed: run medssl ingest again"
        document |= {"removed_items": num_items, "removed_entries": num_entries}
    if expected is not None:
        differences = list(compare_with_manifest(expected, opened.scan()))
        lines += [f"{problem.code}: item {problem.item_id}: {problem.detail}" for problem in differences]
        summary += f"; {len(differences)} differ from the manifest"
        document["manifest"] = [vars(problem) for problem in differences]
        problems += differences
    result(document, as_json=json, text="\n".join([*lines, summary]))
    if problems:
        raise typer.Exit(int(Exit.GATE))


def manifest(
    file: Annotated[Path, typer.Argument(help="JSON file to write, outside of the cache.")],
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonOption = False,
) -> None:
    """Write the digests of all items, for comparing a copy with them: `medssl cache verify --manifest FILE`.

    Exit code 3, and the names, if some items are damaged or gone: the file says nothing of them.

    Example: medssl cache manifest cache-manifest.json
    """
    from medssl_cli.cache.store import Cache
    from medssl_cli.cache.verify import write_manifest

    opened, damaged = Cache.open(cache), dict[str, None]()
    num_items = write_manifest(file, opened.scan(lambda item: damaged.update({item: None})))
    document = {"items": num_items, "file": str(file), "damaged": list(damaged)}
    result(document, as_json=json, text=f"{num_items} items in {file}")
    end(list(damaged), opened.missing_items())


def forget(
    patient: Annotated[str, typer.Option("--patient", help="The patient's key, or its first letters.")],
    runs: Annotated[Path, typer.Option(help="Folder of runs to look for models that saw the patient.")] = Path("runs"),
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonOption = False,
) -> None:
    """Remove a patient's images and all that was made of them, and refuse the patient from now on.

    Example: medssl cache forget --patient 7qk4u2vx
    """
    from medssl_cli.cache.forget import forget_patient
    from medssl_cli.cache.store import Cache

    done = forget_patient(Cache.open(cache), patient, runs=runs)
    lines = [f"patient {done.patient_key}: {len(done.items)} items and {done.num_reports} reports removed"]
    lines += [f"run {run} was trained on the patient: a model cannot unlearn, train it again" for run in done.runs]
    lines += [f"{done.num_unreadable} damaged items could not be looked into"] * bool(done.num_unreadable)
    result({**vars(done), "runs": list(map(str, done.runs))}, as_json=json, text="\n".join(lines))


def audit(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Other files and folders to search for identities.")
    ] = None,
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonOption = False,
) -> None:
    """Prove that the cache holds nothing but what the allow-list allows; exit code 5 if it does not.

    Example: medssl cache audit ./runs
    """
    from medssl_cli.base.errors import Exit
    from medssl_cli.cache.audit import PRIVATE, audit_cache
    from medssl_cli.cache.store import Cache

    found = audit_cache(Cache.open(cache).root, [require_path(path) for path in paths or ()])
    lines = [f"{PRIVATE}: {problem} ({number}x)" for problem, number in sorted(found.problems.items())]
    lines += [f"names given by people, please read them: {', '.join(sorted(found.names)) or 'none'}"]
    lines += [f"{found.num_files} files of {found.num_items} items looked at, {len(found.problems)} kinds of findings"]
    document = {"problems": dict(found.problems), "names": sorted(found.names), "files": found.num_files}
    result(document, as_json=json, text="\n".join(lines))
    if found.problems:
        raise typer.Exit(int(Exit.GATE))


COMMANDS = (verify, manifest, forget, audit)
