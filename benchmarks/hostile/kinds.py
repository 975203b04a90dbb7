"""Kinds of input file: how a sound one is made, how the package reads it, and what it says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import data, plain

Reader = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Parameters
    ----------
    name : str
    make : callable
        Writes sound files into a folder.
    targets : tuple of str
        Files that are spoilt, one at a time.
    read : callable
        Reads the folder's files with the package; gives something that can be compared.
    plain : callable or None
        What the files say by a reader that knows nothing of the package. Where there is none, or
        it raises, only results like those of the sound files are right.
    free : callable or None
        Tells whether a result is possible at all, where the plain reader cannot say what it is.
    """

    name: str
    make: Callable[[Path], Any]
    targets: tuple[str, ...]
    read: Reader
    plain: Reader | None = None
    free: Callable[[Any], bool] | None = field(default=None)


# Images


def _read_mask(name: str) -> Reader:
    def read(folder: Path) -> Any:
        from lacuna_nipype.io.images import load_mask

        mask = load_mask(folder / name)
        return {"mask": mask.data, "affine": mask.grid.affine}

    return read


def _make_masks(folder: Path) -> None:
    for name, dtype in (
        ("mask.nii.gz", np.uint8),
        ("mask.nii", np.int16),
        ("float.nii.gz", "<f4"),
    ):
        data.save(folder / name, data.lesion().astype(dtype))


def _mask_kind(name: str) -> Kind:
    return Kind(f"mask {name}", _make_masks, (name,), _read_mask(name),
                lambda folder: plain.mask(folder / name))  # fmt: skip


def _read_brain(folder: Path) -> Any:
    from lacuna_nipype.connectomes.build import read_brain_mask

    grid, voxels = read_brain_mask(folder / "brain.nii.gz")
    return {"voxels": voxels, "affine": grid.affine}


def _read_bold(folder: Path) -> Any:
    from lacuna_nipype.connectomes.build import read_series
    from lacuna_nipype.core.spaces import Grid

    voxels = np.array(np.nonzero(data.brain()))
    grid = Grid.make(data.SHAPE, data.AFFINE)
    return {"series": read_series(folder / "bold.nii.gz", grid, voxels)}


def _read_repetition_time(folder: Path) -> Any:
    from lacuna_nipype.connectomes.confounds import read_repetition_time

    return read_repetition_time(folder / "bold.nii.gz")


def _plain_repetition_time(folder: Path) -> Any:
    sidecar = folder / "bold.json"
    content = json.loads(sidecar.read_text("utf-8")) if sidecar.is_file() else {}
    told = content.get("RepetitionTime")
    return 1.0 if told is None else float(told)


def _read_confounds(folder: Path) -> Any:
    from lacuna_nipype.connectomes.confounds import read_confounds, select_columns

    path = folder / "confounds.tsv"
    (columns,) = select_columns([path], ["trans_x", "csf"])
    return read_confounds(path, columns, 12)


def _plain_confounds(folder: Path) -> Any:
    header, *rows = plain.table(folder / "confounds.tsv")
    cells = [[row[header.index(name)] for name in ("trans_x", "csf")] for row in rows]
    values = np.array([[np.nan if c in ("n/a", "") else float(c) for c in row] for row in cells])
    values[0] = np.where(np.isnan(values[0]), values[1], values[0])
    return values


# Functional connectomes


def make_connectomes(folder: Path) -> None:
    data.write_connectome(folder / "packed.h5", chunks=(1, 20, 640), compression=4, shuffle=True)
    data.write_connectome(folder / "plain.h5")
    data.write_json(folder / "packed.json", {"Space": data.SPACE})


def _read_connectome(name: str) -> Reader:
    def read(folder: Path) -> Any:
        from lacuna_nipype.connectomes.functional import iter_subjects, open_connectome
        from lacuna_nipype.connectomes.inspection import inspect_connectome

        found = open_connectome(folder / name)
        (file,) = found.files
        series = np.stack(list(iter_subjects(file)))
        facts = inspect_connectome(folder / name, check_data=True)
        json.dumps(facts, allow_nan=False)
        _correlate(file, folder / "partial.h5")
        return {"series": series, "voxels": file.voxels, "affine": file.grid.affine,
                "shape": list(file.grid.shape)}  # fmt: skip

    return read


def _correlate(file: Any, target: Path) -> Any:
    """Run the pass with one lesion; give mean z."""
    import h5py

    from lacuna_nipype.connectomes.partial import write_partial
    from lacuna_nipype.connectomes.seeds import make_seed

    mask = np.zeros(file.grid.shape, bool)
    mask[tuple(file.voxels[:, :9])] = True
    write_partial(file, [make_seed(mask, file)], target, memory_gb=0.2)
    with h5py.File(target, "r") as partial:
        return partial["mean"][()]


