"""Small sound files of every kind; the mutations start from these."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import nibabel as nb
import numpy as np

SPACE = "MNI152NLin6Asym"
SHAPE = (12, 14, 10)
AFFINE = np.array([[6.0, 0, 0, -33], [0, 6, 0, -60], [0, 0, 6, -20], [0, 0, 0, 1]])
MASK_NAME = f"sub-01_space-{SPACE}_label-stroke_mask"
N_STREAMLINES = 40


def lesion() -> np.ndarray:
    """A block of voxels left of the middle."""
    data = np.zeros(SHAPE, np.uint8)
    data[2:5, 4:8, 3:6] = 1
    return data


def brain() -> np.ndarray:
    """The brain mask of the functional connectome."""
    data = np.zeros(SHAPE, bool)
    data[1:9, 2:12, 1:9] = True
    return data


def save(path: Path, data: np.ndarray) -> None:
    """Write an image whose sform and qform say the same."""
    image = nb.Nifti1Image(data, AFFINE)
    image.set_sform(AFFINE, 4)
    image.set_qform(AFFINE, 4)
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.save(image, path)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_dataset(folder: Path) -> None:
    """A BIDS dataset of one participant, its mask stored as floats."""
    write_json(folder / "dataset_description.json", {
        "Name": "masks", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "hand", "Version": "1"}],
    })  # fmt: skip
    save(folder / "sub-01" / "anat" / f"{MASK_NAME}.nii.gz", lesion().astype(np.float32))
    write_json(folder / "sub-01" / "anat" / f"{MASK_NAME}.json", {
        "Space": SPACE, "Type": "Lesion", "Sources": ["bids::x"], "SpatialReference": {"a": SPACE},
    })  # fmt: skip
    (folder / "participants.tsv").write_text(
        "participant_id\tage\tgroup\nsub-01\t61\tpatient\nsub-02\tn/a\tcontrol\n"
    )
    write_json(folder.parent / "filter.json", {"lesion": {"label": ["stroke", None]}, "t1w": {}})


def write_connectome(path: Path, **storage: Any) -> None:
    """A functional connectome of three subjects in Lacuna's layout."""
    indices = np.array(np.nonzero(brain()))
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        series = rng.normal(size=(3, 20, indices.shape[1])).astype(np.float32)
        file.create_dataset("timeseries", data=series, **storage)
        file["mask_indices"], file["mask_affine"] = indices, AFFINE
        file.attrs["mask_shape"], file.attrs["space"] = SHAPE, SPACE


def streamlines() -> list[np.ndarray]:
    """Straight lines from left to right with steps of 1.5 mm; one has one point only."""
    lines = []
    for number in range(N_STREAMLINES):
        n = 1 if number == 7 else 10 + number % 9
        x = -30 + 1.5 * np.arange(n)
        y, z = np.full(n, -50.0 + 1.7 * number), np.full(n, -15.0 + number % 13)
        lines.append(np.stack([x, y, z], axis=1).astype(np.float32))
    return lines


def write_tck(path: Path) -> None:
    """The streamlines as MRtrix writes them."""
    header = (
        f"mrtrix tracks\ndatatype: Float32LE\nstep_size: 1.5\ncount: {N_STREAMLINES}\n"
        "method: FACT\nfile: . 128\nEND\n"
    )
    blocks = [np.concatenate([line, np.full((1, 3), np.nan)]) for line in streamlines()]
    points = np.concatenate([*blocks, np.full((1, 3), np.inf)]).astype("<f4")
    path.write_bytes(header.encode().ljust(128, b"\0") + points.tobytes())


def write_trk(path: Path) -> None:
    """The streamlines as TrackVis writes them."""
    header = {"voxel_to_rasmm": AFFINE, "voxel_sizes": (6, 6, 6), "dimensions": SHAPE}
    tractogram = nb.streamlines.Tractogram(streamlines(), affine_to_rasmm=np.eye(4))
    stream = io.BytesIO()
    nb.streamlines.TrkFile(tractogram, header=header).save(stream)
    data = stream.getvalue()
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def write_trx(path: Path) -> None:
    """The streamlines as a TRX archive."""
    lines = streamlines()
    lengths = [len(line) for line in lines]
    header = {"DIMENSIONS": list(SHAPE), "VOXEL_TO_RASMM": AFFINE.tolist(),
              "NB_VERTICES": sum(lengths), "NB_STREAMLINES": len(lines)}  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        archive.writestr("positions.3.float32", np.concatenate(lines).astype("<f4").tobytes())
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<u8")
        archive.writestr("offsets.uint64", offsets.tobytes())


def write_tt(path: Path) -> None:
    """The streamlines as DSI Studio's TinyTrack."""
    inverse = np.linalg.inv(AFFINE)
    body = b""
    for line in streamlines():
        places = np.rint(32 * (line @ inverse[:3, :3].T + inverse[:3, 3])).astype("<i4")
        steps = np.diff(places, axis=0).astype("i1")
        body += struct.pack("<I", places.size) + places[0].tobytes() + steps.tobytes()
    matrices = [
        (b"dimension", 50, np.array([SHAPE], "u1")),
        (b"voxel_size", 10, np.array([[6, 6, 6]], "<f4")),
        (b"trans_to_mni", 10, AFFINE.astype("<f4").reshape(1, 16)),
        (b"track0", 50, np.frombuffer(body, "u1")[None]),
    ]
    data = b""
    for name, kind, values in matrices:
        data += struct.pack("<5i", kind, 1, values.size, 0, len(name) + 1) + name + b"\0"
        data += values.tobytes()
    path.write_bytes(gzip.compress(data, mtime=0))


