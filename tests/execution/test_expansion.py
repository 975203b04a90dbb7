"""The graph that is run is the one that nipype would run."""

from copy import deepcopy

import pytest
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import generate_expanded_graph

from lacuna_nipype.execution.expansion import expand


def first(items):
    return items[0]


def add(a, b):
    return a + b


def function(name, kind=pe.Node, **options):
    interface = niu.Function(input_names=["a", "b"], output_names=["sum"], function=add)
    return kind(interface, name=name, **options)


def inner_workflow(name):
    """Two steps, the inputs of which come through a node that hands on."""
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=["a", "b", "unused"]), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=["sum", "list"]), name="outputnode")
    one, many = function("one"), function("many", pe.MapNode, iterfield=["a"])
    many.inputs.a = [1, 2]
    workflow.connect(
        [
            (inputnode, one, [("a", "a"), ("b", "b")]),
            (one, many, [("sum", "b")]),
            (one, outputnode, [("sum", "sum")]),
            (many, outputnode, [("sum", "list")]),
        ]
    )
    return workflow


@pytest.fixture
def workflow(tmp_path):
    """Workflows in workflows, values and functions on the way, and a step by itself."""
    workflow = pe.Workflow(name="outer", base_dir=str(tmp_path))
    values = pe.Node(niu.IdentityInterface(fields=["b", "pair"]), name="values")
    values.inputs.trait_set(b=7, pair=[5, 6])
    deep = pe.Workflow(name="deep")
    deeper = inner_workflow("deeper")
    last = function("last")
    deep.connect([(deeper, last, [(("outputnode.list", first), "a"), ("outputnode.sum", "b")])])
    side = inner_workflow("side")
    workflow.connect(
        [
            (values, deep, [("b", "deeper.inputnode.b"), (("pair", first), "deeper.inputnode.a")]),
            (deep, side, [("last.sum", "inputnode.a")]),
            (values, side, [("b", "inputnode.b")]),
        ]
    )
    alone = function("alone")
    alone.inputs.trait_set(a=1, b=2)
    workflow.add_nodes([alone])
    return workflow


def as_nipype_does(workflow):
    graph = generate_expanded_graph(deepcopy(workflow._create_flat_graph()))
    for node in graph.nodes():
        node.base_dir = workflow.base_dir
    workflow._configure_exec_nodes(graph)
    return graph


def described(graph):
    """Nodes by name: folder, inputs and where they come from; and edges."""
    nodes = {
        node.fullname: (node.output_dir(), node.inputs.get(), node.input_source) for node in graph
    }
    return nodes, {(before.fullname, after.fullname) for before, after in graph.edges()}


def test_as_nipype_expands_it(workflow):
    theirs = described(as_nipype_does(workflow))
    graph = expand(workflow)
    assert described(graph) == theirs
    names = {node.fullname for node in graph}
    assert names == {
        "outer.alone",
        *("outer.deep.deeper.one", "outer.deep.deeper.many", "outer.deep.last"),
        *("outer.side.one", "outer.side.many"),
    }
    assert all(node.config["execution"] for node in graph)
    # Again, as a run does after its plan.
    assert described(expand(workflow)) == theirs


def test_it_runs(workflow):
    from lacuna_nipype.execution.linear import GuardedLinearPlugin

    graph = expand(workflow)
    GuardedLinearPlugin({}).run(graph, workflow.config)
    sums = {node.fullname: node.result.outputs.sum for node in graph}
    # By hand: 5 + 7; 1 + 12 and 2 + 12; 13 + 12; 25 + 7; 1 + 32 and 2 + 32.
    assert sums == {
        "outer.alone": 3,
        "outer.deep.deeper.one": 12,
        "outer.deep.deeper.many": [13, 14],
        "outer.deep.last": 25,
        "outer.side.one": 32,
        "outer.side.many": [33, 34],
    }


def test_what_is_not_supported(tmp_path):
    iterated = pe.Workflow(name="iterated", base_dir=str(tmp_path))
    node = function("node")
    node.iterables = ("a", [1, 2])
    iterated.add_nodes([node])
    with pytest.raises(ValueError, match="iterables"):
        expand(iterated)

    twice = pe.Workflow(name="twice", base_dir=str(tmp_path))
    middle = pe.Node(niu.IdentityInterface(fields=["x"]), name="middle")
    twice.connect(
        [
            (function("before"), middle, [(("sum", first), "x")]),
            (middle, function("after"), [(("x", first), "a")]),
        ]
    )
    with pytest.raises(ValueError, match="two functions"):
        expand(twice)
