"""The group level: find results, say what is to be made of them, build, run, report."""

from __future__ import annotations

import math
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype import __version__
from lacuna_nipype.cli.claims import own_work_folder
from lacuna_nipype.cli.collect import find_participants
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.ending import (
    NOT_BUILT,
    OK,
    SOME_FAILED,
    describe_os_error,
    end,
    end_with,
)
from lacuna_nipype.cli.group_options import GroupOptions
from lacuna_nipype.cli.terminal import count, logger, say
from lacuna_nipype.core.exceptions import (
    BidsError,
    LacunaError,
    ValidationError,
)
from lacuna_nipype.io.derivatives import bids_uri
from lacuna_nipype.io.group_association import (
    SPARSE,
    TESTED_MAPS,
    TESTED_TABLES,
    lesion_volumes,
    minimum_count,
)
from lacuna_nipype.io.group_collect import describe_cohort_table, identification, join_columns
from lacuna_nipype.io.group_maps import common_grid, overlap_maps
from lacuna_nipype.io.group_results import (
    Cohort,
    ResultFile,
    find_results,
    group_cohorts,
    parse_selection,
    refuse_mixed_grids,
    settle_parameters,
    shorten,
)
from lacuna_nipype.io.naming import sanitize_label
from lacuna_nipype.io.participants import (
    CohortDesign,
    build_design,
    choose_columns,
    normal_form,
    read_participants,
)

if TYPE_CHECKING:
    from lacuna_nipype.cli.group_report import GroupReporter
    from lacuna_nipype.execution.runner import RunOutcome


@dataclass
class GroupPlan:
    """What a run of the group level makes; see :func:`lacuna_nipype.workflows.init_group_wf`.

    Parameters
    ----------
    tables, overlaps, map_tests, table_tests : list of dict
    notices : list of str
        Remarks for the user.
    datasets : list of Path
        Where results of participants were looked for.
    columns : dict of str to dict
        Columns of the table of participants that are used: text by participant.
    """

    tables: list[dict[str, Any]] = field(default_factory=list)
    overlaps: list[dict[str, Any]] = field(default_factory=list)
    map_tests: list[dict[str, Any]] = field(default_factory=list)
    table_tests: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    datasets: list[Path] = field(default_factory=list)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)


def run_group_level(config: RunConfig, argv: Sequence[str]) -> int:
    """Run the group level.

    Parameters
    ----------
    config : RunConfig
    argv : sequence of str
        Words of the command line, for the record.

    Returns
    -------
    int
        Exit code; the reason is the last line printed.
    """
    from lacuna_nipype.cli.group_report import GroupReporter, rebuild_group_report
    from lacuna_nipype.execution.runner import require_plugin

    if config.reports_only:
        return rebuild_group_report(config)
    started = datetime.now(timezone.utc)
    run_id = f"{started:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    log_dir = config.output_dir / "logs" / run_id
    with ExitStack() as held:
        try:
            require_plugin(config.plugin, config.plugin_args)
            plan = plan_group(config)
            for notice in dict.fromkeys(plan.notices):
                say(f"Note: {notice}")
            if not config.dry_run:
                held.enter_context(own_work_folder(config.work_dir))
                _prepare(config, log_dir, argv)
        except (LacunaError, OSError) as error:
            return end_with(error, config.output_dir)
        reporter = GroupReporter(config, plan, run_id, started, argv)
        return _build_and_run(config, plan, log_dir, reporter)


def _prepare(config: RunConfig, log_dir: Path, argv: Sequence[str]) -> None:
    from lacuna_nipype.core.files import write_json
    from lacuna_nipype.io.derivatives import (
        dataset_lock,
        prepare_dataset,
        refuse_foreign_dataset,
    )

    refuse_foreign_dataset(config.output_dir)
    with dataset_lock(config.output_dir):
        remarks = prepare_dataset(config.output_dir, _links(config))
    log_dir.mkdir(parents=True)
    write_json(log_dir / "config.json", {**config.to_dict(), "command": list(argv)})
    for remark in remarks:
        say(f"Note: {remark}")


def _links(config: RunConfig) -> dict[str, Path]:
    """Datasets that source addresses refer to."""
    raw = config.bids_dir if config.bids_dir.is_dir() else config.bids_dir.parent
    return {"raw": raw, **dict(config.derivatives)}


