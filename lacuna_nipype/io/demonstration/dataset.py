"""The BIDS dataset of the demonstration: lesion masks, participants and the atlas."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype import __version__
from lacuna_nipype.core.files import atomic_path, write_json
from lacuna_nipype.core.simulation import simulate_lesion
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.io.demonstration.anatomy import LESION_GRIDS, load_anatomy
from lacuna_nipype.io.demonstration.atlas import N_PARCELS, Parcellation
from lacuna_nipype.io.demonstration.texts import DATASET_README

SPACE = "MNI152NLin6Asym"
DATASET_NAME = "Lacuna demonstration: synthetic lesions on MNI anatomy"
ATLAS_STEM = f"tpl-{SPACE}_atlas-Demo_seg-7n_scale-{N_PARCELS}_res-2_dseg"
TEMPLATE_URL = "https://templateflow.s3.amazonaws.com/tpl-{0}/tpl-{0}_res-{1:02d}_T1w.nii.gz"


@dataclass(frozen=True)
class LesionPlan:
    """One lesion of the demonstration.

    Parameters
    ----------
    subject, session, label : str
        BIDS entities; the session may be None.
    centre, radii : tuple of float
        Where the lesion is and its semi-axes, in mm.
    volume_ml : float
        Volume.
    storage : str
        Orientation of the file: ``"LAS"`` or ``"RAS"``.
    place : str
        What a neurologist would call it.
    """

    subject: str
    session: str | None
    label: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    volume_ml: float
    storage: str
    place: str

    @property
    def stem(self) -> str:
        """Path below the dataset, without an extension."""
        folders, entities = f"sub-{self.subject}", f"sub-{self.subject}"
        if self.session:
            folders += f"/ses-{self.session}"
            entities += f"_ses-{self.session}"
        return f"{folders}/anat/{entities}_space-{SPACE}_label-{self.label}_mask"


_INFARCT = "acuteinfarct"
LESIONS = (
    LesionPlan(
        "01", "01", _INFARCT, (-40, -8, 16), (16, 28, 19), 34, "LAS", "left middle cerebral artery"
    ),
    LesionPlan(
        "02", "01", _INFARCT, (-20, -78, 4), (12, 20, 14), 16, "RAS", "left posterior territory"
    ),
    LesionPlan(
        "02", "02", _INFARCT, (-20, -78, 4), (12, 20, 14), 9, "RAS", "left posterior territory"
    ),
    LesionPlan("03", None, _INFARCT, (-12, -18, 8), (8, 10, 8), 2.4, "LAS", "left thalamus"),
    LesionPlan("03", None, "haemorrhage", (27, 2, 4), (8, 14, 10), 5, "RAS", "right putamen"),
    LesionPlan("04", None, _INFARCT, (-28, 38, 18), (13, 16, 15), 12, "RAS", "left frontal lobe"),
    LesionPlan(
        "05",
        None,
        _INFARCT,
        (42, -12, 18),
        (15, 26, 18),
        27,
        "LAS",
        "right middle cerebral artery",
    ),
)

PARTICIPANTS = (
    ("participant_id", "age", "sex", "handedness", "lesion_etiology", "symptom_score"),
    ("sub-01", "67", "F", "R", "ischaemic", "14.5"),
    ("sub-02", "58", "M", "R", "ischaemic", "6.0"),
    ("sub-03", "71", "F", "L", "mixed", "8.5"),
    ("sub-04", "49", "M", "R", "ischaemic", "4.0"),
    ("sub-05", "63", "F", "R", "ischaemic", "11.0"),
)


def write_dataset(bids_dir: Path, seed: int) -> None:
    """Write the description of the dataset, its participants and their lesion masks.

    Parameters
    ----------
    bids_dir : pathlib.Path
        Folder of the dataset.
    seed : int
        Fixes the shapes of the lesions.
    """
    write_json(bids_dir / "dataset_description.json", _dataset_description())
    write_json(bids_dir / "participants.json", _PARTICIPANT_COLUMNS)
    _write_text(bids_dir / "participants.tsv", "\n".join(map("\t".join, PARTICIPANTS)) + "\n")
    _write_text(bids_dir / "README.md", DATASET_README)
    tissue = load_anatomy(LESION_GRIDS["RAS"]).lesionable()
    for plan in LESIONS:
        lesion = make_lesion(plan, tissue, seed)
        _write_lesion(bids_dir, plan, lesion)


def make_lesion(plan: LesionPlan, tissue: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Simulate one planned lesion.

    Parameters
    ----------
    plan : LesionPlan
        Where and how large.
    tissue : array of bool, shape (182, 218, 182)
        Where lesions may be, on the RAS grid.
    seed : int
        Fixes the shape, together with subject and label: sessions share the noise.

    Returns
    -------
    array of bool, shape (182, 218, 182)
        The lesion on the RAS grid.
    """
    rng = np.random.default_rng([seed, int(plan.subject), *plan.label.encode()])
    affine = LESION_GRIDS["RAS"].affine
    return simulate_lesion(tissue, affine, plan.centre, plan.radii, plan.volume_ml, rng)


