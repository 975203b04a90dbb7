"""Tractograms of every format that can be read: .tck, .trk, .trk.gz, .trx and .tt.gz.

All of them come out as one stream of streamlines in scanner space (mm, RAS+), in the order of the
file and with its empty streamlines, because weights and assignments count those.

The .trx archive is read here and not with trx-python: that package opens its files for writing
(so nothing on a read-only file system can be opened), unpacks compressed archives as a whole into
a temporary folder, refuses a file for a fault in values that are not needed here, loses the last
streamline of archives of early writers, and wants Python 3.11 or later. Only two members of the
archive matter.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import nibabel as nb
import numpy as np
from nibabel.streamlines.tractogram_file import HeaderError, HeaderWarning
from numpy.typing import NDArray

from lacuna_nipype.connectomes.tractogram import check_tck, iter_tck_streamlines
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import open_regular, parse_json, read_json

TRACTOGRAM_SUFFIXES = (".tck", ".trk", ".trk.gz", ".trx", ".tt.gz")
# No streamline is that long; a damaged number of points would otherwise fill the memory.
_MAX_STREAMLINE_BYTES = 1 << 28
_BUFFER_BYTES = 1 << 20
_TRX_BLOCK = 1 << 14
_TRX_POSITIONS = {f"positions.3.float{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)}
_TRX_OFFSETS = {f"offsets.uint{bits}": np.dtype(f"<u{bits // 8}") for bits in (32, 64)}
# Types of a MATLAB 4 matrix by the tens of its type number, little endian and full.
_MATLAB_DTYPES = {0: "<f8", 1: "<f4", 2: "<i4", 3: "<i2", 4: "<u2", 5: "u1"}
_TT_UNITS = 32
_MOST_HEADER_BYTES = 1 << 24
# What the libraries raise for headers and points that are damaged or absurd; NotImplementedError
# is zipfile's, for a .trx with encryption or a method of compression that it does not have.
_DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, OverflowError),
    *(NotImplementedError, RuntimeError, MemoryError, ZeroDivisionError, RecursionError),
    *(zlib.error, zipfile.BadZipFile, struct.error, np.linalg.LinAlgError),
)


@dataclass(frozen=True)
class TractogramHeader:
    """What a tractogram says before its first streamline.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    suffix : str
        One of ``TRACTOGRAM_SUFFIXES``.
    count : int or None
        Number of streamlines; None where the format or the file does not tell.
    datatype : str
        How coordinates are stored.
    step_size : float or None
        Distance between consecutive points in mm, which only .tck files tell.
    """

    path: Path
    suffix: str
    count: int | None
    datatype: str
    step_size: float | None = None


def tractogram_suffix(path: str | os.PathLike[str]) -> str | None:
    """Give the suffix that makes a file a tractogram.

    Parameters
    ----------
    path : path-like
        Only the name is looked at.

    Returns
    -------
    str or None
        One of ``TRACTOGRAM_SUFFIXES``; None for any other name.
    """
    name = Path(path).name
    return next((suffix for suffix in TRACTOGRAM_SUFFIXES if name.endswith(suffix)), None)


def read_tractogram_header(path: str | os.PathLike[str]) -> TractogramHeader:
    """Read what a tractogram says before its first streamline.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    TractogramHeader
        The header; a .tck file is also checked for its end.

    Raises
    ------
    ValidationError
        The file is missing, has another suffix, is not what its suffix says, is damaged as far
        as can be seen without reading it all, or does not say where it lies in space.
    """
    path = Path(path)

    def read() -> TractogramHeader:
        kind = _format(path)
        open_regular(path).close()
        return kind.read_header(path)

    return cast(TractogramHeader, _guarded(path, read))


def iter_streamlines(path: str | os.PathLike[str]) -> Iterator[NDArray[np.float32]]:
    """Read the streamlines of a tractogram one after the other.

    Memory use is a few megabytes, whatever the size of the file, and nothing is unpacked to disk.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    iterator of numpy.ndarray
        Points in scanner space (mm, RAS+), float32, shape (n, 3), in the order of the file. An
        empty streamline has shape (0, 3). Coordinates that are not finite are passed on.

    Raises
    ------
    ValidationError
        As :func:`read_tractogram_header`, at the call; or while reading, where the file turns
        out to be truncated or damaged.
    """
    header = read_tractogram_header(path)
    streamlines = _format(header.path).read_streamlines(header)

    def guarded() -> Iterator[NDArray[np.float32]]:
        while True:
            streamline = _guarded(header.path, lambda: next(streamlines, None))
            if streamline is None:
                return
            yield streamline

    return guarded()


def tractogram_sidecar(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Read the JSON file beside a tractogram.

    Parameters
    ----------
    path : path-like
        The tractogram.

    Returns
    -------
    tuple of pathlib.Path and dict
        Place of the JSON file, and its content; empty where there is none.

    Raises
    ------
    ValidationError
        The JSON file does not hold a JSON object.
    """
    path = Path(path)
    suffix = tractogram_suffix(path) or path.suffix
    sidecar = path.with_name(path.name.removesuffix(suffix) + ".json")
    if not sidecar.is_file():
        return sidecar, {}
    try:
        content = read_json(sidecar)
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ValidationError(f"{sidecar} is not valid JSON; repair or remove it.")
    return sidecar, content


