"""Containers written to files: BIDS derivatives, flat tables, JSON."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path, json_safe, write_json, write_table
from lacuna_nipype.core.masks import binarise_mask
from lacuna_nipype.io.containers import (
    ConnectivityMatrix,
    ParcelData,
    Result,
    ScalarMetric,
    SubjectData,
    Tractogram,
    VoxelMap,
    load_image,
    read_json_object,
)
from lacuna_nipype.io.derivatives import (
    dataset_lock,
    prepare_dataset,
    read_description,
    sidecar_path,
)
from lacuna_nipype.io.naming import build_path, load_patterns, parse_entities, sanitize_label
from lacuna_nipype.io.provenance import append_run
from lacuna_nipype.io.quantities import MAPS, describe_map, resolution_text
from lacuna_nipype.io.tables import column_descriptions, write_matrix

if TYPE_CHECKING:
    import pandas as pd
    from nibabel.spatialimages import SpatialImage

StrPath = str | os.PathLike[str]
_IMAGES = (".nii.gz", ".nii")
_NO_MASK = "{} has no mask; give it one (mask_img)."


# --- images ---------------------------------------------------------------------------------


def save_nifti(
    mask_data: SubjectData, output_path: StrPath, save_anatomical: bool = False
) -> Path:
    """Save the mask of a lesion as NIfTI.

    Parameters
    ----------
    mask_data : SubjectData
    output_path : path-like
        Ends in ``.nii`` or ``.nii.gz``, which decides about compression.
    save_anatomical : bool
        Save the anatomical image too, as ``NAME_anatomical`` beside the mask.

    Returns
    -------
    Path
        Of the mask.

    Raises
    ------
    ValidationError
        A ValueError: the path ends otherwise, or there is no such image.
    """
    target = Path(output_path)
    extension = next((e for e in _IMAGES if target.name.endswith(e)), None)
    if extension is None:
        raise ValidationError(
            f"{target} is no name of a NIfTI file: it must end in .nii or .nii.gz."
        )
    mask = mask_data.mask_path or mask_data.mask_img
    if mask is None:
        raise ValidationError(_NO_MASK.format(mask_data))
    anatomical = mask_data.anatomical_path or mask_data.anatomical_img
    if save_anatomical and anatomical is None:
        raise ValidationError(
            f"{mask_data} has no anatomical image to save; give it one (anatomical_img)."
        )
    _write_image(target, mask)
    if save_anatomical and anatomical is not None:
        name = target.name.removesuffix(extension)
        _write_image(target.with_name(f"{name}_anatomical{extension}"), anatomical)
    return target


def _write_image(target: Path, image: Path | SpatialImage) -> None:
    """Write an image; voxels of a NIfTI file are taken over as they are stored."""
    import nibabel as nb

    if isinstance(image, Path) and not image.name.endswith(_IMAGES):
        image = load_image(image)
    with atomic_path(target) as temporary:
        if isinstance(image, Path):
            _copy(image, temporary)
        else:
            nb.save(image, temporary)


def _copy(source: Path, target: Path) -> None:
    """Copy a file; what ends in .gz is compressed, what does not is not."""
    if not source.is_file():
        raise ValidationError(f"{source} is not there (any more); load the folder again.")
    if (source.suffix == ".gz") == (target.suffix == ".gz"):
        shutil.copyfile(source, target)
    elif source.suffix == ".gz":
        with gzip.open(source) as compressed, target.open("wb") as plain:
            shutil.copyfileobj(compressed, plain)
    else:
        # Without a time, the same image always gives the same file.
        with (
            source.open("rb") as plain,
            target.open("wb") as stream,
            gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as compressed,
        ):
            shutil.copyfileobj(plain, compressed)


# --- BIDS derivatives -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Output:
    """A file to write: where, how, and what its sidecar says (None for a JSON file)."""

    path: Path
    write: Callable[[Path], object]
    sidecar: Mapping[str, Any] | None


def export_bids_derivatives(
    subject_data: SubjectData,
    output_dir: StrPath,
    export_lesion_mask: bool = True,
    export_voxelmaps: bool = True,
    export_parcel_data: bool = True,
    export_connectivity: bool = True,
    export_scalars: bool = True,
    export_provenance: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a lesion and its results under the names of this package's derivatives.

    Parameters
    ----------
    subject_data : SubjectData
        With ``subject_id`` in its metadata. Names of analyses and quantities become labels of
        files, so that their letters and digits alone count.
    output_dir : path-like
        Dataset; its description is written when it has none.
    export_lesion_mask, export_voxelmaps, export_parcel_data, export_connectivity, \
    export_scalars, export_provenance : bool
        What to write. Streamlines belong to connectivity. Provenance is added to what the
        participant's record holds already.
    overwrite : bool
        Replace files.

    Returns
    -------
    Path
        The participant's folder.

    Raises
    ------
    ValidationError
        A ValueError: there is no ``subject_id``, or a space or an atlas is not known.
    FileExistsError
        A file is there already; nothing was written then.
    """
    root = Path(output_dir)
    if subject_data.subject_id is None:
        raise ValidationError(
            f"{subject_data} does not say whose it is; set metadata['subject_id']."
        )
    kinds: list[type] = [
        *([VoxelMap] if export_voxelmaps else []),
        *([ParcelData] if export_parcel_data else []),
        *([ConnectivityMatrix, Tractogram] if export_connectivity else []),
    ]
    outputs = [
        *(_mask_output(subject_data) if export_lesion_mask else []),
        *_result_outputs(subject_data, tuple(kinds)),
        *(_scalar_outputs(subject_data) if export_scalars else []),
    ]
    _check_targets(root, outputs, overwrite)
    if not read_description(root):
        with dataset_lock(root):
            prepare_dataset(root, {})
    for output in outputs:
        target = root / output.path
        output.write(target)
        if output.sidecar is not None:
            columns = column_descriptions(target) if target.suffix == ".tsv" else {}
            write_json(sidecar_path(target), {**output.sidecar, **columns})
    if export_provenance:
        _add_provenance(subject_data, root)
    folder = root / subject_data.subject_id
    folder.mkdir(exist_ok=True)
    return folder


