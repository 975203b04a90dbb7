"""Nodes of a connectivity matrix: the parcels of an atlas, numbered without gaps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lacuna_nipype.atlases.labels import RegionName, read_labels
from lacuna_nipype.atlases.parcels import ParcelChange, bring_parcels, open_atlas
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import write_table
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.core.transforms import PointMap


@dataclass(frozen=True, eq=False)
class Nodes:
    """Parcels of an atlas as nodes 1 to K.

    Parameters
    ----------
    data : array, shape of the grid, int32
        Node of each voxel, 0 for none.
    grid : Grid
        The atlas's own, or the one it was brought to.
    index : array, shape (K,), int64
        Label of each node in the atlas.
    names : tuple of str
    change : ParcelChange
        Volumes of the regions that the image holds, before and after.
    """

    data: NDArray[np.int32]
    grid: Grid
    index: NDArray[np.int64]
    names: tuple[str, ...]
    change: ParcelChange


def has_hard_labels(image_path: Path) -> bool:
    """Tell from its header alone whether an atlas gives every voxel one label.

    Parameters
    ----------
    image_path : Path

    Returns
    -------
    bool
        True for a 3D image; False for a 4D one, which holds a volume per region.

    Raises
    ------
    ValidationError
        The image is missing, or no NIfTI image of three or four dimensions.
    """
    return open_atlas(image_path)[2] == 0


def make_nodes(
    image_path: Path,
    labels_path: Path,
    target: Grid | None = None,
    point_map: PointMap | None = None,
) -> Nodes:
    """Give the parcels of a labelled atlas numbers from 1, in the order of its labels file.

    Gaps between labels and their size then cost nothing: tck2connectome makes a matrix as large
    as the largest label.

    Parameters
    ----------
    image_path : Path
        3D labels; values at or below 0 are background.
    labels_path : Path
        See :func:`lacuna_nipype.atlases.labels.read_labels`. Every name becomes a node: one
        without a voxel keeps its row in the matrix.
    target : Grid, optional
        Grid to bring the nodes to, by nearest neighbour; the atlas's own when left out.
    point_map : PointMap, optional
        From points of the target's space to points of the atlas's, where these differ.

    Returns
    -------
    Nodes

    Raises
    ------
    ValidationError
        The atlas has volumes instead of labels, image or labels are unreadable, or a label of
        the image has no name.
    """
    if not has_hard_labels(image_path):
        raise ValidationError(
            f"Atlas image {image_path} is 4D, a map per region; a connectivity matrix needs a 3D "
            "image with one label per voxel, in which the ends of streamlines can be looked up."
        )
    parcels, change = bring_parcels(image_path, labels_path, target, point_map)
    # A label at or below zero names background.
    regions = [region for region in read_labels(labels_path) if region.index > 0]
    place = {region.index: node for node, region in enumerate(regions, start=1)}
    node = np.array([place[label] for label in parcels.index.tolist()], dtype=np.int32)
    data = np.zeros(int(np.prod(parcels.grid.shape)), dtype=np.int32)
    data[parcels.weights.indices] = np.repeat(node, np.diff(parcels.weights.indptr))
    return Nodes(
        data.reshape(parcels.grid.shape),
        parcels.grid,
        np.array([region.index for region in regions], dtype=np.int64),
        tuple(region.name for region in regions),
        change,
    )


def write_nodes(nodes: Nodes, folder: Path) -> tuple[Path, Path]:
    """Write nodes for programs that assign streamlines to them.

    Parameters
    ----------
    nodes : Nodes
    folder : Path

    Returns
    -------
    image : Path
        ``nodes.nii.gz``, int32.
    table : Path
        ``nodes.tsv``: ``index`` (label in the atlas) and ``name``; row i is node i.
    """
    image = save_image(folder / "nodes.nii.gz", nodes.data, nodes.grid.affine, np.int32)
    table = pd.DataFrame({"index": nodes.index, "name": list(nodes.names)})
    return image, write_table(folder / "nodes.tsv", table)


def read_nodes_table(path: Path) -> list[RegionName]:
    """Read the table that :func:`write_nodes` wrote: label and name of nodes 1 to K."""
    return read_labels(path)
