"""The whole graph on tiny data: results, caching, and failures that stay where they are."""

import gzip
import shutil

import h5py
import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from nipype import config, logging

from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.execution.runner import expanded_nodes, run_graph
from lacuna_nipype.workflows import init_lacuna_wf

SPACE = "MNI152NLin6Asym"
SHAPE = (10, 12, 10)
AFFINE = np.array([[16.0, 0, 0, -72], [0, 16, 0, -100], [0, 0, 16, -60], [0, 0, 0, 1]])
BOXES = {"L1": np.s_[3:5, 5:7, 4:6], "L2": np.s_[6:8, 3:5, 4:6]}
HAS_MRTRIX = all(shutil.which(command) for command in ("tckedit", "tckmap"))
ANALYSES = ("rd", "fnm", *(["snm"] if HAS_MRTRIX else []))


def save(path, data):
    image = nb.Nifti1Image(data, AFFINE)
    image.set_sform(AFFINE, 4)
    nb.save(image, path)


def write_mask(path, box):
    data = np.zeros(SHAPE, dtype=np.uint8)
    data[box] = 1
    save(path, data)


@pytest.fixture(scope="module")
def connectomes(tmp_path_factory):
    """What all runs share: two HDF5 files, an atlas, a tractogram through the first lesion."""
    folder = tmp_path_factory.mktemp("connectomes")
    rng = np.random.default_rng(3)
    voxels = np.array(np.nonzero(np.ones(SHAPE, dtype=bool)))
    for number in range(2):
        with h5py.File(folder / f"batch_{number}.h5", "w") as handle:
            handle["timeseries"] = rng.normal(size=(3, 20, voxels.shape[1])).astype("f4")
            handle["mask_indices"], handle["mask_affine"] = voxels, AFFINE
            handle.attrs["mask_shape"], handle.attrs["space"] = SHAPE, SPACE
    atlas = np.ones(SHAPE, dtype=np.int16)
    atlas[5:] = 2
    save(folder / "atlas.nii.gz", atlas)
    (folder / "labels.tsv").write_text("index\tname\n1\tlow\n2\thigh\n")
    # 3 streamlines along y through the middle of L1, 2 far away from both lesions.
    along = np.arange(-60, 60, dtype=np.float32)
    lines = [
        np.stack([np.full_like(along, x), along, np.full_like(along, 12)], axis=1)
        for x in (-16, -15, -14, 60, 61)
    ]
    write_tck(folder / "whole.tck", lines, step_size=1.0)
    return folder


@pytest.fixture
def quiet():
    """Settings of a run that concern the test: crash files, caching, logs; put back afterwards."""
    before = {key: config.get("execution", key) for key in ("crashdump_dir", "crashfile_format")}
    keep = config.get("execution", "remove_unnecessary_outputs")
    level = logging.getLogger("nipype.workflow").level
    logging.getLogger("nipype.workflow").setLevel("CRITICAL")
    yield
    for key, value in before.items():
        if value is not None:
            config.set("execution", key, value)
        elif config.has_option("execution", key):
            config._sections["execution"].pop(key, None)
    config.set("execution", "remove_unnecessary_outputs", keep)
    logging.getLogger("nipype.workflow").setLevel(level)


