"""The compiled inner loops over streamlines; imported only where they run.

The rules are MRtrix3's (3.0.3), operation by operation in single precision, so that results equal
those of tckmap, tckedit and tck2connectome bit for bit: no operation here may be fused or
reordered.

Points are float32, shape (n, 3), world mm; streamline i of a block is
``points[first[i]:first[i + 1] - 1]``, the point in between being the separator of a .tck file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.compiling import compiled

# A chain code of 0 to 26 is a step to one of the neighbours (13, no step, does not occur);
# JUMP is followed by the voxel's number in four bytes, lowest first.
JUMP = 27
_HALF = np.float64(0.5)
# A voxel is touched and not crossed where less than this share of a segment lies in it.
_TOUCH = np.float64(1e-9)


def hermite_weights(ratio: int) -> NDArray[np.float32]:
    """Weights of the four points around a segment for the points put into it.

    Parameters
    ----------
    ratio : int
        Upsampling ratio of tckmap.

    Returns
    -------
    array, float32, shape (ratio - 1, 4)
        Cubic Hermite with tension 0.1 (MRtrix3, core/math/hermite.h and
        src/dwi/tractography/resampling/upsampler.cpp), rounded to single precision after every
        operation, from left to right.
    """
    one = np.float32
    tension = one(0.5) * one(0.1)
    rows = []
    for step in range(1, ratio):
        p = one(step / float(ratio))
        p2 = p * p
        p3 = p * p2
        rows.append(
            (
                (one(0.5) - tension) * (one(2) * p2 - p3 - p),
                one(1) + (one(1.5) + tension) * p3 - (one(2.5) + tension) * p2,
                (one(2) + one(2) * tension) * p2
                + (one(0.5) - tension) * p
                - (one(1.5) + tension) * p3,
                (one(0.5) - tension) * (p3 - p2),
            )
        )
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def half_diagonal(spacing: NDArray[np.float64]) -> float:
    """Half the diagonal of a voxel in mm, squares added as tck2connectome adds them."""
    x, y, z = ((0.5 * spacing) ** 2).tolist()
    return float(np.sqrt((z + y) + x))


def search_offsets(spacing: NDArray[np.float64], radius: float) -> NDArray[np.int64]:
    """Neighbours that tck2connectome's radial search looks at, in its order.

    Parameters
    ----------
    spacing : array, shape (3,)
        Voxel sizes in mm.
    radius : float
        In mm.

    Returns
    -------
    array, int64, shape (n_offsets, 3)
        Those nearer than the radius and half a voxel's diagonal, by distance; of equal ones the
        first in an order in which x runs fastest and z slowest.
    """
    reach = radius + half_diagonal(spacing)
    most = np.ceil(reach / spacing).astype(int)
    ranges = [np.arange(-n, n + 1) for n in most[::-1]]
    offsets = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)[:, ::-1]
    squares = (offsets * spacing) ** 2
    distance = np.sqrt((squares[:, 2] + squares[:, 1]) + squares[:, 0])
    order = np.argsort(distance, kind="stable")
    return np.ascontiguousarray(offsets[order[distance[order] < reach]], dtype=np.int64)


@compiled()
def _voxel(transform: Any, shape: Any, x: Any, y: Any, z: Any) -> int:
    """Find the voxel that a point rounds to: its number in C order, -1 outside.

    The products are added as a tree in single precision; halves are rounded away from zero, so
    that -0.5 is outside and 0.5 belongs to voxel 1. In double precision, adding one half is
    exact.
    """
    number = 0
    for axis in range(3):
        row = transform[axis]
        place = np.float64((row[0] * x + row[1] * y) + (row[2] * z + row[3]))
        if not (place > -_HALF and place + _HALF < shape[axis]):
            return -1
        number = number * shape[axis] + int(place + _HALF)
    return number


@compiled()
def chain_voxels(
    points: Any,
    first: Any,
    transform: Any,
    shape: Any,
    weights: Any,
    stamps: Any,
    stamp: Any,
    chain: Any,
    starts: Any,
    density: Any,
) -> int:
    """Voxels of every streamline by tckmap's rule, each once, as chains of small steps.

    Parameters
    ----------
    points, first
        A block of streamlines; ``first`` is int64, shape (n + 1,).
    transform : array, float32, shape (3, 4)
        World to voxel.
    shape : array, int64, shape (3,)
    weights : array, float32, shape (ratio - 1, 4)
        From :func:`hermite_weights`.
    stamps : array, uint32, shape (n_voxels,)
        Scratch that the calls of one thread share.
    stamp : int
        Larger than any used with these stamps before; ``stamp + n`` must fit.
    chain : array, uint8
        Result.
    starts : array, int64, shape (n + 1,)
        Result: place of each streamline's codes in the chain.
    density : array, uint32, shape (n_voxels,)
        Result: streamlines per voxel are added.

    Returns
    -------
    int
        Bytes written; -1 when the chain is too short, and then the density is not changed.
    """
    n_new = weights.shape[0]
    side, plane = shape[2], shape[1] * shape[2]
    filled = 0
    starts[0] = 0
    for i in range(first.size - 1):
        begin, end = first[i], first[i + 1] - 1
        last = -1
        stamp += 1
        for j in range(begin, end):
            x1, y1, z1 = points[j, 0], points[j, 1], points[j, 2]
            has_segment = j + 1 < end and n_new > 0
            if has_segment:
                x2, y2, z2 = points[j + 1, 0], points[j + 1, 1], points[j + 1, 2]
                if j > begin:
                    x0, y0, z0 = points[j - 1, 0], points[j - 1, 1], points[j - 1, 2]
                else:
                    x0, y0, z0 = x1 + (x1 - x2), y1 + (y1 - y2), z1 + (z1 - z2)
                if j + 2 < end:
                    x3, y3, z3 = points[j + 2, 0], points[j + 2, 1], points[j + 2, 2]
                else:
                    x3, y3, z3 = x2 + (x2 - x1), y2 + (y2 - y1), z2 + (z2 - z1)
            else:
                x0 = y0 = z0 = x2 = y2 = z2 = x3 = y3 = z3 = x1
            for k in range(n_new + 1 if has_segment else 1):
                if k == 0:
                    x, y, z = x1, y1, z1
                else:
                    w0, w1 = weights[k - 1, 0], weights[k - 1, 1]
                    w2, w3 = weights[k - 1, 2], weights[k - 1, 3]
                    x = ((w0 * x0 + w1 * x1) + w2 * x2) + w3 * x3
                    y = ((w0 * y0 + w1 * y1) + w2 * y2) + w3 * y3
                    z = ((w0 * z0 + w1 * z1) + w2 * z2) + w3 * z3
                voxel = _voxel(transform, shape, x, y, z)
                if voxel < 0 or stamps[voxel] == stamp:
                    continue
                stamps[voxel] = stamp
                if filled + 5 > chain.size:
                    return -1
                code = JUMP
                if last >= 0:
                    dx = voxel // plane - last // plane
                    dy = (voxel // side) % shape[1] - (last // side) % shape[1]
                    dz = voxel % side - last % side
                    if abs(dx) <= 1 and abs(dy) <= 1 and abs(dz) <= 1:
                        code = (dx + 1) * 9 + (dy + 1) * 3 + dz + 1
                chain[filled] = code
                filled += 1
                if code == JUMP:
                    for byte in range(4):
                        chain[filled + byte] = (voxel >> (8 * byte)) & 255
                    filled += 4
                last = voxel
        starts[i + 1] = filled
    _add_chains(chain, 0, filled, chain_steps(shape), density)
    return filled


@compiled()
def chain_steps(shape: Any) -> Any:
    """Change of a voxel's number for each chain code: int64, shape (27,)."""
    steps = np.empty(27, dtype=np.int64)
    for code in range(27):
        dx, dy, dz = code // 9 - 1, code // 3 % 3 - 1, code % 3 - 1
        steps[code] = (dx * shape[1] + dy) * shape[2] + dz
    return steps


