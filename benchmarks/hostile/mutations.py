"""Ways to spoil a file, each drawn from a random generator.

A mutation takes the file and the generator, changes the file in place, and says in a few words
what it did. Bytes can be spoilt in any file; text, JSON, NIfTI, HDF5, zip archives and the
headers of tractograms in ways of their own.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

Random = np.random.Generator
Mutation = Callable[[Path, Random], str]

NUMBERS = (
    *("nan", "NaN", "inf", "-inf", "Infinity", "1e400", "-1e400", "1e-400", "-0", "-1", "0"),
    *("1", "2", "2147483648", "-2147483649", "9223372036854775808", "18446744073709551616"),
    *("1e308", "0x10", "1_000", "1,5", "٣", "9" * 400, "9" * 5000, "True", "1/0", "n/a", ""),
)
WORDS = (
    *("", " ", "\t", "n/a", "nan", "None", "null", "../../../../etc/passwd", "/etc/passwd"),
    *("..", ".", "~", "~root/x", "sub-01/../../x", "C:\\windows", "file:///etc/passwd", "a\0b"),
    *(
        "x" * 300,
        "x" * 100_000,
        "é" * 2000,
        "ﬀ",
        "İstanbul",
        "\U0001d518\U0001d52b",
        "\u202egpj.exe",
        "\ufeff",
    ),
    *("\u200b", "\ud800", "\x1b[31mred\x1b[0m", "\x07", "a\nb", "a\rb", "a\u2028b", "a\x0bb"),
    *("%s%n%d", "{0}", "{x.__class__}", "$(id)", "`id`", "; rm x", "'", '"', '""', "\\", "#", "*"),
    *("[", "(?", "MNI152NLin6Asym ", "mni152nlin6asym", "MNI152NLin2009cAsym", "T1w", "MNI152"),
    *("-", "--overwrite", "=1+1", "@", "/dev/stdin", "/", "con", "index", "name", "sub-01"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3.5, -0.0, 2**31, 2**63, 2**64, 10**400, 1e308),
    *(float("nan"), float("inf"), [], {}, [None], [[]], {"": None}, [1, "a"], {"a": {"b": []}}),
)


def pick(rng: Random, options: Any) -> Any:
    """One of a sequence, left as the Python object that it is."""
    return options[int(rng.integers(len(options)))]


# Any bytes


def flip_bits(path: Path, rng: Random) -> str:
    """Flip one to eight bits, half of the time within the first kilobyte."""
    data = bytearray(path.read_bytes())
    if not data:
        return "nothing to flip"
    end = len(data) if rng.random() < 0.5 else min(1024, len(data))
    places = rng.integers(end, size=int(rng.integers(1, 9)))
    for place in places:
        data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return f"bits flipped at {sorted(places.tolist())}"


def overwrite_bytes(path: Path, rng: Random) -> str:
    """Put zeros, ones or noise over a stretch."""
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data) + 1))
    length = min(int(2 ** rng.uniform(0, 12)), len(data) - start)
    what = pick(rng, ("zeros", "ones", "noise"))
    noise = rng.integers(256, size=length, dtype=np.uint8).tobytes()
    data[start : start + length] = {"zeros": bytes(length), "ones": b"\xff" * length}.get(
        what, noise
    )
    path.write_bytes(data)
    return f"{what} over {length} bytes at {start}"


def truncate(path: Path, rng: Random) -> str:
    """Cut the end off, often just a little of it."""
    size = path.stat().st_size
    keep = int(rng.integers(size + 1))
    if rng.random() < 0.5:
        keep = max(size - int(rng.integers(1, 65)), 0)
    os.truncate(path, keep)
    return f"cut to {keep} of {size} bytes"


def extend(path: Path, rng: Random) -> str:
    """Add zeros, noise or the file itself at the end."""
    data = path.read_bytes()
    length = int(2 ** rng.uniform(0, 14))
    what = pick(rng, ("zeros", "noise", "itself", "newlines"))
    more = {
        "zeros": bytes(length),
        "noise": rng.bytes(length),
        "itself": data,
        "newlines": b"\n" * length,
    }[what]
    path.write_bytes(data + more)
    return f"{len(more)} bytes of {what} added"


def cut_out(path: Path, rng: Random) -> str:
    """Take a stretch out of the middle."""
    data = path.read_bytes()
    start = int(rng.integers(len(data) + 1))
    length = int(2 ** rng.uniform(0, 10))
    path.write_bytes(data[:start] + data[start + length :])
    return f"{length} bytes at {start} taken out"


def swap_header(path: Path, rng: Random) -> str:
    """Give the file the first bytes of another one beside it, or of a known format."""
    others = sorted(p for p in path.parent.rglob("*") if p.is_file() and p != path)
    magics = (
        *(b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"mrtrix tracks\n"),
        *(b"TRACK\0", b"%PDF-1.4", b"\x00" * 64, b"{", b"\xff\xfe", b"\xef\xbb\xbf"),
    )
    length = int(pick(rng, (4, 16, 348, 352, 1000)))
    if others and rng.random() < 0.6:
        other = pick(rng, others)
        start, what = other.read_bytes()[:length], other.name
    else:
        start = pick(rng, magics)
        what = repr(start[:12])
    data = path.read_bytes()
    path.write_bytes(start + data[len(start) :])
    return f"{len(start)} first bytes of {what}"


def replace_content(path: Path, rng: Random) -> str:
    """Leave the name and change everything: nothing, noise, or the content of another file."""
    others = sorted(p for p in path.parent.rglob("*") if p.is_file() and p != path)
    what = pick(rng, ("empty", "noise", "other", "lines"))
    if what == "other" and others:
        other = pick(rng, others)
        path.write_bytes(other.read_bytes())
        return f"content of {other.name}"
    content = {"empty": b"", "noise": rng.bytes(2000)}.get(what, b"some words\n" * 100)
    path.write_bytes(content)
    return f"{what} in its place"


def change_place(path: Path, rng: Random) -> str:
    """Put something that is no ordinary file where the file was."""
    what = pick(rng, ("missing", "folder", "pipe", "dangling link", "circular link", "link"))
    if what == "link":
        real = path.with_name(f"ünïcode {path.name}")
        path.rename(real)
        path.symlink_to(real.name)
        return what
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "dangling link":
        path.symlink_to("nothing-here")
    elif what == "circular link":
        path.symlink_to(path.name)
    return what


BYTES: tuple[Mutation, ...] = (
    *(flip_bits, flip_bits, overwrite_bytes, truncate, extend, cut_out, swap_header),
    *(replace_content, change_place),
)

# gzip


def damage_inside(path: Path, rng: Random) -> str:
    """Spoil the content and compress it again, so that its checksum is right."""
    plain = gzip.decompress(path.read_bytes())
    inner = path.with_name(f".inner-{path.name}")
    inner.write_bytes(plain)
    done = pick(rng, (flip_bits, overwrite_bytes, truncate, extend, cut_out))(inner, rng)
    path.write_bytes(gzip.compress(inner.read_bytes(), mtime=0))
    inner.unlink()
    return f"inside: {done}"


def damage_gzip(path: Path, rng: Random) -> str:
    """Spoil the wrapper: checksum, size, flags, several members, or no compression at all."""
    data = path.read_bytes()
    plain = gzip.decompress(data)
    what = pick(rng, ("crc", "size", "flags", "members", "plain", "twice", "deflate", "bomb"))
    middle = len(plain) // 2
    made = {
        "crc": data[:-8] + b"\xde\xad\xbe\xef" + data[-4:],
        "size": data[:-4] + b"\xff\xff\xff\x7f",
        "flags": data[:3] + bytes([int(rng.integers(256))]) + data[4:],
        "members": gzip.compress(plain[:middle]) + gzip.compress(plain[middle:]),
        "plain": plain,
        "twice": gzip.compress(data),
        "deflate": zlib.compress(plain),
    }
    # A hundred megabytes of zeros behind the content, in a hundred kilobytes.
    path.write_bytes(made[what] if what in made else gzip.compress(plain + bytes(100_000_000), 9))
    return f"gzip: {what}"


GZIP: tuple[Mutation, ...] = (damage_inside, damage_inside, damage_gzip)

# Text


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def change_cell(path: Path, rng: Random) -> str:
    """Put an odd word or number in the place of one."""
    lines = _text(path).split("\n")
    row = int(rng.integers(len(lines)))
    separator = "\t" if "\t" in lines[row] else " "
    cells = lines[row].split(separator)
    column = int(rng.integers(len(cells)))
    new = pick(rng, NUMBERS if rng.random() < 0.5 else WORDS)
    old, cells[column] = cells[column], new
    lines[row] = separator.join(cells)
    _write_text(path, "\n".join(lines))
    return f"{old[:30]!r} in line {row} became {new[:30]!r}"


def change_lines(path: Path, rng: Random) -> str:
    """Double, drop, swap or join lines, or drop a column."""
    lines = _text(path).split("\n")
    row, other = (int(place) for place in rng.integers(len(lines), size=2))
    what = pick(rng, ("doubled", "dropped", "swapped", "joined", "column dropped", "reversed"))
    if what == "doubled":
        lines.insert(row, lines[row])
    elif what == "dropped":
        del lines[row]
    elif what == "swapped":
        lines[row], lines[other] = lines[other], lines[row]
    elif what == "joined":
        lines[row] += lines[other]
    elif what == "reversed":
        lines.reverse()
    else:
        column = int(rng.integers(4))
        lines = ["\t".join(c for i, c in enumerate(x.split("\t")) if i != column) for x in lines]
    _write_text(path, "\n".join(lines))
    return f"line {row} {what}"


def change_encoding(path: Path, rng: Random) -> str:
    """Write the text as another program would: other line ends, encodings, a mark, blanks."""
    text = path.read_bytes().decode("utf-8", "replace")
    what = pick(
        rng, ("crlf", "cr", "bom", "utf-16", "latin-1", "nul", "blanks", "commas", "no end")
    )
    path.write_bytes({
        "crlf": text.replace("\n", "\r\n").encode(),
        "cr": text.replace("\n", "\r").encode(),
        "bom": b"\xef\xbb\xbf" + text.encode(),
        "utf-16": text.encode("utf-16"),
        "latin-1": (text + "\né").encode("latin-1", "replace"),
        "nul": text.replace("\n", "\0\n", 1).encode(),
        "blanks": text.replace("\t", "    ").encode(),
        "commas": text.replace("\t", ",").encode(),
        "no end": text.rstrip("\n").encode(),
    }[what])  # fmt: skip
    return what


TEXT: tuple[Mutation, ...] = (change_cell, change_cell, change_cell, change_lines, change_encoding)

# JSON


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value, at all depths."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    found = [(value, key) for key, _ in items]
    for _, item in items:
        if isinstance(item, dict | list):
            found += _nodes(item)
    return found


def change_json(path: Path, rng: Random) -> str:
    """Change, remove or add one value of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    container, key = pick(rng, _nodes(content))
    what = pick(rng, ("value", "value", "word", "removed", "renamed", "wrapped", "added", "root"))
    new = pick(rng, VALUES if what != "word" else WORDS)
    if what == "removed":
        del container[key]
    elif what == "renamed" and isinstance(container, dict):
        container[pick(rng, WORDS)] = container.pop(key)
    elif what == "wrapped":
        container[key] = pick(rng, ([container[key]], {"a": container[key]}))
    elif what == "added" and isinstance(container, dict):
        container[pick(rng, WORDS)] = new
    elif what == "root":
        content = new
    else:
        container[key] = new
    _write_text(path, json.dumps(content, ensure_ascii=bool(rng.random() < 0.3)))
    return f"{what} at {str(key)[:30]!r}: {str(new)[:30]!r}"


