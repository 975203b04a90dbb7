"""Tables of regions: one for every atlas, with a column for every quantity; and matrices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import open_regular
from lacuna_nipype.reports.results import LesionResults, ResultFile

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

OTHER = "other"
_ATLAS = ("atlas", "seg", "scale")
# As Schaefer's parcellations write hemisphere and network into the name of a region.
_NETWORK = re.compile(r"^\d+Networks_[LR]H_([A-Za-z0-9]+)(?:_|$)")


@dataclass(frozen=True)
class Column:
    """A column of a table on a page.

    Parameters
    ----------
    title : str
    text : str
        What it holds, for those who point at the heading; may be empty.
    is_number : bool
        Sorted by number.
    wraps : bool
        Holds sentences.
    """

    title: str
    text: str = ""
    is_number: bool = False
    wraps: bool = False

    @property
    def style(self) -> str:
        """Attribute of its cells."""
        name = "number" if self.is_number else "words" if self.wraps else ""
        return f' class="{name}"' if name else ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table on a page.

    Parameters
    ----------
    text : str
    number : float or None
        To sort by; None where there is none.
    link : str
        Address of a page; only the first cell of a row has one.
    """

    text: str
    number: float | None = None
    link: str = ""


@dataclass(frozen=True)
class SortableTable:
    """A table on a page: to sort, and to take along.

    Parameters
    ----------
    title, what, caption : str
        Heading; what it is in a few words; a sentence above it.
    columns : tuple of Column
    rows : tuple of tuple of Cell
        The first cell is the heading of the row.
    content : str
        The whole table with all digits, tab-separated.
    file_name : str
        Under which it is offered.
    """

    title: str
    what: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    content: str
    file_name: str


def number_cell(value: float) -> Cell:
    """Cell of a number with three digits, as a reader wants them."""
    if value != value:
        return Cell("n/a")
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return Cell(text, float(f"{value:.6g}"))


def frame_content(frame: pd.DataFrame) -> str:
    """Write a table with all its digits as text with tabs."""
    text: str = frame.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.10g")
    return text


def frame_rows(frame: pd.DataFrame, numeric: Sequence[bool]) -> tuple[tuple[Cell, ...], ...]:
    """Turn a table into cells.

    Parameters
    ----------
    frame : DataFrame
    numeric : sequence of bool
        Which of its columns hold numbers.

    Returns
    -------
    tuple of tuple of Cell
    """
    values = [frame[column].tolist() for column in frame.columns]

    def cell(value: Any, is_number: bool) -> Cell:
        return number_cell(value) if is_number else Cell(str(value))

    return tuple(
        tuple(cell(value, is_number) for value, is_number in zip(row, numeric, strict=True))
        for row in zip(*values, strict=True)
    )


@dataclass(frozen=True)
class Quantity:
    """A column of a table of regions.

    Parameters
    ----------
    analysis, stat : str
        Values of ``desc`` and ``stat``.
    title : str
        Heading of the column, with the unit.
    phrase : str
        What the regions at the top have: heading of the bars; empty for a column without bars.
    """

    analysis: str
    stat: str
    title: str
    phrase: str = ""


# In the order of the columns. Of an analysis with several phrases, the first there is has bars.
QUANTITIES = (
    Quantity("rd", "damagepct", "damaged (%)", "Regions most damaged"),
    Quantity("fnm", "t", "t", "Regions most strongly connected with the lesion"),
    Quantity("fnm", "z", "Fisher z", "Regions most strongly connected with the lesion"),
    Quantity("fnm", "r", "r"),
    Quantity("afnm", "score", "network score", "Regions with the highest network score"),
    Quantity(
        "snm", "disconnectionpct", "connections cut (%)",
        "Regions that lost most of their connections",
    ),
    Quantity(
        "snm", "mapdisconnectionpct", "disconnection map (mean %)",
        "Regions with the most disconnected voxels",
    ),
    Quantity("snm", "streamlinespct", "streamlines cut (%)", "Bundles most disconnected"),
)  # fmt: skip


