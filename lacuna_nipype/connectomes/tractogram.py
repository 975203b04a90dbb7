"""MRtrix track files (.tck): header, integrity, step size, and streaming in both directions.

Everything follows what MRtrix3 3.0.3 itself does with such a file, except where MRtrix accepts
in silence a file that is damaged: a copy that lost its end is read by every MRtrix command
without a word, and the streamlines that are gone look like healthy disconnection.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path, open_regular
from lacuna_nipype.core.text import whole_number

_MAGIC = b"mrtrix tracks"
# A header holds text only, mostly a command history; anything longer is not a header.
_MAX_HEADER_BYTES = 1 << 24
_TAIL_BYTES = 1 << 16
_DTYPES: dict[str, np.dtype[Any]] = {
    "float32le": np.dtype("<f4"),
    "float32be": np.dtype(">f4"),
    "float64le": np.dtype("<f8"),
    "float64be": np.dtype(">f8"),
}
# Fields that the writer decides itself; copies in a caller's mapping are dropped.
_OWN_FIELDS = frozenset({"count", "total_count", "datatype", "file", "step_size"})
_COUNT_WIDTH = 20
# A step is regular when this share of the segments is within this share of the median.
REGULAR_SHARE = 0.9
STEP_TOLERANCE = 0.05


@dataclass(frozen=True)
class TckHeader:
    """What the text header of a .tck file says.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    count : int or None
        Number of streamlines according to the header; None when absent or unreadable.
    datatype : str
        ``Float32LE``, ``Float32BE``, ``Float64LE`` or ``Float64BE``.
    offset : int
        Position of the first point, in bytes.
    step_size : float or None
        Distance between consecutive points in mm; None where MRtrix does not know it either
        (see :func:`parse_step_size`).
    fields : dict of str to str
        Every field but ``datatype`` and ``file``; values of a repeated key are joined by newlines.
    """

    path: Path
    count: int | None
    datatype: str
    offset: int
    step_size: float | None
    fields: dict[str, str]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Numpy type of one coordinate as stored, byte order included."""
        return _DTYPES[self.datatype.lower()]


@dataclass(frozen=True)
class StepSize:
    """Distance between consecutive points, measured on a sample of a tractogram.

    Attributes
    ----------
    median : float
        Median length of the segments in mm.
    regular : bool
        True when at least 90 % of the segments are within 5 % of the median.
    n_segments : int
        Number of segments measured.
    """

    median: float
    regular: bool
    n_segments: int


def parse_step_size(text: str | None) -> float | None:
    """Read a ``step_size`` field as MRtrix does.

    Parameters
    ----------
    text : str or None
        Value of the field; None when the header has none.

    Returns
    -------
    float or None
        Step in mm. None when absent, not a number (tckedit writes ``variable`` when it merges
        files whose steps differ), zero or not finite: there tckmap does not upsample. None also
        for a negative number, on which tckmap crashes unless ``-upsample`` is given.
    """
    # float() takes underscores, which C++ does not.
    if text is None or "_" in text:
        return None
    try:
        step = float(text)
    except ValueError:
        return None
    return step if math.isfinite(step) and step > 0 else None


def read_tck_header(path: str | os.PathLike[str]) -> TckHeader:
    """Read the text header of a .tck file.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    TckHeader
        The header; the points are not looked at.

    Raises
    ------
    ValidationError
        The file is missing, is not a .tck, its header is cut or lacks the place of the points,
        or the datatype is none of the four that MRtrix supports.
    """
    path = Path(path)
    # Byte for byte what MRtrix commands insist on.
    if path.suffix != ".tck":
        _refuse(path, "does not end in .tck; convert it, or rename it if it is an MRtrix file")
    try:
        with open_regular(path) as stream:
            entries, end = _read_entries(path, stream)
    except FileNotFoundError:
        _refuse(path, "does not exist; check the path")
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror}); check the path and its permissions")

    fields: dict[str, str] = {}
    special = {"datatype": "", "file": ""}
    for key, value in entries:
        if key.lower() in special:
            special[key.lower()] = value
        else:
            fields[key] = f"{fields[key]}\n{value}" if key in fields else value
    if special["datatype"].lower() not in _DTYPES:
        _refuse(
            path,
            f"has the datatype {special['datatype'] or '(none)'}, but only Float32LE, Float32BE, "
            "Float64LE and Float64BE can be read; export it again as one of them",
        )
    return TckHeader(
        path=path,
        count=_parse_count(fields.get("count")),
        datatype=_canonical_datatype(special["datatype"]),
        offset=_parse_offset(path, special["file"], end),
        step_size=parse_step_size(fields.get("step_size")),
        fields=fields,
    )


