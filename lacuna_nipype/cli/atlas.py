"""``lacuna-nipype atlas COMMAND``: find atlases, fetch them, add your own, hand them on."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype.cli.arguments import Parser, absolute_path, named_path, positive_number
from lacuna_nipype.cli.ending import LEFT_OUT, OK, SOME_FAILED, Codes, run_command
from lacuna_nipype.cli.terminal import columns, print_lines, show_log

if TYPE_CHECKING:
    import pandas as pd

    from lacuna_nipype.atlases.bundle import Bundle
    from lacuna_nipype.atlases.entries import AtlasEntry, AtlasFiles

DESCRIPTION = """\
Find parcellations by name, with labels, space, licence and citation; fetch them; add your own.

An atlas is looked for among your registered ones, the datasets given by --datasets, and
TemplateFlow, in this order. EBRAINS is asked with --source siibra, or for ids that begin with
siibra: ; nothing else of `list` and `show` uses a network.
"""
EPILOG = """\
exit codes: 0 done; 1 something cannot be had or is damaged; 2 wrong arguments, or no such atlas
or region; 3 a bundle was written without some of its parts (--keep-going); 130 interrupted
(Ctrl-C)
"""


@dataclass(frozen=True)
class Subcommand:
    """One word after ``atlas``.

    Parameters
    ----------
    summary : str
        Line in the list of commands.
    add_arguments : callable
        Fills the command's parser.
    run : callable
        Takes the parsed arguments and prints the result; gives an exit code, or None for 0.
    """

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str
        Arguments after ``atlas``.

    Returns
    -------
    int
        Exit code: 0; 1 when something cannot be had or is damaged; 2 for wrong arguments, and
        unknown atlases and regions; 3 when parts were left out; 130 when interrupted.
    """
    return run_command(
        lambda: _parser().parse_args(argv),
        _run,
        codes=_codes,
        interrupted="Interrupted; run the same command again.",
    )


def _run(options: argparse.Namespace) -> int:
    show_log()
    try:
        code = COMMANDS[options.command].run(options) or OK
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has seen enough; the rest must not be tried again at the end of Python.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code


def _codes() -> Codes:
    from lacuna_nipype.atlases.bundle import BundleError
    from lacuna_nipype.atlases.entries import IntegrityError, SourceUnavailable

    return {
        BundleError: SOME_FAILED, IntegrityError: SOME_FAILED, SourceUnavailable: SOME_FAILED,
        OSError: SOME_FAILED,
    }  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="lacuna-nipype atlas", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=layout, allow_abbrev=False,
    )  # fmt: skip
    words = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        own = words.add_parser(
            name, help=command.summary, description=command.summary, epilog=EPILOG,
            formatter_class=layout, allow_abbrev=False,
        )  # fmt: skip
        command.add_arguments(own)
        own.add_argument("--json", action="store_true", help="print JSON")
    return parser


# Arguments that several commands share


def _add_where(parser: argparse.ArgumentParser) -> None:
    """Add what says where to look."""
    parser.add_argument("--space", metavar="SPACE", help="standard space, by name or alias")
    parser.add_argument(
        "--source", metavar="SOURCE",
        help="user, bids, templateflow, siibra (which needs a network), or that of a plug-in",
    )  # fmt: skip
    parser.add_argument(
        "--datasets", nargs="+", type=named_path, default=[],
        metavar="[NAME=]PATH", help="BIDS datasets to look into, the preferred ones first",
    )  # fmt: skip


def _add_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="whole id or alias; case is ignored")


def _add_fetching(parser: argparse.ArgumentParser) -> None:
    """Add what says how an atlas is fetched."""
    _add_where(parser)
    parser.add_argument(
        "--resolution", type=positive_number("mm"), metavar="MM",
        help="voxel size (default: the finest there is)",
    )  # fmt: skip
    parser.add_argument("--offline", action="store_true", help="never use the network")


def _add_renewal(parser: argparse.ArgumentParser) -> None:
    """Add what renews or checks the cache."""
    parser.add_argument("--refresh", action="store_true", help="fetch again what is in the cache")
    parser.add_argument(
        "--verify", action="store_true",
        help="compare what is in the cache with its SHA-256, and not with its size alone",
    )  # fmt: skip


def _where(options: argparse.Namespace) -> dict[str, Any]:
    return {"source": options.source, "datasets": _datasets(options)}


