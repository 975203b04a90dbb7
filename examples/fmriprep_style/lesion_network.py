"""Lesion network mapping as one workflow of an fMRIPrep-style pipeline.

It follows the conventions of that family: ``init_*_wf`` with keyword arguments, an ``inputnode``
and an ``outputnode``, ``ds_`` nodes that store results with niworkflows' DerivativesDataSink, and
a ``__desc__`` for the methods text. Everything it computes comes from lacuna_nipype.

Needs niworkflows, which fMRIPrep and sMRIPrep bring along.
"""

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow
from niworkflows.interfaces.bids import DerivativesDataSink as _DerivativesDataSink
from niworkflows.interfaces.utility import KeySelect

from lacuna_nipype import __version__
from lacuna_nipype.workflows import (
    init_fnm_wf,
    init_mask_wf,
    init_snm_wf,
    init_tractogram_wf,
)
from lacuna_nipype.workflows.snm import SHARED

SMALL = {"run_without_submitting": True, "mem_gb": 0.1}
_MAP_PATTERN = (
    "sub-{subject}[/ses-{session}]/{datatype<anat>|anat}/sub-{subject}[_ses-{session}]"
    "_space-{space}[_res-{resolution}][_label-{label}]_stat-{stat}_desc-{desc}"
    "_{suffix<statmap>}{extension<.nii.gz|.json>|.nii.gz}"
)


class DerivativesDataSink(_DerivativesDataSink):
    """The sink of the pipeline, taught the entity and the suffix of statistical maps."""

    out_path_base = ""
    _config_entities = frozenset({*_DerivativesDataSink._config_entities, "stat"})
    _config_entities_dict = [
        *_DerivativesDataSink._config_entities_dict,
        {"name": "stat", "pattern": "_stat-([a-zA-Z0-9+]+)"},
    ]
    _file_patterns = (_MAP_PATTERN, *_DerivativesDataSink._file_patterns)


