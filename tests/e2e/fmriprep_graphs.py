"""Builds graphs of the fMRIPrep family with our step in them; run by test_embedding.py.

    python fmriprep_graphs.py FOLDER DEMONSTRATION

runs in an environment that has fmriprep, which need not be that of the tests, and writes what it
found to FOLDER/found.json. TEMPLATEFLOW_HOME must name an empty folder: it gets one tiny image in
the place of every template, so that the builders have nothing to download.
"""

import gzip
import json
import logging
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "tests")]

SPACE = "MNI152NLin6Asym"
SINKS = ("ds_fnm_r", "ds_fnm_z", "ds_fnm_t", "ds_snm")


def fill_templates():
    import nibabel as nb
    import numpy as np
    from templateflow import api

    api.templates()
    home = Path(os.environ["TEMPLATEFLOW_HOME"])
    image = nb.Nifti1Image(np.ones((4, 4, 4), dtype=np.uint8), np.eye(4))
    packed = gzip.compress(image.to_bytes())
    for path in home.glob("tpl-*/**/*.nii.gz"):
        if not path.stat().st_size:
            path.write_bytes(packed)


def describe(workflow):
    """Names of all nodes of the expanded graph, and of those that lead to our sinks."""
    from nipype.pipeline.engine.utils import generate_expanded_graph

    graph = generate_expanded_graph(workflow._create_flat_graph())
    return {
        "names": [node.fullname for node in graph],
        "leading": [node.fullname for node in with_ancestors(graph, SINKS)],
        "text": workflow.visit_desc(),
    }


def with_ancestors(graph, names):
    """Nodes of these names, and all that lead to them."""
    import networkx as nx

    wanted = {node for node in graph if node.name in names}
    return wanted.union(*(nx.ancestors(graph, node) for node in wanted))


def run_sinks(workflow):
    """Run our sinks and what leads to them; the rest of the graph needs ANTs and real images."""
    from nipype.pipeline.plugins import LinearPlugin

    class OurPart(LinearPlugin):
        def run(self, graph, config, updatehash=False):
            part = graph.subgraph(with_ancestors(graph, SINKS)).copy()
            super().run(part, config, updatehash=updatehash)

    workflow.config["execution"]["crashdump_dir"] = workflow.base_dir
    workflow.run(plugin=OurPart())


def smriprep_graphs(study, lesion, folder, lesion_network):
    """Graphs of a participant: normalised now, and normalised by an earlier run."""
    from fmriprep_style.participant import init_participant_wf

    (t1w,) = (study.bids / "sub-01" / "anat").glob("*_T1w.nii.gz")
    (reverse,) = (study.fmriprep / "sub-01" / "anat").glob(f"*_from-{SPACE}_to-T1w_*_xfm.h5")
    transforms = {SPACE: {"forward": str(lesion.transforms[SPACE]), "reverse": str(reverse)}}
    found = {}
    for name, precomputed in (("fresh", {}), ("precomputed", {"transforms": transforms})):
        workflow = init_participant_wf(
            participant="01",
            t1w=[t1w],
            lesion_mask=lesion.mask,
            bids_dir=study.bids,
            output_dir=folder / "smriprep",
            lesion_network=lesion_network,
            precomputed=precomputed,
        )
        workflow.base_dir = str(folder / "work")
        found[name] = describe(workflow)
    run_sinks(workflow)
    return found


def fmriprep_graph(study, lesion, folder, lesion_network):
    from fmriprep import config
    from fmriprep.workflows.base import init_fmriprep_wf
    from fmriprep.workflows.tests import mock_config
    from fmriprep_style.participant import extend_fmriprep_wf

    with mock_config(bids_dir=study.bids):
        config.execution.participant_label = ["01"]
        config.execution.output_spaces = SPACE
        config.workflow.anat_only = True
        config.workflow.run_reconall = False
        config.init_spaces()
        workflow = extend_fmriprep_wf(
            init_fmriprep_wf(),
            participant="01",
            lesion_mask=lesion.mask,
            output_dir=folder / "fmriprep",
            lesion_network=lesion_network,
        )
        refused = {**lesion_network, "tractogram_space": "MNI152NLin2009aSym"}
        try:
            extend_fmriprep_wf(
                workflow,
                participant="01",
                lesion_mask=lesion.mask,
                output_dir=folder / "fmriprep",
                lesion_network=refused,
            )
        except ValueError as error:
            complaint = str(error)
        return {**describe(workflow), "complaint": complaint}


def main(folder, demonstration):
    from fmriprep_data import write_fmriprep_study

    fill_templates()
    folder, demonstration = Path(folder).absolute(), Path(demonstration).absolute()
    study = write_fmriprep_study(folder, subjects=("01",), targets=(SPACE,), inverses=True)
    connectomes = demonstration / "connectomes"
    lesion_network = {
        "connectome_files": sorted((connectomes / "functional").glob("*.h5")),
        "connectome_space": SPACE,
        "tractogram": connectomes / "structural" / "demo.tck",
        "tractogram_space": SPACE,
    }
    (lesion,) = study.lesions
    found = smriprep_graphs(study, lesion, folder, lesion_network)
    found["fmriprep"] = fmriprep_graph(study, lesion, folder, lesion_network)
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main(*sys.argv[1:])
