"""The derivatives dataset as a whole: description, ignore list, sidecar names."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lacuna_nipype import __version__
from lacuna_nipype.core.exceptions import BidsError
from lacuna_nipype.core.files import atomic_path, lock_file, read_json, write_json

BIDS_VERSION = "1.10.1"
# Names of drafts and tools that the validator does not know yet. A pattern with a trailing
# slash would leave the folder itself flagged.
IGNORED = (
    "*.html",
    "figures",
    "*_statmap.*",
    "*_relmat.*",
    "*_probseg.tsv",
    "*_parcelstats.*",
    "*_stats.json",
    "*_desc-provenance.json",
    "*_tractography.*",
    "*_clusters.*",
)


def sidecar_path(path: Path) -> Path:
    """JSON that describes a file: same name, other extension."""
    name = path.name
    for extension in (".nii.gz", path.suffix):
        if name.endswith(extension):
            return path.with_name(name[: -len(extension)] + ".json")
    return path.with_name(name + ".json")


@contextmanager
def dataset_lock(output_dir: Path) -> Iterator[None]:
    """Hold the lock under which files that runs share are rewritten."""
    logs = output_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "dataset.lock").open("w") as lock:
        lock_file(lock)
        yield


def read_description(dataset: Path) -> dict[str, Any]:
    """Read a dataset's ``dataset_description.json``; empty when there is none or it is damaged.

    Parameters
    ----------
    dataset : Path

    Returns
    -------
    dict
    """
    try:
        content = read_json(dataset / "dataset_description.json")
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def dataset_links(description: Mapping[str, Any]) -> dict[str, str]:
    """Other datasets that a description names.

    Parameters
    ----------
    description : mapping
        From :func:`read_description`.

    Returns
    -------
    dict of str to str
        Without what is no text.
    """
    links = description.get("DatasetLinks")
    found = links.items() if isinstance(links, dict) else ()
    return {name: target for name, target in found if isinstance(target, str)}


def refuse_foreign_dataset(output_dir: Path) -> None:
    """Refuse a folder that holds a dataset of somebody else; nothing is written.

    Parameters
    ----------
    output_dir : Path
        It need not exist.

    Raises
    ------
    BidsError
        The folder holds a dataset that this package did not write.
    """
    existing = read_description(output_dir)
    if existing and _maker(existing).get("Name") != "lacuna-nipype":
        raise BidsError(
            f"Output folder {output_dir} already holds another dataset "
            f"({existing.get('Name', 'unnamed')}); choose an empty folder."
        )


def _maker(description: Mapping[str, Any]) -> dict[str, Any]:
    """First entry of a description's ``GeneratedBy``; empty where there is none."""
    makers = description.get("GeneratedBy") or [{}]
    return makers[0] if isinstance(makers, list) and isinstance(makers[0], dict) else {}


def prepare_dataset(output_dir: Path, links: Mapping[str, Path | str]) -> list[str]:
    """Create or refresh the files at the root of a derivatives dataset, under its lock.

    Parameters
    ----------
    output_dir : Path
        Created when missing.
    links : mapping of str to path
        Names of the datasets that ``bids:NAME:`` addresses point to.

    Returns
    -------
    list of str
        Remarks: another version of this package wrote here before, or a link changes.

    Raises
    ------
    BidsError
        The folder holds a dataset that this package did not write.
    """
    refuse_foreign_dataset(output_dir)
    existing = read_description(output_dir)
    remarks: list[str] = []
    if existing and _maker(existing).get("Version") != __version__:
        remarks.append(
            f"{output_dir} holds results of version {_maker(existing).get('Version')}; those "
            f"computed now are of {__version__}."
        )
    merged = dataset_links(existing)
    for name, target in links.items():
        if name in merged and merged[name] != str(target):
            remarks.append(f"Dataset link {name} now means {target} (it was {merged[name]}).")
        merged[name] = str(target)
    description = {
        "Name": "Lesion network mapping",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "lacuna-nipype", "Version": __version__}],
        "HowToAcknowledge": "Cite the software and the connectomes named in the sidecars.",
        "DatasetLinks": merged,
    }
    if description != existing:
        write_json(output_dir / "dataset_description.json", description)
    _complete_bidsignore(output_dir / ".bidsignore")
    return remarks


def _complete_bidsignore(path: Path) -> None:
    """Add the patterns that are missing; lines that somebody else added stay."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    missing = [pattern for pattern in IGNORED if pattern not in lines]
    if missing:
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join([*lines, *missing]) + "\n", encoding="utf-8")


def earlier_outputs(output_dir: Path, key: str) -> list[Path]:
    """List the results of a lesion that an output folder holds already.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.
    key : str
        Text that identifies the lesion, such as ``sub-01_ses-01_label-L``.

    Returns
    -------
    list of Path
    """
    *start, label = key.split("_")
    found = (output_dir / start[0]).glob(f"**/{'_'.join(start)}_*{label}_*")
    return sorted(path for path in found if path.is_file())


def remove_leftovers(output_dir: Path, subjects: Iterable[str], *, older_than_s: float) -> int:
    """Remove temporary files that killed runs left beside results.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.
    subjects : iterable of str
        Participants to look at, without ``sub-``.
    older_than_s : float
        Younger files are left alone: another run may be writing them.

    Returns
    -------
    int
        Number of files removed.
    """
    oldest = time.time() - older_than_s
    removed = 0
    for subject in subjects:
        for path in (output_dir / f"sub-{subject}").glob("**/.tmp-*"):
            # The run that writes it may give it its name at this moment.
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    removed += 1
    return removed


def bids_uri(path: Path, links: Mapping[str, Path | str]) -> str:
    """Address of a source file as BIDS wants it.

    Parameters
    ----------
    path : Path
        Absolute path.
    links : mapping of str to path
        Dataset name to dataset root.

    Returns
    -------
    str
        ``bids:NAME:relative/path`` from the innermost dataset that holds the file; the file's
        name alone when none does.
    """
    homes = [
        (len(Path(root).parts), name, Path(root))
        for name, root in links.items()
        if path.is_relative_to(root)
    ]
    if not homes:
        return path.name
    _, name, root = max(homes)
    return f"bids:{name}:{path.relative_to(root).as_posix()}"
