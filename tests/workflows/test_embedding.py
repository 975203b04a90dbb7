"""Our workflows as guests: transforms from other steps, several in one graph, nothing global."""

import subprocess
import sys

import h5py
import nibabel as nb
import numpy as np
import pytest
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe
from nitransforms.linear import Affine

from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.workflows import (
    init_fnm_wf,
    init_mask_wf,
    init_output_wf,
    init_snm_wf,
    init_tractogram_wf,
)
from lacuna_nipype.workflows.snm import SHARED

SPACE = "MNI152NLin6Asym"
SHAPE = (10, 12, 10)
AFFINE = np.array([[16.0, 0, 0, -72], [0, 16, 0, -100], [0, 0, 16, -60], [0, 0, 0, 1]])
SHIFT_MM = 32.0


def voxels_of(path):
    return np.asanyarray(nb.load(path).dataobj)


def write_connectome(folder, seed):
    """HDF5 file and tractogram that differ from those of another seed."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    voxels = np.array(np.nonzero(np.ones(SHAPE, dtype=bool)))
    with h5py.File(folder / "c.h5", "w") as handle:
        handle["timeseries"] = rng.normal(size=(3, 20, voxels.shape[1])).astype("f4")
        handle["mask_indices"], handle["mask_affine"] = voxels, AFFINE
        handle.attrs["mask_shape"], handle.attrs["space"] = SHAPE, SPACE
    along = np.arange(-60, 60, dtype=np.float32)
    ends = [[-16.0, -4, 60], [-16.0, -15, -4, 60]][seed]
    lines = [np.stack([0 * along + x, along, 0 * along + 12], axis=1) for x in ends]
    write_tck(folder / "t.tck", lines, step_size=1.0)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A lesion and two pairs of connectomes, in the folder in which the test runs."""
    monkeypatch.chdir(tmp_path)
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[3:5, 5:7, 4:6] = 1
    image = nb.Nifti1Image(mask, AFFINE)
    image.set_sform(AFFINE, 4)
    nb.save(image, tmp_path / "mask.nii.gz")
    for seed in (0, 1):
        write_connectome(tmp_path / f"c{seed}", seed)
    return tmp_path


def add_analyses(outer, mask_wf, number):
    """Connect both analyses in the connectomes of a number, named by paths from this folder."""
    fnm_wf = init_fnm_wf(connectome_files=f"c{number}/c.h5", name=f"fnm_{number}_wf")
    tractogram_wf = init_tractogram_wf(
        tractogram=f"c{number}/t.tck",
        space=SPACE,
        engine="index",
        name=f"tractogram_{number}_wf",
    )
    snm_wf = init_snm_wf(engine="index", name=f"snm_{number}_wf")
    shared = [(f"outputnode.{field}", f"inputnode.{field}") for field in SHARED]
    outer.connect(
        [
            (mask_wf, fnm_wf, [("outputnode.mask_file", "inputnode.mask_files")]),
            (mask_wf, snm_wf, [("outputnode.mask_file", "inputnode.mask_file")]),
            (tractogram_wf, snm_wf, shared),
        ]
    )


def run_pipeline(study, name, numbers):
    """Run a pipeline with the analyses of these connectomes; their maps."""
    outer = pe.Workflow(name=name, base_dir=str(study / "work"))
    mask_wf = init_mask_wf(space=SPACE)
    mask_wf.inputs.inputnode.mask_file = str(study / "mask.nii.gz")
    for number in numbers:
        add_analyses(outer, mask_wf, number)
    outer.run()
    folder = study / "work" / name
    return {
        number: (
            voxels_of(next((folder / f"fnm_{number}_wf").rglob("*_z.nii*"))),
            voxels_of(next((folder / f"snm_{number}_wf").rglob("disconnection.nii*"))),
        )
        for number in numbers
    }


def test_two_pairs_of_connectomes_in_one_graph(study):
    together = run_pipeline(study, "together", (0, 1))
    for number in (0, 1):
        alone = run_pipeline(study, f"alone_{number}", (number,))[number]
        for one, other in zip(together[number], alone, strict=True):
            assert np.ptp(one) > 0
            assert np.array_equal(one, other)
    for one, other in zip(together[0], together[1], strict=True):
        assert not np.array_equal(one, other)


