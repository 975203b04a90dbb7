"""Peak memory of every step, measured, beside what it is estimated to take.

Run ``python benchmarks/resources.py --data DIR``; it takes some minutes and a gigabyte.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import nibabel as nb
import numpy as np
import psutil

from lacuna_nipype.connectomes.functional import read_connectome_file
from lacuna_nipype.connectomes.partial import pass_memory_gb
from lacuna_nipype.connectomes.store import StoreSource, write_store
from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.spaces import Grid, grid_of_size
from lacuna_nipype.execution.estimates import (
    Estimate,
    Sizes,
    estimate_resources,
    sizes_on_grid,
)

SPACE = "MNI152NLin6Asym"
STEP_MM = 1.0


@dataclass(frozen=True)
class Case:
    """What a run is made of.

    Voxel sizes are in mm; of the connectomes, the atlases and the returned maps.
    """

    name: str
    mask_mm: float
    functional_mm: float
    subjects: int
    timepoints: int
    lesions: int
    atlas_mm: float
    regions: int
    volumes: int
    structural_mm: int
    streamlines: int
    points: int
    returned_mm: int
    layout: str = "series"
    n_threads: int = 1


CASES = (
    Case("small", 4, 4, 3, 40, 2, 4, 10, 4, 2, 3_000, 60, 2),
    Case("middle", 2, 3, 4, 100, 10, 2, 100, 8, 2, 60_000, 60, 2, layout="store"),
    Case("large", 1, 2, 3, 120, 40, 1, 400, 16, 1, 400_000, 80, 1, n_threads=2),
    Case("many", 2, 3, 3, 40, 2, 2, 1000, 4, 2, 2_000_000, 10, 2),
)


class Data:
    """Makes the files of a case, each when it is asked for."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.rng = np.random.default_rng(0)

    def _make(self, name: str, write: Callable[[Path], Any]) -> str:
        path = self.folder / name
        if not path.exists():
            write(path)
        return str(path)

    def mask(self) -> str:
        grid = grid_of_size(SPACE, self.case.mask_mm)
        ball = _distance(grid, (-30.0, -20.0, 20.0)) < 18
        return self._make("mask.nii.gz", lambda path: save_image(path, ball, grid.affine, "f4"))

    def seed(self) -> str:
        """The mask on the functional grid."""
        grid, _ = self.brain()
        ball = _distance(grid, (-30.0, -20.0, 20.0)) < 18
        return self._make("seed.nii.gz", lambda path: save_image(path, ball, grid.affine, "u1"))

    def template(self) -> str:
        """An empty image on the grid of the maps of the tractogram."""
        grid = grid_of_size(SPACE, self.case.structural_mm)
        empty = np.zeros(grid.shape)
        return self._make("grid.nii.gz", lambda path: save_image(path, empty, grid.affine, "u1"))

    def brain(self) -> tuple[Grid, np.ndarray]:
        """Voxels of the functional connectome: an ellipsoid, a quarter of the grid."""
        grid = grid_of_size(SPACE, self.case.functional_mm)
        return grid, np.argwhere(_ellipsoid(grid)).T

    def connectome(self) -> str:
        grid, voxels = self.brain()
        shape = (self.case.timepoints, voxels.shape[1])

        def write(path: Path) -> None:
            series = (
                self.rng.standard_normal(shape, dtype=np.float32)
                for _ in range(self.case.subjects)
            )
            if self.case.layout == "store":
                source = StoreSource(grid, voxels, shape[0], SPACE, ("made from a seed",))
                write_store(path, source, series)
                return
            with h5py.File(path, "w") as out:
                stored = out.create_dataset(
                    "timeseries", (self.case.subjects, *shape), "f4", chunks=(1, *shape),
                    compression=1,
                )  # fmt: skip
                for number, values in enumerate(series):
                    stored[number] = values
                out["mask_indices"], out["mask_affine"] = voxels, grid.affine
                out.attrs["mask_shape"], out.attrs["space"] = grid.shape, SPACE

        return self._make("connectome.h5", write)

    def labels(self, count: int, stem: str) -> str:
        lines = "".join(f"{number} Region{number}\n" for number in range(1, count + 1))
        return self._make(f"{stem}.txt", lambda path: path.write_text(lines))

    def atlas(self) -> str:
        grid = grid_of_size(SPACE, self.case.atlas_mm)
        inside = np.flatnonzero(_ellipsoid(grid))
        labels = np.zeros(int(np.prod(grid.shape)), dtype=np.int16)
        labels[inside] = 1 + np.arange(len(inside)) * self.case.regions // len(inside)
        labels = labels.reshape(grid.shape)
        return self._make("atlas.nii.gz", lambda path: save_image(path, labels, grid.affine, "i2"))

    def probabilities(self) -> str:
        grid = grid_of_size(SPACE, self.case.atlas_mm)

        def write(path: Path) -> None:
            volumes = np.zeros((*grid.shape, self.case.volumes), dtype=np.float32)
            for number in range(self.case.volumes):
                centre = self.rng.uniform(-40, 40, 3)
                volumes[..., number] = np.maximum(0, 1 - _distance(grid, centre) / 30)
            nb.save(nb.Nifti1Image(volumes, grid.affine), path)

        return self._make("probabilities.nii.gz", write)

    def _streamlines(self) -> Iterator[np.ndarray]:
        for start in range(0, self.case.streamlines, 1000):
            shape = (min(1000, self.case.streamlines - start), self.case.points, 3)
            way = np.cumsum(self.rng.normal(0, 0.25, shape), axis=1)
            way += self.rng.normal(size=(shape[0], 1, 3))
            way /= np.linalg.norm(way, axis=2, keepdims=True) / STEP_MM
            curves = np.cumsum(way, axis=1)
            curves -= curves.mean(axis=1, keepdims=True)
            curves += self.rng.uniform(-30, 30, (shape[0], 1, 3))
            yield from curves.astype(np.float32)

    def tractogram(self) -> str:
        return self._make(
            "tracks.tck", lambda path: write_tck(path, self._streamlines(), step_size=STEP_MM)
        )

    def trk(self) -> str:
        """The first streamlines of the tractogram in another format."""

        def write(path: Path) -> None:
            curves = itertools.islice(self._streamlines(), 50_000)
            tractogram = nb.streamlines.Tractogram(list(curves), affine_to_rasmm=np.eye(4))
            grid = grid_of_size(SPACE, self.case.structural_mm)
            header = {
                "voxel_to_rasmm": grid.affine, "dimensions": grid.shape,
                "voxel_sizes": grid.voxel_sizes, "voxel_order": "RAS",
            }  # fmt: skip
            nb.streamlines.save(tractogram, str(path), header=header)

        return self._make("tracks.trk", write)

    def weights(self) -> str:
        def write(path: Path) -> None:
            np.savetxt(path, self.rng.random(self.case.streamlines), fmt="%.6g")

        return self._make("weights.txt", write)

    def groups(self) -> str:
        def write(path: Path) -> None:
            rows = (f"{i}\tBundle{i % 50}\n" for i in range(self.case.streamlines))
            path.write_text("streamline\tbundle\n" + "".join(rows))

        return self._make("groups.tsv", write)

    def matrix(self) -> str:
        names = [f"Region{number}" for number in range(1, self.case.regions + 1)]

        def write(path: Path) -> None:
            import pandas as pd

            z = self.rng.normal(0, 0.3, (len(names), len(names)))
            np.fill_diagonal(z, 0)
            table = pd.DataFrame((z + z.T) / 2, index=names, columns=names)
            table.to_csv(path, sep="\t", index_label="name")
            path.with_suffix(".json").write_text(json.dumps({"Statistic": "z"}))

        return self._make("matrix_stat-z_relmat.tsv", write)

    def field(self) -> str:
        """A displacement field at the masks' resolution, as ANTs writes it."""
        grid = grid_of_size(SPACE, self.case.mask_mm)

        def write(path: Path) -> None:
            values = self.rng.uniform(-1, 1, (*grid.shape, 1, 3)).astype(np.float32)
            image = nb.Nifti1Image(values, grid.affine)
            image.header.set_intent("vector")
            nb.save(image, path)

        return self._make("field.nii.gz", write)

    def sizes(self) -> Sizes:
        """What is known of the case before the run."""
        case = self.case
        file = read_connectome_file(Path(self.connectome()))
        atlas_voxels = _n_voxels(case.atlas_mm)
        # Labels fill a quarter of the grid, probabilities a thirtieth of each volume.
        values = atlas_voxels * max(0.25, case.volumes / 30)
        return Sizes(
            mask_voxels=_n_voxels(case.mask_mm),
            functional_voxels=int(np.prod(file.grid.shape)),
            brain_voxels=file.n_voxels,
            timepoints=case.timepoints,
            subjects=case.subjects,
            connectome_bytes=file.path.stat().st_size,
            all_subjects=case.subjects,
            lesions=case.lesions,
            seed_voxels=int(24_000 / case.functional_mm**3),
            maps=4,
            pass_gb=pass_memory_gb(file, case.lesions, case.n_threads),
            read_gb=pass_memory_gb(file, 1),
            atlas_voxels=atlas_voxels,
            atlas_values=int(values),
            all_atlas_values=atlas_voxels // 4,
            regions=case.regions,
            streamlines=case.streamlines,
            tractogram_bytes=Path(self.tractogram()).stat().st_size,
            structural_voxels=_n_voxels(case.structural_mm),
            returned_voxels=_n_voxels(case.returned_mm),
            transform_bytes=Path(self.field()).stat().st_size,
            threads=case.n_threads,
        )