def change_json_text(path: Path, rng: Random) -> str:
    """Write what some parsers take and others do not, or what overwhelms them."""
    text = path.read_text(encoding="utf-8")
    what = pick(rng, ("deep list", "deep object", "doubled key", "comment", "comma", "number",
                      "two values", "bom", "quotes"))  # fmt: skip
    body = text.strip()
    _write_text(path, {
        "deep list": "[" * 100_000,
        "deep object": body[:-1] + ', "x": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}",
        "doubled key": body[:-1] + "," + body[1:],
        "comment": "// text\n" + body,
        "comma": body[:-1] + ",}",
        "number": body[:-1] + ', "n": ' + "9" * 5000 + "}",
        "two values": body + body,
        "bom": "\ufeff" + body,
        "quotes": body.replace('"', "'"),
    }[what])  # fmt: skip
    return what


JSON: tuple[Mutation, ...] = (change_json, change_json, change_json, change_json_text)

# NIfTI


_NIFTI_FIELDS: dict[str, tuple[int, str, tuple[Any, ...]]] = {
    "sizeof_hdr": (0, "<i", (0, 540, -348, 1543569408)),
    "ndim": (40, "<h", (-1, 0, 1, 2, 4, 5, 7, 8, 32767)),
    "dim1": (42, "<h", (-1, 0, 1, 32767)),
    "dim2": (44, "<h", (-1, 0, 1, 32767)),
    "dim3": (46, "<h", (-1, 0, 1, 32767)),
    "dim4": (48, "<h", (-1, 0, 2, 32767)),
    "intent": (68, "<h", (1007, 1002, -1, 32767)),
    "datatype": (70, "<h", (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1536, 1792, 2304, 99)),
    "bitpix": (72, "<h", (0, 1, 64, -8, 32767)),
    "pixdim0": (76, "<f", (0.0, 3.0, float("nan"))),
    "pixdim1": (80, "<f", (0.0, -1.0, 1e30, float("nan"), float("inf"))),
    "vox_offset": (108, "<f", (0.0, 1.0, 353.0, 1e9, 1e38, -1.0, float("nan"), float("inf"))),
    "slope": (112, "<f", (0.0, 2.0, -1.0, 1e-30, 1e38, float("nan"), float("inf"))),
    "inter": (116, "<f", (1.0, -1.0, 1e38, float("nan"), float("inf"))),
    "units": (123, "<b", (0, 1, 3, 8, 16, 24, 255 - 256)),
    "qform": (252, "<h", (0, 1, 5, -1)),
    "sform": (254, "<h", (0, 1, 5, -1)),
    "quatern_b": (256, "<f", (2.0, float("nan"), float("inf"))),
    "srow00": (280, "<f", (0.0, 1e30, 1e-30, float("nan"), float("inf"))),
    "srow01": (284, "<f", (1.0, 6.0, 1e30, float("nan"))),
    "srow03": (292, "<f", (1e6, 1e30, float("nan"), float("inf"))),
    "magic": (344, "<i", (0, 0x0031696E, 0x00322B6E)),
    "extension": (348, "<i", (1, -1)),
}  # fmt: skip


