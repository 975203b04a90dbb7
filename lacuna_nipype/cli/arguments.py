"""The parser of all commands, and the types of their arguments."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Parser of a command.

    It takes ``-`` and ``_`` in long flags alike, ends every error with its reason, and a list
    option that is given several times has the values of all of them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("action", None, _StoreOrExtend)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse, after the flags were spelled with dashes."""
        words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([_with_dashes(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        """End with the usage and the reason."""
        self.print_usage(sys.stderr)
        self.exit(2, f"lacuna-nipype: {message}\n")


class _StoreOrExtend(argparse._StoreAction):
    """What options do that ask for nothing else: keep the last value, but of lists all."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        known = getattr(namespace, self.dest, None)
        # The default is what holds where the option is not given: values are not added to it.
        is_list = self.nargs == "+" and option_string is not None
        if is_list and isinstance(known, list) and known is not self.default:
            values = [*known, *values]
        setattr(namespace, self.dest, values)


def _with_dashes(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def absolute_path(text: str) -> Path:
    """Read a path, whether or not something is there."""
    # Not resolve(): datasets under datalad are links whose names matter.
    return Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100


def existing_path(text: str) -> Path:
    """Read the path of something that is there."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path was given")
    path = absolute_path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist; check the path.")
    return path


def named_path(text: str) -> tuple[str, Path]:
    """Read NAME=PATH, or a path, whose last part is the name then."""
    name, equals, location = text.partition("=")
    if not equals:
        path = existing_path(text)
        return path.name or "derivatives", path
    return name, existing_path(location)


def label_of(prefix: str) -> Callable[[str], str]:
    """Type of a label that may be written with its entity, such as ``sub-``."""

    def strip(text: str) -> str:
        label = text.removeprefix(prefix)
        if not label:
            raise argparse.ArgumentTypeError(f"{text!r} is not a label")
        return label

    return strip


def positive_integer(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def natural_number(text: str) -> int:
    """Read a whole number of 0 or more."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def number_between(low: float, high: float) -> Callable[[str], float]:
    """Type of a number in a range, whose ends belong to it."""

    def number(text: str) -> float:
        value = _number(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return number


def positive_number(unit: str) -> Callable[[str], float]:
    """Type of a number above 0, of a unit."""

    def number(text: str) -> float:
        value = _number(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of {unit}")
        return value

    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def memory_size(text: str) -> float:
    """Read an amount of memory; gives GB."""
    from lacuna_nipype.core.exceptions import ValidationError
    from lacuna_nipype.execution.resources import parse_memory

    try:
        return parse_memory(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
