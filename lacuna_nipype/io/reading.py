"""Datasets as containers: lesion masks of a study, and results of runs."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lacuna_nipype.core.exceptions import BidsError
from lacuna_nipype.io.collect import declared_spaces, is_tissue, single_mask_record
from lacuna_nipype.io.containers import (
    ConnectivityMatrix,
    ParcelData,
    Result,
    ScalarMetric,
    SubjectData,
    Tractogram,
    VoxelMap,
    read_json_object,
)
from lacuna_nipype.io.derivatives import sidecar_path
from lacuna_nipype.io.naming import parse_entities, split_extension

logger = logging.getLogger("lacuna_nipype")

_IMAGES = (".nii.gz", ".nii")
# Masks there are copies, results, or of somebody else: a study's own are outside.
_NOT_ENTERED = ("code", "derivatives", "figures", "logs", "sourcedata")
_LESION_ENTITIES = ("sub", "ses", "acq", "run", "label")
_ATLAS_ENTITIES = ("atlas", "seg", "scale")
_MILLIMETRES = re.compile(r"(\d+(?:\.\d+)?)\s*mm")


# --- masks ----------------------------------------------------------------------------------


def load_bids_dataset(
    bids_root: str | os.PathLike[str],
    pattern: str = "*",
    suffix: str = "_mask.nii.gz",
    recursive: bool = True,
    space: str | None = None,
    resolution: float | None = None,
    subjects: Sequence[str] | None = None,
) -> dict[str, SubjectData]:
    """Load the lesion masks of a dataset; no voxel is read yet.

    Parameters
    ----------
    bids_root : path-like
        Folders named code, derivatives, figures, logs or sourcedata below it are not entered: to
        load the masks of a derivatives dataset, give its folder.
    pattern : str
        Glob that must fit somewhere in the file name.
    suffix : str
        End of the file names.
    recursive : bool
        Enter folders.
    space : str, optional
        Space of all masks. Default: what the sidecar says, else the name.
    resolution : float, optional
        Voxel size of all masks in mm. Default: what the sidecar says, else the name.
    subjects : sequence of str, optional
        Participants to load, with or without ``sub-``. Default: all.

    Returns
    -------
    dict of str to SubjectData
        By file name without extension, sorted. Masks that are of the brain or of a tissue by
        their ``label`` or ``desc`` are left out.

    Raises
    ------
    FileNotFoundError
        The folder is not there.
    BidsError
        Nothing fits, with what was found; or two masks have one name.
    """
    root = Path(bids_root)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    files = sorted(_walk(root, recursive, _NOT_ENTERED))
    masks = [
        path
        for path in files
        if path.name.endswith(suffix) and not is_tissue(parse_entities(path.name))
    ]
    wanted = None if subjects is None else {text.removeprefix("sub-") for text in subjects}
    chosen = [
        path
        for path in masks
        if fnmatchcase(path.name, f"*{pattern}*")
        and (wanted is None or _entities_of(path, root).get("sub") in wanted)
    ]
    if not chosen:
        raise BidsError(_why_nothing(root, files, masks, pattern, suffix, wanted, recursive))
    loaded: dict[str, SubjectData] = {}
    for path in chosen:
        key = split_extension(path.name)[0]
        if key in loaded:
            raise BidsError(
                f"{loaded[key].mask_path} and {path} have one name; load them from folders of "
                "their own, or choose one with pattern or suffix."
            )
        loaded[key] = _load_mask(path, space, resolution)
    return {key: loaded[key] for key in sorted(loaded)}


def _walk(root: Path, recursive: bool, not_entered: Iterable[str] = ()) -> Iterator[Path]:
    """List the files of a folder, without hidden ones."""
    for parent, folders, names in os.walk(root, followlinks=False):
        folders[:] = [
            name
            for name in sorted(folders)
            if recursive and not name.startswith(".") and name not in not_entered
        ]
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def _entities_of(path: Path, root: Path) -> dict[str, str]:
    """Entities of the name, and participant and session of the folders where it has none."""
    entities = parse_entities(path.name)
    # Not of folders above the dataset, which may be anybody's.
    for part in path.relative_to(root).parts[:-1]:
        key, _, value = part.partition("-")
        if key in ("sub", "ses") and value:
            entities.setdefault(key, value)
    return entities


def _load_mask(path: Path, space: str | None, resolution: float | None) -> SubjectData:
    record = single_mask_record(path)
    entities = parse_entities(path.name)
    # The most trusted declaration is last here: the sidecar's.
    declared = declared_spaces(entities, record.sidecar)
    if record.problem and space is None:
        logger.warning("%s Its sidecar is followed.", record.problem)
    metadata = {
        "subject_id": f"sub-{record.subject}",
        "session_id": f"ses-{record.session}" if record.session else None,
        "mask_label": record.label,
        "acquisition": record.acquisition,
        "run": record.run,
    }
    return SubjectData(
        path,
        space or (declared[-1][1] if declared else None),
        resolution
        or _in_millimetres(record.sidecar.get("Resolution"))
        or _in_millimetres(entities.get("res")),
        {key: value for key, value in metadata.items() if value is not None},
    )


def _in_millimetres(text: Any) -> float | None:
    """Voxel size that a sidecar or an entity states; None where it states none."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return float(text)
    if not isinstance(text, str):
        return None
    found = _MILLIMETRES.search(text)
    try:
        return float(found[1] if found else text)
    except ValueError:
        return None