def change_nifti(path: Path, rng: Random) -> str:
    """Put absurd values into one to three fields of a NIfTI header."""
    zipped = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
    done = []
    for _ in range(int(rng.integers(1, 4))):
        name = pick(rng, sorted(_NIFTI_FIELDS))
        offset, form, values = _NIFTI_FIELDS[name]
        value = pick(rng, values)
        struct.pack_into(form, data, offset, value)
        done.append(f"{name}={value}")
    path.write_bytes(gzip.compress(bytes(data), mtime=0) if zipped else bytes(data))
    return ", ".join(done)


def make_header_absurd(path: Path, rng: Random) -> str:
    """Claim a volume of terabytes."""
    zipped = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
    size = int(pick(rng, (2000, 20_000, 32_767)))
    struct.pack_into("<3h", data, 42, size, size, size)
    path.write_bytes(gzip.compress(bytes(data), mtime=0) if zipped else bytes(data))
    return f"{size} voxels along each axis"


def change_voxels(path: Path, rng: Random) -> str:
    """Write odd values into voxels, as floats where they need it."""
    import nibabel as nb

    image = nb.load(path)
    values = np.asarray(image.dataobj).astype(pick(rng, ("<f4", "<f8", ">f8", "<i8", "<i2")))
    odd = pick(rng, (0, 1, 2, -1, 255, 0.5, 1e-4, 1.0004, 1e30, np.nan, np.inf, -np.inf))
    whole = rng.random() < 0.2
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if whole:
            values[...] = odd
        else:
            values.flat[rng.integers(values.size, size=3)] = odd
        new = nb.Nifti1Image(values, image.affine, dtype=values.dtype)
        nb.save(new, path)
    return f"{'all voxels' if whole else 'voxels'} {odd} as {values.dtype}"