def make_store(folder: Path) -> None:
    from lacuna_nipype.connectomes.convert import convert_connectome

    data.write_connectome(folder / "source.h5", chunks=(1, 20, 640), compression=4)
    convert_connectome(folder / "source.h5", folder / "store")


def _read_store(folder: Path) -> Any:
    from lacuna_nipype.connectomes.functional import open_connectome
    from lacuna_nipype.connectomes.inspection import inspect_connectome
    from lacuna_nipype.connectomes.store import TileReader

    path = folder / "store" / "source.h5"
    (file,) = open_connectome(path).files
    if file.precision is None:
        raise TypeError("not read as a store")
    with TileReader(file) as reader:
        found = {
            key: reader.read(key, 0, reader.n_tiles) for key in ("coefficients", "scale", "norm")
        }
    json.dumps(inspect_connectome(path, check_data=True), allow_nan=False)
    _correlate(file, folder / "partial.h5")
    return {**found, "voxels": file.voxels, "affine": file.grid.affine,
            "shape": list(file.grid.shape)}  # fmt: skip


# Tractograms


def make_tractograms(folder: Path) -> None:
    data.write_tck(folder / "a.tck")
    data.write_trk(folder / "a.trk")
    data.write_trk(folder / "b.trk.gz")
    data.write_trx(folder / "a.trx")
    data.write_tt(folder / "a.tt.gz")
    for name in ("a", "b"):
        data.write_json(folder / f"{name}.json", {"Space": data.SPACE})


def _read_tractogram(name: str) -> Reader:
    def read(folder: Path) -> Any:
        from lacuna_nipype.connectomes.inspection import inspect_connectome
        from lacuna_nipype.connectomes.tractogram_formats import iter_streamlines
        from lacuna_nipype.core.exceptions import LacunaError

        lines = list(iter_streamlines(folder / name))
        try:
            facts = inspect_connectome(folder / name, check_data=True)
            json.dumps(facts, allow_nan=False)
        except LacunaError:
            pass
        return lines

    return read


def _tractogram_kind(name: str, reader: Callable[[Path], Any]) -> Kind:
    return Kind(f"tractogram {name.partition('.')[2]}", make_tractograms, (name,),
                _read_tractogram(name), lambda folder: reader(folder / name))  # fmt: skip


def _read_tractogram_space(folder: Path) -> Any:
    from lacuna_nipype.connectomes.inspection import inspect_connectome
    from lacuna_nipype.connectomes.registry import register_connectome

    facts = inspect_connectome(folder / "a.tck")
    os.environ["LACUNA_DATA_DIR"] = str(folder / "data")
    entry = register_connectome("x", folder / "a.tck")
    return [entry.space, facts["NumberOfStreamlines"]]


def _plain_tractogram_space(folder: Path) -> Any:
    from lacuna_nipype.core.spaces import canonical_space

    content = json.loads((folder / "a.json").read_text("utf-8"))
    return [canonical_space(content["Space"]), data.N_STREAMLINES]


def make_index(folder: Path) -> None:
    from lacuna_nipype.connectomes.streamline_index import write_index
    from lacuna_nipype.core.spaces import Grid

    data.write_tck(folder / "a.tck")
    grid = Grid.make(data.SHAPE, data.AFFINE)
    write_index(folder / "a.tck", folder / "index.h5", grid=grid, space=data.SPACE)
    data.save(folder / "lesion.nii.gz", data.lesion())


def _read_index(folder: Path) -> Any:
    from lacuna_nipype.connectomes.streamline_query import StreamlineIndex, read_mask

    with StreamlineIndex(folder / "index.h5", folder / "a.tck") as index:
        crop = read_mask(folder / "lesion.nii.gz")
        hit = index.select(crop)
        segments = index.select(crop, "segments")
        density = index.count(hit)
        weighted = index.count(hit, np.ones(index.record.n_streamlines, np.float32))
        lines = list(index.streamlines(hit))
        labels = np.ones(data.SHAPE, np.int32)
        nodes = index.assign_nodes(labels, index.grid)
        return [hit, segments, np.array(density), weighted, lines, nodes, np.array(index.density)]


def _possible_index(result: Any) -> bool:
    hit, segments, density, *_ = result
    within = all(((x >= 0) & (x < data.N_STREAMLINES)).all() for x in (hit, segments))
    return within and density.shape == data.SHAPE


# Atlases


