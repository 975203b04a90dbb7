"""Results of a lesion as objects over files.

A container holds an image or a table, or the path of one. What is on disk is read each time it is
asked for and never kept: a whole cohort of containers takes no more memory than its paths.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import open_regular, read_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from nibabel.spatialimages import SpatialImage
    from numpy.typing import NDArray

_T = TypeVar("_T")
_NAME_COLUMNS = ("name", "region")


# --- what is on disk ------------------------------------------------------------------------


def load_image(path: Path) -> SpatialImage:
    """Open an image; its voxels are read when they are asked for.

    Parameters
    ----------
    path : Path

    Returns
    -------
    nibabel image

    Raises
    ------
    ValidationError
        The file is missing or no image.
    """
    from lacuna_nipype.core.images import open_image

    try:
        return open_image(path)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise ValidationError(
            f"{path} is no image that can be read (damaged, cut short or another format)."
        ) from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict

    Raises
    ------
    ValidationError
        The file is missing, damaged, or holds something else.
    """
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (OSError, ValueError) as error:
        raise ValidationError(f"{path} is no JSON that can be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValidationError(f"{path} must hold a JSON object.")
    return content


def read_region_table(path: Path) -> pd.DataFrame:
    """Read a table with one row per region.

    Parameters
    ----------
    path : Path
        Tabs between columns, ``n/a`` for missing values.

    Returns
    -------
    DataFrame
        Names of regions are text, whatever they look like; missing numbers are NaN.

    Raises
    ------
    ValidationError
        The file is missing or no table.
    """
    return _read_table(path, _NAME_COLUMNS)


def read_matrix_table(path: Path) -> pd.DataFrame:
    """Read a matrix between regions.

    Parameters
    ----------
    path : Path
        Tabs between columns; the first column and the header name the regions.

    Returns
    -------
    DataFrame, shape (K, K)
        Names of regions as index and columns; missing values are NaN.

    Raises
    ------
    ValidationError
        The file is missing, no table, or not square.
    """
    table = _read_table(path, None)
    table = table.set_index(table.columns[0])
    if list(table.index) != list(table.columns):
        raise ValidationError(f"{path} is no matrix: its rows and columns have other names.")
    return table


def _read_table(path: Path, text_columns: Sequence[str] | None) -> pd.DataFrame:
    """Read a table; columns of text are those named, or the first."""
    import pandas as pd

    try:
        with open_regular(path) as stream:
            content = stream.read()
        header = content.partition(b"\n")[0].decode("utf-8").rstrip("\r").split("\t")
        columns = header[:1] if text_columns is None else text_columns
        return pd.read_csv(
            io.BytesIO(content),
            sep="\t",
            dtype=dict.fromkeys([column for column in columns if column in header], str),
            # A region may well be called NA or None.
            keep_default_na=False,
            na_values=["n/a", "NaN", "nan", ""],
        )
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (OSError, ValueError) as error:
        raise ValidationError(f"{path} is no table that can be read: {error}.") from error


def _read_runs(path: Path) -> Sequence[Mapping[str, Any]]:
    runs = read_json_object(path).get("Runs")
    if not isinstance(runs, list):
        raise ValidationError(f"{path} is no record of runs: it has no list Runs.")
    return tuple(runs)


def _missing(path: Path) -> ValidationError:
    return ValidationError(f"{path} is not there (any more); load the folder again.")


class _OnDemand(Generic[_T]):
    """Field of a dataclass that is given as a path or as its content, and gives the content.

    Without ``empty`` the field must be given; with it, None stands for what ``empty`` makes.
    """

    def __init__(self, read: Callable[[Path], _T], empty: Callable[[], _T] | None = None) -> None:
        self._read, self._empty = read, empty

    def __set_name__(self, owner: type, name: str) -> None:
        self._slot = f"_{name}"

    def __set__(self, instance: object, value: _T | str | os.PathLike[str] | None) -> None:
        given = Path(value) if isinstance(value, (str, os.PathLike)) else value
        instance.__dict__[self._slot] = given

    def __get__(self, instance: object | None, owner: type | None = None) -> _T:
        if instance is None:
            # A dataclass asks the class for the default: an error says that there is none.
            if self._empty is None:
                raise AttributeError
            return None  # type: ignore[return-value]
        given = instance.__dict__[self._slot]
        if isinstance(given, Path):
            return self._read(given)
        if given is None and self._empty is not None:
            return self._empty()
        return given


class _Described:
    """Short text for notebooks: nothing is read for it, and nothing long is shown."""

    def __repr__(self) -> str:
        shown = {key.lstrip("_"): value for key, value in self.__dict__.items()}
        shown.pop("metadata", None)
        texts = [
            f"{key}={str(value) if isinstance(value, Path) else repr(value)}"
            for key, value in shown.items()
            if isinstance(value, (str, int, float, Path)) and value != ""
        ]
        return f"{type(self).__name__}({', '.join(texts)})"

    def _file(self, name: str) -> Path | None:
        given = self.__dict__[f"_{name}"]
        return given if isinstance(given, Path) else None


# --- results --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class VoxelMap(_Described):
    """A map over voxels.

    Parameters
    ----------
    image : nibabel image or path-like
    name : str
        Quantity, such as ``z`` or ``disconnectionpct``.
    space : str, optional
        TemplateFlow name.
    resolution : float, optional
        Voxel size in mm.
    metadata : mapping or path-like, optional
        Content of the sidecar, or its path.
    """

    image: _OnDemand[SpatialImage] = _OnDemand(load_image)
    name: str = ""
    space: str | None = None
    resolution: float | None = None
    metadata: _OnDemand[Mapping[str, Any]] = _OnDemand(read_json_object, dict)

    @property
    def path(self) -> Path | None:
        """File of the map; None for one that is in memory only."""
        return self._file("image")

    @property
    def data(self) -> NDArray[Any]:
        """Voxel values: the array itself for an image in memory, else read from the file."""
        import numpy as np

        return np.asanyarray(self.image.dataobj)


@dataclass(frozen=True, eq=False, repr=False)
class ParcelData(_Described):
    """A number for every region of an atlas.

    Parameters
    ----------
    table : DataFrame or path-like
        One row per region in the order of the atlas: ``index``, ``name``, the quantity under its
        own name, further columns.
    name : str
        Quantity, such as ``damagepct``.
    atlas : str
        Such as ``Demo`` or, with further entities, ``Demo_seg-7n_scale-100``.
    space : str, optional
        TemplateFlow name.
    metadata : mapping or path-like, optional
        Content of the sidecar, or its path.
    """

    table: _OnDemand[pd.DataFrame] = _OnDemand(read_region_table)
    name: str = ""
    atlas: str = ""
    space: str | None = None
    metadata: _OnDemand[Mapping[str, Any]] = _OnDemand(read_json_object, dict)

    @property
    def path(self) -> Path | None:
        """File of the table; None for one that is in memory only."""
        return self._file("table")

    @property
    def data(self) -> pd.Series[Any]:
        """The quantity by region; NaN where it is missing."""
        table = self.table
        regions = next((c for c in _NAME_COLUMNS if c in table.columns), table.columns[0])
        value = self.name if self.name in table.columns else table.columns[-1]
        return table.set_index(regions)[value].rename(self.name or str(value))


@dataclass(frozen=True, eq=False, repr=False)
class ConnectivityMatrix(_Described):
    """A number for every pair of regions of an atlas.

    Parameters
    ----------
    table : DataFrame, shape (K, K), or path-like
        Names of regions as index and columns.
    name : str
        Quantity, such as ``streamlineslesion``.
    atlas : str
        See :class:`ParcelData`.
    space : str, optional
        TemplateFlow name.
    metadata : mapping or path-like, optional
        Content of the sidecar, or its path.
    """

    table: _OnDemand[pd.DataFrame] = _OnDemand(read_matrix_table)
    name: str = ""
    atlas: str = ""
    space: str | None = None
    metadata: _OnDemand[Mapping[str, Any]] = _OnDemand(read_json_object, dict)

    @property
    def path(self) -> Path | None:
        """File of the matrix; None for one that is in memory only."""
        return self._file("table")

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions, in the order of the atlas."""
        return tuple(map(str, self.table.index))

    @property
    def data(self) -> NDArray[np.float64]:
        """The numbers, shape (K, K), float64; NaN where one is missing."""
        import numpy as np

        return np.asarray(self.table, dtype=np.float64)


@dataclass(frozen=True, eq=False, repr=False)
class Tractogram(_Described):
    """A file of streamlines.

    Parameters
    ----------
    path : path-like
        ``.tck`` or ``.trk``.
    name : str
    space : str, optional
        TemplateFlow name.
    metadata : mapping or path-like, optional
        Content of the sidecar, or its path.
    """

    path: Path
    name: str = "tractography"
    space: str | None = None
    metadata: _OnDemand[Mapping[str, Any]] = _OnDemand(read_json_object, dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    def load(self) -> Any:
        """Open the file; streamlines are read one after the other as they are asked for.

        Returns
        -------
        nibabel.streamlines.TckFile or TrkFile
            Its ``streamlines`` is a generator, coordinates are in mm (RAS).

        Raises
        ------
        ValidationError
            The file is missing or no tractogram.
        """
        import nibabel.streamlines
        from nibabel.streamlines.tractogram_file import DataError, HeaderError

        try:
            return nibabel.streamlines.load(self.path, lazy_load=True)
        except FileNotFoundError as error:
            raise _missing(self.path) from error
        except (DataError, HeaderError, OSError, ValueError) as error:
            raise ValidationError(f"{self.path} is no tractogram that can be read.") from error


@dataclass(frozen=True)
class ScalarMetric:
    """One number or word about a lesion.

    Parameters
    ----------
    value : float, int, bool, str or None
        None where it could not be computed.
    name : str
    """

    value: float | int | bool | str | None
    name: str = ""


Result = VoxelMap | ParcelData | ConnectivityMatrix | Tractogram | ScalarMetric


@dataclass(frozen=True, eq=False, repr=False)
class SubjectData(_Described):
    """A lesion and what was computed from it.

    Parameters
    ----------
    mask_img : nibabel image or path-like, or None
        Lesion mask; None where it is not at hand.
    space : str, optional
        TemplateFlow name of the mask's space.
    resolution : float, optional
        Voxel size of the mask in mm.
    metadata : mapping
        ``subject_id`` (``sub-01``), ``session_id`` (``ses-01``), ``mask_label``,
        ``acquisition``, ``run``: those that there are.
    results : mapping of str to mapping of str to Result
        By analysis (``rd``, ``fnm``, ``snm``, ``afnm``), then by key: the quantity for maps
        (``z``), ``QUANTITY_atlas-ATLAS`` for tables, the same with ``_relmat`` for matrices,
        the name for numbers.
    provenance : sequence of mappings or path-like, optional
        One record per run.
    anatomical_img : nibabel image or path-like, optional
        Image on which the lesion can be shown.
    """

    mask_img: _OnDemand[SpatialImage | None] = _OnDemand(load_image)
    space: str | None = None
    resolution: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, Result]] = field(default_factory=dict)
    provenance: _OnDemand[Sequence[Mapping[str, Any]]] = _OnDemand(_read_runs, tuple)
    anatomical_img: _OnDemand[SpatialImage | None] = _OnDemand(load_image, lambda: None)

    @property
    def mask_path(self) -> Path | None:
        """File of the mask; None for one that is in memory only."""
        return self._file("mask_img")

    @property
    def anatomical_path(self) -> Path | None:
        """File of the anatomical image; None where there is none, or in memory only."""
        return self._file("anatomical_img")

    @property
    def subject_id(self) -> str | None:
        """Participant, with ``sub-``."""
        return _prefixed("sub-", self.metadata.get("subject_id"))

    @property
    def session_id(self) -> str | None:
        """Session, with ``ses-``."""
        return _prefixed("ses-", self.metadata.get("session_id"))

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}: {len(found)}" for name, found in self.results.items())
        who = "_".join(filter(None, (self.subject_id, self.session_id))) or "no subject_id"
        label = self.metadata.get("mask_label")
        return (
            f"SubjectData({who}{f'_label-{label}' if label else ''}, space={self.space!r}, "
            f"results={{{counts}}})"
        )


def _prefixed(prefix: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    return prefix + str(value).removeprefix(prefix)
