"""Where public connectomes were fetched to, so that a later command finds them again."""

from __future__ import annotations

from pathlib import Path

from lacuna_nipype.core.files import get_data_dir, lock_file, read_json, write_json


def _record_file() -> Path:
    return get_data_dir() / "connectomes" / "fetched.json"


def recorded_folder(name: str) -> Path | None:
    """Give the folder that a connectome was last fetched to.

    Parameters
    ----------
    name : str

    Returns
    -------
    Path or None
    """
    folder = _read().get(name)
    return Path(folder) if folder is not None else None


def record_fetch(name: str, folder: Path) -> None:
    """Remember a folder.

    Parameters
    ----------
    name : str
    folder : Path
        Absolute.
    """
    path = _record_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name("fetched.json.lock").open("w") as lock:
        lock_file(lock)
        record = _read()
        if record.get(name) != str(folder):
            write_json(path, {**record, name: str(folder)})


def _read() -> dict[str, str]:
    """Read what is remembered; a damaged file is as good as none and is written anew."""
    try:
        content = read_json(_record_file())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {str(name): str(folder) for name, folder in content.items()}
