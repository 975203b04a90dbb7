"""Atlases of TemplateFlow: listed without its client, fetched with it.

What there is comes from a list that this package ships, so that looking needs neither a network
nor the second that the client takes to import. A file that is on this machine is used as it is;
one that is missing, or a placeholder of zero bytes, is fetched by the client.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from lacuna_nipype.atlases.cache import CacheSlot, cached, file_stem
from lacuna_nipype.atlases.checking import check_image
from lacuna_nipype.atlases.entries import (
    AtlasEntry,
    AtlasFiles,
    AtlasNotFound,
    IntegrityError,
    SourceUnavailable,
)
from lacuna_nipype.atlases.info import map_info
from lacuna_nipype.atlases.labels import RegionName
from lacuna_nipype.atlases.region_tables import keep_regions, write_regions
from lacuna_nipype.atlases.templates import (
    TemplateFetchError,
    TemplateNeed,
    fetch_template,
    template_need,
    templateflow_home,
)
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.spaces import GRID_TOLERANCE_MM
from lacuna_nipype.data import load_json

SERVER = "https://templateflow.s3.amazonaws.com"
# Of the way in which tables are made from TemplateFlow's: another number fetches again.
_VERSION = "1"
_QUERY = {"res": "resolution", "atlas": "atlas", "seg": "segmentation", "desc": "desc"}
# Larger maps take longer to describe than to fetch.
_DESCRIBED_VOXELS = 5 * 10**7


class TemplateFlowSource:
    """TemplateFlow.

    Parameters
    ----------
    offline : bool
        Never use the network.
    refresh : bool
        Make the cached files again; TemplateFlow's own are kept.
    verify : bool
        Compare cached files with their SHA-256.
    """

    name = "templateflow"

    def __init__(
        self, *, offline: bool = False, refresh: bool = False, verify: bool = False
    ) -> None:
        self._offline, self._refresh, self._verify = offline, refresh, verify

    def entries(self) -> Iterable[AtlasEntry]:
        """List the atlases in the order of the list that is shipped; nothing is looked up."""
        catalogue = _catalogue()
        return [
            _entry(row, space, catalogue)
            for row in catalogue["atlases"]
            for space in row["spaces"]
        ]

    def fetch(self, entry: AtlasEntry, resolution: float | None, target_dir: Path) -> AtlasFiles:
        """Bring an atlas to the cache; see :class:`~.entries.AtlasSource`."""
        row = _row(entry)
        number, size = _resolution(row, entry, resolution)
        image_name = row["image"].format(space=entry.space, res=number)
        table_name = (row["table"] or "").format(space=entry.space)
        suffix = "dseg" if entry.kind == "labelled" else "probseg"
        request = {
            "id": entry.id, "space": entry.space, "resolution": size,
            "image": image_name, "table": table_name, "rule": row.get("rule", ""),
        }  # fmt: skip
        stem = file_stem(entry.space, entry.entities, size, suffix)
        with cached(
            target_dir, stem, request, _VERSION, refresh=self._refresh, verify=self._verify
        ) as slot:
            from_cache = slot.stored is not None
            if slot.stored is None:
                self._make(slot, entry, row, image_name, table_name)
            stored = slot.stored
        if stored is None:
            raise IntegrityError(f"{stem} could not be stored in {target_dir}; try again.")
        return AtlasFiles(
            stored.image, stored.labels, stored.metadata, from_cache, entry, size, stored.sha256
        )

    def _make(
        self, slot: CacheSlot, entry: AtlasEntry, row: dict[str, Any], image: str, table: str
    ) -> None:
        # Before the table, since the client brings the tables with it.
        image_path = self._find(image, entry)
        table_path = self._find(table, entry) if table else None
        regions = make_table(row, table_path)
        names = [
            RegionName(int(i), n) for i, n in zip(regions["index"], regions["name"], strict=True)
        ]
        try:
            checked = check_image(
                image_path, names, entry.space,
                image_name=f"TemplateFlow's {image_path}",
                table="The list of FreeSurfer's regions" if table_path is None
                else f"TemplateFlow's {table_path}",
            )  # fmt: skip
        except SpatialMismatchError:
            raise
        except ValidationError as error:
            raise IntegrityError(
                f"{error} If it was cut short, remove it and run `{_command(entry)}`."
            ) from error
        size = slot.request["resolution"]
        if checked.resolution is None or abs(checked.resolution - size) > GRID_TOLERANCE_MM:
            raise IntegrityError(
                f"TemplateFlow's {image_path} ({checked.grid.describe()}) has no voxels of "
                f"{size:g} mm, as its name says; remove it and run `{_command(entry)}`."
            )
        shutil.copyfile(image_path, slot.image)
        write_regions(slot.labels, keep_regions(regions, checked.regions))
        voxels = checked.grid.shape[0] * checked.grid.shape[1] * checked.grid.shape[2]
        described = voxels * (1 if checked.kind == "labelled" else len(names))
        slot.commit(
            {
                "Name": entry.name,
                "Source": "templateflow",
                "URL": f"{SERVER}/tpl-{entry.space}/{image}",
                "License": entry.license,
                "Citation": entry.citation,
                "ReferencesAndLinks": [entry.url] if entry.url else [],
                "RegionsWithoutVoxels": [region.name for region in checked.empty],
                "MapInfo": map_info(slot.image) if described <= _DESCRIBED_VOXELS else None,
            }
        )

    def _find(self, name: str, entry: AtlasEntry) -> Path:
        """Find a file of TemplateFlow, or fetch it."""
        need = _need(name)
        if need.path is not None:
            return need.path
        command = _command(entry)
        if self._offline:
            raise SourceUnavailable(
                f"TemplateFlow's file {need.name}, of the atlas {entry.id}, is missing from "
                f"{templateflow_home()}; run `{command}` where there is a network."
            )
        # Its list comes with the client; it is not to look for a newer one.
        os.environ["TEMPLATEFLOW_AUTOUPDATE"] = "off"
        try:
            return fetch_template(need)
        except TemplateFetchError as error:
            raise SourceUnavailable(f"{error} The command is `{command}`.") from error


def _catalogue() -> dict[str, Any]:
    catalogue: dict[str, Any] = load_json("templateflow_atlases.json")
    return catalogue


def _command(entry: AtlasEntry) -> str:
    return f"lacuna-nipype atlas fetch {entry.id} --space {entry.space}"


def _entry(row: dict[str, Any], space: str, catalogue: dict[str, Any]) -> AtlasEntry:
    family = catalogue["families"][row["family"]]
    sizes = [float(catalogue["voxel_sizes"][space][number]) for number in row["spaces"][space]]
    return AtlasEntry(
        id=row["id"],
        name=row["name"],
        kind="labelled" if row["image"].endswith("_dseg.nii.gz") else "probabilistic",
        space=space,
        resolutions=tuple(sorted(sizes)),
        n_regions=row["n_regions"],
        source="templateflow",
        entities=dict(row["entities"]),
        citation=family["citation"],
        license=family["license"],
        url=family["url"],
        aliases=tuple(row["aliases"]),
    )


def _row(entry: AtlasEntry) -> dict[str, Any]:
    for row in _catalogue()["atlases"]:
        if row["id"] == entry.id and entry.space in row["spaces"]:
            found: dict[str, Any] = row
            return found
    raise AtlasNotFound(f"TemplateFlow has no atlas {entry.id} in {entry.space}.")


def _resolution(
    row: dict[str, Any], entry: AtlasEntry, resolution: float | None
) -> tuple[str, float]:
    """Give TemplateFlow's number of a voxel size, and the size in mm."""
    numbers = row["spaces"][entry.space]
    voxel_sizes = _catalogue()["voxel_sizes"][entry.space]
    sizes = sorted((float(voxel_sizes[number]), number) for number in numbers)
    for size, number in sizes:
        if resolution is None or abs(size - resolution) < 1e-3:
            return number, size
    known = ", ".join(f"{size:g}" for size, _ in sizes)
    raise ValidationError(f"{entry.id} is in {entry.space} at {known} mm, not {resolution:g} mm.")


