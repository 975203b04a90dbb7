"""The directive ``workflow``: runs code that builds a Nipype workflow ``wf``, and draws ``wf``.

The drawing shows one level: nodes, and inner workflows as boxes of their own. It is SVG made here,
so that building the documentation needs no graphviz. ``:graph2use:`` and ``:simple_form:`` are
accepted as nipype's own directive has them; there is one form only.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from graph_drawing import draw_workflow


class WorkflowGraph(Directive):
    """Draw the workflow that the content builds."""

    has_content = True
    option_spec = {"graph2use": directives.unchanged, "simple_form": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Give the code and the drawing."""
        code = "\n".join(self.content)
        names: dict[str, Any] = {}
        try:
            exec(compile(code, "workflow block", "exec"), names)  # noqa: S102 - our docstrings
            drawing = draw_workflow(names["wf"])
        except Exception as error:
            raise self.error(
                f"The workflow block fails: {type(error).__name__}: {error}"
            ) from error
        block = nodes.literal_block(code, code, language="python")
        picture = nodes.raw("", f'<div class="workflow-graph">{drawing}</div>', format="html")
        return [block, picture]


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("workflow", WorkflowGraph)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
