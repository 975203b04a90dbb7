"""Questions to a streamline index: which streamlines a mask hits, and what they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.hdf5 import DAMAGE, get_dataset, whole
from lacuna_nipype.connectomes.streamline_index import (
    ARRAYS,
    CELL_PHASE_MM,
    DTYPES,
    IndexBlock,
    IndexRecord,
    find_tractogram,
    lacks_parts,
    read_index_record,
)
from lacuna_nipype.connectomes.tractogram import TckHeader, read_tck_header, write_tck
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.images import open_image, read_voxels
from lacuna_nipype.core.mrtrix_grid import MrtrixGrid, as_mask, grid_of_image
from lacuna_nipype.core.streamline_index import (
    CELL_SIZE_MM,
    INSIDE,
    TOUCHED,
    CellLattice,
    MaskCrop,
    classify_cells,
    classify_octants,
    crop_mask,
)

HIT_TESTS = ("vertices", "segments")
# Reading on is faster than another request up to about here.
READ_ACROSS_BYTES = 32_768
Result = TypeVar("Result")


class StreamlineIndex:
    """An open index.

    Parameters
    ----------
    path : Path
        From :func:`lacuna_nipype.connectomes.streamline_index.write_index`.
    tractogram : Path, optional
        Its .tck file; by default where the index says, or beside it.
    n_threads : int
        Threads that may work at the same time.

    Raises
    ------
    ValidationError
        The index or its tractogram cannot be used; see ``read_index_record`` and
        ``find_tractogram``.

    Notes
    -----
    Files are mapped into memory: processes that ask the same index share its pages. Positions of
    streamlines count from 0, in the order of the tractogram, empty streamlines included.
    """

    def __init__(self, path: Path, tractogram: Path | None = None, *, n_threads: int = 1) -> None:
        self.record: IndexRecord = read_index_record(path)
        self.header: TckHeader = read_tck_header(find_tractogram(self.record, tractogram))
        self.grid: MrtrixGrid = self.record.mrtrix_grid
        try:
            self.blocks, self.density, self.lattice = _map_arrays(path)
            self._check_arrays()
        except DAMAGE as error:
            raise lacks_parts(path) from error
        counts = [block.n_streamlines for block in self.blocks]
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if int(self.starts[-1]) != self.record.n_streamlines:
            raise lacks_parts(path)
        self._points = _map_points(self.header)
        self._file = self.header.path.open("rb")
        self._pool = ThreadPoolExecutor(n_threads)
        self._n_threads = n_threads

    def __enter__(self) -> StreamlineIndex:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        self._file.close()

    def _check_arrays(self) -> None:
        """Refuse arrays that disagree; what they hold is checked where it is used."""
        if self.density.shape != self.grid.shape or self.density.dtype != np.uint32:
            raise ValueError(f"a density of {self.density.shape}")
        # The lattice follows from the grid: numbers of another one would give other streamlines.
        expected = CellLattice.around(self.grid, CELL_SIZE_MM, CELL_PHASE_MM)
        if (self.lattice.shape, self.lattice.size) != (expected.shape, expected.size) or not (
            np.array_equal(self.lattice.origin, expected.origin)
        ):
            raise ValueError(f"a lattice that does not belong to the grid: {self.lattice}")
        for block in self.blocks:
            n = block.n_streamlines
            if (
                n < 0
                or len(block.chain_start) != n + 1
                or block.end.shape != (n, 2, 3)
                or len(block.cell_start) != len(block.cell) + 1
                or len(block.octant) != len(block.member)
                or len(block.long) > n
                or block.position < 0
                or not _rises(block.cell, self.lattice.n_cells)
                or not _rises(block.cell_start, len(block.member))
            ):
                raise ValueError(f"a block of {n} streamlines whose parts disagree")

    def select(self, crop: MaskCrop | None, hit_test: str = "vertices") -> NDArray[np.int64]:
        """Positions of the streamlines that a mask hits.

        Parameters
        ----------
        crop : MaskCrop or None
            The mask on its own grid, from ``crop_mask``; None (no voxel) hits nothing.
        hit_test : {"vertices", "segments"}
            A stored point inside the mask, as ``tckedit -include`` has it; or any part of the
            straight lines between points too.

        Returns
        -------
        array of int64
            Ascending.

        Raises
        ------
        ValidationError
            The test is unknown.
        """
        if hit_test not in HIT_TESTS:
            raise ValidationError(f"Unknown hit test {hit_test!r}; one of {', '.join(HIT_TESTS)}.")
        if crop is None:
            return np.empty(0, dtype=np.int64)
        segments = hit_test == "segments"
        verdict = _compare_cells(crop, self.lattice, self.record.reach if segments else 0.0)

        def hits(number: int) -> NDArray[np.int64]:
            found = self._block_hits(self.blocks[number], verdict, crop, segments)
            return found + self.starts[number]

        return np.concatenate(self._map(hits, range(len(self.blocks))))

    def _block_hits(
        self, block: IndexBlock, verdict: _Verdict, crop: MaskCrop, segments: bool
    ) -> NDArray[np.int64]:
        from lacuna_nipype.core.streamline_kernels import mark_streamlines

        room = np.zeros(np.iinfo(np.uint16).max + 1, dtype=np.uint8)
        for begin, end in np.searchsorted(block.cell, verdict.ranges):
            whole = mark_streamlines(
                block.cell, block.cell_start, block.member, block.octant, begin, end,
                verdict.status, verdict.touched, verdict.inside, room,
            )  # fmt: skip
            if not whole:
                raise lacks_parts(self.record.path)
        if segments:
            room[block.long] |= TOUCHED
        marks, beyond = np.split(room, [block.n_streamlines])
        if beyond.any():
            raise lacks_parts(self.record.path)
        hit = marks >= INSIDE
        candidates = np.flatnonzero(marks == TOUCHED)
        if len(candidates):
            hit[candidates] = self._test(block, candidates, crop, segments)
        return np.flatnonzero(hit)

    def _test(
        self, block: IndexBlock, candidates: NDArray[np.int64], crop: MaskCrop, segments: bool
    ) -> NDArray[np.bool_]:
        from lacuna_nipype.core.streamline_kernels import test_segments, test_vertices

        self._request(block, candidates)
        points, first, last = self._points_of(block, candidates)
        shape = np.array(crop.grid.shape, dtype=np.int64)
        inside = crop.inside.ravel()
        hit = np.zeros(len(candidates), dtype=np.bool_)
        transform = crop.grid.world_to_voxel_single
        test_vertices(points, first, last, transform, shape, inside, hit)
        if segments:
            exact = np.ascontiguousarray(crop.grid.world_to_voxel)
            test_segments(points, first, last, exact, shape, inside, hit)
        return hit

    def _request(self, block: IndexBlock, streamlines: NDArray[np.int64]) -> None:
        """Have the disk fetch the points of some streamlines; otherwise each is waited for."""
        # What macOS lacks costs time only.
        if not hasattr(os, "posix_fadvise") or not len(streamlines):
            return
        triplet = 3 * self.header.dtype.itemsize
        begin, last = (
            places * triplet + self.header.offset for places in self._places_of(block, streamlines)
        )
        # The triplet that ends a streamline comes after its last point.
        end = last + triplet
        gap = np.flatnonzero(begin[1:] - end[:-1] > READ_ACROSS_BYTES)
        begin, end = begin[np.append(0, gap + 1)], end[np.append(gap, len(end) - 1)]
        for start, stop in zip(begin.tolist(), end.tolist(), strict=True):
            os.posix_fadvise(self._file.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)

    def _places_of(
        self, block: IndexBlock, streamlines: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First point of some streamlines of a block in the file, and one past the last."""
        first = block.first[streamlines].astype(np.int64) + block.position
        last = block.first[streamlines + 1].astype(np.int64) + block.position - 1
        if len(first) and (last.max() > len(self._points) or (last < first).any()):
            raise lacks_parts(self.record.path)
        return first, last

    def _points_of(
        self, block: IndexBlock, streamlines: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Points of some streamlines of a block, and the range of each among them."""
        first, last = self._places_of(block, streamlines)
        if self._points.dtype == np.dtype(np.float32) and self._points.flags.aligned:
            return self._points, first, last
        with np.errstate(over="ignore"):
            pieces = [
                self._points[a:b].astype(np.float32) for a, b in zip(first, last, strict=True)
            ]
        stop = np.cumsum([len(piece) for piece in pieces])
        points = np.concatenate(pieces)
        return points, np.concatenate([[0], stop[:-1]]).astype(np.int64), stop.astype(np.int64)

    def count(
        self, positions: NDArray[np.int64], weights: NDArray[np.float32] | None = None
    ) -> NDArray[Any]:
        """Track density of some streamlines.

        Parameters
        ----------
        positions : array of int64
            Ascending.
        weights : array of float32, shape (n_streamlines,), optional
            Of all streamlines of the tractogram; each counts once without.

        Returns
        -------
        array, uint32 or (with weights) float32, shape of the grid
            Weights are added one after the other in single precision, as tckmap does with one
            thread.
        """
        parts = [self._members(number, positions) for number in range(len(self.blocks))]
        if weights is not None:
            return self._count_weighted(parts, weights)
        numbers = [number for number, part in enumerate(parts) if len(part)]
        shares = [numbers[i :: self._n_threads] for i in range(self._n_threads)]

        def add(share: Sequence[int]) -> NDArray[np.uint32]:
            from lacuna_nipype.core.streamline_kernels import add_density, chain_steps

            density = np.zeros(self.grid.n_voxels, dtype=np.uint32)
            steps = chain_steps(np.array(self.grid.shape, dtype=np.int64))
            for number in share:
                block = self.blocks[number]
                if not add_density(block.chain, block.chain_start, parts[number], steps, density):
                    raise lacks_parts(self.record.path)
            return density

        counted = self._map(add, [share for share in shares if share] or [[]])
        return np.asarray(sum(counted[1:], counted[0])).reshape(self.grid.shape)

    def _count_weighted(
        self, parts: Sequence[NDArray[np.int64]], weights: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        from lacuna_nipype.core.streamline_kernels import add_weighted_density, chain_steps

        density = np.zeros(self.grid.n_voxels, dtype=np.float32)
        steps = chain_steps(np.array(self.grid.shape, dtype=np.int64))
        for number, (block, part) in enumerate(zip(self.blocks, parts, strict=True)):
            own = weights[self.starts[number] : self.starts[number + 1]]
            if not add_weighted_density(block.chain, block.chain_start, part, steps, own, density):
                raise lacks_parts(self.record.path)
        return density.reshape(self.grid.shape)

    def _members(self, number: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions that lie in a block, counted from its first streamline."""
        start, stop = self.starts[number], self.starts[number + 1]
        begin, end = np.searchsorted(positions, [start, stop])
        return positions[begin:end] - start

    def total_density(self, weights: NDArray[np.float32] | None = None) -> NDArray[Any]:
        """Track density of the whole tractogram; from the file when there are no weights."""
        if weights is None:
            return self.density
        return self.count(np.arange(self.record.n_streamlines), weights)

    def assign_nodes(
        self, labels: NDArray[np.int32], grid: MrtrixGrid, radius: float = 4.0
    ) -> NDArray[np.uint16]:
        """Nodes in which streamlines end, by tck2connectome's radial search.

        Parameters
        ----------
        labels : array of int32, shape of the grid
            0 is no node, 65535 the highest. In the grid's near-RAS order.
        grid : MrtrixGrid
        radius : float
            How far to look, mm (MRtrix: 4).

        Returns
        -------
        array, uint16, shape (n_streamlines, 2)
            Node of the first and of the last point; 0 for none, and for empty streamlines.

        Raises
        ------
        ValidationError
            A label is negative or above 65535.
        """
        from lacuna_nipype.core.disconnectivity import NODE_TYPE
        from lacuna_nipype.core.streamline_kernels import (
            half_diagonal,
            nearest_nodes,
            search_offsets,
        )

        flat = np.ascontiguousarray(labels, dtype=np.int32).ravel()
        highest = np.iinfo(NODE_TYPE).max
        if flat.size and not (flat.min() >= 0 and flat.max() <= highest):
            raise ValidationError(
                f"Nodes are numbered {flat.min()} to {flat.max()}; number them from 1 to "
                f"{highest} at most."
            )
        inverse = np.ascontiguousarray(grid.world_to_voxel)
        forward = np.ascontiguousarray(grid.voxel_to_world[:3])
        offsets = search_offsets(grid.spacing, radius)
        half = half_diagonal(grid.spacing)
        shape = np.array(grid.shape, dtype=np.int64)

        def assign(block: IndexBlock) -> NDArray[np.uint16]:
            nodes = np.empty(2 * block.n_streamlines, dtype=NODE_TYPE)
            nearest_nodes(
                block.end.reshape(-1, 3), inverse, forward, offsets, radius, half, shape, flat,
                nodes,
            )  # fmt: skip
            return nodes.reshape(-1, 2)

        return np.concatenate(self._map(assign, self.blocks))

    def streamlines(self, positions: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        """Points of some streamlines (ascending positions), one after the other."""
        for number, block in enumerate(self.blocks):
            members = self._members(number, positions)
            self._request(block, members)
            for i in members:
                points, first, last = self._points_of(block, np.array([i]))
                yield np.array(points[first[0] : last[0]])

    def write_streamlines(self, positions: NDArray[np.int64], target: Path) -> Path:
        """Write some streamlines to a .tck file with the step size of the tractogram."""
        write_tck(target, self.streamlines(positions), step_size=self.header.step_size)
        return target

    def _map(self, function: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        return list(self._pool.map(function, items))


def _rises(numbers: NDArray[np.uint32], most: int) -> bool:
    """Tell whether numbers rise, to a limit at most."""
    return not len(numbers) or bool(numbers[-1] <= most and (numbers[1:] > numbers[:-1]).all())


def read_mask(path: Path) -> MaskCrop | None:
    """Read a lesion mask as tckedit does: on its own grid, cut down to its voxels.

    Parameters
    ----------
    path : Path
        NIfTI.

    Returns
    -------
    MaskCrop or None
        None when no voxel is inside.
    """
    try:
        image = open_image(path)
        values = read_voxels(image).reshape(image.shape[:3])
    except (OSError, ValueError) as error:
        raise ValidationError(
            f"Mask {path} is damaged or not a single volume; export it again."
        ) from error
    grid = grid_of_image(image, str(path))
    inside = as_mask(values)
    return crop_mask(grid.from_stored(inside), grid)


@dataclass(frozen=True, eq=False)
class _Verdict:
    """What the cells of a lattice say of a mask.

    ``ranges``, shape (n, 2): first and one past the last cell to look at. The others are of
    ``classify_cells`` and ``classify_octants``.
    """

    status: NDArray[np.uint8]
    touched: NDArray[np.uint8]
    inside: NDArray[np.uint8]
    ranges: NDArray[np.uint32]


def _compare_cells(crop: MaskCrop, lattice: CellLattice, reach: float) -> _Verdict:
    status = classify_cells(crop, lattice, reach)
    occupied = np.flatnonzero(status[:-1])
    ranges = [(occupied[0], occupied[-1] + 1)] if len(occupied) else []
    # The last one stands for everywhere outside of the lattice.
    if status[-1]:
        ranges.append((len(status) - 1, len(status)))
    touched, inside = classify_octants(crop, lattice, status, reach)
    return _Verdict(status, touched, inside, np.array(ranges, dtype=np.uint32).reshape(-1, 2))


def _map_arrays(path: Path) -> tuple[list[IndexBlock], NDArray[np.uint32], CellLattice]:
    """Map all arrays of an index into memory."""
    content = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)

    def mapped(dataset: h5py.Dataset) -> NDArray[Any]:
        offset = dataset.id.get_offset()
        if offset is None:
            return np.empty(dataset.shape, dtype=dataset.dtype)
        flat = content[offset : offset + dataset.size * dataset.dtype.itemsize]
        return flat.view(dataset.dtype).reshape(dataset.shape)

    def arrays(group: h5py.Group) -> dict[str, NDArray[Any]]:
        found = {name: mapped(get_dataset(group, name)) for name in ARRAYS}
        for name, array in found.items():
            if array.dtype != DTYPES[name] or array.ndim != (3 if name == "end" else 1):
                raise ValueError(f"{name} of shape {array.shape} and type {array.dtype}")
        return found

    with h5py.File(path, "r", locking=False) as handle:
        blocks = [
            IndexBlock(
                **arrays(group),
                position=whole(group.attrs["position"]),
            )
            for _, group in sorted(handle["blocks"].items())
        ]
        attrs = handle.attrs
        shape = attrs["cell_shape"]
        lattice = CellLattice(
            np.asarray(attrs["cell_origin"], dtype=np.float64),
            (whole(shape[0]), whole(shape[1]), whole(shape[2])),
            float(attrs["cell_size"]),
        )
        return blocks, mapped(get_dataset(handle, "density")), lattice


def _map_points(header: TckHeader) -> NDArray[Any]:
    """All triplets of a .tck file, separators included, in its own type; shape (n, 3)."""
    triplet = 3 * header.dtype.itemsize
    n = (header.path.stat().st_size - header.offset) // triplet
    return np.memmap(
        header.path, dtype=header.dtype, mode="r", offset=header.offset, shape=(n, 3)
    ).view(np.ndarray)
