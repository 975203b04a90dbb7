"""An index of a tractogram: which streamlines a mask hits, and where they pass, in milliseconds.

A file is HDF5 with contiguous datasets that are mapped into memory. ``density`` is the track
density of the whole tractogram. ``blocks/00000`` and so on hold up to 65,536 consecutive
streamlines each:

``first``
    Place of each streamline's first point in the block (uint32, one more than streamlines).
``chain``, ``chain_start``
    The voxels of each streamline on the density's grid, as chain codes
    (:mod:`lacuna_nipype.core.streamline_kernels`).
``cell``, ``cell_start``, ``member``
    For every cell of a coarse lattice that holds a point: which streamlines have one there
    (:mod:`lacuna_nipype.core.streamline_index`). Streamlines whose length is not a number are
    left out.
``end``
    First and last point of each streamline, float32; NaN for an empty one.
``long``
    Streamlines with an unusually long step between two points.

The points themselves stay in the .tck file, which is read where a mask's border decides.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype import __version__
from lacuna_nipype.connectomes.hdf5 import DAMAGE, text_of, whole
from lacuna_nipype.connectomes.streamline_blocks import StreamlineBlock, iter_blocks
from lacuna_nipype.connectomes.tractogram import TckHeader, check_tck, upsample_ratio
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path, fingerprint, open_regular
from lacuna_nipype.core.masks import check_affine
from lacuna_nipype.core.mrtrix_grid import MrtrixGrid, make_mrtrix_grid
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.core.streamline_index import (
    CELL_SIZE_MM,
    OCTANT_MARGIN_MM,
    CellLattice,
)

INDEX_FORMAT = "lacuna-streamline-index"
FORMAT_VERSION = 1
# Steps longer than this are rare; their streamlines are tested always, so that they do not widen
# the search for all others.
LONG_STEP_MM = 8.0
# Voxels of 1 mm in standard spaces end half-way between whole millimetres. Where eighths of cells
# do too, masks of such voxels decide about nearly all streamlines.
CELL_PHASE_MM = 0.5
ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class IndexBlock:
    """Arrays of one block; see the module's description."""

    first: NDArray[np.uint32]
    chain: NDArray[np.uint8]
    chain_start: NDArray[np.uint32]
    cell: NDArray[np.uint32]
    cell_start: NDArray[np.uint32]
    member: NDArray[np.uint16]
    octant: NDArray[np.uint8]
    end: NDArray[np.float32]
    long: NDArray[np.uint16]
    position: int

    @property
    def n_streamlines(self) -> int:
        """Streamlines of the block, empty ones counted."""
        return len(self.first) - 1


DTYPES: dict[str, np.dtype[Any]] = {
    "first": np.dtype(np.uint32),
    "chain": np.dtype(np.uint8),
    "chain_start": np.dtype(np.uint32),
    "cell": np.dtype(np.uint32),
    "cell_start": np.dtype(np.uint32),
    "member": np.dtype(np.uint16),
    "octant": np.dtype(np.uint8),
    "end": np.dtype(np.float32),
    "long": np.dtype(np.uint16),
}
ARRAYS = tuple(DTYPES)


@dataclass(frozen=True)
class IndexRecord:
    """What an index says about itself.

    Parameters
    ----------
    path : Path
        The index.
    tractogram : Path
        The .tck file that it was made from, where it was then.
    fingerprint : str
        Of that file's content.
    space : str
        Standard space.
    n_streamlines, n_points : int
    n_empty, n_one_point : int
        Streamlines without a point, and with a single one.
    upsample : int
        Ratio by which tckmap would have put points into the steps.
    step_size : float or None
        From the header of the .tck file, mm.
    reach : float
        Half of the longest step, mm, of streamlines that are not ``long``.
    grid : Grid
        Of the density, as its template is stored.
    """

    path: Path
    tractogram: Path
    fingerprint: str
    space: str
    n_streamlines: int
    n_points: int
    n_empty: int
    n_one_point: int
    upsample: int
    step_size: float | None
    reach: float
    grid: Grid

    @property
    def mrtrix_grid(self) -> MrtrixGrid:
        """The density's grid as MRtrix sees it."""
        return grid_as_written(self.grid)


def grid_as_written(grid: Grid) -> MrtrixGrid:
    """Grid as MRtrix sees it in an image that this package writes.

    NIfTI keeps transforms and voxel sizes in single precision.
    """
    affine = grid.affine.astype(np.float32).astype(np.float64)
    sizes = grid.voxel_sizes.astype(np.float32).astype(np.float64)
    return make_mrtrix_grid(grid.shape, affine, sizes)