def _n_voxels(size_mm: float) -> int:
    return int(np.prod(grid_of_size(SPACE, size_mm).shape))


def _positions(grid: Grid) -> np.ndarray:
    index = np.indices(grid.shape, dtype=np.float32).reshape(3, -1)
    return grid.affine[:3, :3].astype(np.float32) @ index + grid.affine[:3, 3:].astype(np.float32)


def _distance(grid: Grid, centre: Any) -> np.ndarray:
    away = _positions(grid) - np.asarray(centre, dtype=np.float32)[:, np.newaxis]
    return np.sqrt((away**2).sum(axis=0)).reshape(grid.shape)


def _ellipsoid(grid: Grid) -> np.ndarray:
    scaled = (_positions(grid) - np.float32([[0], [-18], [10]])) / np.float32([[68], [86], [70]])
    return ((scaled**2).sum(axis=0) < 1).reshape(grid.shape)


@dataclass(frozen=True)
class Step:
    """One run of an interface.

    Parameters
    ----------
    name : str
        Of the interface.
    module : str
        Where it is, below ``lacuna_nipype.interfaces``.
    inputs : callable
        Gives its inputs from the data and from what earlier steps made, by their labels.
    label : str
        Tells runs of one interface apart; its name by default.
    mapped : bool
        It maps files into memory: their pages are the kernel's to drop, and do not count.
    commands : bool
        It runs programs, whose memory counts too.
    grid : str, optional
        Grid that the step works on, as graphs say it.
    """

    name: str
    module: str
    inputs: Callable[[Data, dict[str, Any]], dict[str, Any]]
    label: str = ""
    mapped: bool = False
    commands: bool = False
    grid: str | None = None

    @property
    def key(self) -> str:
        """Label, or name where there is none."""
        return self.label or self.name


