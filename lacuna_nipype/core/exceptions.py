"""Errors that a user can cause; each carries one sentence that names the file and the remedy."""

_MOST_CHARACTERS = 1000


class LacunaError(Exception):
    """Base of all errors of this package whose message is meant for the user."""

    def __str__(self) -> str:
        return _one_line(super().__str__())


def _one_line(text: str) -> str:
    """Make text safe for a terminal and a log.

    Messages quote files, which may hold line ends, commands for terminals, and megabytes of text.
    """
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]} [...] {text[-half:]}"
    if not text.isprintable():
        # Escaped as Python writes such characters; printable ones stay, of whatever language.
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text


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


def sentence_of(error: BaseException) -> str:
    """Say in one sentence what any exception says.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    str
        Its text, or its type where it has none, with a full stop.
    """
    text = str(error) or type(error).__name__
    return text if text.endswith((".", "?", "!")) else f"{text}."
