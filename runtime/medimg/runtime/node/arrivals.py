"""What is read of a data set when it arrives: UIDs, kind, and whom it is about."""

import hashlib
import re
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from medimg.runtime.errors import ImageError
from medimg.runtime.images import dicom
from medimg.runtime.node.identity import HEADER, ISSUERS, read_identity
from medimg.runtime.node.records import Arrival
from medimg.runtime.optional import require

IMPLEMENTATION_UID = "2.25.316301806038218270065623334814262699499"
"""Of this node (PS3.7 D.3.3.2), derived from a UUID (PS3.5 B.2)."""
MANUFACTURER = "medimg"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_ROW_TAGS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality")
_TAGS = [
    *_ROW_TAGS,
    "Manufacturer",
    "BodyPartExamined",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "SpecificCharacterSet",
    *HEADER,
    *ISSUERS,
]


class UnusableError(ImageError):
    """A data set that cannot be queued: what it lacks."""


def read_arrival(
    content: bytes, transfer_syntax: str, *, sender: str, received_at: float, max_bytes: int
) -> Arrival:
    """Read the header of a data set.

    Args:
        content: the data set, without file meta information.
        transfer_syntax: its UID.
        sender: AE title and address.
        received_at: seconds since 1970.
        max_bytes: what a deflated data set may unpack to.

    Raises:
        UnusableError: it is damaged, too large, or lacks one of its UIDs.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        header = _header(content, transfer_syntax, max_bytes)
        uids = [str(header.get(name) or "") for name in _ROW_TAGS[:4]]
        for name, uid in zip(_ROW_TAGS, uids, strict=False):
            if len(uid) > 64 or not _UID.fullmatch(uid):
                raise UnusableError(f"its {name} is missing or no UID")
        kind = [
            _text(header, name, 64) for name in ("Modality", "BodyPartExamined", "PhotometricInterpretation")
        ]
        if str(header.get("Manufacturer")) == MANUFACTURER:
            raise UnusableError("an overlay that medimg has drawn itself, not an image of a scanner")
        identity = read_identity(header)
    except dicom.DAMAGED as error:
        raise UnusableError(f"a damaged data set ({type(error).__name__})") from None
    modality, body_part, photometric = kind
    return Arrival(
        sop_uid=uids[1],
        sop_class=uids[0],
        series_uid=uids[2],
        study_uid=uids[3],
        modality=modality,
        body_part=body_part,
        photometric=photometric,
        sender=sender,
        received_at=received_at,
        sha256=sha256,
        identity=identity,
        frames=_frames(header),
    )


def read_file_arrival(path: Path, max_bytes: int) -> Arrival:
    """Read a stored file's header, as if it arrived when it was written; see `read_arrival`."""
    pydicom = dicom.quiet_pydicom()
    content = path.read_bytes()
    stream = BytesIO(content)
    try:
        stream.seek(132)
        meta = pydicom.filereader._read_file_meta_info(stream)
        return read_arrival(
            content[stream.tell() :],
            str(meta.TransferSyntaxUID),
            sender=str(meta.get("SourceApplicationEntityTitle", "")),
            received_at=path.stat().st_mtime_ns // 1000 / 1e6,
            max_bytes=max_bytes,
        )
    except dicom.DAMAGED as error:
        raise UnusableError(f"{path}: a damaged file ({type(error).__name__})") from None


def file_meta(arrival: Arrival, transfer_syntax: str, ae_title: str) -> bytes:
    """Write preamble and file meta information (PS3.10 7.1) for an image's file."""
    meta = require("pydicom", "node").dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = arrival.sop_class
    meta.MediaStorageSOPInstanceUID = arrival.sop_uid
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    meta.SourceApplicationEntityTitle = ae_title
    written = BytesIO()
    require("pydicom.filewriter", "node").write_file_meta_info(written, meta, enforce_standard=True)
    return bytes(128) + b"DICM" + written.getvalue()


def _header(content: bytes, transfer_syntax: str, max_bytes: int) -> Any:  # noqa: ANN401  pydicom has no types
    dicom.quiet_pydicom()
    if transfer_syntax == _DEFLATED:
        content, transfer_syntax = _inflated(content, max_bytes), _EXPLICIT_LITTLE
    uid = require("pydicom.uid", "node").UID(transfer_syntax)
    return require("pydicom.filereader", "node").read_dataset(
        BytesIO(content),
        uid.is_implicit_VR,
        uid.is_little_endian,
        stop_when=lambda tag, _vr, _length: tag >= 0x7FE00008,
        specific_tags=[require("pydicom.tag", "node").Tag(name) for name in _TAGS],
    )


def _inflated(content: bytes, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(content, max_bytes)
    if inflater.unconsumed_tail:
        raise UnusableError(f"unpacks to more than {max_bytes:,} bytes")
    return plain


def _frames(header: Any) -> int:  # noqa: ANN401
    """Give the number of frames that a header states; 0 if it is no number."""
    try:
        return max(0, int(header.get("NumberOfFrames") or 1))
    except (ValueError, TypeError, OverflowError):
        return 0


def _text(header: Any, name: str, longest: int) -> str:  # noqa: ANN401
    """Give a value without control characters, which no report could carry."""
    text = str(header.get(name) or "").replace("\\", " ")
    return "".join(char for char in text if char.isprintable())[:longest].strip()


def describe(arrival: Arrival, *, patient_names: bool) -> Mapping[str, object]:
    """Say in the audit log what came."""
    fields = {
        "sop_instance_uid": arrival.sop_uid,
        "series_instance_uid": arrival.series_uid,
        "sender": arrival.sender,
        "sha256": arrival.sha256,
    }
    return {**fields, "patient": arrival.identity.header.get("PatientName", "")} if patient_names else fields