def shifted_mask(study, transforms):
    """Give the mask to a step that another step gives its transforms."""
    outer = pe.Workflow(name="outer", base_dir=str(study / "work"))
    source = pe.Node(IdentityInterface(fields=["mask", "xfm"]), name="registration")
    source.inputs.mask = str(study / "mask.nii.gz")
    if transforms is not None:
        source.inputs.xfm = transforms
    mask_wf = init_mask_wf(space=SPACE, with_transforms=True)
    fields = [("mask", "inputnode.mask_file"), ("xfm", "inputnode.transforms")]
    outer.connect([(source, mask_wf, fields)])
    outer.config["execution"]["crashdump_dir"] = str(study)
    outer.run()
    return nb.load(next((study / "work" / "outer" / "mask_wf" / "normalise").glob("*.nii*")))


@pytest.mark.parametrize("several", [False, True])
def test_transforms_come_from_another_step(study, several):
    """One path or a list: here, the shift at once or in two halves."""
    paths = []
    for number in range(2 if several else 1):
        points = np.eye(4)
        # The transform takes points of the standard space to the mask's.
        points[0, 3] = -SHIFT_MM / (2 if several else 1)
        paths.append(str(study / f"shift_{number}.txt"))
        Affine(points).to_filename(paths[-1], fmt="itk")
    image = shifted_mask(study, paths if several else paths[0])

    def middle(found):
        return nb.affines.apply_affine(found.affine, np.argwhere(found.get_fdata()).mean(axis=0))

    moved = middle(image) - middle(nb.load(study / "mask.nii.gz"))
    # The edges of the mask's voxels lie on centres of the 1 mm grid: half a voxel is a tie.
    assert moved == pytest.approx([SHIFT_MM, 0, 0], abs=0.6)


@pytest.mark.parametrize("transforms", [None, []])
def test_transforms_that_do_not_come_are_an_error(study, transforms):
    """Without them the mask would be taken for one in the standard space."""
    with pytest.raises(Exception, match="No transforms came"):
        shifted_mask(study, transforms)


def test_mask_workflow_refuses_what_is_ambiguous(tmp_path):
    with pytest.raises(ValueError, match="not both"):
        init_mask_wf(space=SPACE, normalisation=["x.txt"], with_transforms=True)
    with pytest.raises(ValueError, match="space"):
        init_mask_wf(with_transforms=True)
    # Without the argument there is nothing to connect transforms to.
    outer = pe.Workflow(name="outer")
    source = pe.Node(IdentityInterface(fields=["xfm"]), name="source")
    with pytest.raises(Exception, match="transforms"):
        outer.connect([(source, init_mask_wf(space=SPACE), [("xfm", "inputnode.transforms")])])


def test_functional_workflow_takes_one_file_or_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, expected in (("c.h5", ["c.h5"]), (["a.h5", "b.h5"], ["a.h5", "b.h5"])):
        files = init_fnm_wf(connectome_files=given).get_node("connectome").inputs.files
        assert files == [str(tmp_path / name) for name in expected]
    with pytest.raises(ValueError, match="empty"):
        init_fnm_wf(connectome_files=[])


def test_results_go_where_the_pipeline_was_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output_wf = init_output_wf(
        output_dir="derivatives",
        analysis="fnm",
        entities={"subject": "01", "space": SPACE, "label": "L"},
        maps=["r"],
    )
    sink = output_wf.get_node("ds_fnm")
    assert sink.inputs.base_directory == str(tmp_path / "derivatives")


GUEST = """
import logging, multiprocessing, os, sys, warnings
import nipype
from nipype import config
from nipype.pipeline import engine as pe

def state():
    return (
        dict(os.environ), {s: dict(config._sections[s]) for s in config._sections},
        os.getcwd(), multiprocessing.get_start_method(allow_none=True), list(sys.path),
        logging.getLogger().handlers[:], logging.getLogger("nipype.workflow").level,
        list(warnings.filters),
    )

before = state()
from lacuna_nipype import interfaces, workflows
for module in (interfaces, workflows):
    for name in module.__all__:
        getattr(module, name)
workflows.init_mask_wf(space="MNI152NLin6Asym")
workflows.init_fnm_wf(connectome_files="c.h5")
workflows.init_tractogram_wf(tractogram="t.tck", space="MNI152NLin6Asym", engine="index")
workflows.init_snm_wf(engine="index")
for number, (one, other) in enumerate(zip(before, state())):
    assert one == other, (number, one, other)
"""


def test_building_changes_nothing_of_the_process(tmp_path):
    """No variable, setting, start method, log or warning filter of the host pipeline."""
    done = subprocess.run(
        [sys.executable, "-c", GUEST], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
