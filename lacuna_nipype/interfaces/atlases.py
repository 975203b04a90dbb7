"""The catalogue of atlases: parcellations by name, on other grids, as masks and as bundles."""

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

from lacuna_nipype.interfaces.transforms import read_grid


class _CatalogueInputSpec(BaseInterfaceInputSpec):
    atlas = traits.Str(mandatory=True, desc="id or alias")
    space = traits.Str(desc="standard space; needed where the atlas is in several")
    resolution = traits.Float(desc="voxel size in mm; the finest by default")
    source = traits.Str(desc="source to ask, such as siibra; all but siibra by default")
    datasets = traits.List(traits.Str(), desc="folders of BIDS datasets to look into")
    offline = traits.Bool(False, usedefault=True, desc="never use the network")
    sha256 = traits.Str(
        desc="of the atlas's image, as the catalogue gave it when the workflow was built: it is "
        "checked, and the reason to run again when the atlas changes"
    )


class _FetchParcellationInputSpec(_CatalogueInputSpec):
    region = traits.Str(
        xor=["statistical"], desc="give the mask of this region instead of the whole atlas"
    )
    statistical = traits.Str(
        xor=["region"], desc="give the statistical map of this region; siibra has them"
    )


class _FetchParcellationOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="labels, probabilities, mask, or statistical map")
    labels_file = File(exists=True, desc="table with index and name")
    out_meta = File(exists=True, desc="JSON: source, licence, citation; where the atlas has it")
    sha256 = traits.Str(desc="of the image")
    space = traits.Str(desc="standard space of the image")
    resolution = traits.Float(desc="voxel size in mm; undefined for voxels that are no cubes")


class FetchParcellation(SimpleInterface):
    """Bring an atlas of the catalogue to the working folder.

    Nipype knows the atlas by its name alone, so set ``sha256`` to let a new version of it run
    again. The node takes no processor and may need a network: use ``run_without_submitting``.
    """

    input_spec = _FetchParcellationInputSpec
    output_spec = _FetchParcellationOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.atlases.services import fetch_parcellation

        inputs, folder = self.inputs, Path(runtime.cwd)
        files = fetch_parcellation(
            inputs.atlas,
            region=_given(inputs.region),
            statistical=_given(inputs.statistical),
            **_options(inputs),
        )
        _check_sha256(inputs, files.sha256, files.image)
        self._results["out_file"] = _copy(files.image, folder)
        self._results["labels_file"] = _copy(files.labels, folder)
        if files.metadata is not None:
            self._results["out_meta"] = _copy(files.metadata, folder)
        self._results["sha256"] = files.sha256
        self._results["space"] = files.entry.space
        if files.resolution is not None:
            self._results["resolution"] = files.resolution
        return runtime


def _given(value: Any) -> Any:
    return value if isdefined(value) else None


def _options(inputs: Any) -> dict[str, Any]:
    return {
        "space": _given(inputs.space),
        "resolution": _given(inputs.resolution),
        "source": _given(inputs.source),
        "offline": inputs.offline,
        "datasets": [Path(folder) for folder in _given(inputs.datasets) or []],
    }


def _check_sha256(inputs: Any, found: str, image: Path) -> None:
    from lacuna_nipype.atlases.entries import IntegrityError

    if isdefined(inputs.sha256) and inputs.sha256.lower() != found:
        raise IntegrityError(
            f"{image} is not the version of {inputs.atlas} for which this node was made, its "
            "SHA-256 differs; build the workflow again."
        )


def _copy(path: Path, folder: Path) -> str:
    import shutil

    # A refreshed cache must not change what a finished node gave.
    return str(shutil.copyfile(path, folder / path.name))


