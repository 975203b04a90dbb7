"""Write lacuna_nipype/data/brain_mask.nii.gz, a mask of the template that nilearn carries.

The package reads that file rather than asking nilearn, whose import takes longer than a run's own
start. A test compares the two.
"""

import gzip
from pathlib import Path

import nibabel as nb
import numpy as np
from nilearn.datasets import load_mni152_brain_mask

DATA = Path(__file__).resolve().parents[1] / "lacuna_nipype" / "data"


def main() -> None:
    """Write the mask."""
    mask = load_mni152_brain_mask(resolution=1)
    image = nb.Nifti1Image((np.asarray(mask.dataobj) > 0).astype(np.uint8), mask.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(mask.affine, 4)
    image.set_qform(mask.affine, 4)
    content = gzip.compress(image.to_bytes(), 9, mtime=0)
    (DATA / "brain_mask.nii.gz").write_bytes(content)


if __name__ == "__main__":
    main()
