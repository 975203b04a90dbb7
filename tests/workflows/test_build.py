"""Every builder makes a graph from plain arguments, of a size that grows as it should."""

import inspect
import itertools
import re
import textwrap

import pytest
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import generate_expanded_graph

from lacuna_nipype import __version__, workflows
from lacuna_nipype.workflows.base import lesion_workflow_names

SPACE = "MNI152NLin6Asym"
ENTITIES = {"subject": "01", "space": SPACE, "label": "L"}
ANALYSES = ("rd", "fnm", "snm")
# What nipype gives to a node that says nothing.
UNSTATED_GB = 0.2


def expand(workflow):
    return list(generate_expanded_graph(workflow._create_flat_graph()).nodes())


def nodes_of(workflow):
    return [workflow.get_node(name) for name in workflow.list_node_names()]


@pytest.fixture
def build(tmp_path):
    """Build the whole graph for so many lesions, files, subjects and atlases."""

    def touch(name):
        path = tmp_path / name
        path.touch()
        return path

    def lesion(number, n_participants):
        subject, label = f"{number % n_participants:02d}", f"lesion{number}"
        return {
            "key": f"sub-{subject}_label-{label}",
            "mask_file": touch(f"mask_{number}.nii.gz"),
            "entities": {**ENTITIES, "subject": subject, "label": label},
        }

    def make(
        n_lesions=1, n_files=2, *, analyses=ANALYSES, n_atlases=1, n_participants=1, **changes
    ):
        return workflows.init_lacuna_wf(
            **{
                "lesions": [lesion(n, n_participants) for n in range(n_lesions)],
                "output_dir": tmp_path / "derivatives",
                "base_dir": tmp_path / "work",
                "analyses": analyses,
                "atlases": [
                    {
                        "image": touch(f"atlas_{n}.nii.gz"),
                        "labels": touch(f"atlas_{n}.tsv"),
                        "entities": {"atlas": f"A{n}"},
                    }
                    for n in range(n_atlases)
                ],
                "functional_files": [touch(f"batch_{n}.h5") for n in range(n_files)],
                "functional_resolution": "2",
                "tractogram": {"tractogram": touch("whole.tck"), "space": SPACE},
                **changes,
            }
        )

    return make


# Regional damage is damage of regions: it needs an atlas.
SOME_CHOICES = [
    (chosen, n_atlases)
    for size in (1, 2, 3)
    for chosen in itertools.combinations(ANALYSES, size)
    for n_atlases in (0, 2)
    if n_atlases or "rd" not in chosen
]


@pytest.mark.parametrize(
    ("analyses", "n_atlases"), SOME_CHOICES, ids=[f"{'+'.join(a)}-{n}" for a, n in SOME_CHOICES]
)
def test_whole_graph_builds_and_expands(build, analyses, n_atlases):
    for n_participants, n_lesions in [(1, 1), (2, 7)]:
        workflow = build(
            n_lesions, analyses=analyses, n_atlases=n_atlases, n_participants=n_participants
        )
        names = [node.fullname for node in expand(workflow)]
        assert len(set(names)) == len(names)
        sinks = [name for name in names if name.rpartition(".")[2].startswith("ds_")]
        assert len(sinks) == n_lesions * (1 + len(analyses))


def test_version_is_part_of_the_name(build):
    digits = re.findall(r"\d+", __version__)
    assert re.findall(r"\d+", build().name) == digits
    assert build(name="mine").name == "mine"


def test_maps_that_are_made_are_stored_and_averaged(build):
    """p, q and thresholded maps are stored; only r, z and t are summarised over regions."""
    for maps, averaged in ((("r", "z"), "rz"), (("r", "z", "t", "p", "q", "qsig"), "rzt")):
        (sink,) = [
            node
            for node in expand(build(analyses=["fnm"], n_atlases=1, fnm_maps=maps))
            if node.name == "ds_fnm"
        ]
        stored = [variant.get("statistic") for variant in sink.inputs.variants]
        assert stored == [*maps, "valid", *averaged, None]


def test_pini_puts_a_choice_of_voxels_before_the_pass(build):
    names = [n.fullname for n in expand(build(analyses=["fnm"], fnm_options={"method": "pini"}))]
    assert any(name.endswith("fnm_wf.select") for name in names)
    with pytest.raises(ValueError, match="boes"):
        build(analyses=["fnm"], fnm_options={"method": "other"})


def test_unknown_analysis_is_refused(build):
    with pytest.raises(ValueError, match="analysis"):
        build(analyses=["nothing"], n_atlases=0)


def test_names_of_lesion_workflows_are_node_names():
    names = {
        name
        for key in ("sub-01_ses-02_label-acute", "sub-01_label-a+b", "sub-01_label-L")
        for name in lesion_workflow_names(key)
    }
    assert len(names) == 6
    assert all(re.fullmatch(r"\w+", name) for name in names)


def pieces(node):
    """Jobs that a node of the expanded graph becomes: a MapNode over files is one a file."""
    fields = getattr(node, "iterfield", [])
    if not fields:
        return 1
    value = getattr(node.inputs, fields[0])
    return len(value) if isinstance(value, list) else 1


