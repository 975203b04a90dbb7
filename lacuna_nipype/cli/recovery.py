"""What an earlier run did already: which lesions a run has to do, and a record for the next one.

Results that are there count only when the record of their lesion says that they were completed
with the same signature, and they still are the files that were stored then. All others are
removed before a run begins, so that no step takes them for its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lacuna_nipype import __version__
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.inputs import RunInputs
from lacuna_nipype.cli.plan import planned_outputs
from lacuna_nipype.cli.state import (
    BEGUN,
    COMPLETE,
    MASK,
    Stored,
    changed_files,
    describe_files,
    mask_entry,
    mask_signature,
    note_state,
    other_masks,
    read_state,
    results_of,
)
from lacuna_nipype.core.files import fingerprint, read_json_object, write_json
from lacuna_nipype.execution.runner import RunOutcome
from lacuna_nipype.execution.slurm_commands import JOBS_FOLDER
from lacuna_nipype.io.lesions import Inspection, Lesion
from lacuna_nipype.io.naming import parse_entities
from lacuna_nipype.workflows.base import lesion_workflow_names, workflow_name

Signatures = dict[str, str]
# Options that choose inputs (which count by their content) or resources: not the results.
_NO_PARAMETERS = frozenset(
    {"bids_dir", "output_dir", "analysis_level", "work_dir", "nprocs", "omp_nthreads",
     "memory_gb", "participant_label", "session_label", "derivatives", "bids_filter_file",
     "pattern", "mask_space", "on_empty", "xfm", "xfm_space", "analysis",
     "functional_connectome", "structural_connectome", "functional_space", "structural_space",
     "parcel_atlases", "custom_parcellation", "connectivity_matrix", "snm_engine", "plugin",
     "plugin_args", "use_plugin", "stop_on_first_crash", "dry_run", "verbose", "overwrite",
     "streamline_weights", "streamline_groups", "verify", "datasets", "write_graph",
     "resource_monitor", "batch_size", "reports", "reports_only", "submit", "array_size",
     "submit_part"}
)  # fmt: skip
# Options that concern some analyses only; any other concerns all of them.
_MAPS = ("return_input_space", "output_resolution")
_OPTIONS = {
    "rd": (),
    "fnm": (*_MAPS, "fnm_method", "pini_percentile", "fdr_alpha", "t_threshold", "p_map"),
    "snm": (
        *_MAPS, "hit_test", "compute_disconnectivity_matrix", "compute_roi_disconnection",
        "keep_intermediate",
    ),
    "afnm": ("afnm_weighting",),
}  # fmt: skip
# Of these, those that change no number of what is stored with other ones.
_CHOICES = frozenset(
    {"fdr_alpha", "t_threshold", "p_map", "compute_disconnectivity_matrix",
     "compute_roi_disconnection", "keep_intermediate"}
)  # fmt: skip
# Both engines give the same numbers, and which one runs depends on the number of lesions.
_NO_METADATA = frozenset({"Method", "Engine", "MRtrixVersion"})


@dataclass(frozen=True)
class Recovery:
    """Which lesions a run has to do.

    Parameters
    ----------
    inputs : RunInputs
        Of the run that is left, with the lesions and the analyses that it has to do.
    up_to_date : tuple of str
        Keys of the lesions whose results are there.
    signatures : dict of str to dict
        By lesion and analysis, of what the run does.
    masks : dict of str to dict
        By lesion, the entry of its mask and its signature.
    planned : dict of str to dict
        By lesion and analysis, files relative to the output folder; the lesion's mask, which all
        analyses share, is an entry among them.
    """

    inputs: RunInputs
    up_to_date: tuple[str, ...]
    signatures: dict[str, Signatures]
    masks: dict[str, Signatures]
    planned: dict[str, dict[str, list[str]]]

    @property
    def claims(self) -> dict[str, Signatures]:
        """What the run writes, for other runs: its analyses of each lesion, and the masks."""
        return {key: {**signed, **self.masks[key]} for key, signed in self.signatures.items()}


def lesion_signatures(
    config: RunConfig,
    inputs: RunInputs,
    lesion: Lesion,
    *,
    atlases: Sequence[Any],
    planned: Mapping[str, list[str]],
) -> Signatures:
    """Sign what the results of a lesion depend on.

    Parameters
    ----------
    config : RunConfig
    inputs : RunInputs
    lesion : Lesion
    atlases : sequence
        What tells the content of the atlases, in JSON's types.
    planned : mapping of str to list of str
        Files of the lesion by analysis.

    Returns
    -------
    dict of str to str
        By analysis two SHA-256 with a dot between. The first is of what makes numbers others: the
        version, the content of mask, transforms and connectome, and the parameters of the
        analysis. The second is of the content of the atlases, of thresholds, of what sidecars
        say, and of the choice of files too.
    """
    signatures = {}
    mask = [mask_signature(lesion), lesion.space]
    for analysis in inputs.analyses:
        parameters = _parameters(config, analysis)
        metadata = inputs.metadata.get(analysis, {})
        metadata = {k: v for k, v in metadata.items() if k not in _NO_METADATA}
        basis = {
            "version": __version__,
            "parameters": {k: v for k, v in parameters.items() if k not in _CHOICES},
            "contents": sorted(_fingerprints(metadata)),
            "mask": mask,
        }
        whole = {
            **basis,
            "parameters": parameters,
            "metadata": metadata,
            "atlases": atlases,
            "outputs": planned[analysis],
        }
        signatures[analysis] = f"{_digest(basis)}.{_digest(whole)}"
    return signatures


def _parameters(config: RunConfig, analysis: str) -> dict[str, Any]:
    """Give the options that an analysis depends on."""
    elsewhere = {name for names in _OPTIONS.values() for name in names} - set(_OPTIONS[analysis])
    left_out = elsewhere | _NO_PARAMETERS
    return {key: value for key, value in config.to_dict().items() if key not in left_out}


def _fingerprints(metadata: Any) -> Iterator[str]:
    """Give everything in nested metadata that identifies a content."""
    if isinstance(metadata, dict):
        for key, value in metadata.items():
            if key.endswith("Fingerprint"):
                yield str(value)
            else:
                yield from _fingerprints(value)
    elif isinstance(metadata, list):
        for value in metadata:
            yield from _fingerprints(value)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _basis(signature: str) -> str:
    """Take the part of a signature that is of what makes numbers others."""
    return signature.partition(".")[0]


def plan_recovery(config: RunConfig, inputs: RunInputs) -> Recovery:
    """Decide which lesions are left to do.

    Parameters
    ----------
    config : RunConfig
        With ``overwrite``, all are.
    inputs : RunInputs

    Returns
    -------
    Recovery
        Where the work folder's last graph held all lesions that are left, and its others are
        what they were, the run takes that graph again: its finished steps are up to date, and a
        pass over the connectome for many lesions is not done anew for one of them.
    """
    lesions = inputs.inspection.lesions
    # Read once, not once per lesion.
    atlases = [
        [atlas.id, atlas.space, fingerprint(atlas.image), fingerprint(atlas.labels)]
        for atlas in inputs.atlases
    ]
    planned = {lesion.record.key: _planned(inputs, lesion) for lesion in lesions}
    masks = {lesion.record.key: {mask_entry(lesion): mask_signature(lesion)} for lesion in lesions}
    signatures = {
        key: lesion_signatures(config, inputs, lesion, atlases=atlases, planned=planned[key])
        for key, lesion in zip(planned, lesions, strict=True)
    }
    if config.overwrite:
        return Recovery(inputs, (), signatures, masks, planned)
    left = {
        key: missing
        for key, signed in signatures.items()
        if (missing := _incomplete(config.output_dir, key, signed, planned[key], masks[key]))
    }
    # An analysis that is complete for all of them is no reason to read a connectome again.
    analyses = tuple(name for name in inputs.analyses if any(name in own for own in left.values()))
    to_do = _with_last_graph(config, set(left), signatures, analyses)
    chosen = tuple(lesion for lesion in lesions if lesion.record.key in to_do)
    return Recovery(
        inputs.only(analyses, replace(inputs.inspection, lesions=chosen)),
        tuple(key for key in signatures if key not in left),
        {key: {name: signatures[key][name] for name in analyses} for key in to_do},
        masks,
        planned,
    )


def _with_last_graph(
    config: RunConfig,
    left: set[str],
    signatures: Mapping[str, Signatures],
    analyses: Sequence[str],
) -> set[str]:
    """Add the other lesions of the work folder's last graph, where they are what they were."""
    last = _read_last_graph(config.work_dir)
    same = {
        key
        for key, signed in last.items()
        if key in signatures and all(signed.get(n) == signatures[key][n] for n in analyses)
    }
    return set(last) if left and left <= set(last) == same else left


