"""A folder of lesion masks with any names turned into a BIDS derivatives dataset.

Masks are copied byte by byte; the only change is that .nii is compressed. Nothing that exists is
overwritten, so that the same command again does nothing, and one that was interrupted goes on.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lacuna_nipype import __version__
from lacuna_nipype.core.exceptions import BidsError, SpatialMismatchError, ValidationError
from lacuna_nipype.core.files import atomic_path, fingerprint, open_regular, read_json, write_json
from lacuna_nipype.core.spaces import (
    Grid,
    canonical_space,
    check_declared_space,
    same_space,
    spaces_of_grid,
)
from lacuna_nipype.io.collect import declared_spaces, is_tissue, settle_space
from lacuna_nipype.io.derivatives import (
    BIDS_VERSION,
    dataset_links,
    read_description,
    sidecar_path,
)
from lacuna_nipype.io.images import load_mask
from lacuna_nipype.io.lesions import map_threads
from lacuna_nipype.io.naming import ENTITY_NAMES, is_label, parse_entities, sanitize_label
from lacuna_nipype.io.normalisation import REFERENCE

DEFAULT_LABEL = "lesion"
# Not "lacuna-nipype": datasets of that name are results, and runs do not look for masks there.
MAKER = "lacuna-nipype bidsify"
MAPPING = "sourcedata/bidsify.tsv"
_MAPPING_COLUMNS = ("bids", "original", "original_fingerprint")
# Suffixes of what a dataset holds besides masks.
_OTHER_SUFFIXES = {
    *("T1w", "T2w", "FLAIR", "PDw", "PD", "PDT2", "T2star", "T2starw", "UNIT1", "MP2RAGE"),
    *("inplaneT1", "inplaneT2", "angio", "T1map", "T2map", "T2starmap", "R1map", "R2map"),
    *("SWI", "swi", "minIP", "defacemask", "dwi", "sbref", "ADC", "TRACE", "FA", "MD", "dwiref"),
    *("bold", "cbv", "boldref", "asl", "m0scan", "pet", "epi", "phasediff", "phase1", "phase2"),
    *("phase", "magnitude1", "magnitude2", "magnitude", "fieldmap"),
    *("dseg", "probseg", "xfm", "statmap"),
}
_IMAGES = (".nii.gz", ".nii")
# Entities that the name of an anatomical mask may have, in BIDS' order.
_ALLOWED = (
    *("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part"),
    *("space", "res", "label", "desc"),
)
_TEMPLATEFLOW = "https://templateflow.s3.amazonaws.com"


@dataclass(frozen=True)
class PlannedMask:
    """A mask and the name it gets.

    Parameters
    ----------
    source : Path
        The original.
    entities : dict of str to str
        By their keys in file names, in BIDS' order.
    """

    source: Path
    entities: dict[str, str] = field(hash=False)

    @property
    def participant(self) -> str:
        """With ``sub-``."""
        return f"sub-{self.entities['sub']}"

    @property
    def target(self) -> str:
        """Path within the dataset."""
        folders = [self.participant]
        if "ses" in self.entities:
            folders.append(f"ses-{self.entities['ses']}")
        chunks = [f"{key}-{value}" for key, value in self.entities.items()]
        return "/".join([*folders, "anat", "_".join([*chunks, "mask.nii.gz"])])


@dataclass(frozen=True)
class Conversion:
    """What was done.

    Parameters
    ----------
    written, unchanged : tuple of PlannedMask
        New in the dataset, and there already.
    refused : dict of Path to str
        Reason for each file that cannot be used, in one sentence that names it.
    notices : tuple of str
        What the user should know.
    """

    written: tuple[PlannedMask, ...]
    unchanged: tuple[PlannedMask, ...]
    refused: dict[Path, str]
    notices: tuple[str, ...]


# --- names ----------------------------------------------------------------------------------


def find_images(folder: Path, *, pattern: str | None = None, exclude: Path) -> list[Path]:
    """List the NIfTI files in a folder and below, without hidden ones.

    Parameters
    ----------
    folder : Path
    pattern : str, optional
        Glob on the file name.
    exclude : Path
        Folder that is not entered.

    Returns
    -------
    list of Path
        Sorted.

    Raises
    ------
    ValidationError
        There is none.
    """
    found = []
    excluded = os.path.realpath(exclude)
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and os.path.realpath(os.path.join(parent, name)) != excluded  # noqa: PTH118
        ]
        found += [
            Path(parent) / name
            for name in names
            if name.endswith(_IMAGES)
            and not name.startswith(".")
            and (pattern is None or fnmatchcase(name, pattern))
        ]
    if not found:
        fitting = f" whose name fits {pattern!r}" if pattern is not None else ""
        raise ValidationError(f"{folder} holds no .nii or .nii.gz file{fitting}.")
    return sorted(found)


def plan_names(
    images: Sequence[Path],
    folder: Path,
    *,
    space: str,
    session: str | None = None,
    label: str | None = None,
) -> tuple[list[PlannedMask], dict[Path, str], list[Path]]:
    """Give every mask its BIDS name.

    Parameters
    ----------
    images : sequence of Path
    folder : Path
        Folder that all are in. Names without ``sub-`` and ``ses-`` take those of the folders
        below it.
    space : str
        TemplateFlow name, or ``T1w``, which names do not say: in BIDS, a name without a space
        means that of the participant.
    session : str, optional
        Session of masks whose names have none.
    label : str, optional
        ``label`` of masks whose names have none. Default: ``lesion``, except for names in which
        ``desc`` says so already.

    Returns
    -------
    planned : list of PlannedMask
    refused : dict of Path to str
        Names that cannot be used, with the reason; among them all that would become one.
    left_out : list of Path
        Images that are no lesion masks by their BIDS names (T1w, brain masks, ...).
    """
    planned: list[PlannedMask] = []
    refused: dict[Path, str] = {}
    left_out: list[Path] = []
    for path in images:
        try:
            entities = _entities(path, folder, space, session, label)
        except ValidationError as error:
            refused[path] = str(error)
            continue
        if entities is None:
            left_out.append(path)
        else:
            planned.append(PlannedMask(path, entities))
    by_target: dict[str, list[PlannedMask]] = defaultdict(list)
    for mask in planned:
        # Names that differ in case only are one on many disks.
        by_target[mask.target.casefold()].append(mask)
    for masks in by_target.values():
        if len(masks) > 1:
            for mask in masks:
                others = " and ".join(str(m.source) for m in masks if m is not mask)
                refused[mask.source] = (
                    f"{mask.source} and {others} would both become {mask.target}; rename one of "
                    "them."
                )
    return [mask for mask in planned if mask.source not in refused], refused, left_out


def _entities(
    path: Path, folder: Path, space: str, session: str | None, label: str | None
) -> dict[str, str] | None:
    """Entities of a mask's new name; None for an image that is no lesion mask by its name."""
    stem = _stem(path.name)
    own = parse_entities(stem)
    suffix = own.pop("suffix", "")
    own.pop("extension", None)
    if _is_bids_name(stem):
        if suffix in _OTHER_SUFFIXES or is_tissue(own):
            return None
        foreign = [key for key in own if key not in _ALLOWED]
        if foreign:
            raise ValidationError(
                f"{path} has {foreign[0]}- in its name, which the name of an anatomical mask "
                "cannot have; rename it."
            )
        entities = dict(own)
    else:
        entities = {
            key: value
            for key, value in own.items()
            if key in ("sub", "ses") and is_label(value) and stem.startswith("sub-")
        }
        for part in path.relative_to(folder).parts[:-1]:
            key, _, value = part.partition("-")
            if key in ("sub", "ses") and is_label(value):
                entities.setdefault(key, value)
        entities.setdefault("sub", _label_of(path))
    if session is not None:
        entities.setdefault("ses", session)
    if label is not None or "lesion" not in entities.get("desc", "").casefold():
        entities.setdefault("label", label or DEFAULT_LABEL)
    own_space = _space_in_name(entities.pop("space", None), space, path)
    if own_space != REFERENCE:
        entities["space"] = own_space
    return {key: entities[key] for key in _ALLOWED if key in entities}


