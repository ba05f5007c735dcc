"""A series' result as a DICOM structured report: Comprehensive SR by template TID 1500 (PS3.16)."""

import hashlib
import json
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from io import BytesIO
from typing import Any

from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.node.arrivals import IMPLEMENTATION_UID, MANUFACTURER
from medimg.runtime.node.config import LabelCode
from medimg.runtime.node.identity import HEADER, ISSUERS
from medimg.runtime.node.records import Member, Series
from medimg.runtime.node.worker import NOT_DIAGNOSTIC
from medimg.runtime.optional import require
from medimg.runtime.tasks import task_named

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.88.33"
TRANSFER_SYNTAX = "1.2.840.10008.1.2.1"
_SCHEME = "99MEDIMG"
_LONGEST_TEXT = 1024
_MOST_NOTES = 16
"""Different notes on images that a report repeats."""
_KNOWN_CLASS = "1.2.840.10008.5.1.4.1.1.7"
"""Stands for the class of an image until highdicom has looked its modules up, which it cannot for all."""
_NO_UID = "2.25.0"
"""Stands for a report's UID until it is known."""


@dataclass(frozen=True)
class Group:
    """Images of a series that have one kind of answer from one model."""

    model_name: str
    model_sha256: str
    spec: ModelSpec
    members: tuple[Member, ...]
    scores: tuple[float, ...] | None
    """Of the series, by the rule `combine`; None where the images were not classified."""
    combine: str

    @property
    def notes(self) -> dict[str, list[Member]]:
        """What must be known of its images, and of which."""
        found: dict[str, list[Member]] = {}
        for member in self.members:
            for note in member.notes:
                found.setdefault(note, []).append(member)
        return dict(sorted(found.items())[:_MOST_NOTES])


@dataclass(frozen=True)
class ReportContent:
    """All that a report says; the same content always gives the same bytes."""

    series: Series
    groups: tuple[Group, ...]
    predecessor: str | None
    codes: Mapping[str, LabelCode]


