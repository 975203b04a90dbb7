"""What a file says, read in the plainest way that numpy, h5py and nibabel offer.

Slow and short; shares no code with the package. A plain reader raises whatever it likes for a
file that it cannot read.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import nibabel as nb
import numpy as np

from .data import AFFINE, brain


def content(path: Path) -> bytes:
    """The bytes of a file, unpacked; a wrong checksum is an error."""
    if path.name.endswith(".gz"):
        try:
            return gzip.decompress(path.read_bytes())
        except (OSError, EOFError):
            # Something may stand behind a sound archive.
            inflate = zlib.decompressobj(wbits=31)
            data = inflate.decompress(path.read_bytes())
            if not inflate.eof:
                raise
            return data
    return path.read_bytes()


def image(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values and affine of a NIfTI image, of whichever version the header names."""
    data = content(path)
    kind = nb.Nifti2Image if data[4:7] in (b"n+2", b"ni2") else nb.Nifti1Image
    loaded = kind.from_bytes(data)
    values = np.asarray(loaded.dataobj)
    return values, np.asarray(loaded.affine, float)


def mask(path: Path) -> dict[str, Any]:
    """A mask of two values, 0 and 1 or 0 and 255."""
    values, affine = image(path)
    values = values.reshape(values.shape[:3])
    top = 255 if (values == 255).any() else 1
    near = np.abs(values[..., None].astype(float) - [0, top])
    if not (near.min(axis=-1) <= 1e-3).all():
        raise ValueError("not binary")
    return {"mask": near[..., 1] < near[..., 0], "affine": affine}


def volume_mask(path: Path) -> dict[str, Any]:
    """A brain mask of two values, 0 and any other."""
    values, affine = image(path)
    values = values.reshape(values.shape[:3])
    if len(np.unique(values)) > 2:
        raise ValueError("not binary")
    return {"voxels": np.array(np.nonzero(values)), "affine": affine}


def series(path: Path) -> dict[str, Any]:
    """Series of the voxels of the brain, taken by their places in the world."""
    values, affine = image(path)
    voxels = np.argwhere(brain())
    places = np.linalg.inv(affine) @ AFFINE @ np.c_[voxels, np.ones(len(voxels))].T
    own = np.rint(places[:3]).astype(int)
    if (own < 0).any():
        raise ValueError("outside")
    return {"series": values[tuple(own)].T.astype(np.float32)}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def connectome(path: Path) -> dict[str, Any]:
    """A functional connectome in Lacuna's layout."""
    with h5py.File(path, "r") as file:
        indices = np.asarray(file["mask_indices"][()])
        if indices.shape[0] != 3:
            indices = indices.T
        return {
            "series": np.asarray(file["timeseries"][()]),
            "voxels": indices,
            "affine": np.asarray(file["mask_affine"][()], float),
            "shape": list(np.ravel(file.attrs["mask_shape"])),
        }


def store(path: Path) -> dict[str, Any]:
    """The numbers of a store."""
    with h5py.File(path, "r") as file:
        return {
            **{key: np.asarray(file[key][()]) for key in ("coefficients", "scale", "norm")},
            "voxels": np.asarray(file["mask_indices"][()]),
            "affine": np.asarray(file["mask_affine"][()], float),
            "shape": list(np.ravel(file.attrs["mask_shape"])),
        }