def _datasets(options: argparse.Namespace) -> dict[str, Path]:
    from lacuna_nipype.core.exceptions import ValidationError

    named = dict(options.datasets)
    if len(named) < len(options.datasets):
        raise ValidationError(
            "Two of --datasets have one name; give names: --datasets NAME=PATH NAME=PATH"
        )
    return named


# list, show


def _add_list(parser: argparse.ArgumentParser) -> None:
    _add_where(parser)
    parser.add_argument("--kind", choices=("labelled", "probabilistic"))
    parser.add_argument(
        "--find", metavar="TEXT", help="only those with this text in a name or entity"
    )


def _list(options: argparse.Namespace) -> None:
    from lacuna_nipype.atlases.services import list_atlases

    entries = list_atlases(options.space, kind=options.kind, find=options.find, **_where(options))
    if options.json:
        _print_json([_fields(entry) for entry in entries])
    elif entries:
        rows = [("id", "space", "mm", "regions", "kind", "source")]
        rows += [
            (
                entry.id, entry.space, _sizes(entry), _known(entry.n_regions), entry.kind,
                entry.source,
            )
            for entry in entries
        ]  # fmt: skip
        print_lines(*columns(rows))
    else:
        print_lines("There is no such atlas.")


def _fields(entry: AtlasEntry) -> dict[str, Any]:
    return {
        **vars(entry),
        "resolutions": list(entry.resolutions),
        "entities": dict(entry.entities),
        "aliases": list(entry.aliases),
    }


def _sizes(entry: AtlasEntry) -> str:
    return ", ".join(f"{size:g}" for size in entry.resolutions) or "-"


def _known(value: Any) -> str:
    return "-" if value is None else str(value)


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_id(parser)
    _add_where(parser)


def _show(options: argparse.Namespace) -> None:
    """Show an atlas in the space asked for, or in each of its spaces."""
    entries = _entries_of(options)
    if options.json:
        _print_json([_fields(entry) for entry in entries])
        return
    entry = entries[0]
    facts = {
        "Id": entry.id,
        "Name": entry.name,
        "Kind": entry.kind,
        "Regions": "known when it is fetched" if entry.n_regions is None else entry.n_regions,
        "Source": entry.source,
        "Spaces": [f"{one.space} ({_sizes(one)} mm)" for one in entries],
        "Entities": ", ".join(f"{key}-{value}" for key, value in entry.entities.items()),
        "Aliases": list(entry.aliases) or "none",
        "License": entry.license or "not known",
        "Citation": entry.citation or "not known",
        "URL": entry.url or "not known",
    }
    print_lines(*_lines(facts))


def _entries_of(options: argparse.Namespace) -> list[AtlasEntry]:
    from lacuna_nipype.atlases.services import SIIBRA_PREFIX, get_atlas, list_atlases

    where = _where(options)
    wanted = options.id.casefold()
    if where["source"] is None and wanted.startswith(SIIBRA_PREFIX):
        where["source"] = "siibra"
    if options.space is None:
        called = [
            entry
            for entry in list_atlases(**where)
            if wanted in [name.casefold() for name in (entry.id, *entry.aliases)]
        ]
        first = [entry for entry in called if entry.source == called[0].source]
        if len({entry.id for entry in first}) == 1:
            return first
    # Also explains why there is none, or more than one.
    return [get_atlas(options.id, options.space, **where)]


# regions, spaces


def _add_regions(parser: argparse.ArgumentParser) -> None:
    _add_id(parser)
    _add_fetching(parser)
    parser.add_argument("--find", metavar="TEXT", help="only those with this text in their name")
    parser.add_argument("--tsv", type=absolute_path, metavar="FILE", help="write the table there")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --tsv")