def _planned(inputs: RunInputs, lesion: Lesion) -> dict[str, list[str]]:
    """List the files of a lesion by analysis, and its mask."""
    found: dict[str, list[str]] = {name: [] for name in (MASK, *inputs.analyses)}
    for path in planned_outputs(replace(inputs, inspection=Inspection((lesion,), {}, {}))):
        found[parse_entities(Path(path).name)["desc"]].append(path)
    return found


def begin(config: RunConfig, recovery: Recovery) -> int:
    """Note that the lesions of a run are begun, and remove what is not theirs.

    Parameters
    ----------
    config : RunConfig
        With ``overwrite``, the finished steps in the work folder are removed, and the results that
        the run makes.
    recovery : Recovery

    Returns
    -------
    int
        How many results were removed that the run does not make again: of the same lesions and
        analyses, made with other parameters or of other inputs.
    """
    if config.overwrite:
        remove_steps(config.work_dir / workflow_name())
    complete = set(recovery.up_to_date)
    removed = 0
    for lesion in recovery.inputs.inspection.lesions:
        key = lesion.record.key
        if key in complete:
            continue
        signed = recovery.signatures[key]
        planned, others = _stale(config, lesion, signed, recovery.planned[key])
        begun = {analysis: Stored(BEGUN, text) for analysis, text in signed.items()}
        known = read_state(config.output_dir, key)
        for entry, signature in recovery.masks[key].items():
            redrawn = other_masks(known, entry, signature)
            # What was made of another mask is no result of this lesion any more.
            others |= _of_other_masks(config.output_dir, lesion, known, redrawn)
            unknown = {} if entry in known else {entry: signature}
            begun |= {name: Stored(BEGUN, now) for name, now in {**redrawn, **unknown}.items()}
        others -= {path for own in recovery.planned[key].values() for path in own}
        for path in (*planned, *others):
            (config.output_dir / path).unlink(missing_ok=True)
        removed += len(others)
        note_state(config.output_dir, key, begun)
    last = _last_graph(config.work_dir)
    last.parent.mkdir(parents=True, exist_ok=True)
    write_json(last, {"Lesions": _merged(config, recovery.signatures)})
    return removed


