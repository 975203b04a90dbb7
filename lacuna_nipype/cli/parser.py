"""Arguments of ``lacuna-nipype BIDS_DIR OUT_DIR {participant,group}``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from lacuna_nipype import __version__
from lacuna_nipype.cli.arguments import (
    Parser,
    absolute_path,
    existing_path,
    label_of,
    memory_size,
    named_path,
    number_between,
    positive_integer,
)
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.group_options import (
    add_group_options,
    find_group_problem,
    take_group_options,
)
from lacuna_nipype.cli.plugins import (
    find_argument_problem,
    json_object,
    merge_plugin,
    plugin_file,
    plugin_name,
)
from lacuna_nipype.cli.registered import connectome_location
from lacuna_nipype.cli.submit import PROCESSORS, TASK_PROCESSORS, WAYS, part_name

ANALYSES = ("rd", "fnm", "snm", "afnm")
LESION = "lesion"  # the masks themselves, at the group level
AFNM_WEIGHTINGS = ("fractional", "binary", "voxel_count")

DESCRIPTION = """\
Lesion network mapping: which regions a lesion hits (rd), which functional network
it is connected to (fnm, and afnm by regions), which connections it cuts (snm)."""

EPILOG = """\
other commands:
  lacuna-nipype tutorial DIR    write a demonstration dataset and the command to run on it
  lacuna-nipype fetch NAME      download, convert and register a public connectome
  lacuna-nipype atlas {list,show,regions,spaces,fetch,register,unregister,bundle,info} ...
                                find atlases, and give your own a name
  lacuna-nipype bidsify IN OUT --space SPACE
                                make a BIDS dataset of a folder of masks
  lacuna-nipype collect DERIV   put the parcel tables of all participants side by side
  lacuna-nipype check input BIDS_DIR
                                list what is in the masks, and what is wrong with them
  lacuna-nipype check output BIDS_DIR OUT_DIR
                                list the results that are missing, and the command for them
  lacuna-nipype connectome {convert,build,prepare,info} ...
                                make connectomes that stream fast, and look at connectomes
  lacuna-nipype connectome {register,unregister,list} ...
                                give connectomes names, which take the place of paths

exit codes:
  0 all done   1 some participant or step failed   2 usage   70 the graph could not be built
  127 an external program is missing   130 interrupted (Ctrl-C)"""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser; light enough for ``--help`` on any login node."""
    parser = Parser(
        prog="lacuna-nipype",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "bids_dir",
        type=existing_path,
        help="BIDS dataset with lesion masks, or a single NIfTI mask",
    )
    parser.add_argument("output_dir", type=absolute_path, help="folder for the derivatives")
    parser.add_argument(
        "analysis_level", choices=["participant", "group"],
        help="each participant on its own, or the results of all together",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"lacuna-nipype {__version__}")
    add_mask_options(parser.add_argument_group("Options for choosing masks"))
    _add_analysis_options(parser.add_argument_group("Options for analyses"))
    _add_functional_options(parser.add_argument_group("Options for functional network maps"))
    _add_structural_options(parser.add_argument_group("Options for structural disconnection"))
    add_group_options(parser.add_argument_group("Options for the group level"))
    _add_run_options(parser.add_argument_group("Options for running"))
    return parser