def _repeated(path: str, data: Data) -> list[str]:
    return [path] * data.case.lesions


def _fnm_steps() -> list[Step]:
    def maps(made: dict[str, Any]) -> list[str]:
        return [made["ReduceCorrelation"][f"{key}_maps"][0] for key in ("z", "t", "p", "q")]

    return [
        Step("ConnectomeMask", "functional", lambda d, m: {"connectome_file": d.connectome()}),
        Step("ResampleMask", "mask", lambda d, m: {
            "in_file": m["ValidateMask"]["out_file"], "reference": m["ConnectomeMask"]["out_file"],
        }),
        Step("CorrelateBatch", "functional", lambda d, m: {
            "connectome_file": d.connectome(),
            "mask_files": _repeated(m["ResampleMask"]["out_file"], d),
            "memory_gb": 100.0, "num_threads": d.case.n_threads,
        }),
        Step("SeedCorrelations", "functional", lambda d, m: {
            "connectome_file": d.connectome(),
            "mask_files": _repeated(m["ResampleMask"]["out_file"], d),
        }),
        Step("SelectSeeds", "functional", lambda d, m: {
            "seed_files": [m["SeedCorrelations"]["out_file"]],
            "connectome_file": d.connectome(),
            "mask_files": _repeated(m["ResampleMask"]["out_file"], d),
        }),
        Step("ReduceCorrelation", "functional", lambda d, m: {
            "partial_files": [m["CorrelateBatch"]["out_file"]] ,
            "connectome_file": d.connectome(), "with_errors": True,
        }),
        Step("PrepareParcels", "parcels", lambda d, m: {
            "in_file": d.atlas(), "labels_file": d.labels(d.case.regions, "atlas"),
            "reference": m["ConnectomeMask"]["out_file"],
        }, "PrepareParcels to maps", grid="functional"),
        Step("PrepareParcels", "parcels", lambda d, m: {
            "in_file": d.probabilities(), "labels_file": d.labels(d.case.volumes, "volumes"),
            "reference": m["ConnectomeMask"]["out_file"],
        }, "PrepareParcels 4D to maps", grid="functional"),
        Step("AggregateParcels", "parcels", lambda d, m: {
            "in_files": maps(m), "quantities": ["z", "t", "p", "q"],
            "valid_mask": m["ReduceCorrelation"]["valid_mask"],
            "parcels_files": [m["PrepareParcels to maps"]["out_file"]],
        }, grid="functional"),
        Step("ReturnFunctionalMaps", "returned", lambda d, m: {
            "z_map": maps(m)[0], "error_map": m["ReduceCorrelation"]["error_maps"][0],
            "valid_mask": m["ReduceCorrelation"]["valid_mask"],
            "mask_file": m["ValidateMask"]["out_file"], "space": SPACE,
            "resolution": d.case.returned_mm,
            "quantities": ["r", "z", "t", "p", "q", "qsig"], "n_subjects": d.case.subjects,
        }),
        Step("DerivativesDataSink", "bids", lambda d, m: {
            "base_directory": str(d.folder / "derivatives"), "in_file": [maps(m)[0]],
            "entities": {"subject": "01", "space": SPACE, "label": "L", "desc": "fnm",
                         "statistic": "z", "suffix": "statmap"},
        }),
        Step("VerifyMaps", "functional", lambda d, m: {
            "source_files": [d.connectome()], "n_voxels": 5,
            "mask_files": _repeated(m["ResampleMask"]["out_file"], d),
            "r_maps": m["ReduceCorrelation"]["r_maps"],
        }),
    ]  # fmt: skip


