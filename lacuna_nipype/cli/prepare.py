"""``lacuna-nipype connectome prepare``: a functional connectome as matrices between parcels."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lacuna_nipype.cli.arguments import absolute_path, named_path, positive_integer
from lacuna_nipype.cli.registered import connectome_location

if TYPE_CHECKING:
    from lacuna_nipype.atlases.catalogue import Atlas
    from lacuna_nipype.connectomes.functional import FunctionalConnectome
    from lacuna_nipype.connectomes.prepare import Parcellation, PreparedMatrix

SUMMARY = "reduce a functional connectome to matrices between the parcels of atlases"
PROGRESS_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument(
        "connectome", type=connectome_location, metavar="CONNECTOME",
        help="HDF5 file, or folder of HDF5 files, or the name of a registered one",
    )  # fmt: skip
    parser.add_argument(
        "output_dir", type=absolute_path, metavar="OUT", help="folder for the matrices"
    )
    parser.add_argument(
        "--custom-parcellation", nargs=4, action="append", default=[],
        metavar=("NAME", "NIFTI", "LABELS", "SPACE"),
        help="an atlas of your own; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--parcel-atlases", nargs="+", default=[], metavar="ATLAS",
        help="ids of atlases: registered ones, those that a dataset carries (tpl-* folders), or "
        "TemplateFlow's, such as schaefer2018parcels100networks7; see 'atlas list'",
    )  # fmt: skip
    parser.add_argument(
        "-d", "--datasets", "--derivatives", nargs="+", type=named_path,
        default=[], metavar="[NAME=]PATH", help="BIDS datasets of atlases, with tpl-* folders",
    )  # fmt: skip
    parser.add_argument(
        "--functional-space", metavar="SPACE",
        help="space of the connectome, where its files do not say",
    )  # fmt: skip
    parser.add_argument(
        "--nprocs", type=positive_integer, metavar="N",
        help="processors to use; each file is read by one (default: all that are allowed)",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help="replace matrices that are there already"
    )


def run(options: argparse.Namespace) -> None:
    """Prepare the matrices and print where they are.

    Parameters
    ----------
    options : argparse.Namespace
        Of :func:`add_arguments`.

    Raises
    ------
    LacunaError
        An input cannot be used, or the work failed.
    """
    from lacuna_nipype.core.exceptions import ValidationError

    if not options.custom_parcellation and not options.parcel_atlases:
        raise ValidationError(
            "nothing to prepare for: give --custom-parcellation or --parcel-atlases"
        )
    sys.stdout.write("".join(_summary(matrix) for matrix in _prepare(options)))


def _prepare(options: argparse.Namespace) -> list[PreparedMatrix]:
    from lacuna_nipype.connectomes.functional import open_connectome
    from lacuna_nipype.connectomes.prepare import connectome_label, prepare_matrices
    from lacuna_nipype.connectomes.registry import registered_space
    from lacuna_nipype.core.files import combined_fingerprint
    from lacuna_nipype.execution.progress import log_progress
    from lacuna_nipype.execution.resources import available_processors

    space = options.functional_space or registered_space(options.connectome)
    connectome = open_connectome(options.connectome, space)
    return prepare_matrices(
        connectome,
        [_parcellation(atlas, connectome) for atlas in _atlases(options, connectome.space)],
        options.output_dir,
        label=connectome_label(options.connectome),
        fingerprint=combined_fingerprint(connectome.paths),
        n_procs=options.nprocs or available_processors(),
        overwrite=options.overwrite,
        progress=log_progress("Subject", every_seconds=PROGRESS_SECONDS),
    )


def _atlases(options: argparse.Namespace, space: str) -> list[Atlas]:
    from lacuna_nipype.atlases.catalogue import custom_atlas
    from lacuna_nipype.atlases.services import find_run_atlases

    atlases = [
        custom_atlas(name, absolute_path(image), absolute_path(labels), own_space)
        for name, image, labels, own_space in options.custom_parcellation
    ]
    if options.parcel_atlases:
        roots = [root for _, root in options.datasets]
        atlases += find_run_atlases(options.parcel_atlases, space, datasets=roots)
    return atlases


def _parcellation(atlas: Atlas, connectome: FunctionalConnectome) -> Parcellation:
    """Check an atlas and bring it to the connectome's grid."""
    from lacuna_nipype.atlases.catalogue import atlas_description, check_atlas
    from lacuna_nipype.atlases.parcels import load_parcels
    from lacuna_nipype.cli.routes import find_route, why_unreachable
    from lacuna_nipype.connectomes.prepare import Parcellation
    from lacuna_nipype.core.exceptions import SpatialMismatchError
    from lacuna_nipype.core.spaces import same_space
    from lacuna_nipype.core.transforms import load_point_map

    check_atlas(atlas)
    point_map = None
    if not same_space(atlas.space, connectome.space):
        reason = why_unreachable(atlas.space, connectome.space)
        if reason is not None:
            raise SpatialMismatchError(
                f"Atlas {atlas.id} is in {atlas.space} but the connectome is in "
                f"{connectome.space}; {reason}"
            )
        point_map = load_point_map(find_route(atlas.space, connectome.space))
    parcels = load_parcels(atlas.image, atlas.labels, connectome.grid, point_map)
    return Parcellation(atlas.id, parcels, atlas.entities, atlas_description(atlas))


def _summary(matrix: PreparedMatrix) -> str:
    """Say what was written for one atlas."""
    without = (
        f", {len(matrix.missing)} of them without connectivity ({', '.join(matrix.missing[:5])}"
        f"{', ...' if len(matrix.missing) > 5 else ''})"
        if matrix.missing
        else ""
    )
    return (
        f"{matrix.z_file}\n{matrix.r_file}\n"
        f"  {len(matrix.names)} parcels, {matrix.n_subjects} subjects{without}\n"
    )