class Study:
    """Two lesions of two participants, and runs over them in one work folder."""

    def __init__(self, folder, connectomes):
        self.folder, self.connectomes = folder, connectomes
        self.masks = {label: folder / f"{label}.nii.gz" for label in BOXES}
        for label, box in BOXES.items():
            write_mask(self.masks[label], box)
        self.logs = folder / "logs"
        self.logs.mkdir()
        config.set("execution", "crashdump_dir", str(self.logs))
        config.set("execution", "crashfile_format", "txt")
        config.set("execution", "remove_unnecessary_outputs", "false")

    def run(self, analyses=ANALYSES):
        """Run the graph; status of every step by its name."""
        workflow = self.build(analyses)
        outcome = run_graph(
            workflow,
            n_nodes=len(expanded_nodes(workflow)),
            plugin="Linear",
            nprocs=1,
            memory_gb=2.0,
            crash_dir=self.logs,
        )
        assert outcome.error is None
        self.failures = outcome.failures
        return {name.partition(".")[2]: step.status for name, step in outcome.nodes.items()}

    def build(self, analyses=ANALYSES):
        return init_lacuna_wf(
            lesions=[
                {
                    "key": f"sub-{number}_label-{label}",
                    "mask_file": mask,
                    "entities": {"subject": f"{number}", "space": SPACE, "label": label},
                    "resolution": "16",
                    "metadata": {"Sources": [f"bids:raw:{mask.name}"]},
                }
                for number, (label, mask) in enumerate(self.masks.items(), start=1)
            ],
            output_dir=self.folder / "derivatives",
            base_dir=self.folder / "work",
            analyses=analyses,
            atlases=[
                {
                    "image": self.connectomes / "atlas.nii.gz",
                    "labels": self.connectomes / "labels.tsv",
                    "entities": {"atlas": "Halves"},
                }
            ],
            functional_files=[self.connectomes / f"batch_{number}.h5" for number in range(2)],
            functional_resolution="16",
            tractogram={"tractogram": self.connectomes / "whole.tck", "space": SPACE},
        )

    def stored(self, number, label, rest):
        stem = f"sub-{number}_space-{SPACE}"
        return (
            self.folder
            / "derivatives"
            / f"sub-{number}"
            / "anat"
            / f"{stem}_{rest}".replace("LABEL", f"label-{label}")
        )


@pytest.fixture
def study(tmp_path, connectomes, quiet):
    return Study(tmp_path, connectomes)


FUNCTIONAL = [
    *(
        f"res-16_LABEL_stat-{name}_desc-fnm_statmap.nii.gz"
        for name in ("r", "z", "t", "p", "q", "qsig", "valid")
    ),
    *(f"atlas-Halves_LABEL_stat-{name}_desc-fnm_parcelstats.tsv" for name in "rzt"),
    "LABEL_desc-fnm_stats.json",
]
OWN = [
    "res-16_LABEL_desc-lesion_mask.nii.gz",
    "atlas-Halves_LABEL_stat-damagepct_desc-rd_parcelstats.tsv",
    "LABEL_desc-rd_stats.json",
]
STRUCTURAL = [
    "res-2_LABEL_stat-disconnectionpct_desc-snm_statmap.nii.gz",
    "atlas-Halves_LABEL_stat-mapdisconnectionpct_desc-snm_parcelstats.tsv",
    "LABEL_desc-snm_stats.json",
]
OWN_ALL = OWN + (STRUCTURAL if HAS_MRTRIX else [])


def missing(study, number, label, names):
    return [name for name in names if not study.stored(number, label, name).is_file()]


def data_of(path):
    return np.asanyarray(nb.load(path).dataobj)


def test_results_then_cache_then_one_change(study):
    first = study.run()
    assert study.failures == ()
    assert set(first.values()) == {"done"}
    check_outputs(study)

    second = study.run()
    assert {name for name, status in second.items() if status != "cached"} == set()

    write_mask(study.masks["L2"], np.s_[6:9, 3:5, 4:6])
    third = study.run()
    again = {name for name, status in third.items() if status == "done"}
    assert set(third) == set(first)
    assert set(third.values()) == {"done", "cached"}
    own = {name for name in third if name.startswith("sub_2_")}
    assert {name for name in own if name.endswith((".validate", ".damage", ".ds_mask"))} <= again
    # Of what is shared, the functional pass depends on every mask and nothing else does.
    shared = {name for name in third if not name.startswith("sub_")}
    assert {name for name in shared if name.startswith("fnm_wf.")} & again == {
        "fnm_wf.seeds",
        "fnm_wf.seeds._seeds1",
        "fnm_wf.correlate",
        "fnm_wf.correlate._correlate0",
        "fnm_wf.correlate._correlate1",
        "fnm_wf.reduce",
    }
    assert not {"rd_atlas_1", "rd_parcels", "tractogram_wf.grid", "tractogram_wf.tckmap"} & again
    # Of the other lesion, only what comes out of that pass.
    other = {name for name in third if name.startswith("sub_1_")}
    assert all("fnm" in name for name in other & again)
    stats = study.stored(2, "L2", "atlas-Halves_LABEL_stat-damagepct_desc-rd_parcelstats.tsv")
    assert pd.read_csv(stats, sep="\t")["n_voxels_damaged"].tolist() == [0, 12]