def _read_atlas(image: str, names: str) -> Reader:
    def read(folder: Path) -> Any:
        from lacuna_nipype.atlases.parcels import load_parcels

        parcels = load_parcels(folder / image, folder / names)
        regions = zip(parcels.index.tolist(), parcels.names, parcels.totals.tolist(), strict=True)
        return {"regions": {name: [number, total] for number, name, total in regions},
                "affine": parcels.grid.affine}  # fmt: skip

    return read


def _atlas_kind(image: str, names: str) -> Kind:
    return Kind(f"atlas {image.partition('.')[0]} {names.partition('.')[2]}", data.write_atlas,
                (image, names), _read_atlas(image, names),
                lambda folder: plain.atlas(folder / image, folder / names))  # fmt: skip


def _read_labels(folder: Path) -> Any:
    from lacuna_nipype.atlases.labels import read_labels

    names = [read_labels(folder / f"labels.{suffix}") for suffix in ("tsv", "txt", "csv")]
    return [[(region.index, region.name) for region in each] for each in names]


def _plain_labels(folder: Path) -> Any:
    return [plain.region_names(folder / f"labels.{suffix}") for suffix in ("tsv", "txt", "csv")]


# Datasets and tables


def make_dataset(folder: Path) -> None:
    data.write_dataset(folder / "bids")


def _read_dataset(folder: Path) -> Any:
    from lacuna_nipype.core.brain import load_brain_mask
    from lacuna_nipype.io.checking import check_masks
    from lacuna_nipype.io.collect import collect_masks, read_bids_filter_file

    filters = read_bids_filter_file(folder / "filter.json")
    found = collect_masks(folder / "bids", bids_filters=filters)
    checks = check_masks(found.records, brain=load_brain_mask())
    errors = [text for check in checks for text in check.errors]
    if errors:
        from lacuna_nipype.core.exceptions import ValidationError

        raise ValidationError(errors[0])
    return [[r.path.name, r.space] for r in found.records]


def _possible_dataset(result: Any) -> bool:
    from lacuna_nipype.core.spaces import same_space

    mask = f"{data.MASK_NAME}.nii.gz"
    return all(name == mask and same_space(space, data.SPACE) for name, space in result)


def _read_filter(folder: Path) -> Any:
    from lacuna_nipype.io.collect import read_bids_filter_file

    return read_bids_filter_file(folder / "filter.json")


def _plain_filter(folder: Path) -> Any:
    content = json.loads((folder / "filter.json").read_text("utf-8"))
    return content.get("lesion") or {}


def _read_participants(folder: Path) -> Any:
    from lacuna_nipype.io.participants import read_participants

    table = read_participants(folder / "bids" / "participants.tsv")
    return {"rows": table.index.tolist(), "cells": table.to_dict("list")}


def _plain_participants(folder: Path) -> Any:
    import unicodedata

    header, *rows = plain.table(folder / "bids" / "participants.tsv")
    header = [name.strip() for name in header]
    rows = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    cells = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    names = [unicodedata.normalize("NFC", n.strip()) for n in cells.pop("participant_id")]
    return {"rows": [n if n.startswith("sub-") else f"sub-{n}" for n in names], "cells": cells}


def _read_rows(folder: Path) -> Any:
    from lacuna_nipype.io.bidsify import read_rows

    columns, rows = read_rows(folder / "bids" / "participants.tsv")
    return [columns, [list(row.values()) for row in rows]]


def _plain_rows(folder: Path) -> Any:
    rows = [[c.strip() for c in row] for row in plain.table(folder / "bids" / "participants.tsv")]
    header, *body = [row for row in rows if any(row)]
    return [header, [[cell or "n/a" for cell in row] for row in body]]


def _make_matrix(folder: Path) -> None:
    data.write_matrix(folder / "m_stat-z_relmat.tsv")


def _read_matrix(folder: Path) -> Any:
    from lacuna_nipype.connectomes.prepare import read_matrix

    found = read_matrix(folder / "m_stat-z_relmat.tsv")
    return {"names": list(found.names), "values": found.values}


