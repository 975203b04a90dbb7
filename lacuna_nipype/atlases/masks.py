"""Brain masks of the standard spaces: TemplateFlow's, found offline."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nb
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lacuna_nipype.atlases.templates import TemplateNeed, missing_sentence, template_need
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import fingerprint
from lacuna_nipype.core.spaces import Grid, canonical_space, same_space, template_grid

#: Spaces and voxel sizes (mm) of which TemplateFlow has a brain mask; 2009c stands for its family.
MASK_SPACES = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")
MASK_RESOLUTIONS = (1, 2)

_SERVER = "https://templateflow.s3.amazonaws.com"
_MEANING = "mask of the brain, TemplateFlow's desc-brain"


@dataclass(frozen=True)
class BrainMaskMetadata:
    """What a brain mask is and where it comes from.

    Parameters
    ----------
    name : str
        Such as ``MNI152NLin6Asym_2mm``.
    space : str
        TemplateFlow name; of 2009a, 2009b and 2009c, which are one anatomy, the last.
    resolution : float
        Voxel size in mm.
    url : str
        Where it can be fetched.
    sha256 : str
        Of the file on this machine; empty where it is missing.
    source : str
        Collection that it is from.
    description : str
    """

    name: str
    space: str
    resolution: float
    url: str = ""
    sha256: str = ""
    source: str = "templateflow"
    description: str = _MEANING


def _mask_of(space: str, resolution: float) -> tuple[str, int]:
    """Space and voxel size of a mask; a KeyError for what there is none of."""
    try:
        name = next(known for known in MASK_SPACES if same_space(known, space))
        return name, next(size for size in MASK_RESOLUTIONS if size == float(resolution))
    except (ValidationError, StopIteration):
        known = ", ".join(f"{name} {size} mm" for name in MASK_SPACES for size in MASK_RESOLUTIONS)
        raise KeyError(
            f"There is no brain mask of {space} at {resolution} mm; there are those of {known}."
        ) from None


def mask_name(space: str, resolution: float) -> str:
    """Name of a brain mask.

    Parameters
    ----------
    space : str
        Name or alias of a standard space; 2009a, 2009b and 2009c are one.
    resolution : float
        Voxel size in mm.

    Returns
    -------
    str
        Such as ``MNI152NLin6Asym_2mm``.

    Raises
    ------
    KeyError
        There is no such mask.
    """
    name, size = _mask_of(space, resolution)
    return f"{name}_{size}mm"


def mask_metadata(space: str, resolution: float) -> BrainMaskMetadata:
    """Describe a brain mask, whether or not its file is there; see :func:`mask_name`."""
    name, size = _mask_of(space, resolution)
    need = mask_need(space, resolution)
    sha256 = "" if need.path is None else fingerprint(need.path).partition(":")[2]
    url = f"{_SERVER}/{need.name}"
    return BrainMaskMetadata(mask_name(space, resolution), name, float(size), url, sha256)


def mask_need(space: str, resolution: float) -> TemplateNeed:
    """Look the file of a brain mask up; see :func:`mask_name`."""
    name, size = _mask_of(space, resolution)
    return template_need(
        "brain mask",
        name,
        f"tpl-{name}_res-{size:02d}_desc-brain_mask.nii.gz",
        (canonical_space(space),),
        resolution=size,
        desc="brain",
        suffix="mask",
        extension=".nii.gz",
    )


def load_brain_mask(space: str, resolution: float, *, validate: bool = True) -> Path:
    """Find a brain mask on this machine; nothing is downloaded.

    Parameters
    ----------
    space : str
        Name or alias of a standard space; 2009a, 2009b and 2009c are one.
    resolution : float
        Voxel size in mm.
    validate : bool
        Read the file and check it; once for each file.

    Returns
    -------
    Path
        Of TemplateFlow's file.

    Raises
    ------
    KeyError
        There is no such mask.
    FileNotFoundError
        The file is missing; the message names the command that fetches it.
    ValidationError
        A ValueError: the file is not a binary image on the standard grid.
    """
    need = mask_need(space, resolution)
    if need.path is None:
        raise FileNotFoundError(missing_sentence([need]))
    if validate:
        read_brain_mask(space, resolution)
    return need.path


def read_brain_mask(space: str, resolution: float) -> tuple[NDArray[np.bool_], Grid]:
    """Read a brain mask, see :func:`load_brain_mask`.

    Returns
    -------
    mask : array of bool
        Not to be written to: it is kept for the next call.
    grid : Grid
        The space's standard one, in the order in which the file is stored.
    """
    path = load_brain_mask(space, resolution, validate=False)
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size, *_mask_of(space, resolution))


@lru_cache(maxsize=4)
def _read(
    path: Path, modified: int, n_bytes: int, space: str, resolution: int
) -> tuple[NDArray[np.bool_], Grid]:
    try:
        image = nb.load(path)
        data = np.asanyarray(image.dataobj)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ValidationError(
            f"Brain mask {path} is damaged or cut short; delete it and fetch it again."
        ) from error
    expected = template_grid(space, resolution)
    if data.ndim != 3:
        raise ValidationError(
            f"Brain mask {path} has {data.ndim} dimensions, not 3; delete it and fetch it again."
        )
    grid = Grid.make(data.shape, image.affine)
    if not grid.same_lattice(expected):
        raise ValidationError(
            f"Brain mask {path} ({grid.describe()}) is not on the {resolution} mm grid of {space} "
            f"({expected.describe()}); delete it and fetch it again."
        )
    mask = data == 1
    if not np.all(mask | (data == 0)) or not mask.any() or mask.all():
        raise ValidationError(
            f"Brain mask {path} is not binary, 0 outside and 1 inside; delete it and fetch it "
            "again."
        )
    mask.setflags(write=False)
    return mask, grid