def _build_and_run(
    config: RunConfig, plan: GroupPlan, log_dir: Path, reporter: GroupReporter
) -> int:
    import traceback

    from lacuna_nipype.cli.group_state import result_signatures, settle
    from lacuna_nipype.cli.recovery import remove_steps
    from lacuna_nipype.execution.runner import configure_nipype, expanded_nodes, run_graph
    from lacuna_nipype.workflows import init_group_wf
    from lacuna_nipype.workflows.base import workflow_name

    if not config.dry_run:
        configure_nipype(
            log_dir=log_dir,
            stop_on_first_crash=config.stop_on_first_crash,
            verbose=config.verbose,
        )
    try:
        workflow = init_group_wf(
            output_dir=config.output_dir,
            base_dir=config.work_dir,
            tables=plan.tables,
            overlaps=plan.overlaps,
            map_tests=plan.map_tests,
            table_tests=plan.table_tests,
            omp_nthreads=config.step_threads(1),
        )
        signatures = result_signatures(workflow)
        nodes = expanded_nodes(workflow)
        outputs = _outputs(nodes)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not the user's data
        logger.error("%s", traceback.format_exc())
        return end(NOT_BUILT, f"The graph could not be built: {error}")
    if config.dry_run:
        for path in outputs:
            say(f"  {path}")
        return end(OK, f"Dry run: {len(nodes)} steps, {len(outputs)} files; nothing was run.")
    if config.overwrite:
        remove_steps(config.work_dir / workflow_name("group"))
    reporter.begin(list(outputs))
    outcome = run_graph(
        workflow,
        n_nodes=len(nodes),
        plugin=config.plugin,
        nprocs=config.nprocs,
        memory_gb=config.memory_gb,
        crash_dir=log_dir,
        plugin_args=config.plugin_args,
    )
    problems = []
    try:
        settle(config.output_dir, signatures, outputs, outcome)
    except OSError as error:
        problems = [describe_os_error(error, config.output_dir)]
    return _end_run(config, outputs, outcome, reporter, log_dir, problems)


def _end_run(
    config: RunConfig,
    outputs: Mapping[Path, str],
    outcome: RunOutcome,
    reporter: GroupReporter,
    log_dir: Path,
    problems: Sequence[str],
) -> int:
    """Say what came out, record it, and make the page."""
    from lacuna_nipype.cli.group_report import incomplete

    ran = sum(record.status == "done" for record in outcome.nodes.values())
    cached = sum(record.status == "cached" for record in outcome.nodes.values())
    say(f"{ran} steps ran, {cached} were up to date, {len(outcome.failures)} failed.")
    for failure in outcome.failures:
        step = failure.node.split(".", 1)[-1]
        say(f"Error: step {step} failed: {failure.reason} (details: {failure.crash_file})")
    problems = [*problems, *reporter.end(list(outputs), outcome)]
    missing = [path for path in outputs if not path.is_file()]
    if outcome.error or outcome.failures or missing:
        for problem in problems:
            say(f"Warning: {problem}")
        first = outcome.failures[0].reason if outcome.failures else outcome.error
        reason = first or f"such as {missing[0]}."
        return end(
            SOME_FAILED,
            f"{count(len(outcome.failures), 'step')} failed, outputs missing: {len(missing)}; "
            f"first reason: {reason} Log: {log_dir}",
        )
    if problems:
        return end(SOME_FAILED, incomplete(problems))
    return end(OK, f"{count(len(outputs), 'result')} of the group: {config.output_dir}")


def _outputs(nodes: Sequence[Any]) -> dict[Path, str]:
    """Files that the sinks of a graph will write, and the step that does so."""
    found: dict[Path, str] = {}
    for node in nodes:
        targets = getattr(node.interface, "targets", None)
        for path in targets() if targets is not None else ():
            if path in found:
                raise ValidationError(f"Two results would be stored as {path}.")
            found[path] = node.fullname
    return found


