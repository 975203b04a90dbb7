"""``lacuna-nipype connectome COMMAND``: make connectomes, look at them, and give them names."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lacuna_nipype.cli import images, prepare, registered
from lacuna_nipype.cli.arguments import (
    Parser,
    absolute_path,
    natural_number,
    positive_integer,
    positive_number,
)
from lacuna_nipype.cli.ending import SOME_FAILED, Codes, run_command
from lacuna_nipype.cli.terminal import COMPUTATIONS, Progress, print_lines, show_log


@dataclass(frozen=True)
class Subcommand:
    """One word after ``connectome``.

    Parameters
    ----------
    summary : str
        Line in the list of commands.
    add_arguments : callable
        Fills the command's parser.
    run : callable
        Takes the parsed arguments, prints the result.
    """

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str
        Arguments after ``connectome``.

    Returns
    -------
    int
        Exit code: 0; 1 when some files failed and others are finished; 2 for wrong arguments or
        input; 130 when interrupted.
    """
    return run_command(
        lambda: _parser().parse_args(argv),
        _run,
        codes=_codes,
        interrupted="Interrupted; finished files are kept, run the same command again to "
        "continue.",
    )


def _run(options: argparse.Namespace) -> None:
    show_log(COMPUTATIONS)
    # What a batch system sends shall clean up like Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        COMMANDS[options.command].run(options)
    finally:
        signal.signal(signal.SIGTERM, before)


def _codes() -> Codes:
    from lacuna_nipype.connectomes.ingest import IncompleteError

    return {IncompleteError: SOME_FAILED}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lacuna-nipype connectome",
        description="Make connectomes that runs can stream, look at connectomes, and give them "
        "names.",
        allow_abbrev=False,
    )
    words = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(
            words.add_parser(
                name, help=command.summary, description=command.summary, allow_abbrev=False
            )
        )
    return parser


def _add_store_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--compact", action="store_true",
        help="8 bits per coefficient: half the size and read time, a coarser result",
    )  # fmt: skip
    parser.add_argument(
        "--nprocs", type=positive_integer, metavar="N",
        help="files written at the same time (default: what processors and memory allow)",
    )  # fmt: skip


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "connectome", metavar="CONNECTOME", type=registered.connectome_location,
        help="functional: HDF5 file or folder of HDF5 files in Lacuna's layout (a store with "
        "--to-lacuna); structural: tractogram (.tck, .trk, .trk.gz, .trx, "
        ".tt.gz), or streamline index; or the name of a registered one",
    )  # fmt: skip
    parser.add_argument(
        "out", metavar="OUT", type=absolute_path,
        help="functional: folder to write to; structural: .tck file to write",
    )  # fmt: skip
    parser.add_argument(
        "--space", metavar="SPACE", help="space of the connectome, where its files do not say"
    )
    parser.add_argument(
        "--overwrite", action="store_true",
        help="replace files of other content in the folder OUT, or the file OUT",
    )  # fmt: skip
    functional = parser.add_argument_group("functional connectomes")
    functional.add_argument(
        "--to-lacuna", action="store_true",
        help="from the store back to Lacuna's layout, as synthetic series that correlate like "
        "the originals",
    )  # fmt: skip
    _add_store_options(functional)
    structural = parser.add_argument_group("tractograms")
    structural.add_argument(
        "--step-size", type=_millimetres, metavar="MM",
        help="distance between points, for which streamlines are resampled where they have "
        "another (default: keep regular points as they are; irregular ones get the median "
        "distance, from 0.1 to 1 mm)",
    )  # fmt: skip
    structural.add_argument(
        "--resolution", type=_millimetres, metavar="MM",
        help="voxel size of the maps that an index is for (default: 2)",
    )  # fmt: skip


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=absolute_path, help="folder to write to")
    images.add_arguments(parser)
    parser.add_argument(
        "--layout", choices=("store", "lacuna"), default="store",
        help="the package's store, or Lacuna's HDF5 layout (default: store)",
    )  # fmt: skip
    parser.add_argument(
        "--subjects-per-file", type=positive_integer, default=10, metavar="N", help="(default: 10)"
    )
    _add_store_options(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files of other content in OUT"
    )
    _add_cleaning(parser.add_argument_group("cleaning"))


