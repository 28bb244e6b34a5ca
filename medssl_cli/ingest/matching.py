"""Which images a reference means: those of this run in the clear, earlier ones by their pseudonyms."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import TypeVar

from medssl_cli.base.errors import InputError
from medssl_cli.cache.keys import Level
from medssl_cli.cache.store import Cache
from medssl_cli.formats.labels import Instance, Reference, file_name
from medssl_cli.formats.table import stem_of
from medssl_cli.ingest.known_images import KnownImage
from medssl_cli.ingest.names import Hints, NamedImages, the_one
from medssl_cli.ingest.tasks import StoredImage

Key = TypeVar("Key")


class Index:
    """Images by what they may be called.

    Args:
        images: Images of this run.
        cache: Cache for references that mean none of them; read only if there are any.
    """

    def __init__(self, images: Sequence[KnownImage], cache: Cache | None) -> None:
        self._cache = cache
        self._by_pseudonym: dict[tuple[str, str], list[KnownImage]] | None = None
        self._by_item = {image.image.item_id: image for image in images}
        self._by_sop = _grouped(images, lambda image: image.sop_uids)
        self._by_series = _grouped(images, lambda image: _words(image.series_uid))
        self._by_frame = _grouped(images, lambda image: _words(image.frame_of_reference))
        self._by_study = _grouped(images, lambda image: _words(image.study))
        self._by_patient = _grouped(images, lambda image: image.patients)
        self._by_name = NamedImages([image for image in images if image.place is not None])

    def find(
        self,
        reference: Reference,
        size: tuple[int, int] | None = None,
        near: PurePath | None = None,
        *,
        is_whole: bool = False,
    ) -> list[StoredImage]:
        """Images that a reference means; the first of its words that means any decides.

        Instances go before the series. The frame of reference counts only where neither is named, and only if one
        image has it: several series of one examination share it. For file names see `NamedImages.find`; of earlier
        runs, whose folders nobody knows, a name counts only if one image has it.

        Args:
            reference: Reference of a label.
            size: Columns and rows that the image must have, where several are called the same.
            near: Folder of the file of labels.
            is_whole: The label is about whole images, so that one of their slices does not stand for them.

        Raises:
            InputError: `E_LABEL_AMBIGUOUS`, several images are called the same, or one slice of several is meant;
                `E_LABEL_KEYS`, further words of the reference mean other images.
        """
        others = [] if reference.also is None else self._others(reference.also)
        hints = Hints(near, size, others, reference.num_shared)
        found = next(filter(None, self._candidates(reference, hints)), [])
        if is_whole and any(len(known.sop_uids) > 1 and known.sop_uids & reference.sop_uids for known in found):
            raise InputError("E_LABEL_AMBIGUOUS", "the row is about one slice, and the image has several")
        for items in others if found else ():
            found = [known for known in found if known.image.item_id in items]
            if not found:
                raise InputError("E_LABEL_KEYS", "two columns of the row name different images")
        return list({known.image.item_id: known.image for known in found}.values())

    def with_instance(self, instance: Instance) -> list[KnownImage]:
        """Images of this run with a slice that is this object, or this frame of it."""
        found = self._by_sop.get(instance.sop_uid, [])
        if instance.frame is None:
            return found
        of_frames = [known for known in found if any(frame.sop_uid == instance.sop_uid for frame in known.frames)]
        if of_frames:
            return [known for known in of_frames if instance in known.frames]
        return found if instance.frame == 1 else []

    def of_series(self, uid: str) -> list[KnownImage]:
        """Images of a series, also those that are parts of it (`SeriesPart.identity`), or a file that is called so.

        Raises:
            InputError: `E_LABEL_AMBIGUOUS`, several files are called so.
        """
        if found := self._by_series.get(uid) or self._by_name.find(uid, Hints()) or self._stored("series", uid):
            return found
        parts: list[KnownImage] = []
        while part := self._stored("series", f"{uid}#p{len(parts)}"):
            parts += part[:1]
        return parts

    def of_frame(self, uid: str) -> list[KnownImage]:
        """Images of a frame of reference."""
        return self._by_frame.get(uid, []) or self._stored("frame_of_reference", uid)

    def is_of_another(self, patient: str, images: Iterable[StoredImage]) -> bool:
        """Whether a DICOM image says another PatientID than the label that was drawn on it, and nobody here has that.

        Args:
            patient: PatientID of the label; "" if it does not say.
            images: That the label belongs to.

        Raises:
            InputError: `E_LABEL_KEYS`, the patient of the label is known, and the image is somebody else's.
        """
        if not patient:
            return False
        own = {known.image.item_id for known in self._of_group("patient", self._by_patient, patient)}
        others = [image for image in images if image.item_id not in own and self._says_whose(image)]
        if others and own:
            raise InputError("E_LABEL_KEYS", "it was drawn on an image of one patient and says that it is of another")
        return bool(others)

    def _says_whose(self, image: StoredImage) -> bool:
        """Whether an image is of DICOM objects with a PatientID."""
        if known := self._by_item.get(image.item_id):
            return bool(known.series_uid and known.patients)
        if self._cache is None:
            return False
        record = self._cache.record(image.item_id)
        return record.frame_of_reference_key is not None and record.has_patient_identity

    def _others(self, also: Reference) -> list[set[str]]:
        """For each word that means images at all, their items."""
        found = (
            self._of_uid(also.series_uid),
            self._of_group("study", self._by_study, also.study),
            self._of_group("patient", self._by_patient, also.patient),
        )
        return [{known.image.item_id for known in some} for some in found if some]

    def _candidates(self, reference: Reference, hints: Hints) -> Iterator[list[KnownImage]]:
        """Images by each word of a reference in turn."""
        yield [image for uid in sorted(reference.sop_uids) for image in self._by_sop.get(uid, ())]
        yield self._of_uid(reference.series_uid) or self._of_name(reference.series_uid, hints)
        yield self._of_frame(reference)
        yield self._of_name(reference.name, hints)
        yield self._of_group("study", self._by_study, reference.study)
        yield _nearest(self._of_group("patient", self._by_patient, reference.patient), hints.near)
        # Where nobody is called so, a PatientID may still be the whole name of a file.
        yield self._of_name(reference.patient, hints)

    def _of_uid(self, uid: str | None) -> list[KnownImage]:
        if uid is None:
            return []
        return self._by_series.get(uid, []) or self._stored("series", uid)

    def _of_frame(self, reference: Reference) -> list[KnownImage]:
        uid = reference.frame_of_reference
        if uid is None or reference.series_uid is not None or reference.sop_uids:
            return []
        found = self._by_frame.get(uid, []) or self._stored("frame_of_reference", uid)
        return found if len({known.image.item_id for known in found}) == 1 else []

    def _of_name(self, name: str | None, hints: Hints) -> list[KnownImage]:
        if name is None:
            return []
        if found := self._by_name.find(name, hints):
            return found
        last = file_name(name)
        stored = [known for word in dict.fromkeys((last, stem_of(last))) for known in self._stored("series", word)]
        # Those of this run were judged by their folders.
        return the_one([known for known in stored if known.image.item_id not in self._by_item], name, hints)

    def _of_group(self, level: Level, here: dict[str, list[KnownImage]], word: str | None) -> list[KnownImage]:
        """Findings of a study or patient are those of all its images, of this run and before."""
        if word is None:
            return []
        stored = (self._by_item.get(known.image.item_id, known) for known in self._stored(level, word))
        return [*here.get(word, []), *stored]

    def _stored(self, level: Level, *parts: str) -> list[KnownImage]:
        if self._cache is None:
            return []
        if self._by_pseudonym is None:
            self._by_pseudonym = _read_keys(self._cache)
        return self._by_pseudonym.get((level, self._cache.pseudonyms.of(level, *parts)), [])


def _read_keys(cache: Cache) -> dict[tuple[str, str], list[KnownImage]]:
    found: dict[tuple[str, str], list[KnownImage]] = defaultdict(list)
    for record in cache.iterate():
        patients = (record.patient_key,) if record.has_patient_identity else ()
        known = KnownImage(StoredImage.of(record), patients=patients, is_superseded=record.superseded_by is not None)
        found["series", record.series_key].append(known)
        found["study", record.study_key].append(known)
        found["patient", record.patient_key].append(known)
        if record.frame_of_reference_key is not None:
            found["frame_of_reference", record.frame_of_reference_key].append(known)
    return dict(found)


def _nearest(found: list[KnownImage], near: PurePath | None) -> list[KnownImage]:
    """Images below a folder, if there are any, of those whose patient is known from their file's name only."""
    if near is None or any(known.series_uid is not None for known in found):
        return found
    return [known for known in found if known.place is not None and known.place.is_relative_to(near)] or found


def _grouped(images: Iterable[KnownImage], keys: Callable[[KnownImage], Iterable[str]]) -> dict[str, list[KnownImage]]:
    groups: dict[str, list[KnownImage]] = defaultdict(list)
    for image in images:
        for key in keys(image):
            groups[key].append(image)
    return dict(groups)


def _words(*words: str | None) -> list[str]:
    return [word for word in words if word]