def add_mask_options(group: argparse._ArgumentGroup) -> None:
    """Add what chooses masks, and says in which space they are."""
    group.add_argument(
        "--participant-label", nargs="+", type=label_of("sub-"), default=[], metavar="LABEL",
        help="participants to process, with or without sub- (default: all)",
    )  # fmt: skip
    group.add_argument(
        "--session-label", nargs="+", type=label_of("ses-"), default=[], metavar="LABEL",
        help="sessions to process, with or without ses- (default: all)",
    )  # fmt: skip
    group.add_argument(
        "-d", "--derivatives", nargs="+", type=named_path, default=[], metavar="[NAME=]PATH",
        help="derivatives datasets to look for masks and atlases in",
    )  # fmt: skip
    group.add_argument(
        "--pattern", metavar="GLOB", help="only masks whose file name fits, such as '*acute*'"
    )
    group.add_argument(
        "--bids-filter-file", type=existing_path, metavar="FILE",
        help='JSON with entities of the masks under the key "lesion"',
    )  # fmt: skip
    group.add_argument(
        "--mask-space", metavar="SPACE",
        help="standard space of the masks where names and sidecars do not say, or say it wrongly",
    )  # fmt: skip
    group.add_argument(
        "--xfm", metavar="FILE",
        help="transform of masks in the participant's own space to a standard space, where the "
        "derivatives hold none; {subject} and {session} stand for labels",
    )  # fmt: skip
    group.add_argument(
        "--xfm-space", metavar="SPACE",
        help="standard space that --xfm leads to, where its name does not say (_to-SPACE_)",
    )  # fmt: skip
    group.add_argument(
        "--on-empty", choices=["warn", "skip", "error"], default="warn",
        help="masks without a voxel in the brain: zeros and a warning, leave out, or fail "
        "(default: warn)",
    )  # fmt: skip


def _add_analysis_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--analysis", nargs="+", choices=(*ANALYSES, LESION), default=[],
        metavar="{rd,fnm,snm,afnm}",
        help="what to compute (default: every analysis whose inputs are given); at the group "
        "level what to put together, lesion for the masks (default: all results)",
    )  # fmt: skip
    group.add_argument(
        "--functional-connectome", type=connectome_location, metavar="NAME|PATH",
        help="HDF5 file, or folder of HDF5 files, of a normative resting-state connectome; or "
        "the name of one in 'connectome list'",
    )  # fmt: skip
    group.add_argument(
        "--structural-connectome", type=connectome_location, metavar="NAME|PATH",
        help="normative tractogram: .tck, .trk, .trk.gz, .trx or .tt.gz, or its index (.h5); or "
        "the name of one in 'connectome list'",
    )  # fmt: skip
    group.add_argument(
        "--connectivity-matrix", type=existing_path, metavar="PATH",
        help="parcel-by-parcel matrix of z, from 'connectome prepare', for afnm",
    )  # fmt: skip
    group.add_argument(
        "--functional-space", metavar="SPACE", help="its space, where the files do not say"
    )
    group.add_argument(
        "--structural-space", metavar="SPACE", help="its space, where its JSON does not say"
    )
    group.add_argument(
        "--parcel-atlases", nargs="+", default=[], metavar="ATLAS",
        help="ids of atlases: registered ones, those that a dataset carries (tpl-* folders), or "
        "TemplateFlow's, such as schaefer2018parcels100networks7; see 'atlas list'",
    )  # fmt: skip
    group.add_argument(
        "--datasets", nargs="+", type=named_path, default=[], metavar="[NAME=]PATH",
        help="BIDS datasets of atlases, with tpl-* folders",
    )  # fmt: skip
    group.add_argument(
        "--custom-parcellation", nargs=4, action="append", default=[],
        metavar=("NAME", "NIFTI", "LABELS", "SPACE"),
        help="an atlas of your own; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--output-resolution", type=float, choices=[1.0, 2.0], metavar="{1,2}",
        help="voxel size of the maps in mm (default: the connectome's; 2 for snm)",
    )  # fmt: skip
    group.add_argument(
        "--no-return-input-space", action="store_false", dest="return_input_space",
        help="leave maps in the connectome's space instead of the mask's",
    )  # fmt: skip