def _atlas_steps() -> list[Step]:
    return [
        Step("ValidateMask", "mask", lambda d, m: {"in_file": d.mask(), "space": SPACE}),
        Step("ApplyTransform", "transforms", lambda d, m: {
            "in_file": m["ValidateMask"]["out_file"], "reference": d.mask(),
            "transforms": [d.field()], "interpolation": "mask",
        }),
        Step("PrepareParcels", "parcels", lambda d, m: {
            "in_file": d.atlas(), "labels_file": d.labels(d.case.regions, "atlas"),
        }, grid="masks"),
        Step("PrepareParcels", "parcels", lambda d, m: {
            "in_file": d.probabilities(), "labels_file": d.labels(d.case.volumes, "volumes"),
        }, "PrepareParcels 4D", grid="masks"),
        Step("PrepareParcels", "parcels", lambda d, m: {
            "in_file": d.atlas(), "labels_file": d.labels(d.case.regions, "atlas"),
            "reference": d.mask(), "transforms": [d.field()],
        }, "PrepareParcels warped", grid="masks"),
        Step("PrepareParcels", "parcels", lambda d, m: {
            "in_file": d.probabilities(), "labels_file": d.labels(d.case.volumes, "volumes"),
            "reference": d.mask(), "transforms": [d.field()],
        }, "PrepareParcels 4D warped", grid="masks"),
        Step("RegionalDamage", "parcels", lambda d, m: {
            "mask_file": m["ValidateMask"]["out_file"],
            "parcels_files": [m["PrepareParcels"]["out_file"]],
        }),
        Step("ParcelScores", "afnm", lambda d, m: {
            "mask_file": m["ValidateMask"]["out_file"],
            "parcels_file": m["PrepareParcels"]["out_file"], "matrix_file": d.matrix(),
        }),
    ]  # fmt: skip