NIFTI: tuple[Mutation, ...] = (change_nifti, change_nifti, make_header_absurd, change_voxels)

# HDF5


def _h5_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names


def _odd_data(values: Any, rng: Random) -> Any:
    """The array as another type or shape, or with odd values in it."""
    values = np.asarray(values)
    flat = values.reshape(-1)
    numbers = np.issubdtype(values.dtype, np.number)
    choices: list[Callable[[], Any]] = [
        lambda: values[..., :-1] if values.ndim else values,
        lambda: values[:-1] if values.ndim else values,
        lambda: np.concatenate([values, values]) if values.ndim else values,
        lambda: values[None],
        lambda: flat,
        lambda: values.T,
        lambda: np.empty((0, *values.shape[1:]), values.dtype),
        lambda: np.float64(3),
        lambda: "text",
        lambda: np.array([b"x", b"yy"]),
        lambda: h5py.Empty("f4"),
        lambda: np.zeros(values.shape, [("a", "i4"), ("b", "f4")]),
        lambda: np.zeros(values.shape, bool),
    ]
    if numbers and flat.size:
        choices += [
            lambda: values.astype("f8"),
            lambda: values.astype("i8") if values.dtype.kind != "f" else values.astype(">f4"),
            lambda: values.astype("c8"),
            lambda: -values.astype("f8"),
            *(lambda odd=odd: _with(values, odd, rng) for odd in
              (np.nan, np.inf, -1, 2**31, -(2**31), 2**63 - 1, 1e30, 0, 0.5)),
        ]  # fmt: skip
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pick(rng, choices)()


