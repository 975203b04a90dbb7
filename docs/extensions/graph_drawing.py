"""Draws the top level of a Nipype workflow as SVG: in rows, downwards along the connections."""

from __future__ import annotations

from collections import defaultdict
from html import escape
from itertools import pairwise
from typing import Any

import networkx as nx

# Distances in pixels; width of a letter in the font of the pages.
ROW, GAP, HEIGHT, MARGIN = 78.0, 18.0, 40.0, 8.0
LETTER, PADDING = 6.6, 22.0
# Width that is kept free where an arrow passes a row.
BEND = 4.0
SWEEPS = 12


def draw_workflow(workflow: Any) -> str:
    """Draw the top level of a workflow.

    Parameters
    ----------
    workflow : nipype Workflow

    Returns
    -------
    str
        An ``svg`` element.
    """
    graph = nx.DiGraph()
    for node in workflow._graph.nodes():
        graph.add_node(node.name, **_describe(node))
    for source, target, data in workflow._graph.edges(data=True):
        fields = sorted(f"{_name(out)} to {into}" for out, into in data["connect"])
        graph.add_edge(source.name, target.name, fields=fields)
    widths = {
        name: max(len(name) * LETTER, len(data["kind"]) * LETTER * 0.85) + PADDING
        for name, data in graph.nodes(data=True)
    }
    rows, chains = _arrange(graph)
    places = _place(rows, chains, widths)
    return _svg(graph, widths, places, chains, len(rows))


def _name(field: Any) -> str:
    """Name of a source field, which is a tuple where a function is applied to it."""
    return field if isinstance(field, str) else str(field[0])


def _describe(node: Any) -> dict[str, str]:
    if not hasattr(node, "interface"):
        return {"style": "inner", "kind": "workflow"}
    kind = type(node.interface).__name__
    if type(node).__name__ == "MapNode":
        kind = f"{kind}, for each"
    ends = node.name in ("inputnode", "outputnode")
    return {"style": "border" if ends else "node", "kind": "" if ends else kind}


def _layers(graph: nx.DiGraph) -> dict[str, int]:
    """Give the row of each node: below all it depends on, and near what it serves."""
    layers: dict[str, int] = {}
    order = list(nx.topological_sort(graph))
    for name in order:
        layers[name] = 1 + max((layers[before] for before in graph.predecessors(name)), default=-1)
    for name in reversed(order):
        after = [layers[later] for later in graph.successors(name)]
        if after and name != "inputnode":
            layers[name] = max(layers[name], min(after) - 1)
    if "outputnode" in layers:
        layers["outputnode"] = max(layers.values())
    return layers


def _arrange(graph: nx.DiGraph) -> tuple[list[list[Any]], dict[tuple[str, str], list[Any]]]:
    """Order the nodes of each row; edges over several rows get a bend in every row between."""
    layers = _layers(graph)
    rows: list[list[Any]] = [[] for _ in range(max(layers.values()) + 1)]
    for name, row in layers.items():
        rows[row].append(name)
    chains = {}
    for source, target in graph.edges():
        bends = [(source, target, row) for row in range(layers[source] + 1, layers[target])]
        for bend in bends:
            rows[bend[2]].append(bend)
        chains[source, target] = [source, *bends, target]
    above, below = defaultdict(list), defaultdict(list)
    for chain in chains.values():
        for first, second in pairwise(chain):
            above[second].append(first)
            below[first].append(second)
    for sweep in range(SWEEPS):
        # Rows are sorted by the mean place of their neighbours, downwards and upwards in turn.
        near, turn = (above, rows[1:]) if sweep % 2 == 0 else (below, rows[-2::-1])
        for row in turn:
            rank = {
                name: (place + 0.5) / len(other)
                for other in rows
                for place, name in enumerate(other)
            }
            row.sort(key=lambda name, rank=rank, near=near: _mean(near[name], rank, name))
    return rows, chains


def _mean(names: list[Any], values: dict[Any, float], own: Any) -> float:
    return sum(values[name] for name in names) / len(names) if names else values[own]


