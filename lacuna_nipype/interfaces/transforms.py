"""Images moved to another space or grid through ITK transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from lacuna_nipype.interfaces.contents import fingerprints_trait, unchanged_inputs


class _ApplyTransformInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="3D image to move")
    reference = File(exists=True, mandatory=True, desc="image whose grid to resample on")
    transforms = InputMultiObject(
        File(exists=True),
        desc="ITK transforms (.h5, .txt, .tfm, .mat, .nii.gz) in the order in which they are "
        "applied to the image; none to change the grid only",
    )
    fingerprints = fingerprints_trait("transforms")
    require_transforms = traits.Bool(
        False,
        usedefault=True,
        desc="refuse to leave the image where it is, when an earlier step gave no transforms",
    )
    target_space = traits.Str(
        desc="standard space of the reference, where its grid does not tell; checked against the "
        "grids of the transforms"
    )
    interpolation = traits.Enum(
        "mask", "labels", "linear",
        usedefault=True,
        desc="what the image is: a mask (nearest neighbour, never lost), labels (nearest "
        "neighbour), or a continuous map (linear)",
    )  # fmt: skip
    valid_mask = File(
        exists=True,
        desc="of a continuous map, on its grid: voxels that mean something; the others do not "
        "enter an average",
    )
    fill = traits.Float(0.0, usedefault=True, desc="value where there is nothing to sample")
    account = traits.Str(
        "LesionResampling", usedefault=True, desc="key of what became of a mask, in the JSON"
    )


class _ApplyTransformOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the image on the reference's grid")
    out_valid = File(exists=True, desc="of a continuous map: voxels that mean something")
    out_meta = File(exists=True, desc="JSON: transforms, and what became of lesion or labels")


class ApplyTransform(SimpleInterface):
    """Move an image to the space and grid of a reference.

    Transforms of the wrong direction, or whose fields do not cover the brain, are refused.
    """

    input_spec = _ApplyTransformInputSpec
    output_spec = _ApplyTransformOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.core.exceptions import ValidationError
        from lacuna_nipype.core.files import write_json
        from lacuna_nipype.core.transforms import describe_transforms, load_checked_point_map

        inputs, folder = self.inputs, Path(runtime.cwd)
        paths = [Path(path) for path in _given(inputs.transforms) or []]
        if inputs.require_transforms and not paths:
            raise ValidationError(
                f"No transforms came for {inputs.in_file}; connect those that bring it to "
                f"{_given(inputs.target_space) or 'the space of the reference'}."
            )
        (data, grid), target = _load_volume(inputs.in_file), read_grid(inputs.reference)
        with unchanged_inputs(inputs, transforms="fingerprints"):
            point_map = load_checked_point_map(
                paths, target, space=_given(inputs.target_space), source=grid
            )
        move = {"mask": _move_mask, "labels": _move_labels, "linear": _move_map}
        out, meta = move[inputs.interpolation](inputs, data, grid, target, point_map)
        for name, image in out.items():
            self._results[name] = str(_save(folder / f"{name[4:]}.nii.gz", image, target))
        meta["Transforms"] = describe_transforms(paths)
        self._results["out_meta"] = str(write_json(folder / "meta.json", meta))
        return runtime


def _given(value: Any) -> Any:
    return value if isdefined(value) else None


def read_grid(path: str) -> Any:
    """Grid of an image, without reading its voxels."""
    import nibabel as nb

    from lacuna_nipype.core.spaces import Grid

    image = nb.load(path)
    return Grid.make(image.shape[:3], image.affine)


def read_transforms(reference: Any, transforms: Any) -> tuple[Any, Any, list[dict[str, str]]]:
    """Read what brings an atlas elsewhere: grid, map of points and names; None where undefined."""
    from lacuna_nipype.core.transforms import describe_transforms, load_checked_point_map

    target = read_grid(reference) if isdefined(reference) else None
    if not isdefined(transforms) or not transforms:
        return target, None, []
    return target, load_checked_point_map(transforms, target), describe_transforms(transforms)


def _load_volume(path: str) -> tuple[Any, Any]:
    from lacuna_nipype.core.exceptions import ValidationError
    from lacuna_nipype.core.images import load_map

    data, grid = load_map(path)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ValidationError(f"Image {path} has {data.ndim} dimensions, not 3; move each volume.")
    return data, grid


def _save(path: Path, data: Any, target: Any) -> Path:
    from lacuna_nipype.core.images import save_image

    return save_image(path, data, target.affine, data.dtype)


def _move_mask(inputs: Any, data: Any, grid: Any, target: Any, point_map: Any) -> tuple[Any, Any]:
    from lacuna_nipype.core.lesion_resampling import warp_mask

    warped, accounting = warp_mask(data > 0, grid, target, point_map)
    return {"out_file": warped.astype("u1")}, {inputs.account: accounting.to_dict()}


def _move_labels(
    inputs: Any, data: Any, grid: Any, target: Any, point_map: Any
) -> tuple[Any, Any]:
    import numpy as np

    from lacuna_nipype.core.parcels import integer_labels
    from lacuna_nipype.core.transforms import warp_labels

    labels = integer_labels(data, f"Image {inputs.in_file}")
    warped = warp_labels(labels, grid, target, point_map)
    lost = np.setdiff1d(labels, warped)
    labels_before = int(np.count_nonzero(np.unique(labels)))
    meta = {"LabelResampling": {"Labels": labels_before, "LabelsLost": lost[lost > 0].tolist()}}
    return {"out_file": warped.astype("i4" if labels.max() < 2**31 else "i8")}, meta


def _move_map(inputs: Any, data: Any, grid: Any, target: Any, point_map: Any) -> tuple[Any, Any]:
    from lacuna_nipype.core.exceptions import SpatialMismatchError
    from lacuna_nipype.core.transforms import warp_map

    valid = None
    if isdefined(inputs.valid_mask):
        valid, valid_grid = _load_volume(inputs.valid_mask)
        if not valid_grid.same_as(grid):
            raise SpatialMismatchError(
                f"Valid mask {inputs.valid_mask} ({valid_grid.describe()}) is not on the grid of "
                f"{inputs.in_file} ({grid.describe()})."
            )
        valid = valid > 0
    warped, inside = warp_map(data, grid, target, point_map, valid=valid, fill=inputs.fill)
    return {"out_file": warped, "out_valid": inside.astype("u1")}, {"Interpolation": "linear"}
