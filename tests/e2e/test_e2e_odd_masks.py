"""Masks, atlases and transforms that are odd: used rightly, and said, or refused by name.

The regions are the halves of a box of 16 x 20 x 16 voxels of 6 mm. The plain lesion is 100 voxels
of the left one, so its damage is 100 * 100 / 2560 per cent there and none on the right.
"""

import csv
import json
import re

import fmriprep_data
import h5py
import nibabel as nb
import numpy as np
import pytest
from transform_data import NLIN6, NLIN2009C

from lacuna_nipype.core.spaces import template_grid

OK, SOME_FAILED, USAGE = 0, 1, 2
AFFINE = np.array([[6.0, 0, 0, -60], [0, 6, 0, -80], [0, 0, 6, -50], [0, 0, 0, 1]])
SHAPE = (20, 24, 20)
LEFT, RIGHT = np.s_[2:10, 2:22, 2:18], np.s_[10:18, 2:22, 2:18]
BRAIN = np.s_[2:18, 2:22, 2:18]
# Of the brain's edges (mm) the lesions in another space are placed by.
BRAIN_RIGHT, BRAIN_FRONT = 45.0, 49.0
LESION = np.s_[4:9, 8:13, 8:12]
VOXELS_OF_HALF = 8 * 20 * 16
PLAIN = (100 * 100 / VOXELS_OF_HALF, 0.0)
# Where some axis is turned about, so that the lesion stays in its voxels.
CENTRE = np.array([6.0, 10, 9.5])


def lesion(where=LESION, value=1, dtype=np.uint8, shape=SHAPE):
    data = np.zeros(shape, dtype)
    data[where] = value
    return data


def save_mask(bids, subject, data, affine=AFFINE, *, sform=4, qform=None, space=NLIN6):
    """Write a mask; the qform is a pair of affine and code, or None for code 0."""
    name = f"sub-{subject}_space-{space}_label-stroke_mask.nii.gz"
    path = bids / f"sub-{subject}" / "anat" / name
    path.parent.mkdir(parents=True)
    image = nb.Nifti1Image(data, affine)
    image.header.set_sform(affine, sform)
    image.header.set_qform(*(qform or (None, 0)))
    # Else the image's own affine is written over what the header says.
    nb.save(nb.Nifti1Image(image.dataobj, None, image.header), path)
    return path


def moved(millimetres):
    """The affine of the plain mask, further to the right."""
    affine = AFFINE.copy()
    affine[0, 3] += millimetres
    return affine


def sheared(degrees):
    """Affine whose second axis leans to the right, about the middle of the lesion."""
    affine = AFFINE.copy()
    affine[0, 1] = 6 * np.tan(np.deg2rad(degrees))
    affine[:3, 3] += (AFFINE - affine)[:3, :3] @ CENTRE
    return affine


def make_bids(root):
    root.mkdir(parents=True, exist_ok=True)
    description = {"Name": "test", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
                   "GeneratedBy": [{"Name": "hand"}]}  # fmt: skip
    (root / "dataset_description.json").write_text(json.dumps(description))
    save_mask(root, "good", lesion())
    return root


@pytest.fixture
def bids(tmp_path):
    """A dataset of one good participant."""
    return make_bids(tmp_path / "bids")


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Words of --custom-parcellation: the two halves."""
    folder = tmp_path_factory.mktemp("atlas")
    labels = np.zeros(SHAPE, np.int16)
    labels[LEFT], labels[RIGHT] = 1, 2
    nb.save(nb.Nifti1Image(labels, AFFINE), folder / "halves.nii.gz")
    (folder / "halves.txt").write_text("left half\nright half\n")
    return ["--custom-parcellation", "Halves", folder / "halves.nii.gz", folder / "halves.txt",
            NLIN6]  # fmt: skip


@pytest.fixture(scope="module")
def connectome(tmp_path_factory):
    """Words of a run with a functional connectome of two subjects, and of nothing else."""
    path = tmp_path_factory.mktemp("connectome") / "tiny.h5"
    indices = np.array(np.nonzero(lesion(BRAIN)))
    series = np.random.default_rng(0).normal(size=(2, 20, indices.shape[1]))
    with h5py.File(path, "w") as store:
        store["timeseries"] = series.astype(np.float32)
        store["mask_indices"], store["mask_affine"] = indices, AFFINE
        store.attrs["mask_shape"], store.attrs["space"] = SHAPE, NLIN6
    return ["--functional-connectome", path, "--no-return-input-space"]


@pytest.fixture
def run(run_command, tmp_path):
    def run_participants(bids, *options, **keywords):
        words = (bids, tmp_path / "out", "participant", "--plugin", "Linear")
        return run_command(*words, "-w", tmp_path / "work", *options, **keywords)

    return run_participants


def damage(out, subject):
    """Per cent of the left and of the right half."""
    (path,) = (out / f"sub-{subject}").rglob("*_stat-damagepct_desc-rd_parcelstats.tsv")
    with path.open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [row["name"] for row in rows] == ["left half", "right half"]
    return tuple(float(row["damagepct"]) for row in rows)


def done(out, what):
    """Participants who have a result."""
    return {path.name.split("_")[0].removeprefix("sub-") for path in out.rglob(f"*_{what}*.json")}


def lines_about(process, path):
    return [line for line in process.stdout.splitlines() if str(path) in line]


def refusal(process, path):
    """The one line in which a mask is refused."""
    (line,) = lines_about(process, path)
    assert line.startswith("Error: "), line
    return line


# --- usable, but odd ------------------------------------------------------------------------
#
# Each writes a mask and returns it, what must be warned of, and the damage of the halves.


def mirrored(bids):
    """Stored from right to left: the same array would be a lesion of the other side."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    return save_mask(bids, "las", lesion()[::-1], AFFINE @ flip), [], PLAIN


