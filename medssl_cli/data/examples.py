"""Examples: what a network sees at once. One image per channel that a recipe names, of one patient and one case.

Which images are of one case, their records say: they share the pseudonym of what their layout calls it, or, as DICOM,
the study and the frame of reference. Nothing is read here; where grids differ, `Example.is_one_grid` says so.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from medssl_cli.base.errors import InputError, NothingUsableError, UsageError
from medssl_cli.cache.items import CachedImage, ItemRecord
from medssl_cli.formats.name_words import channel_of_modality, same_channel
from medssl_cli.imaging.geometry import is_same_grid, is_turned_grid

MISSING: Final = "E_CHANNEL_MISSING"
AMBIGUOUS: Final = "E_CHANNEL_AMBIGUOUS"
ELSEWHERE: Final = "E_CHANNEL_GRID"
_NAMED: Final = 5
_FAULTS: Final = {MISSING: "without", AMBIGUOUS: "with several images for", ELSEWHERE: "with another place for"}


@dataclass(frozen=True, slots=True)
class Example:
    """One image per channel, in the order of the channels, of one patient and one case.

    Args:
        items: The images; the grid of the first is that of the example.
        is_one_grid: All lie on that grid; else the others must be resampled to it, and may be: they share its world.
    """

    items: tuple[CachedImage, ...]
    is_one_grid: bool = True

    @property
    def first(self) -> CachedImage:
        """The image whose grid, patient and identity are those of the example; splits go by it."""
        return self.items[0]

    @property
    def item_id(self) -> str:
        """Id of the first image: no other example of the same channels has it."""
        return self.items[0].item_id

    @property
    def patient_key(self) -> str:
        """Key of the patient of all its images."""
        return self.items[0].patient_key

    @property
    def label_digests(self) -> dict[str, str]:
        """SHA-256 of the label map of each set that any of its images has; of several, that of the first."""
        return {name: digest for item in reversed(self.items) for name, digest in item.label_digests.items()}

    @property
    def annotation_sets(self) -> tuple[str, ...]:
        """Kinds and names of what is known of any of its images beside label maps, such as `boxes/lidc`."""
        return tuple(sorted({name for item in self.items for name in item.annotation_sets}))

    def labelled(self, label_set: str) -> CachedImage | None:
        """The first of its images that has a label map of a set."""
        return next((item for item in self.items if label_set in item.label_digests), None)

    def annotated(self, name: str) -> CachedImage | None:
        """The first of its images of which something is known, by a name such as `boxes/lidc`."""
        return next((item for item in self.items if name in item.annotation_sets), None)


@dataclass
class Unusable:
    """Cases that are no examples, counted and named.

    Args:
        counts: How many, by code and channel.
        first: Images of the first case of each code.
        num_cases: All of them; a case may lack several channels.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[str, tuple[str, ...]] = field(default_factory=dict)
    num_cases: int = 0

    def add(self, code: str, channels: Iterable[str], items: Sequence[CachedImage]) -> None:
        """Count one case."""
        self.num_cases += 1
        self.counts.update((code, channel) for channel in channels)
        self.first.setdefault(code, tuple(item.item_id for item in items))

    @property
    def code(self) -> str:
        """The code of an error about them."""
        return next(code for code in _FAULTS if code in self.first)

    def sentence(self, num_found: int) -> str:
        """How many of how many, which channels, and the images of the first case."""
        ordered = sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))
        parts = [f"{number} {_FAULTS[code]} {channel}" for (code, channel), number in ordered[:_NAMED]]
        parts += ["..."] if len(ordered) > _NAMED else []
        items = self.first[self.code]
        shown = ", ".join(item[:10] for item in items[:_NAMED]) + (" ..." if len(items) > _NAMED else "")
        whole = self.num_cases + num_found
        return f"{self.num_cases} of {whole} cases are no examples: {', '.join(parts)}; the first has the items {shown}"