def _check_targets(root: Path, outputs: Sequence[_Output], overwrite: bool) -> None:
    paths = [output.path for output in outputs]
    double = next((path for path in paths if paths.count(path) > 1), None)
    if double is not None:
        raise ValidationError(
            f"Two results would become {double}; give them other names, spaces or atlases."
        )
    there = [path for path in paths if (root / path).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{root / there[0]} exists already ({len(there)} of {len(paths)} files do); use "
            "overwrite=True to replace it, or another folder."
        )


def _lesion_entities(subject_data: SubjectData) -> dict[str, str | None]:
    """Entities of every file of a lesion."""
    metadata = subject_data.metadata
    return {
        "subject": (subject_data.subject_id or "").removeprefix("sub-"),
        "session": (subject_data.session_id or "").removeprefix("ses-") or None,
        "acquisition": metadata.get("acquisition"),
        "run": metadata.get("run"),
        "label": sanitize_label(metadata.get("mask_label") or "L"),
    }


def _place(subject_data: SubjectData, result: Any) -> dict[str, str | None]:
    """Entities that say where a result is: space, grid and atlas."""
    space = result.space or subject_data.space
    if space is None:
        raise ValidationError(f"{result} of {subject_data} does not say its space; set it.")
    place = {"space": space, **_resolution_entity(getattr(result, "resolution", None))}
    if isinstance(result, (ParcelData, ConnectivityMatrix)):
        if not result.atlas:
            raise ValidationError(f"{result} of {subject_data} does not say its atlas; set it.")
        place |= parse_entities(f"atlas-{result.atlas}")
    return place


