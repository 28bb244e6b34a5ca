"""What the columns of a table are for, told from their names, in the spellings of programs and of some languages."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final, Literal

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import name_key
from medssl_cli.formats.labels.csv_rows import Table

Level = Literal["sop", "name", "series", "study", "patient", "any"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LEVELS: Final[tuple[Level, ...]] = ("sop", "name", "series", "study", "patient")
"""Whom a row is about, the most specific first."""
_KEYS: Final[dict[Level, str]] = {
    "sop": "sopinstanceuid sopuid instanceuid",
    "name": "imageindex image imageid imagename imagepath imagefile file filename filepath path dicomid dicom "
    "datei dateiname bild bilddatei bildname pfad fichier nomdufichier nomdefichier nomfichier chemin archivo imagen "
    "nomearquivo imagem immagine percorso",
    "series": "seriesinstanceuid seriesuid series seriesid serie serienuid serieninstanzuid",
    "study": "studyinstanceuid studyuid study studyid studie studienuid studieninstanzuid untersuchung etude examen "
    "estudio estudo",
    "patient": "patientid patient patientsid subjectid subject participantid participant patientennummer patientennr "
    "patientnummer patientenid patientenkennung idpatient numeropatient paciente idpaciente paziente",
}
KEYS: Final[dict[str, Level]] = {name: level for level, names in _KEYS.items() for name in _words(names)}
READERS: Final = _words(
    "radid reader readerid readername radiologist radiologistid annotator annotatorid rater raterid observer "
    "observerid befunder annotateur"
)
NAMES: Final = _words(
    "findinglabels findinglabel findings finding classname labelname categoryname labels label diagnosis class "
    "category pathology lesiontype lesion diagnose befund klasse diagnostic classe diagnostico"
)
"""Columns of names of findings or of what boxes hold; the first that is there."""
_NEVER: Final = frozenset(
    _words(
        # Persons, times, technique, numbering; in English, German, French and Spanish.
        "age sex gender birth dob race ethnicity height weight smoker patient subject date time visit follow id no "
        "number index name site study series view position projection size width rows columns spacing x y w h fold "
        "split set train test val valid validation crowd iscrowd difficult truncated occluded score confidence area "
        "reader rater alter geschlecht geburt geburtsdatum geburtstag groesse grosse gewicht datum zeit uhrzeit "
        "nachname vorname nr nummer ansicht projektion raucher sexe naissance taille poids nom prenom numero vue edad "
        "sexo peso fecha nombre eta sesso "
        # Where a row or a file stands; pandas calls the numbers of rows "Unnamed: 0".
        "unnamed idx row count dir directory folder zeile ordner dossier carpeta fila dicom"
    )
)
_CORNERS: Final = (
    "x0 y0 x1 y1", "x1 y1 x2 y2", "xmin ymin xmax ymax", "minx miny maxx maxy", "left top right bottom",
    "xtl ytl xbr ybr", "xstart ystart xend yend", "startx starty endx endy", "xleft ytop xright ybottom",
)  # fmt: skip
_SIZES: Final = (
    "x y w h", "x y width height", "left top w h", "left top width height", "xmin ymin w h", "xmin ymin width height",
    "x1 y1 w h", "x1 y1 width height", "minx miny width height",
)  # fmt: skip
_ONE_COLUMN: Final = {
    "": False, "xywh": False, "xywidthheight": False, "lefttopwidthheight": False, "ltwh": False, "tlwh": False,
    "xminyminwidthheight": False, "xyxy": True, "xminyminxmaxymax": True, "x1y1x2y2": True, "ltrb": True,
    "lefttoprightbottom": True,
}  # fmt: skip
_PLACES: Final = (
    frozenset(_words("x xmin x0 x1 x2 xmax minx maxx cx xc xcenter xcentre centerx centrex xtl xbr xmid coordx")),
    frozenset(_words("y ymin y0 y1 y2 ymax miny maxy cy yc ycenter ycentre centery centrey ytl ybr ymid coordy")),
)
_LISTS: Final = frozenset(_words("boxes bboxes boundingboxes bboxlist boxlist predictionstring"))
_PICTURE_SIZES: Final = (
    "imagewidth imageheight", "imgwidth imgheight", "imagew imageh", "imgw imgh", "picturewidth pictureheight",
    "bildbreite bildhohe", "columns rows", "cols rows", "width height",
)  # fmt: skip


@dataclass(frozen=True)
class BoxColumns:
    """Where a table holds its boxes.

    Args:
        places: Columns of left, top, and of right and bottom or of width and height; or one column of all four.
        are_corners: The last two are right and bottom.
        size: Columns of the width and height of the picture.
    """

    places: tuple[int, ...]
    are_corners: bool
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class KeyColumns:
    """Which column says whose a row is.

    Args:
        column: Column of the key.
        level: Level of what it names; "any": whatever it names.
        others: Less specific keys with their levels; they must not contradict it.
    """

    column: int
    level: Level
    others: tuple[tuple[int, Level], ...] = ()

    @property
    def all(self) -> frozenset[int]:
        """Columns that are keys."""
        return frozenset((self.column, *(column for column, _ in self.others)))


def plain(name: str) -> str:
    """A name as it is compared: letters and digits of any script, without case, accents, blanks and marks."""
    decomposed = unicodedata.normalize("NFKD", name.casefold())
    return "".join(character for character in decomposed if character.isalnum())


def _is_dicom_keyword(name: str) -> bool:
    from pydicom.datadict import tag_for_keyword  # a seventh of a second that ingests without tables need not pay

    return tag_for_keyword(name) is not None


def is_about_persons_or_technique(name: str) -> bool:
    """Whether a column of such a name is never a finding; names of DICOM attributes of several words are technique."""
    if sum(map(str.isupper, name)) > 1 and _is_dicom_keyword(name):
        return True
    words = re.split(r"[\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name))
    return plain(name) != "nofinding" and not _NEVER.isdisjoint({plain(word) for word in words if word})


def is_keyed(header: Iterable[str]) -> bool:
    """Whether one column has the name of a key."""
    return any(plain(name) in KEYS for name in header)


def column_of(header: Sequence[str], wanted: str) -> int:
    """The column that a user names: as it is written, else however it is spelt.

    Raises:
        InputError: `E_LABEL_FORMAT`, none or several are called so.
    """
    exact = unicodedata.normalize("NFC", wanted.strip())
    found = [index for index, name in enumerate(header) if unicodedata.normalize("NFC", name) == exact]
    found = found or [index for index, name in enumerate(header) if plain(name) and plain(name) == plain(wanted)]
    if len(found) != 1:
        raise InputError(
            "E_LABEL_FORMAT",
            f"{len(found)} of {len(header)} columns have a name given with --key-column or --label-column",
            hint="write the name as it stands in the first row of the table",
        )
    return found[0]


def key_columns(table: Table, known: Mapping[str, Set[str]], wanted: str | None) -> KeyColumns:
    """The most specific column that says whose a row is.

    Args:
        table: All of it.
        known: Names of the images at hand as `name_key`, by level.
        wanted: Name of the column, where a user gave one.

    Raises:
        InputError: `E_LABEL_FORMAT`, there is none.
    """
    named = [(index, KEYS[plain(name)]) for index, name in enumerate(table.header) if plain(name) in KEYS]
    if wanted is not None:
        column = column_of(table.header, wanted)
        return KeyColumns(column, "any")
    if named:
        best = min(named, key=lambda pair: (LEVELS.index(pair[1]), -_hits(table, pair[0], known.get(pair[1], set()))))
        others = [pair for pair in named if LEVELS.index(pair[1]) > LEVELS.index(best[1])]
        return KeyColumns(*best, tuple(others))
    hits = [
        (_hits(table, column, known.get(level, set())), column, rank)
        for column in range(len(table.header))
        for rank, level in enumerate(LEVELS)
    ]
    most = max(hits)[0]
    if not most:
        raise InputError(
            "E_LABEL_FORMAT",
            f"none of {len(table.header)} columns names a file, series, study or patient",
            hint="name the column that does with --key-column",
        )
    _, column, _ = min((one for one in hits if 2 * one[0] >= most), key=lambda one: (one[2], -one[0], one[1]))
    return KeyColumns(column, "any")


def box_columns(table: Table) -> BoxColumns | None:
    """Columns of boxes; None if the table has no places on pictures.

    Raises:
        InputError: `E_LABEL_FORMAT`, it has places that are no boxes in pixels; `E_NAME_COLLISION`, several columns of
            one name have different places.
    """
    header = [plain(name) for name in table.header]
    without_prefix = [re.sub(r"^(boundingbox|bndbox|bbox|box)", "", name) for name in header]
    index = {name: column for column, name in reversed(list(enumerate(without_prefix)))}
    for are_corners, forms in ((True, _CORNERS), (False, _SIZES)):
        for form in (form.split() for form in forms):
            if all(name in index for name in form):
                _refuse_repeated(table, without_prefix, form)
                places = tuple(index[name] for name in form)
                return BoxColumns(places, are_corners, _size_columns(header, places))
    for column, (name, rest) in enumerate(zip(header, without_prefix, strict=True)):
        if name != rest and rest in _ONE_COLUMN and any("," in row.fields[column] for row in table.rows):
            return BoxColumns((column,), _ONE_COLUMN[rest], _size_columns(header, (column,)))
    has_lists = any(
        name in _LISTS and any(is_text_of_places(row.fields[column]) for row in table.rows)
        for column, name in enumerate(header)
    )
    if has_lists or all(not names.isdisjoint(index) for names in _PLACES):
        raise InputError(
            "E_LABEL_FORMAT",
            "columns of places on pictures that are no boxes in pixels",
            hint="write left, top, right and bottom edges as x_min, y_min, x_max, y_max, in pixels",
        )
    return None


def _refuse_repeated(table: Table, header: Sequence[str], names: Sequence[str]) -> None:
    """Refuse columns of one name that say different things: nobody knows which of them counts."""
    for name in names:
        columns = [column for column, other in enumerate(header) if other == name]
        if any(len({row.fields[column] for column in columns}) > 1 for row in table.rows):
            raise InputError("E_NAME_COLLISION", f"{len(columns)} columns of one edge of a box say different things")


def is_text_of_places(text: str) -> bool:
    """Whether a field holds four numbers and more: a box or several, whatever is written around them."""
    return len(re.findall(r"\d+(?:[.,]\d+)?", text)) >= 4


def reader_column(table: Table) -> int | None:
    """The column that says who has read an image."""
    return next((index for index, name in enumerate(table.header) if plain(name) in READERS), None)


def names_column(table: Table, taken: Set[int]) -> int | None:
    """The column of names of findings, or of what boxes hold."""
    header = [plain(name) for name in table.header]
    for wanted in NAMES:
        for index, name in enumerate(header):
            if index not in taken and name == wanted:
                return index
    return None


def _hits(table: Table, column: int, names: Set[str]) -> int:
    return sum(name_key(row.fields[column]) in names for row in table.rows) if names else 0


def _size_columns(header: Sequence[str], taken: Sequence[int]) -> tuple[int, int] | None:
    free = {name: index for index, name in reversed(list(enumerate(header))) if index not in taken}
    for width, height in (pair.split() for pair in _PICTURE_SIZES):
        if width in free and height in free:
            return free[width], free[height]
    return None