def _label_of(path: Path) -> str:
    try:
        return sanitize_label(_stem(path.name))
    except ValidationError as error:
        raise ValidationError(
            f"{path} has no letter or digit in its name to make a participant's label of; rename "
            "it."
        ) from error


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii")


def _is_bids_name(stem: str) -> bool:
    """Tell whether a name is ``sub-X[_key-value ...]_suffix`` with keys that BIDS knows."""
    *chunks, suffix = stem.split("_")
    pairs = [chunk.partition("-") for chunk in chunks]
    keys = [key for key, _, _ in pairs]
    return (
        bool(keys)
        and keys[0] == "sub"
        and suffix.isalnum()
        and len(set(keys)) == len(keys)
        and all(key in ENTITY_NAMES and is_label(value) for key, _, value in pairs)
    )


def _space_in_name(own: str | None, space: str, path: Path) -> str:
    """Space for the new name: the file's own where it is the same or a relative's."""
    if own is None or own.casefold() == space.casefold():
        return space
    try:
        if same_space(own, space):
            return canonical_space(own)
    except ValidationError:
        if space.casefold().startswith(own.casefold()):
            return space  # a vague name, such as MNI
    raise SpatialMismatchError(
        f"{path} is in {own} by its name, but --space says {space}; correct one of them."
    )