def _add_cleaning(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--detrend", type=natural_number, metavar="ORDER",
        help="remove a polynomial trend: 0 the mean, 1 a line, 2 a parabola",
    )  # fmt: skip
    group.add_argument(
        "--remove-global-signal", action="store_true", help="regress the brain's mean series out"
    )
    group.add_argument(
        "--standardize", action="store_true", help="scale each series to unit variance"
    )
    group.add_argument(
        "--confounds", nargs="+", default=[], metavar="COLUMN",
        help="regress out columns of the images' desc-confounds_timeseries.tsv, by name or "
        "pattern ('a_comp_cor_0?')",
    )  # fmt: skip
    for flag, what in (("high", "slower"), ("low", "faster")):
        group.add_argument(
            f"--{flag}-pass", type=positive_number("Hz"), metavar="HZ",
            help=f"remove what is {what} (Butterworth, fifth order, both ways)",
        )  # fmt: skip
    group.add_argument(
        "--repetition-time", type=positive_number("seconds"), metavar="SECONDS",
        help="between volumes, for filters (default: what the images or their JSON files say)",
    )  # fmt: skip


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "connectome", metavar="NAME|PATH", type=registered.connectome_location,
        help="HDF5 file, folder of HDF5 files, tractogram (.tck, .trk, .trk.gz, .trx, "
        ".tt.gz), or streamline index; or the name of a registered one",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--check-data", action="store_true",
        help="read everything: count series that are not finite or constant, find duplicates, "
        "count streamlines",
    )  # fmt: skip


_millimetres = positive_number("mm")


def _resources(options: argparse.Namespace) -> dict[str, Any]:
    """Processors, and memory as a limit where the user did not choose a number of processes."""
    from lacuna_nipype.execution.resources import available_memory_gb, available_processors

    if options.nprocs:
        return {"n_procs": options.nprocs}
    return {"n_procs": available_processors(), "memory_gb": available_memory_gb()}


def _convert(options: argparse.Namespace) -> None:
    """Convert what is there: a tractogram, or a functional connectome."""
    from lacuna_nipype.connectomes.registry import registered_space
    from lacuna_nipype.connectomes.tractogram_formats import tractogram_suffix

    is_tractogram = tractogram_suffix(options.connectome) is not None
    _refuse_flags(options, is_tractogram)
    options.space = options.space or registered_space(options.connectome)
    if is_tractogram:
        _convert_tractogram(options)
    else:
        _convert_functional(options)


def _refuse_flags(options: argparse.Namespace, is_tractogram: bool) -> None:
    """Refuse what only another kind of connectome, or of result, has."""
    from lacuna_nipype.core.exceptions import ValidationError

    functional = {"--to-lacuna": options.to_lacuna, "--compact": options.compact}
    to_tck = {"--step-size": options.step_size is not None}
    to_index = {"--resolution": options.resolution is not None}
    threads = {"--nprocs": options.nprocs is not None}
    if not is_tractogram:
        kind, foreign = "a functional connectome", {**to_tck, **to_index}
    elif options.out.suffix == ".h5":
        kind, foreign = "to be indexed", {**functional, **to_tck}
    else:
        kind, foreign = "a tractogram", {**functional, **to_index, **threads}
    for flag, given in foreign.items():
        if given:
            raise ValidationError(f"{options.connectome} is {kind}; leave {flag} out.")


def _convert_tractogram(options: argparse.Namespace) -> None:
    from lacuna_nipype.core.exceptions import ValidationError

    convert = _TRACTOGRAM_TARGETS.get(options.out.suffix)
    if convert is None:
        names = " or ".join(_TRACTOGRAM_TARGETS)
        raise ValidationError(
            f"{options.out} does not end in {names}, which is what a tractogram is converted to."
        )
    convert(options)


def _convert_to_tck(options: argparse.Namespace) -> None:
    from lacuna_nipype.connectomes.conversion import check_trk_header
    from lacuna_nipype.connectomes.tractogram_check import check_placement, share_outside_brain
    from lacuna_nipype.connectomes.tractogram_convert import convert_tractogram

    check_trk_header(options.connectome)
    # Before gigabytes are written; and once more below, for the whole instead of its beginning.
    check_placement(options.connectome)
    with Progress("Streamlines converted:", "streamline") as progress:
        record = convert_tractogram(
            options.connectome, options.out, step_size=options.step_size, space=options.space,
            overwrite=options.overwrite, progress=progress,
        )  # fmt: skip
    (source,) = record.sources
    measured = f"{source.measured_step_size:.4g} mm measured"
    if not source.regular:
        measured += ", irregular"
    done = "streamlines were resampled" if source.resampled else "points are as they were"
    print_lines(
        f"Streamlines: {record.n_streamlines} ({record.n_empty} empty, {record.n_one_point} of "
        "one point)",
        f"Step: {record.step_size:.4g} mm ({measured}; {done})",
        f"Space: {record.space or 'not known; give --space, or --structural-space in a run'}",
        f"Outside the brain: {100 * share_outside_brain(record.target):.2g} % of the vertices",
        f"Tractogram: {record.target}",
    )