def _add_functional_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--fnm-method", choices=["boes", "pini"], default="boes",
        help="seed: all voxels of the lesion, or those that represent it best (default: boes)",
    )  # fmt: skip
    group.add_argument(
        "--pini-percentile", type=number_between(0, 100), default=20.0, metavar="P",
        help="per cent of the lesion's voxels that pini leaves out (default: 20)",
    )  # fmt: skip
    group.add_argument(
        "--fdr-alpha", type=number_between(0, 1), default=0.05, metavar="ALPHA",
        help="false discovery rate below which voxels are marked (default: 0.05)",
    )  # fmt: skip
    group.add_argument(
        "--t-threshold", type=number_between(0, 1e6), metavar="T",
        help="also mark the voxels whose t is larger in size",
    )  # fmt: skip
    group.add_argument(
        "--afnm-weighting", choices=AFNM_WEIGHTINGS, default="fractional",
        help="weight of a region that the lesion touches: 1 / number of regions touched, 1, or "
        "the fraction of the region that is covered (default: fractional)",
    )  # fmt: skip
    group.add_argument(
        "--no-p-map", action="store_false", dest="p_map",
        help="leave out the maps of p, of the false discovery rate, and of its threshold",
    )  # fmt: skip
    group.add_argument(
        "--verify", type=positive_integer, default=0, metavar="N",
        help="recompute N random voxels of each map from the source series, the slow way",
    )  # fmt: skip


def _add_structural_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--snm-engine", choices=["mrtrix", "index"],
        help="MRtrix commands, or an index of all streamlines, which is made first and answers "
        "for hundreds of lesions at once; results are the same (default: mrtrix for a few "
        "lesions where MRtrix3 is installed, else index)",
    )  # fmt: skip
    group.add_argument(
        "--hit-test", choices=["vertices", "segments"], default="vertices",
        help="a streamline is cut if a stored point lies in the lesion, as MRtrix has it, or if "
        "any part of its path does (index only; default: vertices)",
    )  # fmt: skip
    group.add_argument(
        "--compute-disconnectivity-matrix", action="store_true",
        help="streamlines between the regions of every atlas: all, cut, spared, per cent cut",
    )  # fmt: skip
    group.add_argument(
        "--compute-roi-disconnection", action="store_true",
        help="per cent of every region's streamlines to other regions that are cut",
    )  # fmt: skip
    group.add_argument(
        "--streamline-weights", type=existing_path, metavar="FILE",
        help="text with one weight per streamline, such as tcksift2 writes",
    )  # fmt: skip
    group.add_argument(
        "--streamline-groups", type=existing_path, metavar="TSV",
        help="table with the columns streamline (from 0) and bundle: per cent of every bundle "
        "that is cut",
    )  # fmt: skip
    group.add_argument(
        "--keep-intermediate", action="store_true",
        help="store the lesion's streamlines (.tck) and their density too",
    )  # fmt: skip


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--plugin", type=plugin_name, default="MultiProc", metavar="{Linear,MultiProc,SLURM}",
        help="how nipype runs the steps: one after another, several at once, or as jobs of a "
        "cluster; other plugins of nipype may do (default: MultiProc)",
    )  # fmt: skip
    group.add_argument(
        "--plugin-args", type=json_object, default={}, metavar="JSON",
        help='arguments of the plugin, such as \'{"sbatch_args": "--account=lab", "template": '
        '"modules.sh", "max_jobs": 50}\'',
    )  # fmt: skip
    group.add_argument(
        "--use-plugin", type=plugin_file, metavar="FILE",
        help="YAML with plugin and plugin_args, in place of the two flags",
    )  # fmt: skip
    group.add_argument(
        "--submit", choices=WAYS,
        help="hand the run to SLURM and leave: an array of jobs for the pass over the functional "
        "connectome, and one job after it for everything else; with --dry-run the scripts are "
        "only printed",
    )  # fmt: skip
    group.add_argument(
        "--array-size", type=positive_integer, metavar="N",
        help="tasks of that array (default: one for each file of the connectome)",
    )  # fmt: skip
    group.add_argument("--submit-part", type=part_name, help=argparse.SUPPRESS)
    group.add_argument(
        "--nprocs", "--nthreads", "--n-cpus", type=positive_integer, metavar="N",
        help="processors to use (default: all that are allowed)",
    )  # fmt: skip
    group.add_argument(
        "--omp-nthreads", type=positive_integer, metavar="N",
        help="threads of one step (default: processors shared out over connectome files; with "
        f"SLURM {TASK_PROCESSORS})",
    )  # fmt: skip
    group.add_argument(
        "--mem", "--mem-mb", type=memory_size, metavar="SIZE", dest="memory_gb",
        help="memory to stay under, as 16G; a bare number is MB; with SLURM, of a job (default: "
        "90 %% of what is free; with SLURM what each step needs)",
    )  # fmt: skip
    group.add_argument(
        "-w", "--work-dir", type=absolute_path, default=absolute_path("work"), metavar="DIR",
        help="intermediate results; run again with the same folder to continue (default: ./work)",
    )  # fmt: skip
    group.add_argument(
        "--overwrite", action="store_true",
        help="do again what an earlier run completed with the same inputs and options, and all "
        "finished steps in the work folder",
    )  # fmt: skip
    group.add_argument(
        "--dry-run", action="store_true", help="build the graph, list steps and outputs, run none"
    )
    group.add_argument(
        "--stop-on-first-crash", action="store_true", help="end the run at the first failing step"
    )
    group.add_argument(
        "--reports-only", action="store_true",
        help="write the pages (sub-*.html; of the group level group.html) again, from the results "
        "in the output folder, and run nothing",
    )  # fmt: skip
    group.add_argument(
        "--no-reports", action="store_false", dest="reports",
        help="write no pages; --reports-only makes them later",
    )  # fmt: skip
    group.add_argument(
        "-v", "--verbose", action="count", default=0, help="more log on the terminal; -vv for all"
    )


