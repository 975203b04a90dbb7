"""Errors that a user can cause; each carries one sentence that names the file and the remedy."""


class LacunaError(Exception):
    """Base of all errors of this package whose message is meant for the user."""


class ValidationError(LacunaError, ValueError):
    """An input file or argument is not what it must be."""


class EmptyMaskError(ValidationError):
    """A lesion mask holds no lesion voxel."""


class SpatialMismatchError(ValidationError):
    """Two things that must share a space or a grid do not."""


class BidsError(LacunaError):
    """A BIDS operation failed: nothing found, or names that cannot be told apart."""


class DependencyError(LacunaError):
    """An external program is missing or too old."""