@dataclass
class _Tally:
    """Counts over all blocks."""

    n_streamlines: int = 0
    n_points: int = 0
    n_empty: int = 0
    n_one_point: int = 0
    longest: float = 0.0


class _Encoder:
    """Makes index blocks; each thread has scratch arrays of its own."""

    def __init__(self, grid: MrtrixGrid, lattice: CellLattice, upsample: int) -> None:
        from lacuna_nipype.core.streamline_kernels import hermite_weights

        self.shape = np.array(grid.shape, dtype=np.int64)
        self.transform = grid.world_to_voxel_single
        self.weights = hermite_weights(upsample)
        self.lattice = lattice
        self.densities: list[NDArray[np.uint32]] = []
        self._local = threading.local()

    def _scratch(self) -> Any:
        local = self._local
        if not hasattr(local, "density"):
            n_voxels = int(self.shape.prod())
            local.density = np.zeros(n_voxels, dtype=np.uint32)
            local.voxel_stamps = np.zeros(n_voxels, dtype=np.uint32)
            local.cell_stamps = np.zeros(self.lattice.n_cells + 1, dtype=np.uint32)
            local.slots = np.zeros(self.lattice.n_cells + 1, dtype=np.int64)
            local.found = np.zeros(self.lattice.n_cells + 1, dtype=np.uint16)
            local.stamp = 0
            self.densities.append(local.density)
        return local

    def encode(self, block: StreamlineBlock) -> tuple[IndexBlock, _Tally]:
        """Index a block of streamlines."""
        scratch = self._scratch()
        if scratch.stamp > 2**32 - 4 * block.n_streamlines - 8:
            scratch.voxel_stamps[:] = 0
            scratch.cell_stamps[:] = 0
            scratch.stamp = 0
        chain, chain_start = self._chains(block, scratch)
        sizes = np.diff(block.first) - 1
        ends, steps = _ends(block, sizes), _longest_steps(block)
        # tckedit drops streamlines whose length is not a number; these are never found.
        has_length = ~np.isnan(steps)
        cell, cell_start, member, octant = self._cells(block, scratch, has_length)
        is_long = steps > LONG_STEP_MM
        found = IndexBlock(
            block.first.astype(np.uint32), chain, chain_start, cell, cell_start, member, octant,
            ends, np.flatnonzero(is_long).astype(np.uint16), block.position,
        )  # fmt: skip
        tally = _Tally(
            block.n_streamlines,
            int(sizes.sum()),
            int((sizes == 0).sum()),
            int((sizes == 1).sum()),
            float(steps[has_length & ~is_long].max(initial=0.0)),
        )
        return found, tally

    def _chains(self, block: StreamlineBlock, scratch: Any) -> Any:
        from lacuna_nipype.core.streamline_kernels import chain_voxels

        starts = np.empty(block.n_streamlines + 1, dtype=np.int64)
        # Mostly one byte a voxel and a jump at the start; rarely, more.
        room = len(block.points) * (len(self.weights) + 1) + 5 * block.n_streamlines
        while True:
            chain = np.empty(room, dtype=np.uint8)
            filled = chain_voxels(
                block.points, block.first, self.transform, self.shape, self.weights,
                scratch.voxel_stamps, scratch.stamp, chain, starts, scratch.density,
            )  # fmt: skip
            scratch.stamp += block.n_streamlines
            if filled >= 0:
                return chain[:filled].copy(), starts.astype(np.uint32)
            room *= 5

    def _cells(self, block: StreamlineBlock, scratch: Any, listed: NDArray[np.bool_]) -> Any:
        from lacuna_nipype.core.streamline_kernels import invert_cells, list_cells

        lattice = self.lattice
        cells = np.empty(len(block.points), dtype=np.uint32)
        counts = np.empty(block.n_streamlines, dtype=np.uint32)
        place = (lattice.origin, lattice.size, np.array(lattice.shape, dtype=np.int64))
        n = list_cells(
            block.points, block.first, *place, scratch.cell_stamps, scratch.stamp, cells, counts,
            listed,
        )  # fmt: skip
        scratch.stamp += block.n_streamlines
        cells = cells[:n]
        per_cell = np.bincount(cells, minlength=lattice.n_cells + 1)
        occurring = np.flatnonzero(per_cell)
        scratch.slots[occurring] = np.arange(len(occurring))
        bounds = np.concatenate([[0], np.cumsum(per_cell[occurring])])
        member, octant = np.empty(n, dtype=np.uint16), np.empty(n, dtype=np.uint8)
        invert_cells(
            block.points, block.first, *place, OCTANT_MARGIN_MM, cells, counts, scratch.slots,
            bounds[:-1].copy(), scratch.found, member, octant,
        )  # fmt: skip
        return occurring.astype(np.uint32), bounds.astype(np.uint32), member, octant


