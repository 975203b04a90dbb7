"""Both kinds of disconnection of one lesion, in a Nipype pipeline of its own.

    python plain_nipype.py MASK CONNECTOME TRACTOGRAM WORK

MASK is a lesion mask (NIfTI) in MNI152NLin6Asym, CONNECTOME an HDF5 file or a folder of them,
TRACTOGRAM a .tck file, both in the same space; WORK gets everything that is made.
"""

import sys
from pathlib import Path

from nipype.interfaces.io import DataSink
from nipype.pipeline import engine as pe

from lacuna_nipype.connectomes.functional import connectome_paths
from lacuna_nipype.workflows import init_fnm_wf, init_mask_wf, init_snm_wf, init_tractogram_wf
from lacuna_nipype.workflows.snm import SHARED

SPACE = "MNI152NLin6Asym"
mask, connectome, tractogram, work = (Path(argument).absolute() for argument in sys.argv[1:])

mask_wf = init_mask_wf(space=SPACE)
mask_wf.inputs.inputnode.mask_file = str(mask)
fnm_wf = init_fnm_wf(connectome_files=connectome_paths(connectome), p_maps=False)
tractogram_wf = init_tractogram_wf(tractogram=tractogram, space=SPACE, engine="index")
snm_wf = init_snm_wf(engine="index")
results = pe.Node(DataSink(base_directory=str(work), parameterization=False), name="results")

pipeline = pe.Workflow(name="steps", base_dir=str(work))
pipeline.connect([
    (mask_wf, fnm_wf, [("outputnode.mask_file", "inputnode.mask_files")]),
    (mask_wf, snm_wf, [("outputnode.mask_file", "inputnode.mask_file")]),
    (tractogram_wf, snm_wf, [(f"outputnode.{name}", f"inputnode.{name}") for name in SHARED]),
    (fnm_wf, results, [("outputnode.z_maps", "fnm.@z"), ("outputnode.summaries", "fnm.@stats")]),
    (snm_wf, results, [
        ("outputnode.disconnection", "snm.@map"),
        ("outputnode.summary", "snm.@stats"),
    ]),
])  # fmt: skip
pipeline.run()