def _write_lesion(bids_dir: Path, plan: LesionPlan, lesion: NDArray[np.bool_]) -> None:
    """Write one mask in its storage orientation, with its sidecar."""
    # The two grids hold the same voxel centres, in opposite order along x.
    stored = lesion if plan.storage == "RAS" else lesion[::-1]
    image = bids_dir / f"{plan.stem}.nii.gz"
    save_volume(image, stored.astype(np.uint8), LESION_GRIDS[plan.storage])
    write_json(
        bids_dir / f"{plan.stem}.json",
        {
            "Description": f"Synthetic lesion ({plan.label}) in the {plan.place}",
            "Type": "Lesion",
            "Manual": False,
            "SpatialReference": TEMPLATE_URL.format(SPACE, 1),
            "VolumeML": int(np.count_nonzero(lesion)) / 1000,
        },
    )


def write_atlas(bids_dir: Path, parcellation: Parcellation) -> tuple[Path, Path]:
    """Write the parcellation as a BIDS atlas.

    Parameters
    ----------
    bids_dir : pathlib.Path
        Folder of the dataset.
    parcellation : Parcellation
        What to write.

    Returns
    -------
    tuple of pathlib.Path
        The image and its table of labels.
    """
    folder = bids_dir / f"tpl-{SPACE}"
    image, labels = folder / f"{ATLAS_STEM}.nii.gz", folder / f"{ATLAS_STEM}.tsv"
    save_volume(image, parcellation.labels, parcellation.grid)
    _write_text(labels, parcellation.table())
    write_json(folder / f"{ATLAS_STEM}.json", _atlas_sidecar())
    write_json(bids_dir / "atlas-Demo_description.json", _atlas_description())
    return image, labels


def save_volume(path: Path, data: NDArray[Any], grid: Grid) -> None:
    """Write a NIfTI file whose bytes depend on nothing but its content.

    Parameters
    ----------
    path : pathlib.Path
        File to write, ``.nii.gz``.
    data : array
        Voxel values; their type is the file's.
    grid : Grid
        Where the voxels are; declared as MNI space (code 4).
    """
    import nibabel as nib

    image = nib.Nifti1Image(np.ascontiguousarray(data), grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code="mni")
    image.set_qform(grid.affine, code="mni")
    # No file name and no time in the gzip header.
    packed = gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(packed)


def _write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _dataset_description() -> dict[str, Any]:
    """Give the content of dataset_description.json."""
    return {
        "Name": DATASET_NAME,
        "BIDSVersion": "1.10.1",
        "DatasetType": "derivative",
        "License": "CC0",
        "Authors": ["The lacuna-nipype developers", "lacuna-nipype tutorial"],
        "GeneratedBy": [
            {
                "Name": "lacuna-nipype tutorial",
                "Version": __version__,
                "Description": "Synthetic demonstration data made from a seed; not for science",
            }
        ],
    }


_PARTICIPANT_COLUMNS: dict[str, Any] = {
    "age": {"Description": "Age at the time of the lesion", "Units": "year"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "handedness": {"Description": "Handedness", "Levels": {"L": "left", "R": "right"}},
    "lesion_etiology": {
        "Description": "Cause of the lesion",
        "Levels": {"ischaemic": "Ischaemic stroke", "mixed": "Ischaemic stroke and haemorrhage"},
    },
    "symptom_score": {
        "Description": "Made-up severity of symptoms, 0 (none) to 20 (most severe)",
        "Units": "points",
    },
}


def _atlas_description() -> dict[str, Any]:
    """Give the content of atlas-Demo_description.json."""
    return {
        "Name": f"Demonstration parcellation, {N_PARCELS} parcels in 7 networks",
        "Authors": ["The lacuna-nipype developers"],
        "License": "CC0",
        "Species": "Homo sapiens",
        "DerivedFrom": "k-means of the cortical grey matter of the ICBM 2009a symmetric template",
    }


def _atlas_sidecar() -> dict[str, Any]:
    """Give the sidecar of the parcellation, columns of its table included."""
    return {
        "Name": f"Demonstration parcellation, {N_PARCELS} parcels in 7 networks",
        "Description": "Synthetic parcels, not for science; parcel i + 50 mirrors parcel i",
        "Space": SPACE,
        "SpatialReference": TEMPLATE_URL.format(SPACE, 2),
        "Resolution": "2 mm isotropic",
        "Manual": False,
        "License": "CC0",
        "index": {"Description": "Value of the parcel in the image", "Format": "integer"},
        "name": {"Description": "Unique name: networks, hemisphere, network, number"},
        "hemisphere": {"Description": "Hemisphere", "Levels": {"L": "left", "R": "right"}},
        "network": {"Description": "Functional network, named as Yeo et al. (2011) do"},
        "color": {"Description": "Colour of the network, RGB in hexadecimal"},
    }
