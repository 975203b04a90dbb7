"""Small derivatives folders for the tests of the group level."""

import json
from pathlib import Path

import nibabel as nb
import numpy as np

SPACE = "MNI152NLin6Asym"
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
REGIONS = ("zeta", "alpha", "NA")
SIDECAR = {
    "Software": {"Name": "lacuna-nipype", "Version": "0.2"},
    "Method": "Some method.",
    "Connectome": {"Name": "norm", "Fingerprint": "sha256:1"},
    "Atlas": {"Name": "Toy", "Image": "toy.nii.gz"},
}


def write_result(path, sidecar=SIDECAR, **changes):
    """Write the JSON beside a result; returns the path of the result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = path.name.partition(".")[0]
    path.with_name(f"{stem}.json").write_text(json.dumps({**sidecar, **changes}))
    return path


def table_file(root, subject, *, session=None, label="L", quantity="z", desc="fnm", extra=""):
    where = root / f"sub-{subject}" / (f"ses-{session}" if session else "") / "anat"
    ses = f"_ses-{session}" if session else ""
    name = f"sub-{subject}{ses}{extra}_space-{SPACE}_atlas-Toy_label-{label}"
    return where / f"{name}_stat-{quantity}_desc-{desc}_parcelstats.tsv"


def write_table(root, subject, values, *, names=REGIONS, sidecar=SIDECAR, **entities):
    quantity = entities.get("quantity", "z")
    path = write_result(table_file(root, subject, **entities), sidecar)
    lines = [f"index\tname\t{quantity}\tn_voxels"]
    rows = enumerate(zip(names, values, strict=False), 5)
    lines += [f"{n}\t{name}\t{value}\t8" for n, (name, value) in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def map_file(root, subject, *, quantity="t", desc="fnm", label="L", res="2", space=SPACE, ses=""):
    where = Path(root) / f"sub-{subject}" / (f"ses-{ses}" if ses else "") / "anat"
    start = f"sub-{subject}{f'_ses-{ses}' if ses else ''}_space-{space}_res-{res}_label-{label}"
    end = "desc-lesion_mask" if desc == "lesion" else f"stat-{quantity}_desc-{desc}_statmap"
    return where / f"{start}_{end}.nii.gz"


def write_map(root, subject, data, *, affine=AFFINE, sidecar=SIDECAR, volume=1.0, **entities):
    path = write_result(map_file(root, subject, **entities), sidecar, LesionVolumeML=volume)
    nb.save(nb.Nifti1Image(np.asarray(data, np.float32), affine), path)
    return path


def write_participants(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "participants.tsv"
    path.write_text(text, encoding="utf-8")
    return path