def permuted(bids):
    """Stored from back to front, then upwards, then leftwards."""
    order = np.array([[0.0, 0, -1, SHAPE[0] - 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    data = lesion().transpose(1, 2, 0)[..., ::-1]
    return save_mask(bids, "asl", data, AFFINE @ order), [], PLAIN


def forms_disagree(bids):
    """By its qform the lesion is in the right half."""
    path = save_mask(bids, "forms", lesion(), qform=(moved(60), 1))
    return path, [r"sform and a qform .* 60 mm.*sform \(code 4\) .*qform \(code 1\)"], PLAIN


def forms_agree(bids):
    return save_mask(bids, "agree", lesion(), qform=(AFFINE, 1)), [], PLAIN


def qform_only(bids):
    """The sform is of the other side, but its code says that it is none."""
    return save_mask(bids, "qform", lesion(), moved(60), sform=0, qform=(AFFINE, 1)), [], PLAIN


def unreadable_qform(bids):
    path = save_mask(bids, "quaternion", lesion(), qform=(AFFINE, 1))
    image = nb.load(path)
    data, header = np.asarray(image.dataobj), image.header
    header["quatern_b"] = 2
    nb.save(nb.Nifti1Image(data, None, header), path)
    return path, ["qform that cannot be read"], PLAIN


def up_to_255(bids):
    return save_mask(bids, "bytes", lesion(value=255)), ["0 and 255"], PLAIN


def rounded(bids):
    data = lesion(value=0.9999, dtype=np.float32)
    data[0, 0, 0] = 1e-4
    return save_mask(bids, "rounded", data), [], PLAIN


def scaled(bids):
    """Integers with a slope, as nibabel writes floats into a header of integers."""
    path = save_mask(bids, "scaled", lesion())
    image = nb.load(path)
    image.set_data_dtype(np.int16)
    nb.save(nb.Nifti1Image(lesion(value=0.99995, dtype=np.float64), None, image.header), path)
    assert np.asarray(nb.load(path).dataobj.get_unscaled()).max() > 1
    return path, [], PLAIN


def one_more_axis(bids):
    return save_mask(bids, "axis", lesion()[..., np.newaxis]), [], PLAIN


def slightly_sheared(bids):
    return save_mask(bids, "sheared", lesion(), sheared(1)), [r"slightly sheared .*\b1\.0 "], PLAIN


def one_fine_voxel(bids):
    """One of 27 voxels of 2 mm in a voxel of the atlas, and not the middle one."""
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = AFFINE[:3, 3] - 2
    data = lesion(np.s_[17, 31, 29], shape=[3 * n for n in SHAPE])
    expected = 100 / (27 * VOXELS_OF_HALF)
    return save_mask(bids, "one", data, affine), [r"\b1 lesion voxel only"], (expected, 0)


def few_voxels(bids):
    """As many on the right."""
    data = lesion(np.s_[4:6, 8:10, 9]) + lesion(np.s_[14:16, 8:10, 9])
    half = 100 * 4 / VOXELS_OF_HALF
    return save_mask(bids, "few", data), [r"\b8 lesion voxels only \(1\.73 ml\)"], (half, half)


ODD_MASKS = [
    *(mirrored, permuted, forms_disagree, forms_agree, qform_only, unreadable_qform),
    *(up_to_255, rounded, scaled, one_more_axis, slightly_sheared, one_fine_voxel, few_voxels),
]


def test_odd_masks_give_the_right_numbers_and_the_right_warnings(bids, atlas, run, tmp_path):
    odd = [make(bids) for make in ODD_MASKS]
    process = run(bids, *atlas)
    assert process.returncode == OK, process.stdout
    assert damage(tmp_path / "out", "good") == pytest.approx(PLAIN)
    for path, warnings, expected in odd:
        subject = path.name.split("_")[0].removeprefix("sub-")
        assert damage(tmp_path / "out", subject) == pytest.approx(expected), subject
        lines = lines_about(process, path)
        assert len(lines) == len(warnings), lines
        for line, pattern in zip(lines, warnings, strict=True):
            assert re.match(rf"Warning: .*{pattern}", line), line
    n_warnings = sum(len(warnings) for _, warnings, _ in odd)
    assert process.stdout.count("Warning: ") == n_warnings


def test_a_voxel_between_those_of_the_connectome_is_kept(bids, connectome, run, tmp_path):
    """Its seed is the voxel of 6 mm that it lies in, so it has the map of that voxel."""
    path, *_ = one_fine_voxel(bids)
    save_mask(bids, "same", lesion(np.s_[5, 10, 9]))
    process = run(bids, *connectome)
    assert process.returncode == OK, process.stdout
    assert any("centre of mass" in line for line in lines_about(process, path))
    maps = {}
    for subject in ("one", "same"):
        (image,) = (tmp_path / "out" / f"sub-{subject}").rglob("*_stat-z_desc-fnm_statmap.nii.gz")
        maps[subject] = nb.load(image).get_fdata()
        sidecar = json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())
        account = sidecar["LesionResampling"]
        assert account["KeptByCentre"] == (subject == "one")
        assert account["VoxelsBefore"] == account["VoxelsAfter"] == 1
        volume = 0.008 if subject == "one" else 0.216
        assert account["VolumeMLBefore"] == pytest.approx(volume)
        assert account["VolumeMLAfter"] == pytest.approx(0.216)
    assert np.any(maps["one"])
    np.testing.assert_array_equal(maps["one"], maps["same"])


# --- refused --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """A study of good participants, and of one for each mistake; names say nothing of them.

    Four have native lesions: ``study.lesions``, in the order of the subjects below.
    """
    study = fmriprep_data.write_fmriprep_study(
        tmp_path_factory.mktemp("native"), targets=(NLIN6,), images=False, precision="float",
        subjects=("fits", "backwards", "stranger", "missing"),
    )  # fmt: skip
    make_bids(study.bids)
    save_mask(study.bids, "leaning", lesion(), sheared(10))
    _, backwards, stranger, missing = study.lesions
    missing.transforms[NLIN6].unlink()
    warp = backwards.warps[NLIN6]
    shift = warp.displacement(fmriprep_data.voxel_centres(warp.grid))
    inverse = [(warp.grid, -shift), np.linalg.inv(warp.affine)]
    fmriprep_data.write_composite(backwards.transforms[NLIN6], inverse, "float")
    # A scanner that counts from the corner of the image, and not from its middle.
    image = nb.load(stranger.mask)
    affine = image.affine.copy()
    affine[:3, 3] += 250
    nb.save(nb.Nifti1Image(np.asarray(image.dataobj), affine), stranger.mask)
    return study


def test_refused_masks_take_no_other_with_them(mistakes, atlas, run, tmp_path):
    derivatives = f"fmriprep={mistakes.fmriprep}"
    process = run(mistakes.bids, *atlas, "--derivatives", derivatives)
    assert process.returncode == SOME_FAILED, process.stdout
    assert "Traceback" not in process.stdout
    (leaning,) = (mistakes.bids / "sub-leaning").rglob("*_mask.nii.gz")
    assert re.search(r"sheared .*\b10\.0 degrees", refusal(process, leaning))
    fits, backwards, stranger, missing = mistakes.lesions
    wanted = missing.transforms[NLIN6]
    line = refusal(process, missing.mask)
    assert wanted.name in line
    assert str(wanted.parent) in line
    for item, reason in ((backwards, "other direction"), (stranger, "another subject")):
        lines = lines_about(process, item.transforms[NLIN6])
        # A row of the table of failed steps.
        (line,) = [line for line in lines if line.startswith(f"  sub-{item.subject}_")]
        assert reason in line
    assert process.stdout.splitlines()[-1].startswith("lacuna-nipype: 2 steps failed")
    assert done(tmp_path / "out", "desc-rd_parcelstats") == {"good", fits.subject}
    assert damage(tmp_path / "out", "good") == pytest.approx(PLAIN)
    # The ball of the first participant is on the right.
    left, right = damage(tmp_path / "out", fits.subject)
    assert left == 0
    # A radius of 9 mm, in 2560 voxels of 216 mm3.
    assert right == pytest.approx(100 * 4 / 3 * np.pi * 9**3 / (VOXELS_OF_HALF * 216), rel=0.05)


def test_a_wrong_transform_does_not_pass_for_a_lesion_outside_the_brain(
    mistakes, connectome, run, tmp_path
):
    """Where the place of the lesion is looked at before the run, so is its transform."""
    process = run(
        mistakes.bids, *connectome, "--on-empty", "skip",
        "--derivatives", f"fmriprep={mistakes.fmriprep}",
        "--participant-label", "good", "backwards", "stranger",
    )  # fmt: skip
    assert process.returncode == SOME_FAILED, process.stdout
    _, backwards, stranger, _ = mistakes.lesions
    for item in (backwards, stranger):
        refusal(process, item.transforms[NLIN6])
    assert "2 masks refused" in process.stdout.splitlines()[-1]
    assert done(tmp_path / "out", "stat-z_desc-fnm_statmap") == {"good"}


def test_a_transform_of_another_participant_is_refused_by_its_name(mistakes, atlas, run, tmp_path):
    fits, _, stranger, _ = mistakes.lesions
    other = fits.transforms[NLIN6]
    process = run(mistakes.bids, *atlas, "--xfm", other, "--participant-label", "good", "stranger")
    assert process.returncode == SOME_FAILED, process.stdout
    line = refusal(process, stranger.mask)
    assert str(other) in line
    assert "sub-fits" in line
    assert done(tmp_path / "out", "desc-rd_parcelstats") == {"good"}


# --- an atlas on the grid of another space --------------------------------------------------


def standard_atlas(folder, name):
    """An atlas on the 2 mm grid of 2009c, and its table; the image."""
    grid = template_grid(NLIN2009C, 2.0)
    labels = np.zeros(grid.shape, np.int16)
    labels[30:40, 40:50, 30:40], labels[60:70, 40:50, 30:40] = 1, 2
    image = folder / f"{name}.nii.gz"
    image.parent.mkdir(parents=True, exist_ok=True)
    nb.save(nb.Nifti1Image(labels, grid.affine), image)
    (folder / f"{name}.tsv").write_text("index\tname\n1\tleft block\n2\tright block\n")
    return image


@pytest.mark.parametrize("given", ["by its path", "in the dataset"])
def test_an_atlas_whose_grid_contradicts_its_space_is_named(bids, run, tmp_path, given):
    if given == "by its path":
        image = standard_atlas(tmp_path, "blocks")
        options = ["--custom-parcellation", "Blocks", image, tmp_path / "blocks.tsv", NLIN6]
    else:
        folder = bids / f"tpl-{NLIN6}"
        image = standard_atlas(folder, f"tpl-{NLIN6}_atlas-Blocks_res-2_dseg")
        options = ["--parcel-atlases", "Blocks"]
    process = run(bids, *options)
    assert process.returncode == USAGE, process.stdout
    line = process.stdout.splitlines()[-1]
    for word in (image, NLIN6, NLIN2009C):
        assert str(word) in line
    assert not (tmp_path / "out").exists()


# --- a lesion whose warp leaves the brain, or enters it -------------------------------------

# Both directions of the warp move them by 8 and 12 mm, to opposite sides.
LEAVES, ENTERS = np.array([41.0, -24, 46]), np.array([-44.0, 56, -28])


def save_ball(bids, subject, centre):
    grid = template_grid(NLIN2009C, 2.0)
    data = np.linalg.norm(fmriprep_data.voxel_centres(grid) - centre, axis=-1) <= 3
    return save_mask(bids, subject, data.astype(np.uint8), grid.affine, space=NLIN2009C)


@pytest.mark.parametrize("policy", ["skip", "error"])
def test_a_lesion_is_looked_for_where_its_warp_takes_it(
    bids, connectome, warps, run, tmp_path, policy
):
    there = warps.pull(NLIN2009C, np.stack([LEAVES, ENTERS]))
    assert LEAVES[0] + 3 < BRAIN_RIGHT < there[0, 0] - 3
    assert ENTERS[1] - 3 > BRAIN_FRONT > there[1, 1] + 3
    path = save_ball(bids, "leaves", LEAVES)
    save_ball(bids, "enters", ENTERS)
    process = run(
        bids, *connectome, "--on-empty", policy, env={"TEMPLATEFLOW_HOME": str(warps.home)}
    )
    assert process.returncode == (OK if policy == "skip" else SOME_FAILED), process.stdout
    (line,) = lines_about(process, path)
    assert line.startswith("Skipped: " if policy == "skip" else "Error: ")
    assert "brain" in line
    assert done(tmp_path / "out", "stat-z_desc-fnm_statmap") == {"good", "enters"}
    (image,) = (tmp_path / "out" / "sub-enters").rglob("*_stat-z_desc-fnm_statmap.nii.gz")
    assert np.any(nb.load(image).get_fdata())
    assert not (tmp_path / "out" / "sub-leaves").exists()