def init_lesion_network_wf(
    *,
    output_dir,
    connectome_files,
    connectome_space,
    tractogram,
    tractogram_space,
    maps=("r", "z", "t"),
    memory_gb=4.0,
    omp_nthreads=1,
    name="lesion_network_wf",
):
    """Map the functional network and the structural disconnection of one participant's lesion.

    Parameters
    ----------
    output_dir : path-like
        Derivatives folder of the pipeline.
    connectome_files : sequence of path-like
        HDF5 files of the functional connectome.
    connectome_space, tractogram_space : str
        TemplateFlow names of their spaces. The pipeline has to normalise to both.
    tractogram : path-like
        MRtrix ``.tck`` file.
    maps : sequence of {"r", "z", "t"}
        Functional maps to store; there is no t with a connectome of one subject.
    memory_gb, omp_nthreads
        What the pass over one file of the connectome may take.
    name : str

    Inputs
    ------
    lesion_mask
        Mask on the grid of the T1w reference, or on any other grid in its space.
    source_file
        File whose BIDS entities the results carry.
    template
        List of the templates that the pipeline normalised to.
    anat2std_xfm
        List of the transforms from the T1w reference to each of them.

    Outputs
    -------
    functional_maps
        Stored maps, in the order of ``maps``.
    disconnection
        Stored map: per cent of each voxel's streamlines that pass the lesion.
    """
    workflow = Workflow(name=name)
    workflow.__desc__ = f"""

The functional network and the white-matter connections that the lesion disturbs were mapped with
*lacuna-nipype* {__version__} in a normative connectome (in {connectome_space} space) and a
normative tractogram (in {tractogram_space} space).
"""
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["lesion_mask", "source_file", "template", "anat2std_xfm"]),
        name="inputnode",
    )
    outputnode = pe.Node(
        niu.IdentityInterface(fields=["functional_maps", "disconnection"]), name="outputnode"
    )
    # One mask for each space that a connectome is in; the same one where they agree.
    mask_wfs = {}
    for space in {connectome_space: None, tractogram_space: None}:
        mask_wfs[space] = init_standard_mask_wf(space=space, name=f"mask_{space}_wf")
        workflow.connect([
            (inputnode, mask_wfs[space], [
                ("lesion_mask", "inputnode.lesion_mask"),
                ("template", "inputnode.template"),
                ("anat2std_xfm", "inputnode.anat2std_xfm"),
            ]),
        ])  # fmt: skip

    # Functional network. Each output is a list, since one pass serves many lesions: of one here.
    fnm_wf = init_fnm_wf(
        connectome_files=connectome_files,
        p_maps=False,
        memory_gb=memory_gb,
        omp_nthreads=omp_nthreads,
    )
    fnm_meta = pe.Node(niu.Merge(3), name="fnm_meta", **SMALL)
    stored = pe.Node(niu.Merge(len(maps)), name="stored_maps", **SMALL)
    workflow.connect([
        (mask_wfs[connectome_space], fnm_wf, [("outputnode.mask_file", "inputnode.mask_files")]),
        (mask_wfs[connectome_space], fnm_meta, [("outputnode.meta_file", "in1")]),
        (fnm_wf, fnm_meta, [("outputnode.resampling", "in2"), ("outputnode.summaries", "in3")]),
        (stored, outputnode, [("out", "functional_maps")]),
    ])  # fmt: skip
    for number, stat in enumerate(maps, start=1):
        # A sink for each map: niworkflows writes no sidecars beside several files at once.
        ds_map = pe.Node(
            DerivativesDataSink(
                base_directory=str(output_dir),
                space=connectome_space,
                stat=stat,
                desc="fnm",
                suffix="statmap",
                compress=True,
            ),
            name=f"ds_fnm_{stat}",
            run_without_submitting=True,
            mem_gb=0.5,
        )
        workflow.connect([
            (inputnode, ds_map, [("source_file", "source_file")]),
            (fnm_wf, ds_map, [(f"outputnode.{stat}_maps", "in_file")]),
            (fnm_meta, ds_map, [(("out", read_json), "meta_dict")]),
            (ds_map, stored, [("out_file", f"in{number}")]),
        ])  # fmt: skip

    # Structural disconnection. The index needs no MRtrix3, which fMRIPrep's image does not have.
    tractogram_wf = init_tractogram_wf(
        tractogram=tractogram, space=tractogram_space, engine="index", omp_nthreads=omp_nthreads
    )
    snm_wf = init_snm_wf(engine="index")
    snm_meta = pe.Node(niu.Merge(2), name="snm_meta", **SMALL)
    ds_snm = pe.Node(
        DerivativesDataSink(
            base_directory=str(output_dir),
            space=tractogram_space,
            stat="disconnectionpct",
            desc="snm",
            suffix="statmap",
            compress=True,
        ),
        name="ds_snm",
        run_without_submitting=True,
        mem_gb=0.5,
    )
    workflow.connect([
        (tractogram_wf, snm_wf, [
            (f"outputnode.{field}", f"inputnode.{field}") for field in SHARED
        ]),
        (mask_wfs[tractogram_space], snm_wf, [("outputnode.mask_file", "inputnode.mask_file")]),
        (mask_wfs[tractogram_space], snm_meta, [("outputnode.meta_file", "in1")]),
        (snm_wf, snm_meta, [("outputnode.summary", "in2")]),
        (inputnode, ds_snm, [("source_file", "source_file")]),
        (snm_wf, ds_snm, [("outputnode.disconnection", "in_file")]),
        (snm_meta, ds_snm, [(("out", read_json), "meta_dict")]),
        (ds_snm, outputnode, [("out_file", "disconnection")]),
    ])  # fmt: skip
    return workflow


def init_standard_mask_wf(*, space, name):
    """Bring a mask in T1w space to a standard space with the transform that leads there.

    Parameters
    ----------
    space : str
        TemplateFlow name of the space.
    name : str

    Inputs
    ------
    lesion_mask, template, anat2std_xfm
        As for :func:`init_lesion_network_wf`.

    Outputs
    -------
    mask_file, meta_file
        From :func:`lacuna_nipype.workflows.init_mask_wf`.
    """
    workflow = Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["lesion_mask", "template", "anat2std_xfm"]),
        name="inputnode",
    )
    outputnode = pe.Node(
        niu.IdentityInterface(fields=["mask_file", "meta_file"]), name="outputnode"
    )
    select_xfm = pe.Node(KeySelect(fields=["anat2std_xfm"], key=space), name="select_xfm", **SMALL)
    mask_wf = init_mask_wf(space=space, with_transforms=True)
    workflow.connect([
        (inputnode, select_xfm, [("template", "keys"), ("anat2std_xfm", "anat2std_xfm")]),
        (inputnode, mask_wf, [("lesion_mask", "inputnode.mask_file")]),
        (select_xfm, mask_wf, [("anat2std_xfm", "inputnode.transforms")]),
        (mask_wf, outputnode, [
            ("outputnode.mask_file", "mask_file"),
            ("outputnode.meta_file", "meta_file"),
        ]),
    ])  # fmt: skip
    return workflow


def read_json(paths):
    """Merge JSON objects (nipype stores the source of this, so it imports for itself)."""
    import json
    from pathlib import Path

    merged = {}
    for path in paths:
        merged.update(json.loads(Path(path).read_text()))
    return merged
