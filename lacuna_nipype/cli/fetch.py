"""``lacuna-nipype fetch templates``: get what later runs need, where there is a network."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lacuna_nipype.cli.connectome import Subcommand
from lacuna_nipype.cli.parser import _Parser

if TYPE_CHECKING:
    from lacuna_nipype.atlases.templates import TemplateNeed

FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130


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
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    # Heavy imports wait until the arguments are right.
    from lacuna_nipype.atlases.templates import TemplateFetchError
    from lacuna_nipype.core.exceptions import LacunaError

    try:
        COMMANDS[options.name].run(options)
    except TemplateFetchError as error:
        return _fail(str(error), FAILED)
    except LacunaError as error:
        return _fail(str(error), USAGE_ERROR)
    except KeyboardInterrupt:
        return _fail("Interrupted; run the same command again to continue.", INTERRUPTED)
    return 0


def _fail(sentence: str, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"{sentence}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lacuna-nipype fetch",
        description="Get what runs need, where there is a network; runs never download.",
        allow_abbrev=False,
    )
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(
            names.add_parser(
                name, help=command.summary, description=command.summary, allow_abbrev=False
            )
        )
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


def _templates(options: argparse.Namespace) -> None:
    from lacuna_nipype.atlases.templates import fetch_template, templateflow_home

    needs = needs_of_spaces(options.spaces)
    sys.stdout.write(f"TemplateFlow's files in {templateflow_home()}:\n{needs_table(needs)}\n")
    sys.stdout.flush()
    if options.dry_run:
        return
    missing = [need for need in needs if need.path is None]
    for need in missing:
        sys.stdout.write(f"Fetched {fetch_template(need)}\n")
        sys.stdout.flush()


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


# Further names, such as those of connectomes, are further entries.
COMMANDS = {
    "templates": Subcommand(
        "TemplateFlow's transforms and brain masks of standard spaces", _add_templates, _templates
    ),
}