def _why_nothing(
    root: Path,
    files: Sequence[Path],
    masks: Sequence[Path],
    pattern: str,
    suffix: str,
    wanted: set[str] | None,
    recursive: bool,
) -> str:
    """Say how far the search came."""
    images = [path for path in files if path.name.endswith(_IMAGES)]
    seen = f"{len(images)} images, {len(masks)} of them lesion masks by the suffix {suffix!r}"
    if masks:
        asked = f"the pattern {pattern!r}"
        if wanted is not None:
            asked += f" and the participants {', '.join(sorted(wanted))}"
        return f"No lesion mask in {root}: {seen}, none fits {asked}; there are {_some(masks)}."
    elsewhere = list(_walk(root / "derivatives", True)) if recursive else []
    elsewhere = [path for path in elsewhere if path.name.endswith(suffix)]
    hint = f"; there are {_some(images)}" if images else ""
    if elsewhere:
        hint += (
            f"; {len(elsewhere)} are in its derivatives, such as {elsewhere[0]}: give the folder "
            "of that dataset"
        )
    return f"No lesion mask in {root}: {seen}{hint}."


def _some(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:3])
    return names + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


# --- results --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A result, its entities in our vocabulary, and what kind it is."""

    path: Path
    entities: Mapping[str, str]
    kind: str

    @property
    def lesion(self) -> str:
        """Key of the lesion that it belongs to."""
        return "_".join(f"{e}-{self.entities[e]}" for e in _LESION_ENTITIES if e in self.entities)

    @property
    def atlas(self) -> str:
        """Its atlas: ``Demo_seg-7n_scale-100``; empty for a map."""
        found = [f"{e}-{self.entities[e]}" for e in _ATLAS_ENTITIES if e in self.entities]
        return "_".join(found).removeprefix("atlas-")

    @property
    def key(self) -> str:
        """Key among the results of an analysis, before clashes are resolved."""
        name = self.entities.get("stat", self.kind)
        if self.atlas:
            name += f"_atlas-{self.atlas}"
        return name + ("_relmat" if self.kind == "relmat" else "")


