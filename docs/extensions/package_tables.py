"""Directives that show what the package itself says: files, spaces, atlases, connectomes, traits.

``package-table:: NAME`` makes the table of that name. ``interfaces::`` lists the Nipype interfaces
with their inputs and outputs. Nothing is written here that the package knows already.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.ext.napoleon import NumpyDocstring

from lacuna_nipype import data, interfaces
from lacuna_nipype.io import group_association, group_maps, quantities


class Code(str):
    """Text of a cell that is code."""


def _maps() -> tuple[list[str], Iterable[Sequence[str]]]:
    rows = [
        (Code(analysis), Code(name), entry["Description"], entry["Units"])
        for (analysis, name), entry in quantities.MAPS.items()
    ]
    return ["desc", "stat", "Content", "Units"], rows


def _tables() -> tuple[list[str], Iterable[Sequence[str]]]:
    rows = [
        (Code(analysis), Code(name), text) for (analysis, name), text in quantities.TABLES.items()
    ]
    return ["desc", "stat", "Content"], rows


def _matrices() -> tuple[list[str], Iterable[Sequence[str]]]:
    rows = [
        (Code(analysis), Code(name), entry["Description"], entry["Units"])
        for (analysis, name), entry in quantities.MATRICES.items()
    ]
    return ["desc", "stat", "Content", "Units"], rows


# What the files of a pattern are, by the beginning of the pattern and its suffix. A pattern that
# is not here ends the build: a new kind of file needs a sentence.
_FILES = {
    ("sub", "mask"): "the lesion as analysed, in the space of the results",
    ("sub", "statmap"): "maps, see below",
    ("sub", "parcelstats"): "a row for every region, see below",
    ("sub", "relmat"): "matrices between regions, see below",
    ("sub", "tractography"): "streamlines that pass the lesion (--keep-intermediate)",
    ("sub", "stats"): "the numbers of an analysis, one file for each lesion",
    ("sub", "provenance"): "what ran, when, with which versions, parameters and inputs",
    ("group", "parcelstats"): "a row for every participant, a column for every region",
    ("tpl", "probseg"): "share of the participants with a lesion here",
    ("tpl", "statmap"): "overlap maps, and maps of tests (model-)",
    ("tpl", "clusters"): "peaks and clusters of a test of maps",
    ("tpl", "parcelstats"): "test of every region",
    ("tpl", "dseg|probseg"): "the atlas that was used, with its labels",
}
# In nearly every name, and the same in all; the page says it once.
_RARE = "[_acq-{acquisition}][_run-{run}]"
_FIELD = re.compile(r"\{(\w+)(?:<([^>]*)>)?(?:\|([^}]*))?\}")


def _files() -> tuple[list[str], Iterable[Sequence[str]]]:
    rows = []
    for pattern in data.load_json("lacuna_bids_config.json")["default_path_patterns"]:
        folder, _, name = pattern.rpartition("/")
        fields = {match[1]: match[2] for match in _FIELD.finditer(name)}
        kind = re.split(r"[-\[]", name)[0]
        meaning = _FILES[kind, fields.get("suffix") or fields["desc"]]
        rows.append((Code(_readable(folder)), Code(_readable(name)), meaning))
    return ["Folder", "Name", "What it is"], rows


def _readable(pattern: str) -> str:
    """Write a pattern as people do: a place for a value, or the values there are."""

    def replace(match: re.Match[str]) -> str:
        values = (match[2] or "<>").split("|")
        if match[1] == "extension":
            return values[0]
        return values[0] if len(values) == 1 else "{" + ",".join(values) + "}"

    return _FIELD.sub(replace, pattern.replace(_RARE, ""))


def _overlaps() -> tuple[list[str], Iterable[Sequence[str]]]:
    kinds = (("lesion", None), ("fnm", "t"), ("snm", "disconnectionpct"))
    rows = []
    for analysis, quantity in kinds:
        for made in group_maps.overlap_maps(analysis, quantity):
            name = "_".join(
                f"{key}-{made.entities[long]}"
                for key, long in (("stat", "statistic"), ("desc", "desc"))
                if long in made.entities
            )
            rows.append((Code(f"{name}_{made.entities['suffix']}"), made.description))
    return ["File", "Content"], rows


def _described(entries: Mapping[str, Mapping[str, str]], first: str) -> Callable[[], Any]:
    def table() -> tuple[list[str], Iterable[Sequence[str]]]:
        rows = [
            (Code(name), entry["Description"], entry.get("Units", ""))
            for name, entry in entries.items()
        ]
        return [first, "Content", "Units"], rows

    return table


def _spaces() -> tuple[list[str], Iterable[Sequence[str]]]:
    spaces = data.load_json("spaces.json")["spaces"]
    rows = []
    for name, space in spaces.items():
        grids = "; ".join(
            f"{grid['voxel_size']:g} mm: {' x '.join(map(str, grid['shape']))}, first voxel at "
            f"{', '.join(f'{value:g}' for value in grid['origin'])}"
            for grid in space["grids"]
        )
        rows.append((Code(name), space["description"], grids, ", ".join(space["aliases"])))
    return ["Space", "Anatomy", "Standard grids (RAS)", "Also called"], rows


def _connectomes() -> tuple[list[str], Iterable[Sequence[str]]]:
    public = data.load_json("connectomes.json")
    keys = {"dataverse": "DATAVERSE_API_KEY", "figshare": "FIGSHARE_API_KEY"}
    rows = [
        (
            Code(name),
            entry["type"],
            entry["description"],
            Code(entry["space"]),
            f"{entry['estimated_size_gb']:g} GB",
            keys.get(entry["source_type"], "none"),
            entry["citation"],
        )
        for name, entry in public.items()
    ]
    return ["Name", "Kind", "Content", "Space", "Download", "Key", "Citation"], rows


def _atlases() -> tuple[list[str], Iterable[Sequence[str]]]:
    catalogue = data.load_json("templateflow_atlases.json")
    rows = [
        (
            Code(atlas["id"]),
            atlas["name"],
            str(atlas["n_regions"]),
            ", ".join(atlas["spaces"]),
            catalogue["families"][atlas["family"]]["license"] or "not stated",
        )
        for atlas in catalogue["atlases"]
    ]
    return ["Id", "Name", "Regions", "Spaces", "Licence"], rows


TABLES: dict[str, Callable[[], tuple[list[str], Iterable[Sequence[str]]]]] = {
    "maps": _maps,
    "tables": _tables,
    "matrices": _matrices,
    "files": _files,
    "overlaps": _overlaps,
    "statistics": _described(group_association.STATISTICS, "stat"),
    "clusters": _described(group_association.CLUSTER_COLUMNS, "Column"),
    "tested regions": _described(group_association.PARCEL_COLUMNS, "Column"),
    "spaces": _spaces,
    "connectomes": _connectomes,
    "atlases": _atlases,
}


class PackageTable(Directive):
    """Show one of the tables."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        headings, rows = TABLES[self.arguments[0]]()
        return [_table(headings, rows)]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> nodes.table:
    group = nodes.tgroup(cols=len(headings))
    group += [nodes.colspec(colwidth=1) for _ in headings]
    head, body = nodes.thead(), nodes.tbody()
    head += _row(headings)
    body += [_row(row) for row in rows]
    group += [head, body]
    table = nodes.table()
    table += group
    return table