@compiled()
def _add_chains(chain: Any, begin: Any, end: Any, steps: Any, density: Any) -> bool:
    """Add one to every voxel of a piece of a chain; False where it is damaged."""
    if end > chain.size:
        return False
    voxel = np.int64(0)
    j = begin
    while j < end:
        code = chain[j]
        if code == JUMP:
            if j + 5 > end:
                return False
            voxel = (
                np.int64(chain[j + 1])
                | np.int64(chain[j + 2]) << 8
                | np.int64(chain[j + 3]) << 16
                | np.int64(chain[j + 4]) << 24
            )
            j += 5
        elif code > JUMP:
            return False
        else:
            voxel += steps[code]
            j += 1
        if voxel < 0 or voxel >= density.size:
            return False
        density[voxel] += 1
    return True


@compiled()
def add_density(chain: Any, starts: Any, selected: Any, steps: Any, density: Any) -> bool:
    """Add one to every voxel of the selected streamlines.

    Parameters
    ----------
    chain, starts
        Of a block, from :func:`chain_voxels`.
    selected : array of int64
        Streamlines of the block.
    steps : array, int64, shape (27,)
        From :func:`chain_steps`.
    density : array, uint32, shape (n_voxels,)
        Changed.

    Returns
    -------
    bool
        False where the chains are damaged; nothing is read or written beyond the arrays.
    """
    for i in selected:
        if not _add_chains(chain, np.int64(starts[i]), np.int64(starts[i + 1]), steps, density):
            return False
    return True


