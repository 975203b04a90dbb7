"""How much memory, how many processors and how much time the steps of a run take.

Everything follows from sizes that headers tell before the run. Each formula names what is large
in its step; its numbers were measured (``benchmarks/resources.py``) and hold to within a factor
of two. Memory of files that are mapped (the streamline index and its tractogram) is not counted:
the kernel takes it back when it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

# Megabytes that Python takes with what a step imports.
PLAIN, IMAGES, HDF5, TABLES, WARPS, COMPILED, NILEARN = 72, 76, 98, 109, 113, 207, 322
# Programs of MRtrix3 with Python beside them.
MRTRIX = 90
# Points that are warped, and voxels that are compared, at a time.
_POINTS_AT_A_TIME, _VOXELS_AT_A_TIME = 500_000, 4_000_000
# Of the streamline index: points that are read, and streamlines that are indexed, at a time.
_POINTS_PER_READ, _STREAMLINES_PER_BLOCK = 6_000_000, 65_536
_BYTES_PER_POINT = 12
# Numbers of a text file that are read at a time.
_WORDS_PER_READ = 2_000_000
# What a limit of time allows for slow disks and busy machines.
_PATIENCE, _SHORTEST_LIMIT = 5, 15


@dataclass(frozen=True)
class Sizes:
    """What is known of a run's data before it starts; the largest of each kind.

    Parameters
    ----------
    mask_voxels : int
        Voxels of the largest grid that masks are on, or are warped to.
    functional_voxels, brain_voxels : int
        Of the functional connectome: voxels of its grid, and those with series.
    timepoints, subjects, connectome_bytes : int
        Of its largest file.
    all_subjects, files : int
        Of the whole connectome.
    lesions, seed_voxels : int
        Number of lesions; voxels of the largest on the functional grid.
    maps : int
        Functional maps per lesion.
    pass_gb, read_gb : float
        What the pass over the largest file may take, and what reading it takes.
    atlas_voxels, atlas_values, all_atlas_values : int
        Voxels of the largest grid of an atlas; weights that are not zero, in one and in all.
    regions : int
        Of the atlas with most.
    streamlines, tractogram_bytes : int
    structural_voxels : int
        Of the grid of disconnection maps.
    returned_voxels : int
        Of the grid to which maps are brought.
    transform_bytes : int
        Files of the longest way from a space to another.
    threads : int
        Of a step that has a use for several.
    """

    mask_voxels: int = 0
    functional_voxels: int = 0
    brain_voxels: int = 0
    timepoints: int = 0
    subjects: int = 0
    connectome_bytes: int = 0
    all_subjects: int = 0
    files: int = 1
    lesions: int = 1
    seed_voxels: int = 0
    maps: int = 0
    pass_gb: float = 0.0
    read_gb: float = 0.0
    atlas_voxels: int = 0
    atlas_values: int = 0
    all_atlas_values: int = 0
    regions: int = 0
    streamlines: int = 0
    tractogram_bytes: int = 0
    structural_voxels: int = 0
    returned_voxels: int = 0
    transform_bytes: int = 0
    threads: int = 1

    @property
    def map_voxels(self) -> int:
        """Voxels of the larger of the grids that maps are made on."""
        return max(self.functional_voxels, self.structural_voxels)


@dataclass(frozen=True)
class Estimate:
    """What a step takes.

    Parameters
    ----------
    mem_gb : float
        Its highest resident memory, GB (1e9 bytes), the interpreter and programs counted.
    n_procs : int
        Processors that it has a use for.
    minutes : float
        With that many processors, on an ordinary machine.
    """

    mem_gb: float
    n_procs: int = 1
    minutes: float = 0.1

    @property
    def limit_minutes(self) -> int:
        """Limit for a job of this step alone."""
        return time_limit(self.minutes)


def time_limit(minutes: float) -> int:
    """Limit of time, in minutes, for work that is expected to take so many."""
    return max(_SHORTEST_LIMIT, math.ceil(_PATIENCE * minutes))


def estimate_resources(step: str, sizes: Sizes) -> Estimate:
    """Estimate what a step takes.

    Parameters
    ----------
    step : str
        Name of the class of its interface.
    sizes : Sizes

    Returns
    -------
    Estimate

    Raises
    ------
    KeyError
        There is no estimate for this step.
    """
    memory = _MEMORY_GB.get(step)
    megabytes = _MEGABYTES[step](sizes) if memory is None else 1000 * memory(sizes)
    n_procs = sizes.threads if step in _THREADED else 1
    seconds = _SECONDS[step](sizes) / n_procs if step in _SECONDS else 6.0
    return Estimate(math.ceil(megabytes) / 1000, n_procs, seconds / 60)


def sizes_on_grid(sizes: Sizes, grid: str | None) -> Sizes:
    """Give the sizes that count for a step which works on one of the grids of a run.

    Parameters
    ----------
    sizes : Sizes
        Of a step without transforms, ``transform_bytes`` is 0.
    grid : {"functional", "structural", "masks"} or None
        Grid of the functional maps, of the disconnection maps, or neither: an atlas stays on its
        own grid, or is warped to that of the masks. Without, the larger of both.

    Returns
    -------
    Sizes
    """
    if grid == "functional":
        return replace(sizes, structural_voxels=0)
    if grid == "structural":
        return replace(sizes, functional_voxels=0)
    if grid == "masks":
        target = sizes.mask_voxels if sizes.transform_bytes else 0
        return replace(sizes, functional_voxels=target, structural_voxels=0)
    return sizes


def apply_estimates(workflow: Any, sizes: Sizes) -> None:
    """Declare for every node of a workflow what it takes.

    Parameters
    ----------
    workflow : nipype Workflow
        Changed in place. Nodes of interfaces that there is no estimate for keep what they
        declare; so do those that run within the process that submits the others. The ``grid``
        of a node's ``plugin_args`` is that of :func:`sizes_on_grid`.
    sizes : Sizes
    """
    for node in iter_nodes(workflow):
        step = type(node.interface).__name__
        if node.run_without_submitting or not has_estimate(step):
            continue
        asked = node.plugin_args or {}
        own = sizes if _is_warped(node) else replace(sizes, transform_bytes=0)
        estimate = estimate_resources(step, sizes_on_grid(own, asked.get("grid")))
        # Nipype has no other way once a node is made.
        node._mem_gb = estimate.mem_gb
        if node.n_procs != estimate.n_procs:
            node.n_procs = estimate.n_procs
        node.plugin_args = {**asked, "minutes": estimate.limit_minutes}


def iter_nodes(workflow: Any) -> Iterator[Any]:
    """Give all nodes of a workflow and of those within it."""
    for node in workflow._graph.nodes():
        if hasattr(node, "_graph"):
            yield from iter_nodes(node)
        else:
            yield node


def _is_warped(node: Any) -> bool:
    """Whether a node takes transforms, now or from a step before it."""
    from nipype.interfaces.base import isdefined

    transforms = getattr(node.interface.inputs, "transforms", None)
    return (isdefined(transforms) and bool(transforms)) or (
        getattr(node.interface.inputs, "require_transforms", False)
    )


def has_estimate(step: str) -> bool:
    """Whether there is an estimate for the class of an interface."""
    return step in _MEGABYTES or step in _MEMORY_GB


# --- memory: megabytes, from counts of voxels and the bytes that each takes -------------------


def _mb(*terms: tuple[float, float]) -> float:
    """Sum of counts times bytes, in MB."""
    return sum(count * size for count, size in terms) / 1e6


def _transforms(sizes: Sizes, voxels: int) -> float:
    """Fields as read and in order, and the points of a slab of the target."""
    if not sizes.transform_bytes:
        return 0.0
    points = min(voxels, _POINTS_AT_A_TIME)
    return WARPS - IMAGES + _mb((sizes.transform_bytes, 2.5), (points, 150))


def _apply_transform(sizes: Sizes) -> float:
    return IMAGES + _mb((sizes.mask_voxels, 4)) + _transforms(sizes, sizes.mask_voxels)


def _parcels(sizes: Sizes) -> float:
    """Labels as int64 twice, or a volume and all probabilities; then the way to another grid.

    On a finer grid there are as many more weights, and places to interpolate at.
    """
    voxels = max(sizes.map_voxels, sizes.atlas_voxels)
    finer = sizes.map_voxels / max(sizes.atlas_voxels, 1)
    own = _mb(
        (sizes.atlas_voxels, 20), (sizes.atlas_values, max(20, 12 * finer)),
        (sizes.map_voxels, 20 if finer > 1 else 8),
    )  # fmt: skip
    return own + _transforms(sizes, voxels)


def _damage(sizes: Sizes) -> float:
    """Weights and sums per voxel of the atlas; pieces of the mask's lattice where it is finer."""
    finer = sizes.mask_voxels > sizes.atlas_voxels
    compared = min(sizes.mask_voxels, _VOXELS_AT_A_TIME) if finer else 0
    return TABLES + _mb(
        (sizes.mask_voxels, 2), (sizes.atlas_voxels, 18), (sizes.all_atlas_values, 16),
        (compared, 28),
    )  # fmt: skip


