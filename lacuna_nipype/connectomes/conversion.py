"""Tractograms of TrackVis as .tck files: one file, or a folder of bundles as one tractogram.

The work is done by :mod:`lacuna_nipype.connectomes.tractogram_convert`, streamline by streamline;
here are the two calls that scripts and the fetch commands use, with what only they look at: the
header of a .trk file in itself, which files of a folder belong to the brain, and outputs that are
there already.
"""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.tractogram import check_tck
from lacuna_nipype.connectomes.tractogram_convert import merge_tractograms
from lacuna_nipype.connectomes.tractogram_formats import (
    TRACTOGRAM_SUFFIXES,
    read_tractogram_header,
    tractogram_sidecar,
    tractogram_suffix,
)
from lacuna_nipype.core.exceptions import ProcessingError, ValidationError
from lacuna_nipype.core.files import fingerprint

#: Cranial nerves lie outside the brain: no lesion of it cuts them, and no parcel holds their ends.
CRANIAL_NERVES = ("cranial nerve", "cranial_nerve", "cranial-nerve", "cranialnerve")

_TRK_SUFFIXES = (".trk", ".trk.gz")
_TRK_HEADER_BYTES = 1000
# Bytes of the header: voxel sizes (3 floats), vox_to_ras (16 floats), and its own length.
_VOXEL_SIZES, _VOX_TO_RAS, _LENGTH = 12, 440, 996
# Voxel sizes are often rounded in headers; a difference that moves a point by mm is larger.
_SAME_SIZE = 0.01
# Folder of extended attributes that the archives of one operating system hold.
_NO_DATA = "__MACOSX"

_Progress = Callable[[int, int], None]


def trk_to_tck(
    trk_path: str | os.PathLike[str],
    output_path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: _Progress | None = None,
) -> Path:
    """Write a tractogram as a .tck file that MRtrix maps without gaps.

    Points are in scanner space (mm, RAS+) and in the order of the source; the header has their
    step size, for which irregular streamlines are resampled (see
    :func:`lacuna_nipype.connectomes.tractogram_convert.convert_tractogram`). The source is read
    streamline by streamline, so memory does not grow with it.

    Parameters
    ----------
    trk_path : path-like
        A .trk or .trk.gz file; .trx, .tt.gz and .tck are read as well.
    output_path : path-like
        File to write, ending in .tck, with a JSON file of the same name beside it.
    overwrite : bool, optional
        Write again what is there already; otherwise it is returned as it is.
    progress : callable, optional
        Called with (streamlines done, of all) where the source tells their number.

    Returns
    -------
    pathlib.Path
        The .tck file.

    Raises
    ------
    FileNotFoundError
        The source does not exist.
    ValidationError
        A ValueError: a name has another extension; the source is damaged, truncated or empty;
        voxel sizes in its header contradict its affine; or the output, which is not to be
        overwritten, was made from something else.
    ProcessingError
        The output does not hold as many streamlines as the source.
    """
    source, target = Path(trk_path), Path(output_path)
    if tractogram_suffix(source) is None:
        raise ValidationError(
            f"{source} is not a tractogram; give a file that ends in "
            f"{', '.join(TRACTOGRAM_SUFFIXES)}."
        )
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; check the path.")
    return _convert([source], target, overwrite, progress)


def merge_trk_to_tck(
    source_dir: str | os.PathLike[str],
    output_path: str | os.PathLike[str],
    *,
    exclude_patterns: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: _Progress | None = None,
) -> Path:
    """Write all bundles of a folder one after the other into one .tck file.

    Bundles may have different affines: what is joined are positions in scanner space (mm, RAS+).

    Parameters
    ----------
    source_dir : path-like
        Folder that is searched for .trk and .trk.gz files, with all folders in it. Hidden files
        are left out. Files are taken in the order of their names, folders included.
    output_path : path-like
        File to write, ending in .tck, with a JSON file of the same name beside it that lists the
        bundles and their numbers of streamlines.
    exclude_patterns : sequence of str, optional
        A file is left out if its path below ``source_dir`` holds one of these texts, in upper
        or lower case. By default those that name cranial nerves; nothing is left out for ``()``.
    overwrite : bool, optional
        Write again what is there already; otherwise it is returned as it is.
    progress : callable, optional
        Called with (streamlines done, of all) where all sources tell their number.

    Returns
    -------
    pathlib.Path
        The .tck file.

    Raises
    ------
    FileNotFoundError
        The folder does not exist.
    ValidationError
        As for :func:`trk_to_tck`; or no file is left; or a bundle is there packed and unpacked.
    SpatialMismatchError
        JSON files beside the bundles name different spaces.
    ProcessingError
        The output does not hold as many streamlines as the sources.
    """
    patterns = CRANIAL_NERVES if exclude_patterns is None else exclude_patterns
    return _convert(find_bundles(source_dir, patterns), Path(output_path), overwrite, progress)


