"""What a run is working on, told to other runs: its work folder, and its lesions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lacuna_nipype.cli.state import MASK
from lacuna_nipype.core.exceptions import LacunaError
from lacuna_nipype.core.files import lock_file, read_json, write_json
from lacuna_nipype.io.derivatives import dataset_lock

Signatures = Mapping[str, str]


@contextmanager
def own_work_folder(folder: Path) -> Iterator[None]:
    """Keep a work folder for one run: two at once would overwrite each other's steps.

    Parameters
    ----------
    folder : Path
        Created when missing.

    Raises
    ------
    LacunaError
        Another run uses it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The lock goes with the process, however that ends.
    with (folder / "run.lock").open("a") as lock:
        if not lock_file(lock, wait=False):
            raise LacunaError(
                f"The work folder {folder} is in use by another run; wait for its end, or set "
                "another with -w."
            )
        yield


@contextmanager
def claimed(
    output_dir: Path, run_id: str, lesions: Mapping[str, Signatures], *, alone: bool = False
) -> Iterator[None]:
    """Keep other runs from writing other results of the same lesions meanwhile.

    Runs that write the same results may work at once: each file is whole, whoever wrote it.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.
    run_id : str
        Name of the run.
    lesions : mapping of str to mapping
        By lesion and analysis, signatures of all that the results depend on; and of its mask.
    alone : bool
        Refuse runs that write the same results too: this one removes them first.

    Raises
    ------
    LacunaError
        Another run works on one of the lesions, with other parameters or inputs.
    """
    folder = output_dir / "logs" / "running"
    with dataset_lock(output_dir):
        for other in _running(folder):
            _refuse_other_results(output_dir, other, lesions, alone=alone)
        path = write_json(folder / f"{run_id}.json", {key: dict(lesions[key]) for key in lesions})
        # The lock goes with the process, however that ends.
        held = path.open("r+b")
        lock_file(held, wait=False)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        held.close()


def _running(folder: Path) -> Iterator[Path]:
    """Give the files of the runs that go on, and remove those of runs that were killed."""
    for path in sorted(folder.glob("*.json")):
        try:
            with path.open("r+b") as stream:
                ended = lock_file(stream, wait=False)
        except FileNotFoundError:
            # It has ended since the folder was listed.
            continue
        if ended:
            path.unlink(missing_ok=True)
        else:
            yield path


def _refuse_other_results(
    output_dir: Path, other: Path, lesions: Mapping[str, Signatures], *, alone: bool
) -> None:
    try:
        theirs = read_json(other)
    except FileNotFoundError:
        return
    for key in sorted(set(theirs) & set(lesions)):
        both = set(theirs[key]) & set(lesions[key])
        if alone and any(not name.startswith(MASK) for name in both):
            raise LacunaError(
                f"Another run ({other.stem}) works on {key} in {output_dir}; wait for its end "
                "before its results are overwritten."
            )
        if any(theirs[key][name] != lesions[key][name] for name in both):
            raise LacunaError(
                f"Another run ({other.stem}) works on {key} in {output_dir}, with other "
                "parameters or inputs; wait for its end, or choose another output folder."
            )
