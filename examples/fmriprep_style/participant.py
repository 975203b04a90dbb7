"""Where an fMRIPrep-style pipeline meets lesion network mapping: two ways, in a few lines each.

``init_participant_wf`` composes a pipeline of its own from sMRIPrep's anatomical workflow.
``extend_fmriprep_wf`` adds the same step to the graph that fMRIPrep itself builds.
"""

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow
from niworkflows.utils.spaces import Reference, SpatialReferences
from smriprep.workflows.anatomical import init_anat_fit_wf

from .lesion_network import init_lesion_network_wf


def init_participant_wf(
    *,
    participant,
    t1w,
    lesion_mask,
    bids_dir,
    output_dir,
    lesion_network,
    precomputed=None,
    omp_nthreads=1,
):
    """Normalise a participant's T1w image with sMRIPrep, and map the lesion with the result.

    Parameters
    ----------
    participant : str
        Label.
    t1w : sequence of path-like
        T1w images.
    lesion_mask : path-like
        Mask in the space of the T1w image. It also keeps the lesion out of the registration.
    bids_dir, output_dir : path-like
        Raw and derivatives dataset.
    lesion_network : mapping
        Further arguments of :func:`.lesion_network.init_lesion_network_wf`.
    precomputed : mapping, optional
        What sMRIPrep's ``collect_derivatives`` found of an earlier run.
    omp_nthreads : int

    Returns
    -------
    Workflow
    """
    workflow = Workflow(name=f"sub_{participant}_wf")
    spaces = SpatialReferences(
        sorted({lesion_network["connectome_space"], lesion_network["tractogram_space"]})
    )
    spaces.checkpoint()
    anat_fit_wf = init_anat_fit_wf(
        bids_root=str(bids_dir),
        output_dir=str(output_dir),
        freesurfer=False,
        hires=False,
        longitudinal=False,
        msm_sulc=False,
        t1w=[str(path) for path in t1w],
        t2w=[],
        skull_strip_mode="force",
        skull_strip_template=Reference("OASIS30ANTs"),
        spaces=spaces,
        precomputed=dict(precomputed or {}),
        omp_nthreads=omp_nthreads,
    )
    anat_fit_wf.inputs.inputnode.t1w = [str(path) for path in t1w]
    anat_fit_wf.inputs.inputnode.roi = str(lesion_mask)
    connect_lesion(workflow, anat_fit_wf, lesion_mask, output_dir, lesion_network, omp_nthreads)
    return workflow


def extend_fmriprep_wf(
    fmriprep_wf, *, participant, lesion_mask, output_dir, lesion_network, omp_nthreads=1
):
    """Add the lesion of a participant to the graph of fMRIPrep.

    Parameters
    ----------
    fmriprep_wf : Workflow
        From ``fmriprep.workflows.base.init_fmriprep_wf``, for ``--output-spaces`` that hold the
        spaces of both connectomes.
    participant : str
        Label.
    lesion_mask, output_dir, lesion_network, omp_nthreads
        As for :func:`init_participant_wf`.

    Returns
    -------
    Workflow
        The one given.

    Raises
    ------
    ValueError
        fMRIPrep was not asked to normalise to the space of a connectome.
    """
    from fmriprep import config

    wanted = {lesion_network["connectome_space"], lesion_network["tractogram_space"]}
    # Said here, before hours of registration to other templates.
    missing = wanted.difference(config.workflow.spaces.get_spaces(nonstandard=False, dim=(3,)))
    if missing:
        raise ValueError(f"Add {', '.join(sorted(missing))} to the output spaces of fMRIPrep.")
    single_subject_wf = fmriprep_wf.get_node(f"sub_{participant}_wf")
    anat_fit_wf = single_subject_wf.get_node("anat_fit_wf")
    connect_lesion(
        single_subject_wf, anat_fit_wf, lesion_mask, output_dir, lesion_network, omp_nthreads
    )
    return fmriprep_wf


def connect_lesion(workflow, anat_fit_wf, lesion_mask, output_dir, lesion_network, omp_nthreads):
    """Connect a mask, and the transforms of sMRIPrep's anatomical workflow, to our step."""
    lesion_source = pe.Node(niu.IdentityInterface(fields=["mask"]), name="lesion_source")
    lesion_source.inputs.mask = str(lesion_mask)
    lesion_network_wf = init_lesion_network_wf(
        output_dir=output_dir, omp_nthreads=omp_nthreads, **lesion_network
    )
    workflow.connect([
        (lesion_source, lesion_network_wf, [
            ("mask", "inputnode.lesion_mask"),
            ("mask", "inputnode.source_file"),
        ]),
        (anat_fit_wf, lesion_network_wf, [
            ("outputnode.template", "inputnode.template"),
            ("outputnode.anat2std_xfm", "inputnode.anat2std_xfm"),
        ]),
    ])  # fmt: skip