def _place(
    rows: list[list[Any]], chains: dict[tuple[str, str], list[Any]], widths: dict[str, float]
) -> dict[Any, float]:
    """Give the horizontal centre of every node and bend."""
    near = defaultdict(list)
    for chain in chains.values():
        for first, second in pairwise(chain):
            near[first].append(second)
            near[second].append(first)
    width = {name: widths.get(name, BEND) for row in rows for name in row}
    places: dict[Any, float] = {}
    for row in rows:
        left = 0.0
        for name in row:
            places[name] = left + width[name] / 2
            left += width[name] + GAP
    for _ in range(SWEEPS):
        for row in rows:
            wanted = [_mean(near[name], places, name) for name in row]
            for name, place in zip(row, _spread(row, wanted, width), strict=True):
                places[name] = place
    shift = min(places[name] - width[name] / 2 for name in places)
    return {name: place - shift + MARGIN for name, place in places.items()}


def _spread(row: list[Any], wanted: list[float], width: dict[Any, float]) -> list[float]:
    """Keep the order and the distance of a row, as near to the wanted places as that allows."""
    offsets = [0.0]
    for first, second in pairwise(row):
        offsets.append(offsets[-1] + (width[first] + width[second]) / 2 + GAP)
    # Places less their offsets must not decrease: neighbours that would are set to their mean.
    groups: list[list[float]] = []
    for place, offset in zip(wanted, offsets, strict=True):
        groups.append([place - offset, 1.0])
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            value, count = groups.pop()
            total = groups[-1][1] + count
            groups[-1] = [(groups[-1][0] * groups[-1][1] + value * count) / total, total]
    flat = [value for value, count in groups for _ in range(int(count))]
    return [value + offset for value, offset in zip(flat, offsets, strict=True)]


def _svg(graph, widths, places, chains, n_rows) -> str:
    heights: dict[Any, float] = {}
    layers = _layers(graph)
    for chain in chains.values():
        for step, name in enumerate(chain):
            heights[name] = layers[chain[0]] * ROW + step * ROW + MARGIN + HEIGHT / 2
    for name in graph:
        heights.setdefault(name, layers[name] * ROW + MARGIN + HEIGHT / 2)
    right = max(places[name] + widths.get(name, BEND) / 2 for name in places) + MARGIN
    bottom = (n_rows - 1) * ROW + HEIGHT + 2 * MARGIN
    size = f'width="{right:.0f}" height="{bottom:.0f}" viewBox="0 0 {right:.0f} {bottom:.0f}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>']
    for (source, target), chain in chains.items():
        parts.append(_edge(chain, places, heights, graph.edges[source, target]["fields"]))
    for name, data in graph.nodes(data=True):
        parts.append(_box(name, data, widths[name], places[name], heights[name]))
    return "".join([*parts, "</svg>"])


def _edge(chain, places, heights, fields) -> str:
    points = [(places[name], heights[name]) for name in chain]
    points[0] = (points[0][0], points[0][1] + HEIGHT / 2)
    points[-1] = (points[-1][0], points[-1][1] - HEIGHT / 2 - 5)
    path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        path += f" C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}"
    x, y = points[-1]
    title = escape("; ".join(fields))
    return (
        f'<g><title>{title}</title><path class="edge" d="{path}"/>'
        f'<path class="tip" d="M{x - 4:.1f},{y - 2:.1f} h8 l-4,7 z"/></g>'
    )


def _box(name, data, width, x, y) -> str:
    left, top, kind = x - width / 2, y - HEIGHT / 2, data["kind"]
    shift = -2 if kind else 4
    lines = f'<text x="{x:.1f}" y="{y + shift:.1f}">{escape(name)}</text>'
    if kind:
        lines += f'<text class="kind" x="{x:.1f}" y="{y + 12:.1f}">{escape(kind)}</text>'
    return (
        f'<g class="{data["style"]}"><rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{HEIGHT:.0f}" rx="6"/>{lines}</g>'
    )