def _with(values: Any, odd: float, rng: Random) -> Any:
    isfloat = values.dtype.kind == "f" or not float(odd).is_integer()
    changed = values.astype("f8" if isfloat else "i8")
    changed.flat[int(rng.integers(changed.size))] = odd
    return changed if rng.random() < 0.5 else np.full_like(changed, odd)


def change_dataset(path: Path, rng: Random) -> str:
    """Change the type, shape, values, place or existence of one dataset or group."""
    with h5py.File(path, "r+") as file:
        name = pick(rng, _h5_names(file))
        what = pick(rng, ("removed", "odd", "odd", "odd", "group", "link", "huge", "renamed",
                          "outside", "loop"))  # fmt: skip
        if what == "renamed":
            file.move(name, f"{name}{pick(rng, ('2', ' ', 'é', '/x'))}")
            return f"{name} renamed"
        old = file[name][()] if isinstance(file[name], h5py.Dataset) else np.zeros(3)
        dtype = old.dtype
        del file[name]
        if what == "odd":
            new = _odd_data(old, rng)
            file.create_dataset(name, data=new)
            return f"{name} became {getattr(new, 'shape', '')} {getattr(new, 'dtype', new)}"
        if what == "group":
            file.create_group(name)
        elif what == "link":
            file[name] = h5py.SoftLink(pick(rng, ("/nothing", "/", name)))
        elif what == "loop":
            file[name] = h5py.ExternalLink(path.name, pick(rng, ("/", name)))
        elif what == "outside":
            file[name] = h5py.ExternalLink("/etc/passwd", "/x")
        elif what == "huge":
            axes = max(old.ndim, 1)
            file.create_dataset(name, (2**20,) * axes, dtype, chunks=(1,) * axes)
    return f"{name} {what}"


