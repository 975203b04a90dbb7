"""Input that cannot be used: the exit code, one sentence that names it, and no other victim."""

import fcntl
import json
import os
import re
import shutil

import h5py
import nibabel as nib
import numpy as np
import pytest

OK, SOME_FAILED, USAGE, MISSING_PROGRAM = 0, 1, 2, 127
WITH_MRTRIX = ("--snm-engine", "mrtrix")
SPACE = "MNI152NLin6Asym"
AFFINE = np.array([[6.0, 0, 0, -60], [0, 6, 0, -80], [0, 0, 6, -50], [0, 0, 0, 1]])
SHAPE = (20, 24, 20)
LESION = np.s_[4:9, 8:13, 8:12]
BRAIN = np.s_[2:18, 2:22, 2:18]


def lesion(where=LESION, value=1, dtype=np.uint8, shape=SHAPE):
    data = np.zeros(shape, dtype)
    data[where] = value
    return data


def save_mask(bids, subject, data, *, affine=AFFINE, space=f"space-{SPACE}_"):
    path = bids / f"sub-{subject}" / "anat" / f"sub-{subject}_{space}label-stroke_mask.nii.gz"
    path.parent.mkdir(parents=True)
    image = nib.Nifti1Image(data, affine)
    image.header.set_sform(affine, 4)
    nib.save(image, path)
    return path


@pytest.fixture
def bids(tmp_path):
    """A dataset of one good participant."""
    root = tmp_path / "bids"
    root.mkdir()
    description = {"Name": "test", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
                   "GeneratedBy": [{"Name": "hand"}]}  # fmt: skip
    (root / "dataset_description.json").write_text(json.dumps(description))
    save_mask(root, "good", lesion())
    return root


@pytest.fixture(scope="session")
def atlas(tmp_path_factory):
    """Words of --custom-parcellation: an atlas of two regions."""
    folder = tmp_path_factory.mktemp("atlas")
    labels = np.zeros(SHAPE, np.int16)
    labels[2:10, 2:22, 2:18], labels[10:18, 2:22, 2:18] = 1, 2
    nib.save(nib.Nifti1Image(labels, AFFINE), folder / "halves.nii.gz")
    (folder / "halves.txt").write_text("left half\nright half\n")
    return ["--custom-parcellation", "Halves", folder / "halves.nii.gz", folder / "halves.txt",
            SPACE]  # fmt: skip


def write_connectome(path, *, seed=0, brain=BRAIN):
    inside = np.zeros(SHAPE, bool)
    inside[brain] = True
    indices = np.array(np.nonzero(inside))
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as store:
        series = rng.normal(size=(2, 20, indices.shape[1])).astype(np.float32)
        store["timeseries"], store["mask_indices"], store["mask_affine"] = series, indices, AFFINE
        store.attrs["mask_shape"], store.attrs["space"] = SHAPE, SPACE


@pytest.fixture
def connectome(tmp_path):
    """A functional connectome of two small files."""
    folder = tmp_path / "connectome"
    folder.mkdir()
    for number in (1, 2):
        write_connectome(folder / f"part-{number}.h5", seed=number)
    return folder


def write_tractogram(path, n_streamlines=30, *, end=True):
    """Straight lines from left to right through the lesion, in steps of 1 mm."""
    x = np.arange(-50, 51)
    nan, blocks = np.full((1, 3), np.nan), []
    for number in range(n_streamlines):
        line = np.stack([x, np.full(101, -30.0 + number), np.full(101, 5.0)], axis=1)
        blocks += [line, nan]
    blocks += [np.full((1, 3), np.inf)] if end else []
    header = (
        "mrtrix tracks\ndatatype: Float32LE\nstep_size: 1\n"
        f"count: {n_streamlines}\nfile: . 100\nEND\n"
    )
    assert len(header) <= 100
    points = np.concatenate(blocks).astype("<f4") if blocks else np.empty((0, 3), "<f4")
    path.write_bytes(header.encode().ljust(100, b"\0") + points.tobytes())


