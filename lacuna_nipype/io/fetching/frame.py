"""What every fetch does; what is particular to a connectome comes as data.

A fetch finds the key, asks the server, downloads, converts and registers. Every step leaves what
it finished, so the same call after an interruption does what is missing: downloads go on at the
byte where they stopped, converted files are kept, and what is registered is there in full. Keys
are held apart from everything that is written or shown.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lacuna_nipype.connectomes.public import ConnectomeSource, find_source
from lacuna_nipype.connectomes.registry import find_registered, register_connectome
from lacuna_nipype.connectomes.tractogram_check import check_placement
from lacuna_nipype.connectomes.tractogram_formats import tractogram_sidecar
from lacuna_nipype.core.files import write_json
from lacuna_nipype.io.fetching.keys import key_header
from lacuna_nipype.io.fetching.places import PROCESSED, RAW, result_files, result_path
from lacuna_nipype.io.fetching.record import record_fetch
from lacuna_nipype.io.fetching.records import (
    FetchConfig,
    FetchProgress,
    FetchResult,
    ProgressCallback,
)
from lacuna_nipype.remote.download import DownloadState, RemoteFile, download_files

logger = logging.getLogger("lacuna_nipype")


@dataclass(frozen=True)
class Plan:
    """What a server holds of a connectome, and how that becomes the result.

    Parameters
    ----------
    originals : sequence of RemoteFile
        What to download.
    convert : callable
        Takes the paths of originals and makes the result, or its part, of them.
    converted : set of str
        File names of originals that need no download: the result holds what is in them.
    seal : callable
        Called when all originals are converted.
    """

    originals: Sequence[RemoteFile]
    convert: Callable[[list[Path]], object]
    converted: AbstractSet[str] = frozenset()
    seal: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Steps:
    """What is particular to the fetch of a connectome.

    Parameters
    ----------
    plan : callable
        Asks the server.
    is_done : callable
        Whether an earlier call made the result that is wanted.
    discard : callable
        Removes what this call shall not build upon, besides unfinished downloads.
    folder : str
        Of the originals, below that of the connectome; empty where they are the result.
    """

    plan: Callable[[FetchRun], Plan]
    is_done: Callable[[FetchRun], bool] = lambda run: run.result.is_file()
    discard: Callable[[FetchRun], object] = lambda run: None
    folder: str = RAW


class FetchRun:
    """One fetch: its settings and folders, its key, its clock, and what it tells.

    Parameters
    ----------
    config : FetchConfig
    progress : callable, optional
        Called with :class:`FetchProgress`.
    verbose : bool
        Log each step.

    Raises
    ------
    AuthenticationError
        A key is needed, and there is none.
    """

    def __init__(
        self, config: FetchConfig, progress: ProgressCallback | None, verbose: bool
    ) -> None:
        self.config, self.source = config, find_source(config.connectome)
        self.folder = Path(config.output_dir).expanduser().absolute()
        self.result: Path = result_path(self.source, self.folder)
        self._header = key_header(self.source, config.api_key)
        self._progress, self._verbose = progress, verbose
        self._begin = time.monotonic()
        self._seconds = {"download": 0.0, "processing": 0.0}

    def tell(self, phase: str, name: str, done: int, total: int, **more: Any) -> None:
        """Call the user's function."""
        if self._progress is not None:
            self._progress(FetchProgress(phase, name, done, total, **more))

    def note(self, message: str) -> None:
        """Log a step."""
        logger.log(logging.INFO if self._verbose else logging.DEBUG, "%s", message)

    def ask(
        self, service: str, list_files: Callable[..., list[RemoteFile]], *where: str
    ) -> list[RemoteFile]:
        """List the files that a service has under an address."""
        self.note(f"Asking {service} for the list of files.")
        return list_files(*where, self._header)

    def download(self, files: Sequence[RemoteFile], folder: Path) -> list[Path]:
        """Fetch files, as far as they are not there; gives their paths."""

        def show(state: DownloadState) -> None:
            self.tell(
                "download",
                state.current_file,
                state.files_completed,
                state.files_total,
                bytes_transferred=state.bytes_transferred,
                bytes_total=state.bytes_total,
                message=state.message,
            )

        begin = time.monotonic()
        try:
            return download_files(
                files,
                folder,
                header=self._header,
                skip_checksum=self.config.skip_checksum,
                force=self.config.force,
                progress=show,
            )
        finally:
            self._seconds["download"] += time.monotonic() - begin

    def convert(self, step: Callable[[Callable[[int, int], None]], Any]) -> None:
        """Run a conversion that reports (done, total)."""

        def show(done: int, total: int) -> None:
            self.tell("processing", self.result.name, done, total, message="converting")

        show(0, 0)
        begin = time.monotonic()
        try:
            step(show)
        finally:
            self._seconds["processing"] += time.monotonic() - begin

    def conclude(self) -> FetchResult:
        """Register what was made, and tell."""
        name = self.config.register_name or self.source.register_name
        if self.source.type == "structural":
            check_placement(self.result)
            _describe(self.source, self.result)
        if self.config.register:
            self.tell("registration", name, 0, 1)
            _register(self.source, name, self.result)
            self.tell("registration", name, 1, 1)
        return FetchResult(
            True,
            self.source.name,
            self.folder,
            result_files(self.source, self.folder),
            registered=self.config.register,
            register_name=name if self.config.register else None,
            duration_seconds=time.monotonic() - self._begin,
            download_time_seconds=self._seconds["download"],
            processing_time_seconds=self._seconds["processing"],
        )


