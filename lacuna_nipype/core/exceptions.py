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


class ProcessingError(LacunaError):
    """A step of a conversion failed.

    Parameters
    ----------
    operation : str
        What was being done.
    reason : str
        One sentence: what is wrong, and what to do.
    """

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(f"{operation}: {reason}")
        self.operation, self.reason = operation, reason


class DownloadError(LacunaError):
    """Something could not be fetched.

    Parameters
    ----------
    url : str
        Address, without any key.
    reason : str
        One sentence: what is wrong, and what to do.
    """

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")
        self.url, self.reason = url, reason


class AuthenticationError(DownloadError):
    """A service refused the key, or needs one."""
