"""What a run was asked to do: one frozen record, written to the log folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lacuna_nipype.cli.group_options import GroupOptions


@dataclass(frozen=True)
class RunConfig:
    """Arguments of a run after parsing; fields are named like the flags.

    Parameters
    ----------
    bids_dir, output_dir, work_dir : Path
        Absolute.
    analysis_level : str
    participant_label, session_label : tuple of str
        Without ``sub-`` and ``ses-``; empty for all.
    derivatives, datasets : tuple of (str, Path)
        Datasets with masks and atlases; datasets with atlases alone.
    bids_filter_file : Path or None
    pattern, mask_space : str or None
    on_empty : str
    xfm : str or None
        Transform of native-space masks, with placeholders for participant and session.
    xfm_space : str or None
    analysis : tuple of str
        Empty: every analysis whose inputs are given.
    functional_connectome, structural_connectome : Path or None
    functional_space, structural_space : str or None
    parcel_atlases : tuple of str
    custom_parcellation : tuple of (name, image, labels, space)
    connectivity_matrix : Path or None
    afnm_weighting : str
    fnm_method : str
    pini_percentile, fdr_alpha : float
    t_threshold : float or None
    p_map : bool
    verify : int
    snm_engine : str or None
        None: the engine that suits the number of lesions and what is installed.
    hit_test : str
    streamline_weights, streamline_groups : Path or None
    compute_disconnectivity_matrix, compute_roi_disconnection, keep_intermediate : bool
    return_input_space : bool
    output_resolution : float or None
    plugin : str
    plugin_args : dict
        The user's own; plain values.
    nprocs : int
        Processors that may be used on this machine.
    omp_nthreads : int
        Threads of a step; 0 where it was not said.
    memory_gb : float
        Of a job, where jobs run the steps; 0 for what it needs.
    overwrite : bool
        Do again what an earlier run completed.
    stop_on_first_crash, dry_run : bool
    submit : str or None
        How the run is handed to a cluster as a whole, instead of being run here.
    array_size : int or None
        Tasks of the array then; None for one per connectome file.
    submit_part : str or None
        The part of the pass that a task of the array does, such as ``correlate:0/12``.
    reports : bool
        Write a page of every participant.
    reports_only : bool
        Only that, from what the output folder holds.
    verbose : int
    group_level : GroupOptions or None
        None at the participant level.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str
    work_dir: Path
    nprocs: int
    omp_nthreads: int
    memory_gb: float
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    derivatives: tuple[tuple[str, Path], ...] = ()
    datasets: tuple[tuple[str, Path], ...] = ()
    bids_filter_file: Path | None = None
    pattern: str | None = None
    mask_space: str | None = None
    on_empty: str = "warn"
    xfm: str | None = None
    xfm_space: str | None = None
    analysis: tuple[str, ...] = ()
    functional_connectome: Path | None = None
    structural_connectome: Path | None = None
    functional_space: str | None = None
    structural_space: str | None = None
    parcel_atlases: tuple[str, ...] = ()
    custom_parcellation: tuple[tuple[str, Path, Path, str], ...] = ()
    connectivity_matrix: Path | None = None
    afnm_weighting: str = "fractional"
    fnm_method: str = "boes"
    pini_percentile: float = 20.0
    fdr_alpha: float = 0.05
    t_threshold: float | None = None
    p_map: bool = True
    verify: int = 0
    snm_engine: str | None = None
    hit_test: str = "vertices"
    streamline_weights: Path | None = None
    streamline_groups: Path | None = None
    compute_disconnectivity_matrix: bool = False
    compute_roi_disconnection: bool = False
    keep_intermediate: bool = False
    return_input_space: bool = True
    output_resolution: float | None = None
    plugin: str = "MultiProc"
    plugin_args: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    stop_on_first_crash: bool = False
    dry_run: bool = False
    submit: str | None = None
    array_size: int | None = None
    submit_part: str | None = None
    reports: bool = True
    reports_only: bool = False
    verbose: int = 0
    group_level: GroupOptions | None = None

    def step_threads(self, otherwise: int) -> int:
        """Threads of a step: what was asked for, or so many, as far as there are processors.

        Jobs of a cluster run on other machines, of which this one knows nothing.
        """
        threads = self.omp_nthreads or otherwise
        return threads if self.plugin == "SLURM" else min(threads, self.nprocs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, GroupOptions):
        return {name: _plain(item) for name, item in vars(value).items()}
    return value