def _make_streamline_tables(folder: Path) -> None:
    from lacuna_nipype.connectomes.bundles import read_streamline_groups, save_streamline_groups

    numbers = np.random.default_rng(5).uniform(0, 2, data.N_STREAMLINES).astype(np.float32)
    (folder / "weights.txt").write_text("# made by hand\n" + " ".join(map(str, numbers)) + "\n")
    np.save(folder / "weights.npy", numbers)
    rows = [f"{i}\t{'arc ü' if i % 3 else 'n/a'}" for i in range(data.N_STREAMLINES)]
    text = "\n".join(["streamline\tbundle", *rows, "4\tother"]) + "\n"
    (folder / "groups.tsv").write_text(text)
    import gzip

    (folder / "groups.tsv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    groups = read_streamline_groups(folder / "groups.tsv", data.N_STREAMLINES)
    save_streamline_groups(groups, folder / "groups.npz")


def _read_weights(name: str) -> Reader:
    def read(folder: Path) -> Any:
        from lacuna_nipype.connectomes.weights import read_streamline_weights

        return read_streamline_weights(folder / name, data.N_STREAMLINES)

    return read


def _read_groups(name: str) -> Reader:
    def read(folder: Path) -> Any:
        from lacuna_nipype.connectomes.bundles import read_streamline_groups

        found = read_streamline_groups(folder / name, data.N_STREAMLINES)
        return {
            bundle: sorted(found.streamline[found.bundle == number].tolist())
            for number, bundle in enumerate(found.names)
            if (found.bundle == number).any()
        }

    return read


def _possible_groups(result: dict[str, list[int]]) -> bool:
    places = [place for found in result.values() for place in found]
    return all(0 <= place < data.N_STREAMLINES for place in places) and "" not in result


# Transforms

_POINTS = np.array([[900.0, 800, -700], [-950, 600, 1000], [10, -20, 30], [0, 0, 0]])


def _read_transform(name: str) -> Reader:
    def read(folder: Path) -> Any:
        from lacuna_nipype.core.transforms import load_point_map

        return np.asarray(load_point_map([folder / name])(_POINTS))

    return read


def _plain_affine(folder: Path) -> Any:
    matrix = plain.affine_transform(folder / "affine.txt")
    return _POINTS @ matrix[:3, :3].T + matrix[:3, 3]


def _possible_points(result: Any) -> bool:
    return bool(np.isfinite(result).all())


# What belongs to the user


def _read_registry(folder: Path) -> Any:
    from lacuna_nipype.connectomes.registry import list_registered

    os.environ["LACUNA_DATA_DIR"] = str(folder)
    return [[e.name, e.kind, str(e.path), e.space, e.resolution, e.n_subjects, e.citation,
             e.licence, e.fingerprint, e.added_on] for e in list_registered()]  # fmt: skip


def _plain_registry(folder: Path) -> Any:
    path = folder / "connectomes" / "registry.json"
    if not path.exists():
        return []
    entries = json.loads(path.read_text("utf-8"))["Connectomes"]
    keys = ("name", "kind", "path", "space", "resolution", "n_subjects", "citation", "licence",
            "fingerprint", "added_on")  # fmt: skip
    found = [[entry[key] for key in keys] for entry in entries]
    for row in found:
        row[2] = str(Path(row[2]))
    return sorted(found, key=lambda row: row[0].casefold())


def _read_sources(folder: Path) -> Any:
    from lacuna_nipype.connectomes.public import list_fetchable_connectomes

    os.environ["LACUNA_DATA_DIR"] = str(folder)
    return {s.name: [s.description, s.display_name] for s in list_fetchable_connectomes()}


def _plain_sources(folder: Path) -> Any:
    import lacuna_nipype

    own = Path(lacuna_nipype.__file__).parent / "data" / "connectomes.json"
    table = json.loads(own.read_text("utf-8"))
    path = folder / "connectomes" / "sources.json"
    users = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name, entry in users.items():
        table[name.lower()] = {**table.get(name.lower(), {}), **entry}
    return {n: [e.get("description", ""), e.get("display_name", n)] for n, e in table.items()}


def _read_configuration(folder: Path) -> Any:
    from lacuna_nipype.remote.credentials import find_key

    os.environ["XDG_CONFIG_HOME"] = str(folder)
    keys = [find_key("dataverse"), find_key("figshare")]
    return [key.reveal() if key is not None else None for key in keys]


def _plain_configuration(folder: Path) -> Any:
    import yaml

    path = folder / "lacuna" / "config.yaml"
    entries = yaml.safe_load(path.read_text("utf-8")) if path.exists() else {}
    values = [(entries or {}).get(f"{name}_api_key") for name in ("dataverse", "figshare")]
    return [value.strip() or None if value else None for value in values]


# Archives


def _read_archive(name: str) -> Reader:
    def read(folder: Path) -> Any:
        from lacuna_nipype.connectomes.archives import iter_archive

        out = folder / "unpacked"
        before = {p for p in folder.rglob("*") if out not in p.parents}
        paths = list(iter_archive(folder / name, out, most_bytes=2_000_000_000))
        stray = {p for p in folder.rglob("*") if out not in p.parents and p != out} - before
        if stray:
            raise AssertionError(f"written outside of the folder: {stray}")
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}

    return read


