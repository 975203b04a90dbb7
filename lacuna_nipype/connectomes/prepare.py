"""A functional connectome reduced to one matrix per parcellation, written and read back.

A matrix is a table with the parcels' names on both axes (header, and first column ``name``) and
``n/a`` for parcels without connectivity, and a JSON of the same name that says where it is from.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from lacuna_nipype import __version__
from lacuna_nipype.connectomes.functional import (
    ConnectomeFile,
    FunctionalConnectome,
    iter_subjects,
    open_connectome,
)
from lacuna_nipype.connectomes.store import TILE
from lacuna_nipype.core.afnm import FisherMean, parcel_series
from lacuna_nipype.core.exceptions import LacunaError, SpatialMismatchError, ValidationError
from lacuna_nipype.core.files import open_regular, read_json, write_json, write_table
from lacuna_nipype.core.parcels import Parcels
from lacuna_nipype.core.spaces import declared_space

# Short names of the BIDS entities of an atlas in file names.
ENTITY_KEYS = {"atlas": "atlas", "segmentation": "seg", "scale": "scale"}
MEASURES = {
    "z": "Mean over subjects of Fisher's z of the Pearson correlation of parcel-mean series",
    "r": "tanh of the mean over subjects of Fisher's z of the Pearson correlation of "
    "parcel-mean series",
}
SYMMETRY_TOLERANCE = 1e-6
# Parcel sums of the subjects of a store file that are worked on together.
SUMS_BYTES = 256_000_000
# Subjects of a tile of the store that are turned into floating point at a time.
SUBJECTS_AT_ONCE = 32
# How many names a message lists.
LISTED = 10


@dataclass(frozen=True, eq=False)
class Parcellation:
    """Parcels to reduce a connectome to.

    Parameters
    ----------
    name : str
        Of the atlas, for sidecars.
    parcels : Parcels
        On the connectome's grid.
    entities : mapping, optional
        BIDS entities that identify the atlas (``atlas``, ``segmentation``, ``scale``); the
        letters and digits of the name otherwise.
    description : mapping, optional
        What else the sidecar says of the atlas.
    """

    name: str
    parcels: Parcels
    entities: Mapping[str, str] | None = None
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """Entities as they stand in file names."""
        entities = self.entities or {"atlas": _label(self.name)}
        return "_".join(
            f"{short}-{entities[key]}" for key, short in ENTITY_KEYS.items() if entities.get(key)
        )


@dataclass(frozen=True, eq=False)
class PreparedMatrix:
    """What was written for one parcellation.

    Parameters
    ----------
    z_file, r_file : Path
        Tables of mean Fisher z, and of its tanh; each with a JSON beside it.
    names : tuple of str
        Parcels, in the order of the atlas.
    missing : tuple of str
        Parcels without a voxel that varies in any subject of the connectome.
    n_subjects : int
    """

    z_file: Path
    r_file: Path
    names: tuple[str, ...]
    missing: tuple[str, ...]
    n_subjects: int


def _label(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "", text)


def connectome_label(location: Path) -> str:
    """Letters and digits of a connectome's file or folder name, for names of its matrices."""
    # Not resolve(): datasets under datalad are links whose names matter.
    name = location.absolute().name if location.is_dir() else location.stem
    return _label(name) or "connectome"


