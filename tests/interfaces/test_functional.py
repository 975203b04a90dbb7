"""Functional interfaces through nodes, against a loop over subjects with np.corrcoef."""

import itertools
from pathlib import Path

import h5py
import nibabel as nb
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from lacuna_nipype.core.files import fingerprint
from lacuna_nipype.interfaces import (
    ConnectomeMask,
    CorrelateBatch,
    ListMaps,
    PickMaps,
    ReduceCorrelation,
    SeedCorrelations,
)


def series_of(path):
    with h5py.File(path) as handle:
        return handle["timeseries"][:], handle["mask_indices"][:]


def reference_z(connectomes, mask):
    """Fisher z of each subject and brain voxel, the slow way."""
    rows = []
    for path in connectomes:
        series, voxels = series_of(path)
        inside = mask[tuple(voxels)] > 0
        for subject in series.astype(np.float64):
            seed = subject[:, inside].mean(axis=1)
            rows.append([np.corrcoef(seed, column)[0, 1] for column in subject.T])
    return np.arctanh(np.array(rows)), voxels


@pytest.fixture
def connectomes(make_connectome):
    return [make_connectome("batch_1.h5", 3, 1), make_connectome("batch_2.h5", 2, 2)]


@pytest.fixture
def masks(make_mask):
    return [make_mask("a.nii.gz"), make_mask("b.nii.gz", np.s_[0:2, 0:3, 0:3])]


@pytest.fixture
def partials(connectomes, masks, run_node):
    return [
        run_node(CorrelateBatch(connectome_file=path, mask_files=masks), f"pass_{n}").out_file
        for n, path in enumerate(connectomes)
    ]


def test_brain_mask_of_a_connectome(connectomes, run_node, in_node_folder, shape, affine):
    outputs = run_node(ConnectomeMask(connectome_file=connectomes[0]))
    image = nb.load(outputs.out_file)
    expected = np.zeros(shape, dtype=np.uint8)
    expected[1:-1, 1:-1, 1:-1] = 1
    assert in_node_folder(outputs.out_file)
    assert np.array_equal(np.asanyarray(image.dataobj), expected)
    assert np.array_equal(image.affine, affine)


def test_partial_result(connectomes, masks, run_node, in_node_folder, data_of):
    outputs = run_node(CorrelateBatch(connectome_file=connectomes[0], mask_files=masks))
    assert in_node_folder(outputs.out_file)
    with h5py.File(outputs.out_file) as partial:
        mean, m2 = partial["mean"][:], partial["m2"][:]
        assert partial["seed_voxels"][:].tolist() == [12, 1 * 2 * 2]
        assert partial["seed_voxels_outside"][:].tolist() == [0, 18 - 4]
        assert partial.attrs["n_subjects"] == 3
    for number, mask in enumerate(masks):
        z, _ = reference_z(connectomes[:1], data_of(mask))
        assert mean[number] == pytest.approx(z.mean(axis=0), abs=1e-5)
        assert m2[number] == pytest.approx(3 * z.var(axis=0), abs=1e-4)


def test_memory_budget_and_threads_change_nothing(connectomes, masks, run_node):
    plain = CorrelateBatch(connectome_file=connectomes[0], mask_files=masks)
    tight = CorrelateBatch(
        connectome_file=connectomes[0], mask_files=masks, memory_gb=1e-3, num_threads=2
    )
    results = []
    for name, interface in (("plain", plain), ("tight", tight)):
        with h5py.File(run_node(interface, name).out_file) as partial:
            results.append(partial["mean"][:])
    assert np.allclose(*results, rtol=1e-6, atol=1e-9)


def test_one_mask_need_not_be_a_list(connectomes, masks, run_node):
    outputs = run_node(CorrelateBatch(connectome_file=connectomes[0], mask_files=masks[0]))
    with h5py.File(outputs.out_file) as partial:
        assert partial["mean"].shape[0] == 1


def test_mask_on_another_grid_is_refused(connectomes, make_image, run_node):
    other = make_image("other.nii.gz", np.ones((4, 4, 4), dtype=np.uint8))
    with pytest.raises(RuntimeError, match="not on the grid"):
        run_node(CorrelateBatch(connectome_file=connectomes[0], mask_files=[other]))


