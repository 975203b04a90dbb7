"""Masks of any origin as a small dataset that a run can read."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path, write_json
from lacuna_nipype.io.collect import single_mask_record
from lacuna_nipype.io.derivatives import BIDS_VERSION, read_description, sidecar_path
from lacuna_nipype.io.naming import is_label, sanitize_label, split_extension

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

#: Glob that fits staged masks and no others, which a run may find in derivatives.
STAGED_PATTERN = "*_desc-given_mask"
_NAME = "Lesion masks of a run"


def stage_masks(masks: Sequence[Any] | Mapping[str, Any], dataset: Path) -> list[str]:
    """Write masks as a BIDS dataset, in place of what an earlier call wrote there.

    Parameters
    ----------
    masks : sequence or mapping of str to path-like or nibabel image
        A path with a BIDS name keeps its entities; any other name becomes the participant. In a
        mapping the keys are the participants; images in a sequence become 01, 02, ...
    dataset : Path
        Created when missing. Files whose content has not changed are left alone, so that a run
        does nothing twice.

    Returns
    -------
    list of str
        Keys of the lesions, such as ``sub-01_label-L``, in the order of the masks.

    Raises
    ------
    ValidationError
        There is no mask, a file is missing, two masks have one name, or the folder holds
        something else.
    """
    if not masks:
        raise ValidationError("There is no mask to analyse; the list is empty.")
    if dataset.exists() and read_description(dataset).get("Name") != _NAME:
        raise ValidationError(f"{dataset} holds something else; choose another work folder.")
    write_json(
        dataset / "dataset_description.json",
        {"Name": _NAME, "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative",
         "GeneratedBy": [{"Name": "Manual"}]},
    )  # fmt: skip
    width = max(2, len(str(len(masks))))
    named = list(masks.items()) if isinstance(masks, Mapping) else [(None, mask) for mask in masks]
    written: dict[str, Path] = {}
    for number, (name, mask) in enumerate(named, start=1):
        subject = None if name is None else sanitize_label(name.removeprefix("sub-"))
        if isinstance(mask, (str, os.PathLike)):
            key, path = _stage_file(Path(mask), subject, dataset, written)
        else:
            key, path = _stage_image(mask, subject or f"{number:0{width}d}", dataset, written)
        written[key] = path
    _remove_others(dataset, set(written.values()))
    return list(written)


def _check_new(key: str, written: Mapping[str, Path], what: object) -> None:
    if key in written:
        raise ValidationError(
            f"Two masks would be {key} (the second is {what}); name them in a dictionary."
        )


def _stage_file(
    source: Path, subject: str | None, dataset: Path, written: Mapping[str, Path]
) -> tuple[str, Path]:
    """Link a file under its name in the dataset, with what is known of it beside it."""
    record = single_mask_record(source)
    if record.problem:
        raise ValidationError(record.problem)
    # A space that no entity can hold stays in the sidecar.
    entities = {
        "sub": subject or record.subject,
        "ses": record.session,
        "acq": record.acquisition,
        "run": record.run,
        "space": record.space if record.space and is_label(record.space) else None,
        "label": record.label,
    }
    key = _key(entities)
    _check_new(key, written, source)
    target = _target(dataset, entities, split_extension(record.path.name)[1])
    # Not a copy: its time would be new, and so would every step that reads it.
    if not target.is_symlink() or target.readlink() != record.path:
        target.unlink(missing_ok=True)
        target.symlink_to(record.path)
    if record.sidecar:
        write_json(sidecar_path(target), record.sidecar)
    else:
        sidecar_path(target).unlink(missing_ok=True)
    return key, target


def _stage_image(
    image: SpatialImage, subject: str, dataset: Path, written: Mapping[str, Path]
) -> tuple[str, Path]:
    import nibabel as nb
    import numpy as np

    if not isinstance(image, nb.spatialimages.SpatialImage):
        raise ValidationError(f"A mask is a path or a nibabel image, not {type(image).__name__}.")
    entities: dict[str, str | None] = {"sub": subject, "label": "L"}
    key = _key(entities)
    _check_new(key, written, f"image of shape {image.shape}")
    target = _target(dataset, entities, ".nii.gz")
    sidecar_path(target).unlink(missing_ok=True)
    if not isinstance(image, (nb.Nifti1Image, nb.Nifti2Image)):
        image = nb.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
    content = gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
    if not target.is_file() or target.read_bytes() != content:
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
    return key, target


def _key(entities: Mapping[str, str | None]) -> str:
    """Key of the lesion that the run will make of a mask."""
    return "_".join(f"{k}-{v}" for k, v in entities.items() if v is not None and k != "space")


def _target(dataset: Path, entities: Mapping[str, str | None], extension: str) -> Path:
    folder = dataset / f"sub-{entities['sub']}"
    if entities.get("ses"):
        folder /= f"ses-{entities['ses']}"
    folder = folder / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    name = "_".join(f"{k}-{v}" for k, v in entities.items() if v is not None)
    return folder / f"{name}{STAGED_PATTERN[1:]}{extension}"


def _remove_others(dataset: Path, kept: set[Path]) -> None:
    """Remove masks that an earlier call left, and their sidecars."""
    stay = kept | {sidecar_path(path) for path in kept}
    for path in dataset.glob("sub-*/**/*_mask.*"):
        if path not in stay:
            path.unlink()