def tck(path: Path) -> list[np.ndarray]:
    """Streamlines of a .tck file by MRtrix's rules."""
    data = path.read_bytes()
    if not data.startswith(b"mrtrix tracks"):
        raise ValueError("magic")
    fields = {}
    for raw in data.split(b"\n"):
        line = raw.decode("utf-8", "replace").split("#")[0].strip()
        if line == "END":
            break
        key, _, value = line.partition(":")
        fields[key.strip().lower()] = value.strip()
    dtype = {"float32le": "<f4", "float32be": ">f4", "float64le": "<f8", "float64be": ">f8"}
    dot, offset = fields["file"].split()
    if dot != ".":
        raise ValueError("file")
    with np.errstate(over="ignore"):
        body = data[int(offset) :]
        width = 3 * np.dtype(dtype[fields["datatype"].lower()]).itemsize
        body = body[: len(body) // width * width]
        flat = np.frombuffer(body, dtype[fields["datatype"].lower()]).astype(np.float32)
    lines: list[np.ndarray] = []
    current: list[Any] = []
    for point in flat.reshape(-1, 3):
        if np.isinf(point[0]):
            break
        if np.isnan(point[0]):
            lines.append(np.reshape(current, (-1, 3)))
            current = []
        else:
            current.append(point)
    return lines


def trk(path: Path) -> list[np.ndarray]:
    """Streamlines of a .trk file; the affine is nibabel's, the points are read here."""
    data = content(path)
    header = nb.streamlines.TrkFile.load(io.BytesIO(data), lazy_load=True).header
    affine = nb.streamlines.trk.get_affine_trackvis_to_rasmm(header)
    order = header["endianness"]
    n_scalars, n_properties = (
        int(header[key]) for key in ("nb_scalars_per_point", "nb_properties_per_streamline")
    )
    if n_scalars < 0 or n_properties < 0:
        raise ValueError("negative")
    place, lines = 1000, []
    while place < len(data) and (
        not header["nb_streamlines"] or len(lines) < header["nb_streamlines"]
    ):
        (n,) = struct.unpack_from(f"{order}i", data, place)
        if n < 0:
            raise ValueError("negative")
        count = n * (3 + n_scalars)
        values = np.frombuffer(data, f"{order}f4", count, place + 4).reshape(n, 3 + n_scalars)
        lines.append(values[:, :3].astype(float) @ affine[:3, :3].T + affine[:3, 3])
        place += 4 + 4 * (count + n_properties)
    if place > len(data):
        raise ValueError("short")
    return [line.astype(np.float32) for line in lines]


def trx(path: Path) -> list[np.ndarray]:
    """Streamlines of a TRX archive."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        positions = next(n for n in names if n.startswith("positions.3.float"))
        offsets = next(n for n in names if n.startswith("offsets.uint"))
        points = np.frombuffer(archive.read(positions), f"<f{int(positions[17:]) // 8}")
        starts = np.frombuffer(archive.read(offsets), f"<u{int(offsets[12:]) // 8}").astype(int)
        header = json.loads(archive.read("header.json"))
    points = points.reshape(-1, 3).astype(np.float32)
    n = int(header["NB_STREAMLINES"])
    ends = [*starts[1:], len(points)][:n]
    return [points[a:b] for a, b in zip(starts[:n], ends, strict=True)]


def tt(path: Path) -> list[np.ndarray]:
    """Streamlines of a TinyTrack file."""
    data, place = content(path), 0
    kinds = {0: "<f8", 1: "<f4", 2: "<i4", 3: "<i2", 4: "<u2", 5: "u1"}
    affine, lines = None, []
    while place < len(data):
        kind, rows, columns, _, n_name = struct.unpack_from("<5i", data, place)
        name = data[place + 20 : place + 20 + n_name].rstrip(b"\0")
        place += 20 + n_name
        size = rows * columns * np.dtype(kinds[kind // 10]).itemsize
        body = data[place : place + size]
        if len(body) < size or size < 0:
            raise ValueError("short")
        place += size
        if name == b"trans_to_mni":
            affine = np.frombuffer(body, kinds[kind // 10]).reshape(4, 4).astype(float)
        at = 0
        while name.startswith(b"track") and at < size:
            n, *first = struct.unpack_from("<I3i", body, at)
            steps = np.frombuffer(body, "i1", n - 3, at + 16).reshape(-1, 3).astype(int)
            points = np.cumsum(np.concatenate([[first], steps]), axis=0) / 32
            lines.append((points @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32))
            at += n + 13
    return lines


def table(path: Path, delimiter: str = "\t", *, quoted: bool = True) -> list[list[str]]:
    """Cells of a text file, with or without the rule for quotes."""
    lines = content(path).decode("utf-8-sig")
    if quoted:
        return [
            row for row in csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter) if row
        ]
    return [line.rstrip("\r").split(delimiter) for line in lines.split("\n") if line.strip()]


def region_names(path: Path) -> list[tuple[int, str]]:
    """Numbers and names of regions."""
    delimiter = {".tsv": "\t", ".csv": ","}.get(path.suffix)
    if delimiter:
        header, *rows = [r for r in table(path, delimiter) if "".join(r).strip()
                         and not r[0].startswith("#")]  # fmt: skip
        number, name = header.index("index"), header.index("name")
        pairs = [(int(row[number]), row[name].strip()) for row in rows]
    else:
        text = content(path).decode("utf-8-sig")
        # str.splitlines() would also split at a vertical tab.
        lines = [x.strip() for x in re.split(r"\r\n|\r|\n", text)]
        lines = [x for x in lines if x and not x.startswith("#")]
        try:
            split = [line.split(maxsplit=1) for line in lines]
            pairs = [(int(number), name) for number, name in split]
            if not all(x[0].isascii() and x[0].isdigit() for x in split):
                raise ValueError
        except ValueError:
            pairs = list(enumerate(lines, start=1))
    return [(number, name) for number, name in pairs if number]


def atlas(image_path: Path, names_path: Path) -> dict[str, Any]:
    """Regions of a labelled image or of probabilities: name, number, sum of weights, affine."""
    values, affine = image(image_path)
    names = region_names(names_path)
    regions = {}
    if values.ndim == 4 and values.shape[3] > 1:
        for place, (number, name) in enumerate(sorted(names)):
            volume = np.nan_to_num(values[..., place].astype(np.float32), posinf=0, neginf=0)
            regions[name] = [number, float(volume.sum(dtype=float))]
        if len(names) != values.shape[3] or any(total < 0 for _, total in regions.values()):
            raise ValueError("names")
    else:
        values = np.nan_to_num(values.reshape(values.shape[:3]).astype(float), posinf=np.inf)
        whole = np.rint(values)
        if np.abs(values - whole).max() > 1e-3:
            raise ValueError("not whole")
        for number, name in names:
            if (whole == number).any():
                regions[name] = [number, float((whole == number).sum())]
        if {n for n in np.unique(whole) if n > 0} - {number for number, _ in regions.values()}:
            raise ValueError("unnamed")
    return {"regions": regions, "affine": affine}


def affine_transform(path: Path) -> np.ndarray:
    """Matrix (RAS) of an affine that ITK wrote as text."""
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return _itk_matrix(fields["Parameters"].split(), fields["FixedParameters"].split())


def _itk_matrix(parameters: Any, fixed: Any) -> np.ndarray:
    numbers = np.array([float(x) for x in parameters])
    centre = np.array([float(x) for x in fixed])
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[:9].reshape(3, 3)
    matrix[:3, 3] = numbers[9:12] + centre - matrix[:3, :3] @ centre
    flip = np.diag([-1, -1, 1, 1])
    return flip @ matrix @ flip


def composite(path: Path, points: np.ndarray) -> np.ndarray:
    """Points far outside of any field, mapped by the affines of a composite."""
    matrix = np.eye(4)
    with h5py.File(path, "r") as file:
        group = file["TransformGroup"]
        for key in sorted(group):
            if b"Affine" in group[key]["TransformType"][0]:
                matrix = matrix @ _itk_matrix(
                    group[key]["TransformParameters"][()],
                    group[key]["TransformFixedParameters"][()],
                )
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def matrix(path: Path) -> dict[str, Any]:
    """A connectivity matrix with its names."""
    header, *rows = table(path)
    values = [[float("nan") if c == "n/a" else float(c) for c in row[1:]] for row in rows]
    array = np.array(values)
    if not np.array_equal(array, array.T, equal_nan=True) and not np.allclose(
        np.nan_to_num(array), np.nan_to_num(array.T), rtol=0, atol=1e-6
    ):
        raise ValueError("asymmetric")
    return {"names": header[1:], "values": array}


def weights(path: Path) -> np.ndarray:
    """Numbers of a text or .npy file."""
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False).astype(np.float32).ravel()
    text = path.read_bytes().decode("latin-1")
    words = " ".join(line.split("#")[0] for line in text.split("\n"))
    numbers = [float(w) for w in words.replace(",", " ").replace(";", " ").split()]
    with np.errstate(over="ignore"):
        return np.array(numbers, dtype=np.float64).astype(np.float32)


def groups(path: Path) -> dict[str, list[int]]:
    """Streamlines of each bundle."""
    header, *rows = table(path)
    found: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        cells = dict(zip(header, row, strict=False))
        place = int(cells["streamline"]) if "streamline" in cells else number
        if cells["bundle"] != "n/a":
            found.setdefault(cells["bundle"].strip(), []).append(place)
    return {name: sorted(set(places)) for name, places in found.items()}


def unpacked(path: Path) -> dict[str, bytes]:
    """Files of an archive."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/")]
            return {name: archive.read(name) for name in names}
    with tarfile.open(path) as packed:
        files = {m.name: packed.extractfile(m) for m in packed.getmembers() if m.isfile()}
        return {name: stream.read() for name, stream in files.items() if stream}
