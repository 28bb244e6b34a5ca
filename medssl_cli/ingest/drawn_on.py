"""The images of a mask: those that its frames and contours were drawn on, one by one."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from medssl_cli.formats.labels import Flaw, Instance, Reference
from medssl_cli.ingest.known_images import KnownImage
from medssl_cli.ingest.matching import Index
from medssl_cli.ingest.tasks import StoredImage


@dataclass(frozen=True)
class ImagesOfMarks:
    """Images that marks of a mask were drawn on.

    Args:
        images: The image; of several, the one that the marks fit.
        sources: Which of the mask's sources are meant; None: all its marks.
    """

    images: tuple[StoredImage, ...]
    sources: frozenset[int] | None = None


@dataclass(frozen=True)
class ImagesOfMask:
    """Images that all marks of a mask were drawn on.

    Args:
        parts: Each takes a part of the marks; none if no image is meant.
        num_unknown: Sources that no image of this run has, of a mask whose other sources are known.
        is_ambiguous: Several images are marked, and some marks do not say which of them.
    """

    parts: tuple[ImagesOfMarks, ...] = ()
    num_unknown: int = 0
    is_ambiguous: bool = False

    def flaws_of_patient(self, index: Index, reference: Reference) -> tuple[Flaw, ...]:
        """A note if the PatientID of a mask is not that of its images.

        Raises:
            InputError: `E_LABEL_KEYS`, it is that of others.
        """
        images = [image for part in self.parts for image in part.images]
        if not index.is_of_another(reference.patient or "", images):
            return ()
        return (Flaw("W_LABEL_PATIENT", "the images that it was drawn on have another PatientID"),)


def images_drawn_on(index: Index, reference: Reference, sources: Sequence[frozenset[Instance]]) -> ImagesOfMask:
    """Find the images of a mask.

    What a mark says that it was drawn on decides alone. Only where no mark names an image of this run does the
    reference of the whole file count, and then for one image: that images share a grid, a series or a frame of
    reference puts nothing on several of them.

    Args:
        index: Index of the images.
        reference: Reference of the file.
        sources: The different sets of instances that its marks name; an empty one for marks that name none.
    """
    images: dict[str, StoredImage] = {}
    meant: dict[int, frozenset[str]] = {}
    for number, source in enumerate(sources):
        found = {known.image.item_id: known.image for one in source for known in index.with_instance(one)}
        images |= found
        if found:
            meant[number] = frozenset(found)
    num_unknown = sum(map(bool, sources)) - len(meant)
    if not meant:
        candidates = _of_file(index, reference, is_drawn_elsewhere=num_unknown > 0)
        return ImagesOfMask((ImagesOfMarks(candidates),) if candidates else ())
    shared = frozenset[str].intersection(*meant.values())
    if shared:
        known = frozenset(number for number, source in enumerate(sources) if not source or number in meant)
        part = ImagesOfMarks(tuple(images[item] for item in sorted(shared)), known if num_unknown else None)
        return ImagesOfMask((part,), num_unknown)
    has_unnamed = frozenset() in sources
    if has_unnamed or any(len(items) > 1 for items in meant.values()):
        return ImagesOfMask(is_ambiguous=True)
    parts: dict[str, set[int]] = defaultdict(set)
    for number, (item,) in meant.items():
        parts[item].add(number)
    own = tuple(ImagesOfMarks((images[item],), frozenset(parts[item])) for item in sorted(parts))
    return ImagesOfMask(own, num_unknown)


def _of_file(index: Index, reference: Reference, *, is_drawn_elsewhere: bool) -> tuple[StoredImage, ...]:
    """Images that a file means as a whole.

    An image whose instances are known and none of which is named is not meant, whatever else they share: the label was
    drawn on another part of the series.
    """
    names_instances = is_drawn_elsewhere or bool(reference.sop_uids)
    series = reference.all_series | {uid for uid in (reference.series_uid,) if uid}
    found: list[KnownImage] = []
    if not is_drawn_elsewhere:
        found = [known for uid in reference.sop_uids for known in index.with_instance(Instance(uid))]
    if not found:
        of_series = [known for uid in series for known in index.of_series(uid)]
        found = [known for known in of_series if not (names_instances and known.sop_uids)]
    if not found and not series and not names_instances and reference.frame_of_reference:
        found = index.of_frame(reference.frame_of_reference)
    found = [known for known in found if not known.is_superseded] or found
    by_item = {known.image.item_id: known.image for known in found}
    return tuple(by_item[item] for item in sorted(by_item))