def _row(cells: Sequence[str]) -> nodes.row:
    row = nodes.row()
    for text in cells:
        inner = nodes.literal(text, text) if isinstance(text, Code) else nodes.Text(text)
        row += nodes.entry("", nodes.paragraph("", "", inner))
    return row


class Interfaces(Directive):
    """Document every public Nipype interface."""

    def run(self) -> list[nodes.Node]:
        """Give a section for each."""
        return [self._section(name, getattr(interfaces, name)) for name in interfaces.__all__]

    def _section(self, name: str, interface: Any) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(f"interface {name}")])
        section += nodes.title(name, name)
        plain = inspect.cleandoc(interface.__doc__ or "")
        config = self.state.document.settings.env.config
        text = NumpyDocstring(plain, config, what="class", name=name).lines()
        container = nodes.Element()
        self.state.nested_parse(StringList(text, source=name), 0, container)
        section += container.children
        inputs = interface.input_spec().traits(transient=None)
        section += nodes.rubric("", "Inputs")
        section += _table(
            ["Name", "Meaning"], [(Code(key), _meaning(trait)) for key, trait in inputs.items()]
        )
        if interface.output_spec is not None:
            outputs = interface.output_spec().traits(transient=None)
            section += nodes.rubric("", "Outputs")
            section += _table(
                ["Name", "Meaning"], [(Code(key), trait.desc) for key, trait in outputs.items()]
            )
        return section


def _meaning(trait: Any) -> str:
    """Describe an input, and say whether it must be given or what it is otherwise."""
    text = trait.desc or ""
    if trait.mandatory:
        return f"{text} (mandatory)"
    if trait.usedefault:
        return f"{text} (default: {trait.default})"
    return text


def setup(app: Any) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("package-table", PackageTable)
    app.add_directive("interfaces", Interfaces)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
