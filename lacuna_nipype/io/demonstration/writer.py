"""Write the whole demonstration into a folder, all of it or nothing."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path, read_json
from lacuna_nipype.io.demonstration import connectomes
from lacuna_nipype.io.demonstration.anatomy import ATLAS_GRID, FUNCTIONAL_GRID, load_anatomy
from lacuna_nipype.io.demonstration.atlas import make_parcellation
from lacuna_nipype.io.demonstration.dataset import (
    ATLAS_STEM,
    DATASET_NAME,
    SPACE,
    write_atlas,
    write_dataset,
)
from lacuna_nipype.io.demonstration.texts import README

LOGGER = logging.getLogger("lacuna_nipype")

DEFAULT_SEED = 20240501
_PARTIAL = ".lacuna-tutorial-"
# The README comes last: where it is, the rest is complete.
_ENTRIES = ("bids", "connectomes", "README.md")
_ATLAS, _FUNCTIONAL, _STREAMLINES = range(1, 4)


@dataclass(frozen=True)
class DemonstrationPaths:
    """Where the parts of a demonstration are.

    Parameters
    ----------
    directory : pathlib.Path
        Folder of the demonstration.
    """

    directory: Path

    @property
    def bids_dir(self) -> Path:
        """BIDS dataset with the lesion masks."""
        return self.directory / "bids"

    @property
    def functional_connectome(self) -> Path:
        """Folder of HDF5 files."""
        return self.directory / "connectomes" / "functional"

    @property
    def structural_connectome(self) -> Path:
        """Tractogram, ``.tck``."""
        return self.directory / "connectomes" / "structural" / "demo.tck"

    @property
    def atlas_image(self) -> Path:
        """Image of the parcellation."""
        return self.bids_dir / f"tpl-{SPACE}" / f"{ATLAS_STEM}.nii.gz"

    @property
    def atlas_labels(self) -> Path:
        """Table of the parcels."""
        return self.bids_dir / f"tpl-{SPACE}" / f"{ATLAS_STEM}.tsv"

    @property
    def readme(self) -> Path:
        """What everything is, and the commands to run; written last."""
        return self.directory / "README.md"


def write_demonstration(
    directory: str | os.PathLike[str], *, seed: int = DEFAULT_SEED, force: bool = False
) -> DemonstrationPaths:
    """Write a demonstration dataset: lesions, atlas, functional and structural connectome.

    Everything is made in a hidden folder inside the directory and moved into place at the end, so
    a run that was killed does not look complete. It takes about 10 s and 40 MB, needs no network,
    and is the same to the bit for a seed and one set of library versions.

    Parameters
    ----------
    directory : path-like
        Folder to fill; made when missing.
    seed : int
        Not negative; fixes everything random.
    force : bool
        Write into a folder that is not empty, replacing an older demonstration in it. Nothing
        else in the folder is touched.

    Returns
    -------
    DemonstrationPaths
        Where everything is.

    Raises
    ------
    ValidationError
        The directory is a file, is not empty, or holds a dataset that is not a demonstration.
    """
    paths = DemonstrationPaths(Path(directory))
    _check_directory(paths, force)
    paths.directory.mkdir(parents=True, exist_ok=True)
    for leftover in paths.directory.glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=paths.directory) as partial:
        _write_parts(DemonstrationPaths(Path(partial)), seed)
        _move_into_place(Path(partial), paths.directory)
    return paths


def _check_directory(paths: DemonstrationPaths, force: bool) -> None:
    """Refuse a directory whose content would be lost or mixed up."""
    directory = paths.directory
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValidationError(f"{directory} is a file; name a folder for the demonstration.")
    present = [path for path in directory.iterdir() if not path.name.startswith(_PARTIAL)]
    if present and not force:
        raise ValidationError(
            f"{directory} is not empty; name a new folder, or use --force (force=True) to "
            "replace the demonstration in it."
        )
    foreign = [name for name in _ENTRIES if os.path.lexists(directory / name)]
    if foreign and not _is_demonstration(paths.bids_dir):
        raise ValidationError(
            f"{directory} holds {', '.join(foreign)} of something else than a demonstration, "
            "which would be lost; name a new folder."
        )


def _is_demonstration(bids_dir: Path) -> bool:
    """Tell whether a dataset was made by this module."""
    try:
        description = read_json(bids_dir / "dataset_description.json")
    except (OSError, ValueError):
        return False
    return isinstance(description, dict) and description.get("Name") == DATASET_NAME


def _write_parts(paths: DemonstrationPaths, seed: int) -> None:
    """Make and write every part."""
    LOGGER.info("Demonstration: lesion masks")
    write_dataset(paths.bids_dir, seed)

    LOGGER.info("Demonstration: parcellation")
    anatomy = load_anatomy(ATLAS_GRID)
    parcellation = make_parcellation(anatomy, np.random.default_rng([seed, _ATLAS]))
    write_atlas(paths.bids_dir, parcellation)

    voxels = connectomes.functional_voxels(load_anatomy(FUNCTIONAL_GRID), parcellation)
    for part in range(connectomes.N_FILES):
        LOGGER.info("Demonstration: functional connectome, file %d", part + 1)
        first = part * connectomes.N_SUBJECTS
        seeds = [[seed, _FUNCTIONAL, first + k] for k in range(connectomes.N_SUBJECTS)]
        path = paths.functional_connectome / f"demo_part-{part + 1}.h5"
        connectomes.write_functional_file(path, voxels, parcellation.networks, seeds)

    LOGGER.info("Demonstration: tractogram")
    connectomes.write_tractogram(
        paths.structural_connectome,
        connectomes.make_cortex(anatomy, parcellation),
        np.random.default_rng([seed, _STREAMLINES]),
    )
    with atomic_path(paths.readme) as temporary:
        temporary.write_text(_readme(seed, voxels.indices.shape[1]), encoding="utf-8")


def _readme(seed: int, n_voxels: int) -> str:
    """Fill in the numbers of the README."""
    return README.format(
        seed=seed,
        n_subjects=connectomes.N_SUBJECTS,
        n_timepoints=connectomes.N_TIMEPOINTS,
        n_voxels=n_voxels,
        n_streamlines=connectomes.N_STREAMLINES,
    )


def _move_into_place(source: Path, target: Path) -> None:
    """Move the finished entries, in place of older ones; the README goes first and comes last."""
    (target / _ENTRIES[-1]).unlink(missing_ok=True)
    for name in _ENTRIES:
        if (target / name).is_dir():
            # Renamed first: a run killed while it deletes leaves nothing half deleted in place.
            os.replace(target / name, source / f"old-{name}")
        os.replace(source / name, target / name)