def check_outputs(study):
    for number, label in enumerate(BOXES, start=1):
        names = OWN_ALL + FUNCTIONAL
        assert missing(study, number, label, names) == []
        folder = study.stored(number, label, OWN[0]).parent
        sidecars = [name for name in names if not name.endswith(".json")]
        assert len(list(folder.iterdir())) == len(names) + len(sidecars)
        mask = data_of(study.stored(number, label, OWN[0]))
        assert np.array_equal(mask, data_of(study.masks[label]))
    check_functional(study)
    damage = pd.read_csv(study.stored(1, "L1", OWN[1]), sep="\t")
    assert damage["damagepct"].to_numpy() == pytest.approx([100 * 8 / 600, 0])
    if HAS_MRTRIX:
        maps = [data_of(study.stored(n, f"L{n}", STRUCTURAL[0])) for n in (1, 2)]
        assert maps[0].max() == 100
        assert maps[1].max() == 0


def check_functional(study):
    """The z map of each lesion is its own, and the mean over subjects of np.corrcoef."""
    for number, (label, box) in enumerate(BOXES.items(), start=1):
        z = []
        for batch in range(2):
            with h5py.File(study.connectomes / f"batch_{batch}.h5") as handle:
                for series in handle["timeseries"][:].astype(np.float64):
                    volumes = series.reshape(-1, *SHAPE)
                    seed = volumes[(slice(None), *box)].reshape(len(series), -1).mean(axis=1)
                    z.append(np.arctanh(np.corrcoef(seed, volumes[:, 0, 0, 0])[0, 1]))
        stored = data_of(study.stored(number, label, FUNCTIONAL[1]))
        assert stored[0, 0, 0] == pytest.approx(np.mean(z), abs=1e-5)


def test_bad_mask_takes_no_other_lesion_with_it(study):
    """Truncated after the graph's inputs were checked: the shared pass cannot do without it."""
    mask = study.masks["L1"]
    with gzip.open(mask) as stream:
        content = stream.read()
    mask.write_bytes(gzip.compress(content[:600]))
    steps = study.run()
    assert [failure.node.rpartition(".")[2] for failure in study.failures] == ["validate"]
    assert "damaged" in study.failures[0].reason
    assert missing(study, 2, "L2", OWN_ALL) == []
    assert missing(study, 1, "L1", OWN_ALL) == OWN_ALL
    # What never ran is neither done nor cached.
    assert not [name for name in steps if name.startswith("sub_1_label_L1_wf")]
    assert steps["sub_1_label_L1_mask_wf.validate"] == "failed"
    assert "fnm_wf.correlate" not in steps

    write_mask(mask, BOXES["L1"])
    for crash in study.logs.glob("crash-*"):
        crash.unlink()
    again = study.run()
    assert study.failures == ()
    assert missing(study, 1, "L1", OWN_ALL + FUNCTIONAL) == []
    assert again["sub_2_label_L2_wf.ds_mask"] == "cached"


@pytest.mark.parametrize("analyses", [("rd",), ("fnm",)], ids="".join)
def test_single_analysis_and_single_lesion(study, analyses):
    del study.masks["L2"]
    assert set(study.run(analyses).values()) == {"done"}
    assert study.failures == ()
    expected = FUNCTIONAL if analyses == ("fnm",) else OWN
    assert missing(study, 1, "L1", expected) == []