def prepare_matrix(
    location: Path,
    parcels: Parcels,
    target_dir: Path,
    *,
    name: str,
    entities: Mapping[str, str] | None = None,
    space: str | None = None,
    fingerprint: str | None = None,
    n_procs: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PreparedMatrix:
    """Reduce a connectome to the matrix of one parcellation.

    See :func:`prepare_matrices`, which does several in one pass.

    Parameters
    ----------
    location : Path
        File or folder of the connectome.
    parcels : Parcels
        On the connectome's grid.
    target_dir : Path
    name : str
        Name of the atlas.
    entities : mapping, optional
        BIDS entities of the atlas.
    space, fingerprint, n_procs, overwrite, progress
        As there.

    Returns
    -------
    PreparedMatrix
    """
    return prepare_matrices(
        open_connectome(location, space),
        [Parcellation(name, parcels, entities)],
        target_dir,
        label=connectome_label(location),
        fingerprint=fingerprint,
        n_procs=n_procs,
        overwrite=overwrite,
        progress=progress,
    )[0]


def prepare_matrices(
    connectome: FunctionalConnectome,
    parcellations: Sequence[Parcellation],
    target_dir: Path,
    *,
    label: str,
    fingerprint: str | None = None,
    n_procs: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[PreparedMatrix]:
    """Reduce a connectome to a matrix per parcellation, in one pass over all of its files.

    Parameters
    ----------
    connectome : FunctionalConnectome
        In Lacuna's layout or of the store, whose coefficients are correlated as they are.
    parcellations : sequence of Parcellation
    target_dir : Path
        Gets ``<label>_<atlas>_stat-<z|r>_relmat.tsv`` and ``.json``, each written atomically.
    label : str
        Stands for the connectome in file names, see :func:`connectome_label`.
    fingerprint : str, optional
        Identifies the content of the connectome in the sidecars.
    n_procs : int
        Files that are read at the same time, each by a process of its own.
    overwrite : bool
        Replace matrices that are there already.
    progress : callable, optional
        Called with (subjects done, subjects to do); file by file when several are read at once.

    Returns
    -------
    list of PreparedMatrix
        In the order of the parcellations.

    Raises
    ------
    ValidationError
        A matrix is there already, two parcellations would write one, or a parcellation has
        fewer than two parcels with voxels in the connectome.
    SpatialMismatchError
        Parcels lie on another grid than the connectome.
    """
    weights = [_brain_weights(connectome, item) for item in parcellations]
    paths = [
        {key: target_dir / f"{label}_{item.stem}_stat-{key}_relmat.tsv" for key in MEASURES}
        for item in parcellations
    ]
    _check_targets(paths, overwrite)
    means = _all_means(connectome, weights, n_procs, progress)
    prepared = []
    for item, own, mean, files in zip(parcellations, weights, means, paths, strict=True):
        names, z = item.parcels.names, mean.z_matrix()
        missing = tuple(name for name, n in zip(names, mean.n_varying, strict=True) if n == 0)
        sidecar = _sidecar(connectome, label, fingerprint, item, own, mean)
        for statistic, values in (("r", np.tanh(z)), ("z", z)):
            about = {"Statistic": statistic, "RelationshipMeasure": MEASURES[statistic]}
            write_json(files[statistic].with_suffix(".json"), {**about, **sidecar})
            write_table(files[statistic], _matrix_table(names, values))
        prepared.append(PreparedMatrix(files["z"], files["r"], names, missing, mean.n_subjects))
    return prepared


def _brain_weights(connectome: FunctionalConnectome, item: Parcellation) -> sp.csr_array:
    """Weights of the parcels over the connectome's voxels, in the order of its series."""
    grid = item.parcels.grid
    if not grid.same_as(connectome.grid):
        raise SpatialMismatchError(
            f"Atlas {item.name} ({grid.describe()}) is not on the grid of the connectome "
            f"({connectome.grid.describe()}); resample it first."
        )
    voxels = np.ravel_multi_index(tuple(connectome.files[0].voxels), grid.shape)
    weights = sp.csr_array(item.parcels.weights[:, voxels])
    if np.count_nonzero(weights.sum(axis=1)) < 2:
        raise ValidationError(
            f"Atlas {item.name} has fewer than two parcels with voxels inside the connectome's "
            "brain mask; check that both are in one space."
        )
    return weights


def _check_targets(paths: Sequence[Mapping[str, Path]], overwrite: bool) -> None:
    listed = [path for files in paths for path in files.values()]
    if len(set(listed)) < len(listed):
        raise ValidationError(
            "Two parcellations would write one matrix; give them names that differ in letters "
            "or digits."
        )
    existing = [path for path in listed if path.exists()]
    if existing and not overwrite:
        raise ValidationError(f"{existing[0]} exists already; add --overwrite to replace it.")


def _all_means(
    connectome: FunctionalConnectome,
    weights: Sequence[sp.csr_array],
    n_procs: int,
    progress: Callable[[int, int], None] | None,
) -> list[FisherMean]:
    """Mean of every parcellation over all files, merged in the order of the files."""
    total, done = connectome.n_subjects, 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    files = connectome.files
    n_workers = min(n_procs, len(files))
    parts: dict[int, list[FisherMean]] = {}
    if n_workers == 1:
        parts = {
            number: _file_means(file, weights, n_procs, advance)
            for number, file in enumerate(files)
        }
    else:
        # HDF5 inflates under one lock per process. Spawned workers inherit no open file.
        with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
            jobs = {
                pool.submit(_file_means, file, weights, n_procs // n_workers): number
                for number, file in enumerate(files)
            }
            try:
                for job in as_completed(jobs):
                    parts[jobs[job]] = job.result()
                    advance(files[jobs[job]].n_subjects)
            except BrokenProcessPool as error:
                raise LacunaError(
                    "A process that read the connectome was ended by the system, most likely "
                    "for want of memory; use a smaller --nprocs."
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    merged = parts[0]
    for number in range(1, len(files)):
        merged = [a.merge(b) for a, b in zip(merged, parts[number], strict=True)]
    return merged


def _file_means(
    file: ConnectomeFile,
    weights: Sequence[sp.csr_array],
    n_threads: int,
    advance: Callable[[int], None] | None = None,
) -> list[FisherMean]:
    """Mean of every parcellation over the subjects of one file."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

    means = [FisherMean.zeros(own.shape[0]) for own in weights]
    ends = np.cumsum([own.shape[0] for own in weights])[:-1]
    stacked = sp.csr_array(sp.vstack(weights, "csr"), dtype=np.float64)
    with threadpool_limits(limits=n_threads):
        if file.precision is None:
            for series in iter_subjects(file):
                rows = parcel_series(series, stacked)
                for mean, own in zip(means, np.split(rows, ends), strict=True):
                    mean.add_series(own)
                if advance is not None:
                    advance(1)
        else:
            for coefficients in _store_sums(file, stacked):
                for mean, own in zip(means, np.split(coefficients, ends), strict=True):
                    mean.add_coefficients(own)
                if advance is not None:
                    advance(1)
    return means


def _store_sums(file: ConnectomeFile, weights: sp.csr_array) -> Iterator[NDArray[np.float64]]:
    """Sum the coefficients of every parcel, subject by subject, shape (n_parcels, rank).

    Correlation does not mind the scale, so that the sums need not be made means. Voxels that are
    constant or not finite have coefficients of zero.
    """
    rank = file.precision.rank if file.precision else 0
    group = max(1, SUMS_BYTES // (8 * weights.shape[0] * max(rank, 1)))
    by_voxel = sp.csc_array(weights)
    with h5py.File(file.path, "r", locking=False) as handle:
        for first in range(0, file.n_subjects, group):
            subjects = slice(first, min(first + group, file.n_subjects))
            sums = np.zeros((subjects.stop - first, weights.shape[0], rank))
            for tile in range(-(-file.n_voxels // TILE)):
                own = by_voxel[:, tile * TILE : (tile + 1) * TILE]
                parcels = np.unique(own.indices)
                if len(parcels):
                    dense = np.zeros((len(parcels), TILE))
                    dense[:, : own.shape[1]] = sp.csr_array(own)[parcels].toarray()
                    sums[:, parcels] += _tile_sums(handle, file.path, tile, subjects, dense)
            yield from sums


def _tile_sums(
    handle: h5py.File, path: Path, tile: int, subjects: slice, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weighted sums over the voxels of a tile, shape (n_subjects, n_parcels, rank)."""
    try:
        integers = handle["coefficients"][tile, subjects]
        amplitude = handle["scale"][tile, subjects].astype(np.float64)
        amplitude *= handle["norm"][tile, subjects]
    except OSError as error:
        raise ValidationError(f"{path} is damaged; convert or copy it again.") from error
    out = np.empty((len(integers), len(weights), integers.shape[1]))
    for start in range(0, len(integers), SUBJECTS_AT_ONCE):
        block = slice(start, start + SUBJECTS_AT_ONCE)
        values = integers[block].astype(np.float64).transpose(0, 2, 1)
        np.matmul(weights * amplitude[block, np.newaxis], values, out=out[block])
    return out


def _sidecar(
    connectome: FunctionalConnectome,
    label: str,
    fingerprint: str | None,
    item: Parcellation,
    weights: sp.csr_array,
    mean: FisherMean,
) -> dict[str, Any]:
    names, totals = item.parcels.names, item.parcels.totals
    inside = np.asarray(weights.sum(axis=1)) / np.where(totals > 0, totals, 1.0)
    sometimes = (mean.n_varying > 0) & (mean.n_varying < mean.n_subjects)
    precision = connectome.files[0].precision
    described = {
        "Name": label,
        "SpaceName": connectome.space,
        "NumberOfFiles": len(connectome.files),
        "NumberOfSubjects": mean.n_subjects,
        "MaskDigest": connectome.files[0].mask_digest,
    }
    if fingerprint is not None:
        described["Fingerprint"] = fingerprint
    if precision is not None:
        described |= {
            "Layout": "store",
            "StoredType": precision.kind,
            "EnergyLost": max(f.precision.energy_lost for f in connectome.files if f.precision),
            "MeasuredErrorOfR": connectome.error_r,
        }
    return {
        "Description": "Functional connectivity between the parcels of an atlas. The diagonal is "
        "0 by convention; n/a marks parcels without a voxel that varies in some subject. A "
        "parcel that does not vary in a subject counts with z = 0 for that subject.",
        "Directed": False,
        "Weighted": True,
        "ValidDiagonal": False,
        "NonNegative": False,
        "SpaceName": connectome.space,
        "NumberOfSubjects": mean.n_subjects,
        "Atlas": {"Name": item.name, **item.description, "NumberOfParcels": len(names)},
        "Connectome": described,
        "ParcelCoverage": {
            "Description": "Share of each parcel inside the connectome's brain mask, 0 to 1.",
            "Values": dict(zip(names, np.round(inside, 6).tolist(), strict=True)),
        },
        "ParcelsWithoutConnectivity": _chosen(names, mean.n_varying == 0),
        "ParcelsConstantInSomeSubjects": _chosen(names, sometimes),
        "Software": {"Name": "lacuna-nipype", "Version": __version__},
    }


def _chosen(names: Sequence[str], which: NDArray[np.bool_]) -> list[str]:
    return [name for name, chosen in zip(names, which, strict=True) if chosen]


def _matrix_table(names: Sequence[str], values: NDArray[np.float64]) -> pd.DataFrame:
    table = pd.DataFrame(values, columns=list(names))
    # A parcel may be called "name" too.
    table.insert(0, "name", list(names), allow_duplicates=True)
    return table


@dataclass(frozen=True, eq=False)
class ConnectivityMatrix:
    """A matrix of connectivity between parcels.

    Parameters
    ----------
    path : Path
    names : tuple of str
        Of the parcels, on both axes.
    values : array, shape (n_parcels, n_parcels), float64
        Symmetric; NaN where there is no connectivity.
    statistic : str or None
        ``z`` or ``r``, as sidecar or file name say.
    space : str or None
        Space of the connectome, in TemplateFlow's name.
    n_subjects : int or None
    sidecar : mapping
        Content of the JSON beside the table; empty when there is none.
    """

    path: Path
    names: tuple[str, ...]
    values: NDArray[np.float64]
    statistic: str | None = None
    space: str | None = None
    n_subjects: int | None = None
    sidecar: Mapping[str, Any] = field(default_factory=dict)

    def same_parcels(self, names: Sequence[str]) -> bool:
        """Tell whether an atlas has exactly the parcels of this matrix, in whatever order."""
        return len(names) == len(self.names) and set(names) == set(self.names)

    def z_for(self, names: Sequence[str], atlas: str = "the atlas") -> NDArray[np.float64]:
        """Put Fisher's z into the order of an atlas.

        Parameters
        ----------
        names : sequence of str
            Parcels of the atlas.
        atlas : str
            How messages name it.

        Returns
        -------
        array, shape (n_parcels, n_parcels)

        Raises
        ------
        ValidationError
            The matrix holds correlations instead of z, or has other parcels.
        """
        if self.statistic not in (None, "z"):
            raise ValidationError(
                f"{self.path} holds {self.statistic} and not Fisher's z; give the matrix that "
                "has stat-z in its name."
            )
        if not self.same_parcels(names):
            sides = {
                f"only in {atlas}": [name for name in names if name not in set(self.names)],
                "only in the matrix": [name for name in self.names if name not in set(names)],
            }
            raise ValidationError(
                f"{self.path} has {len(self.names)} parcels that are not the {len(names)} of "
                f"{atlas}: "
                + "; ".join(f"{side}: {_listed(found)}" for side, found in sides.items() if found)
                + "."
            )
        place = {name: number for number, name in enumerate(self.names)}
        order = [place[name] for name in names]
        return self.values[np.ix_(order, order)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def read_matrix(path: Path) -> ConnectivityMatrix:
    """Read and check a connectivity matrix.

    Parameters
    ----------
    path : Path
        Table as :func:`prepare_matrices` writes it; the JSON of the same name is optional.

    Returns
    -------
    ConnectivityMatrix

    Raises
    ------
    ValidationError
        The file is missing or no such table, is not square, names differ between the axes or
        stand twice, a value is neither finite nor ``n/a``, or the matrix is not symmetric.
    """
    header, names, rows = _read_rows(path)
    if header != names:
        differing = next(
            (pair for pair in zip(header, names, strict=False) if pair[0] != pair[1]), None
        )
        where = f" (first {differing[0]!r} and {differing[1]!r})" if differing else ""
        raise ValidationError(
            f"{path} names {len(header)} columns and {len(names)} rows, which are not the same "
            f"parcels in the same order{where}."
        )
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise ValidationError(f"{path} has more than one parcel called {_listed(doubled)}.")
    values = _numbers(path, names, rows)
    known = np.isfinite(values)
    if np.any(known != known.T) or not np.allclose(
        np.where(known, values, 0), np.where(known, values, 0).T, rtol=0, atol=SYMMETRY_TOLERANCE
    ):
        raise ValidationError(f"{path} is not symmetric; connectivity has no direction here.")
    sidecar = _read_sidecar(path)
    named = re.search(r"_stat-([a-zA-Z0-9]+)_", path.name)
    space, n_subjects = sidecar.get("SpaceName"), sidecar.get("NumberOfSubjects")
    return ConnectivityMatrix(
        path,
        tuple(names),
        values,
        str(sidecar["Statistic"]) if "Statistic" in sidecar else named[1] if named else None,
        declared_space(space, path.with_suffix(".json")) if space else None,
        int(n_subjects) if isinstance(n_subjects, int) else None,
        sidecar,
    )


def _read_rows(path: Path) -> tuple[list[str], list[str], list[list[str]]]:
    """Names of the columns, names of the rows, and the cells between them."""
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as stream:
            lines = [line for line in csv.reader(stream, delimiter="\t") if line]
    except FileNotFoundError as error:
        raise ValidationError(f"Connectivity matrix {path} does not exist.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValidationError(f"Connectivity matrix {path} is not a readable table.") from error
    if not lines or lines[0][0] != "name":
        raise ValidationError(
            f"{path} is no connectivity matrix: its first line is not 'name' and the names of "
            "the parcels, separated by tabs."
        )
    header, body = lines[0][1:], lines[1:]
    for line in body:
        if len(line) != len(lines[0]):
            raise ValidationError(
                f"{path} has {len(line) - 1} values in row {line[0]!r} where {len(header)} "
                "parcels are named in the first line."
            )
    if len(body) != len(header) or not header:
        raise ValidationError(f"{path} is not square: {len(body)} rows, {len(header)} columns.")
    return header, [line[0] for line in body], [line[1:] for line in body]


def _numbers(path: Path, names: Sequence[str], rows: list[list[str]]) -> NDArray[np.float64]:
    values = np.empty((len(names), len(names)))
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            try:
                values[number, column] = np.nan if cell == "n/a" else float(cell)
            except ValueError:
                values[number, column] = np.inf
            if cell != "n/a" and not np.isfinite(values[number, column]):
                raise ValidationError(
                    f"{path} holds {cell!r} between {names[number]!r} and {names[column]!r}, "
                    "which is neither a finite number nor n/a."
                )
    return values


def _read_sidecar(path: Path) -> dict[str, Any]:
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return {}
    try:
        content = read_json(sidecar)
    except (OSError, ValueError) as error:
        raise ValidationError(f"{sidecar} is not valid JSON; repair or remove it.") from error
    return content if isinstance(content, dict) else {}
