"""The graph that is run, made from a workflow.

Nipype's own way copies the workflow twice and looks at all nodes for each connection: minutes for
some hundred lesions. Here every node and every connection is looked at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
from nipype import config
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import JoinNode, Workflow
from nipype.pipeline.engine.utils import evaluate_connect_function, merge_dict

# Name of an output; or with a function to pass its value through, and more arguments for that.
Output = str | tuple[Any, ...]


@dataclass(frozen=True)
class Source:
    """Where the value of an input comes from.

    Parameters
    ----------
    node : nipype Node
    output : str or tuple
    """

    node: Any
    output: Output


def expand(workflow: Workflow) -> nx.DiGraph:
    """Make the graph of the nodes that run, as :meth:`nipype.Workflow.run` does.

    Parameters
    ----------
    workflow : nipype Workflow
        With ``base_dir``, and without iterables and JoinNodes. Its nodes become those of the
        graph and are changed: it can be expanded again, but nipype itself cannot run it any more.

    Returns
    -------
    networkx.DiGraph
        Of nodes that know their folders and the files that their inputs come from. Nodes that
        only hand on values are left out. Edges have no content.

    Raises
    ------
    ValueError
        The workflow has iterables or JoinNodes, goes round in circles, or passes a value
        through two functions in a row.
    """
    nodes = list(_all_nodes(workflow, workflow.name))
    sources = dict(_all_connections(workflow))
    workflow.config = merge_dict(deepcopy(config._sections), workflow.config)
    graph = nx.DiGraph()
    for node in nodes:
        if node.iterables or isinstance(node, JoinNode):
            raise ValueError(f"{node.fullname} has iterables or joins; this is not supported.")
        if not _hands_on(node):
            _prepare(node, workflow, len(graph))
            graph.add_node(node)
    for (node, field), source in sources.items():
        if _hands_on(node):
            continue
        origin = _trace(source, sources)
        if isinstance(origin, Source):
            file = Path(origin.node.output_dir(), f"result_{origin.node.name}.pklz")
            node.input_source[field] = (str(file), origin.output)
            graph.add_edge(origin.node, node)
        else:
            node.set_input(field, origin[0])
    if not nx.is_directed_acyclic_graph(graph):
        raise ValueError(f"{workflow.name} goes round in circles.")
    return graph


def _all_nodes(workflow: Workflow, place: str) -> Iterator[Any]:
    """Give a workflow's own nodes and then those of the workflows in it; note where they are."""
    inner = []
    for node in workflow._graph.nodes():
        if isinstance(node, Workflow):
            inner.append(node)
        else:
            node._hierarchy = place
            yield node
    for own in inner:
        yield from _all_nodes(own, f"{place}.{own.name}")


def _all_connections(workflow: Workflow) -> Iterator[tuple[tuple[Any, str], Source]]:
    """Give the inputs that are connected, as node and field, and what they are connected to."""
    for node in workflow._graph.nodes():
        if isinstance(node, Workflow):
            yield from _all_connections(node)
    for left, right, data in workflow._graph.edges(data=True):
        for output, place in data["connect"]:
            whole, *function = output if isinstance(output, tuple) else (output,)
            node, name = _find(left, whole)
            yield _find(right, place), Source(node, (name, *function) if function else name)


def _find(node: Any, place: str) -> tuple[Any, str]:
    """Node and field that a place such as ``inner_wf.node.field`` below a node names."""
    path, _, field = place.rpartition(".")
    return (node.get_node(path) if isinstance(node, Workflow) else node), field or place


def _hands_on(node: Any) -> bool:
    return isinstance(node.interface, IdentityInterface)


def _prepare(node: Any, workflow: Workflow, index: int) -> None:
    """Tell a node what it has of the workflow."""
    # The settings are the same for all: thousands of copies would cost more than all else here.
    node.config = workflow.config
    node.base_dir = workflow.base_dir
    node.index = index
    node.input_source = {}


def _trace(source: Source, sources: dict[tuple[Any, str], Source]) -> Source | tuple[Any]:
    """Follow a connection back through nodes that hand on: to its source, or to a value."""
    function: tuple[Any, ...] = ()
    while True:
        name, *passes = source.output if isinstance(source.output, tuple) else (source.output,)
        if passes and function:
            raise ValueError(f"{source.node.fullname}.{name} passes through two functions.")
        function = function or tuple(passes)
        if not _hands_on(source.node):
            return Source(source.node, (name, *function) if function else name)
        if (source.node, name) not in sources:
            value = getattr(source.node.inputs, name)
            return (evaluate_connect_function(*function, value) if function else value,)
        source = sources[source.node, name]