def _merged(config: RunConfig, signatures: Mapping[str, Signatures]) -> dict[str, Signatures]:
    """Add the analyses of the last graph, whose steps a graph of the same lesions leaves there."""
    last = {} if config.overwrite else _read_last_graph(config.work_dir)
    same = set(last) == set(signatures)
    return {key: {**(last[key] if same else {}), **own} for key, own in signatures.items()}


def remove_steps(folder: Path) -> None:
    """Remove the finished steps of an earlier run, and not what tells of its jobs on a cluster.

    Parameters
    ----------
    folder : Path
        Of the workflow; need not be there.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and path.name != JOBS_FOLDER:
            shutil.rmtree(path, ignore_errors=True)


def _stale(
    config: RunConfig, lesion: Lesion, signed: Signatures, files: Mapping[str, list[str]]
) -> tuple[set[str], set[str]]:
    """Files of a lesion that the run makes again, and those that it makes no more.

    The lesion's mask, which all analyses share, is none of them: it is replaced in one go.
    """
    known = read_state(config.output_dir, lesion.record.key)
    planned: set[str] = set()
    others: set[str] = set()
    for analysis, signature in signed.items():
        stored = known.get(analysis)
        own = files[analysis]
        if not config.overwrite and stored is not None and stored.signature == signature:
            planned.update(changed_files(config.output_dir, own, stored.files))
            continue
        planned.update(own)
        if stored is not None and _basis(stored.signature) != _basis(signature):
            spaces = {parse_entities(Path(path).name).get("space") for path in own}
            others.update(
                path
                for path in results_of(config.output_dir, lesion, analysis)
                if parse_entities(Path(path).name).get("space") in spaces
            )
    return planned, others - planned


def _of_other_masks(
    output_dir: Path, lesion: Lesion, known: Mapping[str, Stored], redrawn: Mapping[str, str]
) -> set[str]:
    """Results of a lesion whose mask was another, but for spaces where it is what it was."""
    if not redrawn:
        return set()
    masks = {name for name in known if name.startswith(MASK)}
    right = {name.split()[2] for name in masks.difference(redrawn)}
    return {
        path
        for name in (MASK, *(set(known) - masks))
        for path in results_of(output_dir, lesion, name)
        if parse_entities(Path(path).name).get("space") not in right
    }


def end(config: RunConfig, recovery: Recovery, outcome: RunOutcome) -> None:
    """Note which lesions of a run are complete.

    Parameters
    ----------
    config : RunConfig
    recovery : Recovery
    outcome : RunOutcome
    """
    if outcome.error:
        return
    lesions = recovery.inputs.inspection.lesions
    failed = [_lesion_of(failure.node, lesions) for failure in outcome.failures]
    # A step that failed for all lesions speaks for none of them.
    if None in failed:
        return
    done = set(recovery.up_to_date).union(failed)
    for lesion in lesions:
        key, output_dir = lesion.record.key, config.output_dir
        signed = {**recovery.masks[key], **recovery.signatures[key]}
        planned = {name: _files(recovery.planned[key], name) for name in signed}
        paths = [path for own in planned.values() for path in own]
        if key not in done and not any(changed_files(output_dir, paths, {})):
            complete = {
                name: Stored(COMPLETE, text, describe_files(output_dir, planned[name]))
                for name, text in signed.items()
            }
            note_state(output_dir, key, complete)


def _lesion_of(node: str, lesions: Iterable[Lesion]) -> str | None:
    """Key of the lesion that a step belongs to; None for a step that many share."""
    parts = set(node.split("."))
    for lesion in lesions:
        if parts & set(lesion_workflow_names(lesion.record.key)):
            return lesion.record.key
    return None


def _incomplete(
    output_dir: Path,
    key: str,
    signatures: Signatures,
    planned: Mapping[str, list[str]],
    mask: Signatures,
) -> set[str]:
    """Name the analyses of a lesion that are not complete; all, where its mask is not."""
    known = read_state(output_dir, key)
    missing = {
        name
        for name, signature in {**mask, **signatures}.items()
        if (stored := known.get(name)) is None
        or not stored.is_complete(signature)
        or any(changed_files(output_dir, _files(planned, name), stored.files))
    }
    return set(signatures) if missing & set(mask) else missing


def _files(planned: Mapping[str, list[str]], name: str) -> list[str]:
    """Files of an analysis, or of the mask."""
    return planned[MASK if name.startswith(MASK) else name]


def _last_graph(work_dir: Path) -> Path:
    """Beside the steps, so that it goes with them where a work folder is cleaned."""
    return work_dir / workflow_name() / "lesions.json"


def _read_last_graph(work_dir: Path) -> dict[str, Signatures]:
    found = read_json_object(_last_graph(work_dir)).get("Lesions")
    return found if isinstance(found, dict) else {}
