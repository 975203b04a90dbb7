"""GSP1000: archives of images on Dataverse, which become HDF5 files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from lacuna_nipype.core.exceptions import LacunaError, ValidationError
from lacuna_nipype.core.files import read_json, write_json
from lacuna_nipype.io.fetching.frame import (
    FetchRun,
    Plan,
    Steps,
    base_name,
    run_fetch,
    with_suffix,
)
from lacuna_nipype.io.fetching.places import RAW
from lacuna_nipype.io.fetching.records import FetchConfig, FetchResult, ProgressCallback
from lacuna_nipype.remote.download import RemoteFile

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
MASK_SUFFIXES = (".nii.gz", ".nii")
#: Says, beside the HDF5 files, that they are all there.
FINISHED = "gsp1000_finished.json"
# Subjects of the whole GSP1000, which its batches divide; and those of a test.
_ALL_SUBJECTS, _TEST_SUBJECTS = 1000, 10


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
    if batches < 1:
        raise ValidationError(f"A connectome cannot be cut into {batches} batches.")
    config = FetchConfig(
        "gsp1000",
        Path(output_dir),
        api_key=api_key,
        batches=batches,
        keep_original=keep_original,
        register=register,
        register_name=register_name,
        force=force,
        resume=resume,
        test_mode=test_mode,
        skip_checksum=skip_checksum,
    )
    steps = Steps(_plan, _is_done, _discard_test)
    return run_fetch(steps, config, progress=progress_callback, verbose=verbose)


def _plan(run: FetchRun) -> Plan:
    from lacuna_nipype.connectomes.gsp1000 import convert_gsp1000_archives, converted_archives
    from lacuna_nipype.remote.services import list_dataverse

    config, processed = run.config, run.result
    server, data_set = run.source.dataverse_server, run.source.persistent_id
    if data_set is None:
        raise ValidationError("GSP1000 has no persistent_id in the table of sources; set it.")
    listing = run.ask("Dataverse", list_dataverse, server, data_set)
    archives = sorted(with_suffix(listing, ARCHIVE_SUFFIXES), key=lambda file: file.name)
    if not archives:
        raise ValidationError(
            f"{data_set} on {server} holds no archive; is it the right data set?"
        )
    mask = _brain_mask(run, listing)
    if config.test_mode:
        archives = archives[:1]
    size = _TEST_SUBJECTS if config.test_mode else max(1, _ALL_SUBJECTS // config.batches)
    done = {"Archives": [base_name(file) for file in archives], "TestMode": config.test_mode}
    return Plan(
        archives,
        lambda paths: run.convert(
            lambda progress: convert_gsp1000_archives(
                paths, mask, processed, size,
                scratch=run.folder, max_subjects=_TEST_SUBJECTS if config.test_mode else None,
                keep_original=config.keep_original, overwrite=config.force, progress=progress,
            )
        ),
        frozenset(converted_archives(processed)) if processed.is_dir() else frozenset(),
        lambda: write_json(processed / FINISHED, done),
    )  # fmt: skip


def _is_done(run: FetchRun) -> bool:
    """Whether an earlier call of the same kind came to its end, and its files are there."""
    from lacuna_nipype.connectomes.gsp1000 import converted_archives

    processed = run.result
    try:
        content = read_json(processed / FINISHED)
        names, was_test = list(content["Archives"]), bool(content["TestMode"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if was_test != run.config.test_mode:
        return False
    if was_test:
        return any(processed.glob("*.h5"))
    return set(names) <= set(converted_archives(processed))


def _discard_test(run: FetchRun) -> None:
    """Remove what a test left where the whole is wanted."""
    if not run.config.test_mode and run.result.is_dir() and _is_left_by_a_test(run.result):
        shutil.rmtree(run.result)


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


def _brain_mask(run: FetchRun, listing: Sequence[RemoteFile]) -> Path:
    """Brain mask of the data set where it has one, else the standard one."""
    from lacuna_nipype.atlases.masks import load_brain_mask
    from lacuna_nipype.remote.services import plain_file

    images = with_suffix(listing, MASK_SUFFIXES)
    masks = [file for file in images if "mask" in base_name(file).lower()]
    if run.source.mask_url:
        masks = [plain_file(run.source.mask_url)]
    if len(masks) == 1:
        (path,) = run.download(masks, run.folder / RAW)
        return path
    run.note("The data set holds no brain mask; TemplateFlow's at 2 mm is taken.")
    return load_brain_mask(run.source.space, 2)