def plan_group(config: RunConfig) -> GroupPlan:
    """Find the results of the participant level, and what can be made of them.

    Parameters
    ----------
    config : RunConfig
        With ``group_level``.

    Returns
    -------
    GroupPlan

    Raises
    ------
    LacunaError
        Nothing to put together; results of several versions, settings or grids; a score that
        cannot be tested.
    """
    asked = config.group_level or GroupOptions()
    others = [path for _, path in config.derivatives]
    # A new folder may take what is made of results elsewhere.
    own = [] if others and not any(config.output_dir.glob("sub-*")) else [config.output_dir]
    results = find_results(
        [*own, *others],
        participants=config.participant_label,
        sessions=config.session_label,
    )
    everyone = {result.participant for result in results}
    wanted = [result for result in results if _is_wanted(result, config, asked)]
    selection = parse_selection(asked.select)
    cohorts = [
        settle_parameters(cohort, selection=selection, allow_mixed=asked.allow_mixed)
        for cohort in group_cohorts(wanted, pool_sessions=asked.pool_sessions)
        if _is_of_use(cohort)
    ]
    cohorts = [cohort for cohort in cohorts if cohort.files]
    if not cohorts:
        raise BidsError(
            f"No result fits (of {len(results)} found): run the "
            "participant level first, or ask for less with --analysis, --pattern, --select, "
            "--space and --resolution."
        )
    maps = [cohort for cohort in cohorts if cohort.entities["suffix"] != "parcelstats"]
    refuse_mixed_grids(maps)
    plan = GroupPlan()
    table = asked.participants or find_participants([config.bids_dir, config.output_dir])
    links = {"": config.output_dir, **_links(config)}
    joined = join_columns(table, asked.participants_columns)
    for cohort in cohorts:
        if cohort.entities["suffix"] == "parcelstats":
            missing = sorted(everyone - set(cohort.participants))
            plan.tables.append(_table(cohort, links, asked, joined, missing))
        elif made := _overlap(cohort, links, asked):
            common_grid(cohort.paths)
            plan.overlaps.append(made)
    plan.notices += _incomplete(cohorts, everyone)
    if asked.score or asked.group:
        masks = [result for result in results if result.entities["suffix"] == "mask"]
        _plan_tests(plan, cohorts, table, masks, links, asked)
    plan.datasets = [*own, *others]
    plan.columns = _used_columns(table, sorted(everyone), asked)
    return plan


def _incomplete(cohorts: Sequence[Cohort], everyone: set[str]) -> list[str]:
    """Name the participants that some kinds of results lack, once for all these kinds."""
    lacking: dict[tuple[str, ...], list[Cohort]] = defaultdict(list)
    for cohort in cohorts:
        lacking[tuple(sorted(everyone - set(cohort.participants)))].append(cohort)
    return [
        f"{shorten(missing)}: no results of {count(len(kinds), 'kind')}, such as "
        f"{kinds[0].describe()}; what is made of these leaves them out."
        for missing, kinds in lacking.items()
        if missing
    ]


def _used_columns(
    table: Path | None, names: Sequence[str], asked: GroupOptions
) -> dict[str, dict[str, str]]:
    """Give the columns of the table of participants that were asked for, as text."""
    used = list(
        dict.fromkeys((*asked.score, *asked.group, *asked.covariates, *asked.participants_columns))
    )
    if table is None or not used:
        return {}
    rows = choose_columns(read_participants(table), used, table)
    known = {name: normal_form(name) for name in names if normal_form(name) in rows.index}
    return {
        column: {name: str(rows.loc[row, column]).strip() for name, row in known.items()}
        for column in used
    }


def _is_wanted(result: ResultFile, config: RunConfig, asked: GroupOptions) -> bool:
    entities = result.entities
    if config.analysis and entities["desc"] not in config.analysis:
        return False
    if not result.fits(config.pattern):
        return False
    if entities["suffix"] == "parcelstats":
        return asked.space in (None, entities.get("space"))
    return asked.space in (None, entities.get("space")) and asked.resolution in (
        None,
        entities.get("res"),
    )


def _is_of_use(cohort: Cohort) -> bool:
    """Tell whether something is made of results of a kind."""
    entities = cohort.entities
    analysis, quantity = entities["desc"], entities.get("statistic")
    if entities["suffix"] == "parcelstats":
        return "atlas" in entities
    usable = TESTED_MAPS.get(analysis, "") == quantity or bool(overlap_maps(analysis, quantity))
    # Other maps only tell where those are valid.
    return usable or (analysis, quantity) == ("fnm", "valid")


def _table(
    cohort: Cohort,
    links: Mapping[str, Path],
    asked: GroupOptions,
    joined: Any,
    missing: Sequence[str],
) -> dict[str, Any]:
    ids = identification(cohort, joined.table)
    return {
        "name": cohort.describe(),
        "paths": cohort.paths,
        "quantity": cohort.entities["statistic"],
        "first_columns": [(str(name), ids[name].tolist()) for name in ids.columns],
        "entities": {**cohort.entities, "datatype": "phenotype"},
        "metadata": describe_cohort_table(
            cohort,
            links=links,
            parameters={**_parameters(asked), "ParticipantsColumns": asked.participants_columns},
            missing=missing,
            joined=joined.descriptions,
        ),
    }