def derived_uid(*parts: object) -> str:
    """Derive a UID (PS3.5 B.2) from values: the same values always give the same one."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def write_report(content: ReportContent, line: Mapping[str, object]) -> tuple[str, bytes]:
    """Write the report as a DICOM file.

    Its UID is derived from all that it says, so that no UID can ever have two contents.

    Args:
        content: what it says.
        line: what goes to other destinations under the same UID.

    Returns:
        The UID and the file.
    """
    report = _report(content)
    without_uid = hashlib.sha256(finished_file(report, content)).hexdigest()
    uid = derived_uid("report", without_uid, line)
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = uid
    return uid, finished_file(report, content)


def _report(content: ReportContent) -> Any:  # noqa: ANN401  highdicom, which is optional
    quiet_highdicom()
    sr = require("highdicom.sr", "node")
    members = _members(content)
    report = sr.ComprehensiveSR(
        evidence=[evidence(member, content) for member in members],
        content=_content(sr, content)[0],
        series_instance_uid=derived_uid("series", content.series.series_key),
        series_number=9000,
        sop_instance_uid=_NO_UID,
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=[_predecessor(content)] if content.predecessor else None,
        series_description=f"Classification by medimg. {NOT_DIAGNOSTIC}"[:64],
        device_serial_number="0",
        coding_schemes=[_coding_scheme()],
        specific_character_set="ISO_IR 192",
    )
    report.PreliminaryFlag = "PRELIMINARY"
    classes = {member.sop_uid: member.sop_class for member in members}
    for study in report.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            for image in series.ReferencedSOPSequence:
                image.ReferencedSOPClassUID = classes[image.ReferencedSOPInstanceUID]
    return report


def finished_file(dataset: Any, content: ReportContent) -> bytes:  # noqa: ANN401  pydicom has no types
    """Write a DICOM file that names this software, and whose times are those of its images.

    highdicom writes the present time in many places, which would be another each time.
    """
    written_at = datetime.fromtimestamp(received_at(content), timezone.utc)
    for kind in ("Content", "InstanceCreation"):
        setattr(dataset, f"{kind}Date", written_at.strftime("%Y%m%d"))
        setattr(dataset, f"{kind}Time", written_at.strftime("%H%M%S.%f"))
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = written_at.strftime("%Y%m%d%H%M%S.%f")
    # highdicom gives them to some kinds of objects and not to others.
    image = evidence(_members(content)[0], content)
    for name in ("IssuerOfPatientID", *ISSUERS):
        if name in image:
            dataset[name] = image[name]
    dataset.TimezoneOffsetFromUTC = "+0000"
    dataset.ManufacturerModelName, dataset.SoftwareVersions = "medimg", version("medimg")
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    dataset.file_meta.ImplementationVersionName = "MEDIMG"
    written = BytesIO()
    dataset.save_as(written)
    return written.getvalue()


def received_at(content: ReportContent) -> float:
    """Give when the last image of a report came."""
    return max(member.received_at for member in _members(content))


def _members(content: ReportContent) -> list[Member]:
    return [member for group in content.groups for member in group.members]


def quiet_highdicom() -> None:
    """Keep its remarks on names out of the log, which would name patients."""
    # Not catch_warnings, which threads would undo for one another.
    if not any(rule[0] == "ignore" and "highdicom" in str(rule[3]) for rule in warnings.filters):
        warnings.filterwarnings("ignore", module=r"highdicom(\.|$)")


def _content(sr: Any, content: ReportContent) -> Any:  # noqa: ANN401  highdicom, which is optional
    codes = require("pydicom.sr.codedict", "node").codes
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", *sorted({group.model_sha256 for group in content.groups})),
            name="medimg",
            manufacturer_name="medimg",
            model_name=content.groups[0].model_name[:64],
        ),
    )
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=[_group(sr, codes, group, content) for group in content.groups],
        title=codes.DCM.ImagingMeasurementReport,
    )


def _group(sr: Any, codes: Any, group: Group, content: ReportContent) -> Any:  # noqa: ANN401
    members = group.members
    identity = (content.series.series_key, group.model_sha256, members[0].outcome)
    described = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derived_uid("tracking", *identity), identifier=f"{members[0].outcome} series"
        ),
        algorithm_id=sr.AlgorithmIdentification(
            name=group.model_name[:64],
            version=f"SHA-256 {group.model_sha256}",
            parameters=_parameters(group, content.series),
        ),
        measurements=_measurements(sr, codes, group, content) or None,
        finding_type=_finding(sr, group, content),
        qualitative_evaluations=_evaluations(sr, group) or None,
        source_images=[
            sr.SourceImageForMeasurementGroup(member.sop_class, member.sop_uid) for member in members
        ],
    )
    # TID 1501 has no row for them and may be extended.
    described[0].ContentSequence.extend(_notes(sr, codes, group))
    return described


def _notes(sr: Any, codes: Any, group: Group) -> list[Any]:  # noqa: ANN401
    """Say what must be known of images that are shown all the same, and name the images."""
    items = []
    for note, members in group.notes.items():
        text = _plain(f"Note on {len(members)} of {len(group.members)} images: {note}")
        item = sr.TextContentItem(codes.DCM.Comment, text, sr.RelationshipTypeValues.CONTAINS)
        kind = sr.RelationshipTypeValues.INFERRED_FROM
        item.ContentSequence = sr.ContentSequence(
            sr.ImageContentItem(
                codes.DCM.SourceImage, member.sop_class, member.sop_uid, relationship_type=kind
            )
            for member in members
        )
        items.append(item)
    return items


def _parameters(group: Group, series: Series) -> list[str]:
    spec = group.spec
    lines = [NOT_DIAGNOSTIC, f"Intended use: {spec.intended_use or 'not stated'}"]
    if spec.simulated_data:
        lines.append("Trained on simulated images")
    if group.scores is not None:
        lines.append(f"Score of the series: {group.combine} of the scores of its images, class by class")
    reasons = {member.reason for member in group.members if group.scores is None and member.reason}
    lines += [f"{group.members[0].outcome}: {reason}" for reason in sorted(reasons)][:8]
    lines += [f"Caution: {contradiction}" for contradiction in series.contradictions]
    return [_plain(line) for line in (*lines, *series.notes)]


def _measurements(sr: Any, codes: Any, group: Group, content: ReportContent) -> list[Any]:  # noqa: ANN401
    scores = dict(zip(group.spec.labels, group.scores or (), strict=False))
    return [
        sr.Measurement(
            name=_code(sr, label, group.spec, content.codes),
            value=round(score, 6),
            unit=codes.UCUM.NoUnits,
        )
        for label, score in scores.items()
    ]


def _finding(sr: Any, group: Group, content: ReportContent) -> Any:  # noqa: ANN401
    """Give the most likely class, where exactly one class holds."""
    if group.scores is None or not task_named(group.spec.task).exclusive:
        return None
    best = group.spec.labels[group.scores.index(max(group.scores))]
    return _code(sr, best, group.spec, content.codes)


def _evaluations(sr: Any, group: Group) -> list[Any]:  # noqa: ANN401
    """Say why there are no scores, or how they stand to the operating points."""
    if group.scores is None:
        outcome = group.members[0].outcome
        value = sr.CodedConcept(outcome.replace(" ", "_").upper(), _SCHEME, outcome.capitalize())
        return [sr.QualitativeEvaluation(sr.CodedConcept("ANSWER", _SCHEME, "Answer"), value)]
    spec, scores = group.spec, dict(zip(group.spec.labels, group.scores, strict=True))
    evaluations = []
    for point in spec.operating_points:
        if point.label in scores:
            word = "Reached" if scores[point.label] >= point.threshold else "Not reached"
            name = sr.CodedConcept(
                f"OP{spec.labels.index(point.label)}", _SCHEME, _plain(f"Operating point: {point.label}", 64)
            )
            value = sr.CodedConcept(word.replace(" ", "_").upper(), _SCHEME, f"{word} ({point.threshold:g})")
            evaluations.append(sr.QualitativeEvaluation(name, value))
    return evaluations


def _code(sr: Any, label: str, spec: ModelSpec, codes: Mapping[str, LabelCode]) -> Any:  # noqa: ANN401
    if label in codes:
        return sr.CodedConcept(codes[label].value, codes[label].scheme, codes[label].meaning)
    return sr.CodedConcept(f"CLASS{spec.labels.index(label)}", _SCHEME, _plain(label, 64) or "unnamed")


def _coding_scheme() -> Any:  # noqa: ANN401
    item = require("highdicom.coding_schemes", "node").CodingSchemeIdentificationItem
    return item(designator=_SCHEME, name="Codes of medimg", responsible_organization="medimg")


def evidence(member: Member, content: ReportContent) -> Any:  # noqa: ANN401  pydicom has no types
    """Give what highdicom wants to know of an image: patient, study, series and its UIDs."""
    image = _dataset()
    for name in HEADER:
        setattr(image, name, content.series.header.get(name, ""))
    for sequence, names in ISSUERS.items():
        values = {name: content.series.header.get(f"{sequence}.{name}") for name in names}
        if any(values.values()):
            item = _dataset()
            item.update({name: value for name, value in values.items() if value})
            setattr(image, sequence, [item])
    if not image.IssuerOfPatientID:
        del image.IssuerOfPatientID
    image.SpecificCharacterSet = "ISO_IR 192"
    image.StudyInstanceUID, image.SeriesInstanceUID = content.series.study_uid, content.series.series_uid
    image.SOPInstanceUID, image.SOPClassUID = member.sop_uid, _KNOWN_CLASS
    image.Modality = "OT"
    return image


def _predecessor(content: ReportContent) -> Any:  # noqa: ANN401
    predecessor = evidence(content.groups[0].members[0], content)
    predecessor.SeriesInstanceUID = derived_uid("series", content.series.series_key)
    predecessor.SOPInstanceUID, predecessor.SOPClassUID = content.predecessor, SOP_CLASS
    return predecessor


def _dataset() -> Any:  # noqa: ANN401
    return require("pydicom", "node").Dataset()


def _plain(text: str, longest: int = _LONGEST_TEXT) -> str:
    """Give text that a DICOM value can hold."""
    return "".join(char for char in text if char.isprintable() and char != "\\")[:longest]