@pytest.fixture
def tractogram(tmp_path):
    path = tmp_path / "fibres.tck"
    write_tractogram(path)
    return ["--structural-connectome", path, "--structural-space", SPACE]


@pytest.fixture
def run(run_command, tmp_path):
    """Run one step after another, with folders of this test."""

    def run_participants(bids, *options, out=tmp_path / "out", work=tmp_path / "work", **keywords):
        words = (bids, out, "participant", "--plugin", "Linear", "-w", work, *options)
        return run_command(*words, **keywords)

    return run_participants


def explain(process, code, *names):
    """Check the exit code and that the last line is one sentence with the names; return it."""
    assert process.returncode == code, process.stdout
    assert "Traceback" not in process.stdout
    line = process.stdout.splitlines()[-1]
    assert line.startswith("lacuna-nipype: ")
    for name in names:
        assert str(name) in line, line
    assert process.stdout.count(line.removeprefix("lacuna-nipype: ")) == 1, "said twice"
    return line


def subjects_with_results(out):
    """Participants with a table, a map, or anything else that looks like a success."""
    return {path.name.removeprefix("sub-") for path in out.glob("sub-*")}


# --- masks ----------------------------------------------------------------------------------


def fourd(bids):
    return save_mask(bids, "fourd", np.stack([lesion(), lesion()], axis=3)), "4 dimensions"


def probabilities(bids):
    values = np.linspace(0, 1, lesion().size, dtype=np.float32).reshape(SHAPE)
    return save_mask(bids, "graded", values), "not binary"


def all_nan(bids):
    values = np.full(SHAPE, np.nan, np.float32)
    return save_mask(bids, "nan", values), "only NaN"


def some_nan(bids):
    return save_mask(bids, "somenan", lesion(dtype=np.float32, value=np.nan)), "NaN"


def all_ones(bids):
    return save_mask(bids, "ones", np.ones(SHAPE, np.uint8)), "every voxel"