def _resolution_entity(resolution: float | None) -> dict[str, str | None]:
    """Write voxels of whole millimetres as entity; others have none."""
    whole = resolution is not None and resolution >= 1 and resolution == round(resolution)
    return {"res": f"{resolution:.0f}"} if whole else {}


def _path(entities: Mapping[str, str | None]) -> Path:
    # Analyses of the user's own have names that the patterns do not list.
    patterns = [re.sub(r"\{desc<[^>]*>(?:\|\w+)?\}", "{desc}", text) for text in load_patterns()]
    return Path(build_path(entities, patterns))


def _mask_output(subject_data: SubjectData) -> list[_Output]:
    mask = subject_data.mask_path or subject_data.mask_img
    if mask is None:
        raise ValidationError(
            f"{_NO_MASK.format(subject_data)[:-1]}, or use export_lesion_mask=False."
        )
    if subject_data.space is None:
        raise ValidationError(f"{subject_data} does not say its space; set it.")
    grid = _resolution_entity(subject_data.resolution)
    entities = {
        **_lesion_entities(subject_data), "space": subject_data.space, **grid,
        "desc": "lesion", "suffix": "mask", "extension": ".nii.gz",
    }  # fmt: skip
    sidecar = {"Description": "Lesion mask as analysed.", "Type": "Lesion"}
    sidecar |= _resolution_field(grid)
    if isinstance(mask, Path):
        known = sidecar_path(mask)
        if known.is_file():
            sidecar = {**sidecar, **read_json_object(known)}
        return [_Output(_path(entities), lambda target: _write_image(target, mask), sidecar)]
    return [_Output(_path(entities), lambda target: _write_image(target, _binary(mask)), sidecar)]


def _binary(mask: SpatialImage) -> SpatialImage:
    """Lesion mask of zeros and ones; refuses an image that is none."""
    import nibabel as nb
    import numpy as np

    data, _ = binarise_mask(np.asanyarray(mask.dataobj), "The mask")
    return nb.Nifti1Image(data.astype(np.uint8), mask.affine)


def _resolution_field(place: Mapping[str, str | None]) -> dict[str, str]:
    label = place.get("res")
    return {"Resolution": resolution_text(label)} if label else {}


def _each_result(
    subject_data: SubjectData, kinds: type | tuple[type, ...]
) -> Iterator[tuple[str, str, Any]]:
    for analysis, results in subject_data.results.items():
        for key, result in results.items():
            if isinstance(result, kinds):
                yield analysis, key, result


def _result_outputs(subject_data: SubjectData, kinds: tuple[type, ...]) -> Iterator[_Output]:
    suffixes = {
        VoxelMap: ("statmap", ".nii.gz"),
        ParcelData: ("parcelstats", ".tsv"),
        ConnectivityMatrix: ("relmat", ".tsv"),
    }
    for analysis, key, result in _each_result(subject_data, kinds):
        place = _place(subject_data, result)
        desc = sanitize_label(analysis)
        entities = {**_lesion_entities(subject_data), **place, "desc": desc}
        described: dict[str, Any] = _resolution_field(place)
        if isinstance(result, Tractogram):
            entities |= {"suffix": "tractography", "extension": result.path.suffix}
        else:
            suffix, extension = suffixes[type(result)]
            quantity = sanitize_label(result.name or key)
            entities |= {"statistic": quantity, "suffix": suffix, "extension": extension}
            if suffix == "statmap" and (desc, quantity) in MAPS:
                known = {k: v for k, v in place.items() if v is not None}
                described = describe_map(desc, quantity, known)
        yield _Output(_path(entities), _writer(result), {**described, **result.metadata})


def _writer(result: Any) -> Callable[[Path], object]:
    """Choose how a result is written: a file is copied."""
    if isinstance(result, VoxelMap):
        return lambda target: _write_image(target, result.path or result.image)
    if result.path is not None:
        return lambda target: _copy_whole(result.path, target)
    if isinstance(result, ConnectivityMatrix):
        return lambda target: write_matrix(target, result.regions, result.data)
    return lambda target: write_table(target, result.table)