@compiled()
def add_weighted_density(
    chain: Any, starts: Any, selected: Any, steps: Any, weights: Any, density: Any
) -> bool:
    """Add each selected streamline's weight to its voxels, one after the other in float32.

    Parameters
    ----------
    chain, starts, selected, steps
        As :func:`add_density` has them.
    weights : array, float32
        Of the streamlines of the block.
    density : array, float32, shape (n_voxels,)
        Changed. Sums in single precision depend on their order: call block after block.

    Returns
    -------
    bool
        As :func:`add_density`.
    """
    for i in selected:
        weight = weights[i]
        voxel = np.int64(0)
        j, end = np.int64(starts[i]), np.int64(starts[i + 1])
        if end > chain.size:
            return False
        while j < end:
            code = chain[j]
            if code == JUMP:
                if j + 5 > end:
                    return False
                voxel = (
                    np.int64(chain[j + 1])
                    | np.int64(chain[j + 2]) << 8
                    | np.int64(chain[j + 3]) << 16
                    | np.int64(chain[j + 4]) << 24
                )
                j += 5
            elif code > JUMP:
                return False
            else:
                voxel += steps[code]
                j += 1
            if voxel < 0 or voxel >= density.size:
                return False
            density[voxel] += weight
    return True


@compiled()
def list_cells(
    points: Any,
    first: Any,
    origin: Any,
    size: Any,
    shape: Any,
    stamps: Any,
    stamp: Any,
    cells: Any,
    counts: Any,
    listed: Any,
) -> int:
    """List the cells of a coarse lattice in which each streamline has a point, each once.

    Parameters
    ----------
    points, first
        A block of streamlines.
    origin : array, float64, shape (3,)
        Lower corner of the lattice, mm.
    size : float
        Edge of a cell, mm.
    shape : array, int64, shape (3,)
        The number after the last cell stands for everywhere outside.
    stamps, stamp
        As :func:`chain_voxels` has them; shape (n_cells + 1,).
    cells : array, uint32
        Result, streamline by streamline; as long as there are points.
    counts : array, uint32, shape (n,)
        Result: cells of each streamline.
    listed : array of bool, shape (n,)
        Streamlines to look at.

    Returns
    -------
    int
        Number of entries of ``cells``.
    """
    n = 0
    outside = shape[0] * shape[1] * shape[2]
    for i in range(first.size - 1):
        before = n
        stamp += 1
        for j in range(first[i], first[i + 1] - 1 if listed[i] else first[i]):
            cell = np.int64(0)
            for axis in range(3):
                place = (np.float64(points[j, axis]) - origin[axis]) / size
                if not (place >= 0 and place < shape[axis]):
                    cell = outside
                    break
                cell = cell * shape[axis] + int(place)
            if stamps[cell] != stamp:
                stamps[cell] = stamp
                cells[n] = cell
                n += 1
        counts[i] = n - before
    return n


