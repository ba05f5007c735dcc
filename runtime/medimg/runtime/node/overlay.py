"""A picture for the radiologist, as secondary capture: an image of the series, its heat map and scores."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError, MedimgError
from medimg.runtime.files.text import printable
from medimg.runtime.images.load import Image, load_frames
from medimg.runtime.node import sr
from medimg.runtime.node.arrivals import MANUFACTURER
from medimg.runtime.node.models import Model, Models
from medimg.runtime.node.records import Member
from medimg.runtime.node.worker import NOT_DIAGNOSTIC
from medimg.runtime.optional import require
from medimg.runtime.tasks import task_named

_LOG = logging.getLogger(__name__)

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.7"
_SIDE_PX, _LINE_PX, _MARGIN_PX = 512, 24, 8
_MOST_LABELS = 3
_LONGEST_LINE = 60


@dataclass(frozen=True)
class Picture:
    """What an overlay shows."""

    pixels: Image
    """`(rows, columns, 3)` uint8 RGB."""
    source: Member
    """The image that it shows."""


class Overlays:
    """Draws one overlay a report.

    Args:
        models: what makes the heat maps.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    def write(self, content: sr.ReportContent, report_uid: str) -> bytes | None:
        """Write the overlay of a report as a DICOM file.

        It shows the first frame of the image with the highest score for what the series shows most likely.

        Returns:
            None where nothing was classified by the present model, or its images are no longer there.
        """
        with self._models.in_use() as model:
            group = next((one for one in content.groups if _is_drawable(one, model)), None)
            if group is None:
                return None
            try:
                picture = self._draw(group, model)
            except MedimgError as error:
                _LOG.warning("a report has no overlay: %s", printable(str(error)))
                return None
        return write_overlay(picture, content, report_uid)

    def _draw(self, group: sr.Group, model: Model) -> Picture:
        assert group.scores is not None, "only classified images are drawn"
        best = group.scores.index(max(group.scores))
        source = max(group.members, key=lambda member: (member.scores or ())[best : best + 1])
        if source.path is None:
            raise ImageError(f"{source.sop_uid}: its file was removed")
        image = next(load_frames(source.path, model.classifier.spec.image))
        spec = group.spec
        heat = (
            task_named(spec.task).evidence(model.classifier.activation_map(image), best)
            if spec.heatmap
            else None
        )
        return Picture(draw(image, heat, _texts(group, source, best)), source)


def _is_drawable(group: sr.Group, model: Model) -> bool:
    return group.scores is not None and group.model_sha256 == model.sha256


def draw(image: Image, heat: NDArray[np.float32] | None, texts: Sequence[str]) -> Image:
    """Draw an image as the network saw it, enlarged, with the heat map over it and the text below.

    Args:
        image: `(rows, columns, 3)` uint8 RGB.
        heat: `(rows, columns)` of any size, from 0 to 1.
        texts: one a line; what is not ASCII is shown as a question mark.

    Returns:
        `(rows, columns, 3)` uint8 RGB.
    """
    scale = _SIDE_PX / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    shown = np.zeros((size[1], _SIDE_PX, 3), np.uint8)
    shown[:, : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    if heat is not None:
        share = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR)
        levels = np.rint(255 * share).astype(np.uint8)
        colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
        weight = 0.5 * share[..., np.newaxis]
        mixed = shown[:, : size[0]] * (1 - weight) + colours * weight
        shown[:, : size[0]] = np.rint(mixed).astype(np.uint8)
    panel = np.zeros((2 * _MARGIN_PX + _LINE_PX * len(texts), _SIDE_PX, 3), np.uint8)
    for number, text in enumerate(texts):
        place = (_MARGIN_PX, _MARGIN_PX + _LINE_PX * number + _LINE_PX * 3 // 4)
        plain = text[:_LONGEST_LINE].encode("ascii", "replace").decode()
        cv2.putText(panel, plain, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([shown, panel])


def _texts(group: sr.Group, source: Member, best: int) -> list[str]:
    labels, scores = group.spec.labels, source.scores or ()
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:_MOST_LABELS]
    return [
        f"{NOT_DIAGNOSTIC.upper()}. Drawn by medimg, not by the scanner.",
        *(f"{scores[index]:.3f}  {labels[index]}" for index in order),
        f"heat map: what speaks for {labels[best]}" if group.spec.heatmap else "no heat map in this model",
        f"{group.model_name[:30]}  SHA-256 {group.model_sha256[:16]}",
    ]


def write_overlay(picture: Picture, content: sr.ReportContent, report_uid: str) -> bytes:
    """Write a picture as a DICOM file: Secondary Capture (PS3.3 A.8.1)."""
    sr.quiet_highdicom()
    source = picture.source
    image = require("highdicom.sc", "node").SCImage.from_ref_dataset(
        ref_dataset=sr.evidence(source, content),
        pixel_array=picture.pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        series_instance_uid=sr.derived_uid("overlays", content.series.series_key),
        series_number=9001,
        sop_instance_uid=overlay_uid(report_uid),
        instance_number=1,
        manufacturer=MANUFACTURER,
        transfer_syntax_uid=sr.TRANSFER_SYNTAX,
    )
    # Of the source they are not known.
    image.PatientOrientation = image.Laterality = None
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.BurnedInAnnotation = "YES"
    image.SeriesDescription = f"Overlay by medimg. {NOT_DIAGNOSTIC}"
    image.DerivationDescription = "As the network takes it, enlarged, with class activation map and scores"
    image.ImageComments = NOT_DIAGNOSTIC
    image.SourceImageSequence = [_source(source)]
    # Optional, and the present time as highdicom writes them.
    del image.DateOfSecondaryCapture, image.TimeOfSecondaryCapture
    return sr.finished_file(image, content)


def overlay_uid(report_uid: str) -> str:
    """Derive an overlay's UID from that of its report."""
    return sr.derived_uid("overlay", report_uid)


def _source(member: Member) -> Any:  # noqa: ANN401  pydicom has no types
    dataset = require("pydicom", "node").Dataset
    item, purpose = dataset(), dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = member.sop_class, member.sop_uid
    purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item
