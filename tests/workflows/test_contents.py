"""Every step of a graph that reads a user's file is told which content it must have."""

import pytest
from nipype.interfaces.base import isdefined

from lacuna_nipype.io.structural_outputs import StructuralOutputs
from lacuna_nipype.workflows import init_lacuna_wf

SPACE = "MNI152NLin6Asym"
NAMES = ("fingerprint", "index_fingerprint", "weights_fingerprint", "labels_fingerprint",
         "matrix_fingerprint")  # fmt: skip
# Steps of a lesion map what the steps before them have made; so does the check of a conversion.
OWN_FILES = ("sub_1_wf.snm_wf.tckmap",)


@pytest.fixture
def build(tmp_path):
    def make(engine, **tractogram):
        given = {}
        for name in ("mask.nii.gz", "atlas.nii.gz", "atlas.txt", "a.h5", "t.tck", "t.trk", "t.h5",
                     "groups.tsv", "weights.txt", "matrix.tsv"):  # fmt: skip
            given[name] = tmp_path / name
            given[name].touch()
        atlas = {"image": given["atlas.nii.gz"], "labels": given["atlas.txt"], "name": "A",
                 "entities": {"atlas": "A"}, "fingerprint": "image",
                 "labels_fingerprint": "names"}  # fmt: skip
        return init_lacuna_wf(
            lesions=[
                {
                    "key": "sub-1",
                    "mask_file": given["mask.nii.gz"],
                    "fingerprint": "mask",
                    "entities": {"subject": "1", "space": SPACE, "label": "L"},
                }
            ],
            output_dir=tmp_path / "out",
            base_dir=tmp_path / "work",
            analyses=["rd", "fnm", "snm", "afnm"],
            atlases=[atlas],
            matrix_file=given["matrix.tsv"],
            matrix_fingerprint="matrix",
            functional_files=[given["a.h5"], given["a.h5"]],
            functional_fingerprints=["one", "two"],
            functional_space=SPACE,
            fnm_options={"method": "pini"},
            tractogram={
                "tractogram": given["t.tck"], "space": SPACE, "fingerprint": "tracks",
                "streamline_groups": given["groups.tsv"], "groups_fingerprint": "groups",
                "weights_fingerprint": "weights",
                **{key: given.get(value, value) for key, value in tractogram.items()},
            },
            snm_options={"engine": engine, "streamline_weights": given["weights.txt"]},
            snm_outputs=StructuralOutputs(
                matrix_atlases=[atlas], matrices=True, roi=True, bundles="groups",
                intermediate=True, weighted=True,
            ),
        )  # fmt: skip

    return make


def expectations(workflow):
    """What each step is told of the contents of its files, by its name and the input's."""
    graph = workflow._create_flat_graph()
    found = {}
    for node in graph.nodes():
        fed = {field for _, _, link in graph.in_edges(node, data=True)
               for _, field in link["connect"]}  # fmt: skip
        for name in set(NAMES) & set(node.interface.inputs.copyable_trait_names()):
            value = getattr(node.inputs, name)
            step = node.fullname.partition(".")[2]
            if type(node.interface).__name__ != "IdentityInterface":
                found[step, name] = value if isdefined(value) else name in fed
    return found


@pytest.mark.parametrize(
    ("engine", "tractogram", "untold"),
    [
        ("mrtrix", {}, {("tractogram_wf.check", "index_fingerprint")}),
        ("index", {}, {("tractogram_wf.check", "index_fingerprint")}),
        ("index", {"index_file": "t.h5", "index_fingerprint": "index"}, set()),
        # The file that the conversion makes is nobody else's.
        ("index", {"tractogram": "t.trk", "convert": True},
         {("tractogram_wf.check", "index_fingerprint"), ("tractogram_wf.check", "fingerprint")}),
    ],
)  # fmt: skip
def test_every_reader_is_told(build, engine, tractogram, untold):
    found = expectations(build(engine, **tractogram))
    missing = {key for key, value in found.items() if not value and key[0] not in OWN_FILES}
    assert missing == untold
    said = {value for value in found.values() if isinstance(value, str)}
    own = {"mask", "image", "names", "matrix"}
    assert said == {"tracks", "weights", "groups", *own, *({"index"} & set(tractogram.values()))}
    # By the functional pass, from its list of files.
    assert {step for step, _ in found if step.startswith("fnm_wf.")} == {
        f"fnm_wf.{step}" for step in ("brain", "relate", "select", "correlate", "reduce")
    }
