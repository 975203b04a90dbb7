"""Many files at once: space on the disk, threads, progress, and a clean stop."""

from __future__ import annotations

import logging
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lacuna_nipype.core.exceptions import DownloadError, ValidationError
from lacuna_nipype.remote.http_client import (
    BACK_OFF,
    TIMEOUTS,
    BackOff,
    Client,
    Header,
    open_json,
)
from lacuna_nipype.remote.transfer import RemoteFile, fetch_file, part_path

__all__ = [
    "BackOff",
    "Client",
    "DownloadState",
    "Header",
    "RemoteFile",
    "download_files",
    "open_json",
]

logger = logging.getLogger("lacuna_nipype")

# Left on the disk for everything else.
MARGIN_BYTES = 2**26
_POLL_SECONDS = 0.1
# Threads stop at their next block; one that waits for a silent server is left behind.
_STOP_SECONDS = 2.0


@dataclass(frozen=True)
class DownloadState:
    """How far a download is.

    Parameters
    ----------
    current_file : str
        Name of the file last worked on.
    files_completed, files_total : int
    bytes_transferred : int
        Bytes there, those of earlier runs included: the first state says with how many this run
        starts.
    bytes_total : int
        Sum of the sizes that are known; a file of unknown size counts with what is there.
    message : str
        What is being done with the current file.
    """

    current_file: str
    files_completed: int
    files_total: int
    bytes_transferred: int
    bytes_total: int
    message: str


def download_files(
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    header: Header | None = None,
    n_parallel: int = 2,
    skip_checksum: bool = False,
    force: bool = False,
    progress: Callable[[DownloadState], None] | None = None,
    retries: int = 5,
    back_off: BackOff = BACK_OFF,
    timeouts: tuple[float, float] = TIMEOUTS,
    cancelled: threading.Event | None = None,
) -> list[Path]:
    """Download files into a folder.

    Parameters
    ----------
    files : sequence of RemoteFile
    folder : Path
        Created when missing.
    header : Header, optional
        Key, sent to the origin of each file's address alone.
    n_parallel : int
        Files at a time.
    skip_checksum : bool
        Trust the sizes alone.
    force : bool
        Download again what is there.
    progress : callable, optional
        Called in the calling thread with each new :class:`DownloadState`.
    retries : int
        Further tries of a file after failures without any progress between them.
    back_off : BackOff
    timeouts : (float, float)
        Seconds to connect, and to wait for the next bytes.
    cancelled : threading.Event, optional
        Set by someone else, it stops the download.

    Returns
    -------
    list of Path
        In the order of the files. A file that is complete is kept without a request.

    Raises
    ------
    ValidationError
        Two files have the same name.
    AuthenticationError, DownloadError
        A file cannot be had, the disk is too small, or the download was stopped. What has
        arrived is kept as ``.NAME.part`` and continued by the next call.
    KeyboardInterrupt
        As it came, after the threads were told to stop.
    """
    if n_parallel < 1:
        raise ValidationError(f"{n_parallel} files at a time cannot be downloaded.")
    _check_names(files)
    if not files:
        return []
    targets = [folder / PurePosixPath(file.name) for file in files]
    pairs = zip(files, targets, strict=True)
    board = _Board(files, [0 if force else _bytes_there(file, path) for file, path in pairs])
    _check_space(files, board.sizes, folder)

    def fetch(number: int, client: Client) -> None:
        report = lambda size, message: board.write(number, size, message)
        fetch_file(
            files[number], folder, client,
            header=header, skip_checksum=skip_checksum, force=force, report=report,
        )  # fmt: skip
        board.complete(number)

    crew = _Crew(fetch, len(files), n_parallel)
    make_client = lambda: Client(
        retries=retries, back_off=back_off, timeouts=timeouts, cancelled=crew.stop
    )
    show = progress if progress is not None else lambda state: None
    crew.run(make_client, lambda: show(board.read()) if board.changed() else None, cancelled)
    return targets


