"""Where commands write to: never into a cache, of which an audit must know every file."""

from pathlib import Path

from medssl_cli.base.errors import UsageError


def outside_caches(place: Path) -> Path:
    """A place that a command will write to.

    Raises:
        UsageError: `E_USAGE`, it lies in a cache.
    """
    from medssl_cli.cache.marker import require_outside_caches

    require_outside_caches(place)
    return place


def require_place_of_file(path: Path | None) -> None:
    """Refuse a place for a file before the work: a folder that is not there, something special, the inside of a cache.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_OUTPUT_SPECIAL`, `E_USAGE`.
    """
    from medssl_cli.base.files import require_place_for_file

    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError("E_NOT_FOUND", f"no such folder: {path.parent}")
    require_place_for_file(path)
    outside_caches(path)
