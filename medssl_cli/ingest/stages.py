"""The stages of work on what an ingest found: headers, grouping, images, labels, annotations.

The work is done in child processes; what became of each source goes into the report of the run.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from medssl_cli.cache.store import Cache
from medssl_cli.formats.layouts import LabelFile, arrange
from medssl_cli.formats.name_words import are_channels
from medssl_cli.formats.source import Source, place_of
from medssl_cli.formats.table import image_formats, is_file_of_images, stem_of
from medssl_cli.imaging.geometry import is_turned_grid
from medssl_cli.ingest.annotations import store_all
from medssl_cli.ingest.channels import learn_channels
from medssl_cli.ingest.failures import Failure, crash
from medssl_cli.ingest.inputs import Inputs
from medssl_cli.ingest.known_files import Judgement
from medssl_cli.ingest.known_images import KnownImage
from medssl_cli.ingest.label_maps import store_labels
from medssl_cli.ingest.labels import DRAWN_ON_IMAGES, Annotation, Choice
from medssl_cli.ingest.plan import label_tasks, patients_of_studies, plan_files
from medssl_cli.ingest.report import State
from medssl_cli.ingest.run import IngestRun
from medssl_cli.ingest.space import require_space
from medssl_cli.ingest.tasks import (
    ImageTask,
    LabelLike,
    LabelObject,
    StoredImage,
    StoredLabel,
    Unread,
    read_header_batch,
    store_images,
)

HEADERS_PER_TASK: Final = 64
HEADERS_TIMEOUT_S: Final = 120.0
STORE_TIMEOUT_S: Final = 600.0
SECOND_TRY_AFTER_S: Final = 2.0
MAX_PLANES: Final = 120
_FAULTS: Final = {
    "E_LABEL_AMBIGUOUS": (
        "names and folders fit several images that are not channels of one case",
        "give the label the name of its image, or list the pairs in dataset.json",
    ),
    "E_NAME_COLLISION": ("dataset.json gives two values names that become the same", ""),
}


@dataclass
class Stages:
    """The work of one run, in order.

    Args:
        ingest_run: The run: its options, its report, its children.
        inputs: What was found.
        roots: Where it was looked for.
        stored: Images of files, by source.
        label_like: Files that may be label maps of others, with what they would be as images.
        refused: `RefusedFile`s, which may be slices of a series.
        images: What labels may belong to.
    """

    ingest_run: IngestRun
    inputs: Inputs
    roots: Sequence[Path]
    stored: dict[Source, tuple[StoredImage, ...]] = field(default_factory=dict)
    label_like: dict[Source, tuple[ImageTask, LabelLike]] = field(default_factory=dict)
    refused: list[Any] = field(default_factory=list)
    images: list[KnownImage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = Cache(self.ingest_run.cache.root)
        self.builder, self.options, self.runner = (
            self.ingest_run.builder,
            self.ingest_run.options,
            self.ingest_run.runner,
        )

    def run(self, judgements: list[Judgement]) -> None:
        """Do everything, or as much as a stop request leaves time for.

        Args:
            judgements: What became of the unchanged files.
        """
        series = self._series(judgements)
        arrangement = arrange([*self.inputs.files_of_images, *self.stored], self.inputs.datasets, roots=self.roots)
        images = [image for image in arrangement.images if image.source not in self.stored]
        files_of_their_own = plan_files(images, arrangement, self.roots, self.cache.root, self.options, self.builder)
        tasks = [*series, *files_of_their_own]
        if not self.options.dry_run:
            require_space(tasks, self.cache)
        self._store_images(tasks)
        if not self.options.dry_run:
            known = {
                source: [image.item_id for image in images if not image.is_new]
                for source, images in self.stored.items()
            }
            learn_channels(arrangement.images, known, self.roots, self.options.patient_pattern, self.cache)
        for source, code in arrangement.skipped:
            self.builder.refuse([source], code, "")
        labels = [label for label in arrangement.labels if label.source not in self.stored]
        self._store_labels([*labels, *self._labels_by_content()])
        self.ingest_run.unremembered.update(self.inputs.annotations)
        if not self.runner.stop.is_set:
            self.ingest_run.num_labels += store_all(
                self.inputs.annotations,
                self.images,
                self.runner,
                self.cache,
                Choice(self.options.label_set, self.options.structures, self.options.seg_fraction, self.options.tables),
                named=self.inputs.named,
                recalled=self._recalled_images,
                dry_run=self.options.dry_run,
            )

    def _series(self, judgements: list[Judgement]) -> list[ImageTask]:
        """Tasks for all series; files that have not changed are settled, unless what they depend on has."""
        inputs = self.inputs
        judgements = [judgement for judgement in judgements if not _is_below(judgement, inputs.redescribed)]
        inputs.open_again({source for judgement in judgements for source in judgement.sources})
        if self.options.policy.stack_pictures:
            judgements = _without_grown_stacks(inputs, judgements)
            inputs.open_again({source for judgement in judgements for source in judgement.sources})
        outdated = _outdated_labels(inputs, judgements, self.roots)
        judgements = [judgement for judgement in judgements if outdated.isdisjoint(judgement.sources)]
        inputs.open_again({source for judgement in judgements for source in judgement.sources})
        headers = self._headers(inputs.files_of_slices)
        changed = {self.builder.series_id(file.SeriesInstanceUID) for file in (*headers, *self.refused)}
        for judgement in judgements:
            if judgement.entry.id in changed:
                headers += self._headers(judgement.sources)
            else:
                self._recall(judgement)
        return self._series_tasks(headers)

    def _recall(self, judgement: Judgement) -> None:
        self.builder.recall(judgement.entry, judgement.sources)
        is_file = is_file_of_images(judgement.kind)
        if judgement.entry.item is None or not (is_file or len(judgement.sources) == 1):
            return
        image = StoredImage.of(self.cache.record(judgement.entry.item))
        if is_file:
            self.stored |= dict.fromkeys(judgement.sources, (image,))
        if is_file or image.shape[2] == 1:
            self.images += [KnownImage.recalled(image, source, has_uids=not is_file) for source in judgement.sources]

    def _recalled_images(self, annotations: Sequence[Annotation]) -> list[KnownImage]:
        """Unchanged series that masks name, with the identity of every slice: the cache does not keep those."""
        references = [annotation.label.reference for annotation in annotations if annotation.kind in DRAWN_ON_IMAGES]
        named = {self.builder.series_id(uid) for reference in references for uid in reference.all_series}
        members = {source for entry, sources in self.builder.recalled if entry.id in named for source in sources}
        sources = sorted(members, key=str)
        if not sources or self.runner.stop.is_set:
            return []
        from medssl_cli.formats.series import assemble

        tasks = [
            (tuple(sources[first : first + HEADERS_PER_TASK]), self.options.policy)
            for first in range(0, len(sources), HEADERS_PER_TASK)
        ]
        headers: list[Any] = []
        for outcome in self.runner.map("headers", read_header_batch, tasks, timeout_s=HEADERS_TIMEOUT_S):
            for result in outcome.result or ():
                headers += result if isinstance(result, tuple) else ()
        parts = assemble(headers, (), self.options.policy).parts
        part_of = {self.cache.pseudonyms.of("series", part.identity.series): part for part in parts}
        records = [record for record in self.cache.iterate() if record.series_key in part_of]
        return [KnownImage.of_series(StoredImage.of(one), part_of[one.series_key].headers) for one in records]

    def _headers(self, sources: Sequence[Source]) -> list[Any]:
        """Headers of slices; refusals go into the report. A batch whose child died is read file by file."""
        headers: list[Any] = []
        again: list[Source] = []
        for pending, size in ((sources, HEADERS_PER_TASK), (again, 1)):
            tasks = [
                (tuple(pending[first : first + size]), self.options.policy) for first in range(0, len(pending), size)
            ]
            outcomes = self.runner.map(
                "headers", read_header_batch, tasks, timeout_s=HEADERS_TIMEOUT_S, sizes=lambda task: len(task[0])
            )
            for outcome in outcomes:
                batch = outcome.task[0]
                if outcome.result is None and size > 1:
                    again += batch
                elif outcome.result is None:
                    self._refuse_file(batch[0], crash(outcome.failure))
                else:
                    for source, result in zip(batch, outcome.result, strict=True):
                        headers += self._headers_of(source, result)
        return headers

    def _headers_of(self, source: Source, result: Any) -> Sequence[Any]:
        """Report what one file of slices is; the headers of an image."""
        if isinstance(result, Unread):
            self.refused.append(result.file)
            self.runner.refuse([source], result.failure)
        elif isinstance(result, Failure):
            self.runner.refuse([source], result)
        elif isinstance(result, LabelObject):
            self.inputs.annotations[source] = result.kind
        else:
            headers: Sequence[Any] = result
            return headers
        return ()

    def _refuse_file(self, source: Source, failure: Failure) -> None:
        """Report a file that nothing can be asked any more: reading it has cost a process."""
        from medssl_cli.formats.series import RefusedFile

        self.refused.append(RefusedFile(source, failure.code))
        self.runner.refuse([source], failure)

    def _series_tasks(self, headers: list[Any]) -> list[ImageTask]:
        """Group slices into images; refusals go into the report."""
        if self.runner.stop.is_set or not headers:
            return []
        from medssl_cli.formats.series import RefusedFile, assemble

        series_of = {header.source: header.SeriesInstanceUID for header in headers}
        unread = [RefusedFile(source, code) for source, code in self.inputs.unread]
        found = assemble(headers, [*self.refused, *unread], self.options.policy)
        self.ingest_run.unremembered.update(found.suspects)
        groups: Counter[Source] = Counter()
        for part in found.parts:
            groups.update(part.sources)
        groups.update(source for refusal in found.refusals for source in refusal.files)
        self.builder.share(source for source, number in groups.items() if number > 1)
        for refusal in found.refusals:
            if refusal.code == "E_INCOMPLETE_SERIES":
                self.ingest_run.unremembered.update(refusal.files)
            members: dict[str, list[Source]] = defaultdict(list)
            for source in refusal.files:
                members[series_of[source]].append(source)
            for uid, sources in members.items():
                identifier = self.builder.series_id(uid)
                self.builder.refuse(sources, refusal.code, refusal.message, refusal.hint, id=identifier)
        given, patients = self.options.given, patients_of_studies(found.parts, self.roots, self.options)
        return [
            ImageTask(
                part,
                "",
                self.cache.root,
                self.options.policy,
                patient=patients.get(part.identity.study),
                channel=given.channel_of(part.sources[0], None),
                dry_run=self.options.dry_run,
            )
            for part in found.parts
        ]

    def _store_images(self, tasks: Sequence[ImageTask], *, is_second_try: bool = False) -> None:
        """Store all images, and keep where those of files went, for their labels."""
        changed: list[ImageTask] = []
        for outcome in self.runner.map("images", store_images, tasks, timeout_s=STORE_TIMEOUT_S):
            task, sources = outcome.task, outcome.task.files
            identifier = self._identifier(task)
            result = outcome.result if outcome.result is not None else crash(outcome.failure)
            if isinstance(result, Failure):
                if result.code == "E_CHANGED_DURING_READ" and not is_second_try and _can_be_read_again(task):
                    changed.append(task)
                else:
                    self.runner.refuse(sources, result, id=identifier)
                continue
            if isinstance(result, LabelLike):
                self.label_like[sources[0]] = task, result
                continue
            identifier = identifier or self.builder.file_id(sources[0])
            if len(result) > 1:
                self.builder.share(sources)
            for image in result:
                self.ingest_run.num_images += image.is_new and not self.options.dry_run
                state: State = "accepted" if image.is_new else "duplicate"
                self.builder.settle(
                    sources, state, id=identifier, message=image.message, item=image.item_id, warnings=image.warnings
                )
                if image.planes is not None and len(self.ingest_run.planes) < MAX_PLANES:
                    self.ingest_run.planes[image.item_id] = image.planes
            self._keep(task, tuple(replace(image, planes=None) for image in result))
        if changed:
            self._try_again(changed)

    def _identifier(self, task: ImageTask) -> str:
        """Key under which the report tells what became of a task; "" to tell it of each file by itself."""
        if task.part is not None:
            return self.builder.series_id(task.part.series_uid)
        return "" if task.stack is None else self.builder.file_id(task.files[0])

    def _labels_by_content(self) -> list[LabelFile]:
        """Label maps that only their voxels tell, of partners on their grid; those without become images after all."""
        labels: list[LabelFile] = []
        images: list[ImageTask] = []
        for source, (task, grid) in self.label_like.items():
            found = [partner for partner in task.partners if self._is_on_grid(partner, grid)]
            if found:
                is_one_case = len(found) == 1 or are_channels(stem_of(place_of(partner).name) for partner in found)
                fault = "" if is_one_case else "E_LABEL_AMBIGUOUS"
                labels.append(LabelFile(source, tuple(found), is_by_content=True, fault=fault))
            else:
                images.append(replace(task, partners=()))
        self._store_images(images)
        return labels

    def _is_on_grid(self, partner: Source, grid: LabelLike) -> bool:
        """Whether an image that was stored has the voxels of something that looks like a label map."""
        return partner not in self.label_like and any(
            is_turned_grid(image.affine, image.shape, grid.affine, grid.shape) for image in self.stored.get(partner, ())
        )

    def _try_again(self, tasks: Sequence[ImageTask]) -> None:
        """Once more, a little later: images of which a file changed while it was read; series from their headers on."""
        until = time.monotonic() + SECOND_TRY_AFTER_S
        while time.monotonic() < until and not self.runner.stop.is_set:
            time.sleep(0.05)
        slices = {source for task in tasks if task.part is not None for source in task.files}
        series = self._series_tasks(self._headers(sorted(slices, key=str)))
        self._store_images([*series, *(task for task in tasks if task.part is None)], is_second_try=True)

    def _keep(self, task: ImageTask, images: tuple[StoredImage, ...]) -> None:
        """What labels need to find their images."""
        if task.part is not None:
            self.images += [KnownImage.of_series(image, task.part.headers, task.patient) for image in images]
        elif task.stack is not None:
            self.images += [KnownImage.of_file(image, Path(task.stack.folder), task.patient) for image in images]
        elif task.file is not None:
            self.images += [KnownImage.of_file(image, task.file, task.patient) for image in images]
            self.stored[task.file] = images

    def _store_labels(self, labels: Sequence[LabelFile]) -> None:
        """Store label maps; all labels of one item are one task, so no two processes change one record."""
        for label in labels:
            if label.fault:
                self.builder.refuse([label.source], label.fault, *_FAULTS.get(label.fault, ("", "")))
        labels = [label for label in labels if not label.fault]
        tasks, orphans, num_items = label_tasks(labels, self.stored, self.cache.root, self.options, self.builder)
        for label in orphans:
            what = "its image was refused" if label.images else "no image belongs to it"
            self.builder.refuse([label.source], "E_LABEL_WITHOUT_IMAGE", what)
        answers: dict[Source, dict[str, StoredLabel | Failure]] = defaultdict(dict)
        for outcome in self.runner.map("labels", store_labels, tasks, timeout_s=STORE_TIMEOUT_S):
            results = outcome.result or [crash(outcome.failure)] * len(outcome.task.labels)
            for (label, _), result in zip(outcome.task.labels, results, strict=True):
                answers[label.source][outcome.task.image.item_id] = result
                if len(answers[label.source]) == num_items[label.source]:
                    self._settle_label(label.source, answers[label.source])

    def _settle_label(self, source: Source, by_item: Mapping[str, StoredLabel | Failure]) -> None:
        """One state for a label file, whatever the number of channels that it belongs to; it names the first item."""
        answers = [by_item[item_id] for item_id in sorted(by_item)]
        good = [answer for answer in answers if isinstance(answer, StoredLabel)]
        num_new = sum(answer.is_new for answer in good)
        self.ingest_run.num_labels += 0 if self.options.dry_run else num_new
        bad = [answer for answer in answers if isinstance(answer, Failure)]
        if not good or any(answer.is_fatal for answer in bad):
            self.runner.refuse([source], bad[0])
            return
        state: State = "accepted" if num_new else "duplicate"
        warnings = (*good[0].warnings, *(("W_LABEL_UNMATCHED",) if bad else ()))
        self.builder.settle([source], state, message=good[0].message, item=min(by_item), warnings=warnings)


def _can_be_read_again(task: ImageTask) -> bool:
    """Whether an image can be judged again by itself: a part of a series cannot."""
    return task.part is None or task.part.is_whole_series


def _is_below(judgement: Judgement, folders: set[Path]) -> bool:
    """Whether a judged file lies below one of some folders, whose description is new."""
    return (
        bool(folders)
        and is_file_of_images(judgement.kind)
        and not folders.isdisjoint(place_of(judgement.sources[0]).parents)
    )


def _without_grown_stacks(inputs: Inputs, judgements: Sequence[Judgement]) -> list[Judgement]:
    """Judgements but for those of pictures in folders to which others have come."""
    formats = image_formats()
    flat = [kind for kind in inputs.sources if kind in formats and formats[kind].is_flat]
    grown = {place_of(source).parent for kind in flat for source in inputs.sources[kind]}
    return [
        judgement
        for judgement in judgements
        if judgement.kind not in flat or place_of(judgement.sources[0]).parent not in grown
    ]


def _outdated_labels(inputs: Inputs, judgements: Sequence[Judgement], roots: Sequence[Path]) -> set[Source]:
    """Unchanged label maps, or what may be one, of images that are new or that have a new label map beside."""
    new = inputs.files_of_images
    known = [source for judgement in judgements if is_file_of_images(judgement.kind) for source in judgement.sources]
    if not new or not known:
        return set()
    arrangement = arrange([*new, *known], inputs.datasets, roots=roots)
    are_new = set(new)
    labels = {label.source: label.images for label in arrangement.labels}
    labels |= {image.source: image.partners for image in arrangement.images if image.partners}
    touched = are_new | {image for label in arrangement.labels if label.source in are_new for image in label.images}
    return {source for source, images in labels.items() if source not in are_new and not touched.isdisjoint(images)}