class _ResampleParcellationInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="3D labels or 4D probabilities")
    labels_file = File(exists=True, desc="names of the regions; labels are named by their numbers")
    reference = File(
        exists=True, mandatory=True, xor=["resolution"], desc="image whose grid is wanted"
    )
    resolution = traits.Float(
        mandatory=True,
        xor=["reference"],
        requires=["space"],
        desc="voxel size in mm of the standard grid of ``space`` that is wanted",
    )
    space = traits.Str(
        desc="standard space to bring it to, where the file name and grid of the reference do not "
        "tell"
    )
    in_space = traits.Str(
        desc="standard space of the parcellation, where its file name and grid do not tell"
    )
    transforms = InputMultiObject(
        File(exists=True),
        desc="ITK transforms from the parcellation's space to the other, in the order in which "
        "they are applied to images",
    )
    method = traits.Enum(
        "nearest", "majority", "linear",
        usedefault=True,
        desc="the value at the centre of a voxel, or the label that most of it has; linear is for "
        "probabilities alone",
    )  # fmt: skip


class _ResampleParcellationOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the parcellation on the new grid")
    labels_file = File(exists=True, desc="TSV: index and name of the regions that are left")
    out_meta = File(exists=True, desc="JSON: regions lost, volumes before and after, transforms")
    lost = traits.List(traits.Str(), desc="names of the regions that have no voxel any more")


class ResampleParcellation(SimpleInterface):
    """Bring a parcellation to another grid without inventing a label.

    Another space is refused without transforms. What it did to the regions is reported.
    """

    input_spec = _ResampleParcellationInputSpec
    output_spec = _ResampleParcellationOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.atlases.resample import resample_parcellation
        from lacuna_nipype.core.files import write_json, write_table

        inputs, folder = self.inputs, Path(runtime.cwd)
        reference, point_map, described = _target(inputs)
        labels = _given(inputs.labels_file)
        image, report = resample_parcellation(
            inputs.in_file,
            reference,
            inputs.method,
            labels=None if labels is None else Path(labels),
            image_space=_given(inputs.in_space),
            reference_space=_given(inputs.space),
            transform=point_map,
        )
        image.to_filename(folder / "parcellation.nii.gz")
        meta = {"RegionResampling": report.to_dict(), "Transforms": described}
        table = write_table(folder / "parcellation.tsv", report.table())
        self._results["out_file"] = str(folder / "parcellation.nii.gz")
        self._results["labels_file"] = str(table)
        self._results["out_meta"] = str(write_json(folder / "parcellation.json", meta))
        self._results["lost"] = list(report.lost)
        return runtime


def _target(inputs: Any) -> tuple[Any, Any, list[dict[str, str]]]:
    """Give the reference, the map of points or None, and what sidecars say of the transforms."""
    from lacuna_nipype.core.spaces import template_grid
    from lacuna_nipype.core.transforms import describe_transforms, load_checked_point_map

    if isdefined(inputs.reference):
        reference, grid = inputs.reference, read_grid(inputs.reference)
    else:
        reference = grid = template_grid(inputs.space, inputs.resolution)
    paths = [Path(path) for path in _given(inputs.transforms) or []]
    if not paths:
        return reference, None, []
    point_map = load_checked_point_map(
        paths, grid, space=_given(inputs.space), source=read_grid(inputs.in_file)
    )
    return reference, point_map, describe_transforms(paths)


class _RegionMaskInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="atlas: 3D labels or 4D probabilities")
    labels_file = File(exists=True, mandatory=True, desc="names of the regions")
    regions = traits.List(
        traits.Str(), mandatory=True, minlen=1, desc="names or numbers; case is ignored"
    )
    threshold = traits.Float(
        0.0, usedefault=True, desc="of probabilities: a voxel belongs to a region above this"
    )


class _RegionMaskOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="one mask of all the regions, unsigned bytes 0 and 1")
    out_meta = File(exists=True, desc="JSON: regions, voxels, volume in ml")
    n_voxels = traits.Int(desc="voxels of the mask")


