"""dTOR985, its subsamples and HCP1065: tractograms, which become .tck files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from lacuna_nipype.connectomes.public import find_source, sources_file
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.io.fetching.frame import FetchRun, Plan, Steps, run_fetch, with_suffix
from lacuna_nipype.io.fetching.places import UNPACKED
from lacuna_nipype.io.fetching.records import FetchConfig, FetchResult, ProgressCallback

VARIANTS = ("10pct", "25pct")
TRACTOGRAM_SUFFIXES = (".trk", ".trk.gz")


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
        See :func:`.fetch_gsp1000`.
    progress_callback, verbose
        See :func:`.fetch_gsp1000`.

    Returns
    -------
    FetchResult
        A .tck file that is there already is kept unless ``force``.

    Raises
    ------
    AuthenticationError, DownloadError, ValidationError, ProcessingError
        See :func:`.fetch_gsp1000`.
    """
    config = FetchConfig(
        "dtor985",
        Path(output_dir),
        api_key=api_key,
        keep_original=keep_original,
        register=register,
        register_name=register_name,
        force=force,
        resume=resume,
        skip_checksum=skip_checksum,
    )
    return run_fetch(Steps(_plan_dtor985), config, progress=progress_callback, verbose=verbose)


def _plan_dtor985(run: FetchRun) -> Plan:
    from lacuna_nipype.connectomes.conversion import trk_to_tck
    from lacuna_nipype.remote.services import FIGSHARE_API, list_figshare

    article = run.source.article_id
    if article is None:
        raise ValidationError("dTOR985 has no article_id in the table of sources; set it.")
    api = run.source.download_url or FIGSHARE_API
    found = with_suffix(run.ask("figshare", list_figshare, api, article), TRACTOGRAM_SUFFIXES)
    if not found:
        raise ValidationError(
            f"{run.source.display_name} has no tractogram (.trk) where it was published; is the "
            f"entry in {sources_file()} right?"
        )

    def convert(originals: Sequence[Path]) -> None:
        (original,) = originals
        run.convert(
            lambda progress: trk_to_tck(
                original, run.result, overwrite=run.config.force, progress=progress
            )
        )

    return Plan([max(found, key=lambda file: file.size or 0)], convert)


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
    if variant not in VARIANTS:
        raise ValidationError(
            f"There is no subsample {variant!r} of dTOR985; known are {', '.join(VARIANTS)}."
        )
    source = find_source(f"dtor985_{variant}")
    if source.download_url is None:
        raise ValidationError(
            f"The address of {source.name} on OSF is not known to this version; put it into "
            f'{sources_file()} as {{"{source.name}": {{"download_url": '
            '"https://osf.io/<id>/download"}}.'
        )
    config = FetchConfig(
        source.name,
        Path(output_dir),
        register=register,
        register_name=register_name,
        force=force,
        resume=resume,
        skip_checksum=skip_checksum,
    )
    # What is downloaded is the result.
    steps = Steps(_plan_subsample, folder="")
    return run_fetch(steps, config, progress=progress_callback, verbose=verbose)


def _plan_subsample(run: FetchRun) -> Plan:
    from lacuna_nipype.remote.services import plain_file

    source = run.source
    wanted = plain_file(
        source.download_url or "", run.result.name, source.size_bytes, source.md5, source.sha256
    )
    return Plan([wanted], _check_download)


def _check_download(originals: Sequence[Path]) -> None:
    """Remove what is not a tractogram, or not a whole one: nothing else would."""
    from lacuna_nipype.connectomes.tractogram import check_tck

    for path in originals:
        try:
            check_tck(path)
        except ValidationError:
            path.unlink()
            raise


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
    config = FetchConfig(
        "hcp1065",
        Path(output_dir),
        keep_original=keep_original,
        register=register,
        register_name=register_name,
        force=force,
        resume=resume,
        skip_checksum=skip_checksum,
    )
    return run_fetch(Steps(_plan_hcp1065), config, progress=progress_callback, verbose=verbose)


def _plan_hcp1065(run: FetchRun) -> Plan:
    from lacuna_nipype.remote.services import github_release

    source = run.source
    if source.download_url is None:
        raise ValidationError("HCP1065 has no download_url in the table of sources; set it.")
    wanted = github_release(
        source.download_url, None, source.size_bytes, source.md5, source.sha256
    )
    return Plan([wanted], lambda originals: _merge_bundles(run, originals))


def _merge_bundles(run: FetchRun, originals: Sequence[Path]) -> None:
    """Unpack the bundles and write them as one tractogram."""
    from lacuna_nipype.connectomes.archives import iter_archive
    from lacuna_nipype.connectomes.conversion import merge_trk_to_tck

    (archive,) = originals
    unpacked = run.folder / UNPACKED
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        run.note("Unpacking the bundles.")
        for _ in iter_archive(
            archive, unpacked, wanted=lambda name: name.lower().endswith(TRACTOGRAM_SUFFIXES)
        ):
            pass
        run.convert(
            lambda progress: merge_trk_to_tck(
                unpacked, run.result, overwrite=run.config.force, progress=progress
            )
        )
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