def _snm_steps() -> list[Step]:
    def index(data: Data, made: dict[str, Any]) -> dict[str, Any]:
        return {
            "index": made["BuildStreamlineIndex"]["out_file"], "tractogram": data.tractogram(),
            "num_threads": data.case.n_threads,
        }  # fmt: skip

    def matrices(data: Data, made: dict[str, Any]) -> dict[str, Any]:
        return {
            "hits": made["IndexedDisconnection"]["hits"],
            "assignments": [made["AssignIndexedStreamlines"]["out_file"]],
            "nodes_tables": [made["PrepareNodes"]["table"]],
            "full_matrices": [made["FullMatrix"]["out_file"]],
            "atlas_names": ["Atlas"],
            "streamline_weights": made["PrepareWeights"]["out_file"],
        }

    return [
        Step("TemplateGrid", "structural", lambda d, m: {
            "space": SPACE, "resolution": d.case.structural_mm,
        }),
        Step("ConvertTractogram", "streamlines", lambda d, m: {"in_file": d.trk()}),
        Step("CheckTractogram", "streamlines", lambda d, m: {"in_file": d.tractogram()}),
        Step("BuildStreamlineIndex", "streamlines", lambda d, m: {
            "tractogram": d.tractogram(), "reference": m["TemplateGrid"]["out_file"],
            "space": SPACE, "num_threads": d.case.n_threads,
        }),
        Step("PrepareWeights", "disconnectivity", lambda d, m: {
            "in_file": d.weights(), "n_streamlines": d.case.streamlines,
        }),
        Step("PrepareGroups", "disconnectivity", lambda d, m: {
            "in_file": d.groups(), "n_streamlines": d.case.streamlines,
        }),
        Step("PrepareNodes", "disconnectivity", lambda d, m: {
            "in_file": d.atlas(), "labels_file": d.labels(d.case.regions, "atlas"),
        }, grid="masks"),
        Step("IndexedDensity", "streamlines", lambda d, m: {
            **index(d, m), "streamline_weights": m["PrepareWeights"]["out_file"],
        }, mapped=True),
        Step("AssignIndexedStreamlines", "streamlines", lambda d, m: {
            **index(d, m), "nodes": m["PrepareNodes"]["out_file"],
        }, mapped=True),
        Step("IndexedDisconnection", "streamlines", lambda d, m: {
            **index(d, m), "mask_file": m["ValidateMask"]["out_file"],
            "full_tdi": m["IndexedDensity"]["out_file"],
            "streamline_weights": m["PrepareWeights"]["out_file"],
        }, mapped=True),
        Step("FullMatrix", "disconnectivity", lambda d, m: {
            "assignments": m["AssignIndexedStreamlines"]["out_file"],
            "nodes_table": m["PrepareNodes"]["table"],
            "streamline_weights": m["PrepareWeights"]["out_file"],
        }),
        Step("DisconnectivityMatrix", "disconnectivity", matrices),
        Step("BundleDisconnection", "disconnectivity", lambda d, m: {
            "groups_file": m["PrepareGroups"]["out_file"],
            "hits": m["IndexedDisconnection"]["hits"], "n_streamlines": d.case.streamlines,
        }),
        Step("PrepareParcels", "parcels", lambda d, m: {
            "in_file": d.atlas(), "labels_file": d.labels(d.case.regions, "atlas"),
            "reference": m["TemplateGrid"]["out_file"],
        }, "PrepareParcels to disconnection", grid="structural"),
        Step("PrepareParcels", "parcels", lambda d, m: {
            "in_file": d.probabilities(), "labels_file": d.labels(d.case.volumes, "volumes"),
            "reference": m["TemplateGrid"]["out_file"],
        }, "PrepareParcels 4D to disconnection", grid="structural"),
        Step("AggregateParcels", "parcels", lambda d, m: {
            "in_files": [m["IndexedDisconnection"]["out_file"]],
            "quantities": ["mapdisconnectionpct"],
            "valid_mask": m["IndexedDisconnection"]["valid_mask"],
            "parcels_files": [m["PrepareParcels to disconnection"]["out_file"]],
        }, "AggregateParcels of disconnection", grid="structural"),
        Step("ReturnMap", "returned", lambda d, m: {
            "in_file": m["IndexedDisconnection"]["out_file"],
            "valid_mask": m["IndexedDisconnection"]["valid_mask"],
            "space": SPACE, "resolution": d.case.returned_mm,
        }),
        Step("CombineSummaries", "structural", lambda d, m: {
            "in_files": [m["IndexedDisconnection"]["summary"]],
        }),
    ]  # fmt: skip