def _aggregate(sizes: Sizes) -> float:
    """One map as stored and in double precision, and the weights of all atlases beside it."""
    share = sizes.all_atlas_values / max(sizes.atlas_voxels, 1)
    return TABLES + _mb((sizes.map_voxels, 22 + 16 * share))


def _index(sizes: Sizes) -> float:
    """Points as read and with what was left before, and what threads make of a block of them."""
    points = sizes.tractogram_bytes / _BYTES_PER_POINT
    per_block = points * min(1, _STREAMLINES_PER_BLOCK / max(sizes.streamlines, 1))
    return COMPILED + _mb(
        (min(points, _POINTS_PER_READ), 36),
        (min(per_block, _POINTS_PER_READ), 20 * sizes.threads),
        (sizes.structural_voxels, 12 * sizes.threads),
    )


def _matrices(sizes: Sizes) -> float:
    """Nodes, weight and hit of every streamline, and matrices of all pairs of regions."""
    return COMPILED + 10 + _mb((sizes.streamlines, 20), (sizes.regions**2, 64))


_MEGABYTES: dict[str, Callable[[Sizes], float]] = {
    # Masks.
    "ValidateMask": lambda s: IMAGES + _mb((s.mask_voxels, 3)),
    "ApplyTransform": _apply_transform,
    "ResampleMask": lambda s: IMAGES + _mb((s.mask_voxels, 4), (s.functional_voxels, 10)),
    "TemplateGrid": lambda s: IMAGES + _mb((max(s.mask_voxels, s.structural_voxels), 2)),
    "DerivativesDataSink": lambda s: PLAIN + 1,
    # Atlases.
    "PrepareParcels": lambda s: IMAGES + _parcels(s),
    "PrepareNodes": lambda s: TABLES + _parcels(s),
    "RegionalDamage": _damage,
    "AggregateParcels": _aggregate,
    "ParcelScores": lambda s: _damage(s) + 20 + _mb((s.regions**2, 80)),
    # Functional connectomes.
    "ConnectomeMask": lambda s: HDF5 - 8 + _mb((s.functional_voxels, 2), (s.brain_voxels, 60)),
    # Text on the files of every lesion.
    "ListMaps": lambda s: PLAIN + _mb((s.lesions, 20_000)),
    "PickMaps": lambda s: PLAIN + _mb((s.lesions, 10_000)),
    "SelectSeeds": lambda s: (
        HDF5 + _mb((s.functional_voxels, 4), (s.all_subjects * s.seed_voxels, 12))
    ),
    "ReduceCorrelation": lambda s: HDF5 + 2 + _mb((s.functional_voxels, 25), (s.brain_voxels, 60)),
    "ReturnFunctionalMaps": lambda s: (
        WARPS
        + 18
        + _mb((s.returned_voxels, 50), (s.functional_voxels, 16))
        + _transforms(s, s.returned_voxels)
    ),
    "ReturnMap": lambda s: (
        WARPS
        + 40
        + _mb((s.returned_voxels, 8), (s.structural_voxels, 13))
        + _transforms(s, s.returned_voxels)
    ),
    # Tractograms; files of whatever size are read in blocks.
    "CheckTractogram": lambda s: NILEARN,
    "ConvertTractogram": lambda s: PLAIN + 50,
    "BuildStreamlineIndex": _index,
    "PrepareWeights": lambda s: (
        PLAIN + _mb((s.streamlines, 12), (min(s.streamlines, _WORDS_PER_READ), 110))
    ),
    "PrepareGroups": lambda s: TABLES + _mb((s.streamlines, 60)),
    "IndexedDensity": lambda s: COMPILED + _mb((s.streamlines, 12), (s.structural_voxels, 8)),
    "AssignIndexedStreamlines": lambda s: (
        COMPILED + _mb((s.streamlines, 24), (s.atlas_voxels, 10))
    ),
    "IndexedDisconnection": lambda s: (
        COMPILED + 20 + _mb((s.streamlines, 10), (s.structural_voxels, 20), (s.mask_voxels, 3))
    ),
    "DisconnectionMap": lambda s: IMAGES + 15 + _mb((s.structural_voxels, 24)),
    "FullMatrix": _matrices,
    "DisconnectivityMatrix": _matrices,
    "BundleDisconnection": lambda s: TABLES + _mb((s.streamlines, 30)),
    "CombineSummaries": lambda s: PLAIN + 1,
    # Programs of MRtrix3.
    "SelectStreamlines": lambda s: MRTRIX + _mb((s.streamlines, 80), (s.mask_voxels, 2)),
    "TCKMap": lambda s: MRTRIX + _mb((s.structural_voxels, 10)),
    "AssignStreamlines": lambda s: (
        MRTRIX + _mb((s.streamlines, 24), (s.atlas_voxels, 8), (s.regions**2, 16))
    ),
}
# Where the code that reads the connectome says itself what it takes.
_MEMORY_GB: dict[str, Callable[[Sizes], float]] = {
    "CorrelateBatch": lambda s: s.pass_gb,
    "SeedCorrelations": lambda s: s.read_gb,
    "VerifyMaps": lambda s: s.read_gb,
}
_THREADED = frozenset({"CorrelateBatch", "BuildStreamlineIndex", "AssignIndexedStreamlines"})

