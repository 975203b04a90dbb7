"""Public connectomes, from their servers to a registered file.

A fetch downloads, verifies, converts and registers.

Every step leaves what it finished, so the same call after an interruption does what is missing:
downloads go on at the byte where they stopped, converted files are kept, and what is registered
is there in full. Keys are held apart from everything that is written or shown.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lacuna_nipype.connectomes.public import ConnectomeSource, find_source, sources_file
from lacuna_nipype.connectomes.registry import find_registered, register_connectome
from lacuna_nipype.connectomes.tractogram_check import check_placement
from lacuna_nipype.connectomes.tractogram_formats import tractogram_sidecar
from lacuna_nipype.core.exceptions import AuthenticationError, LacunaError, ValidationError
from lacuna_nipype.core.files import get_data_dir, read_json, write_json
from lacuna_nipype.io.fetch_record import record_fetch, recorded_folder
from lacuna_nipype.remote.credentials import Secret, Service, find_key, key_advice
from lacuna_nipype.remote.download import DownloadState, Header, RemoteFile, download_files

logger = logging.getLogger("lacuna_nipype")

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
MASK_SUFFIXES = (".nii.gz", ".nii")
#: Says, beside the HDF5 files, that they are all there.
FINISHED = "gsp1000_finished.json"
# Subjects of the whole GSP1000, which its batches divide; and those of a test.
_ALL_SUBJECTS, _TEST_SUBJECTS = 1000, 10
_RAW, _PROCESSED = "raw", "processed"
_VARIANTS = ("10pct", "25pct")


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
        service = _service_of(find_source(self.connectome))
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


class _Run:
    """One fetch: its clock, its key, and what it tells."""

    def __init__(
        self,
        source: ConnectomeSource,
        output_dir: Path,
        *,
        api_key: str | Secret | None,
        progress: ProgressCallback | None,
        verbose: bool,
    ) -> None:
        self.source, self.folder = source, Path(output_dir).expanduser().absolute()
        self.header = _header(source, api_key)
        self._progress, self._verbose = progress, verbose
        self._begin = time.monotonic()
        self.seconds = {"download": 0.0, "processing": 0.0}
        self.warnings: list[str] = []
        record_fetch(source.name, self.folder)

    def tell(self, phase: str, name: str, done: int, total: int, **more: Any) -> None:
        """Call the user's function."""
        if self._progress is not None:
            self._progress(FetchProgress(phase, name, done, total, **more))

    def note(self, message: str) -> None:
        """Log a step."""
        logger.log(logging.INFO if self._verbose else logging.DEBUG, "%s", message)

    def download(self, files: Sequence[RemoteFile], **options: Any) -> list[Path]:
        """Fetch files to the folder of the originals."""

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

        options.setdefault("folder", self.folder / _RAW)
        begin = time.monotonic()
        try:
            return download_files(files, header=self.header, progress=show, **options)
        finally:
            self.seconds["download"] += time.monotonic() - begin

    def convert(self, name: str, step: Callable[[Callable[[int, int], None]], Any]) -> Any:
        """Run a conversion that reports (done, total)."""
        self.tell("processing", name, 0, 0, message="converting")
        begin = time.monotonic()
        try:
            return step(
                lambda done, total: self.tell(
                    "processing", name, done, total, message="converting"
                )
            )
        finally:
            self.seconds["processing"] += time.monotonic() - begin

    def finish(
        self, result: Path, files: list[Path], register: bool, register_name: str | None
    ) -> FetchResult:
        """Register what was made, and tell."""
        name = register_name or self.source.register_name
        if self.source.type == "structural":
            check_placement(result)
            _describe(self.source, result)
        if register:
            self.tell("registration", name, 0, 1)
            _register(self.source, name, result)
            self.tell("registration", name, 1, 1)
        return FetchResult(
            True,
            self.source.name,
            self.folder,
            files,
            register,
            name if register else None,
            time.monotonic() - self._begin,
            self.seconds["download"],
            self.seconds["processing"],
            self.warnings,
        )


def _service_of(source: ConnectomeSource) -> Service | None:
    """Service whose key the download needs."""
    return source.source_type if source.source_type in ("dataverse", "figshare") else None


def _header(source: ConnectomeSource, api_key: str | Secret | None) -> Header | None:
    from lacuna_nipype.remote.services import DATAVERSE_FIELD, FIGSHARE_FIELD, FIGSHARE_PREFIX

    service = _service_of(source)
    if service is None:
        return None
    secret = api_key if isinstance(api_key, Secret) else find_key(service, api_key)
    if secret is None:
        raise AuthenticationError(
            f"{source.display_name}", f"a key is needed; {key_advice(service)}."
        )
    if service == "dataverse":
        return Header(DATAVERSE_FIELD, secret)
    return Header(FIGSHARE_FIELD, secret, FIGSHARE_PREFIX)


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