class _Board:
    """What the threads write and the caller reads."""

    def __init__(self, files: Sequence[RemoteFile], sizes: list[int]) -> None:
        self._files, self.sizes = files, sizes
        self._complete = [False] * len(files)
        self._current, self._message = 0, "starting"
        self._lock = threading.Lock()
        self._changed = True

    def write(self, number: int, size: int, message: str) -> None:
        with self._lock:
            self.sizes[number] = size
            self._current, self._message, self._changed = number, message, True

    def complete(self, number: int) -> None:
        with self._lock:
            self._complete[number] = self._changed = True

    def changed(self) -> bool:
        return self._changed

    def read(self) -> DownloadState:
        with self._lock:
            self._changed = False
            totals = [
                size if file.size is None else file.size
                for file, size in zip(self._files, self.sizes, strict=True)
            ]
            return DownloadState(
                self._files[self._current].name,
                sum(self._complete),
                len(self._files),
                sum(self.sizes),
                sum(totals),
                self._message,
            )


class _Crew:
    """Threads that share a list of tasks and stop together."""

    def __init__(self, work: Callable[[int, Client], None], n_tasks: int, n_threads: int) -> None:
        self.stop = threading.Event()
        self._work = work
        self._tasks: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(n_tasks):
            self._tasks.put(number)
        self._n_threads = self._n_working = min(n_threads, n_tasks)
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._news = threading.Event()

    def run(
        self,
        make_client: Callable[[], Client],
        watch: Callable[[], None],
        cancelled: threading.Event | None,
    ) -> None:
        """Do all tasks; raise the first error of a thread, or what ``watch`` raises."""
        threads = [
            # Daemons, so that a thread which waits for a silent server does not hold the exit.
            threading.Thread(target=self._take_tasks, args=(make_client,), daemon=True)
            for _ in range(self._n_threads)
        ]
        watch()
        try:
            for thread in threads:
                thread.start()
            while self._n_working and self._error is None:
                self._news.wait(_POLL_SECONDS)
                self._news.clear()
                if cancelled is not None and cancelled.is_set():
                    self.stop.set()
                watch()
        finally:
            self.stop.set()
            for thread in threads:
                if thread.is_alive():
                    thread.join(_STOP_SECONDS)
        if self._error is not None:
            raise self._error
        watch()

    def _take_tasks(self, make_client: Callable[[], Client]) -> None:
        try:
            with make_client() as client:
                while True:
                    try:
                        number = self._tasks.get_nowait()
                    except queue.Empty:
                        return
                    self._work(number, client)
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            # The first error counts; the others follow from the stop.
            if self._error is None:
                self._error = error
            self.stop.set()
        finally:
            with self._lock:
                self._n_working -= 1
            self._news.set()


def _check_names(files: Sequence[RemoteFile]) -> None:
    names = [file.name for file in files]
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    seen: set[str] = set()
    for name in names:
        if name in seen or name in folders:
            raise ValidationError(f"Two files to download share the name {name}.")
        seen.add(name)


def _bytes_there(file: RemoteFile, target: Path) -> int:
    """Give the bytes that need not be downloaded, without looking at their content."""
    if target.is_file() and file.size in (None, target.stat().st_size):
        return target.stat().st_size
    part = part_path(target)
    size = part.stat().st_size if part.is_file() else 0
    return size if file.size is None else min(size, file.size)


def _check_space(files: Sequence[RemoteFile], there: Sequence[int], folder: Path) -> None:
    missing = sum(
        file.size - size for file, size in zip(files, there, strict=True) if file.size is not None
    )
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if missing and missing + MARGIN_BYTES > free:
        raise DownloadError(
            str(folder),
            f"{_gigabytes(missing)} are still to be downloaded, but only {_gigabytes(free)} are "
            "free there; make room or choose another folder.",
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
