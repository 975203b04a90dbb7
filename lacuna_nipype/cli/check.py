"""``lacuna-nipype check {input,output}``: masks before a run, results after it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from lacuna_nipype.cli.arguments import (
    Parser,
    absolute_path,
    existing_path,
    positive_integer,
)
from lacuna_nipype.cli.ending import OK, SOME_FAILED, end, run_command
from lacuna_nipype.cli.parser import add_mask_options
from lacuna_nipype.cli.terminal import COMPUTATIONS, Progress, count, show_log

if TYPE_CHECKING:
    from lacuna_nipype.io.checking import MaskCheck
    from lacuna_nipype.io.lesions import Inspection

_SHOWN = {
    "participant_id": "participant",
    "session_id": "session",
    "label": "label",
    "space": "space",
    "voxels": "voxels",
    "volume_ml": "ml",
    "hemisphere": "hemisphere",
    "left_pct": "left %",
    "brain_pct": "in brain %",
}
_NUMBERS = ("voxels", "volume_ml", "left_pct", "brain_pct", "warnings", "errors")


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str
        Arguments after ``check``.

    Returns
    -------
    int
        Exit code: 0 nothing to complain of; 1 masks that cannot be used, or missing results; 2
        for wrong arguments or a dataset without masks; 127 when an external program is missing;
        130 when interrupted.
    """
    return run_command(
        lambda: _parser().parse_args(argv), _run, interrupted="Interrupted; nothing was changed."
    )


def _run(options: argparse.Namespace) -> int:
    show_log(COMPUTATIONS)
    return RUN[options.what](options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lacuna-nipype check",
        description="Look at masks before a run, and for what is missing after it.",
        allow_abbrev=False,
    )
    words = parser.add_subparsers(dest="what", metavar="{input,output}", required=True)
    _add_input(words)
    _add_output(words)
    return parser


def _add_input(words: argparse._SubParsersAction) -> None:
    summary = "read every mask of a dataset and list what is in it and what is wrong with it"
    parser = words.add_parser("input", help=summary, description=summary, allow_abbrev=False)
    parser.add_argument(
        "bids_dir", metavar="BIDS_DIR", type=existing_path,
        help="BIDS dataset with lesion masks, or a single NIfTI mask",
    )  # fmt: skip
    add_mask_options(parser.add_argument_group("Options for choosing masks, as in a run"))
    group = parser.add_argument_group("Options for checking")
    group.add_argument(
        "--output-file", type=absolute_path, metavar="TSV",
        help="write the table, with all sentences, to a file too (replaced where it exists)",
    )  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="print errors and the last line only")
    group.add_argument(
        "--nprocs", "--nthreads", "--n-cpus", type=positive_integer, metavar="N",
        help="masks to read at the same time (default: all processors that are allowed)",
    )  # fmt: skip


def _add_output(words: argparse._SubParsersAction) -> None:
    summary = "list the results that a run did not write, and the command that makes them"
    parser = words.add_parser(
        "output",
        help=summary,
        description=f"{summary}. What a run was to write is taken from its own record in "
        "OUT_DIR/logs; run options, after the two folders, change or narrow it.",
        usage="lacuna-nipype check output [-h] BIDS_DIR OUT_DIR [run options]",
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", metavar="BIDS_DIR", type=existing_path, help="as in the run")
    parser.add_argument("output_dir", metavar="OUT_DIR", type=existing_path, help="as in the run")
    rest = parser.add_argument(
        "run_options", nargs=argparse.REMAINDER, metavar="run options",
        help="options of a participant run, such as --participant-label",
    )  # fmt: skip
    rest.required = False


# --- input ----------------------------------------------------------------------------------


def _check_input(options: argparse.Namespace) -> int:
    from lacuna_nipype.cli.inputs import collect_lesions, find_transforms
    from lacuna_nipype.core.brain import load_brain_mask
    from lacuna_nipype.core.files import write_table
    from lacuna_nipype.core.spaces import canonical_space
    from lacuna_nipype.execution.resources import available_processors
    from lacuna_nipype.io.checking import check_masks, check_table
    from lacuna_nipype.io.normalisation import is_native_space

    if options.mask_space is not None and not is_native_space(options.mask_space):
        canonical_space(options.mask_space)
    collection = collect_lesions(options)
    with Progress("Masks read:", "mask") as progress:
        checks = check_masks(
            collection.records,
            brain=load_brain_mask(),
            on_empty=options.on_empty,
            insist_on_space=options.mask_space is not None,
            normalise=find_transforms(options, collection, []),
            n_threads=options.nprocs or available_processors(),
            progress=None if options.quiet else progress,
        )
    if options.output_file is not None:
        write_table(options.output_file, check_table(checks))
    if not options.quiet:
        sys.stdout.write("\n".join(_input_table(checks)) + "\n")
        _print("Note", collection.notices)
        _print("Warning", [text for check in checks for text in check.warnings])
    _print("Error", [text for check in checks for text in check.errors])
    return _conclude(checks)


def _input_table(checks: Sequence[MaskCheck]) -> list[str]:
    """Lines of the table for the eye: numbers of warnings and errors in place of sentences."""
    from lacuna_nipype.io.checking import check_table

    table = check_table(checks).astype(object)
    table = table.where(table.notna(), None)
    shown = {name: table[name].tolist() for name in _SHOWN}
    if not any(check.record.session for check in checks):
        del shown["session_id"]
    cells = {
        _SHOWN[name]: [_cell(name, value) for value in values] for name, values in shown.items()
    }
    cells["warnings"] = [str(len(check.warnings) or "") for check in checks]
    cells["errors"] = [str(len(check.errors) or "") for check in checks]
    columns = []
    for header, values in cells.items():
        width = max(len(text) for text in (header, *values))
        right = header in {_SHOWN.get(name, name) for name in _NUMBERS}
        columns.append([f"{t:>{width}}" if right else f"{t:<{width}}" for t in (header, *values)])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def _cell(name: str, value: object) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:.2f}" if name == "volume_ml" else f"{value:.1f}"
    return str(value)