@dataclass(frozen=True)
class RegionTable:
    """All that is known of the regions of one atlas for one lesion.

    Parameters
    ----------
    name : str
        Of the atlas.
    quantities : tuple of Quantity
        Those that the table has, in order.
    frame : DataFrame
        ``index`` and ``volume_ml`` where they are known, ``name``, ``network`` where the atlas
        has networks, and a column for every quantity, see :func:`column_name`.
    description : dict of str to str
        What each quantity is, from the sidecars, by column.
    """

    name: str
    quantities: tuple[Quantity, ...]
    frame: pd.DataFrame
    description: dict[str, str] = field(default_factory=dict)

    def top(self, quantity: Quantity, most: int = 10) -> list[tuple[str, float]]:
        """List the regions whose value is largest in size, without zeros."""
        values = self.frame.set_index("name")[column_name(quantity)].dropna()
        values = values[values != 0]
        order = values.abs().sort_values(ascending=False, kind="stable").index[:most]
        return [(str(name), float(values[name])) for name in order]

    @property
    def with_bars(self) -> list[Quantity]:
        """The first quantity of every analysis that has a phrase."""
        chosen: dict[str, Quantity] = {}
        for quantity in self.quantities:
            if quantity.phrase:
                chosen.setdefault(quantity.analysis, quantity)
        return list(chosen.values())


def column_name(quantity: Quantity) -> str:
    """Name of a quantity's column in the table of regions."""
    return f"{quantity.analysis}_{quantity.stat}"


def sortable_regions(table: RegionTable, key: str) -> SortableTable:
    """Prepare a table of regions for the page.

    Parameters
    ----------
    table : RegionTable
    key : str
        Of the lesion, for the name of the file.

    Returns
    -------
    SortableTable
    """
    frame = table.frame
    columns = {"name": Column("Region")}
    if "network" in frame:
        columns["network"] = Column("Network")
    if "volume_ml" in frame:
        columns["volume_ml"] = Column("Volume (ml)", "Volume of the region.", is_number=True)
    for quantity in table.quantities:
        name, title = column_name(quantity), quantity.title
        title = title[0].upper() + title[1:] if len(title) > 1 else title
        columns[name] = Column(title, table.description.get(name, ""), is_number=True)
    return SortableTable(
        f"All regions of {table.name}",
        "Table of regions",
        f"{len(frame)} regions.",
        tuple(columns.values()),
        frame_rows(frame[list(columns)], [column.is_number for column in columns.values()]),
        frame_content(frame),
        f"{key}_{table.name}.tsv",
    )


def network_of(region: str) -> str | None:
    """Network that a region belongs to, where its name says so.

    Parameters
    ----------
    region : str
        Such as ``7Networks_LH_SomMot_3``.

    Returns
    -------
    str or None
        Such as ``SomMot``.
    """
    match = _NETWORK.match(region)
    return match.group(1) if match else None


def region_tables(lesion: LesionResults) -> list[RegionTable]:
    """Put the region tables of a lesion together, one for every atlas.

    Parameters
    ----------
    lesion : LesionResults

    Returns
    -------
    list of RegionTable
        By name of the atlas.

    Raises
    ------
    ValidationError
        A table is damaged.
    """
    atlases: dict[tuple[str, ...], dict[tuple[str, str], ResultFile]] = {}
    for file in lesion.select("parcelstats"):
        atlas = tuple(file.entities.get(key, "") for key in _ATLAS)
        kind = (file.entities.get("desc", ""), file.entities.get("stat", ""))
        own = atlases.setdefault(atlas, {})
        # After runs in several spaces there are several; the last one counts.
        known = own.get(kind)
        if known is None or file.path.stat().st_mtime_ns > known.path.stat().st_mtime_ns:
            own[kind] = file
    return [_region_table(files) for _, files in sorted(atlases.items())]


def _region_table(files: dict[tuple[str, str], ResultFile]) -> RegionTable:
    quantities = tuple(q for q in QUANTITIES if (q.analysis, q.stat) in files)
    first = next(iter(files.values()))
    merged: pd.DataFrame | None = None
    description = {}
    for quantity in quantities:
        file = files[quantity.analysis, quantity.stat]
        column = column_name(quantity)
        own = read_table(file.path, "name", quantity.stat).rename(columns={quantity.stat: column})
        description[column] = file.sidecar.get("Description", "")
        keys = [name for name in ("index", "name", "volume_ml") if name in own]
        if merged is None:
            merged = own[[*keys, column]]
        else:
            # Every name once, in the order of the atlas; an outer merge would sort them.
            names = list(dict.fromkeys([*merged["name"], *own["name"]]))
            merged = merged.set_index("name").reindex(names)
            merged[column] = own.set_index("name")[column]
            merged = merged.reset_index()
    if merged is None:
        raise ValidationError(f"{first.path} holds a quantity that the report does not know.")
    networks = [network_of(str(name)) for name in merged["name"]]
    if any(networks):
        merged["network"] = [network or OTHER for network in networks]
    values = [column_name(quantity) for quantity in quantities]
    order = [key for key in ("index", "name", "network", "volume_ml") if key in merged]
    merged = merged[[*order, *values]]
    return RegionTable(atlas_name(first), quantities, merged, description)


