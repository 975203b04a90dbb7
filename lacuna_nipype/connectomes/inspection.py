"""What a connectome is: layout, size, precision, and what is wrong with its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import nibabel as nb
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.convert import first_subject
from lacuna_nipype.connectomes.functional import (
    ConnectomeFile,
    FunctionalConnectome,
    connectome_paths,
    iter_subjects,
    open_connectome,
    read_connectome_file,
)
from lacuna_nipype.connectomes.hdf5 import DAMAGE, text_of
from lacuna_nipype.connectomes.ingest import (
    DuplicateCheck,
    sampled_rank,
    store_bytes,
    subject_digest,
)
from lacuna_nipype.connectomes.registry import content_fingerprint
from lacuna_nipype.connectomes.series import open_file
from lacuna_nipype.connectomes.store import BLOCK_BYTES, TileReader
from lacuna_nipype.connectomes.streamline_index import (
    find_tractogram,
    is_index,
    read_index_record,
)
from lacuna_nipype.connectomes.tractogram_check import share_outside_brain
from lacuna_nipype.connectomes.tractogram_convert import measure_step
from lacuna_nipype.connectomes.tractogram_formats import (
    iter_streamlines,
    read_tractogram_header,
    tractogram_sidecar,
    tractogram_suffix,
)
from lacuna_nipype.core.compression import INTEGER_LIMITS
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import parse_json

# Stored vectors have unit length but for the rounding of their coefficients.
_LENGTH_TOLERANCE = {"int16": 1e-3, "int8": 0.1}
_STREAMLINES_PER_REPORT = 10_000


def inspect_connectome(
    location: Path,
    *,
    check_data: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Say what a connectome holds.

    Parameters
    ----------
    location : Path
        Functional connectome (file or folder, in either layout), a tractogram of any
        format, or a streamline index.
    check_data : bool
        Read everything: count series that are not finite or constant and find subjects that
        occur twice (Lacuna's layout), check that every stored series is whole (store), or count
        streamlines and those with a coordinate that is not finite (tractogram).
    progress : callable, optional
        Called with (subjects, tiles or streamlines checked, of all).

    Returns
    -------
    dict
        JSON-safe. ``Layout`` is ``lacuna``, ``store``, ``tractogram`` or ``index``;
        ``Fingerprint`` is that of :func:`~lacuna_nipype.connectomes.registry.content_fingerprint`;
        the other keys depend on the layout.

    Raises
    ------
    ValidationError
        The connectome is missing or damaged, or its files disagree.
    """
    if tractogram_suffix(location) is not None:
        found = _inspect_tractogram(location)
        if check_data:
            found["Check"] = _check_tractogram(location, found["NumberOfStreamlines"], progress)
        return found
    if location.is_file() and is_index(location):
        return _inspect_index(location)
    connectome, space = open_undeclared(location)
    stores = [file.precision is not None for file in connectome.files]
    if any(stores) and not all(stores):
        raise ValidationError(
            f"{location} mixes files of a store with files in Lacuna's layout; keep them apart."
        )
    found = _describe(connectome, space) | {"Fingerprint": content_fingerprint(location)}
    if all(stores):
        found |= _describe_store(connectome.files)
        if check_data:
            found["Check"] = _check_store(connectome.files, progress)
    else:
        found |= _describe_series(connectome.files, found["Bytes"])
        if check_data:
            found["Check"] = _check_series(connectome.files, progress)
    return found


def open_undeclared(location: Path) -> tuple[FunctionalConnectome, str | None]:
    """Open a functional connectome although perhaps nothing says which space it is in.

    Parameters
    ----------
    location : Path
        File or folder.

    Returns
    -------
    FunctionalConnectome
        Its space is empty where none is declared.
    str or None
        TemplateFlow name of the declared space.

    Raises
    ------
    ValidationError
        A file is damaged, or the files disagree.
    """
    files = tuple(read_connectome_file(path) for path in connectome_paths(location))
    try:
        connectome = open_connectome(location)
    except ValidationError as error:
        if "add --functional-space" not in str(error):
            raise
        return FunctionalConnectome(files, ""), None
    return connectome, connectome.space