def _conclude(checks: Sequence[MaskCheck]) -> int:
    refused = [check for check in checks if check.errors]
    n_warnings = sum(len(check.warnings) for check in checks)
    warned = f" ({count(n_warnings, 'warning')})" if n_warnings else ""
    if not refused:
        which = "The mask" if len(checks) == 1 else f"All {len(checks)} masks"
        return end(OK, f"{which} can be used{warned}.")
    return end(
        SOME_FAILED,
        f"{len(refused)} of {count(len(checks), 'mask')} cannot be used{warned}; the first: "
        f"{refused[0].errors[0]}",
    )


# --- output ---------------------------------------------------------------------------------


def _check_output(options: argparse.Namespace) -> int:
    from lacuna_nipype.cli.inputs import gather_inputs
    from lacuna_nipype.cli.record import (
        command_words,
        find_missing,
        find_missing_atlases,
        read_record,
        recorded_config,
    )

    places = (options.bids_dir, options.output_dir)
    record = read_record(options.output_dir)
    config = recorded_config(record, *places, options.run_options)
    inputs = gather_inputs(config)
    gaps = find_missing(options.output_dir, inputs)
    atlases = find_missing_atlases(options.output_dir, inputs)
    _print("Error", inputs.inspection.refused.values())
    for gap in gaps:
        sys.stdout.write(f"{gap.describe()}\n")
    if atlases:
        files = count(len(atlases), "file")
        sys.stdout.write(f"atlases: {files} missing, such as {atlases[0]}\n")
    if gaps or atlases:
        # Any run writes the atlases.
        labels = sorted({gap.lesion.record.subject for gap in gaps}) or config.participant_label
        again = command_words({**config.to_dict(), "participant_label": list(labels)})
        words = ["lacuna-nipype", *map(str, places), "participant", *again]
        sys.stdout.write(f"To make what is missing:\n  {shlex.join(words)}\n")
    return _conclude_output(inputs.inspection, len(gaps), len(atlases), record.run)


def _conclude_output(inspection: Inspection, n_gaps: int, n_atlas_files: int, run: str) -> int:
    lesions = count(len(inspection.lesions), "lesion")
    problems = []
    if n_gaps:
        problems.append(f"{n_gaps} of {lesions} lack results of the run {run}")
    if n_atlas_files:
        problems.append(f"its atlases lack {count(n_atlas_files, 'file')}")
    if inspection.refused:
        problems.append(f"{count(len(inspection.refused), 'mask')} cannot be used (see above)")
    if problems:
        return end(SOME_FAILED, f"{'; '.join(problems)}.")
    return end(OK, f"All results of {lesions} of the run {run} are there.")


def _print(kind: str, sentences: Iterable[str]) -> None:
    for text in sentences:
        sys.stdout.write(f"{kind}: {text}\n")


RUN: dict[str, Callable[[argparse.Namespace], int]] = {
    "input": _check_input,
    "output": _check_output,
}
