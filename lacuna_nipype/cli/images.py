"""Which images ``lacuna-nipype connectome build`` takes: given ones, or those of a dataset."""

from __future__ import annotations

import argparse
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lacuna_nipype.cli.arguments import absolute_path, existing_path, label_of

_WILDCARDS = frozenset("*?[")
TEMPLATEFLOW, COMMON = "templateflow", "common"
_DENOISED = "denoised"


@dataclass(frozen=True)
class BuildInputs:
    """Files that a connectome is built from.

    Parameters
    ----------
    images : list of Path
        One per participant.
    mask : Path
        Brain mask.
    confounds_tables : list of Path
        One per image, or none.
    """

    images: list[Path]
    mask: Path
    confounds_tables: list[Path]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose images, mask and tables."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images", nargs="+", metavar="IMAGE",
        help="4D NIfTI images, one per subject; patterns such as 'sub-*/*_bold.nii.gz' work too",
    )  # fmt: skip
    source.add_argument(
        "--derivatives", nargs="+", type=existing_path, metavar="DIR",
        help="BIDS derivatives of XCP-D, fMRIPrep and the like: one image of each participant, "
        "*_bold with this --space and --desc",
    )  # fmt: skip
    parser.add_argument(
        "--mask", type=_mask, metavar="IMAGE",
        help=f"binary brain mask; or {TEMPLATEFLOW}: that of the space; or {COMMON}: the voxels "
        f"in the masks of all participants (default with --derivatives: {COMMON})",
    )  # fmt: skip
    parser.add_argument(
        "--space", required=True, metavar="SPACE", help="standard space of images and mask"
    )
    chosen = parser.add_argument_group("images of --derivatives")
    chosen.add_argument("--desc", metavar="LABEL", help=f"(default: {_DENOISED})")
    for flag in ("res", "task", "run"):
        chosen.add_argument(f"--{flag}", type=label_of(f"{flag}-"), metavar="LABEL")
    for flag, key in (("participant", "sub-"), ("session", "ses-")):
        chosen.add_argument(
            f"--{flag}-label", nargs="+", type=label_of(key), default=[], metavar="LABEL"
        )


def _mask(text: str) -> Path | str:
    return text if text in (TEMPLATEFLOW, COMMON) else existing_path(text)


def gather(options: argparse.Namespace) -> BuildInputs:
    """Find the files.

    Parameters
    ----------
    options : argparse.Namespace
        Parsed arguments of ``connectome build``.

    Returns
    -------
    BuildInputs

    Raises
    ------
    ValidationError
        Arguments contradict each other, or there is no such brain mask.
    BidsError
        A dataset does not hold what is asked for.
    """
    from lacuna_nipype.io.functional_images import find_beside

    images = _derived(options) if options.derivatives else _given(options)
    folders = options.derivatives or []
    tables = find_beside(images, folders, "confounds") if options.confounds else []
    return BuildInputs(images, _brain_mask(options, images), tables)


def _derived(options: argparse.Namespace) -> list[Path]:
    from lacuna_nipype.io.functional_images import ImageFilter, find_functional_images

    wanted = ImageFilter(
        options.space, options.desc or _DENOISED, options.res, options.task, options.run,
        tuple(options.participant_label), tuple(options.session_label),
    )  # fmt: skip
    return find_functional_images(options.derivatives, wanted)


def _given(options: argparse.Namespace) -> list[Path]:
    from lacuna_nipype.core.exceptions import ValidationError

    for flag in ("desc", "res", "task", "run", "participant_label", "session_label"):
        if getattr(options, flag):
            name = flag.replace("_", "-")
            raise ValidationError(f"--{name} chooses among --derivatives; leave it out.")
    return expand(options.images)


def expand(words: Sequence[str]) -> list[Path]:
    """Paths of files and patterns, patterns in name order."""
    from lacuna_nipype.core.exceptions import ValidationError

    paths = []
    for word in words:
        if _WILDCARDS & set(word) and not Path(word).exists():
            # Not Path.glob, which takes no absolute pattern.
            found = sorted(glob.glob(str(Path(word).expanduser()), recursive=True))  # noqa: PTH207
            if not found:
                raise ValidationError(f"No image matches {word}; check the pattern.")
            paths += [absolute_path(name) for name in found]
        else:
            paths.append(absolute_path(word))
    return paths


def _brain_mask(options: argparse.Namespace, images: Sequence[Path]) -> Path:
    from lacuna_nipype.core.exceptions import ValidationError

    if options.mask == TEMPLATEFLOW:
        return _template_mask(options.space, images[0])
    if options.mask == COMMON or (options.mask is None and options.derivatives):
        return _common_mask(options, images)
    if options.mask is None:
        raise ValidationError(f"--images needs --mask: a brain mask, {TEMPLATEFLOW} or {COMMON}.")
    return options.mask


def _common_mask(options: argparse.Namespace, images: Sequence[Path]) -> Path:
    from lacuna_nipype.connectomes.common_mask import write_common_mask
    from lacuna_nipype.core.exceptions import BidsError
    from lacuna_nipype.io.functional_images import find_beside

    try:
        masks = find_beside(images, options.derivatives or [], "mask", options.space)
    except BidsError as error:
        sentence = str(error).rstrip(".")
        raise BidsError(f"{sentence}; give --mask IMAGE or --mask {TEMPLATEFLOW}.") from error
    target = options.out / f"{options.out.name}_desc-brain_mask.nii.gz"
    return write_common_mask(masks, target, overwrite=options.overwrite)


def _template_mask(space: str, image: Path) -> Path:
    import nibabel as nb
    from nibabel.filebasedimages import ImageFileError

    from lacuna_nipype.atlases.masks import load_brain_mask
    from lacuna_nipype.core.exceptions import ValidationError

    try:
        size = round(float(nb.load(image).header.get_zooms()[0]), 3)
    except (OSError, EOFError, ImageFileError) as error:
        raise ValidationError(f"{image} cannot be read as an image; check the path.") from error
    try:
        return load_brain_mask(space, size)
    except KeyError as error:
        raise ValidationError(f"{error.args[0]} Give a mask of your own with --mask.") from error
