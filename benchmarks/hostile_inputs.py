"""Damaged, absurd and malicious files of every kind, given to all readers and to the command.

Run ``python benchmarks/hostile_inputs.py --cases 10000 --seed 1``; see README.md in this folder.
A case is known by the seed and its number. Whatever comes of it must be a right result or one
sentence: a traceback, a crash, a hang, a wrong result or too much memory is a failure, whose
files are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hostile.commands import SECONDS, Command
from hostile.kinds import Kind
from hostile.worker import CASE_SECONDS, COMMAND_EVERY, case_of
from hostile.worker import main as answer

CASES_PER_WORKER = 400
_LIBRARIES = ("OMP", "OPENBLAS", "MKL", "NUMBA")
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in _LIBRARIES}


class Worker:
    """A process that runs cases; replaced when it dies or hangs."""

    def __init__(self, seed: int, base: Path) -> None:
        self._base = base
        self._words = [sys.executable, __file__, "--worker", str(base), "--seed", str(seed)]
        self._process: subprocess.Popen[str] | None = None
        self._left = 0

    def run(self, number: int, folder: Path) -> dict[str, Any]:
        """Run one case; never raises for what the case does."""
        if self._process is None or self._left == 0:
            self.stop()
            package = str(Path(__file__).resolve().parents[1])
            paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": paths},
            )  # fmt: skip
            self._left = CASES_PER_WORKER
        self._left -= 1
        stdin, stdout = self._process.stdin, self._process.stdout
        stdin.write(json.dumps({"number": number, "folder": str(folder)}) + "\n")
        stdin.flush()
        ready, _, _ = select.select([stdout], [], [], CASE_SECONDS + SECONDS)
        line = stdout.readline() if ready else ""
        if not line:
            what = "no answer" if not ready else f"the process ended with {self._process.wait()}"
            printed = (self._base / f"printed-{self._process.pid}.txt").read_text(errors="replace")
            self.stop()
            return {"outcome": "FAILED", "detail": f"{printed[-2000:]}\n{what}"}
        report = json.loads(line)
        if report.pop("restart", False):
            self.stop()
        return report

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


def run_share(numbers: list[int], options: argparse.Namespace, base: Path) -> list[dict[str, Any]]:
    """Run some of the cases in one worker."""
    worker, reports = Worker(options.seed, base), []
    try:
        for number in numbers:
            folder = base / "cases" / str(number)
            began = time.perf_counter()
            report = worker.run(number, folder)
            report.setdefault("kind", case_of(options.seed, number)[0].name)
            report |= {"number": number, "seconds": time.perf_counter() - began}
            if report["outcome"] == "FAILED":
                kept = options.keep / f"{options.seed}-{number}"
                shutil.rmtree(kept, ignore_errors=True)
                if folder.exists():
                    shutil.copytree(folder, kept, symlinks=True, copy_function=_copy)
                describe(report, options.seed, kept)
            reports.append(report)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        worker.stop()
    return reports


def _copy(source: str, target: str) -> None:
    if Path(source).is_file():
        shutil.copy2(source, target)


def describe(report: dict[str, Any], seed: int, kept: Path) -> None:
    """Print a failure and how to see it again."""
    print(f"\n### Case {report['number']}: {report['kind']}, {report.get('target', '')}")
    print(f"{report.get('damage', '')[:300]}\n{report.get('detail', '')[-2500:]}")
    print(f"Files: {kept}\nAgain: python benchmarks/hostile_inputs.py --seed {seed} "
          f"--only {report['number']}", flush=True)  # fmt: skip


def print_counts(reports: list[dict[str, Any]], began: float) -> None:
    """A table of kinds and outcomes."""
    outcomes = sorted({report["outcome"] for report in reports})
    counts = Counter((report["kind"], report["outcome"]) for report in reports)
    print(f"\n| kind | {' | '.join(outcomes)} |\n|{' --- |' * (len(outcomes) + 1)}")
    for kind in sorted({report["kind"] for report in reports}):
        print(f"| {kind} | {' | '.join(str(counts[kind, o]) for o in outcomes)} |")
    total = Counter(report["outcome"] for report in reports)
    print(f"| all {len(reports)} | {' | '.join(str(total[o]) for o in outcomes)} |")
    slowest = max(reports, key=lambda report: report["seconds"])
    print(f"\n{time.perf_counter() - began:.0f} s; the slowest case, {slowest['number']} "
          f"({slowest['kind']}), took {slowest['seconds']:.1f} s.")  # fmt: skip


def _is_asked(subject: Kind | Command, options: argparse.Namespace) -> bool:
    reads = not (options.readers and isinstance(subject, Command))
    return reads and subject.name.startswith(options.kind)


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", type=int, action="append", help="number of a case to run again")
    parser.add_argument("--kind", default="", help="only cases whose kind begins like this")
    parser.add_argument(
        "--readers",
        action="store_true",
        help="only calls of reading functions, no commands: many times as fast",
    )
    parser.add_argument("--keep", type=Path, default=Path("hostile-failures"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run the cases; 1 when one of them failed."""
    options = parse()
    if options.worker is not None:
        answer(options.seed, options.worker)
        return 0
    began = time.perf_counter()
    numbers = options.only or [
        number for number in range(options.cases)
        if _is_asked(case_of(options.seed, number)[0], options)
    ]  # fmt: skip
    options.keep = options.keep.absolute()
    with tempfile.TemporaryDirectory(prefix="hostile-") as base:
        (Path(base) / "cases").mkdir()
        with ThreadPoolExecutor(options.jobs) as pool:
            # Commands take nearly all of the time.
            ordered = sorted(
                numbers, key=lambda number: number % COMMAND_EVERY == COMMAND_EVERY - 1
            )
            shares = [ordered[start :: options.jobs] for start in range(options.jobs)]
            done = [pool.submit(run_share, share, options, Path(base)) for share in shares]
            reports = [report for share in done for report in share.result()]
    print_counts(reports, began)
    failed = sum(report["outcome"] == "FAILED" for report in reports)
    print(f"{failed} of {len(reports)} cases failed (seed {options.seed}).")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