# --- participants ---------------------------------------------------------------------------


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a table of text.

    Parameters
    ----------
    path : Path
        Tabs between columns, a header.

    Returns
    -------
    columns : list of str
    rows : list of dict
        Empty cells are ``n/a``.

    Raises
    ------
    ValidationError
        The file cannot be read or is no such table.
    """
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as stream:
            table = list(csv.reader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValidationError(f"The table {path} cannot be read: {error}.") from error
    cells = [row for row in table if any(map(str.strip, row))]
    if not cells:
        raise ValidationError(f"The table {path} is empty.")
    columns = [name.strip() for name in cells[0]]
    if len(columns) == 1 and ("," in columns[0] or ";" in columns[0]):
        raise ValidationError(
            f"The table {path} has no tabs between its columns; save it as .tsv (text with tabs)."
        )
    if "" in columns or len(set(columns)) != len(columns):
        raise ValidationError(f"The table {path} has columns without a name, or of one name.")
    rows = []
    for number, row in enumerate(cells[1:], start=2):
        if len(row) != len(columns):
            raise ValidationError(
                f"Row {number} of the table {path} has {len(row)} cells where the header has "
                f"{len(columns)}."
            )
        rows.append(dict(zip(columns, (cell.strip() or "n/a" for cell in row), strict=True)))
    return columns, rows


def match_participants(
    path: Path, masks: Sequence[PlannedMask]
) -> tuple[list[dict[str, str]], list[str]]:
    """Find the participants that the rows of a table are about.

    Parameters
    ----------
    path : Path
        Its column ``participant_id``, or else its first column, names files (with or without
        folder and extension) or participants (with or without ``sub-``).
    masks : sequence of PlannedMask

    Returns
    -------
    rows : list of dict
        With ``participant_id`` first, as it is in the dataset.
    unmatched : list of str
        Names for which there is no mask.

    Raises
    ------
    ValidationError
        The table is damaged, or names a participant twice, or a name that two participants have.
    """
    columns, table = read_rows(path)
    key = "participant_id" if "participant_id" in columns else columns[0]
    known: dict[str, set[str]] = defaultdict(set)
    for mask in masks:
        label, name = mask.entities["sub"], mask.source.name
        for spelling in (str(mask.source), name, _stem(name), label, mask.participant):
            known[spelling].add(mask.participant)
    rows: dict[str, dict[str, str]] = {}
    unmatched = []
    for row in table:
        found = known.get(row[key]) or known.get(_stem(Path(row[key]).name)) or set()
        if not found and row[key] != "n/a":
            found = known.get(_sanitized(row[key]), set())
        if len(found) > 1:
            raise ValidationError(
                f"{row[key]} in {path} may be {' or '.join(sorted(found))}; name participants "
                "instead of files."
            )
        if not found:
            unmatched.append(row[key])
            continue
        (participant,) = found
        new = {"participant_id": participant, **{c: row[c] for c in columns if c != key}}
        if rows.setdefault(participant, new) != new:
            raise ValidationError(f"The table {path} has two different rows for {participant}.")
    return list(rows.values()), unmatched


def _sanitized(text: str) -> str:
    try:
        return sanitize_label(text)
    except ValidationError:
        return ""


def merge_rows(
    existing: Sequence[Mapping[str, str]],
    new: Sequence[Mapping[str, str]],
    key: str,
    where: Path,
) -> list[dict[str, str]]:
    """Add rows to a table; what is there stays.

    Parameters
    ----------
    existing, new : sequence of mapping
        Rows; a cell that is missing is ``n/a``, and may be filled.
    key : str
        Column that tells rows apart.
    where : Path
        The table, for the message.

    Returns
    -------
    list of dict
        Sorted by the key, every row with all columns.

    Raises
    ------
    ValidationError
        A cell has another value already.
    """
    merged: dict[str, dict[str, str]] = {row[key]: dict(row) for row in existing}
    for row in new:
        target = merged.setdefault(row[key], {})
        for column, value in row.items():
            old = target.get(column, "n/a")
            if "n/a" not in (old, value) and old != value:
                raise ValidationError(
                    f"{where} has {old!r} as {column} of {row[key]}, and the new value is "
                    f"{value!r}; correct one of them."
                )
            target[column] = old if value == "n/a" else value
    columns = list(dict.fromkeys(column for row in merged.values() for column in row))
    return [
        {column: merged[name].get(column, "n/a") for column in columns} for name in sorted(merged)
    ]


def _write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    text = "\n".join(lines) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# --- the dataset ----------------------------------------------------------------------------


def bidsify(
    folder: Path,
    dataset: Path,
    *,
    space: str,
    session: str | None = None,
    label: str | None = None,
    participants: Path | None = None,
    pattern: str | None = None,
    manual: bool | None = None,
    n_threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Copy the lesion masks of a folder into a BIDS derivatives dataset.

    Parameters
    ----------
    folder : Path
        Masks of any names, in subfolders too.
    dataset : Path
        Created when missing; one that this function made before is added to.
    space : str
        Standard space of all masks, or ``T1w`` for the participants' own; it is compared with
        every grid.
    session, label : str, optional
        See :func:`plan_names`.
    participants : Path, optional
        Table for ``participants.tsv``, see :func:`match_participants`.
    pattern : str, optional
        Glob on file names.
    manual : bool, optional
        Whether the masks were drawn by hand, for their sidecars; None leaves that out.
    n_threads : int
        Masks read and written at the same time.
    progress : callable, optional
        Called with (done, total).

    Returns
    -------
    Conversion
        One bad mask never prevents the others.

    Raises
    ------
    ValidationError
        The space, the folder or the table of participants cannot be used.
    BidsError
        The dataset's folder holds another dataset.
    """
    space = REFERENCE if space.casefold() == REFERENCE.casefold() else canonical_space(space)
    _check_folders(folder, dataset)
    images = find_images(folder, pattern=pattern, exclude=dataset)
    planned, refused, left_out = plan_names(
        images, folder, space=space, session=session, label=label
    )
    if not planned and not refused:
        raise ValidationError(
            f"None of the {len(images)} images in {folder} is a lesion mask by its name, such as "
            f"{images[0].name}; rename those that are."
        )
    notices = _left_out_notice(left_out)
    rows: list[dict[str, str]] = []
    if participants is not None:
        # Before anything is written: the table may not be usable.
        rows, unmatched = match_participants(participants, planned)
        notices += _unmatched_notice(participants, unmatched)
        table = dataset / "participants.tsv"
        merge_rows(_rows_of(table), rows, "participant_id", table)
    link = _link_name(dataset, folder)

    def convert(mask: PlannedMask) -> bool | Exception:
        try:
            return _convert(mask, folder, dataset, space, link, manual)
        except (ValidationError, OSError) as error:
            return error

    written: list[PlannedMask] = []
    unchanged: list[PlannedMask] = []
    results = map_threads(convert, planned, n_threads=n_threads, progress=progress)
    for mask, result in zip(planned, results, strict=True):
        if isinstance(result, Exception):
            refused[mask.source] = str(result)
        else:
            (written if result else unchanged).append(mask)
    done = [*written, *unchanged]
    if done:
        _describe_dataset(dataset, folder, link, done, rows)
    in_order = {path: refused[path] for path in sorted(refused)}
    return Conversion(tuple(written), tuple(unchanged), in_order, tuple(notices))


