"""What is to be fetched, how far a fetch is, and what came of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lacuna_nipype.connectomes.public import find_source
from lacuna_nipype.io.fetching.keys import service_of
from lacuna_nipype.remote.credentials import find_key


@dataclass(frozen=True)
class FetchConfig:
    """What is to be fetched, and how.

    Parameters
    ----------
    connectome : str
        Name of the public connectome.
    output_dir : Path
    api_key : str, optional
        Never shown by ``repr``.
    batches : int
        Files that a functional connectome is cut into.
    keep_original : bool
        Keep what was downloaded when it has been converted.
    register : bool
        Put the result into the registry of connectomes.
    register_name : str, optional
        By default the connectome's own.
    force : bool
        Download and convert again what is there.
    resume : bool
        Go on with what an earlier call left; otherwise its pieces are removed first.
    test_mode : bool
        First archive and first 10 subjects alone.
    skip_checksum : bool
        Trust the sizes alone.
    """

    connectome: str
    output_dir: Path
    api_key: str | None = field(default=None, repr=False)
    batches: int = 10
    keep_original: bool = True
    register: bool = True
    register_name: str | None = None
    force: bool = False
    resume: bool = True
    test_mode: bool = False
    skip_checksum: bool = False

    @classmethod
    def from_cli_args(cls, namespace: argparse.Namespace) -> FetchConfig:
        """Take over the arguments of a command line.

        Parameters
        ----------
        namespace : argparse.Namespace
            ``no_keep_original`` and ``no_register`` turn the fields without ``no_`` around;
            what is missing or None takes its default.

        Returns
        -------
        FetchConfig
        """
        given = {key: value for key, value in vars(namespace).items() if value is not None}
        for name in ("keep_original", "register"):
            if f"no_{name}" in given:
                given[name] = not given[f"no_{name}"]
        known = {key: given[key] for key in cls.__dataclass_fields__ if key in given}
        known["output_dir"] = Path(known["output_dir"])
        return cls(**known)

    def get_api_key(self) -> str | None:
        """Find the key of the connectome's service.

        Returns
        -------
        str or None
            The one given, else that of the environment (``DATAVERSE_API_KEY``,
            ``FIGSHARE_API_KEY``), else that of the configuration file.
        """
        service = service_of(find_source(self.connectome))
        secret = find_key(service or "dataverse", self.api_key)
        return secret.reveal() if secret is not None else None


@dataclass(frozen=True)
class FetchProgress:
    """How far a fetch is.

    Parameters
    ----------
    phase : {"download", "processing", "registration"}
    current_file : str
    files_completed, files_total : int
        Files in the first phase; subjects or streamlines in the second.
    bytes_transferred, bytes_total : int
        Of the download.
    message : str
    """

    phase: str
    current_file: str
    files_completed: int
    files_total: int
    bytes_transferred: int = 0
    bytes_total: int = 0
    message: str = ""

    @property
    def percent_complete(self) -> float:
        """Share of the files that are done, in per cent; 0 when there are none."""
        return 100.0 * self.files_completed / self.files_total if self.files_total else 0.0

    @property
    def download_percent(self) -> float:
        """Share of the bytes that are there, in per cent; 0 when there are none."""
        return 100.0 * self.bytes_transferred / self.bytes_total if self.bytes_total else 0.0


@dataclass(frozen=True)
class FetchResult:
    """What came of a fetch.

    Parameters
    ----------
    success : bool
    connectome_name : str
    output_dir : Path
    output_files : list of Path
    registered : bool
    register_name : str, optional
    duration_seconds, download_time_seconds, processing_time_seconds : float
    warnings : list of str
    error : str, optional
        One sentence.
    """

    success: bool
    connectome_name: str
    output_dir: Path
    output_files: list[Path] = field(default_factory=list)
    registered: bool = False
    register_name: str | None = None
    duration_seconds: float = 0.0
    download_time_seconds: float = 0.0
    processing_time_seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    error: str | None = None

    def summary(self) -> str:
        """Tell in a few lines what there is now.

        Returns
        -------
        str
        """
        if not self.success:
            return f"{self.connectome_name} was not fetched: {self.error}"
        n_files = len(self.output_files)
        files = f"{n_files} {'file' if n_files == 1 else 'files'}"
        download, conversion = self.download_time_seconds, self.processing_time_seconds
        times = f"download {download:.0f} s, conversion {conversion:.0f} s"
        lines = [
            f"{self.connectome_name}: {files} in {self.output_dir}",
            f"time: {self.duration_seconds:.0f} s ({times})",
        ]
        if self.registered:
            lines.append(f"registered as {self.register_name}")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


ProgressCallback = Callable[[FetchProgress], None]