def examples(
    records: Sequence[CachedImage],
    channels: Sequence[str] = (),
    *,
    incomplete: Literal["refuse", "leave_out"] = "refuse",
    note: Callable[[str], None] = lambda text: None,
) -> list[Example]:
    """Put the images of a cache together to examples, in the order of the ids of their first images.

    Args:
        records: Images that count, in any order.
        channels: As the recipe names them; by default one without a name, and every image is an example by itself.
        incomplete: What becomes of cases that lack a channel, have several images for one, or images whose grids
            neither agree nor share a frame of reference. They are counted and named either way.
        note: Told of those that are left out.

    Raises:
        UsageError: `E_RECIPE`, two names mean one channel.
        InputError: `E_CHANNEL_MISSING`, `E_CHANNEL_AMBIGUOUS`, `E_CHANNEL_GRID`.
        NothingUsableError: `E_CHANNEL_MISSING`, no image is of these channels.
    """
    wanted = tuple(map(same_channel, channels))
    if len(set(wanted)) < len(wanted):
        raise UsageError("E_RECIPE", f"data.channels names one channel twice: {', '.join(channels)}")
    if not wanted:
        found, unusable = [Example((item,)) for item in records], Unusable()
    elif len(wanted) == 1:
        found, unusable = [Example((item,)) for item in records if channel_of(item) == wanted[0]], Unusable()
    else:
        found, unusable = _put_together(records, wanted)
    if unusable.num_cases and incomplete == "refuse":
        raise InputError(unusable.code, unusable.sentence(len(found)))
    if wanted and not found:
        raise _nothing(records, wanted, unusable)
    if unusable.num_cases:
        note(f"W_EXAMPLE_LEFT_OUT: {unusable.sentence(len(found))}")
    return sorted(found, key=lambda example: example.item_id)


def annotated_examples(
    everything: Sequence[ItemRecord],
    annotated: Sequence[ItemRecord],
    channels: Sequence[str],
    *,
    note: Callable[[str], None],
) -> list[tuple[Example, ItemRecord]]:
    """Examples of which something is known, each with the first of its images of which it is known.

    Args:
        everything: Images of the cache.
        annotated: Those of them that something is known of.
        channels: As the recipe names them; without names every image is an example by itself.
        note: Told how many cases are left out and why.

    Raises:
        UsageError: `E_RECIPE`, two names mean one channel.
        NothingUsableError: `E_CHANNEL_MISSING`, none has all channels; `E_NO_LABELS`, none of them is annotated.
    """
    if not channels:
        return [(Example((item,)), item) for item in annotated]
    found = examples_about(everything, annotated, channels, note=note)
    known = {item.item_id: item for item in annotated}
    homes = [(example, home) for example in found if (home := _first_of(example, known)) is not None]
    if not homes:
        raise NothingUsableError(
            "E_NO_LABELS", f"none of the {len(found)} examples of {', '.join(channels)} has an image that is annotated"
        )
    if len(homes) < len(found):
        note(
            f"W_EXAMPLE_LEFT_OUT: none of the images of {len(found) - len(homes)} of {len(found)} examples is annotated"
        )
    return homes


def examples_about(
    everything: Sequence[CachedImage],
    items: Sequence[CachedImage],
    channels: Sequence[str],
    *,
    note: Callable[[str], None],
) -> list[Example]:
    """Examples of the cases that some images are of; cases that are no examples are left out.

    Args:
        everything: Images of the cache.
        items: Some of them.
        channels: As the recipe names them; without names every one of the items is an example by itself.
        note: Told how many cases are left out and why.

    Raises:
        UsageError: `E_RECIPE`, two names mean one channel.
        NothingUsableError: `E_CHANNEL_MISSING`, none has all channels.
    """
    if not channels:
        return examples(items)
    cases = {_case_of(item) for item in items}
    return examples(
        [item for item in everything if _case_of(item) in cases], channels, incomplete="leave_out", note=note
    )


