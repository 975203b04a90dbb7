"""The directive ``usage``: what the parser of a command knows, as a page.

``usage:: module:function`` takes the parser that ``function()`` gives; with ``:prog:``, the
function fills a parser of that name. Subcommands become sections.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive, directives


class CommandUsage(Directive):
    """List the arguments of a command."""

    required_arguments = 1
    option_spec = {"prog": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Give the sections of the command."""
        module, _, name = self.arguments[0].partition(":")
        function = getattr(import_module(module), name)
        if "prog" not in self.options:
            return [_command(function())]
        parser = argparse.ArgumentParser(prog=self.options["prog"])
        function(parser)
        return [_command(parser)]


def _command(parser: argparse.ArgumentParser) -> nodes.section:
    section = _section(parser.prog)
    section += _texts(parser.description or "")
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    section += nodes.literal_block(usage, usage, language="text")
    inner = []
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        for action in list(shown):
            if isinstance(action, argparse._SubParsersAction):
                inner += [_command(one) for one in _unique(action)]
                shown.remove(action)
        if not shown:
            continue
        title = (group.title or "").capitalize()
        part = _section(title, parser.prog) if _is_own(group) else nodes.rubric("", title)
        arguments = nodes.definition_list()
        arguments += [_argument(parser, action) for action in shown]
        if isinstance(part, nodes.section):
            part += arguments
            section += part
        else:
            section += [part, arguments]
    section += _texts(parser.epilog or "")
    section += inner
    return section


def _unique(action: argparse._SubParsersAction) -> list[argparse.ArgumentParser]:
    """List parsers of subcommands, once each where one has several names."""
    return list(dict.fromkeys(action.choices.values()))


def _is_own(group: argparse._ArgumentGroup) -> bool:
    """Tell groups that the command names from argparse's own two."""
    return (group.title or "").lower() not in ("positional arguments", "options")


def _section(title: str, scope: str = "") -> nodes.section:
    section = nodes.section(ids=[nodes.make_id(f"{scope} {title}")])
    section += nodes.title(title, title)
    return section


def _argument(
    parser: argparse.ArgumentParser, action: argparse.Action
) -> nodes.definition_list_item:
    formatter = parser._get_formatter()
    if action.option_strings:
        values = "" if action.nargs == 0 else formatter._format_args(action, action.dest.upper())
        signature = ", ".join(action.option_strings) + (f" {values}" if values else "")
    else:
        signature = formatter._format_args(action, action.dest) or action.dest
    anchor = nodes.make_id(f"{parser.prog} {(action.option_strings or [action.dest])[0]}")
    help_text = formatter._expand_help(action) if action.help else ""
    item = nodes.definition_list_item(ids=[anchor])
    item += nodes.term("", "", nodes.literal(signature, signature))
    item += nodes.definition("", nodes.paragraph(help_text, help_text))
    return item


def _texts(text: str) -> list[nodes.Node]:
    """Paragraphs of a description; what is indented or aligned stays as it is typed."""
    found: list[nodes.Node] = []
    for block in text.strip().split("\n\n"):
        if not block.strip():
            continue
        if any(line.startswith("  ") for line in block.splitlines()):
            found.append(nodes.literal_block(block, block, language="text"))
        else:
            plain = " ".join(block.split())
            found.append(nodes.paragraph(plain, plain))
    return found


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("usage", CommandUsage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
