"""The work for one scan: known already, or read, computed, and written where nothing else is."""

import contextlib
import os
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import GateError, InputError, MedsslError
from medssl_cli.base.files import is_full, sha256_file
from medssl_cli.deploy.class_words import algorithm_name, class_colours, shown_classes
from medssl_cli.deploy.job import ACCEPT_WRITING, Job, StoppedError
from medssl_cli.deploy.mask_files import (
    NOT_WRITTEN,
    Made,
    MaskFiles,
    Target,
    mask_targets,
    seg_storage,
    whole_targets,
)
from medssl_cli.deploy.memory_plan import MemoryPlan, sizes_of
from medssl_cli.deploy.outputs import is_own, publish, require_replaceable
from medssl_cli.deploy.probability_file import ProbabilityFile
from medssl_cli.deploy.results import ScanResult
from medssl_cli.deploy.running_model import UnusableModelError
from medssl_cli.deploy.scan_reader import input_digest, told_together
from medssl_cli.deploy.scan_stages import Answered, ReadScan
from medssl_cli.deploy.scans import Scan, longer_name
from medssl_cli.deploy.training_doubts import TrainingDoubts
from medssl_cli.deploy.whole_answers import WholeAnswer, answer_json, fields_of, require_size, whole_answer
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.open import announced
from medssl_cli.formats.seg_storage import SegStorage
from medssl_cli.formats.table import Announced
from medssl_cli.heads import MasksHead
from medssl_cli.imaging.volume import Volume


