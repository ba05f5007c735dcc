"""DICOM files to 8-bit pixels, a step a module.

    files         the data set: what holds an image, and of whom
    header        the elements that describe pixels, read and checked once
    frames        which decoder each transfer syntax has          native, codestreams
    stored        samples to stored values: which bits count, and their sign
    elements      every other number, table and sequence: empty, of the wrong sign or not finite
    views         modality and VOI: tables and windows, of the frame, of all frames or of the image
    display       the pipelines of PS3.4 N.2, to what is shown    palettes

"PS3.x" are parts of the DICOM standard.
"""

from medimg.runtime.images.dicom.elements import DAMAGED
from medimg.runtime.images.dicom.files import decode_frames, quiet_pydicom, read_values

__all__ = ["DAMAGED", "decode_frames", "quiet_pydicom", "read_values"]