# --- time: seconds of one processor -----------------------------------------------------------


def _inflating(sizes: Sizes) -> float:
    """Read and inflate the largest file of a connectome."""
    return sizes.connectome_bytes / 1e9 * 8


def _correlating(sizes: Sizes) -> float:
    return _inflating(sizes) + sizes.subjects * sizes.brain_voxels * sizes.lesions * 70e-9


def _streaming(sizes: Sizes) -> float:
    """Go through a tractogram once, with some work for each point."""
    return sizes.tractogram_bytes / 1e9 * 20


_SECONDS: dict[str, Callable[[Sizes], float]] = {
    "CorrelateBatch": lambda s: 10 + _correlating(s),
    "SeedCorrelations": lambda s: 10 + _inflating(s) + s.lesions * s.subjects * 0.01,
    "SelectSeeds": lambda s: 10 + s.lesions * (1 + s.all_subjects * s.seed_voxels * 1e-7),
    "VerifyMaps": lambda s: 10 + s.files * (_inflating(s) + s.subjects * s.lesions * 0.01),
    "ReduceCorrelation": lambda s: 10 + s.lesions * (s.files + 5) * s.brain_voxels * 1e-6,
    "ReturnFunctionalMaps": lambda s: 10 + s.returned_voxels * 4e-6,
    "ReturnMap": lambda s: 10 + s.returned_voxels * 1e-6,
    "PrepareParcels": lambda s: 10 + s.atlas_voxels * 2e-6 + s.atlas_values * 1e-6,
    "CheckTractogram": lambda s: 15 + _streaming(s) / 4,
    "ConvertTractogram": lambda s: 15 + 2 * _streaming(s),
    "BuildStreamlineIndex": lambda s: 15 + _streaming(s),
    "PrepareWeights": lambda s: 10 + s.streamlines * 1e-6,
    "PrepareGroups": lambda s: 10 + s.streamlines * 2e-6,
    "AssignIndexedStreamlines": lambda s: 10 + s.streamlines * 2e-6,
    "IndexedDensity": lambda s: 10 + _streaming(s) / 4,
    "IndexedDisconnection": lambda s: 10 + _streaming(s) / 4,
    "SelectStreamlines": lambda s: 10 + _streaming(s),
    "TCKMap": lambda s: 10 + _streaming(s),
    "AssignStreamlines": lambda s: 10 + _streaming(s),
}