def load_derivatives(
    derivatives_dir: str | os.PathLike[str],
    *,
    subjects: Sequence[str] | None = None,
) -> dict[str, SubjectData]:
    """Load the results of a derivatives dataset; maps and tables are read when asked for.

    Parameters
    ----------
    derivatives_dir : path-like
        Output folder of runs, with this package's names or with Lacuna's.
    subjects : sequence of str, optional
        Participants to load, with or without ``sub-``. Default: all.

    Returns
    -------
    dict of str to SubjectData
        By lesion, such as ``sub-01_ses-01_label-acuteinfarct``, sorted. Keys of results are those
        of :class:`~lacuna_nipype.io.containers.SubjectData`; two that differ in their space or
        grid only have these at the end, such as ``z_space-MNI152NLin6Asym_res-2``.

    Raises
    ------
    FileNotFoundError
        The folder is not there.
    BidsError
        It holds no results, or none of these participants.
    ValidationError
        A file of numbers is damaged.
    """
    root = Path(derivatives_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    wanted = None if subjects is None else {text.removeprefix("sub-") for text in subjects}
    folders = sorted(path for path in root.glob("sub-*") if path.is_dir())
    if wanted is not None:
        folders = [path for path in folders if path.name.removeprefix("sub-") in wanted]
    by_lesion: dict[str, list[_File]] = defaultdict(list)
    for folder in folders:
        for path in sorted(_walk(folder, True, ("figures",))):
            file = _recognise(path, root)
            if file is not None:
                by_lesion[file.lesion].append(file)
    if not by_lesion:
        whose = f" of {', '.join(sorted(wanted))}" if wanted is not None else ""
        raise BidsError(
            f"{root} holds no results{whose}; give the output folder of a run, with sub-* folders."
        )
    return {key: _assemble(root, by_lesion[key]) for key in sorted(by_lesion)}


def _recognise(path: Path, root: Path) -> _File | None:
    """Tell what a file is; None for what is no result of a lesion."""
    entities = _entities_of(path, root)
    extension, suffix = entities.get("extension", ""), entities.get("suffix", "")
    if "sub" not in entities or "label" not in entities or is_tissue(entities):
        return None
    if "method" in entities:
        # Lacuna's names: the quantity is in desc-, and maps have no suffix.
        method, desc = entities.pop("method"), entities.pop("desc", "")
        entities |= {"stat": desc, "desc": method}
        suffix = {"connmatrix": "relmat"}.get(suffix, suffix)
        if not suffix and extension in _IMAGES:
            suffix = "statmap"
    kinds = {
        **dict.fromkeys((("mask", e) for e in _IMAGES), "mask"),
        **dict.fromkeys((("statmap", e) for e in _IMAGES), "statmap"),
        ("parcelstats", ".tsv"): "parcelstats",
        ("relmat", ".tsv"): "relmat",
        ("tractography", ".tck"): "tractography",
        ("stats", ".json"): "stats",
    }
    kind = kinds.get((suffix, extension))
    if kind is None or (kind != "mask" and "desc" not in entities):
        return None
    return _File(path, entities, kind)


def _assemble(root: Path, files: Sequence[_File]) -> SubjectData:
    """Put the files of one lesion together."""
    masks = [file for file in files if file.kind == "mask"]
    first = masks[0] if masks else files[0]
    results: dict[str, dict[str, Result]] = {}
    analyses = dict.fromkeys(file.entities["desc"] for file in files if file.kind != "mask")
    for analysis in sorted(analyses):
        own = [f for f in files if f.kind != "mask" and f.entities["desc"] == analysis]
        results[analysis] = _results(own)
    entities = first.entities
    metadata = {
        "subject_id": f"sub-{entities['sub']}",
        "session_id": f"ses-{entities['ses']}" if "ses" in entities else None,
        "mask_label": entities["label"],
        "acquisition": entities.get("acq"),
        "run": entities.get("run"),
    }
    record = "_".join(filter(None, (metadata["subject_id"], metadata["session_id"])))
    provenance = root / f"sub-{entities['sub']}" / f"{record}_desc-provenance.json"
    return SubjectData(
        masks[0].path if masks else None,
        entities.get("space"),
        _in_millimetres(entities.get("res")) if masks else None,
        {key: value for key, value in metadata.items() if value is not None},
        results,
        provenance if provenance.is_file() else None,
    )


def _results(files: Sequence[_File]) -> dict[str, Result]:
    """Results of one analysis: numbers first, then maps, tables and matrices."""
    results: dict[str, Result] = {}
    for file in files:
        if file.kind == "stats":
            results |= _scalars(read_json_object(file.path))
    others = [file for file in files if file.kind != "stats"]
    keys = [file.key for file in others]
    for file, key in zip(others, keys, strict=True):
        if keys.count(key) > 1:
            place = [f"{e}-{file.entities[e]}" for e in ("space", "res") if e in file.entities]
            key = "_".join([key, *place])
        results[key] = _result(file)
    return results


def _result(file: _File) -> Result:
    sidecar = sidecar_path(file.path)
    metadata = sidecar if sidecar.is_file() else None
    name, space = file.entities.get("stat", file.kind), file.entities.get("space")
    if file.kind == "statmap":
        resolution = _in_millimetres(file.entities.get("res"))
        return VoxelMap(file.path, name, space, resolution, metadata)
    if file.kind == "tractography":
        return Tractogram(file.path, name, space, metadata)
    table = ParcelData if file.kind == "parcelstats" else ConnectivityMatrix
    return table(file.path, name, file.atlas, space, metadata)


def _scalars(content: Mapping[str, Any], prefix: str = "") -> dict[str, Result]:
    """Numbers and words of a file of statistics; those of an atlas begin with its name."""
    found: dict[str, Result] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _scalars(value, f"{name}.")
        elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value, start=1):
                own = {k: v for k, v in item.items() if k != "Name"}
                found |= _scalars(own, f"{prefix}{item.get('Name', f'{key}{number}')}.")
        elif isinstance(value, list):
            found[name] = ScalarMetric(", ".join(map(str, value)), name)
        else:
            found[name] = ScalarMetric(value, name)
    return found
