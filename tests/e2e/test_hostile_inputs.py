"""Damaged, absurd and malicious files of every kind: a right result or one sentence."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "hostile_inputs.py"


def test_three_hundred_hostile_files(tmp_path):
    words = [sys.executable, SCRIPT, "--cases", "300", "--seed", "8", "--jobs", "2"]
    process = subprocess.run(
        [*map(str, words), "--keep", str(tmp_path / "failures")],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-10_000:]
    assert "0 of 300 cases failed" in process.stdout
