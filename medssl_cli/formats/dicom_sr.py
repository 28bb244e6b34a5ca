"""DICOM measurement reports (SR, TID 1500): what a model measured or found, as a PACS and its viewers read it.

Each statement is a measurement group: of a segment, of a region in an image, of an ellipsoid in the patient, or of the
images as they are. Built by highdicom over a clean description of the series; before anybody sees a report, its groups
are read back without highdicom and must say what was meant. (PS3.16 TID 1500, 1410, 1411, 1501)
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from medssl_cli import __version__
from medssl_cli.base.errors import GateError, InputError
from medssl_cli.formats.anatomy_codes import Code, StructureCode
from medssl_cli.formats.derived_objects import (
    answer_digest,
    date_and_time,
    derived_uid,
    first_slice,
    frame_of_reference,
    names_of_slices,
    read_without_pixels,
    require_one_patient,
    require_uids,
    series_number,
    version_and_family,
)
from medssl_cli.formats.dicom import Header
from medssl_cli.formats.predictions import MANUFACTURER
from medssl_cli.formats.seg_attributes import clean_attributes, clean_text
from medssl_cli.formats.sr_statements import ABSENT, CUT_OFF, DERIVATION, NO, PRESENCE, PRESENT, YES, Amount, Statement
from medssl_cli.recipe_sections import Algorithm

PROCEDURE: Final[Code] = ("363679005", "SCT", "Imaging procedure")
SIDES: Final = ("Left", "Right")
_GROUP: Final = "125007"
_IDENTIFIER: Final = "112039"
_FINDING: Final = "121071"


def write_report(
    statements: Sequence[Statement],
    slices: Sequence[Header],
    *,
    model_sha256: str,
    algorithm_name: str,
    algorithm: Algorithm | None = None,
    segmentation: bytes | None = None,
) -> bytes:
    """A Comprehensive 3D SR that follows TID 1500, deterministic down to the byte.

    Args:
        statements: At least one.
        slices: Slices of the series, in any order.
        model_sha256: SHA-256 of the model; part of the UIDs, and named as a parameter of the algorithm.
        algorithm_name: What measured.
        algorithm: Version and family of that, if they are not medssl's.
        segmentation: The DICOM SEG whose segments the statements name.

    Raises:
        InputError: `E_PATIENT_MIX`, `E_SEG_SOURCE`: see `write_segmentation`; `E_OUTPUT_CHECK` if highdicom does not
            take the series.
        GateError: `E_OUTPUT_CHECK` if the report does not read back as what was meant.
    """
    require_one_patient(slices)
    require_uids(slices)
    first = first_slice(slices)
    source = read_without_pixels(first.source)
    content = answer_digest(slices, segmentation or b"", repr(list(statements)))
    base = f"{first.SeriesInstanceUID}|{model_sha256}"
    maker = _Groups(slices, base, algorithm_name, algorithm, model_sha256, _without_pixels(segmentation))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they repeat what the series says of the patient
            report = _built(maker, statements, source, base=base, content=content)
            report.SeriesNumber = series_number(source, model_sha256)
            report.ManufacturerModelName, report.SoftwareVersions = clean_text(algorithm_name), __version__
            report.SeriesDescription = clean_text(f"{algorithm_name} report")
            _make_deterministic(report, source)
            buffer = io.BytesIO()
            report.save_as(buffer)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise InputError(
            "E_OUTPUT_CHECK",
            f"no DICOM SR can be made of this series ({type(error).__name__})",
            hint="the other files say the same",
        ) from error
    data = buffer.getvalue()
    if read_groups(data) != [_told(each) for each in statements]:
        raise GateError("E_OUTPUT_CHECK", "the measurement report does not read back as what it should say")
    return data


def _without_pixels(segmentation: bytes | None) -> Any:
    from pydicom import dcmread

    return None if segmentation is None else dcmread(io.BytesIO(segmentation), stop_before_pixels=True)


def _evidence(slices: Sequence[Header], source: Any) -> list[Any]:
    """A data set for each image of the series, with what a report repeats of it."""
    from pydicom import Dataset

    attributes, _ = clean_attributes(source)
    found = []
    for class_uid, uid in sorted({(header.SOPClassUID, header.SOPInstanceUID) for header in slices}):
        item = Dataset()
        for keyword, value in attributes.items():
            setattr(item, keyword, value)
        item.SpecificCharacterSet = "ISO_IR 192"
        item.SOPClassUID, item.SOPInstanceUID = class_uid, uid
        item.StudyInstanceUID, item.SeriesInstanceUID = slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID
        item.Modality = slices[0].Modality
        found.append(item)
    return found


def _built(maker: "_Groups", statements: Sequence[Statement], source: Any, *, base: str, content: str) -> Any:
    import highdicom as hd

    evidence = _evidence(maker.slices, source)
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", base), name=MANUFACTURER, manufacturer_name=MANUFACTURER, model_name=maker.name
    )
    context = hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(hd.sr.CodedConcept("121007", "DCM", "Device"), device)
    )
    body = hd.sr.MeasurementReport(
        observation_context=context,
        procedure_reported=hd.sr.CodedConcept(*PROCEDURE),
        imaging_measurements=[maker.group(number, each) for number, each in enumerate(statements, start=1)],
        title=hd.sr.CodedConcept("126000", "DCM", "Imaging Measurement Report"),
    )
    return hd.sr.Comprehensive3DSR(
        evidence=evidence if maker.segmentation is None else [*evidence, maker.segmentation],
        content=body,
        series_instance_uid=derived_uid("sr series", base),
        series_number=1,
        sop_instance_uid=derived_uid("sr instance", base, content),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
    )


@dataclass(frozen=True)
class _Groups:
    """Makes measurement groups, whose UIDs are functions of the series, the model and the statement."""

    slices: Sequence[Header]
    base: str
    algorithm_name: str
    algorithm: Algorithm | None
    model_sha256: str
    segmentation: Any

    @property
    def name(self) -> str:
        """Name of the algorithm, as DICOM takes it."""
        return clean_text(self.algorithm_name)

    def group(self, number: int, statement: Statement) -> Any:
        """The group of one statement."""
        import highdicom as hd

        version, family = version_and_family(self.algorithm)
        given: dict[str, Any] = {
            "tracking_identifier": hd.sr.TrackingIdentifier(
                uid=derived_uid("tracking", self.base, *names_of_slices(self.slices), str(number), statement.name),
                identifier=_identifier(statement),
            ),
            "finding_type": hd.sr.CodedConcept(*statement.finding),
            "finding_category": hd.sr.CodedConcept(*statement.code.category),
            "finding_sites": _sites(statement.code),
            "algorithm_id": hd.sr.AlgorithmIdentification(
                name=self.name,
                version=version,
                parameters=[f"model sha256 {self.model_sha256}"],
                family=hd.sr.CodedConcept(*family),
            ),
            "measurements": [_number(each) for each in statement.amounts],
        }
        if evaluations := _evaluations(statement):
            given["qualitative_evaluations"] = [
                hd.sr.QualitativeEvaluation(hd.sr.CodedConcept(*what), hd.sr.CodedConcept(*value))
                for what, value in evaluations
            ]
        if statement.segment is not None and self.segmentation is not None:
            segment = self._segment(statement.segment)
            return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **given)
        if statement.box_mm is not None:
            surface = self._ellipsoid(statement.box_mm)
            return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_volume_surface=surface, **given)
        if statement.box_pixels is not None:
            region = self._rectangle(statement.box_pixels)
            return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **given)
        return hd.sr.MeasurementsAndQualitativeEvaluations(**given)

    def _segment(self, number: int) -> Any:
        import highdicom as hd

        return hd.sr.ReferencedSegment(
            sop_class_uid=self.segmentation.SOPClassUID,
            sop_instance_uid=self.segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(self.slices[0].SeriesInstanceUID),
        )

    def _ellipsoid(self, box_mm: Sequence[float]) -> Any:
        """The ellipsoid that touches all sides of a box: the ends of its axes, in LPS (PS3.3 C.18.9.1.2)."""
        import highdicom as hd

        low, high = np.array(box_mm, dtype=np.float64).reshape(2, 3) * (-1, -1, 1)
        centre, half = (low + high) / 2, np.abs(high - low) / 2
        ends = [centre + sign * half * axis for axis in np.eye(3) for sign in (-1, 1)]
        first = self.slices[0]
        return hd.sr.VolumeSurface(
            graphic_type=hd.sr.GraphicTypeValues3D.ELLIPSOID,
            graphic_data=np.array(ends),
            frame_of_reference_uid=frame_of_reference(first),
            source_series=hd.sr.SourceSeriesForSegmentation(first.SeriesInstanceUID),
        )

    def _rectangle(self, box: Sequence[float]) -> Any:
        """The box in the image; pixel edges are what DICOM counts from, too (PS3.3 C.18.6.1.2)."""
        import highdicom as hd

        low_x, low_y, high_x, high_y = box
        corners = [(low_x, low_y), (high_x, low_y), (high_x, high_y), (low_x, high_y), (low_x, low_y)]
        first = self.slices[0]
        return hd.sr.ImageRegion(
            graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
            graphic_data=np.array(corners, dtype=np.float64),
            source_image=hd.sr.SourceImageForRegion(
                first.SOPClassUID, first.SOPInstanceUID, [first.frame + 1] if first.NumberOfFrames > 1 else None
            ),
        )


def _number(amount: Amount) -> Any:
    import highdicom as hd

    derivation = None if amount.derivation is None else hd.sr.CodedConcept(*amount.derivation)
    return hd.sr.Measurement(
        hd.sr.CodedConcept(*amount.what), amount.stored, hd.sr.CodedConcept(*amount.unit), derivation=derivation
    )


def _evaluations(statement: Statement) -> list[tuple[Code, Code]]:
    """What a statement says without numbers: presence, cut off or not."""
    said = []
    if statement.is_present is not None:
        said.append((PRESENCE, PRESENT if statement.is_present else ABSENT))
    if statement.is_cut_off is not None:
        said.append((CUT_OFF, YES if statement.is_cut_off else NO))
    return said


def _identifier(statement: Statement) -> str:
    return clean_text(statement.name, 1000) or statement.finding[2]


def _sites(code: StructureCode) -> list[Any] | None:
    """Where a lesion lies, or which side or part of a structure is meant."""
    import highdicom as hd

    if code.region is not None:
        return [hd.sr.FindingSite(hd.sr.CodedConcept(*code.region))]
    if not code.modifiers:
        return None
    side = next((hd.sr.CodedConcept(*each) for each in code.modifiers if each[2] in SIDES), None)
    part = next((hd.sr.CodedConcept(*each) for each in code.modifiers if each[2] not in SIDES), None)
    return [hd.sr.FindingSite(hd.sr.CodedConcept(*code.type), laterality=side, topographical_modifier=part)]


def _make_deterministic(report: Any, source: Any) -> None:
    """Replace what highdicom takes from the clock."""
    date, time = date_and_time(source)
    report.ContentDate, report.ContentTime = date, time
    for keyword, value in (
        ("InstanceCreationDate", date),
        ("InstanceCreationTime", time),
        ("SeriesDate", date),
        ("SeriesTime", time),
    ):
        if keyword in report:
            setattr(report, keyword, value)
    if "ObservationDateTime" in report:
        report.ObservationDateTime = date + time
    for equipment in report.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = date + time


@dataclass(frozen=True)
class MeasurementGroup:
    """What a measurement group of a report says: its name, what it is about, numbers, and values without numbers.

    Args:
        amounts: Numbers and units by their codes, with that of the derivation where there is one.
        evaluations: Values by their codes.
    """

    name: str
    finding: tuple[str, str]
    amounts: dict[tuple[str, ...], tuple[float, str]]
    evaluations: dict[str, str]


def read_groups(data: bytes) -> list[MeasurementGroup]:
    """The measurement groups of a report that `write_report` made, in their order, read by pydicom alone."""
    from pydicom import dcmread

    found: list[MeasurementGroup] = []
    pending = [dcmread(io.BytesIO(data))]
    while pending:
        item = pending.pop(0)
        names = item.get("ConceptNameCodeSequence")
        if names and names[0].CodeValue == _GROUP:
            found.append(_group(item))
        else:
            pending = [*item.get("ContentSequence", ()), *pending]
    return found


def _group(item: Any) -> MeasurementGroup:
    name, finding = "", ("", "")
    amounts: dict[tuple[str, ...], tuple[float, str]] = {}
    evaluations: dict[str, str] = {}
    for each in item.ContentSequence:
        concept = each.ConceptNameCodeSequence[0] if each.get("ConceptNameCodeSequence") else None
        if concept is None:
            continue
        if each.ValueType == "NUM":
            measured = each.MeasuredValueSequence[0]
            unit = measured.MeasurementUnitsCodeSequence[0].CodeValue
            key = (str(concept.CodeValue), str(concept.CodingSchemeDesignator), *_derivations(each))
            amounts[key] = (float(measured.NumericValue), str(unit))
        elif concept.CodeValue == _IDENTIFIER:
            name = str(each.TextValue)
        elif concept.CodeValue == _FINDING:
            code = each.ConceptCodeSequence[0]
            finding = (str(code.CodeValue), str(code.CodingSchemeDesignator))
        elif concept.CodeValue in (PRESENCE[0], CUT_OFF[0]):
            evaluations[str(concept.CodeValue)] = str(each.ConceptCodeSequence[0].CodeValue)
    return MeasurementGroup(name, finding, amounts, evaluations)


def _derivations(item: Any) -> list[str]:
    """Codes that say which of many values a number is."""
    return [
        str(each.ConceptCodeSequence[0].CodeValue)
        for each in item.get("ContentSequence", ())
        if each.ConceptNameCodeSequence[0].CodeValue == DERIVATION
    ]


def _told(statement: Statement) -> MeasurementGroup:
    """What the group of a statement has to say."""
    amounts: dict[tuple[str, ...], tuple[float, str]] = {
        (*each.what[:2], *(() if each.derivation is None else each.derivation[:1])): (each.stored, each.unit[0])
        for each in statement.amounts
    }
    evaluations = {what[0]: value[0] for what, value in _evaluations(statement)}
    return MeasurementGroup(_identifier(statement), statement.finding[:2], amounts, evaluations)
