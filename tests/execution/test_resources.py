"""Amounts of memory as people write them, and what a machine, a container or SLURM allows."""

import os
from types import SimpleNamespace

import psutil
import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.execution import resources
from lacuna_nipype.execution.resources import (
    available_memory_gb,
    available_processors,
    parse_memory,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16G", 16),
        ("16g", 16),
        ("16GB", 16),
        ("16 GB", 16),
        ("16GiB", 16),
        (" 16 gb ", 16),
        ("1.5G", 1.5),
        (".5G", 0.5),
        ("0.5G", 0.5),
        ("16000", 16),
        ("16000M", 16),
        ("16000 mb", 16),
        ("1T", 1000),
        ("0.25 TB", 250),
    ],
)
def test_amounts(text, expected):
    assert parse_memory(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "G", "GB", "16X", "16GG", "1,5G", "-16G", "1e3G", "16 G B", "16G 8G", "inf"),
        *("0", "0G", "16", "499", "0.4G", "16000b", "16 000"),
    ],
)
def test_what_is_no_useful_amount(text):
    with pytest.raises(ValidationError):
        parse_memory(text)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 100 GB free and no limits; write a limit by its kind."""
    files = tmp_path / "memory.max", tmp_path / "limit_in_bytes"
    monkeypatch.setattr(resources, "_CGROUP_LIMITS", files)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100e9))
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)

    def limit(v2=None, v1=None, slurm=None):
        for path, text in zip(files, (v2, v1), strict=True):
            if text is not None:
                path.write_text(text)
        if slurm is not None:
            monkeypatch.setenv("SLURM_MEM_PER_NODE", slurm)

    return limit


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 90),
        ({"v2": "max\n"}, 90),
        ({"v2": "20000000000\n"}, 18),
        ({"v1": "10000000000\n"}, 9),
        ({"v1": "9223372036854771712\n"}, 90),
        ({"v2": "20000000000", "v1": "10000000000"}, 9),
        ({"slurm": "16000"}, 0.9 * 16000 * 2**20 / 1e9),
        ({"slurm": "0"}, 90),
        ({"slurm": "lots"}, 90),
        ({"v2": "20000000000", "slurm": "4000"}, 0.9 * 4000 * 2**20 / 1e9),
        ({"v2": "900000000000"}, 90),
    ],
)
def test_memory_is_the_tightest_limit(machine, limits, expected):
    machine(**limits)
    assert available_memory_gb() == pytest.approx(expected)


def test_memory_of_this_machine():
    assert 0 < available_memory_gb() < psutil.virtual_memory().total / 1e9


def test_processors_are_those_of_the_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7})
    assert available_processors() == 3