def truncated(bids):
    rng = np.random.default_rng(0)
    path = save_mask(bids, "cut", rng.integers(0, 2, SHAPE, dtype=np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path, "truncated or damaged"


def truncated_header(bids):
    path = save_mask(bids, "cutearly", lesion())
    path.write_bytes(path.read_bytes()[:40])
    return path, "not a readable NIfTI"


def no_bytes(bids):
    path = save_mask(bids, "nobytes", lesion())
    path.write_bytes(b"")
    return path, "not a readable NIfTI"


def text(bids):
    path = save_mask(bids, "text", lesion())
    path.write_text("these are not voxels\n" * 50)
    return path, "not a readable NIfTI"


def other_format(bids):
    """A FreeSurfer volume under the name of a NIfTI image."""
    path = save_mask(bids, "freesurfer", lesion())
    nib.save(nib.MGHImage(lesion(), AFFINE), path.with_name("volume.mgz"))
    path.with_name("volume.mgz").rename(path)
    return path, "NIfTI"


def no_space(bids):
    return save_mask(bids, "nospace", lesion(), space=""), "--mask-space"


def unknown_space(bids):
    return save_mask(bids, "nativespace", lesion(), space="space-T1w_"), "(T1w)"


def other_space(bids):
    path = save_mask(bids, "other", lesion(), space="space-MNI152NLin2009cAsym_")
    return path, "is in MNI152NLin2009cAsym but"


def contradiction(bids):
    """The grid is the standard one of another space."""
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -96.5, -132.5, -78.5
    data = lesion(np.s_[20:25, 30:35, 30:35], shape=(97, 115, 97))
    return save_mask(bids, "contradiction", data, affine=affine), "standard grid of"


def collapsed_affine(bids):
    path = save_mask(bids, "collapsed", lesion())
    affine = AFFINE.copy()
    affine[:, 1] = affine[:, 0]
    image = nib.Nifti1Image(lesion(), AFFINE)
    image.header.set_sform(affine, 4)
    image.header.set_qform(None, 0)
    hdr = image.header
    nib.save(nib.Nifti1Image(lesion(), None, hdr), path)
    return path, "affine"


def no_orientation(bids):
    path = save_mask(bids, "nowhere", lesion())
    image = nib.Nifti1Image(lesion(), None)
    nib.save(image, path)
    return path, "neither an sform nor a qform"


BAD_MASKS = [
    *(fourd, probabilities, all_nan, some_nan, all_ones),
    *(truncated, truncated_header, no_bytes, text, other_format),
    *(no_space, unknown_space, other_space, contradiction),
    *(collapsed_affine, no_orientation),
]


def test_bad_masks_are_named_and_the_good_one_is_done(bids, atlas, run, tmp_path):
    bad = [make(bids) for make in BAD_MASKS]
    # Without the transforms between spaces that a user may have.
    process = run(bids, *atlas, env={"TEMPLATEFLOW_HOME": str(tmp_path / "templateflow")})
    line = explain(process, SOME_FAILED, f"{len(bad)} masks refused", tmp_path / "out")
    assert "sub-contradiction_label-stroke" in line
    lines = process.stdout.splitlines()
    for path, reason in bad:
        named = [line for line in lines if str(path) in line]
        assert len(named) == 1, path
        assert named[0].startswith("Error: ")
        assert reason in named[0], named[0]
    assert subjects_with_results(tmp_path / "out") == {"good"}
    (table,) = (tmp_path / "out" / "sub-good").rglob("*_parcelstats.tsv")
    rows = table.read_text().splitlines()
    assert rows[1].split("\t")[:2] == ["1", "left half"]
    assert float(rows[1].split("\t")[2]) == pytest.approx(100 * 100 / (8 * 20 * 16))


@pytest.mark.parametrize("make", [fourd, no_space])
def test_a_bad_mask_alone_is_the_last_word(bids, atlas, run, tmp_path, make):
    shutil.rmtree(bids / "sub-good")
    path, reason = make(bids)
    explain(run(bids, *atlas), SOME_FAILED, path, reason)
    assert not subjects_with_results(tmp_path / "out")


def test_a_space_can_be_given_for_a_mask_without(bids, atlas, run, tmp_path):
    no_space(bids)
    process = run(bids, *atlas, "--mask-space", SPACE)
    assert process.returncode == OK, process.stdout
    assert subjects_with_results(tmp_path / "out") == {"good", "nospace"}


def test_an_unknown_space_for_all_masks_is_a_mistake_of_usage(bids, atlas, run, tmp_path):
    explain(run(bids, *atlas, "--mask-space", "MNI151"), USAGE, "'MNI151'", SPACE)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hollow(bids):
    """Two masks without a voxel in the brain; their paths."""
    return [
        save_mask(bids, "empty", lesion(value=0)),
        save_mask(bids, "outside", lesion(np.s_[:2, :3, :2])),
    ]


def values_of(path):
    if path.suffix == ".tsv":
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        return [float(row[2]) for row in rows[1:]]
    return nib.load(path).get_fdata()


def test_masks_without_a_voxel_in_the_brain_give_zeros(
    bids, hollow, atlas, connectome, tractogram, run, tmp_path, validate_bids
):
    process = run(bids, *atlas, "--functional-connectome", connectome, *tractogram)
    assert process.returncode == OK, process.stdout
    assert "Traceback" not in process.stdout
    for path, reason in zip(hollow, ("no lesion voxel", "no voxel inside"), strict=True):
        (line,) = [line for line in process.stdout.splitlines() if str(path) in line]
        assert line.startswith("Warning: ")
        assert reason in line
        assert "zero" in line
    out = tmp_path / "out"
    assert subjects_with_results(out) == {"good", "empty", "outside"}
    for path in out.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    kinds = {}
    for subject in ("good", "empty", "outside"):
        files = [*(out / f"sub-{subject}").rglob("*_stat-*.nii.gz"),
                 *(out / f"sub-{subject}").rglob("*.tsv")]  # fmt: skip
        kinds[subject] = {path.name.split("_", 1)[1] for path in files}
        for path in files:
            if "stat-valid" in path.name:
                continue
            if "stat-p_" in path.name or "stat-q_" in path.name:
                # Without a seed nothing speaks against chance anywhere.
                assert np.all(values_of(path) == 1) == (subject != "good"), path.name
                continue
            if "stat-qsig" in path.name and subject == "good":
                continue
            assert np.isfinite(values_of(path)).all()
            assert np.any(values_of(path)) == (subject == "good"), path.name
        assert not np.any(values_of(next((out / "sub-empty").rglob("*_mask.nii.gz"))))
    assert kinds["empty"] == kinds["outside"] == kinds["good"]
    assert any("desc-snm" in kind for kind in kinds["good"])
    validate_bids(out)


def test_masks_without_a_voxel_in_the_brain_can_be_left_out(
    bids, hollow, atlas, connectome, run, tmp_path
):
    options = [*atlas, "--functional-connectome", connectome, "--on-empty", "skip"]
    process = run(bids, *options)
    assert process.returncode == OK, process.stdout
    for path in hollow:
        assert re.search(rf"^Skipped: .*{re.escape(str(path))}", process.stdout, re.MULTILINE)
    assert subjects_with_results(tmp_path / "out") == {"good"}


def test_masks_without_a_voxel_in_the_brain_can_be_errors(
    bids, hollow, atlas, connectome, run, tmp_path
):
    options = [*atlas, "--functional-connectome", connectome, "--on-empty", "error"]
    process = run(bids, *options)
    explain(process, SOME_FAILED, "sub-empty_label-stroke", "sub-outside_label-stroke")
    for path in hollow:
        assert re.search(rf"^Error: .*{re.escape(str(path))}", process.stdout, re.MULTILINE)
    assert subjects_with_results(tmp_path / "out") == {"good"}


def test_nothing_but_skipped_masks_is_no_failure(bids, atlas, run, tmp_path):
    shutil.rmtree(bids / "sub-good")
    save_mask(bids, "empty", lesion(value=0))
    process = run(bids, *atlas, "--on-empty", "skip")
    assert process.returncode == OK, process.stdout
    assert "nothing to do" in process.stdout.splitlines()[-1]
    assert not subjects_with_results(tmp_path / "out")


# --- a step that fails ----------------------------------------------------------------------


def with_failing_tckedit(folder, where, delay=0):
    """Environment in which tckedit fails in work folders that fit a shell pattern.

    Elsewhere it works, after so many seconds.
    """
    folder.mkdir()
    (folder / "tckedit").write_text(
        "#!/bin/sh\n"
        f'case "$PWD" in {where}) echo "tckedit: [ERROR] no space left" >&2; exit 1;; esac\n'
        f'case "$PWD" in */work*) sleep {delay};; esac\n'
        f'exec {shutil.which("tckedit")} "$@"\n'
    )
    (folder / "tckedit").chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.mrtrix
@pytest.mark.parametrize("plugin", ["Linear", "MultiProc"])
def test_a_step_that_fails_takes_no_other_participant_with_it(
    bids, atlas, tractogram, run, tmp_path, plugin
):
    save_mask(bids, "unlucky", lesion())
    env = with_failing_tckedit(tmp_path / "bin", "*unlucky*")
    options = (*atlas, *tractogram, *WITH_MRTRIX, "--plugin", plugin, "--nprocs", "2")
    process = run(bids, *options, env=env)
    line = explain(process, SOME_FAILED, "1 step failed", tmp_path / "out" / "logs")
    assert "no space left" in line
    # The table of failed steps names the lesion and the step.
    assert re.search(r"^  sub-unlucky_label-stroke +snm_wf\.select ", process.stdout, re.MULTILINE)
    good, unlucky = (
        {path.name.split("_", 1)[1] for path in (tmp_path / "out" / name).rglob("*_*.*")}
        for name in ("sub-good", "sub-unlucky")
    )
    assert unlucky < good
    assert {name for name in good - unlucky if "desc-snm" not in name} == set()
    assert not any("desc-snm" in name for name in unlucky)
    # Without the obstacle, what failed is done, and nothing else.
    again = run(bids, *options)
    assert again.returncode == OK, again.stdout
    assert 0 < int(re.search(r"^(\d+) steps ran", again.stdout, re.MULTILINE)[1]) < 12


@pytest.mark.mrtrix
@pytest.mark.parametrize("plugin", ["Linear", "MultiProc"])
def test_the_first_failure_ends_the_run_when_asked_to(
    bids, atlas, tractogram, run, tmp_path, plugin
):
    """What fails does so at once, and what could go on is slow to start with."""
    save_mask(bids, "bad", lesion())
    env = with_failing_tckedit(tmp_path / "bin", "*sub_bad*", delay=1)
    finished = []
    for number, flags in enumerate([(), ("--stop-on-first-crash",)]):
        out = tmp_path / f"out{number}"
        process = run(
            bids, *atlas, *tractogram, *WITH_MRTRIX, "--plugin", plugin, "--nprocs", "2",
            *flags, env=env, out=out, work=tmp_path / f"work{number}",
        )  # fmt: skip
        explain(process, SOME_FAILED, "1 step failed", "no space left")
        finished.append(any((out / "sub-good").rglob("*desc-snm_statmap*")))
    assert finished == [True, False]


# --- connectomes and atlases ----------------------------------------------------------------


def cut_second_file(folder):
    path = folder / "part-2.h5"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path, "truncated"


def no_hdf5(folder):
    path = folder / "part-2.h5"
    path.write_text("timeseries\n" * 100)
    return path, "no HDF5"


def lacks_dataset(folder):
    path = folder / "part-2.h5"
    with h5py.File(path, "a") as store:
        del store["mask_affine"]
    return path, "lacks mask_affine"


def other_brain(folder):
    path = folder / "part-2.h5"
    write_connectome(path, brain=np.s_[2:17, 2:22, 2:18])
    return path, "disagree on the brain mask"


def other_affine(folder):
    path = folder / "part-2.h5"
    with h5py.File(path, "a") as store:
        store["mask_affine"][0, 3] += 6
    return path, "disagree on the brain mask or its affine"


def no_files(folder):
    for path in folder.iterdir():
        path.unlink()
    return folder, "no .h5"


@pytest.mark.parametrize(
    "damage", [cut_second_file, no_hdf5, lacks_dataset, other_brain, other_affine, no_files]
)
def test_a_bad_functional_connectome_is_named(bids, connectome, run, tmp_path, damage):
    path, reason = damage(connectome)
    explain(run(bids, "--functional-connectome", connectome), USAGE, path, reason)
    assert not (tmp_path / "out").exists()


def test_damage_inside_a_connectome_fails_its_analysis_alone(
    bids, connectome, atlas, run, tmp_path
):
    """Found only by reading: compressed data with a byte that changed."""
    path = connectome / "part-2.h5"
    with h5py.File(path, "a") as store:
        series = store["timeseries"][:]
        del store["timeseries"]
        made = store.create_dataset("timeseries", data=series, chunks=(1, *series.shape[1:]),
                                    compression="gzip", fletcher32=True)  # fmt: skip
        offset = made.id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 200 : offset + 220] = bytes(20)
    path.write_bytes(content)
    process = run(bids, *atlas, "--functional-connectome", connectome)
    explain(process, SOME_FAILED, path, "damaged data")
    names = [item.name for item in (tmp_path / "out" / "sub-good").rglob("*") if item.is_file()]
    assert any("desc-rd_parcelstats" in name for name in names)
    assert not any("desc-fnm" in name for name in names)


def cut_tractogram(path):
    write_tractogram(path, end=False)
    return "truncated"


def empty_tractogram(path):
    write_tractogram(path, 0)
    return "no streamlines"


def no_bytes_tractogram(path):
    path.write_bytes(b"")
    return ""


def no_tractogram(path):
    path.write_text("mrtrix notes\n" * 20)
    return ""


@pytest.mark.parametrize(
    "damage", [cut_tractogram, empty_tractogram, no_bytes_tractogram, no_tractogram]
)
def test_a_bad_tractogram_is_named(bids, tractogram, run, tmp_path, damage):
    reason = damage(tractogram[1])
    explain(run(bids, *tractogram), USAGE, tractogram[1], reason)
    assert not (tmp_path / "out").exists()


def test_a_tractogram_of_unknown_space_is_named(bids, tractogram, run, tmp_path):
    explain(run(bids, *tractogram[:2]), USAGE, tractogram[1], "--structural-space")


def few_names(folder):
    (folder / "halves.txt").write_text("left half\n")
    return folder / "halves.txt"


def no_names(folder):
    (folder / "halves.txt").write_text("# nothing yet\n")
    return folder / "halves.txt"


def missing_names(folder):
    (folder / "halves.txt").unlink()
    return folder / "halves.txt"


def cut_atlas(folder):
    content = (folder / "halves.nii.gz").read_bytes()
    (folder / "halves.nii.gz").write_bytes(content[: len(content) // 2])
    return folder / "halves.nii.gz"


@pytest.mark.parametrize("damage", [few_names, no_names, missing_names, cut_atlas])
def test_a_bad_atlas_is_named(bids, atlas, run, tmp_path, damage):
    folder = tmp_path / "atlas"
    shutil.copytree(atlas[2].parent, folder)
    path = damage(folder)
    options = [*atlas[:2], folder / "halves.nii.gz", folder / "halves.txt", SPACE]
    explain(run(bids, *options), USAGE, path)
    assert not (tmp_path / "out").exists()


def test_an_unknown_atlas_is_named(bids, atlas, run, tmp_path):
    explain(run(bids, *atlas, "--parcel-atlases", "Schaefer"), USAGE, "'Schaefer'")
    assert not (tmp_path / "out").exists()


# --- usage ----------------------------------------------------------------------------------


def test_results_inside_the_dataset_are_refused(bids, atlas, run):
    line = explain(run(bids, *atlas, out=bids / "results"), USAGE, bids / "results")
    assert str(bids / "derivatives") in line
    assert not (bids / "results").exists()


def test_results_over_the_dataset_are_refused(bids, atlas, run):
    explain(run(bids, *atlas, out=bids), USAGE, bids)
    assert sorted(path.name for path in bids.iterdir()) == [
        "dataset_description.json",
        "sub-good",
    ]


def test_results_in_derivatives_of_the_dataset_are_fine(bids, atlas, run):
    out = bids / "derivatives" / "lacuna-nipype"
    for _ in range(2):
        process = run(bids, *atlas, out=out)
        assert process.returncode == OK, process.stdout
        assert process.stdout.startswith("1 lesion of 1 participant: rd.")
    assert subjects_with_results(out) == {"good"}


def test_results_over_another_dataset_are_refused(bids, atlas, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(bids, other)
    explain(run(bids, *atlas, out=other), USAGE, other)
    assert sorted(path.name for path in other.iterdir()) == [
        "dataset_description.json",
        "sub-good",
    ]


@pytest.mark.parametrize("place", ["work", "derivatives/work"])
def test_a_work_folder_inside_the_dataset_is_refused(bids, atlas, run, tmp_path, place):
    explain(run(bids, *atlas, work=bids / place), USAGE, bids / place, "-w")
    assert not (bids / place).exists()
    assert not (tmp_path / "out").exists()


def test_a_work_folder_of_a_run_that_goes_on_is_refused(bids, atlas, run, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    with (work / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        explain(run(bids, *atlas), USAGE, work, "-w")
        assert not (tmp_path / "out").exists()
        elsewhere = run(bids, *atlas, work=tmp_path / "elsewhere")
        assert elsewhere.returncode == OK, elsewhere.stdout
    again = run(bids, *atlas)
    assert again.returncode == OK, again.stdout


@pytest.mark.parametrize(("flag", "label"), [("participant", "sub-goood"), ("session", "ses-9")])
def test_an_unknown_participant_or_session_is_named(bids, atlas, run, tmp_path, flag, label):
    explain(run(bids, *atlas, f"--{flag}-label", label), USAGE, label)
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_not_there_is_named(atlas, run, tmp_path):
    explain(run(tmp_path / "nowhere", *atlas), USAGE, tmp_path / "nowhere")


def test_a_dataset_without_masks_says_how_they_are_named(bids, atlas, run):
    shutil.rmtree(bids / "sub-good")
    (bids / "sub-01").mkdir()
    explain(run(bids, *atlas), USAGE, bids, "_mask.nii.gz")


def test_an_unknown_flag_is_named(bids, atlas, run):
    explain(run(bids, *atlas, "--snm-engines", "index"), USAGE, "--snm-engines")


def test_a_folder_that_cannot_be_written_is_named(bids, atlas, run, tmp_path):
    (tmp_path / "file").write_text("")
    explain(run(bids, *atlas, out=tmp_path / "file" / "out"), USAGE, tmp_path / "file")


@pytest.mark.parametrize("asked", [[], ["--analysis", "snm"]])
def test_mrtrix_is_missed_where_it_is_needed(bids, atlas, tractogram, run, tmp_path, asked):
    (tmp_path / "bin").mkdir()
    options = (*atlas, *tractogram, *WITH_MRTRIX, *asked)
    process = run(bids, *options, env={"PATH": str(tmp_path / "bin")})
    explain(process, MISSING_PROGRAM, "tckedit", "tckmap", "MRtrix3", "apt-get install mrtrix3")
    assert not (tmp_path / "out").exists()


def test_without_mrtrix_the_index_stands_in_and_says_so(bids, atlas, tractogram, run, tmp_path):
    (tmp_path / "bin").mkdir()
    matrices = "--compute-disconnectivity-matrix"
    process = run(bids, *atlas, *tractogram, matrices, env={"PATH": str(tmp_path / "bin")})
    assert process.returncode == OK, process.stdout
    (note,) = [line for line in process.stdout.splitlines() if "MRtrix3" in line]
    assert note.startswith("Note: ")
    for name in ("index", "tckedit", "tckmap", "tck2connectome", "apt-get install mrtrix3"):
        assert name in note
    (sidecar,) = (tmp_path / "out").rglob("*desc-snm_statmap.json")
    assert json.loads(sidecar.read_text())["Engine"] == "index"
    assert len(list((tmp_path / "out").rglob("*_relmat.tsv"))) == 4


def with_old_mrtrix(folder, version):
    """Environment in which MRtrix3's commands are of one version, or answer something else."""
    folder.mkdir()
    for name in ("tckedit", "tckmap", "tck2connectome"):
        (folder / name).write_text(f"#!/bin/sh\necho '== {name} {version} =='\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize("version", ["3.0.2", "3.0_RC3-52-g0c6b8f2b", "0.3.16"])
def test_an_mrtrix_that_is_too_old_is_not_used(bids, atlas, tractogram, run, tmp_path, version):
    env = with_old_mrtrix(tmp_path / "bin", version)
    process = run(bids, *atlas, *tractogram, *WITH_MRTRIX, env=env)
    explain(process, MISSING_PROGRAM, "tckedit", version, "3.0.3", "install")
    assert not (tmp_path / "out").exists()
    if version == "3.0.2":
        process = run(bids, *atlas, *tractogram, env=env)
        assert process.returncode == OK, process.stdout
        assert re.search(r"^Note: .*index.*3\.0\.2.*3\.0\.3", process.stdout, re.MULTILINE)


def test_mrtrix_is_not_missed_where_it_is_not_needed(
    bids, atlas, tractogram, connectome, run, tmp_path
):
    (tmp_path / "bin").mkdir()
    process = run(
        *(bids, *atlas, *tractogram, "--functional-connectome", connectome),
        *("--analysis", "rd", "fnm"),
        env={"PATH": str(tmp_path / "bin")},
    )
    assert process.returncode == OK, process.stdout
    assert not list((tmp_path / "out").rglob("*desc-snm*"))
