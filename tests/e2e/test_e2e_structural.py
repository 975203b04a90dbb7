"""Structural disconnection through the real command: engines, matrices, formats, bad input.

Two datasets: the tutorial's, for everything that two ways must agree on; and straight lines from
left to right every millimetre, on which every number can be told by counting.
"""

import csv
import functools
import hashlib
import json
import os
import re
import shutil
import zipfile

import h5py
import nibabel as nib
import numpy as np
import pytest

OK, SOME_FAILED, USAGE = 0, 1, 2
SPACE = "MNI152NLin6Asym"
LABEL = "acuteinfarct"
ATLAS = "atlas-Demo_seg-7n_scale-100"
QUANTITIES = ("streamlinesfull", "streamlineslesion", "streamlinesintact", "disconnectionpct")
MATRICES = ("--compute-disconnectivity-matrix", "--compute-roi-disconnection")
ENGINES = [pytest.param("mrtrix", marks=pytest.mark.mrtrix), "index"]
# Of a streamline file's sidecar and of every other one, what names the engine.
OF_THE_ENGINE = {"Engine", "Method", "MRtrixVersion"}


def read_json(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def read_table(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def read_matrix(path):
    """Names of the regions, and the matrix."""
    rows = read_table(path)
    names = [row["name"] for row in rows]
    return names, np.array([[float(row[name]) for name in names] for row in rows])


def load(path):
    return np.asanyarray(nib.load(path).dataobj)


def points_of(path):
    """Bytes of a .tck file behind its header, which names the commands that made it."""
    content = path.read_bytes()
    return content[int(re.search(rb"\nfile: \. (\d+)\n", content)[1]) :]


def content_of(path):
    if path.suffix == ".tck":
        return hashlib.sha256(points_of(path)).hexdigest()
    if path.name.endswith("_stat-tdi_desc-snm_statmap.nii.gz"):
        # The header is that of the program that counted.
        image = nib.load(path)
        data = np.asanyarray(image.dataobj)
        return data.dtype.str, image.affine.tolist(), hashlib.sha256(data.tobytes()).hexdigest()
    if path.suffix == ".json":
        return {key: value for key, value in read_json(path).items() if key not in OF_THE_ENGINE}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(out, pattern="sub-*/**/*", leave_out=()):
    """Every result but provenance: bytes of images and tables, content of sidecars."""
    found = {
        path.relative_to(out).as_posix(): content_of(path)
        for path in out.glob(pattern)
        if path.is_file() and "desc-provenance" not in path.name
    }
    for content in found.values():
        for key in leave_out if isinstance(content, dict) else ():
            content.pop(key, None)
    return found


def steps(out, subject):
    """Steps of the last run by their name, and what became of each."""
    records = read_json(out / f"sub-{subject}" / f"sub-{subject}_desc-provenance.json")["Runs"]
    return {step["Name"]: step["Status"] for step in records[-1]["Steps"]}


def steps_that_ran(process):
    found = re.search(r"^(\d+) steps? ran,", process.stdout, re.MULTILINE)
    return int(found[1]) if found or not up_to_date(process) else 0


def up_to_date(process):
    """Lesions whose results an earlier run completed."""
    found = re.search(
        r"^(\d+) lesions? of an earlier run up to date", process.stdout, re.MULTILINE
    )
    return int(found[1]) if found else 0


def explain(process, code, *names):
    """Check the exit code, and that the last line is a sentence with the names."""
    assert process.returncode == code, process.stdout
    assert "Traceback" not in process.stdout
    line = process.stdout.splitlines()[-1]
    assert line.startswith("lacuna-nipype: ")
    for name in names:
        assert str(name) in line, line
    return line


def save_image(path, data, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.header.set_sform(affine, 4)
    nib.save(image, path)
    return path


# --- the tutorial's data --------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(demonstration, tmp_path_factory):
    """Two participants of the tutorial, and one whose lesion no streamline comes near."""
    bids = tmp_path_factory.mktemp("cohort") / "bids"
    others = shutil.ignore_patterns("sub-01", "sub-02", "sub-03")
    shutil.copytree(demonstration.bids_dir, bids, ignore=others)
    affine = np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = 90, -126, -72
    place = np.indices((182, 218, 182)).reshape(3, -1).T @ affine[:3, :3] + affine[:3, 3]
    in_cerebellum = np.linalg.norm(place - (22, -68, -44), axis=1) < 5
    name = f"sub-far_space-{SPACE}_label-{LABEL}_mask.nii.gz"
    data = in_cerebellum.reshape(182, 218, 182).astype(np.uint8)
    save_image(bids / "sub-far" / "anat" / name, data, affine)
    return bids


@pytest.fixture(scope="module")
def tables(demonstration, tmp_path_factory):
    """Weights of the streamlines, and bundles that overlap and leave some streamlines out."""
    folder, rng, n = tmp_path_factory.mktemp("tables"), np.random.default_rng(4), 12_000
    np.savetxt(folder / "weights.txt", rng.gamma(2, 0.5, n), fmt="%.6g")
    rows = ["streamline\tbundle"]
    rows += [f"{number}\tarcuate {number % 7}" for number in range(0, n, 2)]
    rows += [f"{number}\tlate ones" for number in range(n // 2, n)]
    (folder / "groups.tsv").write_text("\n".join(rows) + "\n")
    return (
        *("--streamline-weights", folder / "weights.txt"),
        *("--streamline-groups", folder / "groups.tsv"),
    )


@pytest.fixture(scope="module")
def participants(run_command, cohort, demonstration):
    """Run structural disconnection for some participants; gives the process."""

    def run(folder, *options, subjects=("05", "far"), connectome=None):
        connectome = connectome or demonstration.structural_connectome
        process = run_command(
            *(cohort, folder / "out", "participant", "--analysis", "snm"),
            *("--participant-label", *subjects, "--parcel-atlases", "Demo"),
            *("--structural-connectome", connectome, "--keep-intermediate", *MATRICES),
            *("--plugin", "Linear", "--nprocs", "2", "-w", folder / "work", *options),
        )
        assert process.returncode == OK, process.stdout
        return process

    return run


@pytest.fixture(scope="module")
def made(participants, tables, tmp_path_factory):
    """Folder of a finished run with an engine, plain or with weights and bundles."""
    finished = {}

    def make(engine, kind="plain"):
        if (engine, kind) not in finished:
            folder = tmp_path_factory.mktemp(f"{engine}-{kind}")
            extra = tables if kind == "weighted" else ()
            participants(folder, "--snm-engine", engine, *extra)
            finished[engine, kind] = folder
        return finished[engine, kind]

    return make


def stem(subject):
    return f"sub-{subject}/anat/sub-{subject}_space-{SPACE}"


def matrix_path(out, subject, quantity):
    tail = f"{ATLAS}_label-{LABEL}_stat-{quantity}_desc-snm_relmat.tsv"
    return out / f"{stem(subject)}_{tail}"


def stats_path(out, subject):
    return out / f"{stem(subject)}_label-{LABEL}_desc-snm_stats.json"


@pytest.mark.mrtrix
@pytest.mark.parametrize("kind", ["plain", "weighted"])
def test_both_engines_give_the_same_bytes(made, kind):
    mrtrix, index = (made(engine, kind) / "out" for engine in ("mrtrix", "index"))
    found = contents(index)
    assert found == contents(mrtrix)
    maps = [name for name in found if name.endswith("_statmap.nii.gz")]
    matrices = [name for name in found if name.endswith("_relmat.tsv")]
    parcels = [name for name in found if name.endswith("_parcelstats.tsv")]
    bundles = [name for name in parcels if f"_atlas-groups_label-{LABEL}_stat-str" in name]
    assert (len(maps), len(matrices)) == (4, 8)
    assert (len(parcels), len(bundles)) == ((6, 2) if kind == "weighted" else (4, 0))
    assert len([name for name in found if name.endswith("_tractography.tck")]) == 2


@pytest.mark.mrtrix
def test_sidecars_name_the_engine(made):
    for engine in ("mrtrix", "index"):
        paths = list((made(engine) / "out").rglob("*_stat-*_desc-snm_*.json"))
        assert len(paths) == 16
        for path in paths:
            sidecar = read_json(path)
            assert sidecar["Engine"] == engine
            assert ("MRtrixVersion" in sidecar) == (engine == "mrtrix")
    record = read_json(made("mrtrix") / "out" / "sub-05" / "sub-05_desc-provenance.json")
    assert re.match(r"3\.\d+", record["Runs"][0]["Software"]["MRtrix3"])


@pytest.mark.parametrize("kind", ["plain", "weighted"])
def test_what_is_cut_and_what_is_spared_is_the_whole(made, kind):
    out = made("index", kind) / "out"
    (names, full), (_, lesion), (_, intact), (_, percent) = (
        read_matrix(matrix_path(out, "05", quantity)) for quantity in QUANTITIES
    )
    assert len(names) == 100
    for matrix in (full, lesion, intact, percent):
        np.testing.assert_array_equal(matrix, matrix.T)
        assert not matrix.diagonal().any()
    np.testing.assert_allclose(lesion + intact, full, rtol=1e-9)
    expected = np.divide(100 * lesion, full, out=np.zeros_like(full), where=full > 0)
    np.testing.assert_allclose(percent, expected, rtol=1e-9)
    assert 0 < lesion.sum() < full.sum()
    # The table of the regions, and the summary, follow from the matrices.
    tail = f"{ATLAS}_label-{LABEL}_stat-disconnectionpct_desc-snm_parcelstats.tsv"
    rows = read_table(out / f"{stem('05')}_{tail}")
    degree, lost = full.sum(axis=1), lesion.sum(axis=1)
    assert [row["name"] for row in rows] == names
    expected = np.divide(100 * lost, degree, out=np.zeros(100), where=degree > 0)
    found = [float(row["disconnectionpct"]) for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    stats = read_json(stats_path(out, "05"))["Matrices"]["Demo"]
    upper = np.triu_indices(100, 1)
    assert stats["Edges"] == np.count_nonzero(full[upper])
    assert stats["EdgesAffected"] == np.count_nonzero(lesion[upper])
    assert stats["Preservation"] == pytest.approx(intact.sum() / full.sum(), rel=1e-9)
    assert stats["MaximumDegreeLost"] == pytest.approx(lost.max(), rel=1e-9)
    assert stats["ParcelOfMaximumDegreeLost"] == names[lost.argmax()]


def test_weights_change_sums_and_no_count(made):
    plain, weighted = (made("index", kind) / "out" for kind in ("plain", "weighted"))
    counts = [read_json(stats_path(out, "05")) for out in (plain, weighted)]
    assert counts[0]["StreamlinesHit"] == counts[1]["StreamlinesHit"] > 500
    sums = [read_matrix(matrix_path(out, "05", QUANTITIES[0]))[1] for out in (plain, weighted)]
    assert np.array_equal(sums[0] > 0, sums[1] > 0)
    assert (sums[0] != sums[1])[sums[0] > 0].mean() > 0.99
    # Weights are 1 on average.
    assert sums[1].sum() == pytest.approx(sums[0].sum(), rel=0.05)


def test_an_untouched_brain_loses_nothing(made):
    out = made("index") / "out"
    for path in out.rglob("sub-far/**/*.json"):
        read_json(path)
    stats = read_json(stats_path(out, "far"))
    assert stats["StreamlinesHit"] == stats["StreamlinesHitPercent"] == 0
    assert stats["VoxelsAffected"] == stats["MaximumDisconnectionPercent"] == 0
    matrix = stats["Matrices"]["Demo"]
    assert matrix["Edges"] > 1000
    assert matrix["EdgesAffected"] == matrix["MaximumDegreeLost"] == 0
    assert matrix["Preservation"] == 1
    assert matrix["MeanDisconnectionPercent"] == 0
    for quantity in ("disconnectionpct", "tdi"):
        tail = f"res-2_label-{LABEL}_stat-{quantity}_desc-snm_statmap.nii.gz"
        assert not load(out / f"{stem('far')}_{tail}").any()
    full, lesion, intact, percent = (
        read_matrix(matrix_path(out, "far", quantity))[1] for quantity in QUANTITIES
    )
    np.testing.assert_array_equal(intact, full)
    assert full.any()
    assert not lesion.any()
    assert not percent.any()
    (kept,) = (out / "sub-far").rglob("*.tck")
    assert len(nib.streamlines.load(kept).streamlines) == 0


@pytest.mark.parametrize("kind", ["plain", "weighted"])
def test_all_outputs_pass_the_bids_validator(made, validate_bids, kind):
    validate_bids(made("index", kind) / "out")


def test_a_second_run_runs_nothing_and_one_more_lesion_its_own_steps(made, participants):
    folder = made("index")
    before = contents(folder / "out")
    again = participants(folder, "--snm-engine", "index")
    assert steps_that_ran(again) == 0
    assert up_to_date(again) == 2
    assert contents(folder / "out") == before
    more = participants(folder, "--snm-engine", "index", subjects=("05", "far", "04"))
    assert up_to_date(more) == 2
    ran = {name for name, status in steps(folder / "out", "04").items() if status == "done"}
    assert ran
    assert all(name.startswith("sub_04_") for name in ran), ran
    assert len(ran) == steps_that_ran(more)
    after = contents(folder / "out")
    assert {name: after[name] for name in before} == before
    assert any(name.startswith("sub-04/") for name in after)
    # As it was, for other tests.
    shutil.rmtree(folder / "out" / "sub-04")


# --- an index that is made before -----------------------------------------------------------


@pytest.fixture(scope="module")
def indexed(demonstration, run_command, tmp_path_factory):
    """A tractogram and the index that the command made of it."""
    folder = tmp_path_factory.mktemp("indexed")
    tractogram, index = folder / "demo.tck", folder / "demo.h5"
    shutil.copyfile(demonstration.structural_connectome, tractogram)
    process = run_command("connectome", "convert", tractogram, index, "--space", SPACE)
    assert process.returncode == OK, process.stdout
    assert process.stdout.splitlines()[-1] == f"Index: {index}"
    return tractogram, index


def test_an_index_stands_for_its_tractogram(made, participants, indexed, tmp_path):
    participants(tmp_path, connectome=indexed[1])
    assert "build_index" not in str(steps(tmp_path / "out", "05"))
    assert contents(tmp_path / "out") == contents(made("index") / "out", "sub-[0f][5a]*/**/*")


def test_an_index_says_what_it_is(run_command, indexed):
    process = run_command("connectome", "info", indexed[1], "--json")
    assert process.returncode == OK, process.stdout
    found = json.loads(process.stdout)
    assert found["NumberOfStreamlines"] == 12_000
    assert found["Space"] == SPACE
    digest = hashlib.sha256(indexed[0].read_bytes()).hexdigest()
    assert found["TractogramFingerprint"] == f"sha256:{digest}"


def test_an_index_of_another_tractogram_is_refused(lines, run, indexed, tmp_path):
    tractogram, index = tmp_path / indexed[0].name, tmp_path / indexed[1].name
    shutil.copyfile(indexed[1], index)
    with h5py.File(index, "a") as handle:
        handle.attrs["tractogram"] = str(tractogram)
    words = ("--structural-connectome", index)
    explain(run(lines.bids, *words), USAGE, tractogram, index, "not there")
    write_tck(tractogram, LINES)
    explain(run(lines.bids, *words), USAGE, tractogram, index, "another tractogram")
    shutil.copyfile(indexed[0], tractogram)
    with h5py.File(index, "a") as handle:
        handle.attrs["format_version"] -= 1
    explain(run(lines.bids, *words), USAGE, index, "version", "connectome convert")
    index.write_bytes(index.read_bytes()[:100_000])
    explain(run(lines.bids, *words), USAGE, index)
    assert not (tmp_path / "out").exists()


# --- lines whose numbers can be told --------------------------------------------------------

# Masks have voxels of 6 mm. The regions are the left and the right half, in voxels of 2 mm, with
# labels far apart; a third one has a label and no voxel.
AFFINE = np.array([[6.0, 0, 0, -60], [0, 6, 0, -80], [0, 0, 6, -50], [0, 0, 0, 1]])
SHAPE = (20, 24, 20)
NAMES = ["left", "nowhere", "right"]
# Points every 3 mm along x, from -51 to 51 mm; lines at y = -30, -29, ... -1 mm.
N_LINES, STEP = 30, 3
X = np.arange(-51, 52, STEP)
LINES = [
    np.stack([X, np.full(len(X), number - 30), np.full(len(X), 5)], axis=1).astype("f4")
    for number in range(N_LINES)
]
# The lesion takes y from -35 to -5 mm without the end, so the first 25 lines; on the map's grid
# of 2 mm, whose voxels along x hold -51 to 51 and along y -30 to -6, that is 52 x 13 voxels.
LESION, N_HIT, N_VOXELS_HIT = np.s_[4:9, 8:13, 8:12], 25, 52 * 13


def write_tck(path, lines, *, step=STEP, count=None, end=True):
    """Write a .tck file; ``step`` and ``count`` may be False for none, or any text."""
    nan = np.full((1, 3), np.nan)
    points = [block for line in lines for block in (np.reshape(line, (-1, 3)), nan)]
    points += [np.full((1, 3), np.inf)] if end else []
    header = "mrtrix tracks\ndatatype: Float32LE\n"
    header += "" if step is False else f"step_size: {step}\n"
    header += "" if count is False else f"count: {len(lines) if count is None else count}\n"
    header = f"{header}file: . 120\nEND\n".encode()
    assert len(header) <= 120
    path.write_bytes(header.ljust(120, b"\0") + np.concatenate(points).astype("<f4").tobytes())
    return path


class _Lines:
    """Folder with a dataset, an atlas and a tractogram of straight lines."""

    def __init__(self, folder):
        self.bids, self.tractogram = folder / "bids", folder / "lines.tck"
        self.bids.mkdir()
        description = {"Name": "lines", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
                       "GeneratedBy": [{"Name": "hand"}]}  # fmt: skip
        (self.bids / "dataset_description.json").write_text(json.dumps(description))
        self.save_mask("good", LESION)
        labels = np.zeros([3 * size for size in SHAPE], np.int16)
        labels[:30, 6:66, 6:54], labels[30:, 6:66, 6:54] = 3, 40
        affine = np.diag([2.0, 2, 2, 1])
        affine[:3, 3] = AFFINE[:3, 3] - 2
        save_image(folder / "halves.nii.gz", labels, affine)
        (folder / "halves.tsv").write_text("index\tname\n3\tleft\n17\tnowhere\n40\tright\n")
        self.atlas_files = (folder / "halves.nii.gz", folder / "halves.tsv")
        write_tck(self.tractogram, LINES)

    def save_slit(self):
        """Save a mask of 1 mm along x that lies between two points of the first 20 lines."""
        affine = np.diag([1.0, 1, 1, 1])
        affine[:3, 3] = -60, -60, -40
        self.save_mask("slit", np.s_[61, 30:50, 40:50], shape=(120, 120, 90), affine=affine)

    def save_mask(self, subject, where, *, shape=SHAPE, affine=AFFINE):
        data = np.zeros(shape, np.uint8)
        data[where] = 1
        name = f"sub-{subject}_space-{SPACE}_label-stroke_mask.nii.gz"
        return save_image(self.bids / f"sub-{subject}" / "anat" / name, data, affine)

    @property
    def atlas(self):
        return ("--custom-parcellation", "Halves", *self.atlas_files, SPACE)

    def connectome(self, path=None):
        words = ("--structural-connectome", path or self.tractogram)
        return (*words, "--structural-space", SPACE, "--analysis", "snm")


@pytest.fixture
def lines(tmp_path):
    return _Lines(tmp_path)


@pytest.fixture(scope="module")
def run_on_lines(run_command):
    def run(folder, bids, *options, name="", env=None):
        words = (bids, folder / f"out{name}", "participant", "--plugin", "Linear")
        return run_command(*words, "-w", folder / f"work{name}", *options, env=env)

    return run


@pytest.fixture
def run(run_on_lines, tmp_path):
    """Run one step after another, with folders of this test."""
    return functools.partial(run_on_lines, tmp_path)


def lesion_stats(out, subject="good"):
    return read_json(out / f"sub-{subject}/anat/sub-{subject}_space-{SPACE}_label-stroke_"
                     "desc-snm_stats.json")  # fmt: skip


def disconnection(out, subject="good"):
    (path,) = (out / f"sub-{subject}").rglob("*_stat-disconnectionpct_desc-snm_statmap.nii.gz")
    return load(path)


def halves(out, subject="good"):
    """Matrices of the halves, by quantity."""
    folder = out / f"sub-{subject}" / "anat"
    found = {}
    for quantity in QUANTITIES:
        (path,) = folder.glob(f"*_atlas-Halves_*stat-{quantity}_desc-snm_relmat.tsv")
        names, found[quantity] = read_matrix(path)
        assert names == NAMES
    return found


def between_left_and_right(value):
    matrix = np.zeros((3, 3))
    matrix[0, 2] = matrix[2, 0] = value
    return matrix


def assert_25_of_30(out, subject="good"):
    """Check the numbers of the lesion that takes the first 25 lines."""
    stats = lesion_stats(out, subject)
    assert (stats["Streamlines"], stats["StreamlinesHit"]) == (N_LINES, N_HIT)
    percent = disconnection(out, subject)
    assert set(np.unique(percent)) == {0, 100}
    assert np.count_nonzero(percent) == stats["VoxelsAffected"] == N_VOXELS_HIT


def with_traps(folder):
    """Environment in which every command of MRtrix3 fails, and leaves its name behind."""
    folder.mkdir()
    for name in ("tckedit", "tckmap", "tck2connectome", "mrcalc", "tckinfo"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {folder}/called\nexit 1\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


# Streamlines hit of the lesions that can be used.
HITS = {"good": N_HIT, "far": 0, "slit": 0, "huge": N_LINES}
WEIGHTS = np.random.default_rng(9).gamma(2, 0.5, N_LINES).astype(np.float32)
BUNDLES = {**{f"mod {i}": np.arange(i, N_LINES, 3) for i in range(3)}, "last": np.array([29])}


def sum_of_weights(numbers):
    return WEIGHTS[numbers].sum(dtype=float)


@pytest.fixture(scope="module", params=ENGINES)
def counted(request, run_on_lines, tmp_path_factory):
    """A run with lesions of every kind, weights, bundles, and a second atlas of volumes."""
    folder = tmp_path_factory.mktemp(f"lines-{request.param}")
    lines = _Lines(folder)
    lines.save_slit()
    lines.save_mask("far", np.s_[9:11, 18:20, 15:17])
    affine = AFFINE.copy()
    affine[:3, 3] -= 60
    lines.save_mask("huge", np.s_[1:-1, 1:-1, 1:-1], shape=(40, 44, 40), affine=affine)
    name = f"sub-fourd_space-{SPACE}_label-stroke_mask.nii.gz"
    fourd = lines.bids / "sub-fourd" / "anat" / name
    save_image(fourd, np.ones((*SHAPE, 2), np.uint8), AFFINE)
    # MRtrix takes several on a line, and comments.
    (folder / "sift.txt").write_text(f"# by hand\n{' '.join(map(str, WEIGHTS))}\n")
    rows = [f"{i}\t{name}" for name, members in BUNDLES.items() for i in members]
    (folder / "named bundles.tsv").write_text("\n".join(["streamline\tbundle", *rows]) + "\n")
    x = np.linspace(0, 1, SHAPE[0])[:, None, None] * np.ones(SHAPE)
    graded = folder / "graded.nii.gz"
    save_image(graded, np.stack([1 - x, x], axis=3).astype("f4"), AFFINE)
    (folder / "graded.txt").write_text("to the left\nto the right\n")
    process = run_on_lines(
        folder, lines.bids, *lines.atlas, *lines.connectome(), *MATRICES,
        "--custom-parcellation", "Graded", graded, folder / "graded.txt", SPACE,
        "--snm-engine", request.param, "--streamline-weights", folder / "sift.txt",
        "--streamline-groups", folder / "named bundles.tsv",
        env=with_traps(folder / "bin") if request.param == "index" else None,
    )  # fmt: skip
    # The index calls no command of MRtrix3, even where there are some.
    assert not (folder / "bin" / "called").exists()
    return process, folder / "out"


def test_a_mask_that_is_none_leaves_the_others_alone(counted):
    process, out = counted
    explain(process, SOME_FAILED, "1 mask refused", "sub-fourd_label-stroke")
    assert re.search(r"^Error: .*sub-fourd_\S*_mask.nii.gz", process.stdout, re.MULTILINE)
    assert re.search(r"^Warning: .*sub-huge_\S*_mask.nii.gz .* ml", process.stdout, re.MULTILINE)
    assert {path.name for path in out.glob("sub-*")} == {f"sub-{name}" for name in HITS}


@pytest.mark.parametrize("subject", HITS)
def test_every_number_is_the_one_that_counting_gives(counted, subject):
    out, n_hit = counted[1], HITS[subject]
    stats = lesion_stats(out, subject)
    assert (stats["Streamlines"], stats["StreamlinesHit"]) == (N_LINES, n_hit)
    whole, lesion = sum_of_weights(np.arange(N_LINES)), sum_of_weights(np.arange(n_hit))
    share = 100 * lesion / whole
    matrices = {
        "streamlinesfull": whole,
        "streamlineslesion": lesion,
        "streamlinesintact": whole - lesion,
        "disconnectionpct": share,
    }
    for quantity, matrix in halves(out, subject).items():
        expected = between_left_and_right(matrices[quantity])
        np.testing.assert_allclose(matrix, expected, rtol=1e-6)
    assert stats["Matrices"]["Halves"]["Preservation"] == pytest.approx(1 - lesion / whole)
    percent = disconnection(out, subject)
    assert np.isfinite(percent).all()
    assert set(np.unique(percent)) == ({0, 100} if n_hit else {0})
    if subject == "good":
        assert np.count_nonzero(percent) == stats["VoxelsAffected"] == N_VOXELS_HIT
    folder = out / f"sub-{subject}"
    (table,) = folder.rglob("*atlas-Halves_*stat-disconnectionpct_*_parcelstats.tsv")
    assert [(row["index"], row["name"]) for row in read_table(table)] == [
        ("3", "left"), ("17", "nowhere"), ("40", "right")
    ]  # fmt: skip
    roi = [float(row["disconnectionpct"]) for row in read_table(table)]
    np.testing.assert_allclose(roi, [share, 0, share], rtol=1e-6)


@pytest.mark.parametrize("subject", HITS)
def test_bundles_are_cut_by_weight(counted, subject):
    tail = "*atlas-namedBundles_*stat-streamlinespct_*_parcelstats.tsv"
    (table,) = (counted[1] / f"sub-{subject}").rglob(tail)
    for row, (name, members) in zip(read_table(table), BUNDLES.items(), strict=True):
        cut = members[members < HITS[subject]]
        assert row["name"] == name
        assert int(row["n_streamlines"]) == len(members)
        assert int(row["n_streamlines_hit"]) == len(cut)
        expected = 100 * sum_of_weights(cut) / sum_of_weights(members)
        assert float(row["streamlinespct"]) == pytest.approx(expected, rel=1e-6)


def test_a_probabilistic_atlas_has_no_matrices(counted):
    process, out = counted
    (note,) = re.findall(r"^Note: .*probabilistic.*$", process.stdout, re.MULTILINE)
    assert "Graded" in note
    assert "Halves" not in note
    for quantities, n_files in (("*_relmat*", 0), ("*stat-disconnectionpct*", 0),
                                ("*stat-mapdisconnectionpct*.tsv", len(HITS))):  # fmt: skip
        assert len(list(out.rglob(f"*atlas-Graded{quantities}"))) == n_files


def write_trk(path, streamlines):
    """As a user of nibabel would: voxels of 1 mm, coordinates in RAS mm."""
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -90, -126, -72
    tractogram = nib.streamlines.Tractogram(streamlines, affine_to_rasmm=np.eye(4))
    header = {"voxel_to_rasmm": affine, "voxel_sizes": (1, 1, 1), "dimensions": (182, 218, 182),
              "voxel_order": "RAS"}  # fmt: skip
    nib.streamlines.TrkFile(tractogram, header).save(str(path))


def write_trx(path, streamlines):
    starts = np.cumsum([0, *map(len, streamlines)])
    header = {"DIMENSIONS": [182, 218, 182], "VOXEL_TO_RASMM": np.eye(4).tolist(),
              "NB_VERTICES": int(starts[-1]), "NB_STREAMLINES": len(streamlines)}  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        archive.writestr("offsets.uint64", starts.astype("<u8").tobytes())
        archive.writestr("positions.3.float32", np.concatenate(streamlines).tobytes())


def test_other_formats_give_the_results_of_the_tck(lines, run, tmp_path):
    options = (*lines.atlas, *MATRICES, "--keep-intermediate", "--snm-engine", "index")
    found = {}
    for suffix, write in ((".tck", write_tck), (".trk", write_trk), (".trx", write_trx)):
        path = tmp_path / f"lines{suffix}"
        write(path, LINES)
        process = run(lines.bids, *options, *lines.connectome(path), name=suffix)
        assert process.returncode == OK, process.stdout
        # Told once: how to convert it for good.
        note = rf"^Note: {path.name} is converted.*connectome convert"
        assert bool(re.search(note, process.stdout, re.MULTILINE)) == (suffix != ".tck")
        out = tmp_path / f"out{suffix}"
        found[suffix] = contents(out, leave_out=("Connectome", "Upsampling"))
    assert_25_of_30(out)
    assert found[".tck"] == found[".trk"] == found[".trx"]
    assert len(found[".tck"]) == 21


def test_segments_hit_what_points_miss(lines, run, tmp_path):
    lines.save_slit()
    options = ("--hit-test", "segments", "--keep-intermediate")
    process = run(lines.bids, *lines.connectome(), *options)
    assert process.returncode == OK, process.stdout
    found = {}
    for subject in ("good", "slit"):
        folder = tmp_path / "out" / f"sub-{subject}"
        (kept,) = folder.rglob("*_tractography.tck")
        found[subject] = {line.tobytes() for line in nib.streamlines.load(kept).streamlines}
        assert len(found[subject]) == lesion_stats(tmp_path / "out", subject)["StreamlinesHit"]
        sidecar = read_json(next(folder.rglob("*_statmap.json")))
        assert (sidecar["HitTest"], sidecar["Engine"]) == ("segments", "index")
    # At y = -30 to -11 mm.
    assert found["slit"] == {line.tobytes() for line in LINES[:20]}
    assert found["good"] >= {line.tobytes() for line in LINES[:N_HIT]}


def test_segments_are_not_for_mrtrix(lines, run):
    options = (*lines.connectome(), "--hit-test", "segments", "--snm-engine", "mrtrix")
    explain(run(lines.bids, *options), USAGE, "--hit-test", "--snm-engine index")


# --- bad input: tractograms -----------------------------------------------------------------


def cut(path):
    write_tck(path, LINES, end=False)
    return USAGE, "truncated"


def one_too_many(path):
    write_tck(path, LINES, count=N_LINES + 1)
    return SOME_FAILED, "holds 31 streamlines, but there are 30"


def with_value(path, value):
    broken = [line.copy() for line in LINES]
    broken[4][17] = value
    write_tck(path, broken)


def nan_inside(path):
    """MRtrix takes NaN for the end of a streamline, so there is one more."""
    with_value(path, np.nan)
    return SOME_FAILED, "holds 30 streamlines, but there are 31"


def infinity_inside(path):
    """MRtrix takes infinity for the end of the file."""
    with_value(path, np.inf)
    return SOME_FAILED, "holds 30 streamlines, but there are 4"


def in_voxels(path):
    write_tck(path, [line * [-1, 1, 1] + [90, 126, 72] for line in LINES])
    return SOME_FAILED, "100 % of the vertices"


def mirrored(path):
    """In LPS: lines that reach the occipital pole then stick out at the front."""
    y = np.linspace(-95, 50, 100)
    along_y = [np.stack([np.full(100, x), y, np.full(100, 10)], axis=1) for x in range(-20, 10)]
    write_tck(path, [line * [-1, -1, 1] for line in along_y], step=1.46)
    return SOME_FAILED, "LPS"


@pytest.mark.parametrize(
    "damage",
    [cut, one_too_many, nan_inside, infinity_inside, in_voxels, mirrored],
)
def test_a_bad_tractogram_is_named(lines, run, tmp_path, damage):
    code, reason = damage(lines.tractogram)
    options = (*lines.atlas, *lines.connectome(), "--analysis", "rd", "snm")
    explain(run(lines.bids, *options), code, lines.tractogram, reason)
    out = tmp_path / "out"
    assert not list(out.rglob("*desc-snm*"))
    # What needs no tractogram is done, unless the damage shows before anything is.
    assert bool(list(out.rglob("*desc-rd*_parcelstats.tsv"))) == (code == SOME_FAILED)


@pytest.fixture(
    scope="module",
    params=[pytest.param(("mrtrix", "variable"), marks=pytest.mark.mrtrix), ("index", False)],
)
def odd(request, run_on_lines, tmp_path_factory):
    """A run on a tractogram with all that a streamline may be, and without a step size.

    Two have no points, one has one, one has four that are the same, both in the lesion; the
    first line is longer than the grid, and the last is above it.
    """
    engine, step = request.param
    folder = tmp_path_factory.mktemp(f"odd-{engine}")
    lines = _Lines(folder)
    streamlines = list(LINES)
    streamlines[0] = np.stack([LONG, np.full(len(LONG), -30), np.full(len(LONG), 5)], axis=1)
    streamlines[29] = LINES[29] + np.float32([0, 0, 200])
    streamlines[3:3] = [EMPTY, LINES[12][7:8], np.repeat(LINES[12][7:8], 4, axis=0)]
    write_tck(lines.tractogram, [*streamlines, EMPTY], step=step)
    options = (*lines.atlas, *lines.connectome(), *MATRICES, "--snm-engine", engine)
    process = run_on_lines(folder, lines.bids, *options)
    assert process.returncode == OK, process.stdout
    (sidecar,) = (folder / "out").rglob("*_statmap.json")
    return process, folder / "out", read_json(sidecar)


EMPTY, LONG = np.empty((0, 3)), np.arange(-120, 121, STEP)


def test_streamlines_without_points_or_length_are_told(odd):
    _, out, sidecar = odd
    told = {
        "NumberOfStreamlines": 34,
        "EmptyStreamlines": 2,
        "OnePointStreamlines": 1,
        "ZeroLengthStreamlines": 1,
    }
    assert told.items() <= sidecar["Tractogram"].items()
    (log,) = out.glob("logs/*/run.log")
    warning = r"WARNING: Of the 34 streamlines of \S+lines.tck, 2 have no points, 1 .*, and 1 "
    assert re.search(warning, log.read_text())


def test_odd_streamlines_change_no_other(odd):
    """tck2connectome cannot take those without points."""
    _, out, _ = odd
    stats = lesion_stats(out)
    assert (stats["Streamlines"], stats["StreamlinesHit"]) == (34, N_HIT + 2)
    # Neither the first nor the last line ends in a region.
    found = halves(out)
    np.testing.assert_array_equal(found["streamlinesfull"], between_left_and_right(N_LINES - 2))
    np.testing.assert_array_equal(found["streamlineslesion"], between_left_and_right(N_HIT - 1))


def test_streamlines_outside_the_grid_count_where_they_are_inside(odd):
    _, out, sidecar = odd
    # The first line is alone in its voxels, 91 of which the grid has; of others, 52.
    assert lesion_stats(out)["VoxelsAffected"] == N_VOXELS_HIT + 91 - 52
    n_points = 28 * len(X) + len(LONG) + len(X) + 5
    outside = sidecar["Tractogram"]["PointsOutsideBrainPercent"] * n_points / 100
    assert len(X) < outside < len(X) + len(LONG)


def test_a_step_size_that_is_not_there_is_measured(odd):
    """Without upsampling, every third millimetre would be left of a line."""
    process, out, sidecar = odd
    (note,) = re.findall(r"^Note: lines.tck .*$", process.stdout, re.MULTILINE)
    # ceil(3 / (2 x 0.333)), as tckmap would have it.
    for text in ("no step_size", "3 mm were measured", "-upsample 5"):
        assert text in note
    assert sidecar["Upsampling"] == note.removeprefix("Note: ")
    percent = disconnection(out)
    assert set(np.unique(percent)) == {0, 100}


def test_an_index_of_older_content_is_made_again(lines, run, tmp_path):
    """Even where size and time of the file tell nothing, as after some copies."""
    options = (*lines.atlas, *lines.connectome(), *MATRICES, "--snm-engine", "index")
    first = run(lines.bids, *options)
    assert first.returncode == OK, first.stdout
    before = lines.tractogram.stat()
    higher = [line + np.float32([0, 29, 0]) for line in LINES[:10]]
    write_tck(lines.tractogram, [*LINES[::-1][:20], *higher])
    os.utime(lines.tractogram, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert lines.tractogram.stat().st_size == before.st_size
    again = run(lines.bids, *options)
    assert again.returncode == OK, again.stdout
    stats = lesion_stats(tmp_path / "out")
    # Lines from -1 to -20 mm, of which those up to -6 are hit, and others above.
    assert stats["StreamlinesHit"] == 15
    expected = between_left_and_right(15)
    np.testing.assert_array_equal(halves(tmp_path / "out")["streamlineslesion"], expected)


# --- bad input: masks and atlases -----------------------------------------------------------


def test_an_atlas_in_another_space_is_named(lines, run, tmp_path):
    """It could be moved, but not without the transform between the spaces."""
    atlas = ("--custom-parcellation", "Halves", *lines.atlas_files, "MNI152NLin2009cAsym")
    env = {"TEMPLATEFLOW_HOME": str(tmp_path / "templateflow")}
    process = run(lines.bids, *atlas, *lines.connectome(), *MATRICES, env=env)
    explain(process, USAGE, "Atlas Halves", "MNI152NLin2009cAsym", SPACE, "fetch templates")
    assert not (tmp_path / "out").exists()


def test_tables_of_another_tractogram_are_named(lines, run, tmp_path):
    for flag, name, text, reason in (
        ("--streamline-weights", "few.txt", "1\n" * 29, "29 weights"),
        ("--streamline-weights", "minus.txt", "1\n" * 29 + "-1\n", "-1"),
        ("--streamline-groups", "far.tsv", "streamline\tbundle\n30\tcst\n", "'30'"),
        ("--streamline-groups", "blank.tsv", "streamline\tname\n3\tcst\n", "'bundle'"),
    ):
        (tmp_path / name).write_text(text)
        process = run(lines.bids, *lines.connectome(), flag, tmp_path / name)
        explain(process, USAGE, tmp_path / name, reason)
        assert not (tmp_path / "out").exists()