def check_tck(path: str | os.PathLike[str]) -> TckHeader:
    """Check that a .tck file is whole, reading its header and its two ends only.

    MRtrix stops without a word where a truncated file stops, so a file that lost its end marker
    is refused here. What MRtrix reads safely is accepted: an end marker of which only x is
    infinite, bytes after the marker, and a last streamline without its NaN separator (MRtrix
    drops that one).

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    TckHeader
        The header.

    Raises
    ------
    ValidationError
        As :func:`read_tck_header`; or the file is truncated, or holds no streamlines.
    """
    header = read_tck_header(path)
    size = header.path.stat().st_size - header.offset
    if size <= 0 and header.count == 0:
        _refuse(header.path, "holds no streamlines; use a tractogram that does")
    triplet = 3 * header.dtype.itemsize
    n_triplets = max(size, 0) // triplet
    n_tail = min(n_triplets, _TAIL_BYTES // triplet)
    with header.path.open("rb") as stream:
        first = _read_triplets(stream, header, 0, min(1, n_triplets))
        tail = _read_triplets(stream, header, n_triplets - n_tail, n_tail)
    if len(first) and np.isinf(first[0, 0]):
        _refuse(header.path, "holds no streamlines; use a tractogram that does")
    if not np.isinf(tail[:, 0]).any():
        _refuse(
            header.path,
            "is truncated (its end marker is missing), as after an interrupted copy or download; "
            "copy or download it again",
        )
    return header


def measure_step_size(
    header: TckHeader, *, n_blocks: int = 32, block_bytes: int = 1 << 20
) -> StepSize:
    """Measure the distance between consecutive points on evenly spaced blocks of the file.

    Parameters
    ----------
    header : TckHeader
        The file, as :func:`read_tck_header` gives it.
    n_blocks : int, optional
        Number of blocks. At most ``n_blocks * block_bytes`` bytes are read, whatever the file's
        size; a smaller file is read once.
    block_bytes : int, optional
        Size of a block in bytes.

    Returns
    -------
    StepSize
        Median in mm (float64 arithmetic), regularity (at least 90 % of the segments within 5 % of
        the median) and number of segments.

    Raises
    ------
    ValidationError
        No two consecutive points were found.
    """
    blocks = sample_blocks(header, n_blocks=n_blocks, block_bytes=block_bytes)
    lengths = [segment_lengths(points) for points in blocks]
    step = summarize_segments(np.concatenate(lengths) if lengths else np.empty(0))
    if step is None:
        _refuse(
            header.path, "has no streamline of two points, so its step size cannot be measured"
        )
    return step


def summarize_segments(lengths: NDArray[np.float64]) -> StepSize | None:
    """Reduce the lengths of segments to their median and whether it describes them.

    Parameters
    ----------
    lengths : numpy.ndarray
        Distances between consecutive points in mm, finite, shape (n,).

    Returns
    -------
    StepSize or None
        None for no segments.
    """
    if not lengths.size:
        return None
    median = float(np.median(lengths))
    n_close = count_close(lengths, median)
    return StepSize(median, n_close >= REGULAR_SHARE * lengths.size, int(lengths.size))


def count_close(lengths: NDArray[np.float64], step_size: float) -> int:
    """Count the segments whose length is within 5 % of a step.

    Parameters
    ----------
    lengths : numpy.ndarray
        Distances between consecutive points in mm, shape (n,).
    step_size : float
        The step in mm.

    Returns
    -------
    int
        Number of segments, 0 to n.
    """
    return int(np.count_nonzero(np.abs(lengths - step_size) <= STEP_TOLERANCE * step_size))


def segment_lengths(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Measure the segments of streamlines that are separated as in a .tck file.

    Parameters
    ----------
    points : numpy.ndarray
        Points in mm, shape (n, 3), with a row of NaN between streamlines; a row of infinities
        may stand at the end.

    Returns
    -------
    numpy.ndarray
        Distances between consecutive points of the same streamline in mm (float64 arithmetic),
        shape (m,), all finite.
    """
    # A difference with a separator is NaN, one with the end marker infinite or NaN.
    with np.errstate(invalid="ignore"):
        differences = np.diff(points.astype(np.float64), axis=0)
    lengths: NDArray[np.float64] = np.sqrt((differences**2).sum(axis=1))
    return lengths[np.isfinite(lengths)]


def sample_blocks(
    header: TckHeader, *, n_blocks: int = 32, block_bytes: int = 1 << 20
) -> Iterator[NDArray[np.float32]]:
    """Read evenly spaced blocks of a .tck file, or all of it where it is smaller.

    Parameters
    ----------
    header : TckHeader
        The file, as :func:`read_tck_header` gives it.
    n_blocks : int, optional
        Number of blocks; at most ``n_blocks * block_bytes`` bytes are read.
    block_bytes : int, optional
        Size of a block in bytes.

    Yields
    ------
    numpy.ndarray
        Points as stored, float32, shape (n, 3), separators and end marker included. Blocks begin
        and end anywhere within streamlines.
    """
    triplet = 3 * header.dtype.itemsize
    n_triplets = max(header.path.stat().st_size - header.offset, 0) // triplet
    per_block = max(block_bytes // triplet, 2)
    with header.path.open("rb") as stream:
        for start in _block_starts(n_triplets, per_block, max(n_blocks, 1)):
            yield _read_triplets(stream, header, start, per_block)


def upsample_ratio(step_size: float, voxel_sizes: Sequence[float]) -> int:
    """Give the upsampling ratio that tckmap chooses for a step size and a grid.

    Parameters
    ----------
    step_size : float
        Distance between consecutive points in mm; rounded to float32 first, as MRtrix does.
    voxel_sizes : sequence of float
        Voxel size of the grid along each axis in mm, in double precision.

    Returns
    -------
    int
        ``ceil(step / (min(voxel_sizes) * float32(0.333)))``, at least 1; 1 also for a step that is
        zero or not finite.

    Raises
    ------
    ValidationError
        A voxel size is missing, zero, negative or not finite.
    """
    sizes = [float(size) for size in voxel_sizes]
    if not sizes or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise ValidationError(f"Voxel sizes must be positive numbers of mm, not {sizes}.")
    step = float(np.float32(step_size))
    if not math.isfinite(step) or step <= 0:
        return 1
    return max(1, math.ceil(step / (min(sizes) * float(np.float32(0.333)))))


def iter_tck_streamlines(
    path: str | os.PathLike[str], *, chunk_bytes: int = 1 << 24
) -> Iterator[NDArray[np.float32]]:
    """Read the streamlines of a .tck file one after the other, by MRtrix's rules.

    A NaN in x ends a streamline, an infinite x ends the file, and so does the end of the file;
    points after the last separator are dropped. The ``count`` of the header is not used.

    Parameters
    ----------
    path : path-like
        The file.
    chunk_bytes : int, optional
        Size of one read; memory use is this plus the longest streamline.

    Returns
    -------
    iterator of numpy.ndarray
        Points in scanner space (mm), float32, shape (n, 3), each owning its memory. An empty
        streamline has shape (0, 3): it counts, because weights and assignments count it.

    Raises
    ------
    ValidationError
        As :func:`read_tck_header`, at the call and not at the first streamline.
    """
    return _stream_streamlines(read_tck_header(path), chunk_bytes)


def write_tck(
    path: str | os.PathLike[str],
    streamlines: Iterable[NDArray[Any]],
    *,
    step_size: float | None,
    fields: Mapping[str, str] | None = None,
) -> int:
    """Write streamlines to a Float32LE .tck file, one at a time and atomically.

    Empty streamlines are kept, as they have an index of their own; drop them first where
    tck2connectome is to read the file, because it crashes on them.

    Parameters
    ----------
    path : path-like
        File to write, ending in .tck.
    streamlines : iterable of array_like
        Points in scanner space (mm), shape (n, 3) each.
    step_size : float or None
        Distance between consecutive points in mm. Give it whenever it is known: without it tckmap
        does not upsample and misses voxels in silence.
    fields : mapping of str to str, optional
        More header fields; a value of several lines becomes a repeated key. The fields of another
        header may be passed as they are: those the writer owns (count, total_count, datatype,
        file, step_size) are dropped.

    Returns
    -------
    int
        Number of streamlines written, which is also the header's ``count``.

    Raises
    ------
    ValidationError
        The name does not end in .tck, the step is not a positive number, a field's key is not
        usable, or a streamline is not (n, 3) or not finite in float32.
    """
    path = Path(path)
    if path.suffix != ".tck":
        _refuse(path, "does not end in .tck, which MRtrix needs; choose such a name")
    if step_size is not None and not (math.isfinite(step_size) and step_size > 0):
        raise ValidationError(f"The step size must be a positive number of mm, not {step_size}.")
    text, count_position = _compose_header(step_size, fields or {})
    separator = np.full(3, np.nan, "<f4").tobytes()
    count = 0
    with atomic_path(path) as temporary, temporary.open("wb", buffering=1 << 20) as stream:
        stream.write(text)
        for streamline in streamlines:
            stream.write(_checked_points(path, streamline, count))
            stream.write(separator)
            count += 1
        stream.write(np.full(3, np.inf, "<f4").tobytes())
        stream.seek(count_position)
        stream.write(str(count).encode())
    return count


def _refuse(path: Path, problem: str) -> NoReturn:
    raise ValidationError(f"{path} {problem}.") from None


def _read_entries(path: Path, stream: BinaryIO) -> tuple[list[tuple[str, str]], int]:
    """Give the header's (key, value) pairs in order and the position after its END line."""
    if not stream.readline(len(_MAGIC) + 1024).startswith(_MAGIC):
        _refuse(path, 'is not an MRtrix track file (it does not start with "mrtrix tracks")')
    entries: list[tuple[str, str]] = []
    while stream.tell() < _MAX_HEADER_BYTES:
        raw = stream.readline(_MAX_HEADER_BYTES)
        if not raw.endswith(b"\n") and raw.strip() != b"END":
            break
        line = raw.decode("utf-8", errors="replace").split("#", 1)[0].strip()
        if line == "END":
            return entries, stream.tell()
        key, colon, value = line.partition(":")
        if colon and key.strip():
            entries.append((key.strip(), value.strip()))
    _refuse(path, "has a header that is cut (no END line); copy or download it again")


def _canonical_datatype(text: str) -> str:
    return text[:5].capitalize() + text[5:7] + text[7:].upper()


def _parse_count(text: str | None) -> int | None:
    return None if text is None else whole_number(text)


def _parse_offset(path: Path, text: str, header_end: int) -> int:
    words = text.split()
    if words and words[0] != ".":
        _refuse(path, f"keeps its points in another file ({words[0]}); join them with tckedit")
    offset = whole_number(words[1]) if len(words) == 2 else None
    if offset is None:
        _refuse(path, 'has no usable "file: . OFFSET" line in its header; write it again')
    if offset < header_end:
        _refuse(path, "says that its points start inside its own header; write it again")
    return offset


def _read_triplets(
    stream: BinaryIO, header: TckHeader, start: int, n_triplets: int
) -> NDArray[np.float32]:
    """Read points as MRtrix sees them: cast to float32 before anything is looked at."""
    stream.seek(header.offset + start * 3 * header.dtype.itemsize)
    data = stream.read(n_triplets * 3 * header.dtype.itemsize)
    usable = len(data) - len(data) % (3 * header.dtype.itemsize)
    with np.errstate(over="ignore"):
        points = np.frombuffer(data[:usable], header.dtype).astype(np.float32)
    return points.reshape(-1, 3)


def _block_starts(n_triplets: int, per_block: int, n_blocks: int) -> list[int]:
    if n_triplets <= per_block * n_blocks:
        return list(range(0, n_triplets, per_block))
    starts = np.linspace(0, n_triplets - per_block, n_blocks)
    return [int(start) for start in starts]


def _stream_streamlines(header: TckHeader, chunk_bytes: int) -> Iterator[NDArray[np.float32]]:
    per_chunk = max(chunk_bytes // (3 * header.dtype.itemsize), 1)
    position = 0
    pending: list[NDArray[np.float32]] = []
    with header.path.open("rb") as stream:
        while len(points := _read_triplets(stream, header, position, per_chunk)):
            position += len(points)
            ends = np.flatnonzero(np.isinf(points[:, 0]))
            usable = points[: ends[0]] if ends.size else points
            start = 0
            for stop in np.flatnonzero(np.isnan(usable[:, 0])):
                # concatenate copies, so that keeping one streamline does not keep its chunk.
                yield np.concatenate([*pending, usable[start:stop]])
                pending = []
                start = int(stop) + 1
            if ends.size:
                return
            pending.append(usable[start:].copy())


def _compose_header(step_size: float | None, fields: Mapping[str, str]) -> tuple[bytes, int]:
    """Give the header's bytes, padded up to the first point, and the place of the count."""
    lines = [_MAGIC.decode()]
    if step_size is not None:
        lines.append(f"step_size: {float(step_size)!r}")
    for key, value in fields.items():
        if key.lower() in _OWN_FIELDS:
            continue
        if not key.strip() or set(key) & set(":#\r\n"):
            raise ValidationError(f"{key!r} cannot be the name of a .tck header field.")
        lines += [f"{key}: {line}" for line in str(value).splitlines()]
    lines += ["datatype: Float32LE", "count: "]
    start = "\n".join(lines).encode()
    # The count is known last: blanks, which every reader strips, keep its place.
    middle = b"0".ljust(_COUNT_WIDTH) + b"\nfile: . "
    offset = len(start) + len(middle) + 32
    offset += -offset % 4
    text = start + middle + f"{offset}\nEND\n".encode()
    return text.ljust(offset, b"\0"), len(start)


def _checked_points(path: Path, streamline: NDArray[Any], index: int) -> bytes:
    with np.errstate(over="ignore"):
        points = np.asarray(streamline).astype("<f4")
    if points.ndim != 2 or points.shape[1] != 3:
        _refuse(path, f"cannot hold streamline {index}: its shape is {points.shape}, not (n, 3)")
    # NaN and infinity are the format's own marks; as coordinates they would cut the file.
    if not np.isfinite(points).all():
        _refuse(path, f"cannot hold streamline {index}: it has a coordinate that is not finite")
    return points.tobytes()
