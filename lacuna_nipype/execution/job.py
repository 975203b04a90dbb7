"""What a job of a cluster runs: ``python -m lacuna_nipype.execution.job FILE``."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from pathlib import Path
from traceback import format_exception
from typing import Any

from lacuna_nipype.core.files import write_json
from lacuna_nipype.execution.settings import use_settings

TASK_SUFFIX, OUTCOME_SUFFIX = ".task", ".outcome"


def write_task(path: Path, node: Any, settings: Any, *, updatehash: bool = False) -> None:
    """Write what a job needs.

    Parameters
    ----------
    path : Path
        Ends in ``.task``.
    node : nipype Node
    settings : dict
        Nipype's settings.
    updatehash : bool
    """
    with path.open("wb") as stream:
        task = {"node": pickle.dumps(node), "settings": settings, "updatehash": updatehash}
        pickle.dump(task, stream)


def main(path: Path) -> int:
    """Run the node in a file, and write how it went beside it.

    Parameters
    ----------
    path : Path
        From :func:`write_task`.

    Returns
    -------
    int
        Exit code: 0 if the outcome was written, whatever it is.
    """
    os.environ.setdefault("NIPYPE_NO_ET", "1")
    try:
        traceback = _run(path)
    except Exception as error:  # noqa: BLE001 - told by the one who asked
        traceback = format_exception(error)
    # The last thing: who sees this file may use the results.
    write_json(
        path.with_suffix(OUTCOME_SUFFIX),
        {"traceback": traceback, "host": socket.gethostname()},
    )
    return 0


def _run(path: Path) -> list[str] | None:
    from lacuna_nipype.execution.workers import run_step

    with path.open("rb") as stream:
        task = pickle.load(stream)  # noqa: S301 - written by our own run
    use_settings(task["settings"])
    node = pickle.loads(task["node"])  # noqa: S301
    return run_step(node, task["updatehash"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
