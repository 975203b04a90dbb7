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
    groups = tmp_path / "cgroup"
    monkeypatch.setattr(resources, "_CGROUPS", groups)
    monkeypatch.setattr(resources, "_OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("4:cpu,cpuacct:/job/step\n3:memory:/job/step\n0::/user/job\n")
    files = {
        "v2": groups / "memory.max",
        "v2_own": groups / "user" / "job" / "memory.max",
        "v2_parent": groups / "user" / "memory.max",
        "v2_other": groups / "else" / "memory.max",
        "v1": groups / "memory" / "memory.limit_in_bytes",
        "v1_own": groups / "memory" / "job" / "step" / "memory.limit_in_bytes",
        "quota_v2": groups / "user" / "job" / "cpu.max",
        "quota_v1": groups / "cpu" / "job" / "cpu.cfs_quota_us",
    }
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    (groups / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100e9))
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)

    def limit(slurm=None, slurm_per_cpu=None, **texts):
        for name, text in texts.items():
            files[name].write_text(text)
        if slurm is not None:
            monkeypatch.setenv("SLURM_MEM_PER_NODE", slurm)
        if slurm_per_cpu is not None:
            monkeypatch.setenv("SLURM_MEM_PER_CPU", slurm_per_cpu)
            monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")

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
        ({"v2_own": "20000000000"}, 18),
        ({"v2_parent": "20000000000", "v2_own": "max"}, 18),
        ({"v2_other": "20000000000"}, 90),
        ({"v1_own": "20000000000", "v1": "9223372036854771712"}, 18),
        ({"slurm_per_cpu": "2000"}, 0.9 * 4 * 2000 * 2**20 / 1e9),
        ({"slurm_per_cpu": "0"}, 90),
    ],
)
def test_memory_is_the_tightest_limit(machine, limits, expected):
    machine(**limits)
    assert available_memory_gb() == pytest.approx(expected)


def test_memory_of_this_machine():
    assert 0 < available_memory_gb() < psutil.virtual_memory().total / 1e9


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 3),
        ({"quota_v2": "max 100000\n"}, 3),
        ({"quota_v2": "200000 100000\n"}, 2),
        ({"quota_v2": "150000 100000\n"}, 2),
        ({"quota_v2": "10000 100000\n"}, 1),
        ({"quota_v2": "900000 100000\n"}, 3),
        ({"quota_v1": "-1\n"}, 3),
        ({"quota_v1": "200000\n"}, 2),
    ],
)
def test_processors_are_those_of_the_affinity_and_the_quota(
    machine, monkeypatch, limits, expected
):
    machine(**limits)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7})
    assert available_processors() == expected


def test_processors_are_no_more_than_slurm_gives(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7})
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert available_processors() == 2
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    assert available_processors() == 3


def test_without_control_groups_the_usual_places_are_looked_at(machine, tmp_path):
    (tmp_path / "own").unlink()
    machine(v1="10000000000")
    assert available_memory_gb() == pytest.approx(9)