def _copy_whole(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        _copy(source, temporary)


def _scalar_outputs(subject_data: SubjectData) -> Iterator[_Output]:
    for analysis in subject_data.results:
        values = {
            key: scalar.value
            for name, key, scalar in _each_result(subject_data, ScalarMetric)
            if name == analysis
        }
        if values:
            entities = {
                **_lesion_entities(subject_data), "space": subject_data.space,
                "desc": sanitize_label(analysis), "suffix": "stats",
            }  # fmt: skip
            write = partial(write_json, content=values, indent=2)
            yield _Output(_path(entities), write, None)


def _add_provenance(subject_data: SubjectData, root: Path) -> None:
    """Add the runs that the participant's record does not hold yet."""
    names = _lesion_entities(subject_data)
    entities = {"subject": names["subject"], "session": names["session"], "desc": "provenance"}
    path = root / build_path(entities)
    runs = subject_data.provenance
    if not runs:
        return
    with dataset_lock(root):
        known = read_json_object(path).get("Runs", []) if path.is_file() else []
        for run in runs:
            if json_safe(run) not in known:
                append_run(path, json_safe(run))


# --- tables ---------------------------------------------------------------------------------


def export_results_to_csv(
    mask_data: SubjectData,
    output_path: StrPath,
    analysis_name: str | None = None,
    include_metadata: bool = True,
) -> Path:
    """Write the numbers of a lesion as one row; see :func:`batch_export_to_csv`."""
    return batch_export_to_csv([mask_data], output_path, analysis_name, include_metadata)


def export_results_to_tsv(
    mask_data: SubjectData,
    output_path: StrPath,
    analysis_name: str | None = None,
    include_metadata: bool = True,
) -> Path:
    """Write the numbers of a lesion as one row; see :func:`batch_export_to_tsv`."""
    return batch_export_to_tsv([mask_data], output_path, analysis_name, include_metadata)


def batch_export_to_csv(
    mask_data_list: Sequence[SubjectData],
    output_path: StrPath,
    analysis_name: str | None = None,
    include_metadata: bool = True,
) -> Path:
    """Write the numbers of lesions as a table with commas, one row per lesion.

    Parameters
    ----------
    mask_data_list : sequence of SubjectData
    output_path : path-like
    analysis_name : str, optional
        One analysis only. Default: all.
    include_metadata : bool
        Begin with the columns ``subject_id``, ``session_id``, ``mask_label`` and
        ``coordinate_space``.

    Returns
    -------
    Path
        The table. Columns are ``ANALYSIS.KEY`` for numbers and words, ``ANALYSIS.KEY.REGION``
        for tables of regions; maps and matrices have none. What a lesion does not have is
        ``NaN`` (in tables with tabs: ``n/a``).

    Raises
    ------
    ValidationError
        A ValueError: there is no lesion, no result, or no such analysis.
    """
    path, table = Path(output_path), _flat_table(mask_data_list, analysis_name, include_metadata)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, na_rep="NaN", float_format="%.10g")
    return path


def batch_export_to_tsv(
    mask_data_list: Sequence[SubjectData],
    output_path: StrPath,
    analysis_name: str | None = None,
    include_metadata: bool = True,
) -> Path:
    """Write the numbers of lesions as a table with tabs; see :func:`batch_export_to_csv`."""
    table = _flat_table(mask_data_list, analysis_name, include_metadata)
    return write_table(Path(output_path), table)