def parse_config(argv: Sequence[str]) -> RunConfig:
    """Parse and cross-check arguments.

    Parameters
    ----------
    argv : sequence of str
        Words after the command's name.

    Returns
    -------
    RunConfig

    Raises
    ------
    SystemExit
        With code 2 and one sentence, for a mistake in the arguments.
    """
    parser = build_parser()
    options = vars(parser.parse_args(argv))
    problem = (
        merge_plugin(options)
        or find_argument_problem(
            "SLURM" if options["submit"] else options["plugin"], options["plugin_args"]
        )
        or _find_problem(options)
    )
    if problem:
        parser.error(problem)
    _fill_resources(options)
    custom = [
        (name, absolute_path(image), absolute_path(labels), space)
        for name, image, labels, space in options.pop("custom_parcellation")
    ]
    lists = (
        "participant_label", "session_label", "derivatives", "datasets", "analysis",
        "parcel_atlases",
    )  # fmt: skip
    for key in lists:
        options[key] = tuple(dict.fromkeys(options[key]))
    group_level = take_group_options(options)
    return RunConfig(custom_parcellation=tuple(custom), group_level=group_level, **options)


def _fill_resources(options: dict) -> None:
    from lacuna_nipype.execution.resources import available_memory_gb, available_processors

    asked = options["plugin_args"]
    if options["submit"]:
        # What this machine has says nothing of those that the jobs will run on.
        options["nprocs"] = options["nprocs"] or max(PROCESSORS, options["omp_nthreads"] or 0)
        options["omp_nthreads"] = options["omp_nthreads"] or 0
        options["memory_gb"] = options["memory_gb"] or 0.0
        return
    options["nprocs"] = options["nprocs"] or asked.get("n_procs") or available_processors()
    options["omp_nthreads"] = options["omp_nthreads"] or 0
    memory_gb = options["memory_gb"] or asked.get("memory_gb")
    # As little does it say of the machines that run the steps of a cluster.
    free = 0.0 if options["plugin"] == "SLURM" else max(0.5, round(available_memory_gb(), 3))
    options["memory_gb"] = memory_gb or free
    # Flags win: the plugin gets what they say.
    options["plugin_args"] = {
        name: value for name, value in asked.items() if name not in ("n_procs", "memory_gb")
    }


