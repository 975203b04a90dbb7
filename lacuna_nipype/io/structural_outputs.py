"""Names and sidecars of what structural disconnection leaves beside maps and map averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lacuna_nipype.io.quantities import (
    describe_map,
    describe_matrix,
    describe_table,
    matrix_quantities,
)

# Entities of one file, and the content of its sidecar.
Stored = tuple[dict[str, str], dict[str, Any]]


@dataclass(frozen=True)
class StructuralOutputs:
    """What a run stores of structural disconnection for every lesion.

    Parameters
    ----------
    matrix_atlases : sequence of mappings
        ``entities`` and ``description`` of the labelled atlases to relate regions of, and
        optionally ``node_files``, addresses of the tables that name them, and ``transforms``
        to the tractogram's space.
    matrices, roi : bool
        Matrices between regions, and the disconnection of each region.
    bundles : str or None
        Name that stands for the ``atlas`` entity of the table of bundles.
    intermediate : bool
        Density and file of the lesion's streamlines.
    weighted : bool
        Streamlines count by weights.
    """

    matrix_atlases: Sequence[Mapping[str, Any]] = ()
    matrices: bool = False
    roi: bool = False
    bundles: str | None = None
    intermediate: bool = False
    weighted: bool = False

    def files(self, map_entities: Mapping[str, str]) -> list[tuple[str, list[Stored]]]:
        """List files by the field of the workflow that makes them.

        Parameters
        ----------
        map_entities : mapping
            Further entities of maps, such as ``res``.

        Returns
        -------
        list of (field, list of (entities, sidecar content))
            Files of a field in the order in which it gives them.
        """
        groups: list[tuple[str, list[Stored]]] = []
        if self.matrices:
            groups.append(("matrices", [one for atlas in self._atlases() for one in atlas]))
        if self.roi:
            groups.append(("roi_tables", [self._roi(atlas) for atlas in self.matrix_atlases]))
        if self.bundles:
            place = {"atlas": self.bundles, "statistic": "streamlinespct", "suffix": "parcelstats"}
            groups.append(("bundle_table", [(place, describe_table("snm", "streamlinespct"))]))
        if self.intermediate:
            place = {"statistic": "tdi", "suffix": "statmap", **map_entities}
            groups.append(("lesion_tdi", [(place, describe_map("snm", "tdi", map_entities))]))
            described = {"Description": "Streamlines of the tractogram that pass the lesion."}
            groups.append(("lesion_tractogram", [({"suffix": "tractography"}, described)]))
        return groups

    def _atlases(self) -> list[list[Stored]]:
        return [
            [
                (
                    {**atlas["entities"], "statistic": quantity, "suffix": "relmat"},
                    {
                        **describe_matrix(
                            "snm",
                            quantity,
                            weighted=self.weighted,
                            node_files=atlas.get("node_files", ()),
                        ),
                        "Atlas": atlas.get("description", {}),
                    },
                )
                for quantity in matrix_quantities("snm")
            ]
            for atlas in self.matrix_atlases
        ]

    @staticmethod
    def _roi(atlas: Mapping[str, Any]) -> Stored:
        place = {**atlas["entities"], "statistic": "disconnectionpct", "suffix": "parcelstats"}
        described = describe_table("snm", "disconnectionpct")
        return place, {**described, "Atlas": atlas.get("description", {})}