def _plain_archive(name: str) -> Reader:
    def read(folder: Path) -> Any:
        found = plain.unpacked(folder / name)
        return {os.path.normpath(key).lstrip("/"): value for key, value in found.items()}

    return read


TRACTOGRAMS: tuple[tuple[str, Callable[[Path], Any]], ...] = (
    *(("a.tck", plain.tck), ("a.trk", plain.trk), ("b.trk.gz", plain.trk)),
    *(("a.trx", plain.trx), ("a.tt.gz", plain.tt)),
)

KINDS: tuple[Kind, ...] = (
    *(_mask_kind(name) for name in ("mask.nii.gz", "mask.nii", "float.nii.gz")),
    Kind("brain mask", data.write_bold, ("brain.nii.gz",), _read_brain,
         lambda folder: plain.volume_mask(folder / "brain.nii.gz")),
    Kind("image in 4D", data.write_bold, ("bold.nii.gz",), _read_bold,
         lambda folder: plain.series(folder / "bold.nii.gz")),
    Kind("repetition time", data.write_bold, ("bold.json",), _read_repetition_time,
         _plain_repetition_time),
    Kind("confounds", data.write_bold, ("confounds.tsv",), _read_confounds, _plain_confounds),
    *(Kind(f"connectome {name}", make_connectomes, (f"{name}.h5",), _read_connectome(f"{name}.h5"),
           lambda folder, name=name: plain.connectome(folder / f"{name}.h5"))
      for name in ("packed", "plain")),
    Kind("store", make_store, ("store/source.h5",), _read_store,
         lambda folder: plain.store(folder / "store" / "source.h5")),
    Kind("index", make_index, ("index.h5",), _read_index, None, _possible_index),
    *(_tractogram_kind(name, reader) for name, reader in TRACTOGRAMS),
    Kind("tractogram's JSON", make_tractograms, ("a.json",), _read_tractogram_space,
         _plain_tractogram_space),
    _atlas_kind("labels.nii.gz", "labels.tsv"),
    _atlas_kind("chances.nii.gz", "chances.txt"),
    Kind("names of regions", data.write_atlas, ("labels.tsv", "labels.txt", "labels.csv"),
         _read_labels, _plain_labels),
    Kind("dataset", make_dataset,
         (f"bids/sub-01/anat/{data.MASK_NAME}.json", "bids/dataset_description.json"),
         _read_dataset, None, _possible_dataset),
    Kind("filter", make_dataset, ("filter.json",), _read_filter, _plain_filter),
    Kind("participants", make_dataset, ("bids/participants.tsv",), _read_participants,
         _plain_participants),
    Kind("participants to merge", make_dataset, ("bids/participants.tsv",), _read_rows,
         _plain_rows),
    Kind("matrix", _make_matrix, ("m_stat-z_relmat.tsv", "m_stat-z_relmat.json"), _read_matrix,
         lambda folder: plain.matrix(folder / "m_stat-z_relmat.tsv")),
    *(Kind(f"weights {name}", _make_streamline_tables, (f"weights.{name}",),
           _read_weights(f"weights.{name}"),
           lambda folder, name=name: plain.weights(folder / f"weights.{name}"))
      for name in ("txt", "npy")),
    *(Kind(f"groups {name}", _make_streamline_tables, (f"groups.{name}",),
           _read_groups(f"groups.{name}"),
           None if name == "npz" else
           lambda folder, name=name: plain.groups(folder / f"groups.{name}"),
           _possible_groups if name == "npz" else None)
      for name in ("tsv", "tsv.gz", "npz")),
    Kind("affine", data.write_transforms, ("affine.txt",), _read_transform("affine.txt"),
         _plain_affine),
    Kind("composite transform", data.write_transforms, ("composite.h5",),
         _read_transform("composite.h5"), None, _possible_points),
    Kind("displacement field", data.write_transforms, ("field.nii.gz",),
         _read_transform("field.nii.gz"), None, _possible_points),
    Kind("registry", data.write_registry, ("connectomes/registry.json",), _read_registry,
         _plain_registry),
    Kind("sources", data.write_registry, ("connectomes/sources.json",), _read_sources,
         _plain_sources),
    Kind("configuration", data.write_registry, ("lacuna/config.yaml",), _read_configuration,
         _plain_configuration),
    *(Kind(f"archive {name}", data.write_archives, (f"files.{name}",),
           _read_archive(f"files.{name}"), _plain_archive(f"files.{name}"))
      for name in ("tar.gz", "zip")),
)  # fmt: skip

KINDS_BY_NAME = {kind.name: kind for kind in KINDS}