@compiled()
def invert_cells(
    points: Any,
    first: Any,
    origin: Any,
    size: Any,
    shape: Any,
    margin: Any,
    cells: Any,
    counts: Any,
    slots: Any,
    starts: Any,
    found: Any,
    members: Any,
    octants: Any,
) -> None:
    """Turn lists streamline -> cells into lists cell -> streamlines, ascending.

    Parameters
    ----------
    points, first, origin, size, shape
        As :func:`list_cells` has them.
    margin : float
        A point nearer to the border of an eighth of a cell than this, mm, is not certain.
    cells, counts
        From :func:`list_cells`.
    slots : array, int64, shape (n_cells + 1,)
        Place of each cell that occurs among those of the block.
    starts : array, int64, shape (n_occurring,)
        Where each cell's list begins; scratch, ends as where it ends.
    found : array, uint16, shape (n_cells + 1,)
        Scratch.
    members : array, uint16
        Result.
    octants : array, uint8
        Result: in which eighths of the cell the streamline has points, one bit for each (the
        upper half along x 1, y 2, z 4 is the number of the bit); 0 where a point is not certain
        or outside of the lattice.
    """
    outside = shape[0] * shape[1] * shape[2]
    near = 2.0 * margin / size
    n = 0
    for i in range(counts.size):
        for k in range(n, n + counts[i]):
            found[cells[k]] = 0
        for j in range(first[i], first[i + 1] - 1 if counts[i] else first[i]):
            cell, octant, uncertain = np.int64(0), 0, False
            for axis in range(3):
                place = (np.float64(points[j, axis]) - origin[axis]) / size
                if not (place >= 0 and place < shape[axis]):
                    cell, uncertain = outside, True
                    break
                half = 2.0 * (place - int(place))
                uncertain |= abs(half - np.floor(half + _HALF)) < near
                octant |= int(half) << axis
                cell = cell * shape[axis] + int(place)
            found[cell] |= 256 if uncertain else 1 << octant
        for _ in range(counts[i]):
            slot, bits = slots[cells[n]], found[cells[n]]
            members[starts[slot]] = i
            octants[starts[slot]] = bits if bits < 256 else 0
            starts[slot] += 1
            n += 1


@compiled()
def longest_segments(points: Any, first: Any, squared: Any) -> None:
    """Longest distance between neighbouring points of each streamline, squared, in double.

    Parameters
    ----------
    points, first
        A block of streamlines.
    squared : array, float64, shape (n,)
        Result; NaN where a distance is not a number, infinite where one is infinite.
    """
    for i in range(first.size - 1):
        longest = 0.0
        for j in range(first[i], first[i + 1] - 2):
            total = 0.0
            for axis in range(3):
                step = np.float64(points[j + 1, axis]) - np.float64(points[j, axis])
                total += step * step
            if not total <= longest:
                longest = total
                if total != total:
                    break
        squared[i] = longest


@compiled()
def mark_streamlines(
    cells: Any,
    starts: Any,
    members: Any,
    octants: Any,
    begin: Any,
    end: Any,
    status: Any,
    touched: Any,
    inside: Any,
    marks: Any,
) -> bool:
    """Mark streamlines with what the cells in which they have a point say of a mask.

    Parameters
    ----------
    cells, starts, members, octants
        Inverted lists of a block.
    begin, end : int
        Range of ``cells`` to look at.
    status : array, uint8, shape (n_cells + 1,)
        0 outside of the mask, 1 possibly inside, 2 inside.
    touched, inside : array, uint8, shape (n_cells + 1,)
        Where the status is 1: one bit for each eighth of the cell that is possibly inside, and
        for each that is.
    marks : array, uint8, shape (65536,)
        Result: bits 1 (possibly hit) and 2 (hit) are set; starts as zeros. One for each number
        that a member can have.

    Returns
    -------
    bool
        False where the lists are damaged; nothing is read or written beyond the arrays.
    """
    for c in range(begin, end):
        cell = cells[c]
        if cell >= status.size or starts[c + 1] > members.size:
            return False
        if status[cell] == 2:
            for k in range(starts[c], starts[c + 1]):
                marks[members[k]] |= 2
        elif status[cell] == 1:
            possible, certain = touched[cell], inside[cell]
            for k in range(starts[c], starts[c + 1]):
                octant = octants[k]
                if octant & certain:
                    marks[members[k]] |= 2
                elif octant & possible or octant == 0:
                    marks[members[k]] |= 1
    return True


@compiled()
def test_vertices(
    points: Any, first: Any, last: Any, transform: Any, shape: Any, mask: Any, hit: Any
) -> None:
    """Tell which streamlines have a point in a mask, by tckedit's rule.

    Parameters
    ----------
    points : array, shape (n, 3), float32
    first, last : arrays of int64, shape (n_streamlines,)
        Range of points of each streamline to test.
    transform : array, float32, shape (3, 4)
        World to voxels of the cropped mask.
    shape : array, int64, shape (3,)
    mask : array of bool, shape (n_voxels,)
        Of the cropped mask, C order.
    hit : array of bool, shape (n_streamlines,)
        Result.
    """
    for i in range(first.size):
        hit[i] = False
        for j in range(first[i], last[i]):
            voxel = _voxel(transform, shape, points[j, 0], points[j, 1], points[j, 2])
            if voxel >= 0 and mask[voxel]:
                hit[i] = True
                break