def _convert_to_index(options: argparse.Namespace) -> None:
    from lacuna_nipype.cli.structural import open_tractogram
    from lacuna_nipype.connectomes.streamline_counts import check_count
    from lacuna_nipype.connectomes.streamline_index import write_index
    from lacuna_nipype.connectomes.tractogram_check import check_placement
    from lacuna_nipype.core.exceptions import ValidationError
    from lacuna_nipype.core.spaces import template_grid
    from lacuna_nipype.execution.resources import available_processors

    if options.connectome.suffix != ".tck":
        raise ValidationError(
            f"Only a .tck file is indexed, because its points are read later too; convert "
            f"{options.connectome} to .tck first."
        )
    if options.out.exists() and not options.overwrite:
        raise ValidationError(f"{options.out} exists; add --overwrite to replace it.")
    resolution = options.resolution or 2.0
    tractogram = open_tractogram(options.connectome, options.space, resolution)
    check_count(options.connectome)
    outside = check_placement(options.connectome)
    if tractogram.remark:
        print_lines(tractogram.remark)
    with Progress("Bytes indexed:", "byte") as progress:
        record = write_index(
            options.connectome, options.out, grid=template_grid(tractogram.space, resolution),
            space=tractogram.space, upsample=tractogram.upsample,
            n_threads=options.nprocs or available_processors(), progress=progress,
        )  # fmt: skip
    size, before = options.out.stat().st_size, options.connectome.stat().st_size
    print_lines(
        f"Streamlines: {record.n_streamlines} ({record.n_empty} empty, {record.n_one_point} of "
        "one point)",
        f"Grid of the maps: {record.grid.describe()}, {record.space}",
        f"Outside the brain: {100 * outside:.2g} % of the vertices",
        f"Size: {size / 1e6:.1f} MB, {100 * size / before:.0f} % of the tractogram, which stays "
        "in use",
        f"Index: {options.out}",
    )


# What a tractogram can be converted to, by the suffix of OUT.
_TRACTOGRAM_TARGETS: dict[str, Callable[[argparse.Namespace], None]] = {
    ".tck": _convert_to_tck,
    ".h5": _convert_to_index,
}


def _convert_functional(options: argparse.Namespace) -> None:
    from lacuna_nipype.connectomes.convert import convert_connectome, store_to_lacuna
    from lacuna_nipype.connectomes.inspection import inspect_connectome
    from lacuna_nipype.core.exceptions import ValidationError

    common = {
        "overwrite": options.overwrite, "space": options.space, **_resources(options)
    }  # fmt: skip
    with Progress("Subjects converted:", "subject") as progress:
        if options.to_lacuna:
            if options.compact:
                raise ValidationError("--compact is for the store; leave it out with --to-lacuna.")
            store_to_lacuna(options.connectome, options.out, progress=progress, **common)
        else:
            kind = "int8" if options.compact else "int16"
            convert_connectome(
                options.connectome, options.out, kind=kind, progress=progress, **common
            )
    before, after = inspect_connectome(options.connectome), inspect_connectome(options.out)
    store = before if options.to_lacuna else after
    print_lines(
        f"Before: {_size(before)}",
        f"After:  {_size(after)}",
        _precision(store),
        f"{'Connectome' if options.to_lacuna else 'Store'}: {options.out}",
    )


