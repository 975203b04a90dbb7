"""HTML pages: everything in one file, without anything from a network."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype import __version__
from lacuna_nipype.data import load_text
from lacuna_nipype.reports.boilerplate import (
    Reference,
    bibtex,
    citation_keys,
    cited_references,
    load_references,
)
from lacuna_nipype.reports.results import RunRecords
from lacuna_nipype.reports.sections import TITLES, LesionSection, Picture
from lacuna_nipype.reports.tables import SortableTable, sortable_regions

if TYPE_CHECKING:
    from markupsafe import Markup

_PIECES = re.compile(r"\*\*(?P<strong>[^*]+)\*\*|\[(?P<cited>@[^\]]+)\]")


@dataclass(frozen=True)
class Message:
    """A sentence at the top of the page.

    Parameters
    ----------
    kind : {"error", "warning"}
    text : str
    """

    kind: str
    text: str


def render_page(
    participant: str,
    sections: Sequence[LesionSection],
    records: RunRecords,
    messages: Sequence[Message],
    *,
    methods: str,
    output_dir: Path,
    digest: str,
) -> str:
    """Write the page of a participant.

    Parameters
    ----------
    participant : str
        Label without ``sub-``.
    sections : sequence of LesionSection
    records : RunRecords
    messages : sequence of Message
        Errors and warnings of the participant.
    methods : str
        Text of the methods, in Markdown; empty where nothing is known of them.
    output_dir : Path
        Links to results are relative to it.
    digest : str
        Stands for everything that the page was made of.

    Returns
    -------
    str
        HTML.
    """
    return _render(
        "report.html.jinja",
        output_dir,
        methods,
        participant=participant,
        digest=digest,
        sections=sections,
        messages=messages,
        runs=_runs(records),
        table_view=sortable_regions,
    )


def render_group_page(
    content: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    messages: Sequence[Message],
    *,
    methods: str,
    output_dir: Path,
    digest: str,
) -> str:
    """Write the page of the group.

    Parameters
    ----------
    content : mapping
        ``n_participants``, ``overview``, ``overlaps``, ``models`` and ``people``, see
        :mod:`lacuna_nipype.reports.group`.
    runs : sequence of mapping
        Records of the runs that the results come from, the last one first, with what each made
        under ``Made``.
    messages : sequence of Message
    methods : str
        Text of the methods, in Markdown; empty where nothing is known of them.
    output_dir : Path
        Links to results are relative to it.
    digest : str
        Stands for everything that the page was made of.

    Returns
    -------
    str
        HTML.
    """
    described = [
        {
            "record": {**dict.fromkeys(("RunID", "Started", "Ended", "CommandLine"), ""), **run},
            "made_word": "Results",
            "made": run["Made"],
            "parameters": _changed(run.get("Parameters", {})),
            "hashes": [],
        }
        for run in runs
    ]
    return _render(
        "group.html.jinja", output_dir, methods, runs=described, messages=messages,
        digest=digest, **content,
    )  # fmt: skip


def _render(name: str, output_dir: Path, methods: str, **content: Any) -> str:
    """Fill a template that goes into the frame of all pages."""
    references = cited_references(methods)
    text: str = (
        _environment()
        .get_template(name)
        .render(
            version=__version__,
            methods=[_inline(text) for text in methods.strip().split("\n\n") if text],
            references=references,
            methods_file=data_address(methods, "text/markdown"),
            bib_file=data_address(bibtex(references), "text/plain"),
            image=_image,
            address=_table_address,
            relative=lambda path: path.relative_to(output_dir).as_posix(),
            **content,
        )
    )
    return text


@cache
def _environment() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(load_text), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _table_address(table: SortableTable) -> str:
    return data_address(table.content, "text/tab-separated-values")


def data_address(text: str, kind: str) -> str:
    """Put a text into an address, so that the page can offer it as a file."""
    content = base64.b64encode(text.encode("utf-8")).decode("ascii")
    return f"data:{kind};charset=utf-8;base64,{content}"


def _image(picture: Picture) -> dict[str, Any]:
    content = picture.path.read_bytes()
    # Width and height stand in the header, so the page does not jump while it is drawn.
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    address = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return {"address": address, "width": width, "height": height}


def _inline(text: str) -> Markup:
    """Turn the little Markdown of the methods into HTML."""
    from markupsafe import Markup, escape

    pieces: list[Any] = []
    position = 0
    for match in _PIECES.finditer(text):
        pieces.append(escape(text[position : match.start()]))
        if match["strong"]:
            pieces.append(Markup("<strong>{}</strong>").format(match["strong"]))
        else:
            known = [load_references()[key] for key in citation_keys(match["cited"])]
            pieces.append(Markup("({})").format(Markup("; ").join(_links(known))))
        position = match.end()
    pieces.append(escape(text[position:]))
    return Markup("").join(pieces)


def _links(references: Iterable[Reference]) -> list[Markup]:
    from markupsafe import Markup

    link = Markup('<a href="#ref-{}">{}</a>')
    return [link.format(reference.key, reference.short) for reference in references]


def _runs(records: RunRecords) -> list[dict[str, Any]]:
    """Describe the runs that the results come from, the last one first."""
    used: dict[str, list[str]] = {}
    for analysis, run in records.analyses.items():
        used.setdefault(str(run["RunID"]), []).append(analysis)
    by_id = {str(run["RunID"]): run for run in records.runs}
    return [
        {
            "record": by_id[run_id],
            "made_word": "Analyses",
            "made": ", ".join(TITLES[analysis] for analysis in analyses),
            "parameters": _changed(by_id[run_id]["Parameters"]),
            "hashes": _hashes(by_id[run_id]),
        }
        for run_id, analyses in sorted(used.items(), reverse=True)
    ]


def _changed(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Parameters that are set to something, as text."""
    shown = []
    for name, value in parameters.items():
        if value in (None, [], {}, False):
            continue
        if isinstance(value, dict):
            shown += [(f"{name}: {key}", text) for key, text in _changed(value)]
            continue
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        shown.append((name, text))
    return shown


def _hashes(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Files that the run read, and their fingerprints."""
    found = [(str(item["URI"]), str(item["Fingerprint"])) for item in run["Inputs"]]
    for name, analysis in run["Analyses"].items():
        connectome = analysis.get("Connectome", {})
        if connectome.get("Fingerprint"):
            found.append((f"{TITLES[name]}: {connectome.get('Name')}", connectome["Fingerprint"]))
    for atlas in run["Atlases"]:
        found.append((f"Atlas {atlas['Name']}: {atlas['Image']}", str(atlas["Fingerprint"])))
    return found
