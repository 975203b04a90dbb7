"""The directive ``public-names``: documents all that a module lists in ``__all__``."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList


class PublicNames(Directive):
    """Document the functions, classes and exceptions of a module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Hand the names over to autodoc."""
        module = self.arguments[0]
        imported = import_module(module)
        lines: list[str] = []
        for name in imported.__all__:
            value = getattr(imported, name)
            if not inspect.isclass(value):
                kind, options = "function", []
            elif issubclass(value, BaseException):
                kind, options = "exception", []
            else:
                kind, options = "class", ["   :members:"]
            lines += [f".. auto{kind}:: {module}.{name}", *options, ""]
        container = nodes.Element()
        self.state.nested_parse(StringList(lines, source=module), 0, container)
        return container.children


def use_dashes(app: Any, doctree: nodes.document) -> None:
    """Write the two hyphens behind the name of a parameter, which are Sphinx's, as a dash."""
    for text in list(doctree.findall(nodes.Text)):
        if text.startswith(" -- "):
            text.parent.replace(text, nodes.Text(f" \N{EN DASH} {text[4:]}"))


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("public-names", PublicNames)
    app.connect("doctree-read", use_dashes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