def _flat_table(
    subjects: Sequence[SubjectData], analysis: str | None, include_metadata: bool
) -> pd.DataFrame:
    import pandas as pd

    if not subjects:
        raise ValidationError("There is no lesion to export; the list is empty.")
    _check_analysis(subjects, analysis)
    found = [_flat(subject, analysis) for subject in subjects]
    if not any(found):
        raise ValidationError(
            "There is no number and no table of regions among the results; maps and matrices "
            "cannot be put into a row."
        )
    rows = [
        {**(_columns_of(subject) if include_metadata else {}), **values}
        for subject, values in zip(subjects, found, strict=True)
    ]
    return pd.DataFrame(rows)


def _check_analysis(subjects: Sequence[SubjectData], analysis: str | None) -> None:
    known = list(dict.fromkeys(name for subject in subjects for name in subject.results))
    if not known:
        raise ValidationError("There are no results to export; run an analysis first.")
    if analysis is not None and analysis not in known:
        raise ValidationError(f"There is no analysis {analysis!r}; there are {', '.join(known)}.")


def _columns_of(subject: SubjectData) -> dict[str, str | None]:
    return {
        "subject_id": subject.subject_id,
        "session_id": subject.session_id,
        "mask_label": subject.metadata.get("mask_label"),
        "coordinate_space": subject.space,
    }


def _flat(subject: SubjectData, analysis: str | None) -> dict[str, Any]:
    """Numbers of a lesion by column."""
    columns: dict[str, Any] = {}
    for name, key, result in _each_result(subject, (ScalarMetric, ParcelData)):
        if analysis not in (None, name):
            continue
        if isinstance(result, ScalarMetric):
            columns[f"{name}.{key}"] = result.value
        else:
            data = result.data
            columns |= {f"{name}.{key}.{region}": value for region, value in data.items()}
    return columns


# --- JSON -----------------------------------------------------------------------------------


def export_results_to_json(
    mask_data: SubjectData,
    output_path: StrPath,
    analysis_name: str | None = None,
    include_metadata: bool = True,
    include_provenance: bool = False,
    indent: int | None = 2,
) -> Path:
    """Write the results of a lesion as JSON.

    Parameters
    ----------
    mask_data : SubjectData
    output_path : path-like
    analysis_name : str, optional
        One analysis only. Default: all.
    include_metadata, include_provenance : bool
        Add them under ``metadata`` and ``provenance``.
    indent : int or None

    Returns
    -------
    Path
        The file. ``results`` holds analyses, and these numbers and words as they are, tables of
        regions as objects, and of maps, matrices and streamlines the name of their file, null
        for what is in memory only. What is missing is null.

    Raises
    ------
    ValidationError
        A ValueError: there is no result, or no such analysis.
    """
    _check_analysis([mask_data], analysis_name)
    content: dict[str, Any] = {}
    if include_metadata:
        content["metadata"] = {**mask_data.metadata, **_columns_of(mask_data)}
    content["results"] = {
        analysis: {key: _plain(result) for key, result in results.items()}
        for analysis, results in mask_data.results.items()
        if analysis_name in (None, analysis)
    }
    if include_provenance:
        content["provenance"] = list(mask_data.provenance)
    return write_json(output_path, content, indent=indent)


def _plain(result: Result) -> Any:
    if isinstance(result, ScalarMetric):
        return result.value
    if isinstance(result, ParcelData):
        return {str(region): value for region, value in result.data.items()}
    return {"type": type(result).__name__, "file": str(result.path) if result.path else None}


def export_provenance_to_json(
    mask_data: SubjectData, output_path: StrPath, indent: int | None = 2
) -> Path:
    """Write where the results of a lesion come from as JSON.

    Parameters
    ----------
    mask_data : SubjectData
    output_path : path-like
    indent : int or None

    Returns
    -------
    Path
        The file: an object with the list ``Runs``.

    Raises
    ------
    ValidationError
        A ValueError: nothing is known.
    """
    runs = list(mask_data.provenance)
    if not runs:
        raise ValidationError(f"{mask_data} has no provenance to export.")
    return write_json(output_path, {"Runs": runs}, indent=indent)
