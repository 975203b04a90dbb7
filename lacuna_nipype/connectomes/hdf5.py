"""HDF5 files that may be damaged, incomplete, or hold other things than they should."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

# What h5py and numpy raise when a file has damaged metadata, links that lead nowhere, and
# objects of other kinds, types or shapes than expected.
DAMAGE = (
    *(OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError),
    *(OverflowError, MemoryError),
)
# Deflate cannot do better.
MOST_INFLATED = 1032


def get_dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """Find a dataset.

    Parameters
    ----------
    group : h5py.Group
    name : str

    Returns
    -------
    h5py.Dataset

    Raises
    ------
    KeyError
        It is not there, or is something else, or holds nothing at all.
    """
    found = group[name]
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise KeyError(f"{name} is no dataset")
    return found


def read_numbers(
    group: h5py.Group, name: str, shape: tuple[int, ...], *, kinds: str = "iuf"
) -> NDArray[Any]:
    """Read a dataset of numbers whose shape is known.

    Parameters
    ----------
    group : h5py.Group
    name : str
    shape : tuple of int
    kinds : str
        NumPy's letters of the types allowed: ``iu`` where only whole numbers have a meaning.

    Returns
    -------
    array

    Raises
    ------
    KeyError
        It is not there.
    ValueError
        It has another shape, or numbers of another kind. Nothing is read then, however large.
    """
    found = get_dataset(group, name)
    if found.shape != shape or found.dtype.kind not in kinds:
        raise ValueError(f"{name} of shape {found.shape} and type {found.dtype}")
    values: NDArray[Any] = found[()]
    return values


def whole(value: Any) -> int:
    """Read a count or a size of an attribute.

    Parameters
    ----------
    value : object
        As h5py gives it.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        It is no number.
    ValueError
        It has a fraction.
    """
    number = int(value)
    if number != value:
        raise ValueError(f"{value!r} where a whole number is expected")
    return number


def is_there(dataset: h5py.Dataset) -> bool:
    """Tell whether a file may hold as much as a dataset claims.

    HDF5 lets a header claim any size, and reads what was never written as zeros.

    Parameters
    ----------
    dataset : h5py.Dataset

    Returns
    -------
    bool
        Also for a dataset of which a few chunks were never written.
    """
    if dataset.is_virtual or dataset.external:
        return True
    inflated = 1 if dataset.chunks is None else MOST_INFLATED
    return bool(inflated * dataset.id.get_storage_size() >= dataset.nbytes)


def text_of(value: Any) -> str:
    """Text of an attribute, which HDF5 knows in several types.

    Parameters
    ----------
    value : object

    Returns
    -------
    str

    Raises
    ------
    ValueError
        It is no text.
    """
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} instead of text")
    return value