def test_maps_of_the_whole_connectome(
    connectomes, masks, partials, run_node, in_node_folder, data_of, content_of, shape
):
    outputs = run_node(
        ReduceCorrelation(partial_files=partials, connectome_file=connectomes[0]), "reduce"
    )
    listed = [outputs.r_maps, outputs.z_maps, outputs.t_maps, outputs.summaries]
    assert [len(files) for files in listed] == [2, 2, 2, 2]
    assert in_node_folder([*itertools.chain(*listed), outputs.valid_mask], "reduce")
    for number, mask in enumerate(masks):
        z, voxels = reference_z(connectomes, data_of(mask))
        t = z.mean(axis=0) / (z.std(axis=0, ddof=1) / np.sqrt(len(z)))
        expected = np.zeros((3, *shape))
        expected[(slice(None), *voxels)] = np.tanh(z.mean(axis=0)), z.mean(axis=0), t
        for files, values in zip(listed, expected, strict=False):
            assert nb.load(files[number]).get_data_dtype() == np.float32
            assert np.allclose(data_of(files[number]), values, rtol=1e-4, atol=1e-4)
        summary = content_of(outputs.summaries[number])
        assert summary["NumberOfSubjects"] == 5
        assert summary["NumberOfFiles"] == 2
        assert summary["ValidVoxels"] == voxels.shape[1]


def test_order_of_files_does_not_matter(connectomes, partials, run_node, data_of):
    maps = [
        run_node(ReduceCorrelation(partial_files=files, connectome_file=connectomes[0]), name)
        for name, files in (("there", partials), ("back", partials[::-1]))
    ]
    for one, other in zip(maps[0].t_maps, maps[1].t_maps, strict=True):
        assert np.allclose(data_of(one), data_of(other), rtol=1e-5, atol=1e-6)


def test_single_subject_has_no_t(make_connectome, make_mask, run_node):
    connectome = make_connectome(n_subjects=1)
    partial = run_node(
        CorrelateBatch(connectome_file=connectome, mask_files=[make_mask()]), "pass"
    ).out_file
    outputs = run_node(
        ReduceCorrelation(partial_files=[partial], connectome_file=connectome), "reduce"
    )
    assert not outputs.t_maps
    assert outputs.r_maps


def test_partials_of_different_lesions_do_not_merge(connectomes, masks, partials, run_node):
    stranger = run_node(
        CorrelateBatch(connectome_file=connectomes[1], mask_files=masks[:1]), "stranger"
    ).out_file
    with pytest.raises(RuntimeError, match="do not belong"):
        run_node(
            ReduceCorrelation(
                partial_files=[partials[0], stranger], connectome_file=connectomes[0]
            ),
            "reduce",
        )


def test_passes_are_cached_whatever_the_threads(connectomes, masks, runs_once):
    threads = iter([1, 2])
    assert runs_once(
        lambda: CorrelateBatch(
            connectome_file=connectomes[0], mask_files=masks, num_threads=next(threads)
        )
    )


def test_maps_are_cached(connectomes, partials, runs_once):
    assert runs_once(
        lambda: ReduceCorrelation(partial_files=partials, connectome_file=connectomes[0])
    )


@pytest.mark.parametrize("interface", [CorrelateBatch, SeedCorrelations])
def test_a_connectome_of_other_content_is_refused(interface, connectomes, masks, run_node):
    path, other = map(Path, connectomes)
    expected = fingerprint(path)
    right = interface(connectome_file=path, mask_files=masks, fingerprint=expected)
    assert run_node(right, "right").out_file
    wrong = interface(connectome_file=other, mask_files=masks, fingerprint=expected)
    with pytest.raises(Exception, match="has changed since the run began"):
        run_node(wrong, "wrong")


def test_a_connectome_that_changes_while_it_is_read(connectomes, masks, run_node, monkeypatch):
    from lacuna_nipype.connectomes import partial

    path, other = map(Path, connectomes)
    write = partial.write_partial

    def write_and_replace(*args, **kwargs):
        made = write(*args, **kwargs)
        path.write_bytes(other.read_bytes())
        return made

    monkeypatch.setattr(partial, "write_partial", write_and_replace)
    node = CorrelateBatch(connectome_file=path, mask_files=masks, fingerprint=fingerprint(path))
    with pytest.raises(Exception, match="has changed since the run began"):
        run_node(node)


def test_each_lesion_picks_its_own_maps(partials, connectomes, run_node):
    reduced = run_node(
        ReduceCorrelation(partial_files=partials, connectome_file=connectomes[0]), "reduced"
    )
    lists = {
        name: getattr(reduced, name) for name in ("r_maps", "t_maps", "tsig_maps", "summaries")
    }
    listed = run_node(ListMaps(valid_mask=reduced.valid_mask, **lists), "listed")
    assert listed.valid_mask == reduced.valid_mask
    for number in range(2):
        own = run_node(PickMaps(in_file=listed.out_file, number=number), f"own_{number}")
        assert own.r == reduced.r_maps[number]
        assert own.t == reduced.t_maps[number]
        assert own.summary == reduced.summaries[number]
        # Neither given, nor made.
        assert not isdefined(own.z)
        assert not isdefined(own.tsig)