class RegionMask(SimpleInterface):
    """Make one mask of some regions of an atlas."""

    input_spec = _RegionMaskInputSpec
    output_spec = _RegionMaskOutputSpec

    def _run_interface(self, runtime):
        import numpy as np

        from lacuna_nipype.atlases.regions import mask_of_regions
        from lacuna_nipype.core.files import write_json

        inputs, folder = self.inputs, Path(runtime.cwd)
        mask, regions = mask_of_regions(
            Path(inputs.in_file), Path(inputs.labels_file), inputs.regions, inputs.threshold
        )
        mask.to_filename(folder / "mask.nii.gz")
        n_voxels = int(np.count_nonzero(mask.dataobj))
        voxel_ml = read_grid(inputs.in_file).voxel_volume_ml
        meta = {
            "Regions": [{"Index": region.index, "Name": region.name} for region in regions],
            "Voxels": n_voxels,
            "VolumeML": n_voxels * voxel_ml,
        }
        self._results["out_file"] = str(folder / "mask.nii.gz")
        self._results["out_meta"] = str(write_json(folder / "mask.json", meta))
        self._results["n_voxels"] = n_voxels
        return runtime


class _MapInfoInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="3D or 4D image")


class _MapInfoOutputSpec(TraitedSpec):
    out_meta = File(exists=True, desc="JSON with all that follows, and the grid")
    minimum = traits.Float(desc="smallest finite value; undefined where there is none")
    maximum = traits.Float(desc="largest finite value; undefined where there is none")
    mean = traits.Float(desc="mean of the finite values; undefined where there is none")
    n_nonzero = traits.Int(desc="voxels that are finite and not 0")
    n_nan = traits.Int(desc="voxels that are NaN")
    labels = traits.List(
        traits.Int(), desc="labels above 0 of a 3D image of whole numbers; undefined for others"
    )


class MapInfo(SimpleInterface):
    """Describe the values of an image; those that are not finite are counted and left out."""

    input_spec = _MapInfoInputSpec
    output_spec = _MapInfoOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.atlases.info import map_info
        from lacuna_nipype.core.files import write_json

        found = map_info(self.inputs.in_file)
        results = {
            "minimum": found["min"],
            "maximum": found["max"],
            **{key: found[key] for key in ("mean", "n_nonzero", "n_nan", "labels")},
        }
        known = {key: value for key, value in results.items() if value is not None}
        out_meta = write_json(Path(runtime.cwd) / "map.json", found)
        self._results.update(known, out_meta=str(out_meta))
        return runtime


class _BundleAtlasInputSpec(_CatalogueInputSpec):
    regions = traits.List(traits.Str(), desc="regions whose masks to add")
    statistical = traits.List(
        traits.Str(), desc="regions whose statistical maps to add; siibra has them"
    )
    template = traits.Bool(False, usedefault=True, desc="add TemplateFlow's template of the space")
    keep_going = traits.Bool(
        False, usedefault=True, desc="leave out what cannot be had, and list it"
    )


class _BundleAtlasOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="zip file; its manifest.json lists all members")
    missing = traits.List(traits.Str(), desc="parts that were left out, with the reason")
    sha256 = traits.Str(desc="of the zip file")


class BundleAtlas(SimpleInterface):
    """Write an atlas with licence, citation and manifest into a zip file.

    The same request gives the same bytes. As for FetchParcellation, set ``sha256``, and use
    ``run_without_submitting``.
    """

    input_spec = _BundleAtlasInputSpec
    output_spec = _BundleAtlasOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.atlases.bundle import bundle_atlas
        from lacuna_nipype.atlases.services import fetch_parcellation

        inputs = self.inputs
        options = _options(inputs)
        if isdefined(inputs.sha256):
            files = fetch_parcellation(inputs.atlas, **options)
            _check_sha256(inputs, files.sha256, files.image)
        bundle = bundle_atlas(
            inputs.atlas,
            Path(runtime.cwd) / "atlas.zip",
            regions=_given(inputs.regions) or (),
            statistical=_given(inputs.statistical) or (),
            template=inputs.template,
            keep_going=inputs.keep_going,
            overwrite=True,
            **options,
        )
        self._results["out_file"] = str(bundle.path)
        self._results["missing"] = [f"{part.part}: {part.message}" for part in bundle.missing]
        self._results["sha256"] = bundle.sha256
        return runtime
