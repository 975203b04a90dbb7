"""The atlases of a run, written into its derivatives, which then need no other source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lacuna_nipype.atlases.cache import file_sha256
from lacuna_nipype.atlases.catalogue import Atlas, atlas_description
from lacuna_nipype.atlases.checking import grid_resolution
from lacuna_nipype.atlases.copies import copy_atlas_image
from lacuna_nipype.atlases.parcels import open_atlas
from lacuna_nipype.atlases.region_tables import read_table, with_sides, write_regions
from lacuna_nipype.core.files import atomic_path, read_json_object, write_json
from lacuna_nipype.io.derivatives import bids_uri, sidecar_path
from lacuna_nipype.io.naming import build_path
from lacuna_nipype.io.quantities import resolution_text

_COLUMNS = {
    # BIDS says that it is an integer; to leave the format out would say that it is text.
    "index": {
        "Description": "Label of the region in the image, or place of its volume.",
        "Format": "integer",
    },
    "name": {"Description": "Name of the region."},
    "hemisphere": {"Description": "Side of the region."},
    "network": {"Description": "Network of the region."},
    "color": {"Description": "Colour in which the region is shown, hexadecimal."},
}
_COLOR = re.compile("#?[0-9A-Fa-f]{6}")


def atlas_path(atlas: Atlas, extension: str = ".nii.gz") -> str:
    """Name a file of an atlas in the derivatives.

    Parameters
    ----------
    atlas : Atlas
        Its image is opened for its kind and voxel size.
    extension : {".nii.gz", ".tsv", ".json"}

    Returns
    -------
    str
        Relative to the dataset, such as ``tpl-S/tpl-S_atlas-A_scale-100_res-1_dseg.nii.gz``.

    Raises
    ------
    ValidationError
        The image cannot be opened.
    """
    _, grid, n_volumes = open_atlas(atlas.image)
    size = grid_resolution(grid)
    return build_path(
        {
            "template": atlas.space,
            **atlas.entities,
            "res": None if size is None else f"{size:g}".replace(".", "p"),
            "suffix": "probseg" if n_volumes else "dseg",
            "extension": extension,
        }
    )


def atlas_table_uri(atlas: Atlas) -> str:
    """Address, in the derivatives, of the table of an atlas's regions."""
    return f"bids::{atlas_path(atlas, '.tsv')}"


def _description_path(atlas: Atlas) -> str:
    return f"atlas-{atlas.atlas}_description.json"


def planned_atlases(atlases: Sequence[Atlas]) -> list[str]:
    """List the files that stand for atlases in the derivatives, relative to the dataset."""
    paths = [
        atlas_path(atlas, ending) for atlas in atlases for ending in (".nii.gz", ".tsv", ".json")
    ]
    return [*paths, *dict.fromkeys(map(_description_path, atlases))]


def write_atlases(
    output_dir: Path, atlases: Sequence[Atlas], links: Mapping[str, Path | str]
) -> list[str]:
    """Write the atlases of a run into its derivatives; call it under the dataset's lock.

    Parameters
    ----------
    output_dir : Path
    atlases : sequence of Atlas
        In their own spaces, as they are before a run warps them. What is there already and the
        same is left alone.
    links : mapping of str to path
        Datasets that source addresses refer to.

    Returns
    -------
    list of str
        Remarks: an atlas takes the place of another one of its name.

    Raises
    ------
    ValidationError
        An atlas cannot be read.
    """
    remarks = []
    for atlas in atlases:
        content = _sidecar(atlas, links)
        image = output_dir / atlas_path(atlas)
        old = read_json_object(sidecar_path(image))
        if not _is_current(image, old, content):
            sources = ("SourceSHA256", "LabelsSHA256")
            if any(key in old and old[key] != content[key] for key in sources):
                remarks.append(
                    f"{image} was another atlas of the name {atlas.id}; it is that of this run "
                    "now, and results that this run does not do were made with the other."
                )
            _write(atlas, image, content)
        _describe(output_dir, atlas, image, content)
    return remarks


def _sidecar(atlas: Atlas, links: Mapping[str, Path | str]) -> dict[str, Any]:
    """Describe the image and its table, but for the columns and what the image becomes."""
    _, grid, n_volumes = open_atlas(atlas.image)
    size = grid_resolution(grid)
    described = atlas_description(atlas)
    what = "a map of each region's probability" if n_volumes else "a label for each region"
    return {
        "Description": f"Atlas that regions were taken from, in its own space: {what}.",
        "Name": described.pop("Name"),
        "SpaceName": described.pop("SpaceName"),
        **({} if size is None else {"Resolution": resolution_text(f"{size:g}")}),
        "Sources": [bids_uri(atlas.image, links)],
        "Source": atlas.source,
        "SourceFile": described.pop("Image"),
        **described,
        "SourceSHA256": file_sha256(atlas.image),
        "LabelsSHA256": file_sha256(atlas.labels),
    }


def _is_current(image: Path, old: Mapping[str, Any], content: Mapping[str, Any]) -> bool:
    """Tell whether the files are there, whole, and say the same."""
    table = sidecar_path(image).with_suffix(".tsv")
    return (
        all(old.get(key) == value for key, value in content.items())
        and image.is_file()
        and table.is_file()
        and old.get("SHA256") == file_sha256(image)
        and old.get("TableSHA256") == file_sha256(table)
    )


def _write(atlas: Atlas, image: Path, content: Mapping[str, Any]) -> None:
    sidecar = sidecar_path(image)
    # The sidecar speaks for the other two: gone while they change, written last.
    sidecar.unlink(missing_ok=True)
    with atomic_path(image) as temporary:
        copy_atlas_image(atlas.image, temporary)
    regions = _regions(atlas)
    table = write_regions(sidecar.with_suffix(".tsv"), regions)
    columns = {column: said for column, said in _COLUMNS.items() if column in regions}
    hashes = {"SHA256": file_sha256(image), "TableSHA256": file_sha256(table)}
    write_json(sidecar, {**content, **hashes, **columns})


def _regions(atlas: Atlas) -> pd.DataFrame:
    """Regions with side, network and colour where these are known."""
    table = with_sides(read_table(atlas.labels))
    table = table[table["index"] > 0].reset_index(drop=True)
    if not all(_COLOR.fullmatch(color) for color in table["color"] if color):
        table["color"] = ""
    return table[[column for column in _COLUMNS if (table[column] != "").any()]]


def _describe(output_dir: Path, atlas: Atlas, image: Path, content: Mapping[str, Any]) -> None:
    """Write what holds for all images of an atlas; several may share its name."""
    path = output_dir / _description_path(atlas)
    old = read_json_object(path)
    own = {
        key: content[key]
        for key in ("Name", "License", "Citation", "Source", "SourceSHA256")
        if key in content
    }
    own["SHA256"] = read_json_object(sidecar_path(image)).get("SHA256")
    files = old.get("Files")
    files = {
        name: facts
        for name, facts in (files.items() if isinstance(files, dict) else ())
        if (output_dir / name).is_file()
    }
    files[image.relative_to(output_dir).as_posix()] = own
    kept = ("License", "Citation", "ReferencesAndLinks")
    new = {
        "Name": atlas.atlas,
        **{key: old[key] for key in kept if key in old},
        **{key: content[key] for key in kept if key in content},
        "Files": dict(sorted(files.items())),
    }
    if new != old:
        write_json(path, new)