def _need(name: str) -> TemplateNeed:
    """Look a file up by its name, from which the client's query is read."""
    stem, _, ending = name.partition(".")
    *fields, suffix = stem.split("_")
    parts = dict(field.split("-", 1) for field in fields)
    query: dict[str, Any] = {word: parts.get(key) for key, word in _QUERY.items()}
    if query["resolution"] is not None:
        query["resolution"] = int(query["resolution"])
    space = parts["tpl"]
    return template_need(
        "atlas", space, name, (space,), **query, suffix=suffix, extension=f".{ending}"
    )


def make_table(row: dict[str, Any], table: Path | None) -> pd.DataFrame:
    """Make an atlas's table of regions from TemplateFlow's.

    Parameters
    ----------
    row : dict
        Of the list that is shipped.
    table : Path or None
        TemplateFlow's; None where it has none.

    Returns
    -------
    DataFrame
        ``index`` from 1, ``name`` (unique), and ``color`` and ``network`` where they are known.
    """
    if table is None:
        names = _catalogue()["freesurfer"]
        return pd.DataFrame({"index": [int(i) for i in names], "name": list(names.values())})
    try:
        found = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
        found = found.rename(
            columns={
                "Component": "index", "Difumo_names": "name", "Yeo_networks7": "network"
            }
        )  # fmt: skip
        regions = pd.DataFrame(
            {"index": found["index"].astype(int), "name": found["name"].str.strip()}
        )
    except (KeyError, ValueError) as error:
        raise IntegrityError(
            f"TemplateFlow's {table} is not a table of regions; remove it and fetch it again."
        ) from error
    for column in ("network", "color"):
        if column in found:
            regions[column] = found[column].replace("No network found", "")
    if row.get("rule") == "both sides":
        return pd.DataFrame(
            [
                {"index": 2 * index + side, "name": f"{word} {name}"}
                for index, name in zip(regions["index"], regions["name"], strict=True)
                for side, word in ((-1, "Left"), (0, "Right"))
            ]
        )
    regions = regions[regions["index"] > 0].reset_index(drop=True)
    # DiFuMo gives several components one name.
    doubled = regions["name"].duplicated(keep=False)
    numbered = regions["name"] + " " + regions["index"].astype(str)
    regions["name"] = regions["name"].where(~doubled, numbered)
    return regions