def change_attribute(path: Path, rng: Random) -> str:
    """Change the type, value or existence of one attribute."""
    with h5py.File(path, "r+") as file:
        holders = [file, *(file[name] for name in _h5_names(file))]
        holders = [holder for holder in holders if len(holder.attrs)] or [file]
        holder = pick(rng, holders)
        keys = sorted(holder.attrs) or ["new"]
        key = pick(rng, keys)
        what = pick(rng, ("removed", "odd", "odd", "word", "number"))
        old = holder.attrs.get(key, 0)
        if key in holder.attrs:
            del holder.attrs[key]
        new: Any = None
        if what == "odd":
            new = _odd_data(old, rng)
        elif what == "word":
            new = pick(rng, [word for word in WORDS if "\0" not in word and "\ud800" not in word])
        elif what == "number":
            new = pick(rng, (-1, 0, 1, 2, 10**6, 2**31, 2**62, np.nan, np.inf, [1, 2], b"\xff"))
        if new is not None:
            if isinstance(new, str) and len(new) > 60_000:
                new = new[:60_000]
            holder.attrs[key] = new
    return f"attribute {key} {what}: {str(new)[:40]!r}"


def flip_superblock(path: Path, rng: Random) -> str:
    """Change bytes of the superblock, the root group or what follows."""
    data = bytearray(path.read_bytes())
    place = int(rng.integers(min(len(data), int(pick(rng, (8, 96, 800))))))
    data[place] = int(rng.integers(256))
    path.write_bytes(data)
    return f"byte {place} changed"


HDF5: tuple[Mutation, ...] = (
    *(change_dataset, change_dataset, change_dataset, change_attribute, change_attribute),
    flip_superblock,
)

# Tractograms


def change_tck_header(path: Path, rng: Random) -> str:
    """Change a line of the header of a .tck file; the points stay where they are."""
    data = path.read_bytes()
    end = data.index(b"\nEND") + 1
    lines = data[:end].decode().splitlines()
    row = int(rng.integers(len(lines)))
    key = lines[row].partition(":")[0]
    odd = {
        "file": (
            ". 0",
            ". 1",
            ". 999999999",
            ". 99999999999999999999",
            "/etc/passwd 0",
            ".",
            ". x",
        ),
        "datatype": ("Float64LE", "Float32BE", "Float16LE", "Int8", "", "float32le", "Float32"),
        "count": ("0", "1", "-1", "99999999999", "x", "1e3"),
        "step_size": ("0", "-1", "nan", "1e30", "variable", "1e-30"),
    }.get(key, WORDS)
    lines[row] = f"{key}: {pick(rng, odd)}" if row else pick(rng, ("mrtrix", "MRTRIX TRACKS", ""))
    header = "\n".join(lines).encode("utf-8", "replace") + b"\n"
    # The place of the points is a number in the header, so the length must not change.
    padded = header[:end].ljust(end, b"\n")
    path.write_bytes(padded + data[end:])
    return f"{key or 'magic'} is now {lines[row][:50]!r}"


_TRK_FIELDS: dict[str, tuple[int, str, tuple[Any, ...]]] = {
    "dim": (6, "<h", (0, -1, 32767)),
    "voxel_size": (12, "<f", (0.0, -1.0, 1e30, float("nan"))),
    "n_scalars": (36, "<h", (1, -1, 3, 32767)),
    "n_properties": (238, "<h", (1, -1, 3, 32767)),
    "vox_to_ras": (440, "<f", (0.0, 1e30, float("nan"), float("inf"))),
    "vox_to_ras33": (500, "<f", (0.0, 2.0, float("nan"))),
    "order": (948, "<i", (0, 0x00534152, -1)),
    "n_count": (988, "<i", (0, 1, -1, 2147483647)),
    "version": (992, "<i", (0, 1, 3, -1, 2147483647)),
    "hdr_size": (996, "<i", (0, 1, -1, 2147483647, -402456576)),
    "n_points": (1000, "<i", (0, -1, 1, 100_000_000, 2147483647)),
}


def change_trk_header(path: Path, rng: Random) -> str:
    """Put absurd values into the header of a .trk file, or into the first number of points."""
    zipped = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
    name = pick(rng, sorted(_TRK_FIELDS))
    offset, form, values = _TRK_FIELDS[name]
    value = pick(rng, values)
    struct.pack_into(form, data, offset, value)
    path.write_bytes(gzip.compress(bytes(data), mtime=0) if zipped else bytes(data))
    return f"{name}={value}"