def _check_folders(folder: Path, dataset: Path) -> None:
    if not folder.is_dir():
        raise ValidationError(f"{folder} is not a folder.")
    if os.path.realpath(folder) == os.path.realpath(dataset):
        raise ValidationError(f"{dataset} is the folder of the originals; choose another.")
    if dataset.exists() and not dataset.is_dir():
        raise ValidationError(f"{dataset} is not a folder.")
    description = read_description(dataset)
    makers = description.get("GeneratedBy")
    names = (
        [maker.get("Name") for maker in makers or [] if isinstance(maker, dict)]
        if isinstance(makers, list)
        else []
    )
    if (dataset / "dataset_description.json").exists() and MAKER not in names:
        raise BidsError(
            f"{dataset} already holds another dataset ({description.get('Name', 'unnamed')}); "
            "choose an empty folder."
        )


def _left_out_notice(left_out: Sequence[Path]) -> list[str]:
    if not left_out:
        return []
    names = ", ".join(path.name for path in left_out[:3]) + (", ..." if len(left_out) > 3 else "")
    return [f"Left out, because no lesion masks by their names: {len(left_out)} ({names})."]


def _unmatched_notice(table: Path, unmatched: Sequence[str]) -> list[str]:
    if not unmatched:
        return []
    names = ", ".join(unmatched[:3]) + (", ..." if len(unmatched) > 3 else "")
    return [f"Rows of {table} left out, for which there is no mask: {len(unmatched)} ({names})."]


