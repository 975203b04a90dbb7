"""``lacuna-nipype fetch``: get what later runs need, where there is a network."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype.cli.arguments import Parser
from lacuna_nipype.cli.ending import SOME_FAILED, USAGE, Codes, run_command
from lacuna_nipype.cli.terminal import columns, print_lines, show_log

if TYPE_CHECKING:
    from lacuna_nipype.atlases.templates import TemplateNeed
    from lacuna_nipype.io.fetching import FetchProgress

# Carries a key that was typed from the process that was started to the one that takes its place.
_KEY_VARIABLE = "LACUNA_NIPYPE_TYPED_KEY"
DESCRIPTION = """\
Get what runs need, where there is a network; runs never download.

  lacuna-nipype fetch --list                      public connectomes, sizes, which need a key
  lacuna-nipype fetch NAME [--output-dir DIR]     download, verify, convert and register one
  lacuna-nipype fetch --status [NAME]             what is on this machine
  lacuna-nipype fetch --clean NAME                remove originals and unfinished pieces
  lacuna-nipype fetch templates --for SPACE ...   TemplateFlow's transforms and brain masks
"""
EPILOG = """\
An interrupted fetch goes on where it stopped: type the same command again. Keys are taken from
--api-key, DATAVERSE_API_KEY or FIGSHARE_API_KEY, or ~/.config/lacuna/config.yaml
(dataverse_api_key, figshare_api_key; only you should be able to read it), and are never written
anywhere.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str
        Arguments after ``fetch``.

    Returns
    -------
    int
        Exit code: 0; 1 when something could not be fetched; 2 for wrong arguments; 130 when
        interrupted.
    """
    typed_key = os.environ.pop(_KEY_VARIABLE, None)

    def run(options: argparse.Namespace) -> None:
        if typed_key is not None:
            options.api_key = typed_key
        options.run(options)

    return run_command(lambda: _parse(argv), run, codes=_codes)


def _codes() -> Codes:
    from lacuna_nipype.atlases.templates import TemplateFetchError
    from lacuna_nipype.core.exceptions import DownloadError, ProcessingError

    return {
        TemplateFetchError: SOME_FAILED, DownloadError: SOME_FAILED, ProcessingError: SOME_FAILED,
        OSError: SOME_FAILED, FileNotFoundError: USAGE,
    }  # fmt: skip


def hide_key(argv: Sequence[str]) -> None:
    """Start the command anew without a key that was typed, which every user could see.

    Parameters
    ----------
    argv : sequence of str
        Arguments after the program's name. Nothing happens where there is no ``--api-key``.
    """
    if not argv or argv[0] != "fetch":
        return
    rest: list[str] = []
    key = None
    words = iter(argv)
    for word in words:
        if word.startswith("--api-key=") or word.startswith("--api_key="):
            key = word.partition("=")[2]
        elif word in ("--api-key", "--api_key"):
            key = next(words, None)
        else:
            rest.append(word)
    if key is not None:
        environment = {**os.environ, _KEY_VARIABLE: key}
        again = [sys.executable, "-m", "lacuna_nipype", *rest]
        os.execve(sys.executable, again, environment)  # noqa: S606 - no shell is wanted


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    if argv and argv[0] == "templates":
        templates = Parser(
            prog="lacuna-nipype fetch templates",
            description="TemplateFlow's transforms and brain masks of standard spaces",
            allow_abbrev=False,
        )
        _add_templates(templates)
        return templates.parse_args(argv[1:])
    parser = _connectome_parser()
    options = parser.parse_args(argv)
    if options.list or options.status:
        options.run = _list if options.list else _status
    elif options.clean:
        options.run = _clean
    elif options.name or options.interactive:
        options.run = _fetch
    else:
        parser.error("NAME, templates, --list, --status, --clean or --interactive is needed")
    return options


def _connectome_parser() -> Parser:
    parser = Parser(
        prog="lacuna-nipype fetch", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of a public connectome")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list the public connectomes")
    what.add_argument("--status", action="store_true", help="tell what is on this machine")
    what.add_argument(
        "--clean", metavar="NAME", help="remove what was downloaded besides the result"
    )
    what.add_argument("--interactive", action="store_true", help="ask for what is not given")
    parser.add_argument("--json", action="store_true", help="--list and --status for programs")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR",
        help="folder for originals and result (default: connectomes/NAME in the data folder)",
    )  # fmt: skip
    parser.add_argument("--api-key", metavar="KEY", help="key of Dataverse or figshare")
    parser.add_argument(
        "--batches", type=int, metavar="N",
        help="files that GSP1000 is cut into, each a piece of work for a run (default: 10)",
    )  # fmt: skip
    parser.add_argument(
        "--test-mode", action="store_true", help="GSP1000: first archive, first 10 subjects"
    )
    parser.add_argument(
        "--skip-checksum", action="store_true", help="trust the sizes of files alone"
    )
    parser.add_argument(
        "--no-keep-original", action="store_true",
        help="remove what was downloaded as soon as it has been converted",
    )  # fmt: skip
    parser.add_argument(
        "--no-register", action="store_true", help="do not give the result a name for runs"
    )
    parser.add_argument("--register-name", metavar="NAME", help="another name for runs")
    parser.add_argument(
        "--force", action="store_true", help="download and convert again what is there"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log each step")
    return parser


def _add_templates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for", dest="spaces", nargs="+", required=True, metavar="SPACE",
        help="spaces of the masks, atlases and connectomes of a run: their brain masks, and the "
        "transforms between every two of them",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="print what is there and what is missing only"
    )
    parser.set_defaults(run=_templates)


# Connectomes


def _list(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from lacuna_nipype.connectomes.public import list_fetchable_connectomes

    sources = list_fetchable_connectomes()
    if options.json:
        print_lines(json.dumps([asdict(source) for source in sources], indent=2))
        return
    rows = [("name", "kind", "subjects", "space", "GB", "key")]
    keys = {"dataverse": "Dataverse", "figshare": "figshare"}
    rows += [
        (
            source.name, source.type, str(source.n_subjects), source.space,
            f"{source.estimated_size_gb:g}", keys.get(source.source_type, "none"),
        )
        for source in sources
    ]  # fmt: skip
    print_lines(*columns(rows))
    for source in sources:
        print_lines(
            f"\n{source.name}: {source.description}\n  {source.citation}\n  {source.licence}"
        )


def _status(options: argparse.Namespace) -> None:
    from lacuna_nipype.connectomes.public import find_source, list_fetchable_connectomes
    from lacuna_nipype.io.fetching import get_fetch_status

    chosen = [find_source(options.name)] if options.name else list_fetchable_connectomes()
    found = {source.name: get_fetch_status(source.name) for source in chosen}
    if options.json:
        print_lines(json.dumps(found, indent=2))
        return
    rows: list[Sequence[str]] = [("name", "downloaded", "converted", "registered", "GB", "folder")]
    for name, status in found.items():
        states = (status[key] for key in ("downloaded", "processed", "registered"))
        marks = ("yes" if state else "no" for state in states)
        size = f"{status['size_bytes'] / 1e9:.2f}"
        rows.append((name, *marks, size, status["location"] or ""))
    print_lines(*columns(rows))


def _clean(options: argparse.Namespace) -> None:
    from lacuna_nipype.io.fetching import clean_fetched

    removed, n_bytes = clean_fetched(options.clean)
    print_lines(f"Removed {len(removed)} files, {n_bytes / 1e9:.2f} GB. The result was left.")


def _fetch(options: argparse.Namespace) -> None:
    import inspect

    from lacuna_nipype.io import fetching

    if options.interactive:
        _ask(options)
    if options.output_dir is None:
        options.output_dir = fetching.default_output_dir(options.name)
    options.connectome = options.name
    config = fetching.FetchConfig.from_cli_args(options)
    function = fetching.fetcher_of(config.connectome)
    taken = inspect.signature(function).parameters
    settings = {
        key: getattr(config, key)
        for key in type(config).__dataclass_fields__
        if key in taken and key != "output_dir"
    }
    if config.register_name is None:
        settings.pop("register_name", None)
    for key in ("api_key", "batches", "test_mode", "no_keep_original"):
        if getattr(options, key) and key.removeprefix("no_") not in taken:
            _warn(f"--{key.replace('_', '-')} means nothing for {options.name}.")
    show_log("lacuna_nipype" if options.verbose else None)
    with _Display() as display:
        result = function(
            config.output_dir, progress_callback=display.show, verbose=options.verbose, **settings
        )
    print_lines(result.summary())


def _warn(text: str) -> None:
    sys.stderr.write(f"Warning: {text}\n")


def _ask(options: argparse.Namespace) -> None:
    """Ask for what was not given on the command line."""
    from lacuna_nipype.core.exceptions import ValidationError

    try:
        _ask_each(options)
    except EOFError:
        raise ValidationError(
            "--interactive asks questions, and there is nobody to answer."
        ) from None


def _ask_each(options: argparse.Namespace) -> None:
    import getpass

    from lacuna_nipype.connectomes.public import find_source
    from lacuna_nipype.io.fetching import default_output_dir, key_is_missing

    if not options.name:
        _list(argparse.Namespace(json=False))
        options.name = input("\nConnectome: ").strip()
    source = find_source(options.name)
    if options.output_dir is None:
        folder = default_output_dir(source.name)
        options.output_dir = Path(input(f"Folder [{folder}]: ").strip() or folder)
    if options.api_key is None and key_is_missing(source.name):
        options.api_key = getpass.getpass(f"Key of {source.source_type} (not shown): ").strip()
    answer = input(
        f"Download about {source.estimated_size_gb:g} GB to {options.output_dir}? [y/N] "
    )
    if answer.strip().lower() not in ("y", "yes"):
        raise KeyboardInterrupt


class _Display:
    """Progress on a terminal, or a line now and then in a log."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._phase = ""
        self._logged = 0

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, state: FetchProgress) -> None:
        """Take in a new state."""
        if state.phase != self._phase:
            self._close()
            self._phase, self._logged = state.phase, 0
        if state.phase == "registration":
            return
        if sys.stderr.isatty():
            self._draw(state)
        else:
            self._log(state)

    def _draw(self, state: FetchProgress) -> None:
        from tqdm import tqdm

        download = state.phase == "download"
        if self._bar is None:
            unit = {"unit": "B", "unit_scale": True} if download else {"unit": ""}
            start = state.bytes_transferred if download else state.files_completed
            self._bar = tqdm(initial=start, desc=state.phase, file=sys.stderr, **unit)
        self._bar.total = (state.bytes_total if download else state.files_total) or None
        self._bar.n = state.bytes_transferred if download else state.files_completed
        if download and state.current_file:
            self._bar.set_postfix_str(
                f"{state.files_completed}/{state.files_total} files, {state.current_file}",
                refresh=False,
            )
        self._bar.refresh()

    def _log(self, state: FetchProgress) -> None:
        """One line per tenth."""
        share = (
            state.download_percent if state.phase == "download" else state.percent_complete
        ) // 10
        if share > self._logged:
            self._logged = int(share)
            sys.stderr.write(f"{state.phase}: {self._logged * 10} %\n")
            sys.stderr.flush()