def read_table(path: Path, *columns: str) -> pd.DataFrame:
    """Read a table of results.

    Parameters
    ----------
    path : Path
        Tab-separated.
    *columns : str
        What it has to hold.

    Returns
    -------
    DataFrame
        Names as text, ``n/a`` as NaN.

    Raises
    ------
    ValidationError
        The table is damaged, or lacks a column.
    """
    import pandas as pd

    try:
        with open_regular(path) as stream:
            table = pd.read_csv(
                stream, sep="\t", keep_default_na=False, na_values=["n/a", ""],
                dtype={"name": str, "cluster_id": str},
            )  # fmt: skip
    except (ValueError, OSError) as error:
        raise ValidationError(f"{path} cannot be read; remove it and run again.") from error
    lacking = [column for column in columns if column not in table]
    if lacking:
        raise ValidationError(f"{path} lacks a column ({lacking[0]}); remove it and run again.")
    return table


def atlas_name(file: ResultFile) -> str:
    """Name of the atlas of a table or matrix."""
    named = file.sidecar.get("Atlas", {}).get("Name")
    return str(named or file.entities.get("atlas", "atlas"))


@dataclass(frozen=True)
class MatrixPicture:
    """A disconnection matrix with its regions in the order of networks.

    Parameters
    ----------
    name : str
        Of the atlas.
    values : array, shape (n_regions, n_regions)
        Per cent; NaN where no streamline joins two regions.
    blocks : tuple of (str, int)
        Networks and their numbers of regions, in the order of the rows.
    statistics : dict
        From the sidecar: edges, edges affected, ...
    """

    name: str
    values: NDArray[np.float64]
    blocks: tuple[tuple[str, int], ...]
    statistics: dict[str, object]


def matrix_pictures(lesion: LesionResults) -> list[MatrixPicture]:
    """Read the disconnection matrices of a lesion.

    Parameters
    ----------
    lesion : LesionResults

    Returns
    -------
    list of MatrixPicture
        By name of the file.

    Raises
    ------
    ValidationError
        A matrix is damaged.
    """
    pictures = []
    for file in lesion.select("relmat", "snm", "disconnectionpct"):
        names, values = _read_matrix(file)
        full = _companion(lesion, file, "streamlinesfull")
        if full is not None:
            values = np.where(_read_matrix(full)[1] > 0, values, np.nan)
        order, blocks = order_by_network(names)
        name = atlas_name(file)
        statistics = file.sidecar.get("Statistics", {}).get("Matrices", {}).get(name, {})
        pictures.append(MatrixPicture(name, values[np.ix_(order, order)], blocks, statistics))
    return pictures


def order_by_network(
    names: Sequence[str],
) -> tuple[NDArray[np.intp], tuple[tuple[str, int], ...]]:
    """Order regions so that those of a network stand together, in both hemispheres.

    Parameters
    ----------
    names : sequence of str

    Returns
    -------
    order : array of int
        Places of the regions; networks come in the order of their first region, and regions
        keep their order within each.
    blocks : tuple of (str, int)
        Networks and their numbers of regions; one block, without a name, where names tell no
        network.
    """
    networks = [network_of(name) or OTHER for name in names]
    if set(networks) <= {OTHER}:
        return np.arange(len(names)), (("", len(names)),)
    ranks = {network: rank for rank, network in enumerate(dict.fromkeys(networks))}
    ranks[OTHER] = len(ranks)
    order = np.argsort([ranks[network] for network in networks], kind="stable")
    in_order = sorted(set(networks), key=ranks.__getitem__)
    return order, tuple((network, networks.count(network)) for network in in_order)


def _companion(lesion: LesionResults, file: ResultFile, stat: str) -> ResultFile | None:
    """Find the matrix of another quantity that belongs to the same atlas and space."""
    wanted = {**file.entities, "stat": stat}
    return next((other for other in lesion.files if dict(other.entities) == wanted), None)


def _read_matrix(file: ResultFile) -> tuple[list[str], NDArray[np.float64]]:
    import pandas as pd

    try:
        with open_regular(file.path) as stream:
            table = pd.read_csv(stream, sep="\t", index_col=0)
        values = table.to_numpy(dtype=np.float64)
    except (ValueError, OSError) as error:
        raise ValidationError(f"{file.path} cannot be read; remove it and run again.") from error
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValidationError(f"{file.path} is no square matrix; remove it and run again.")
    return [str(name) for name in table.columns], values
