"""Ways between the spaces of a run: which transforms, and whether they are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lacuna_nipype.atlases.templates import missing_sentence, template_needs, transform_chain
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import same_space, template_grid


def find_route(source: str, target: str) -> list[Path]:
    """Find the transforms that bring images of one space to another.

    Parameters
    ----------
    source, target : str
        Names of standard spaces.

    Returns
    -------
    list of Path
        In the order of application; empty where the anatomy is the same.

    Raises
    ------
    ValidationError
        A transform is not at hand, or there is none; the sentence says how to fetch it.
    """
    needs = template_needs(transform_chain(source, target))
    if any(need.path is None for need in needs):
        raise ValidationError(missing_sentence(needs))
    return [need.path for need in needs if need.path is not None]


def why_unreachable(source: str, target: str) -> str | None:
    """Say why images of one space cannot be brought to another; None when they can."""
    try:
        find_route(source, target)
    except ValidationError as error:
        return str(error)
    return None


def _standard_resolution(space: str, wanted: float | None) -> float:
    """Voxel size of a standard grid of a space: the one wanted if there is one, else 2 mm."""
    try:
        template_grid(space, wanted or 2.0)
    except ValidationError:
        return 2.0
    return wanted or 2.0


@dataclass(frozen=True)
class Spaces:
    """Where the analyses of a run make their maps, and where the maps go.

    Parameters
    ----------
    analyses : mapping of str to (space, resolution)
        Standard space of the maps of ``fnm`` and ``snm`` as made, and their voxel size in mm
        where it is a standard one.
    to_input : bool
        Bring maps back to the space of the lesion.
    output_resolution : float or None
        Voxel size of the maps in mm, where the user wants another.
    """

    analyses: Mapping[str, tuple[str, float | None]] = field(default_factory=dict)
    to_input: bool = True
    output_resolution: float | None = None

    def warps(self, space: str, normalisation: Sequence[Path]) -> dict[str, list[Path]]:
        """Find the way of a lesion to every space that it has to be in, besides its own."""
        return {
            target: [*normalisation, *find_route(space, target)]
            for target, _ in self.analyses.values()
            if not same_space(space, target)
        }

    def way_back(self, analysis: str, space: str) -> dict[str, Any] | None:
        """Where maps of an analysis go for a lesion of a space: None to leave them as made."""
        if analysis not in self.analyses:
            return None
        made_in, made_at = self.analyses[analysis]
        target = space if self.to_input else made_in
        foreign = not same_space(made_in, target)
        resolution = self.output_resolution or _standard_resolution(target, made_at)
        other_grid = self.output_resolution is not None and made_at != self.output_resolution
        if not foreign and not other_grid:
            return None
        return {
            "space": target,
            "resolution": resolution,
            "transforms": find_route(made_in, target) if foreign else [],
        }

    def entities(self, analysis: str, space: str, label: str | None) -> dict[str, str]:
        """Entities of the maps of an analysis besides the lesion's own."""
        way = self.way_back(analysis, space)
        if way is not None:
            return {"space": way["space"], "res": f"{way['resolution']:g}"}
        return self.made_entities(analysis, space, label)

    def made_entities(self, analysis: str, space: str, label: str | None) -> dict[str, str]:
        """Entities of the maps of an analysis as they are made."""
        made_in, _ = self.analyses[analysis]
        own = {} if same_space(made_in, space) else {"space": made_in}
        return {**own, **({"res": label} if label else {})}