# Functional


def fetch_gsp1000(
    output_dir: Path | str,
    *,
    api_key: str | None = None,
    batches: int = 10,
    test_mode: bool = False,
    skip_checksum: bool = False,
    keep_original: bool = True,
    register: bool = True,
    register_name: str | None = "GSP1000",
    force: bool = False,
    resume: bool = True,
    progress_callback: ProgressCallback | None = None,
    verbose: bool = False,
) -> FetchResult:
    """Fetch the GSP1000 functional connectome from Harvard Dataverse and convert it.

    Parameters
    ----------
    output_dir : path-like
        The archives go to ``raw``, the HDF5 files to ``processed`` below it.
    api_key : str, optional
        Else that of the environment or of the configuration file.
    batches : int
        Files to make: each holds max(1, 1000 // batches) subjects.
    test_mode : bool
        The first archive and its first 10 subjects, in one file.
    skip_checksum : bool
        Trust the sizes alone.
    keep_original : bool
        When False, archives are fetched, converted and removed one after the other; files may
        then hold fewer subjects where an archive ends.
    register : bool
    register_name : str, optional
    force : bool
        Download and convert again. Otherwise finished HDF5 files are kept, but for a single one
        of at most 10 subjects that a test left.
    resume : bool
        False: remove what an earlier call downloaded in part.
    progress_callback : callable, optional
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
    ValidationError
        What came is not what it should be.
    """
    from lacuna_nipype.connectomes.gsp1000 import converted_archives
    from lacuna_nipype.remote.services import list_dataverse

    if batches < 1:
        raise ValidationError(f"A connectome cannot be cut into {batches} batches.")
    source = find_source("gsp1000")
    run = _Run(
        source, Path(output_dir), api_key=api_key, progress=progress_callback, verbose=verbose
    )
    raw, processed = run.folder / _RAW, run.folder / _PROCESSED
    _clear(raw, processed, force=force, resume=resume, tested=not test_mode)
    if _is_finished(processed, test_mode):
        run.note("Everything is there already.")
        return run.finish(processed, result_files(source, run.folder), register, register_name)
    if source.persistent_id is None:
        raise ValidationError("GSP1000 has no persistent_id in the table of sources; set it.")
    run.note("Asking Dataverse for the list of files.")
    listing = list_dataverse(source.dataverse_server, source.persistent_id, run.header)
    archives = sorted(_with_suffix(listing, ARCHIVE_SUFFIXES), key=lambda file: file.name)
    if not archives:
        raise ValidationError(
            f"{source.persistent_id} on {source.dataverse_server} holds no archive; is it the "
            "right data set?"
        )
    options: dict[str, Any] = {"skip_checksum": skip_checksum, "force": force}
    mask = _brain_mask(run, listing, options)
    archives = archives[:1] if test_mode else archives
    done = set(converted_archives(processed)) if processed.is_dir() else set()
    rounds = [archives] if keep_original else [[archive] for archive in archives]
    for some in rounds:
        missing = [file for file in some if _base(file) not in done]
        run.download(missing, **options)
        files = _convert_archives(
            run, [raw / file.name for file in some], mask, processed,
            subjects_per_chunk=_TEST_SUBJECTS if test_mode else max(1, _ALL_SUBJECTS // batches),
            max_subjects=_TEST_SUBJECTS if test_mode else None,
            keep_original=keep_original, overwrite=force,
        )  # fmt: skip
    names = [_base(file) for file in archives]
    write_json(processed / FINISHED, {"Archives": names, "TestMode": test_mode})
    return run.finish(processed, files, register, register_name)


def _is_finished(processed: Path, test_mode: bool) -> bool:
    """Whether an earlier call of the same kind came to its end, and its files are there."""
    from lacuna_nipype.connectomes.gsp1000 import converted_archives

    try:
        content = read_json(processed / FINISHED)
        names, was_test = list(content["Archives"]), bool(content["TestMode"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if was_test != test_mode:
        return False
    if was_test:
        return any(processed.glob("*.h5"))
    return set(names) <= set(converted_archives(processed))


def _base(file: RemoteFile) -> str:
    return file.name.rpartition("/")[2]


def _with_suffix(files: Sequence[RemoteFile], suffixes: tuple[str, ...]) -> list[RemoteFile]:
    return [file for file in files if file.name.lower().endswith(suffixes)]


def _clear(raw: Path, processed: Path, *, force: bool, resume: bool, tested: bool) -> None:
    """Remove what this call shall not build upon."""
    if force:
        shutil.rmtree(processed, ignore_errors=True)
    if force or not resume:
        for pattern in (".*.part", ".*.part.json"):
            for path in raw.rglob(pattern) if raw.is_dir() else ():
                path.unlink()
    if tested and processed.is_dir() and _is_left_by_a_test(processed):
        shutil.rmtree(processed)


def _is_left_by_a_test(processed: Path) -> bool:
    """Whether there is a single HDF5 file of so few subjects as a test makes."""
    from lacuna_nipype.connectomes.functional import open_connectome

    files = list(processed.glob("*.h5"))
    if len(files) != 1:
        return False
    try:
        return open_connectome(files[0], "MNI152NLin6Asym").n_subjects <= _TEST_SUBJECTS
    except LacunaError:
        return False


def _brain_mask(run: _Run, listing: Sequence[RemoteFile], options: dict[str, Any]) -> Path:
    """Brain mask of the data set where it has one, else the standard one."""
    from lacuna_nipype.atlases.masks import load_brain_mask
    from lacuna_nipype.remote.services import plain_file

    images = _with_suffix(listing, MASK_SUFFIXES)
    masks = [file for file in images if "mask" in _base(file).lower()]
    if run.source.mask_url:
        masks = [plain_file(run.source.mask_url)]
    if len(masks) == 1:
        (path,) = run.download(masks, **options)
        return path
    run.note("The data set holds no brain mask; TemplateFlow's at 2 mm is taken.")
    return load_brain_mask(run.source.space, 2)


def _convert_archives(
    run: _Run, archives: list[Path], mask: Path, processed: Path, **options: Any
) -> list[Path]:
    from lacuna_nipype.connectomes.gsp1000 import convert_gsp1000_archives

    files: list[Path] = run.convert(
        processed.name,
        lambda progress: convert_gsp1000_archives(
            archives, mask, processed, scratch=run.folder, progress=progress, **options
        ),
    )
    return files


# Structural


def fetch_dtor985(
    output_dir: Path | str,
    *,
    api_key: str | None = None,
    keep_original: bool = True,
    register: bool = True,
    register_name: str | None = "dTOR985",
    force: bool = False,
    resume: bool = True,
    skip_checksum: bool = False,
    progress_callback: ProgressCallback | None = None,
    verbose: bool = False,
) -> FetchResult:
    """Fetch the dTOR985 tractogram from figshare and write it as .tck.

    Parameters
    ----------
    output_dir : path-like
        The .trk file goes to ``raw`` below it.
    api_key, keep_original, register, register_name, force, resume, skip_checksum
        See :func:`fetch_gsp1000`.
    progress_callback, verbose
        See :func:`fetch_gsp1000`.

    Returns
    -------
    FetchResult
        A .tck file that is there already is kept unless ``force``.

    Raises
    ------
    AuthenticationError, DownloadError, ValidationError, ProcessingError
        See :func:`fetch_gsp1000`.
    """
    from lacuna_nipype.connectomes.conversion import trk_to_tck
    from lacuna_nipype.remote.services import FIGSHARE_API, list_figshare

    source = find_source("dtor985")
    run = _Run(
        source, Path(output_dir), api_key=api_key, progress=progress_callback, verbose=verbose
    )
    target = run.folder / "dtor985.tck"
    _clear(run.folder / _RAW, run.folder / _PROCESSED, force=force, resume=resume, tested=False)
    if force or not target.is_file():
        if source.article_id is None:
            raise ValidationError("dTOR985 has no article_id in the table of sources; set it.")
        run.note("Asking figshare for the list of files.")
        api = source.download_url or FIGSHARE_API
        listing = list_figshare(api, source.article_id, run.header)
        wanted = _only(_with_suffix(listing, (".trk", ".trk.gz")), "tractogram (.trk)", source)
        (original,) = run.download([wanted], skip_checksum=skip_checksum, force=force)
        run.convert(
            target.name,
            lambda progress: trk_to_tck(original, target, overwrite=force, progress=progress),
        )
        _drop_originals(run, [original], keep_original)
    return run.finish(target, [target], register, register_name)


def fetch_dtor985_subsample(
    variant: str,
    output_dir: Path | str,
    *,
    register: bool = True,
    register_name: str | None = None,
    force: bool = False,
    resume: bool = True,
    skip_checksum: bool = False,
    progress_callback: ProgressCallback | None = None,
    verbose: bool = False,
) -> FetchResult:
    """Fetch a subsample of the dTOR985 tractogram, which is a .tck file already.

    Parameters
    ----------
    variant : {"10pct", "25pct"}
    output_dir : path-like
    register, register_name, force, resume, skip_checksum, progress_callback, verbose
        See :func:`fetch_gsp1000`.

    Returns
    -------
    FetchResult

    Raises
    ------
    ValidationError
        There is no such variant, or its address is not known yet: the sentence says where to
        put it.
    DownloadError
        The file cannot be had.
    """
    from lacuna_nipype.connectomes.tractogram import check_tck
    from lacuna_nipype.remote.services import plain_file

    if variant not in _VARIANTS:
        raise ValidationError(
            f"There is no subsample {variant!r} of dTOR985; known are {', '.join(_VARIANTS)}."
        )
    source = find_source(f"dtor985_{variant}")
    if source.download_url is None:
        raise ValidationError(
            f"The address of {source.name} on OSF is not known to this version; put it into "
            f'{sources_file()} as {{"{source.name}": {{"download_url": '
            '"https://osf.io/<id>/download"}}.'
        )
    run = _Run(source, Path(output_dir), api_key=None, progress=progress_callback, verbose=verbose)
    target = run.folder / f"{source.name}.tck"
    _clear(run.folder, run.folder / _PROCESSED, force=force, resume=resume, tested=False)
    if force or not target.is_file():
        wanted = plain_file(
            source.download_url, target.name, source.size_bytes, source.md5, source.sha256
        )
        run.download([wanted], folder=run.folder, skip_checksum=skip_checksum, force=force)
        try:
            check_tck(target)
        except ValidationError:
            target.unlink()
            raise
    return run.finish(target, [target], register, register_name)


def fetch_hcp1065(
    output_dir: Path | str,
    *,
    keep_original: bool = True,
    register: bool = True,
    register_name: str | None = "HCP1065",
    force: bool = False,
    resume: bool = True,
    skip_checksum: bool = False,
    progress_callback: ProgressCallback | None = None,
    verbose: bool = False,
) -> FetchResult:
    """Fetch the HCP1065 bundles from GitHub and merge all but the cranial nerves into one .tck.

    Parameters
    ----------
    output_dir : path-like
        The archive goes to ``raw`` below it.
    keep_original, register, register_name, force, resume, skip_checksum
        See :func:`fetch_gsp1000`.
    progress_callback, verbose
        See :func:`fetch_gsp1000`.

    Returns
    -------
    FetchResult

    Raises
    ------
    DownloadError, ValidationError, SpatialMismatchError, ProcessingError
        The archive cannot be had, or holds something else than bundles.
    """
    from lacuna_nipype.connectomes.archives import iter_archive
    from lacuna_nipype.connectomes.conversion import merge_trk_to_tck
    from lacuna_nipype.remote.services import github_release

    source = find_source("hcp1065")
    run = _Run(source, Path(output_dir), api_key=None, progress=progress_callback, verbose=verbose)
    target = run.folder / "hcp1065.tck"
    _clear(run.folder / _RAW, run.folder / _PROCESSED, force=force, resume=resume, tested=False)
    if force or not target.is_file():
        if source.download_url is None:
            raise ValidationError("HCP1065 has no download_url in the table of sources; set it.")
        wanted = github_release(
            source.download_url, None, source.size_bytes, source.md5, source.sha256
        )
        (archive,) = run.download([wanted], skip_checksum=skip_checksum, force=force)
        unpacked = run.folder / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        try:
            run.note("Unpacking the bundles.")
            for _ in iter_archive(
                archive, unpacked, wanted=lambda name: name.lower().endswith((".trk", ".trk.gz"))
            ):
                pass
            run.convert(
                target.name,
                lambda progress: merge_trk_to_tck(
                    unpacked, target, overwrite=force, progress=progress
                ),
            )
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
        _drop_originals(run, [archive], keep_original)
    return run.finish(target, [target], register, register_name)


def _only(files: Sequence[RemoteFile], what: str, source: ConnectomeSource) -> RemoteFile:
    """Take the one file, the largest where there are several."""
    if not files:
        raise ValidationError(
            f"{source.display_name} has no {what} where it was published; is the entry in "
            f"{sources_file()} right?"
        )
    return max(files, key=lambda file: file.size or 0)


def _drop_originals(run: _Run, paths: Sequence[Path], keep: bool) -> None:
    if keep:
        return
    for path in paths:
        path.unlink(missing_ok=True)
    raw = run.folder / _RAW
    if raw.is_dir() and not any(raw.iterdir()):
        raw.rmdir()


# By name


def _fetchers() -> dict[str, Callable[..., FetchResult]]:
    return {
        "gsp1000": fetch_gsp1000,
        "dtor985": fetch_dtor985,
        "hcp1065": fetch_hcp1065,
        **{f"dtor985_{v}": partial(fetch_dtor985_subsample, v) for v in _VARIANTS},
    }


def fetcher_of(name: str) -> Callable[..., FetchResult]:
    """Find the function that fetches a connectome.

    Parameters
    ----------
    name : str
        Case is ignored.

    Returns
    -------
    callable
        With the folder as its only positional argument.

    Raises
    ------
    ValidationError
        A ValueError: no public connectome has this name, or it is one of the user's own that
        cannot be converted.
    """
    source = find_source(name)
    fetcher = _fetchers().get(source.name)
    if fetcher is None:
        raise ValidationError(
            f"{source.name} is in {sources_file()}, but there is no way to convert it; download "
            "it by hand and use `lacuna-nipype connectome register`."
        )
    return fetcher


def key_is_missing(name: str) -> bool:
    """Whether a connectome needs a key that is neither in the environment nor configured."""
    service = _service_of(find_source(name))
    return service is not None and find_key(service) is None


def fetch_connectome(name: str, output_dir: Path | str, **options: Any) -> FetchResult:
    """Fetch a public connectome by name.

    Parameters
    ----------
    name : str
        As :func:`lacuna_nipype.connectomes.public.list_fetchable_connectomes` has it; case is
        ignored.
    output_dir : path-like
    **options
        Of the function for this connectome, e.g. :func:`fetch_gsp1000`.

    Returns
    -------
    FetchResult

    Raises
    ------
    ValidationError
        A ValueError: no public connectome has this name.
    """
    return fetcher_of(name)(output_dir, **options)


def default_output_dir(name: str) -> Path:
    """Give the folder that ``fetch`` uses when none is given.

    Parameters
    ----------
    name : str

    Returns
    -------
    Path
        ``connectomes/<name>`` in the data folder.
    """
    return get_data_dir() / "connectomes" / find_source(name).name


def get_fetch_status(name: str) -> dict[str, Any]:
    """Tell what there is of a public connectome on this machine.

    Parameters
    ----------
    name : str
        Case is ignored.

    Returns
    -------
    dict
        ``downloaded``: something came from the server; ``processed``: what a run reads is there;
        ``registered``: under which the registry knows it or not (bool); ``location``: its folder
        as text, None where there is nothing; ``size_bytes`` of that folder.

    Raises
    ------
    ValidationError
        A ValueError: no public connectome has this name.
    """
    source = find_source(name)
    entry = find_registered(source.register_name)
    folder = recorded_folder(source.name) or default_output_dir(source.name)
    results = result_files(source, folder)
    files = [p for p in folder.rglob("*") if p.is_file()] if folder.is_dir() else []
    originals = [p for p in files if not p.name.startswith(".") and p not in results]
    return {
        "downloaded": bool(originals or results),
        "processed": bool(results),
        "registered": entry is not None,
        "location": str(folder) if files else None,
        "size_bytes": sum(path.stat().st_size for path in files),
    }


def result_files(source: ConnectomeSource, folder: Path) -> list[Path]:
    """List the files of a fetched connectome that runs read.

    Parameters
    ----------
    source : ConnectomeSource
    folder : Path
        Where it was fetched to.

    Returns
    -------
    list of Path
    """
    if source.type == "functional":
        return sorted((folder / _PROCESSED).glob("*.h5"))
    return [path for path in [folder / f"{source.name}.tck"] if path.is_file()]


def clean_fetched(name: str) -> tuple[list[Path], int]:
    """Remove what a fetch left besides its result: originals, unfinished and unpacked pieces.

    Parameters
    ----------
    name : str

    Returns
    -------
    removed : list of Path
    n_bytes : int
        Freed.

    Raises
    ------
    ValidationError
        A ValueError: no public connectome has this name.
    """
    source = find_source(name)
    folder = recorded_folder(source.name) or default_output_dir(source.name)
    removed, n_bytes = [], 0
    folders = [folder / _RAW, folder / "unpacked", folder / "gsp1000_unpacked"]
    pieces = [p for part in folders if part.is_dir() for p in part.rglob("*") if p.is_file()]
    if folder.is_dir():
        pieces += [p for p in folder.glob(".*.part*") if p.is_file()]
    for path in sorted(set(pieces)):
        n_bytes += path.stat().st_size
        path.unlink()
        removed.append(path)
    for part in folders:
        shutil.rmtree(part, ignore_errors=True)
    return removed, n_bytes