def _parameters(asked: GroupOptions) -> dict[str, Any]:
    """Say what every result of the group was asked for."""
    return {
        "Select": list(asked.select),
        "AllowMixed": asked.allow_mixed,
        "PoolSessions": asked.pool_sessions,
    }


def _metadata(cohort: Cohort, links: Mapping[str, Path], asked: GroupOptions) -> dict[str, Any]:
    """Sidecar content that results of a cohort share."""
    first = cohort.files[0].sidecar()
    return {
        **{key: first[key] for key in ("SpaceName", "Connectome", "Method") if key in first},
        "Parameters": _parameters(asked),
        "Participants": list(cohort.participants),
        "Sources": [bids_uri(path, links) for path in cohort.paths],
        "Software": {"Name": "lacuna-nipype", "Version": __version__},
    }


def _place(cohort: Cohort) -> dict[str, str]:
    """Entities of the results of a cohort: in the folder of the template."""
    kept = ("session", "acquisition", "run", "res", "label", "atlas", "segmentation", "scale")
    if "space" not in cohort.entities:
        raise ValidationError(
            f"{cohort.paths[0]} names no space, so nothing says what its maps or regions refer to."
        )
    own = {key: value for key, value in cohort.entities.items() if key in kept}
    return {"template": cohort.entities["space"], **own}


def _overlap(
    cohort: Cohort, links: Mapping[str, Path], asked: GroupOptions
) -> dict[str, Any] | None:
    entities = cohort.entities
    made = overlap_maps(
        entities["desc"], entities.get("statistic"), t_threshold=asked.overlap_threshold
    )
    if not made:
        return None
    return {
        "name": cohort.describe(),
        "paths": cohort.paths,
        "made": made,
        "entities": _place(cohort),
        "metadata": _metadata(cohort, links, asked),
    }


def _plan_tests(
    plan: GroupPlan,
    cohorts: Sequence[Cohort],
    table: Path | None,
    masks: Sequence[ResultFile],
    links: Mapping[str, Path],
    asked: GroupOptions,
) -> None:
    """Add the tests of all scores and groups to a plan."""
    if table is None:
        raise ValidationError(
            "There is no participants.tsv in the BIDS folder; name one with --participants."
        )
    rows = read_participants(table)
    tested = [*asked.score, *asked.group]
    choose_columns(rows, [*tested, *asked.covariates], table)
    names = [sanitize_label(name) for name in tested]
    if len(set(names)) < len(names):
        raise ValidationError(
            f"Columns {', '.join(tested)} would have one name in file names; rename one."
        )
    refused: dict[tuple[str, str], list[str]] = defaultdict(list)
    for cohort in cohorts:
        if not _is_tested(cohort):
            continue
        volumes = lesion_volumes(cohort, masks) if asked.volume_covariate else None
        for column, name in zip(tested, names, strict=True):
            try:
                built = build_design(
                    rows,
                    cohort.participants,
                    column,
                    covariates=asked.covariates,
                    volumes=volumes,
                    groups=column in asked.group,
                )
            except ValidationError as error:
                refused[column, str(error)].append(cohort.describe())
                continue
            for reason in dict.fromkeys(built.dropped.values()):
                who = [name for name, why in built.dropped.items() if why == reason]
                plan.notices.append(
                    f"{count(len(who), 'participant')} left out of the test for {column}, "
                    f"{reason}: {shorten(who)}."
                )
            _note_few(plan, built, asked)
            settings = _test(cohort, built, name, links, asked)
            if cohort.entities["suffix"] == "parcelstats":
                plan.table_tests.append(settings)
            else:
                kept = Cohort(cohort.entities, settings["files"])
                settings["valid_paths"] = _valid_maps(kept, cohorts)
                plan.map_tests.append(settings)
    if not plan.map_tests and not plan.table_tests:
        reason = next(
            (reason for _, reason in refused), "There is no map or table of regions to test."
        )
        if _are_apart([cohort for cohort in cohorts if _is_tested(cohort)]):
            reason += " Sessions are kept apart; --pool-sessions takes each participant's first."
        raise ValidationError(reason)
    for (column, reason), places in refused.items():
        kinds = count(len(places), "kind")
        plan.notices.append(
            f"{column} is not tested in {kinds} of results, such as {places[0]}: {reason}"
        )