def _mrtrix_steps() -> list[Step]:
    return [
        Step("SelectStreamlines", "mrtrix", lambda d, m: {
            "in_files": [d.tractogram()], "include": [m["ValidateMask"]["out_file"]],
            "out_file": "hit.tck", "with_positions": True,
        }, commands=True),
        Step("TCKMap", "mrtrix", lambda d, m: {
            "in_file": d.tractogram(), "reference": m["TemplateGrid"]["out_file"],
            "out_file": "tdi.nii.gz",
        }, commands=True),
        Step("DisconnectionMap", "structural", lambda d, m: {
            "lesion_tdi": m["TCKMap"]["out_file"], "full_tdi": m["TCKMap"]["out_file"],
            "lesion_tractogram": m["SelectStreamlines"]["out_file"], "n_streamlines": 1000,
        }),
        Step("AssignStreamlines", "assignment", lambda d, m: {
            "in_file": d.tractogram(), "nodes": m["PrepareNodes"]["out_file"],
        }, commands=True),
    ]  # fmt: skip


def all_steps() -> list[Step]:
    """List every step, in an order in which they can run."""
    steps = [*_atlas_steps(), *_fnm_steps(), *_snm_steps()]
    return [*steps, *(_mrtrix_steps() if shutil.which("tckmap") else [])]


# Runs one interface as a worker of a run does, and tells what it took and what it made.
WORKER = """
import json, os, sys
from importlib import import_module
import nipype.pipeline.engine
request = json.load(open(sys.argv[1]))
module = import_module("lacuna_nipype.interfaces." + request["module"])
os.chdir(request["folder"])
interface = getattr(module, request["name"])(**request["inputs"])
result = interface.run(cwd=request["folder"])
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
shared, counts = 0, False
for line in open("/proc/self/smaps"):
    words = line.split()
    if "-" in words[0]:
        counts = len(words) > 5 and words[5].startswith("/") and "/data/" not in words[5]
    elif counts and words[0] == "Rss:":
        shared += int(words[1])
answer = {
    "peak": int(status["VmHWM"].split()[0]) / 1e6 * 1.024,
    "libraries": shared / 1e6 * 1.024,
    "made": {k: v for k, v in result.outputs.get().items() if isinstance(v, (str, list))},
}
json.dump(answer, open(sys.argv[2], "w"))
"""