# Templates


def _templates(options: argparse.Namespace) -> None:
    from lacuna_nipype.atlases.templates import fetch_template, templateflow_home

    needs = needs_of_spaces(options.spaces)
    print_lines(f"TemplateFlow's files in {templateflow_home()}:\n{needs_table(needs)}")
    if options.dry_run:
        return
    missing = [need for need in needs if need.path is None]
    for need in missing:
        print_lines(f"Fetched {fetch_template(need)}")


def needs_of_spaces(spaces: Sequence[str]) -> list[TemplateNeed]:
    """List what runs between spaces may need: the transforms both ways, and the brain masks.

    Parameters
    ----------
    spaces : sequence of str
        Names or aliases.

    Returns
    -------
    list of TemplateNeed
        Each file once.

    Raises
    ------
    ValidationError
        A space is unknown, or there is no transform between two of them.
    """
    from lacuna_nipype.atlases.masks import MASK_RESOLUTIONS, MASK_SPACES, mask_need
    from lacuna_nipype.atlases.templates import template_needs
    from lacuna_nipype.core.spaces import canonical_space, same_space

    spaces = [canonical_space(space) for space in spaces]
    masks = [
        mask_need(space, resolution)
        for space in spaces
        if any(same_space(space, known) for known in MASK_SPACES)
        for resolution in MASK_RESOLUTIONS
    ]
    needs = [*template_needs(itertools.permutations(spaces, 2)), *masks]
    return list({need.name: need for need in needs}.values())


def needs_table(needs: Sequence[TemplateNeed]) -> str:
    """Lines of state, kind and file, one for each need."""
    return "\n".join(
        f"  {'missing' if need.path is None else 'present'}  {need.kind:<10}  {need.name}"
        for need in needs
    )
