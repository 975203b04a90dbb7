"""How a run is spread over processes, or its connectome over files, does not change results."""

import gzip

import h5py
import nibabel as nib
import numpy as np
import pytest
from run_results import results

N_FILES = 4
PARTICIPANT = "04"


def write_connectome(folder, sources, parts):
    """Write the subjects of a connectome again, cut into files of equal size."""
    folder.mkdir()
    with h5py.File(sources[0]) as first:
        voxels, affine = first["mask_indices"][:], first["mask_affine"][:]
        attributes = dict(first.attrs)
    series = np.concatenate([h5py.File(path)["timeseries"][:] for path in sources])
    for number, part in enumerate(np.array_split(series, parts)):
        with h5py.File(folder / f"part-{number}.h5", "w") as out:
            out["timeseries"], out["mask_indices"], out["mask_affine"] = part, voxels, affine
            out.attrs.update(attributes, n_subjects=len(part))
    return folder


@pytest.fixture(scope="module")
def connectomes(demonstration, tmp_path_factory):
    """The tutorial's connectome in files of three subjects, and in one."""
    sources = sorted(demonstration.functional_connectome.glob("*.h5"))
    folder = tmp_path_factory.mktemp("cut")
    return {n: write_connectome(folder / f"in-{n}", sources, n) for n in (1, N_FILES)}


@pytest.fixture(scope="module")
def run(demonstration, connectomes, run_command, tmp_path_factory):
    """Run one participant; each way of running once."""
    finished = {}

    def run_once(plugin, nprocs, files=N_FILES):
        if (plugin, nprocs, files) not in finished:
            folder = tmp_path_factory.mktemp(f"{plugin}{nprocs}")
            process = run_command(
                *(demonstration.bids_dir, folder / "out", "participant"),
                *("--participant-label", PARTICIPANT, "--parcel-atlases", "Demo"),
                *("--functional-connectome", connectomes[files]),
                *("--structural-connectome", demonstration.structural_connectome),
                *("--snm-engine", "index", "--plugin", plugin, "--nprocs", nprocs),
                *("-w", folder / "work"),
            )
            assert process.returncode == 0, process.stdout
            finished[plugin, nprocs, files] = results(folder / "out")
        return finished[plugin, nprocs, files]

    return run_once


@pytest.mark.parametrize("nprocs", [1, 2, 4])
def test_processes_do_not_change_a_byte(run, nprocs):
    one_after_the_other = run("Linear", 1)
    assert sum(name.endswith(".nii.gz") for name in one_after_the_other) > 8
    assert sum(name.endswith(".tsv") for name in one_after_the_other) > 4
    assert run("MultiProc", nprocs) == one_after_the_other


def test_how_the_connectome_is_cut_changes_rounding_only(run):
    four, one = run("Linear", 1), run("MultiProc", 2, files=1)
    assert set(four) == set(one)
    maps = [name for name in four if name.endswith(".nii.gz") and "desc-fnm" in name]
    assert len(maps) > 4
    for name in maps:
        mine, other = (
            nib.Nifti1Image.from_bytes(gzip.decompress(content[name])).get_fdata()
            for content in (four, one)
        )
        if "stat-qsig" in name:
            # Where q is as large as alpha but for rounding, either is right.
            assert np.count_nonzero(mine != other) <= 1
            continue
        # A p that is below the smallest normal number of its type has fewer digits.
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-30, err_msg=name)
    for name in four:
        if name.endswith(".tsv"):
            mine, other = (values_of(content[name]) for content in (four, one))
            np.testing.assert_allclose(mine, other, rtol=1e-6, err_msg=name)
    # What has nothing to do with the functional connectome is the same.
    same = [name for name in four if "desc-fnm" not in name]
    assert {name: four[name] for name in same} == {name: one[name] for name in same}


def values_of(table):
    """All numbers of a table, row by row; NaN for what is none."""
    rows = [line.split("\t") for line in table.decode().splitlines()[1:]]

    def number(text):
        try:
            return float(text)
        except ValueError:
            return np.nan

    return np.array([[number(text) for text in row] for row in rows])