@compiled()
def _span(place: Any, step: Any, size: Any) -> Any:
    """First and last voxel of a box around a segment along one axis, not beyond the mask's.

    The margin is far above rounding.
    """
    first = np.floor(place + min(step, 0.0) - 1e-6)
    last = np.floor(place + max(step, 0.0) + 1e-6)
    return int(max(first, 0.0)), int(min(last, size - 1.0))


@compiled()
def _may_hit(place: Any, step: Any, shape: Any, mask: Any) -> bool:
    """Tell whether there is anything of a mask in the box around a segment.

    As :func:`_segment_hits` has them; much cheaper where a segment covers a few voxels only.
    """
    first_x, last_x = _span(place[0], step[0], shape[0])
    first_y, last_y = _span(place[1], step[1], shape[1])
    first_z, last_z = _span(place[2], step[2], shape[2])
    if max(last_x - first_x, last_y - first_y, last_z - first_z) > 3:
        return True
    for x in range(first_x, last_x + 1):
        for y in range(first_y, last_y + 1):
            for z in range(first_z, last_z + 1):
                if mask[(x * shape[1] + y) * shape[2] + z]:
                    return True
    return False


@compiled()
def _segment_hits(place: Any, step: Any, shape: Any, mask: Any, voxel: Any, walk: Any) -> bool:
    """Walk through the voxels of a straight segment; coordinates in voxels from a corner.

    ``place`` is where it starts and ``step`` the way to its end; both float64. A voxel that is
    touched in one point only, at a corner or by an end, is not walked through, so that a segment
    and its reverse hit the same. ``voxel`` (int64, shape (3,)) and ``walk`` (float64, shape
    (3, 3)) are scratch.
    """
    # The part of the segment inside the box, as a range of t from 0 to 1.
    enter, leave = 0.0, 1.0
    for axis in range(3):
        if step[axis] == 0.0:
            if place[axis] < 0.0 or place[axis] >= shape[axis]:
                return False
            continue
        low, high = -place[axis] / step[axis], (shape[axis] - place[axis]) / step[axis]
        if low > high:
            low, high = high, low
        enter, leave = max(enter, low), min(leave, high)
    if enter + _TOUCH >= leave:
        return False
    turn, pace, following = walk[0], walk[1], walk[2]
    for axis in range(3):
        # Just behind where the segment enters the box.
        at = place[axis] + (enter + _TOUCH) * step[axis]
        voxel[axis] = min(max(int(np.floor(at)), 0), shape[axis] - 1)
        if step[axis] > 0.0:
            turn[axis], pace[axis] = 1, 1.0 / step[axis]
            following[axis] = (voxel[axis] + 1 - place[axis]) / step[axis]
        elif step[axis] < 0.0:
            turn[axis], pace[axis] = -1, -1.0 / step[axis]
            following[axis] = (voxel[axis] - place[axis]) / step[axis]
        else:
            turn[axis], pace[axis], following[axis] = 0, 0.0, np.inf
    while True:
        if mask[(voxel[0] * shape[1] + voxel[1]) * shape[2] + voxel[2]]:
            return True
        border = min(following[0], following[1], following[2])
        if border + _TOUCH >= leave:
            return False
        for axis in range(3):
            if following[axis] <= border + _TOUCH:
                voxel[axis] += int(turn[axis])
                following[axis] += pace[axis]
                if voxel[axis] < 0 or voxel[axis] >= shape[axis]:
                    return False