def _build(options: argparse.Namespace) -> None:
    from lacuna_nipype.connectomes.build import build_connectome
    from lacuna_nipype.connectomes.inspection import inspect_connectome
    from lacuna_nipype.core.exceptions import ValidationError

    filtered = options.high_pass or options.low_pass
    if options.repetition_time and not filtered:
        raise ValidationError("--repetition-time is for filters; leave it out.")
    inputs = images.gather(options)
    with Progress("Subjects read:", "subject") as progress:
        build_connectome(
            inputs.images,
            inputs.mask,
            options.out,
            space=options.space,
            layout=options.layout,
            kind="int8" if options.compact else "int16",
            subjects_per_file=options.subjects_per_file,
            detrend=options.detrend,
            remove_global_signal=options.remove_global_signal,
            standardize=options.standardize,
            confounds=options.confounds,
            confounds_tables=inputs.confounds_tables,
            high_pass=options.high_pass,
            low_pass=options.low_pass,
            repetition_time=options.repetition_time,
            overwrite=options.overwrite,
            progress=progress,
            **_resources(options),
        )
    found = inspect_connectome(options.out)
    lines = [f"Written: {_size(found)}"]
    if filtered:
        # Shown because headers often hold a placeholder.
        lines.append(f"Repetition time: {_repetition_times(options, inputs)} s")
    if found["Layout"] == "store":
        lines.append(_precision(found))
    print_lines(*lines, f"Connectome: {options.out}")


def _repetition_times(options: argparse.Namespace, inputs: images.BuildInputs) -> str:
    from lacuna_nipype.connectomes.confounds import read_repetition_time

    if options.repetition_time:
        return f"{options.repetition_time:g}"
    times = {round(read_repetition_time(path), 4) for path in inputs.images}
    return " and ".join(f"{seconds:g}" for seconds in sorted(times))


def _info(options: argparse.Namespace) -> None:
    from lacuna_nipype.connectomes.inspection import inspect_connectome

    with Progress("Checked:", "piece") as progress:
        found = inspect_connectome(
            options.connectome, check_data=options.check_data, progress=progress
        )
    registration = registered.describe_registration(options.connectome)
    if registration is not None:
        found["Registered"] = registration
    if options.json:
        print_lines(json.dumps(found, indent=2, allow_nan=False))
    else:
        print_lines(*_table({"Connectome": str(options.connectome), **found}))


def _size(found: dict[str, Any]) -> str:
    files = f"{found['NumberOfFiles']} file{'s'[: found['NumberOfFiles'] != 1]}"
    return f"{files}, {found['NumberOfSubjects']} subjects, {_amount(found['Bytes'])}"


def _amount(n_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} bytes"


def _precision(store: dict[str, Any]) -> str:
    lengths = " and ".join(map(str, store["NumberOfTimePoints"]))
    constant = store["ConstantVoxelsMaximum"]
    remark = f"; up to {constant} constant voxels in a subject" if constant else ""
    return (
        f"Precision: {' and '.join(store['CoefficientType'])}, {store['RankMaximum']} "
        f"coefficients per voxel for {lengths} time points; largest error of a correlation "
        f"{store['CorrelationErrorMaximum']:.2g} (measured on a sample of each subject's "
        f"voxels){remark}"
    )


def _table(found: dict[str, Any], indent: str = "") -> list[str]:
    """Lines of ``key: value``, aligned; lists of text and tables go below their key."""
    width = max(len(key) for key in found) + 1
    lines = []
    for key, value in found.items():
        start = f"{indent}{key + ':':<{width}}"
        if isinstance(value, dict):
            lines += [start.rstrip(), *_table(value, indent + "  ")]
        elif isinstance(value, int) and (key == "Bytes" or key.startswith("int")):
            lines.append(f"{start} {value} ({_amount(value)})")
        elif isinstance(value, list) and any(isinstance(v, (str, list)) for v in value):
            texts = [v if isinstance(v, str) else " = ".join(v) for v in value]
            lines += [f"{start} {texts[0]}", *(f"{indent}{'':<{width}} {t}" for t in texts[1:])]
        elif isinstance(value, list):
            lines.append(f"{start} {', '.join(f'{v:g}' for v in value) or 'none'}")
        elif isinstance(value, float):
            lines.append(f"{start} {value:.4g}")
        else:
            lines.append(f"{start} {'unknown' if value is None else value}")
    return lines


COMMANDS = {
    "convert": Subcommand(
        "turn Lacuna's files into the store, or back, and tractograms into .tck",
        _add_convert,
        _convert,
    ),
    "build": Subcommand("make a connectome from 4D images and a brain mask", _add_build, _build),
    "prepare": Subcommand(prepare.SUMMARY, prepare.add_arguments, prepare.run),
    "info": Subcommand("say what a connectome holds and how exact it is", _add_info, _info),
    "register": Subcommand(
        registered.REGISTER_SUMMARY, registered.add_register, registered.register
    ),
    "unregister": Subcommand(
        registered.UNREGISTER_SUMMARY, registered.add_unregister, registered.unregister
    ),
    "list": Subcommand(registered.LIST_SUMMARY, registered.add_list, registered.list_all),
}