@dataclass(frozen=True)
class Measured:
    """What one run of an interface took.

    ``gb`` counts neither pages of data files that are mapped into memory nor what other programs
    share; ``resident`` is the highest resident size.
    """

    gb: float
    resident: float
    seconds: float
    made: dict[str, Any]


def measure(step: Step, data: Data, made: dict[str, Any]) -> Measured:
    """Run a step in a process of its own."""
    folder = data.folder / step.key.replace(" ", "_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    request, answer = folder / "request.json", folder / "answer.json"
    inputs = step.inputs(data, made)
    text = {"module": step.module, "name": step.name, "inputs": inputs, "folder": str(folder)}
    request.write_text(json.dumps(text))
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(request), str(answer)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    own, programs = 0.0, 0.0
    while process.poll() is None:
        own = max(own, _memory_gb(process.pid, "RssAnon"))
        if step.commands:
            programs = max(programs, sum(_memory_gb(pid, "VmHWM") for pid in _children(process)))
        time.sleep(0.002)
    if process.returncode:
        raise RuntimeError(f"{step.key} failed:\n{process.communicate()[1]}")
    process.communicate()
    found = json.loads(answer.read_text())
    gb = own + found["libraries"] if step.mapped else found["peak"]
    seconds = time.monotonic() - started
    return Measured(gb + programs, found["peak"] + programs, seconds, found["made"])


def _memory_gb(pid: int, what: str) -> float:
    """An entry of a process's status; 0 when it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    for line in text.splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1.024e-6
    return 0.0


def _children(process: subprocess.Popen) -> list[int]:
    """Programs that a process runs, but for copies of itself on the way to one."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child.pid for child in children if not child.name().startswith("python")]
    except psutil.NoSuchProcess:
        return []


def run_case(
    case: Case, folder: Path, only: Sequence[str] = (), made: Mapping[str, Any] | None = None
) -> Iterator[tuple[Step, Measured, Estimate]]:
    """Measure the steps of a case one after the other.

    Parameters
    ----------
    case : Case
    folder : Path
    only : sequence of str
        Keys of the steps to run; all where there are none.
    made : mapping, optional
        What steps have made that do not run, by their keys.
    """
    data, known = Data(case, folder / case.name / "data"), dict(made or {})
    sizes = data.sizes()
    for step in all_steps():
        # A store does not hold the series that maps are verified with.
        verifiable = step.name != "VerifyMaps" or case.layout == "series"
        if not verifiable or (only and step.key not in only):
            continue
        measured = measure(step, data, known)
        is_warped = "transforms" in step.inputs(data, known)
        known[step.key] = measured.made
        own = sizes if is_warped else replace(sizes, transform_bytes=0)
        yield step, measured, estimate_resources(step.name, sizes_on_grid(own, step.grid))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder for the data")
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES])
    parser.add_argument(
        "--steps", nargs="+", default=[], help="interfaces to measure, and those they need"
    )
    arguments = parser.parse_args()
    print("| Step | case | measured, GB | resident | estimated | ratio | seconds | estimated |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        if case.name not in arguments.cases:
            continue
        for step, measured, estimate in run_case(case, arguments.data, arguments.steps):
            print(
                f"| {step.key} | {case.name} | {measured.gb:.3f} | {measured.resident:.3f} "
                f"| {estimate.mem_gb:.3f} | {estimate.mem_gb / measured.gb:.2f} "
                f"| {measured.seconds:.1f} | {60 * estimate.minutes:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