def examples_with(
    everything: Sequence[CachedImage], items: Sequence[CachedImage], channels: Sequence[str]
) -> list[Example]:
    """The example that each of some images is of, in their order.

    Args:
        everything: Images of the cache.
        items: Such as `annotated_examples` gives.
        channels: As the recipe names them.

    Raises:
        InputError: `E_CHANNEL_MISSING`, `E_CHANNEL_AMBIGUOUS`, `E_CHANNEL_GRID`, an image is of no example any more.
        NothingUsableError: `E_CHANNEL_MISSING`.
    """
    if not channels or not items:
        return [Example((item,)) for item in items]
    cases = {_case_of(item) for item in items}
    found = examples([item for item in everything if _case_of(item) in cases], channels)
    by_image = {item.item_id: example for example in found for item in example.items}
    others = [item.item_id for item in items if item.item_id not in by_image]
    if others:
        raise InputError(
            MISSING,
            f"{len(others)} of {len(items)} images are of no channel of {', '.join(channels)}: {others[0][:10]}",
        )
    return [by_image[item.item_id] for item in items]


def _first_of(example: Example, known: Mapping[str, ItemRecord]) -> ItemRecord | None:
    """The first image of an example that is among others."""
    return next((known[item.item_id] for item in example.items if item.item_id in known), None)


def channel_of(item: CachedImage) -> str | None:
    """Which channel an image is: by its record, else by its modality, as the CT and the PET of a study are."""
    return item.channel or channel_of_modality(item.modality) or None


def _put_together(records: Iterable[CachedImage], wanted: Sequence[str]) -> tuple[list[Example], Unusable]:
    cases: dict[tuple[str, ...], dict[str, list[CachedImage]]] = defaultdict(lambda: defaultdict(list))
    for item in sorted(records, key=lambda item: item.item_id):
        channel = channel_of(item)
        if channel is not None and channel in wanted:
            cases[_case_of(item)][channel].append(item)
    found: list[Example] = []
    unusable = Unusable()
    for by_channel in cases.values():
        images = [item for channel in wanted for item in by_channel.get(channel, ())]
        if missing := [channel for channel in wanted if channel not in by_channel]:
            unusable.add(MISSING, missing, images)
        elif several := [channel for channel in wanted if len(by_channel[channel]) > 1]:
            unusable.add(AMBIGUOUS, several, images)
        elif elsewhere := [
            channel for channel, item in zip(wanted, images, strict=True) if not _may_join(item, images[0])
        ]:
            unusable.add(ELSEWHERE, elsewhere, images)
        else:
            found.append(Example(tuple(images), all(_is_on_grid(item, images[0]) for item in images)))
    return found, unusable


def _case_of(item: CachedImage) -> tuple[str, ...]:
    """What images of one case have in common, and no others."""
    if item.example_key is not None:
        return item.patient_key, "case", item.example_key
    if item.frame_of_reference_key is not None:
        return item.patient_key, item.study_key, item.frame_of_reference_key
    return item.patient_key, "item", item.item_id


def _is_on_grid(item: CachedImage, first: CachedImage) -> bool:
    is_same_kind = item.shape == first.shape and item.is_volume == first.is_volume
    return is_same_kind and is_same_grid(first.affine_array, item.affine_array, first.shape)


def _may_join(item: CachedImage, first: CachedImage) -> bool:
    """Whether an image lies on a grid or may be resampled to it: it has its voxel centres, or shares its world."""
    if _is_on_grid(item, first):
        return True
    if not (item.is_volume and first.is_volume):
        return False
    frame = item.frame_of_reference_key
    has_one_world = frame is not None and frame == first.frame_of_reference_key
    return has_one_world or is_turned_grid(item.affine_array, item.shape, first.affine_array, first.shape)


def _nothing(records: Iterable[CachedImage], wanted: Sequence[str], unusable: Unusable) -> NothingUsableError:
    there: Mapping[str, int] = Counter(channel_of(item) or "unnamed" for item in records)
    ordered = sorted(there, key=lambda channel: (-there[channel], channel))[:_NAMED]
    shown = ", ".join(f"{there[channel]} {channel}" for channel in ordered)
    if unusable.num_cases:
        return NothingUsableError(unusable.code, unusable.sentence(0))
    return NothingUsableError(
        MISSING, f"no image is of the channels {', '.join(wanted)}; there are {shown or 'no images'}"
    )