def _ends(block: StreamlineBlock, sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """First and last point of each streamline, shape (n, 2, 3); NaN for an empty one."""
    # An empty streamline's first place is its separator, whose coordinates are NaN.
    first = block.points[block.first[:-1]]
    last = block.points[np.where(sizes > 0, block.first[1:] - 2, block.first[:-1])]
    return np.stack([first, last], axis=1)


def _longest_steps(block: StreamlineBlock) -> NDArray[np.float64]:
    """Longest step of each streamline, mm; NaN where a step is not a number."""
    from lacuna_nipype.core.streamline_kernels import longest_segments

    squared = np.empty(block.n_streamlines)
    longest_segments(block.points, block.first, squared)
    return np.sqrt(squared)


def write_index(
    tractogram: Path,
    target: Path,
    *,
    grid: Grid,
    space: str,
    upsample: int | None = None,
    n_threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> IndexRecord:
    """Index a tractogram in one pass over its file.

    Parameters
    ----------
    tractogram : Path
        .tck file.
    target : Path
        File to write, atomically.
    grid : Grid
        Of the track density and the disconnection maps; that of an image this package writes.
    space : str
        Standard space of the tractogram.
    upsample : int, optional
        tckmap's ratio; by its own rule from the header's ``step_size`` and the grid otherwise.
    n_threads : int
        Threads that index blocks. Memory grows with them and not with the file: about 0.2 GB a
        thread.
    progress : callable, optional
        Called with (bytes done, bytes to do).

    Returns
    -------
    IndexRecord

    Raises
    ------
    ValidationError
        The tractogram is damaged, empty, or grows or shrinks while it is read.
    """
    header = check_tck(tractogram)
    before = fingerprint(tractogram)
    mrtrix_grid = grid_as_written(grid)
    if upsample is None:
        upsample = upsample_ratio(header.step_size or 0.0, mrtrix_grid.spacing.tolist())
    lattice = CellLattice.around(mrtrix_grid, CELL_SIZE_MM, CELL_PHASE_MM)
    encoder = _Encoder(mrtrix_grid, lattice, upsample)
    total = _Tally()
    size, triplet = tractogram.stat().st_size, 3 * header.dtype.itemsize
    with atomic_path(target) as temporary:
        with h5py.File(temporary, "w", alignment_threshold=1, alignment_interval=ALIGNMENT) as out:
            for number, (block, tally) in enumerate(_encoded(header, encoder, n_threads)):
                _write_block(out, number, block)
                total.n_streamlines += tally.n_streamlines
                total.n_points += tally.n_points
                total.n_empty += tally.n_empty
                total.n_one_point += tally.n_one_point
                total.longest = max(total.longest, tally.longest)
                if progress is not None:
                    done = header.offset + (block.position + int(block.first[-1])) * triplet
                    progress(min(done, size), size)
            if fingerprint(tractogram) != before:
                raise ValidationError(
                    f"{tractogram} changed while it was indexed; run again when it is finished."
                )
            if not total.n_streamlines:
                raise ValidationError(f"{tractogram} holds no streamlines.")
            density = sum(encoder.densities, np.zeros(mrtrix_grid.n_voxels, dtype=np.uint32))
            out.create_dataset(
                "density", data=density.reshape(mrtrix_grid.shape), track_times=False
            )
            out.attrs.update(_attributes(header, before, grid, lattice, space, upsample, total))
        if progress is not None:
            progress(size, size)
    return read_index_record(target)


def _attributes(
    header: TckHeader,
    content: str,
    grid: Grid,
    lattice: CellLattice,
    space: str,
    upsample: int,
    total: _Tally,
) -> dict[str, Any]:
    return {
        "format": INDEX_FORMAT,
        "format_version": FORMAT_VERSION,
        "software": f"lacuna-nipype {__version__}",
        "tractogram": str(header.path.absolute()),
        "fingerprint": content,
        "space": space,
        "n_streamlines": total.n_streamlines,
        "n_points": total.n_points,
        "n_empty": total.n_empty,
        "n_one_point": total.n_one_point,
        "upsample": upsample,
        "step_size": header.step_size or 0.0,
        "reach": total.longest / 2,
        "grid_shape": grid.shape,
        "grid_affine": grid.affine,
        "cell_size": lattice.size,
        "cell_origin": lattice.origin,
        "cell_shape": lattice.shape,
    }


def _encoded(
    header: TckHeader, encoder: _Encoder, n_threads: int
) -> Iterator[tuple[IndexBlock, _Tally]]:
    """Index blocks in the order of the file; one is read while others are indexed."""
    waiting: deque[Future[tuple[IndexBlock, _Tally]]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        for block in iter_blocks(header):
            waiting.append(pool.submit(encoder.encode, block))
            if len(waiting) > n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write_block(out: h5py.File, number: int, block: IndexBlock) -> None:
    group = out.create_group(f"blocks/{number:05d}")
    for name in ARRAYS:
        group.create_dataset(name, data=getattr(block, name), track_times=False)
    group.attrs["position"] = block.position


def is_index(path: Path) -> bool:
    """Tell whether a file is a streamline index, of whatever version."""
    try:
        open_regular(path).close()
        with h5py.File(path, "r", locking=False) as handle:
            return text_of(handle.attrs.get("format", "")) == INDEX_FORMAT
    except DAMAGE:
        return False


def read_index_record(path: Path) -> IndexRecord:
    """Read what an index says about itself.

    Parameters
    ----------
    path : Path

    Returns
    -------
    IndexRecord

    Raises
    ------
    ValidationError
        The file is no streamline index, or of another version of the format.
    """
    try:
        open_regular(path).close()
        with h5py.File(path, "r", locking=False) as handle:
            attrs = dict(handle.attrs)
    except DAMAGE as error:
        raise ValidationError(
            f"{path} cannot be read as a streamline index (it is damaged or of another kind); "
            "make it again with `lacuna-nipype connectome convert`."
        ) from error
    try:
        return _record_of(path, attrs)
    except ValidationError:
        raise
    except DAMAGE as error:
        raise lacks_parts(path) from error


def lacks_parts(path: Path) -> ValidationError:
    """Make the error for an index that is readable and incomplete."""
    return ValidationError(
        f"{path} is damaged (parts of the index are missing or wrong); make it again with "
        "`lacuna-nipype connectome convert`."
    )


def _record_of(path: Path, attrs: dict[str, Any]) -> IndexRecord:
    if text_of(attrs.get("format", "")) != INDEX_FORMAT:
        raise ValidationError(f"{path} is not a streamline index.")
    if whole(attrs["format_version"]) != FORMAT_VERSION:
        raise ValidationError(
            f"{path} is a streamline index of format version {attrs['format_version']}, but this "
            f"version reads {FORMAT_VERSION}; make it again with `lacuna-nipype connectome "
            "convert`."
        )
    shape = [whole(n) for n in attrs["grid_shape"]]
    affine = np.asarray(attrs["grid_affine"], dtype=np.float64)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a grid of {shape}")
    check_affine(affine, str(path))
    return IndexRecord(
        path=path,
        tractogram=Path(text_of(attrs["tractogram"])),
        fingerprint=text_of(attrs["fingerprint"]),
        space=text_of(attrs["space"]),
        n_streamlines=whole(attrs["n_streamlines"]),
        n_points=whole(attrs["n_points"]),
        n_empty=whole(attrs["n_empty"]),
        n_one_point=whole(attrs["n_one_point"]),
        upsample=whole(attrs["upsample"]),
        step_size=float(attrs["step_size"]) or None,
        reach=float(attrs["reach"]),
        grid=Grid.make(shape, affine),
    )


def find_tractogram(record: IndexRecord, tractogram: Path | None = None) -> Path:
    """Find the .tck file of an index and make sure that it still is that file.

    Parameters
    ----------
    record : IndexRecord
    tractogram : Path, optional
        Where the file is; otherwise where it was, or beside the index under the same name.

    Returns
    -------
    Path

    Raises
    ------
    ValidationError
        The file is not there, or its content is another one.
    """
    places = [record.tractogram, record.path.parent / record.tractogram.name]
    there = [path for path in ([tractogram] if tractogram else places) if path.is_file()]
    if not there:
        raise ValidationError(
            f"The tractogram {tractogram or record.tractogram} of the index {record.path} is not "
            "there; put it beside the index under the same name."
        )
    for path in there:
        if fingerprint(path) == record.fingerprint:
            return path
    raise ValidationError(
        f"{record.path} is the index of another tractogram than {there[0]}, or of an older "
        "version of it; make it again with `lacuna-nipype connectome convert`."
    )