def _regions(options: argparse.Namespace) -> None:
    from lacuna_nipype.atlases.services import list_regions
    from lacuna_nipype.core.exceptions import ValidationError
    from lacuna_nipype.core.files import write_table

    if options.tsv and options.tsv.exists() and not options.overwrite:
        raise ValidationError(f"{options.tsv} exists; add --overwrite to replace it.")
    table = list_regions(
        options.id, options.find, options.space, resolution=options.resolution,
        offline=options.offline, **_where(options),
    )  # fmt: skip
    if options.tsv:
        write_table(options.tsv, table)
    if options.json:
        _print_json(_records(table))
    elif options.tsv:
        print_lines(f"Regions: {len(table)}", f"Table: {options.tsv}")
    elif len(table):
        formats = {"x": "{:.1f}", "y": "{:.1f}", "z": "{:.1f}", "volume_mm3": "{:.0f}"}
        rows = [tuple(table.columns)]
        rows += [
            tuple(formats.get(str(key), "{}").format(value) for key, value in row.items())
            for row in table.to_dict("records")
        ]
        print_lines(*columns(rows))
    else:
        print_lines("There is no such region.")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON takes them: null for what is not a number."""
    records: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=6))
    return records


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    pass


def _spaces(options: argparse.Namespace) -> None:
    from lacuna_nipype.atlases.services import list_spaces

    spaces = list_spaces()
    if options.json:
        _print_json(
            [
                {
                    **vars(space),
                    "aliases": list(space.aliases),
                    "resolutions": list(space.resolutions),
                }
                for space in spaces
            ]
        )
        return
    rows = [("name", "volumes", "mm", "aliases", "description")]
    rows += [
        (
            space.name, "yes" if space.usable else "no",
            ", ".join(f"{size:g}" for size in space.resolutions) or "-",
            ", ".join(space.aliases) or "-", space.description,
        )
        for space in spaces
    ]  # fmt: skip
    print_lines(*columns(rows))


# fetch


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    _add_id(parser)
    _add_fetching(parser)
    _add_renewal(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--region", metavar="REGION", help="the mask of this region instead of the whole atlas"
    )
    part.add_argument(
        "--statistical", metavar="REGION", help="the statistical map of this region (siibra)"
    )


def _fetch(options: argparse.Namespace) -> None:
    from lacuna_nipype.atlases.services import fetch_parcellation

    files = fetch_parcellation(
        options.id, options.space, options.resolution, options.region,
        statistical=options.statistical, offline=options.offline, refresh=options.refresh,
        verify=options.verify, **_where(options),
    )  # fmt: skip
    if options.json:
        _print_json(_file_fields(files))
        return
    size = "voxels that are no cubes" if files.resolution is None else f"{files.resolution:g} mm"
    print_lines(
        f"Atlas: {files.entry.id}, {files.entry.space}, {size}",
        f"Image: {files.image}",
        f"Labels: {files.labels}",
        f"Metadata: {files.metadata or 'none'}",
        f"License: {files.entry.license or 'not known'}",
        f"Citation: {files.entry.citation or 'not known'}",
        "It was there already." if files.from_cache else "Fetched.",
    )


def _file_fields(files: AtlasFiles) -> dict[str, Any]:
    return {
        "image": str(files.image),
        "labels": str(files.labels),
        "metadata": None if files.metadata is None else str(files.metadata),
        "from_cache": files.from_cache,
        "resolution": files.resolution,
        "sha256": files.sha256,
        "entry": _fields(files.entry),
    }


# register, unregister


def _add_register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="letters, digits and _ . + -")
    parser.add_argument(
        "image", type=absolute_path, metavar="IMAGE",
        help="NIfTI: 3D labels, or 4D with one volume for each region",
    )  # fmt: skip
    parser.add_argument(
        "labels", type=absolute_path, metavar="LABELS",
        help="table with index and name (.tsv, .csv), or text with 'number name' or a name on "
        "each line",
    )  # fmt: skip
    parser.add_argument(
        "--space", required=True, metavar="SPACE", help="standard space that it is in"
    )
    parser.add_argument("--citation", default="", metavar="TEXT", help="what to cite")
    parser.add_argument("--license", "--licence", default="", metavar="TEXT")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the atlas that has the name"
    )


def _register(options: argparse.Namespace) -> None:
    from lacuna_nipype.atlases.services import register_atlas

    entry = register_atlas(
        options.name, options.image, options.labels, options.space, options.citation,
        options.license, overwrite=options.overwrite,
    )  # fmt: skip
    if options.json:
        _print_json(_fields(entry))
    else:
        print_lines(
            f"Registered: {entry.id} ({entry.kind}, {entry.n_regions} regions, {entry.space})"
        )


def _add_unregister(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="case is ignored")


def _unregister(options: argparse.Namespace) -> None:
    from lacuna_nipype.atlases.services import unregister_atlas

    removed = unregister_atlas(options.name)
    if options.json:
        _print_json([_fields(entry) for entry in removed])
    else:
        print_lines(*(f"Removed: {entry.id} ({entry.space})" for entry in removed))


# bundle


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    _add_id(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=absolute_path,
        required=True,
        metavar="FILE.zip",
        help="file to write",
    )
    _add_fetching(parser)
    _add_renewal(parser)
    for flag, what in (("region", "mask"), ("statistical", "statistical map (siibra)")):
        parser.add_argument(
            f"--{flag}", nargs="+", default=[], metavar="REGION",
            help=f"add the {what} of these regions",
        )  # fmt: skip
    parser.add_argument(
        "--template", action="store_true", help="add TemplateFlow's template of the space"
    )
    parser.add_argument(
        "--keep-going", action="store_true",
        help="leave out what cannot be had, say so in errors.json, and exit with 3",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the file")


def _bundle(options: argparse.Namespace) -> int:
    from lacuna_nipype.atlases.bundle import bundle_atlas

    bundle = bundle_atlas(
        options.id, options.output, options.space, options.resolution, regions=options.region,
        statistical=options.statistical, template=options.template, offline=options.offline,
        refresh=options.refresh, verify=options.verify, keep_going=options.keep_going,
        overwrite=options.overwrite, **_where(options),
    )  # fmt: skip
    if options.json:
        _print_json(_bundle_fields(bundle))
    else:
        print_lines(
            f"Bundle: {bundle.path}",
            *(f"  {name}" for name in bundle.members),
            f"SHA-256: {bundle.sha256}",
        )
    if not bundle.missing:
        return OK
    sys.stdout.flush()
    for part in bundle.missing:
        sys.stderr.write(f"{part.part} is missing: {part.message}\n")
    return LEFT_OUT


def _bundle_fields(bundle: Bundle) -> dict[str, Any]:
    return {
        "path": str(bundle.path),
        "sha256": bundle.sha256,
        "members": list(bundle.members),
        "missing": [vars(part) for part in bundle.missing],
        "entry": _fields(bundle.entry),
    }


# info


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=absolute_path, metavar="FILE", help="NIfTI image, 3D or 4D")


def _info(options: argparse.Namespace) -> None:
    from lacuna_nipype.atlases.services import map_info

    found = map_info(options.file)
    if options.json:
        _print_json({"file": str(options.file), **found})
        return
    labels = found.pop("labels")
    count = "no labels" if labels is None else f"{len(labels)}{_ends(labels)}"
    sizes = {key: " x ".join(f"{n:g}" for n in found[key]) for key in ("shape", "voxel_size")}
    print_lines(*_lines({"file": str(options.file), **found, **sizes, "labels": count}))


def _ends(labels: Sequence[int]) -> str:
    return f", from {labels[0]} to {labels[-1]}" if labels else ""


# Text


def _print_json(content: Any) -> None:
    print_lines(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def _lines(facts: dict[str, Any]) -> list[str]:
    """Lines of ``key: value``, aligned; of a list, each item has a line of its own."""
    width = max(map(len, facts)) + 1
    lines = []
    for key, value in facts.items():
        first, *others = value if isinstance(value, list) else [value]
        text = f"{first:.6g}" if isinstance(first, float) else _known(first)
        lines += [f"{key + ':':<{width}} {text}", *(f"{'':<{width}} {item}" for item in others)]
    return lines


COMMANDS = {
    "list": Subcommand("list the atlases that can be had by their id", _add_list, _list),
    "show": Subcommand("say what is known of an atlas", _add_show, _show),
    "regions": Subcommand(
        "list the regions of an atlas, with centroids (mm) and volumes", _add_regions, _regions
    ),
    "spaces": Subcommand("list the spaces of atlases", _add_nothing, _spaces),
    "fetch": Subcommand("bring an atlas to this machine, and print its files", _add_fetch, _fetch),
    "register": Subcommand("add an atlas of your own", _add_register, _register),
    "unregister": Subcommand(
        "forget an atlas of your own; the files that it was made of stay",
        _add_unregister,
        _unregister,
    ),
    "bundle": Subcommand(
        "write an atlas, its licence and citation into a zip file", _add_bundle, _bundle
    ),
    "info": Subcommand("say what an image holds", _add_info, _info),
}