@dataclass
class ScanTask:
    """The work for one scan.

    Args:
        job: What is the same for all.
        scan: Scan with the name that its own place gives it.
        blank: What is known of it without opening it.
        known: What an earlier call found out.
        ahead: What is read of it before its turn.
        before_network: Told what memory it takes, once it is read.
    """

    job: Job
    scan: Scan
    blank: ScanResult
    known: ScanResult | None = None
    ahead: Future[ReadScan] | None = None
    before_network: Callable[[MemoryPlan], None] | None = None

    def outcome(self, counter: str) -> ScanResult:
        """Do it, unless it is done. Its failure is its result, whatever it is.

        Raises:
            StoppedError: A stop request came.
            GateError: `E_MODEL_CORRUPT`, the model's file is another one now: no scan can be answered for.
            StorageError: See `written`.
        """
        asked = self.answered(counter)
        return asked if isinstance(asked, ScanResult) else self.written(asked)

    def answered(self, counter: str) -> Answered | ScanResult:
        """Ask the model, unless that is done, or nothing can be asked.

        Raises:
            StoppedError: A stop request came.
            GateError: `E_MODEL_CORRUPT`.
            UnusableModelError: There is nothing that could be asked.
        """
        try:
            return self._answered(counter)
        except (StoppedError, UnusableModelError):
            raise
        except Exception as error:
            if isinstance(error, GateError) and error.code == "E_MODEL_CORRUPT":
                raise
            return self._failed(error)

    def written(self, answered: Answered) -> ScanResult:
        """Write what was answered.

        Raises:
            StorageError: `E_IO`, the disk is full: nobody's outputs can be written.
        """
        try:
            return self._written(answered)
        except Exception as error:
            if is_full(error):
                raise
            return self._failed(error)

    def read(self) -> ReadScan:
        """Read it before its turn, unless it is known to be done.

        Raises:
            InputError: A file of it cannot be read.
        """
        start, job = time.monotonic(), self.job
        digest = input_digest(self.scan, job.reader.policy)
        known = job.known.entry(self.blank.task, self.scan.key, self.scan.name)
        images, error = None, None
        if known is None or not self._is_made_from(known, digest):
            try:
                images = job.reader.read_all(self.scan)
            except Exception as raised:  # noqa: BLE001 - raised again in its turn
                error = raised
        return ReadScan(digest, images, error, time.monotonic() - start)

    def may_meet(self, other: "ScanTask") -> bool:
        """Whether another scan's outputs may be the same files, on disks that take "A" for "a" too."""
        return not self._possible_names().isdisjoint(other._possible_names())

    def _possible_names(self) -> set[str]:
        known = self.job.known.entry(self.blank.task, self.scan.key, self.scan.name)
        names = (self.scan.name, longer_name(self.scan), *([known.name] if known is not None else []))
        return {unicodedata.normalize("NFC", name).casefold() for name in names}

    def announced_plan(self) -> MemoryPlan | None:
        """What it will take by its headers; None where only reading tells."""
        known = self._announced
        return None if known is None else self.job.model.memory_plan(**self._sizes(known))

    @cached_property
    def _announced(self) -> Announced | None:
        first = self.scan.parts[0]
        return announced(first.original, first.kind, self.job.reader.policy)

    def _sizes(self, known: Announced) -> dict[str, Any]:
        """What memory is planned by, from what is known of an image of it."""
        return {
            **known._asdict(),
            "num_channels": len(self.scan.parts),
            "has_probabilities": self._has_probabilities,
        }

    def _failed(self, error: Exception) -> ScanResult:
        if isinstance(error, MedsslError):
            return self.refused(error.code, error.message, error.hint)
        if isinstance(error, MemoryError) or "allocat" in str(error):
            return self.refused("E_TOO_BIG", "not enough memory for this scan")
        return self.refused("E_SCAN_FAILED", f"it failed with {type(error).__name__}")

    def _answered(self, counter: str) -> Answered | ScanResult:
        job, ahead = self.job, self.ahead
        self.ahead = None
        early = ahead.result() if ahead is not None else None
        start = time.monotonic() - (early.seconds if early is not None else 0.0)
        digest = early.digest if early is not None else input_digest(self.scan, job.reader.policy)
        self._find_known(digest)
        if self.known is not None and self._is_finished(self.known, digest):
            return replace(self._about(self.known), status="done", code="", message="", hint="", resumed=True)
        require_replaceable(
            [target.path for target in self.targets()],
            inputs=job.inputs,
            recorded=self._recorded() - self._still_true(digest),
            overwrite=self._may_overwrite,
        )
        self._require_no_other_owner()
        if job.dry_run and not job.plan:
            return replace(self.blank, status="pending")
        if job.plan:
            plan = self._planned(self._announced or _held(job.reader.read_all(self.scan)[0]))
            return replace(self.blank, status="pending", message=plan.text, memory=plan.to_json())
        if self._announced is not None:
            job.model.refuse_too_big(**self._sizes(self._announced))
            job.model.begin_opening()
        images = early.taken() if early is not None else None
        images = images if images is not None else job.reader.read_all(self.scan)
        image, volumes = told_together(images), [each.volume for each in images]
        require_size(job.model.bundle, image.volume.shape)
        if self.before_network is not None:
            plan = job.model.memory_plan(**sizes_of(volumes), has_probabilities=self._has_probabilities)
            self.before_network(plan)
        progress = self._progress(f"{counter} {self.scan.name}")
        doubts, probabilities = TrainingDoubts(job.model.bundle), self._probability_file()
        given = volumes[0] if len(volumes) == 1 else volumes
        answer = job.model.answer(given, progress=progress, probabilities=probabilities, centre=doubts.centre)
        doubts.look_at(images)
        return Answered(image, answer, doubts, digest, time.monotonic() - start, probabilities)

    def _written(self, answered: Answered) -> ScanResult:
        start, job, image = time.monotonic(), self.job, answered.image
        answer, doubts, probabilities = answered.answer, answered.doubts, answered.probabilities
        made = self._whole(image, answer) if self._masks_head is None else self._masks(image, answer)
        publish(made.files, overwrite=self._may_overwrite)
        paths = list(made.files)
        if probabilities is not None:
            probabilities.publish(image, overwrite=self._may_overwrite)
            paths.append(probabilities.path)
        return replace(
            self.blank,
            status="done",
            message="; ".join((*image.details, *made.reasons, *doubts.details)),
            warnings=tuple(dict.fromkeys((*made.warnings, *doubts.codes))),
            unlike=doubts.likeness,
            repairs=image.repairs,
            description=self._description(),
            shape=image.volume.shape,
            spacing_mm=image.volume.spacing_mm,
            seconds=round(answered.seconds + time.monotonic() - start, 3),
            device=job.model.device,
            input_sha256=answered.digest,
            model_sha256=job.model.sha256,
            options=self._options(),
            outputs=tuple(path.name for path in paths),
            outputs_sha256={path.name: sha256_file(path) for path in paths},
            **made.fields,
        )

    def _planned(self, known: Announced) -> MemoryPlan:
        """What the scan will take, or its refusal."""
        return self.job.model.require_memory(**self._sizes(known))

    def _description(self) -> str:
        """What the header calls a series, for the report; "" for a file."""
        if (series := self.scan.series) is None:
            return ""
        from medssl_cli.formats.series import series_description

        return series_description(series)

    def refused(self, code: str, message: str, hint: str = "") -> ScanResult:
        """Not done; outputs of an earlier call stay recorded."""
        if self.known is not None:
            return not_done(replace(self._about(self.known), resumed=False), code, message, hint)
        own: dict[str, str] = {}
        with contextlib.suppress(OSError):
            paths = [target.path for target in self.targets()]
            if code == "E_OUTPUT_EXISTS" and self.job.known.owner(paths[0].name) is None:
                own = {path.name: sha256_file(path) for path in paths if is_own(path)}
        return not_done(replace(self.blank, outputs=tuple(own), outputs_sha256=own), code, message, hint)

    def relevant(self) -> list[ScanResult]:
        """What earlier calls did that may matter for this scan."""
        task, known = self.blank.task, self.job.known.entry(self.blank.task, self.scan.key, self.scan.name)
        names = {self.scan.name, longer_name(self.scan), *([known.name] if known is not None else [])}
        own = [replace(self, scan=replace(self.scan, name=name)) for name in names]
        outputs = [target.path.name for one in own for target in one.targets()]
        return self.job.known.about(task, self.scan.key, names, outputs)

    def _about(self, known: ScanResult) -> ScanResult:
        """What an earlier call found out, under what is known of the scan now."""
        blank = self.blank
        return replace(
            known, name=blank.name, kind=blank.kind, key=blank.key, task=blank.task, path=blank.path,
            place=blank.place, study=blank.study, series=blank.series, files=blank.files, channels=blank.channels,
        )  # fmt: skip

    def _find_known(self, digest: str) -> None:
        """What the report says of the scan. A name that the report gives to another scan is not used again."""
        known, task = self.job.known, self.blank.task
        self.known = known.entry(task, self.scan.key, self.scan.name)
        holder = known.holder(task, self.scan.name)
        name = self.scan.name
        if self.known is not None and self.known.outputs:
            name = self.known.name
        elif holder is not None and holder.key != self.scan.key and holder.outputs and self.job.where.mask is None:
            if holder.input_sha256 == digest:
                self.known = holder  # the same bytes at another place
            else:
                name = longer_name(self.scan)
        self.scan, self.blank = replace(self.scan, name=name), replace(self.blank, name=name)

    def _recorded(self) -> set[str]:
        """Outputs that are there by the report: the scan's, and of one file that was named, whosever they are."""
        recorded = set(self.known.outputs if self.known is not None else ())
        if self.job.where.mask is not None:
            recorded |= {one.path.name for one in self.targets() if self.job.known.owner(one.path.name)}
        return recorded

    def _is_made_from(self, known: ScanResult, digest: str) -> bool:
        """Whether an earlier call had the same scan, model and options."""
        made_from = (known.input_sha256, known.model_sha256, known.options)
        return made_from == (digest, self.job.model.sha256, self._options())

    def _still_true(self, digest: str) -> set[str]:
        """Outputs that are as they will be made again, because others beside them are wanted now."""
        if self.known is None or not self._is_made_from(self.known, digest):
            return set()
        paths = {target.path.name: target.path for target in self.targets()}
        return {
            name
            for name, sha256 in self.known.outputs_sha256.items()
            if name in paths and paths[name].is_file() and sha256_file(paths[name]) == sha256
        }

    @cached_property
    def _may_overwrite(self) -> bool:
        """Whether outputs that were made from something else may be replaced; asked for the first time before they are.

        A series of which more has arrived is the same series, and its answer is of no use any more. Of a file nothing
        says that it is the same scan, a series that is being deleted is no better one, and what somebody has changed is
        theirs.
        """
        known, job = self.known, self.job
        if job.overwrite or known is None or not (job.replaces_grown and self.scan.is_series):
            return job.overwrite
        if self.blank.files < known.files:
            return False
        made_by = known.key, known.model_sha256, known.options
        return made_by == (self.scan.key, job.model.sha256, self._options()) and all(
            not os.path.lexists(path) or (path.is_file() and sha256_file(path) == known.outputs_sha256.get(path.name))
            for path in (job.where.folder / name for name in known.outputs)
        )

    def _is_finished(self, known: ScanResult, digest: str) -> bool:
        if not self._is_made_from(known, digest):
            return False
        needed = [one.path for one in self.targets() if NOT_WRITTEN.get(one.kind) not in known.warnings]
        return bool(needed) and all(
            path.is_file() and not path.is_symlink() and known.outputs_sha256.get(path.name) == sha256_file(path)
            for path in needed
        )

    def _options(self) -> dict[str, Any]:
        departures = self.job.reader.policy.departures
        options = {name: value for name, value in departures.items() if (name, value) != ("burned_in", ACCEPT_WRITING)}
        storage = seg_storage(self.job.outputs)
        if storage not in (None, SegStorage.binary) and self._masks_head is not None and self.scan.series is not None:
            options["seg_storage"] = storage.value
        return options

    def _mask(self) -> Path:
        where = self.job.where
        return where.mask or where.folder / f"{self.scan.name}_{self.blank.task}.nii.gz"

    def targets(self) -> list[Target]:
        """The files that will hold the result."""
        is_series = self.scan.is_series
        if self._masks_head is None:
            stem = f"{self.scan.name}_{self.blank.task}"
            return whole_targets(self.job.where.folder, stem, self.job.outputs, is_series=is_series)
        return mask_targets(self._mask(), self._masks_head, self.job.outputs, is_series=is_series)

    def _require_no_other_owner(self) -> None:
        """Refuse a name that outputs of another scan or task have, as `a_b` with `c` and `a` with `b_c`."""
        for path in [target.path for target in self.targets()]:
            owner = self.job.known.owner(path.name) or self.job.known.namesake(path)
            is_other = owner is not None and owner.key and (owner.task, owner.key) != (self.blank.task, self.scan.key)
            if is_other and owner is not self.known and self.job.where.mask is None and path.exists():
                raise InputError(
                    "E_OUTPUT_EXISTS",
                    f"{path.name} is the output of another scan or model",
                    hint="choose another folder with -o",
                )

    @property
    def _masks_head(self) -> MasksHead | None:
        head = self.job.model.bundle.head
        return head if isinstance(head, MasksHead) else None

    def _masks(self, image: LoadedImage, answer: NDArray[np.uint8]) -> Made:
        """The files of a label map, or of masks of regions."""
        model = self.job.model
        files = MaskFiles(model.bundle, model.sha256, self.scan.series, self.job.preview)
        return files.made(self.targets(), image, answer)

    def _whole(self, image: LoadedImage, answer: Any) -> Made:
        """The files of findings or boxes."""
        bundle, shape = self.job.model.bundle, image.volume.shape
        told = whole_answer(bundle, answer, shape, image.volume.affine)
        data = answer_json(bundle, told, name=self.scan.name, model_sha256=self.job.model.sha256, shape=shape)
        made = Made({}, list(image.warnings), fields=fields_of(told))
        for target in self.targets():
            if target.kind == "json":
                made.files[target.path] = data
                continue
            try:
                made.files[target.path] = (
                    self._picture(image.volume, told) if target.kind == "preview" else self._report(told)
                )
            except Exception as error:  # noqa: BLE001 - the other file says the same
                made.note_missing(target.kind, error)
        return made

    def _picture(self, volume: Volume, told: WholeAnswer) -> bytes:
        """A picture of findings or boxes."""
        if self.job.preview is None:
            raise AssertionError("nobody can draw")
        classes = shown_classes(self.job.model.bundle)
        return self.job.preview(volume, told, classes, class_colours(self.job.model.bundle, classes))

    def _report(self, told: WholeAnswer) -> bytes:
        """A DICOM measurement report of findings or boxes."""
        from medssl_cli.deploy.statements import of_whole
        from medssl_cli.formats.dicom_sr import write_report

        bundle, series = self.job.model.bundle, self.scan.series
        return write_report(
            of_whole(told, bundle),
            series.headers if series is not None else (),
            model_sha256=self.job.model.sha256,
            algorithm_name=algorithm_name(bundle),
            algorithm=bundle.algorithm,
        )

    @property
    def _has_probabilities(self) -> bool:
        """Whether probabilities are wanted."""
        return "probabilities" in self.job.outputs

    def _probability_file(self) -> ProbabilityFile | None:
        """The file of probabilities, if there is to be one."""
        paths = [target.path for target in self.targets() if target.kind == "probabilities"]
        return ProbabilityFile(paths[0]) if paths else None

    def _progress(self, what: str) -> Callable[[int, int], None]:
        def told(done: int, total: int) -> None:
            if self.job.is_stopped():
                raise StoppedError
            if self.job.progress is not None:
                self.job.progress(what, done, total)

        return told


def _held(image: LoadedImage) -> Announced:
    """What is known of an image that was read."""
    volume = image.volume
    return Announced(volume.shape, volume.affine, volume.voxels.itemsize)


def not_done(result: ScanResult, code: str, message: str, hint: str = "") -> ScanResult:
    """`S_` codes skip by rule, all others refuse."""
    status: Literal["skipped", "refused"] = "skipped" if code.startswith("S_") else "refused"
    known = CODES[code]
    return replace(result, status=status, code=code, message=message or known.meaning, hint=hint or known.remedy)
