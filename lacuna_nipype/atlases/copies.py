"""An atlas's image, written elsewhere."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np

from lacuna_nipype.atlases.checking import read_volumes
from lacuna_nipype.atlases.parcels import open_atlas
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.parcels import integer_labels

_READ_BYTES = 1 << 20


def copy_atlas_image(image: Path, target: Path) -> None:
    """Write an atlas's image to another place, byte for byte where it can stay as it is.

    Parameters
    ----------
    image : Path
        Labels, or a volume for each region.
    target : Path
        Ends in ``.nii.gz``. Labels that are stored as floats, or with a fourth axis of one, are
        written as whole numbers in three dimensions. The same image always gives the same bytes.

    Raises
    ------
    ValidationError
        The image cannot be read, or its labels are not whole numbers.
    """
    opened, grid, n_volumes = open_atlas(image)
    whole = opened.get_data_dtype().kind in "iu" and opened.dataobj.slope == 1
    if not n_volumes and not (whole and opened.dataobj.inter == 0 and len(opened.shape) == 3):
        name = f"Atlas image {image}"
        labels = integer_labels(next(read_volumes(opened, name)), name)
        save_image(target, labels, grid.affine, np.int16 if labels.max() < 2**15 else np.int32)
    elif image.name.endswith(".gz"):
        shutil.copyfile(image, target)
    else:
        # No file name and no time in the archive.
        with (
            image.open("rb") as source,
            target.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as out,
        ):
            shutil.copyfileobj(source, out, _READ_BYTES)