def test_size_is_a_sum_and_not_a_product(build):
    count = {
        (lesions, files): sum(pieces(node) for node in expand(build(lesions, files)))
        for lesions in (1, 4)
        for files in (1, 4)
    }
    assert count[4, 1] > count[1, 1]
    assert count[1, 4] == count[1, 1] + 3
    assert count[4, 4] - count[1, 1] == (count[4, 1] - count[1, 1]) + (count[1, 4] - count[1, 1])


def test_graph_of_a_large_cohort(build):
    nodes = expand(build(100, 20, n_atlases=2))
    assert sum(node.name == "ds_fnm" for node in nodes) == 100
    assert sum(node.name == "correlate" for node in nodes) == 1


def test_threads_reach_every_piece_of_the_pass(build, tmp_path):
    workflow = build(2, 3, analyses=["fnm"], omp_nthreads=3, memory_gb=5.0)
    correlate = next(node for node in expand(workflow) if node.name == "correlate")
    correlate.inputs.mask_files = [str(tmp_path / "mask_0.nii.gz")]
    assert (correlate.n_procs, correlate.mem_gb) == (3, 5.0)
    subnodes = [node for _, node in correlate._make_nodes(str(tmp_path))]
    assert len(subnodes) == 3
    assert {(node.n_procs, node.inputs.num_threads) for node in subnodes} == {(3, 3)}
    assert {node.mem_gb for node in subnodes} == {5.0}


def test_every_step_states_its_memory(build):
    workflow = build(1, 2)
    silent = [
        node.fullname
        for node in nodes_of(workflow)
        if not isinstance(node.interface, IdentityInterface) and node._mem_gb == UNSTATED_GB
    ]
    assert silent == []


def test_shared_steps_are_shared(build):
    names = [node.name for node in expand(build(5, 2, n_atlases=2))]
    for name in ("brain", "correlate", "reduce", "grid", "rd_atlas_1", "fnm_atlas_2"):
        assert names.count(name) == 1
    # The whole tractogram once, and the part of every lesion.
    assert names.count("tckmap") == 1 + 5


BUILDERS = [getattr(workflows, name) for name in workflows.__all__]
by_name = pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.__name__)


def documented_example(builder):
    match = re.search(
        r"^( *)\.\. workflow::\n((?:\1 .*\n|\s*\n)+)", inspect.getdoc(builder), re.MULTILINE
    )
    assert match, f"{builder.__name__} shows no graph"
    lines = match[2].splitlines()
    return textwrap.dedent("\n".join(line for line in lines if not line.strip().startswith(":")))


@by_name
def test_documented_graph_is_made(builder, tmp_path, monkeypatch):
    """As the documentation does it: in an empty folder, without data."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(documented_example(builder), scope)  # noqa: S102
    assert isinstance(scope["wf"], pe.Workflow)
    assert len(nodes_of(scope["wf"])) > 1
    scope["wf"]._create_flat_graph()
    assert list(tmp_path.iterdir()) == []


@by_name
def test_documented_fields_are_those_of_the_nodes(builder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(documented_example(builder), scope)  # noqa: S102
    for section, node_name in (("Inputs", "inputnode"), ("Outputs", "outputnode")):
        node = scope["wf"].get_node(node_name)
        fields = node.inputs.copyable_trait_names() if node is not None else []
        assert sorted(documented_fields(builder, section)) == sorted(fields)


def documented_fields(builder, section):
    match = re.search(
        rf"^{section}\n-+\n((?:.+\n?)+)", inspect.getdoc(builder), flags=re.MULTILINE
    )
    headings = re.findall(r"^(\w+(?:, \w+)*)$", match[1] if match else "", re.MULTILINE)
    return [field for heading in headings for field in heading.split(", ")]


@by_name
def test_arguments_are_keywords_and_documented(builder):
    doc = inspect.getdoc(builder)
    for name, parameter in inspect.signature(builder).parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert re.search(rf"^(\w+, )*{name}(, \w+)*( :.*)?$", doc, re.MULTILINE), name


def test_names_resolve_and_others_do_not():
    assert set(workflows.__all__) == set(dir(workflows))
    with pytest.raises(AttributeError):
        _ = workflows.init_nothing_wf


def test_steps_embed_into_a_foreign_graph(tmp_path):
    """A pipeline that has a mask already connects it to a single step."""
    outer = pe.Workflow(name="outer", base_dir=str(tmp_path))
    source = pe.Node(IdentityInterface(fields=["lesion"]), name="source")
    mask_wf = workflows.init_mask_wf(space=SPACE)
    fnm_wf = workflows.init_fnm_wf(connectome_files=["a.h5", "b.h5"])
    outer.connect(
        [
            (source, mask_wf, [("lesion", "inputnode.mask_file")]),
            (mask_wf, fnm_wf, [("outputnode.mask_file", "inputnode.mask_files")]),
        ]
    )
    names = [node.fullname for node in outer._create_flat_graph().nodes()]
    assert "outer.fnm_wf.correlate" in names