def find_bundles(
    source_dir: str | os.PathLike[str], exclude_patterns: Sequence[str] = CRANIAL_NERVES
) -> list[Path]:
    """List the .trk and .trk.gz files of a folder, see :func:`merge_trk_to_tck`.

    Returns
    -------
    list of pathlib.Path
        At least one.
    """
    folder = Path(source_dir)
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; check the path.")
    if not folder.is_dir():
        raise ValidationError(f"{folder} is not a folder; give the one that holds the bundles.")
    if isinstance(exclude_patterns, str):
        exclude_patterns = (exclude_patterns,)
    texts = [text.lower() for text in exclude_patterns]
    found = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*.trk*")
        if path.name.endswith(_TRK_SUFFIXES) and path.is_file()
    }
    bundles = {
        name: path
        for name, path in sorted(found.items())
        if not any(part.startswith(".") or part == _NO_DATA for part in Path(name).parts)
        and not any(text in name.lower() for text in texts)
    }
    if not bundles:
        raise ValidationError(
            f"{folder} holds no .trk or .trk.gz file to merge ({len(found)} were left out by "
            "their names); check the path and the patterns to exclude."
        )
    for name in bundles:
        if f"{name}.gz" in bundles:
            raise ValidationError(
                f"{bundles[name]} is there packed as well, as {name}.gz, and its streamlines "
                "would count twice; remove one of the two."
            )
    return list(bundles.values())


def _convert(
    sources: Sequence[Path], target: Path, overwrite: bool, progress: _Progress | None
) -> Path:
    if target.suffix == ".tck" and target.exists() and not overwrite:
        _check_kept(sources, target)
        return target
    for source in sources:
        check_trk_header(source)
    record = merge_tractograms(sources, target, overwrite=overwrite, progress=progress)
    written = check_tck(target).count
    if written != record.n_streamlines:
        raise ProcessingError(
            f"Writing {target}",
            f"{written} streamlines are in it instead of {record.n_streamlines}; remove it and "
            "convert again.",
        )
    return target


def _check_kept(sources: Sequence[Path], target: Path) -> None:
    """Refuse to pass off a file as made from these sources when it says otherwise."""
    origin = tractogram_sidecar(target)[1].get("ConvertedFrom")
    if not isinstance(origin, list) or not all(isinstance(part, dict) for part in origin):
        return
    if [part.get("Fingerprint") for part in origin] != [fingerprint(path) for path in sources]:
        names = ", ".join(str(part.get("Name")) for part in origin[:3])
        more = f" and {len(origin) - 3} more" if len(origin) > 3 else ""
        raise ValidationError(
            f"{target} is there already and was made from other data ({names}{more}); choose "
            "another name, or overwrite it."
        )


def check_trk_header(path: str | os.PathLike[str]) -> None:
    """Refuse a .trk file whose header contradicts itself about where its points are.

    Points are stored in mm along the axes of the voxels, so they are divided by the voxel sizes
    before ``vox_to_ras`` takes them to scanner space. Where the sizes are not those of the
    matrix, the tractogram comes out stretched, and one of the two belongs to another image.

    Parameters
    ----------
    path : path-like
        A tractogram; of other formats than .trk and .trk.gz only the header is read.

    Raises
    ------
    ValidationError
        As described; or the header cannot be read (see
        :func:`lacuna_nipype.connectomes.tractogram_formats.read_tractogram_header`).
    """
    path = Path(path)
    # nibabel divides by the voxel sizes before anybody has looked at them.
    with np.errstate(divide="ignore", invalid="ignore"):
        suffix = read_tractogram_header(path).suffix
    if suffix not in _TRK_SUFFIXES:
        return
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as stream:
        header = stream.read(_TRK_HEADER_BYTES)
    order = "<" if struct.unpack_from("<i", header, _LENGTH)[0] == _TRK_HEADER_BYTES else ">"
    sizes = np.frombuffer(header, f"{order}f4", 3, _VOXEL_SIZES).astype(float)
    matrix = np.frombuffer(header, f"{order}f4", 16, _VOX_TO_RAS).reshape(4, 4).astype(float)
    with np.errstate(over="ignore", invalid="ignore"):
        columns = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))
    if not (np.isfinite(matrix).all() and np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValidationError(
            f"{path} has voxel sizes ({_listed(sizes)}) or a vox_to_ras that no image can have; "
            "export it again with the image it was made from."
        )
    if (np.abs(columns - sizes) > _SAME_SIZE * sizes).any():
        raise ValidationError(
            f"{path} has voxels of {_listed(sizes)} mm but a vox_to_ras for voxels of "
            f"{_listed(columns)} mm, so where its points are is not known; export it again with "
            "the image it was made from."
        )


def _listed(sizes: NDArray[np.float64]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
