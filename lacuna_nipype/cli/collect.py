"""``lacuna-nipype collect DERIVATIVES``: parcel tables of all participants, side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lacuna_nipype.cli.arguments import Parser, absolute_path, existing_path, label_of
from lacuna_nipype.cli.ending import OK, end, run_command
from lacuna_nipype.cli.terminal import count

if TYPE_CHECKING:
    from lacuna_nipype.io.group_results import Cohort

LAYOUTS = ("bids", "lacuna")
DESCRIPTION = """\
Put the parcel tables (*_parcelstats.tsv) of all participants side by side: one table for every
atlas, quantity, session and mask label, with a row for every participant and a column for every
region. Tables of Lacuna are read too."""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str
        Arguments after ``collect``.

    Returns
    -------
    int
        Exit code: 0; 2 for wrong arguments, or results that cannot be put together; 130 when
        interrupted.
    """
    return run_command(
        lambda: _parser().parse_args(argv),
        _run,
        where=lambda options: options.derivatives,
        interrupted="Interrupted; run the same command again.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lacuna-nipype collect", description=DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "derivatives", metavar="DERIV", type=existing_path,
        help="results of the participant level, or of Lacuna",
    )  # fmt: skip
    parser.add_argument(
        "--pattern", metavar="GLOB",
        help="only tables whose file name fits, such as '*disconnectionpct*' (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--output-dir", metavar="DIR", type=absolute_path,
        help="folder for the tables (default: DERIV/phenotype)",
    )  # fmt: skip
    parser.add_argument(
        "--output-layout", choices=LAYOUTS, default="bids",
        help="names of files and columns: this package's, or those of Lacuna (default: bids)",
    )  # fmt: skip
    parser.add_argument(
        "--participant-label", nargs="+", type=label_of("sub-"), default=[], metavar="LABEL",
        help="participants to take, with or without sub- (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--session-label", nargs="+", type=label_of("ses-"), default=[], metavar="LABEL",
        help="sessions to take, with or without ses- (default: all)",
    )  # fmt: skip
    add_table_options(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="list every table read")
    return parser


def add_table_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that this command and the group level share."""
    parser.add_argument(
        "--participants", type=existing_path, metavar="TSV",
        help="table of participants (default: participants.tsv of the BIDS dataset)",
    )  # fmt: skip
    parser.add_argument(
        "--participants-columns", nargs="+", default=[], metavar="COLUMN",
        help="columns of that table to put before the regions",
    )  # fmt: skip
    parser.add_argument(
        "--pool-sessions", action="store_true",
        help="put sessions together, the first of each participant's (default: each session is a "
        "cohort of its own)",
    )  # fmt: skip
    parser.add_argument(
        "--select", nargs="+", default=[], metavar="KEY=VALUE",
        help="only results whose sidecar says so, such as Software.Version=0.2, where a folder "
        "holds results of several versions or settings",
    )  # fmt: skip
    parser.add_argument(
        "--allow-mixed", action="store_true",
        help="put results of several versions or settings into one table",
    )  # fmt: skip


def _run(options: argparse.Namespace) -> int:
    from lacuna_nipype.io.group_collect import (
        cohort_table,
        describe_cohort_table,
        join_columns,
        table_path,
        write_cohort_table,
    )
    from lacuna_nipype.io.group_results import parse_selection, shorten

    root: Path = options.derivatives
    selection = parse_selection(options.select)
    cohorts, everyone = _find_tables(options, selection)
    layout = options.output_layout
    source = options.participants or find_participants([root])
    joined = join_columns(source, options.participants_columns, layout=layout)
    folder: Path = options.output_dir or root / "phenotype"
    links = {"" if folder.is_relative_to(root) else root.name: root}
    parameters = {
        "Pattern": options.pattern or "*",
        "Select": selection,
        "AllowMixed": options.allow_mixed,
        "PoolSessions": options.pool_sessions,
        "ParticipantsColumns": list(options.participants_columns),
    }
    # All tables are read before the first is written.
    tables = [cohort_table(cohort, joined.table, layout=layout) for cohort in cohorts]
    for cohort, table in zip(cohorts, tables, strict=True):
        missing = sorted(everyone - set(cohort.participants))
        sidecar = describe_cohort_table(
            cohort, links=links, parameters=parameters, missing=missing,
            joined=joined.descriptions,
        )  # fmt: skip
        target = folder / Path(table_path(cohort.entities, layout=layout)).name
        write_cohort_table(target, table, sidecar)
        sys.stdout.write(f"{target.name}: {count(len(cohort.files), 'participant')}\n")
        if missing:
            sys.stdout.write(f"  Note: no such table of {shorten(missing)}\n")
        if options.verbose:
            sys.stdout.writelines(f"  {path}\n" for path in cohort.paths)
    return end(OK, f"{count(len(cohorts), 'table')} in {folder}")


def _find_tables(
    options: argparse.Namespace, selection: dict[str, str]
) -> tuple[list[Cohort], set[str]]:
    """Find the tables to put together, and all participants of the folder."""
    from lacuna_nipype.core.exceptions import BidsError
    from lacuna_nipype.io.group_results import find_results, group_cohorts, settle_parameters

    root = options.derivatives
    results = [
        result
        for result in find_results(
            [root], participants=options.participant_label, sessions=options.session_label
        )
        if result.entities["suffix"] == "parcelstats"
    ]
    chosen = [result for result in results if result.fits(options.pattern)]
    cohorts = [
        settle_parameters(cohort, selection=selection, allow_mixed=options.allow_mixed)
        for cohort in group_cohorts(chosen, pool_sessions=options.pool_sessions)
    ]
    cohorts = [cohort for cohort in cohorts if cohort.files]
    if not cohorts:
        seen = f"; there are {len(results)}, such as {results[0].path.name}" if results else ""
        raise BidsError(f"No parcel table (*_parcelstats.tsv) of {root} fits{seen}.")
    return cohorts, {result.participant for result in results}


def find_participants(roots: Sequence[Path]) -> Path | None:
    """Find the table of participants: in a dataset, or in the one that it was made of.

    Parameters
    ----------
    roots : sequence of Path
        Datasets, in the order in which they are looked at.

    Returns
    -------
    Path or None
    """
    from lacuna_nipype.io.derivatives import dataset_links, read_description

    places = list(roots)
    for root in roots:
        raw = dataset_links(read_description(root)).get("raw")
        if raw is not None:
            places.append(root / raw)
    tables = (place / "participants.tsv" for place in places)
    return next((table for table in tables if table.is_file()), None)
