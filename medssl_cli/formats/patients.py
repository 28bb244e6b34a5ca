"""Whose image a file is, where nothing but its name and folders can say so."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Final

from medssl_cli.errors import UsageError
from medssl_cli.formats.layouts import ImageFile
from medssl_cli.formats.source import Source, place_of

_PATIENT: Final = re.compile(r"[A-Za-z]*(?:[-_ ][A-Za-z]+)*[-_ ]?\d+")


def patient_from_name(name: str, pattern: str | None = None) -> str | None:
    """The part of a name that says whose image it is.

    Args:
        name: Of a file without suffixes, or of a folder.
        pattern: Regular expression, searched; its first group, or the whole match, is the patient. By default the
            leading letters up to and including the first number: `patient001_frame01` is `patient001`.

    Returns:
        None if the pattern does not match.

    Raises:
        UsageError: `E_USAGE`, the pattern is not a regular expression.
    """
    if pattern is None:
        match = _PATIENT.match(name)
        return match[0] if match else None
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise UsageError("E_USAGE", f"--patient-pattern is not a regular expression: {error}") from error
    if not found:
        return None
    return str(found[1] if found.re.groups else found[0]) or None


def patients_from_places(places: Iterable[PurePath], pattern: str | None = None) -> dict[PurePath, str | None]:
    """Patients of the files below one input folder.

    A pattern is tried on the name, then on the whole place. Without one, names decide as `patient_from_name` says;
    but where names repeat in at least as many folders as there are names, as in `STS_001/PET` and `STS_004/PET`, the
    folders do. Grouping too much costs data, grouping too little leaks patients between splits.

    Args:
        places: Folders below the input and name without suffixes.
        pattern: See `patient_from_name`.

    Returns:
        By place. If the default rule puts several files all into one patient it has failed, and all are None.
    """
    unique = list(dict.fromkeys(places))
    if pattern is not None:
        return {
            place: patient_from_name(place.name, pattern) or patient_from_name(str(place), pattern) for place in unique
        }
    folders: dict[str, set[PurePath]] = defaultdict(set)
    for place in unique:
        folders[place.name].add(place.parent)
    has_repeated_names = any(len(parents) > 1 for parents in folders.values())
    if has_repeated_names and len({place.parent for place in unique}) >= len(folders):
        return {place: _from_folders(place) for place in unique}
    patients = {place: patient_from_name(place.name) for place in unique}
    if len(patients) > 1 and len(set(patients.values())) == 1:
        return dict.fromkeys(patients)
    return patients


def _from_folders(place: PurePath) -> str | None:
    """The outermost folder with a number in its name, else all folders; a file without folders by its name."""
    named = (patient_from_name(part) for part in place.parts[:-1])
    folders = str(place.parent) if len(place.parts) > 1 else patient_from_name(place.name)
    return next((patient for patient in named if patient), folders)


def patients_of(
    images: Sequence[ImageFile], roots: Sequence[Path], pattern: str | None = None
) -> dict[Source, str | None]:
    """Patients of images that do not name theirs themselves: by layout, or by names and folders.

    Args:
        images: As `layouts.arrange` found them.
        roots: The inputs. Neither they nor the folders above them count, an input archive's name included; an archive
            further below is a folder.
        pattern: See `patient_from_name`; goes before what the layout says.

    Returns:
        By source; None where nothing says whose image it is.

    Raises:
        UsageError: `E_USAGE`, the pattern is not a regular expression.
    """
    inputs = set(roots)
    patients: dict[Source, str | None] = {}
    below: dict[Path, dict[Source, PurePath]] = defaultdict(dict)
    for image in images:
        if image.patient is not None and pattern is None:
            patients[image.source] = image.patient
            continue
        place = place_of(image.source)
        root = next((folder for folder in reversed(place.parents) if folder in inputs), place.parent)
        below[root][image.source] = place.relative_to(root).parent / image.stem
    for places in below.values():
        found = patients_from_places(places.values(), pattern)
        patients |= {source: found[place] for source, place in places.items()}
    return patients