def write_atlas(folder: Path) -> None:
    """An atlas of labels, one of probabilities, and their names."""
    labels = np.zeros(SHAPE, np.int16)
    labels[:4, 2:12], labels[4:8, 2:12], labels[8:, 2:12] = 1, 2, 5
    save(folder / "labels.nii.gz", labels)
    chances = np.zeros((*SHAPE, 2), np.float32)
    chances[:6, ..., 0], chances[6:, ..., 1] = 0.75, 0.5
    save(folder / "chances.nii.gz", chances)
    names = {1: "left", 2: "middle ünï", 5: "right"}
    (folder / "labels.tsv").write_text(
        "index\tname\tcolor\n" + "".join(f"{i}\t{n}\t#ff0000\n" for i, n in names.items())
    )
    (folder / "labels.txt").write_text("".join(f"{i} {n}\n" for i, n in names.items()))
    (folder / "labels.csv").write_text(
        "index,name\n" + "".join(f"{i},{n}\n" for i, n in names.items())
    )
    (folder / "chances.txt").write_text("west\neast\n")


def write_transforms(folder: Path) -> None:
    """An affine, a composite of an affine and a field, and a field alone, in ITK's forms."""
    parameters = np.array([1.01, 0, 0, 0.02, 0.99, 0, 0, 0, 1, 3, -2, 1.5])
    (folder / "affine.txt").write_text(
        "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: AffineTransform_double_3_3\n"
        f"Parameters: {' '.join(map(str, parameters))}\nFixedParameters: 0 0 0\n"
    )
    shape = (6, 7, 5)
    field = np.random.default_rng(2).normal(size=(*shape, 1, 3)).astype(np.float32)
    image = nb.Nifti1Image(field, np.diag([20.0, 20, 20, 1]) @ _shift(-50))
    image.header.set_intent("vector")
    nb.save(image, folder / "field.nii.gz")
    with h5py.File(folder / "composite.h5", "w") as file:
        group = file.create_group("TransformGroup")
        fixed = [*shape, -50, -50, -50, 20, 20, 20, *np.eye(3).ravel()]
        flat = np.random.default_rng(3).normal(size=3 * int(np.prod(shape)))
        for number, (kind, own, constant) in enumerate((
            ("CompositeTransform_double_3_3", None, None),
            ("DisplacementFieldTransform_double_3_3", flat, fixed),
            ("AffineTransform_double_3_3", parameters, [0.0, 0, 0]),
        )):  # fmt: skip
            part = group.create_group(str(number))
            part["TransformType"] = np.array([kind.encode()])
            if own is not None:
                part["TransformParameters"] = np.asarray(own, float)
                part["TransformFixedParameters"] = np.asarray(constant, float)
        file["ITKVersion"], file["HDFVersion"] = np.array([b"5.3.0"]), np.array([b"1.10"])


def _shift(by: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = by / 20
    return matrix


def write_matrix(path: Path) -> None:
    """A symmetric matrix between three parcels, with its JSON."""
    path.write_text("name\ta\tb b\tç\na\tn/a\t0.5\t-1\nb b\t0.5\tn/a\t2e-1\nç\t-1\t0.2\tn/a\n")
    write_json(path.with_suffix(".json"), {
        "SpaceName": SPACE, "NumberOfSubjects": 3, "Statistic": "z", "Atlas": "x",
    })  # fmt: skip


def write_registry(folder: Path) -> None:
    """The registry of connectomes, the user's table of sources, and the configuration."""
    entry = {"name": "mine", "kind": "functional", "path": "/data/c.h5", "space": SPACE,
             "resolution": 2.0, "n_subjects": 3, "citation": "x", "licence": "CC0",
             "fingerprint": "sha256:0", "added_on": "2024-01-01T00:00:00+00:00"}  # fmt: skip
    other = {**entry, "name": "other", "kind": "structural", "path": "/data/t.tck"}
    write_json(folder / "connectomes" / "registry.json",
               {"FormatVersion": 1, "Connectomes": [entry, other]})  # fmt: skip
    write_json(folder / "connectomes" / "sources.json", {
        "hcp1065": {"description": "changed"},
        "ours": {"display_name": "Ours", "description": "d", "type": "structural",
                 "source_type": "figshare", "register_name": "ours"},
    })  # fmt: skip
    config = folder / "lacuna" / "config.yaml"
    config.parent.mkdir()
    config.write_text("dataverse_api_key: 'abc-123'\nfigshare_api_key: def\n# a comment\n")
    config.chmod(0o600)


def write_bold(folder: Path) -> None:
    """A series in four dimensions, its JSON, and its confounds."""
    rng = np.random.default_rng(4)
    save(folder / "bold.nii.gz", rng.normal(100, 5, (*SHAPE, 12)).astype(np.float32))
    write_json(folder / "bold.json", {"RepetitionTime": 2.5, "TaskName": "rest"})
    save(folder / "brain.nii.gz", brain().astype(np.uint8))
    rows = rng.normal(size=(12, 3)).round(4)
    lines = ["\t".join(map(str, row)) for row in rows]
    lines[0] = "\t".join(["n/a", *lines[0].split("\t")[1:]])
    (folder / "confounds.tsv").write_text(
        "\n".join(["trans_x\tcsf\tglobal_signal", *lines]) + "\n"
    )


def write_archives(folder: Path) -> None:
    """A tar archive and a zip archive of two files."""
    with tarfile.open(folder / "files.tar.gz", "w:gz") as archive:
        for name, data in (("a/one.txt", b"one" * 50), ("a/b/two.bin", bytes(range(256)))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(folder / "files.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/one.txt", b"one" * 50)
        packed.writestr("a/b/two.bin", bytes(range(256)))