def _inspect_tractogram(path: Path) -> dict[str, Any]:
    header = read_tractogram_header(path)
    step = measure_step(header)
    return {
        "Layout": "tractogram",
        "Path": str(path),
        "Bytes": path.stat().st_size,
        "Space": tractogram_sidecar(path)[1].get("Space"),
        "NumberOfStreamlines": header.count,
        "DataType": header.datatype,
        "StepSize": header.step_size,
        "MeasuredStepSize": round(step.median, 6),
        "RegularSteps": step.regular,
        "ShareOutsideBrain": round(share_outside_brain(path), 6),
        "Fingerprint": content_fingerprint(path),
    }


def _inspect_index(path: Path) -> dict[str, Any]:
    record = read_index_record(path)
    try:
        # Another file than the one indexed is for the user to know, not a reason to stop.
        state = str(find_tractogram(record))
    except ValidationError as error:
        state = str(error)
    return {
        "Layout": "index",
        "Path": str(path),
        "Bytes": path.stat().st_size,
        "Space": record.space,
        "NumberOfStreamlines": record.n_streamlines,
        "NumberOfPoints": record.n_points,
        "EmptyStreamlines": record.n_empty,
        "OnePointStreamlines": record.n_one_point,
        "GridShape": list(record.grid.shape),
        "VoxelSize": [round(float(size), 6) for size in record.grid.voxel_sizes],
        "Upsampling": record.upsample,
        "StepSize": record.step_size,
        "Tractogram": state,
        "TractogramFingerprint": record.fingerprint,
        "Fingerprint": content_fingerprint(path),
    }


def _describe(connectome: FunctionalConnectome, space: str | None) -> dict[str, Any]:
    files, grid = connectome.files, connectome.grid
    return {
        "Layout": "store" if files[0].precision else "lacuna",
        "NumberOfFiles": len(files),
        "NumberOfSubjects": connectome.n_subjects,
        "NumberOfTimePoints": sorted({file.n_timepoints for file in files}),
        "NumberOfVoxels": connectome.n_voxels,
        "Space": space,
        "GridShape": list(grid.shape),
        "VoxelSize": [round(float(size), 6) for size in grid.voxel_sizes],
        "FirstVoxel": [round(float(value), 6) for value in grid.affine[:3, 3]],
        "Orientation": "".join(nb.aff2axcodes(grid.affine)),
        "Bytes": sum(path.stat().st_size for path in connectome.paths),
    }


def _describe_store(files: Sequence[ConnectomeFile]) -> dict[str, Any]:
    records: dict[str, list[NDArray[Any]]] = {}
    sources: list[str] = []
    for file in files:
        with open_file(file.path) as handle:
            # Their shapes were checked with the header.
            for key in ("rank", "energy_lost", "energy_lost_worst", "error_r", "n_constant"):
                records.setdefault(key, []).append(handle[key][()])
            sources += _recorded_sources(handle)
    values = {key: np.concatenate(parts) for key, parts in records.items()}
    return {
        "CoefficientType": sorted({file.precision.kind for file in files if file.precision}),
        "RankMinimum": int(values["rank"].min()),
        "RankMedian": float(np.median(values["rank"])),
        "RankMaximum": int(values["rank"].max()),
        "EnergyLostMaximum": float(values["energy_lost"].max()),
        "EnergyLostWorstVoxel": float(values["energy_lost_worst"].max()),
        "CorrelationErrorMaximum": float(values["error_r"].max()),
        "ConstantVoxelsMaximum": int(values["n_constant"].max()),
        "Sources": sources,
    }


def _recorded_sources(handle: h5py.File) -> list[str]:
    """Names of the source files; none where the record is damaged."""
    try:
        content = parse_json(text_of(handle.attrs.get("sources", "[]")))
    except DAMAGE:
        return []
    return [str(name) for name in content] if isinstance(content, list) else []