def _refuse(path: Path, problem: str) -> NoReturn:
    raise ValidationError(f"{path} {problem}.") from None


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """Read, and say in one sentence what is wrong with the file."""
    try:
        return read()
    except ValidationError:
        raise
    except FileNotFoundError:
        _refuse(path, "does not exist; check the path")
    except (IsADirectoryError, PermissionError) as error:
        _refuse(path, f"cannot be read ({error.strerror}); check the path and its permissions")
    except _DAMAGE:
        _refuse(
            path,
            "is not a whole file of its format (truncated, damaged or renamed); copy or download "
            "it again",
        )


def _leads_somewhere(affine: NDArray[np.floating]) -> bool:
    """Tell whether a matrix gives each point a place of its own."""
    return bool(np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]) != 0)


# .tck


def _read_tck_header(path: Path) -> TractogramHeader:
    header = check_tck(path)
    return TractogramHeader(path, ".tck", header.count, header.datatype, header.step_size)


def _read_tck(header: TractogramHeader) -> Iterator[NDArray[np.float32]]:
    return iter_tck_streamlines(header.path)


# .trk and .trk.gz


class _WholeReads(io.BufferedReader):
    """A file from which nibabel gets all the bytes it asks for, or none at the end."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_STREAMLINE_BYTES:
            raise EOFError(f"a streamline of {size} bytes")
        data = super().read(size)
        if len(data) not in (0, size):
            raise EOFError
        return data


_TRK_SIZES = ("nb_streamlines", "nb_scalars_per_point", "nb_properties_per_streamline")


def _open_trk(path: Path) -> _WholeReads:
    raw: Any = gzip.GzipFile(path) if path.suffix == ".gz" else io.FileIO(path)
    return _WholeReads(raw, _BUFFER_BYTES)


def _load_trk(path: Path, stream: BinaryIO) -> nb.streamlines.TrkFile:
    if stream.read(5) != b"TRACK":
        _refuse(path, 'is not a TrackVis file (it does not start with "TRACK")')
    stream.seek(0)
    # A voxel size of zero is looked at afterwards.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Without this matrix the coordinates are some voxel's, and no position is known.
        warnings.filterwarnings("error", ".*vox_to_ras", HeaderWarning)
        try:
            return nb.streamlines.TrkFile.load(stream, lazy_load=True)
        except HeaderWarning:
            _refuse(
                path,
                "does not say where it lies in space (vox_to_ras is missing, as in version 1 of "
                "the format); export it again with the image it was made from",
            )
        except HeaderError as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            _refuse(path, f"has an unusable header ({reason}); write it again")


def _read_trk_header(path: Path) -> TractogramHeader:
    with _open_trk(path) as stream:
        loaded = _load_trk(path, stream)
    sizes = [int(loaded.header[key]) for key in _TRK_SIZES]
    if min(sizes) < 0:
        _refuse(path, "has an unusable header (negative numbers of values); write it again")
    with np.errstate(all="ignore"):
        affine = nb.streamlines.trk.get_affine_trackvis_to_rasmm(loaded.header)
    if not _leads_somewhere(affine):
        _refuse(path, "has a voxel size or a matrix that no image can have; write it again")
    # TrackVis writes 0 for a number that it does not know.
    count = int(loaded.header["nb_streamlines"]) or None
    suffix = ".trk.gz" if path.suffix == ".gz" else ".trk"
    order = "LE" if loaded.header["endianness"] == "<" else "BE"
    return TractogramHeader(path, suffix, count, f"Float32{order}")


def _read_trk(header: TractogramHeader) -> Iterator[NDArray[np.float32]]:
    n_read = 0
    with _open_trk(header.path) as stream:
        for streamline in _load_trk(header.path, stream).streamlines:
            yield np.asarray(streamline, np.float32)
            n_read += 1
    # nibabel ends without a word where a file ends between two streamlines.
    if header.count is not None and n_read < header.count:
        _refuse(
            header.path,
            f"is truncated ({n_read} of {header.count} streamlines are there), as after an "
            "interrupted copy; copy or download it again",
        )


# .trx


@dataclass(frozen=True)
class _TrxLayout:
    """Where an archive keeps what is read from it, and how much of it there is."""

    positions: str
    offsets: str
    n_offsets: int
    n_vertices: int
    has_end: bool

    @property
    def n_streamlines(self) -> int:
        return self.n_offsets - self.has_end


def _trx_layout(path: Path, archive: zipfile.ZipFile) -> _TrxLayout:
    names = archive.namelist()
    positions = next((name for name in names if name in _TRX_POSITIONS), None)
    offsets = next((name for name in names if name in _TRX_OFFSETS), None)
    if "header.json" not in names:
        _refuse(path, "is not a TRX archive (header.json is missing)")
    if archive.getinfo("header.json").file_size > _MOST_HEADER_BYTES:
        _refuse(path, "has a header.json of absurd size; write it again")
    try:
        content = parse_json(archive.read("header.json").decode("utf-8"))
        n_streamlines, n_vertices = int(content["NB_STREAMLINES"]), int(content["NB_VERTICES"])
    except (ValueError, KeyError, TypeError, OverflowError):
        _refuse(path, "has a header.json without NB_STREAMLINES and NB_VERTICES; write it again")
    if n_streamlines == 0:
        _refuse(path, "holds no streamlines; use a tractogram that does")
    if positions is None or offsets is None:
        _refuse(path, "lacks positions or offsets of a type that TRX allows; write it again")
    size, width = archive.getinfo(offsets).file_size, _TRX_OFFSETS[offsets].itemsize
    n_offsets = size // width
    if (
        size % width
        or not n_streamlines <= n_offsets <= n_streamlines + 1
        or archive.getinfo(positions).file_size
        != 3 * n_vertices * _TRX_POSITIONS[positions].itemsize
    ):
        _refuse(path, "does not hold as many points as its header says; write it again")
    # Early writers left out the end of the last streamline, and some then miscounted by one.
    has_end = n_offsets > n_streamlines and _last_offset(archive, offsets) == n_vertices
    return _TrxLayout(positions, offsets, n_offsets, n_vertices, has_end)


def _last_offset(archive: zipfile.ZipFile, name: str) -> int:
    with archive.open(name) as member:
        member.seek(-_TRX_OFFSETS[name].itemsize, os.SEEK_END)
        return int.from_bytes(member.read(), "little")


def _read_trx_header(path: Path) -> TractogramHeader:
    with zipfile.ZipFile(path) as archive:
        layout = _trx_layout(path, archive)
    datatype = layout.positions.split(".")[-1].capitalize() + "LE"
    return TractogramHeader(path, ".trx", layout.n_streamlines, datatype)


def _read_trx(header: TractogramHeader) -> Iterator[NDArray[np.float32]]:
    with zipfile.ZipFile(header.path) as archive:
        layout = _trx_layout(header.path, archive)
        dtype = _TRX_POSITIONS[layout.positions]
        with archive.open(layout.positions) as member:
            stream = io.BufferedReader(cast(io.RawIOBase, member), _BUFFER_BYTES)
            for length in _trx_lengths(header.path, archive, layout):
                size = 3 * length * dtype.itemsize
                data = stream.read(size) if size <= _MAX_STREAMLINE_BYTES else b""
                if len(data) < size:
                    raise EOFError
                with np.errstate(over="ignore"):
                    points = np.frombuffer(data, dtype).astype(np.float32)
                yield points.reshape(length, 3)


def _trx_lengths(path: Path, archive: zipfile.ZipFile, layout: _TrxLayout) -> Iterator[int]:
    """Give the number of points of each streamline, from where each begins."""
    dtype = _TRX_OFFSETS[layout.offsets]
    last = None
    with archive.open(layout.offsets) as stream:
        for n_before in range(0, layout.n_offsets, _TRX_BLOCK):
            n_read = min(_TRX_BLOCK, layout.n_offsets - n_before)
            offsets = np.frombuffer(stream.read(n_read * dtype.itemsize), dtype).astype(np.int64)
            if not layout.has_end and n_before + n_read == layout.n_offsets:
                offsets = np.append(offsets, layout.n_vertices)
            lengths = np.diff(offsets if last is None else np.append(last, offsets))
            if (last is None and offsets[0] != 0) or (lengths < 0).any():
                _refuse(path, "has offsets that do not match its points; write it again")
            yield from lengths.tolist()
            last = offsets[-1]


# .tt.gz: matrices of MATLAB 4, one after the other. A track is its number of coordinates, its
# first point, and the steps from point to point, in 1/32 of a voxel; voxel centres are whole
# numbers, and trans_to_mni leads to mm. (TinyTrack in tract_model.cpp of DSI Studio.)


def _read_tt_header(path: Path) -> TractogramHeader:
    with gzip.open(path, "rb") as stream:
        next(_tt_blocks(path, stream), None)
    return TractogramHeader(path, ".tt.gz", None, f"1/{_TT_UNITS} voxel")


def _tt_blocks(path: Path, stream: Any) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Stop at each block of tracks, giving its size in bytes and the affine."""
    affine, found = None, False
    while start := stream.read(20):
        kind, n_rows, n_columns, imaginary, n_name = struct.unpack("<5i", start)
        dtype = _MATLAB_DTYPES.get(kind // 10)
        if dtype is None or imaginary or not 0 < n_name <= 64 or n_rows < 0 or n_columns < 0:
            _refuse(path, "is not a TinyTrack file of DSI Studio, or is damaged")
        name = _exactly(stream, n_name).rstrip(b"\0").decode("latin-1")
        size = n_rows * n_columns * np.dtype(dtype).itemsize
        if name == "trans_to_mni" and n_rows * n_columns == 16:
            affine = np.frombuffer(stream.read(size), dtype).reshape(4, 4).astype(np.float64)
            if not _leads_somewhere(affine):
                _refuse(path, "has an unusable matrix (trans_to_mni); write it again")
        elif name.startswith("track") and not name.removeprefix("track").strip("0123456789"):
            if affine is None:
                _refuse(path, "does not say where it lies in space (trans_to_mni is missing)")
            found = True
            yield size, affine
        else:
            end = stream.tell() + size
            if stream.seek(end) != end:
                raise EOFError
    if not found:
        _refuse(path, "is not a TinyTrack file of DSI Studio (it holds no tracks)")


def _exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _read_tt(header: TractogramHeader) -> Iterator[NDArray[np.float32]]:
    with gzip.open(header.path, "rb") as stream:
        for size, affine in _tt_blocks(header.path, stream):
            while size > 0:
                n_numbers, *first = struct.unpack("<I3i", stream.read(16))
                size -= n_numbers + 13
                if size < 0 or n_numbers == 0 or n_numbers % 3:
                    raise EOFError
                deltas = np.frombuffer(
                    stream.read(min(n_numbers, _MAX_STREAMLINE_BYTES) - 3), "i1"
                )
                if len(deltas) != n_numbers - 3:
                    raise EOFError
                steps = np.concatenate([[first], deltas.reshape(-1, 3)])
                points = np.cumsum(steps, axis=0) / _TT_UNITS
                yield (points @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


@dataclass(frozen=True)
class _Format:
    """How files of one suffix are read."""

    read_header: Callable[[Path], TractogramHeader]
    read_streamlines: Callable[[TractogramHeader], Iterator[NDArray[np.float32]]]


_FORMATS = {
    ".tck": _Format(_read_tck_header, _read_tck),
    ".trk": _Format(_read_trk_header, _read_trk),
    ".trk.gz": _Format(_read_trk_header, _read_trk),
    ".trx": _Format(_read_trx_header, _read_trx),
    ".tt.gz": _Format(_read_tt_header, _read_tt),
}


def _format(path: Path) -> _Format:
    suffix = tractogram_suffix(path)
    if suffix is None:
        _refuse(path, f"is not a tractogram ({', '.join(TRACTOGRAM_SUFFIXES)})")
    return _FORMATS[suffix]