@compiled()
def test_segments(
    points: Any, first: Any, last: Any, transform: Any, shape: Any, mask: Any, hit: Any
) -> None:
    """Tell which streamlines cross a mask anywhere along the straight lines between points.

    Parameters
    ----------
    points, first, last, shape, mask
        As :func:`test_vertices` has them.
    transform : array, float64, shape (3, 4)
        World to voxels of the cropped mask, in double precision.
    hit : array of bool, shape (n_streamlines,)
        Streamlines that are hit already stay so; the others are tested.
    """
    place, step = np.empty(3), np.empty(3)
    voxel, walk = np.empty(3, dtype=np.int64), np.empty((3, 3))
    # Voxel 0 reaches from -0.5 to 0.5. The margin is far above rounding.
    low, high_u, high_v, high_w = -1e-6, shape[0] + 1e-6, shape[1] + 1e-6, shape[2] + 1e-6
    a, b, c = transform[0], transform[1], transform[2]
    for i in range(first.size):
        if hit[i]:
            continue
        before = 0
        old_u = old_v = old_w = 0.0
        for j in range(first[i], last[i]):
            x, y, z = np.float64(points[j, 0]), np.float64(points[j, 1]), np.float64(points[j, 2])
            u = a[0] * x + a[1] * y + a[2] * z + a[3] + _HALF
            v = b[0] * x + b[1] * y + b[2] * z + b[3] + _HALF
            w = c[0] * x + c[1] * y + c[2] * z + c[3] + _HALF
            # One bit for each side of the box that the point is beyond. A segment that is beyond
            # a side with both ends needs no walk.
            beyond = (
                (u < low) | (u > high_u) << 1 | (v < low) << 2
                | (v > high_v) << 3 | (w < low) << 4 | (w > high_w) << 5
            )  # fmt: skip
            if j > first[i] and not beyond & before:
                place[0], place[1], place[2] = old_u, old_v, old_w
                step[0], step[1], step[2] = u - old_u, v - old_v, w - old_w
                if (
                    np.isfinite(step[0]) and np.isfinite(step[1]) and np.isfinite(step[2])
                    and _may_hit(place, step, shape, mask)
                    and _segment_hits(place, step, shape, mask, voxel, walk)
                ):  # fmt: skip
                    hit[i] = True
                    break
            before = beyond
            old_u, old_v, old_w = u, v, w


@compiled()
def _transformed(matrix: Any, axis: int, x: Any, y: Any, z: Any) -> float:
    """Coordinate of a transformed point, in double precision.

    Eigen works on the first two rows at once, from left to right, and adds the last one as a
    tree.
    """
    row = matrix[axis]
    if axis < 2:
        return ((row[0] * x + row[1] * y) + row[2] * z) + row[3]
    return (row[0] * x + row[1] * y) + (row[2] * z + row[3])


@compiled()
def nearest_nodes(
    ends: Any,
    inverse: Any,
    forward: Any,
    offsets: Any,
    radius: Any,
    half_diagonal: Any,
    shape: Any,
    labels: Any,
    nodes: Any,
) -> None:
    """Node nearest to each end within a radius, by tck2connectome's radial search.

    Parameters
    ----------
    ends : array, float32, shape (n, 3)
        World positions, mm.
    inverse, forward : arrays, float64, shape (3, 4)
        World to voxel and back.
    offsets : array, int64, shape (n_offsets, 3)
        Neighbouring voxels, near ones first, from :func:`search_offsets`.
    radius, half_diagonal : float
        In mm; half the diagonal of a voxel.
    shape : array, int64, shape (3,)
    labels : array of int32, shape (n_voxels,)
        C order; 0 is no node.
    nodes : array of int, shape (n,)
        Result, of a type that holds every label; 0 where there is no node.
    """
    centre = np.empty(3, dtype=np.int64)
    for i in range(ends.shape[0]):
        nodes[i] = 0
        x, y, z = np.float64(ends[i, 0]), np.float64(ends[i, 1]), np.float64(ends[i, 2])
        usable = True
        for axis in range(3):
            place = _transformed(inverse, axis, x, y, z)
            if not abs(place) < 1e9:
                usable = False
                break
            # Halves away from zero. Adding one half first would round what is just below it up.
            size = np.floor(abs(place))
            if abs(place) - size >= _HALF:
                size += 1.0
            centre[axis] = int(size) if place >= 0 else -int(size)
        if not usable:
            continue
        best = radius
        for k in range(offsets.shape[0]):
            a, b, c = (
                centre[0] + offsets[k, 0],
                centre[1] + offsets[k, 1],
                centre[2] + offsets[k, 2],
            )
            squared = 0.0
            for axis in range(3):
                place = _transformed(forward, axis, a, b, c)
                way = place - np.float64(ends[i, axis])
                squared += way * way
            distance = np.sqrt(squared)
            if distance > best + 2 * half_diagonal:
                break
            if not distance < best:
                continue
            if a < 0 or b < 0 or c < 0 or a >= shape[0] or b >= shape[1] or c >= shape[2]:
                continue
            label = labels[(a * shape[1] + b) * shape[2] + c]
            if label != 0:
                best = distance
                nodes[i] = label