def _convert(
    mask: PlannedMask,
    folder: Path,
    dataset: Path,
    space: str,
    link: str,
    manual: bool | None,
) -> bool:
    """Copy one mask and describe it; tell whether it is new."""
    source, target = mask.source, dataset / mask.target
    image = load_mask(source)
    own = _own_sidecar(source, space)
    _check_grid(space, image.grid, source)
    is_new = not target.exists()
    if is_new:
        with atomic_path(target) as temporary:
            temporary.write_bytes(_compressed(source))
    elif not _same_content(source, target):
        raise ValidationError(
            f"{source} would become {target}, which exists with another content; that is left as "
            "it is."
        )
    if not sidecar_path(target).exists():
        source_uri = f"bids:{link}:{quote(source.relative_to(folder).as_posix())}"
        described = _sidecar(own, space, source_uri, manual)
        if "res" in mask.entities:
            sizes = " x ".join(f"{size:g}" for size in image.grid.voxel_sizes.round(4))
            described.setdefault("Resolution", f"Voxels of {sizes} mm.")
        write_json(sidecar_path(target), described)
    return is_new


def _check_grid(space: str, grid: Grid, source: Path) -> None:
    """Refuse a mask whose grid contradicts the space that was given."""
    if space != REFERENCE:
        check_declared_space(space, grid, f"Mask {source}")
    elif spaces_of_grid(grid):
        raise SpatialMismatchError(
            f"{source} lies on the standard grid of {' / '.join(spaces_of_grid(grid))}, but "
            f"--space says {space}; correct --space or the image."
        )