def run_fetch(
    steps: Steps,
    config: FetchConfig,
    *,
    progress: ProgressCallback | None = None,
    verbose: bool = False,
) -> FetchResult:
    """Fetch a connectome.

    Parameters
    ----------
    steps : Steps
        What is particular to it.
    config : FetchConfig
    progress : callable, optional
        Called with :class:`FetchProgress`.
    verbose : bool
        Log each step.

    Returns
    -------
    FetchResult

    Raises
    ------
    AuthenticationError, DownloadError
        The key is missing or wrong; a file cannot be had.
    ValidationError, SpatialMismatchError, ProcessingError
        What came is not what it should be.
    """
    run = FetchRun(config, progress, verbose)
    record_fetch(run.source.name, run.folder)
    folder = run.folder / steps.folder
    _discard(run, folder)
    steps.discard(run)
    if not config.force and steps.is_done(run):
        run.note("Everything is there already.")
        return run.conclude()
    plan = steps.plan(run)
    # Where originals go as they are converted, the disk never holds all of them.
    rounds = [plan.originals] if config.keep_original else [[one] for one in plan.originals]
    for some in rounds:
        run.download([one for one in some if base_name(one) not in plan.converted], folder)
        paths = [folder / one.name for one in some]
        plan.convert(paths)
        # A trial takes no more than the beginning of an original.
        if not (config.keep_original or config.test_mode):
            _drop(paths, folder)
    plan.seal()
    return run.conclude()


def base_name(file: RemoteFile) -> str:
    """Name of a file without folders."""
    return file.name.rpartition("/")[2]


def with_suffix(files: Sequence[RemoteFile], suffixes: tuple[str, ...]) -> list[RemoteFile]:
    """Choose the files with one of these endings; case is ignored."""
    return [file for file in files if file.name.lower().endswith(suffixes)]


def _discard(run: FetchRun, folder: Path) -> None:
    """Remove what this call shall not go on with."""
    if run.config.force:
        shutil.rmtree(run.folder / PROCESSED, ignore_errors=True)
    if run.config.force or not run.config.resume:
        for pattern in (".*.part", ".*.part.json"):
            for path in folder.rglob(pattern) if folder.is_dir() else ():
                path.unlink()


def _drop(paths: Sequence[Path], folder: Path) -> None:
    """Remove originals, and their folder when it is empty."""
    for path in paths:
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _describe(source: ConnectomeSource, path: Path) -> None:
    """Say in the JSON beside a tractogram what it is, for runs that are given its path."""
    sidecar, content = tractogram_sidecar(path)
    known = {"Space": source.space, "Citation": source.citation, "License": source.licence}
    if any(content.get(key) != value for key, value in known.items()):
        write_json(sidecar, {**content, **known})


def _register(source: ConnectomeSource, name: str, path: Path) -> None:
    known = find_registered(name)
    if known is not None and known.path != path.absolute():
        logger.warning("%s was registered as %s before; the name is given on.", known.path, name)
    register_connectome(
        name, path,
        kind=source.type, space=source.space,
        n_subjects=source.n_subjects if source.type == "structural" else None,
        citation=source.citation, licence=source.licence, overwrite=True,
    )  # fmt: skip