def _describe_series(files: Sequence[ConnectomeFile], size: int) -> dict[str, Any]:
    storages = []
    for file in files:
        with h5py.File(file.path, "r", locking=False) as handle:
            series = handle["timeseries"]
            storages.append((series.compression, series.chunks))
    ranks: dict[int, int] = {}
    not_finite = 0
    for file in files:
        if file.n_timepoints not in ranks:
            series = first_subject(file)
            ranks[file.n_timepoints] = sampled_rank(series)
            not_finite += int((~np.isfinite(series)).any(axis=0).sum())
    converted = {
        kind: sum(
            store_bytes(file.n_subjects, file.n_voxels, ranks[file.n_timepoints], kind)
            for file in files
        )
        for kind in INTEGER_LIMITS
    }
    return {
        "Compression": sorted({str(compression or "none") for compression, _ in storages}),
        "Chunks": sorted({"x".join(map(str, chunks or ())) or "none" for _, chunks in storages}),
        "SeriesNotFiniteOfFirstSubject": not_finite,
        "RankOfFirstSubject": max(ranks.values()),
        "BytesAsStore": converted,
        "SavedAsStorePercent": {
            kind: round(100 * (1 - new / size), 1) for kind, new in converted.items()
        },
    }


@dataclass
class _SeriesCount:
    """Series of a connectome that cannot be correlated."""

    not_finite: int = 0
    constant: int = 0
    most_constant: int = 0
    without_variation: list[str] = field(default_factory=list)
    twice: list[list[str]] = field(default_factory=list)


def _check_series(
    files: Sequence[ConnectomeFile], progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    count, duplicates = _SeriesCount(), DuplicateCheck()
    total, done = sum(file.n_subjects for file in files), 0
    for file in files:
        for number, series in enumerate(iter_subjects(file), start=1):
            name = f"Subject {number} of {file.path.name}"
            finite = np.isfinite(series).all(axis=0)
            constant = finite & (series == series[0]).all(axis=0)
            count.not_finite += int((~finite).sum())
            count.constant += int(constant.sum())
            unusable = int((constant | ~finite).sum())
            count.most_constant = max(count.most_constant, unusable)
            if unusable == file.n_voxels:
                count.without_variation.append(name)
            pairs = duplicates.pairs([name], [subject_digest(series)])
            count.twice += [list(pair) for pair in pairs]
            done += 1
            if progress is not None:
                progress(done, total)
    return {
        "SeriesNotFinite": count.not_finite,
        "SeriesConstant": count.constant,
        "UnusableVoxelsOfASubjectMaximum": count.most_constant,
        "SubjectsWithoutVariation": count.without_variation,
        "SubjectsTwice": count.twice,
    }


def _check_tractogram(
    path: Path, declared: int | None, progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    """Read every streamline; formats that end at a mark or a count may hold fewer than said."""
    count = empty = not_finite = 0
    for count, streamline in enumerate(iter_streamlines(path), start=1):
        empty += len(streamline) == 0
        not_finite += not np.isfinite(streamline).all()
        if progress is not None and declared and count % _STREAMLINES_PER_REPORT == 0:
            progress(min(count, declared), declared)
    return {
        "Streamlines": count,
        "StreamlinesAgreeWithHeader": None if declared is None else count == declared,
        "StreamlinesEmpty": empty,
        "StreamlinesNotFinite": int(not_finite),
    }


def _check_store(
    files: Sequence[ConnectomeFile], progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    """Read every tile; a stored series is whole if its length is one, or zero if constant."""
    damaged, done = 0, 0
    readers = [TileReader(file) for file in files]
    total = sum(reader.n_tiles for reader in readers)
    for file, reader in zip(files, readers, strict=True):
        kind = file.precision.kind if file.precision else "int16"
        with reader:
            for tile in range(reader.n_tiles):
                coefficients = reader.read("coefficients", tile, 1)[0]
                scale = reader.read("scale", tile, 1)[0]
                damaged += _damaged_series(coefficients, scale, _LENGTH_TOLERANCE[kind])
                done += 1
                if progress is not None:
                    progress(done, total)
    return {"SeriesDamaged": damaged}


def _damaged_series(
    coefficients: NDArray[Any], scale: NDArray[np.float32], tolerance: float
) -> int:
    """Count series of a tile (subjects, rank, voxels) whose length is neither one nor zero."""
    damaged = 0
    per_block = max(1, BLOCK_BYTES // (8 * coefficients[0].size))
    for start in range(0, len(coefficients), per_block):
        values = coefficients[start : start + per_block].astype(np.float64)
        part = scale[start : start + per_block].astype(np.float64)
        length = np.sqrt(np.einsum("skv,skv->sv", values, values)) * part
        whole = (np.abs(length - 1) <= tolerance) | ((part == 0) & ~values.any(axis=1))
        damaged += int((~whole).sum())
    return damaged
