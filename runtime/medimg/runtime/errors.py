"""What can go wrong, as one small tree.

    MedimgError                 exit status 2: wrong use or unusable input
    ├── UsageError              options or arguments that do not fit together
    ├── MissingDependencyError  an optional package is not installed
    ├── ImageError              one image cannot be read; a result in `predict`, not the end
    │   ├── DecoderError        its decoder ended early: another time it may be read
    │   └── NotApplicableError  the model is for other images
    ├── NoNumberError           the model gives no number for an image; a result in `predict`, too
    ├── DataError               a data set cannot be understood
    ├── ModelError              a model file cannot be used
    │   ├── NoSpecError         it carries no medimg entry
    │   ├── IntegrityError      its bytes are not those that were verified at export
    │   └── TrustError          it holds native code, and nothing vouches for it
    ├── BackendError            a back end or device cannot be had, or failed
    │   └── GpuMemoryError      the GPU has not enough free memory
    └── CheckFailedError        exit status 1: everything ran, and a check did not pass

Every message names the file or value and the way out; the commands print it and nothing else.
"""


class MedimgError(Exception):
    """An expected failure, whose message is all that a user needs."""

    exit_status = 2


class UsageError(MedimgError):
    """Options or arguments that do not fit together."""


class MissingDependencyError(MedimgError):
    """An optional package is not installed."""


class ImageError(MedimgError):
    """One image cannot be read."""


class DecoderError(ImageError):
    """An image's decoder ended early, by a crash or for want of time or memory; another try may succeed."""


class NotApplicableError(ImageError):
    """A model is not for one image, by the DICOM values that it allows."""


class NoNumberError(MedimgError):
    """The model gives no number for an image."""


class DataError(MedimgError):
    """A data set cannot be understood."""


class ModelError(MedimgError):
    """A model file cannot be used."""


class NoSpecError(ModelError):
    """A model file carries no medimg entry."""


class IntegrityError(ModelError):
    """A model file's bytes are not those that were verified at export."""


class TrustError(ModelError):
    """A model file holds native code, and nothing vouches for it."""


class BackendError(MedimgError):
    """A back end or a device cannot be had, or failed."""


class GpuMemoryError(BackendError):
    """The GPU has not enough free memory."""


class CheckFailedError(MedimgError):
    """Everything ran, and a check did not pass."""

    exit_status = 1