def _compressed(path: Path) -> bytes:
    content = path.read_bytes()
    # Without a time the same mask always gives the same file.
    return content if path.suffix == ".gz" else gzip.compress(content, mtime=0)


def _same_content(source: Path, target: Path) -> bool:
    """Tell whether a compressed file holds a mask, however it was compressed."""
    first, second = _compressed(source), target.read_bytes()
    if first == second:
        return True
    try:
        return gzip.decompress(first) == gzip.decompress(second)
    except (OSError, EOFError, zlib.error):
        return False


def _own_sidecar(source: Path, space: str) -> dict[str, Any]:
    """JSON beside the original, whose space must not contradict the one that was given."""
    path = source.with_name(_stem(source.name) + ".json")
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValidationError(
            f"The sidecar {path} of {source} cannot be read: {error}."
        ) from error
    if not isinstance(content, dict):
        raise ValidationError(f"The sidecar {path} of {source} must hold a JSON object.")
    declared = [("", space), *declared_spaces({}, content)]
    _, _, contradicting = settle_space(declared)
    if contradicting is not None:
        raise SpatialMismatchError(
            f"{source} is in {contradicting} by its sidecar, but --space says {space}; correct "
            "one of them."
        )
    return content


def _sidecar(
    own: Mapping[str, Any], space: str, source: str, manual: bool | None
) -> dict[str, Any]:
    content = {"Type": "Lesion", **own}
    if space != REFERENCE:
        content.setdefault("SpatialReference", template_address(space))
    content["Space"] = space
    if manual is not None:
        content["Manual"] = manual
    content["Sources"] = [source]
    return content


def template_address(space: str) -> str:
    """Address of a template's T1w image at TemplateFlow, for ``SpatialReference``.

    Parameters
    ----------
    space : str
        TemplateFlow name.

    Returns
    -------
    str
    """
    resolution = {"MNI152NLin6Asym": "_res-01", "MNI152NLin2009cAsym": "_res-01",
                  "MNIColin27": ""}.get(space, "_res-1")  # fmt: skip
    return f"{_TEMPLATEFLOW}/tpl-{space}/tpl-{space}{resolution}_T1w.nii.gz"


def _link_name(dataset: Path, folder: Path) -> str:
    """Name of the originals' folder in addresses: the one it has, or a new one."""
    links = dataset_links(read_description(dataset))
    for name, target in links.items():
        if target == str(folder):
            return name
    names = ("originals", *(f"originals{number}" for number in range(2, len(links) + 3)))
    return next(name for name in names if name not in links)


def _describe_dataset(
    dataset: Path,
    folder: Path,
    link: str,
    masks: Sequence[PlannedMask],
    rows: Sequence[Mapping[str, str]],
) -> None:
    """Write the tables and the description of the dataset; the description says it is whole."""
    present = {mask.participant for mask in masks}
    wanted = [{"participant_id": name} for name in sorted(present)]
    wanted += [dict(row) for row in rows if row["participant_id"] in present]
    table = dataset / "participants.tsv"
    _write_rows(table, merge_rows(_rows_of(table), wanted, "participant_id", table))

    table = dataset / MAPPING
    known = {row["bids"]: row for row in _rows_of(table)}
    mapping = [
        known.get(mask.target)
        or {
            "bids": mask.target,
            "original": mask.source.relative_to(folder).as_posix(),
            "original_fingerprint": fingerprint(mask.source),
        }
        for mask in masks
    ]
    _write_rows(table, merge_rows(list(known.values()), mapping, "bids", table))

    existing = read_description(dataset)
    description = {
        "Name": "Lesion masks",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": MAKER, "Version": __version__}],
        **existing,
        "DatasetLinks": {**dataset_links(existing), link: str(folder)},
    }
    if description != existing:
        write_json(dataset / "dataset_description.json", description)


def _rows_of(path: Path) -> list[dict[str, str]]:
    return read_rows(path)[1] if path.is_file() else []