def _find_problem(options: dict) -> str | None:
    """Say what is wrong between the arguments, or None."""
    bids_dir, output_dir, work_dir = (
        Path(os.path.realpath(options[key])) for key in ("bids_dir", "output_dir", "work_dir")
    )
    home = bids_dir if bids_dir.is_dir() else None
    if home and output_dir == home:
        return f"the output folder is the BIDS folder itself ({home}); choose another"
    if (
        home
        and output_dir.is_relative_to(home)
        and not output_dir.is_relative_to(home / "derivatives")
    ):
        return (
            f"the output folder {output_dir} lies inside the BIDS folder; choose one outside, "
            f"or {home / 'derivatives' / 'lacuna-nipype'}"
        )
    if home and work_dir.is_relative_to(home):
        return f"the work folder {work_dir} lies inside the BIDS folder; set another with -w"
    problem = _find_submit_problem(options)
    if problem:
        return problem
    if options["reports_only"]:
        return None if options["reports"] else "--reports-only contradicts --no-reports"
    if work_dir == output_dir or output_dir.is_relative_to(work_dir):
        return f"the work folder {work_dir} holds the output folder; set another with -w"
    problem = find_group_problem(options)
    if problem or options["analysis_level"] == "group":
        return problem
    asked = options["analysis"]
    if LESION in asked:
        return f"--analysis {LESION} is for the group level"
    atlases = options["parcel_atlases"] or options["custom_parcellation"]
    needs = {
        "rd": (atlases, "--parcel-atlases or --custom-parcellation"),
        "fnm": (options["functional_connectome"], "--functional-connectome"),
        "snm": (options["structural_connectome"], "--structural-connectome"),
        "afnm": (
            options["connectivity_matrix"] and atlases,
            "--connectivity-matrix and the atlas it was made with",
        ),
    }
    for analysis in asked:
        if not needs[analysis][0]:
            return f"--analysis {analysis} needs {needs[analysis][1]}"
    if not asked and not any(given for given, _ in needs.values()):
        return (
            "nothing to compute: give --parcel-atlases or --custom-parcellation (rd), "
            "--functional-connectome (fnm), --structural-connectome (snm), or "
            "--connectivity-matrix with an atlas (afnm)"
        )
    problem = _find_structural_problem(options, bool(atlases))
    if problem:
        return problem
    names = [words[0].lower() for words in options["custom_parcellation"]]
    if len(names) != len(set(names)):
        return "two --custom-parcellation have one name"
    names = [name for name, _ in dict.fromkeys(options["derivatives"])]
    if len(names) != len(set(names)):
        return "two --derivatives have one name; give names: --derivatives NAME=PATH NAME=PATH"
    return None


def _find_submit_problem(options: dict) -> str | None:
    """Say what contradicts handing the run over to jobs, or None."""
    if not options["submit"]:
        return "--array-size needs --submit slurm-array" if options["array_size"] else None
    if options["analysis_level"] == "group":
        return "--submit is for the participant level; the group level runs as it is"
    if options["reports_only"]:
        return "--submit contradicts --reports-only, which needs no jobs"
    if options["plugin"] not in ("MultiProc", "SLURM"):
        return f"--submit contradicts --plugin {options['plugin']}: its jobs run MultiProc"
    return None


def _find_structural_problem(options: dict, atlases: bool) -> str | None:
    """Say what is wrong between the arguments of structural disconnection, or None."""
    asked = [
        flag
        for flag in (
            "snm_engine", "streamline_weights", "streamline_groups", "keep_intermediate",
            "compute_disconnectivity_matrix", "compute_roi_disconnection",
        )
        if options[flag]
    ]  # fmt: skip
    named = f"--{asked[0].replace('_', '-')}" if asked else ""
    if asked and not options["structural_connectome"]:
        return f"{named} needs --structural-connectome"
    for flag in ("compute_disconnectivity_matrix", "compute_roi_disconnection"):
        if options[flag] and not atlases:
            return f"--{flag.replace('_', '-')} needs --parcel-atlases or --custom-parcellation"
    if options["hit_test"] == "segments" and options["snm_engine"] == "mrtrix":
        return "--hit-test segments needs --snm-engine index: MRtrix tests stored points only"
    return None