def change_archive(path: Path, rng: Random) -> str:
    """Change, remove, double, rename or add a member of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = pick(rng, sorted(members))
    what = pick(rng, ("removed", "renamed", "short", "long", "flipped", "bomb", "added", "twice"))
    if what == "removed":
        del members[name]
    elif what == "renamed":
        new = pick(rng, ("../x", "/tmp/x", "a/../../x", name.upper(), f"./{name}", f"{name}\0"))  # noqa: S108
        members[new] = members.pop(name)
    elif what == "short":
        members[name] = members[name][: int(rng.integers(len(members[name]) + 1))]
    elif what == "long":
        members[name] += rng.bytes(int(rng.integers(1, 40)))
    elif what == "flipped" and members[name]:
        data = bytearray(members[name])
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        members[name] = bytes(data)
    elif what == "bomb":
        members[name] += bytes(300_000_000)
    elif what == "added":
        members[pick(rng, ("dps/x.float32", "é.txt", "../../evil", "positions.3.float16"))] = b"12"
    stream = io.BytesIO()
    method = pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if what == "bomb" else method) as out,
    ):
        warnings.simplefilter("ignore")
        for member, data in members.items():
            out.writestr(member, data)
        if what == "twice":
            out.writestr(name, b"other")
    path.write_bytes(stream.getvalue())
    return f"member {name} {what}"


def change_trx_header(path: Path, rng: Random) -> str:
    """Change header.json of a .trx archive."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    inner = path.with_name(".inner.json")
    inner.write_bytes(members["header.json"])
    done = pick(rng, JSON)(inner, rng)
    members["header.json"] = inner.read_bytes()
    inner.unlink()
    with zipfile.ZipFile(path, "w") as out:
        for member, data in members.items():
            out.writestr(member, data)
    return f"header.json: {done}"


# The mutations that fit a file by its name; bytes can be spoilt in all of them.
BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    ".nii.gz": (*NIFTI, *NIFTI, *GZIP),
    ".nii": (*NIFTI, *NIFTI),
    ".h5": (*HDF5, *HDF5, *HDF5),
    ".json": (*JSON, *JSON, *JSON, *TEXT),
    ".tsv": (*TEXT, *TEXT),
    ".tsv.gz": (*GZIP,),
    ".txt": (*TEXT, *TEXT),
    ".csv": (*TEXT, *TEXT),
    ".yaml": (*TEXT, *TEXT),
    ".tck": (change_tck_header,) * 5,
    ".trk": (change_trk_header,) * 5,
    ".trk.gz": (change_trk_header, change_trk_header, *GZIP),
    ".trx": (change_archive, change_archive, change_archive, change_trx_header),
    ".npz": (change_archive, change_archive),
    ".zip": (change_archive, change_archive),
    ".tt.gz": (*GZIP, *GZIP),
    ".tar.gz": GZIP,
}


def mutations_of(path: Path) -> tuple[Mutation, ...]:
    """Everything that may be done to a file of this name."""
    suffixes = sorted(BY_SUFFIX, key=len, reverse=True)
    own = next((s for s in suffixes if path.name.lower().endswith(s)), "")
    return (*BY_SUFFIX.get(own, ()), *BYTES)


def spoil(path: Path, rng: Random) -> str:
    """Apply one mutation, and now and then a second one; say what was done."""
    done = []
    for _ in range(2 if rng.random() < 0.15 else 1):
        if not path.is_file():
            break
        mutation = pick(rng, mutations_of(path))
        try:
            done.append(f"{mutation.__name__}: {mutation(path, rng)}")
        except _UNFIT as error:
            # The first mutation may have left nothing that the second one could work on.
            if not done:
                done.append(f"truncate: {truncate(path, rng)}" if path.is_file() else f"{error}")
    return "; ".join(done)


_UNFIT = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, EOFError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile, OverflowError, AttributeError, MemoryError),
    *(ImageFileError, HeaderDataError),
)