def _are_apart(cohorts: Sequence[Cohort]) -> bool:
    """Tell whether sessions together have more participants than any cohort by itself."""
    everyone = {who for cohort in cohorts for who in cohort.participants}
    most = max((len(cohort.participants) for cohort in cohorts), default=0)
    return any("session" in cohort.entities for cohort in cohorts) and len(everyone) > most


def _is_tested(cohort: Cohort) -> bool:
    entities = cohort.entities
    analysis, quantity = entities["desc"], entities.get("statistic")
    if entities["suffix"] == "parcelstats":
        return quantity in TESTED_TABLES.get(analysis, ())
    return analysis in TESTED_MAPS and TESTED_MAPS[analysis] == quantity


def _note_few(plan: GroupPlan, built: CohortDesign, asked: GroupOptions) -> None:
    design = built.design
    if design.distinct_orders < asked.permutations:
        plan.notices.append(
            f"{design.n} participants have {design.distinct_orders:.0f} different orders: more "
            f"permutations say nothing more, and no probability is below "
            f"{1 / design.distinct_orders:.2g}."
        )


def _test(
    cohort: Cohort,
    built: CohortDesign,
    name: str,
    links: Mapping[str, Path],
    asked: GroupOptions,
) -> dict[str, Any]:
    """Give the settings of a test of maps or of tables."""
    entities = cohort.entities
    by_name = {file.participant: file for file in cohort.files}
    files = tuple(by_name[who] for who in built.participants)
    kept = Cohort(entities, files)
    design = built.design
    touched = minimum_count(asked.min_overlap, design.n)
    metadata = _metadata(kept, links, asked)
    metadata["Parameters"] |= {
        "Tested": design.tested_name,
        "Covariates": list(design.covariate_names),
        "Permutations": asked.permutations,
        "Seed": asked.seed,
        "TwoSided": True,
        "MinimumOverlapPercent": asked.min_overlap,
        "TFCE": asked.tfce,
    }
    metadata |= {
        "Model": "Linear model with intercept and covariates; permutations of the residuals of "
        "the score (Freedman & Lane 1983), distribution of the maximum.",
        "NumberOfParticipants": design.n,
        "DegreesOfFreedom": design.degrees_of_freedom,
        "ParticipantsLeftOut": dict(built.dropped),
        "Quantity": entities.get("statistic", "lesion"),
    }
    if built.levels:
        metadata["Contrast"] = f"{built.levels[1]} against {built.levels[0]}"
    place = {**_place(kept), "model": name, "desc": entities["desc"]}
    if entities["suffix"] == "parcelstats":
        place |= {"statistic": entities["statistic"], "suffix": "parcelstats"}
    # Elsewhere zero is a value as any other, and all participants have one.
    dense = design.n if entities["suffix"] != "parcelstats" else 1
    return {
        "name": f"{name}_{cohort.describe()}",
        "files": files,
        "paths": kept.paths,
        "quantity": entities.get("statistic", "lesion"),
        "design": design,
        "minimum": touched if entities["desc"] in SPARSE else dense,
        "permutations": asked.permutations,
        "seed": asked.seed,
        "tfce": asked.tfce,
        "memory_gb": _memory(kept) if entities["suffix"] != "parcelstats" else 0.5,
        "entities": place,
        "metadata": metadata,
    }


def _memory(cohort: Cohort) -> float:
    """Memory for a test: the values as float32, a block several times, volumes, and Python."""
    from lacuna_nipype.core.association import BLOCK_VALUES
    from lacuna_nipype.io.group_maps import common_grid

    voxels = math.prod(common_grid(cohort.paths[:1]).shape)
    # A brain fills a third of its volume.
    values = len(cohort.files) * voxels / 3
    return round((4 * values + 48 * min(values, BLOCK_VALUES) + 80 * voxels) / 1e9 + 0.3, 2)


def _valid_maps(cohort: Cohort, cohorts: Sequence[Cohort]) -> list[Path]:
    """Find the maps that tell where those of a cohort are valid; none if one lacks its own."""
    wanted = {**cohort.entities, "statistic": "valid"}
    for other in cohorts:
        if other.entities == wanted:
            by_name = {file.participant: file.path for file in other.files}
            if set(cohort.participants) <= set(by_name):
                return [by_name[who] for who in cohort.participants]
    return []
