"""From moments to maps and their summary, on numbers that are worked out by hand."""

import json
from pathlib import Path

import h5py
import nibabel as nb
import numpy as np
import pytest
from scipy import stats

from lacuna_nipype.connectomes.functional import read_connectome_file
from lacuna_nipype.connectomes.maps import MAPS, MapOptions, derive_maps, summarise, write_maps
from lacuna_nipype.core.correlation import CorrelationMaps

SHAPE = (4, 3, 2)
AFFINE = np.diag([4.0, 4, 4, 1])
# Eight voxels of the brain. Voxel 0 is the seed, voxel 3 never varies, voxel 6 has equal z in all
# subjects and so no t.
VOXELS = np.array([[0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 0, 0, 1, 2, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1]])
SEED, CONSTANT, EQUAL = 0, 3, 6
N = 5
T = np.array([9.0, 2.0, -4.0, 0.0, 0.5, 3.0, 0.0, -1.0])
Z = np.array([1.5, 0.2, -0.4, 0.0, 0.05, 0.3, 0.25, -0.1])
VALID = np.arange(8) != CONSTANT
FAMILY = VALID & (np.arange(8) != SEED)


def maps_of(t=T):
    return CorrelationMaps(Z, np.tanh(Z), t)


def read_json(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(Path(path).read_text(), parse_constant=refuse)


# --- which maps -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "two", "one"),
    [
        (MapOptions(), "r z t p q qsig", "r z"),
        (MapOptions(p_maps=False), "r z t", "r z"),
        (MapOptions(t_threshold=2.5), "r z t p q qsig tsig", "r z"),
        (MapOptions(p_maps=False, t_threshold=0.0), "r z t tsig", "r z"),
    ],
)
def test_what_is_announced_is_what_is_made(options, two, one):
    assert options.quantities(2) == two.split()
    assert list(derive_maps(maps_of(), 2, FAMILY, options)) == two.split()
    assert options.quantities(1) == one.split()
    assert list(derive_maps(maps_of(None), 1, FAMILY, options)) == one.split()
    assert set(two.split()) <= set(MAPS)


# --- derive_maps ----------------------------------------------------------------------------


def test_p_and_q_by_hand():
    made = derive_maps(maps_of(), N, FAMILY, MapOptions())
    p = 2 * stats.t.sf(np.abs(T), 4)
    np.testing.assert_allclose(made["p"], p, rtol=1e-12)
    assert made["p"][[CONSTANT, EQUAL]].tolist() == [1, 1]
    # Six tests by rising p: t = -4, 3, 2, -1, 0.5 and the one without a t.
    order = [2, 5, 1, 7, 4, 6]
    ranked = [p[v] * 6 / rank for rank, v in enumerate(order, start=1)]
    expected = {v: min(ranked[place:]) for place, v in enumerate(order)}
    for voxel, q in expected.items():
        assert made["q"][voxel] == pytest.approx(min(q, 1), rel=1e-12)
    assert made["q"][[SEED, CONSTANT]].tolist() == [1, 1]
    np.testing.assert_allclose(made["q"][FAMILY], stats.false_discovery_control(p[FAMILY]))


def test_the_family_leaves_out_seed_and_constant_voxels():
    """However small p is there, nobody else's q changes."""
    t = T.copy()
    t[[SEED, CONSTANT]] = 1e6
    plain = derive_maps(maps_of(), N, FAMILY, MapOptions())
    other = derive_maps(maps_of(t), N, FAMILY, MapOptions())
    assert other["p"][SEED] < 1e-15
    np.testing.assert_array_equal(plain["q"], other["q"])
    assert not other["qsig"][[SEED, CONSTANT]].any()
    wider = derive_maps(maps_of(t), N, np.ones(8, dtype=bool), MapOptions())
    assert not np.array_equal(plain["q"], wider["q"])


def test_thresholds():
    made = derive_maps(maps_of(), N, FAMILY, MapOptions(fdr_alpha=0.1, t_threshold=2.0))
    assert np.flatnonzero(made["qsig"]).tolist() == np.flatnonzero(made["q"] < 0.1).tolist()
    assert 0 < made["qsig"].sum() < FAMILY.sum()
    # Larger in size, on either side; 2 itself is not larger than 2.
    assert np.flatnonzero(made["tsig"]).tolist() == [SEED, 2, 5]
    none = derive_maps(maps_of(), N, FAMILY, MapOptions(fdr_alpha=0.0, t_threshold=1e6))
    assert not none["qsig"].any()
    assert not none["tsig"].any()


def test_an_empty_family():
    made = derive_maps(maps_of(), N, np.zeros(8, dtype=bool), MapOptions())
    assert (made["q"] == 1).all()
    assert not made["qsig"].any()


# --- summarise ------------------------------------------------------------------------------


def test_summary_by_hand():
    options = MapOptions(fdr_alpha=0.1, t_threshold=2.0)
    made = derive_maps(maps_of(), N, FAMILY, options)
    r = np.tanh([1.5, 0.2, -0.4, 0.05, 0.3, 0.25, -0.1])
    significant = sum(made["q"][v] < 0.1 for v in (1, 2, 4, 5, 6, 7))
    assert summarise(made, VALID, FAMILY, N, options) == {
        "ValidVoxels": 7,
        "RMean": pytest.approx(sum(r) / 7),
        "RStandardDeviation": pytest.approx(np.sqrt(sum((r - sum(r) / 7) ** 2) / 7)),
        "RMinimum": pytest.approx(np.tanh(-0.4)),
        "RMaximum": pytest.approx(np.tanh(1.5)),
        "DegreesOfFreedom": 4,
        "TMinimum": -4.0,
        "TMaximum": 9.0,
        "PMinimum": pytest.approx(2 * stats.t.sf(4, 4)),
        "PMaximum": 1.0,
        "FDRAlpha": 0.1,
        "FDRFamilySize": 6,
        "SignificantVoxels": significant,
        "SignificantPercent": pytest.approx(100 * significant / 6),
        "TThreshold": 2.0,
        "VoxelsAboveTThreshold": 3,
        "PercentAboveTThreshold": pytest.approx(100 * 3 / 7),
    }


def test_summary_of_what_is_not_made():
    options = MapOptions(p_maps=False)
    summary = summarise(derive_maps(maps_of(), N, FAMILY, options), VALID, FAMILY, N, options)
    assert not {key for key in summary if key[:3] in ("PMi", "PMa", "FDR", "Sig", "TTh")}
    single = summarise(derive_maps(maps_of(None), 1, FAMILY, options), VALID, FAMILY, 1, options)
    assert set(single) == {
        "ValidVoxels", "RMean", "RStandardDeviation", "RMinimum", "RMaximum"
    }  # fmt: skip


def test_summary_of_nothing():
    nothing, options = np.zeros(8, dtype=bool), MapOptions(t_threshold=1.0)
    zeros = CorrelationMaps(np.zeros(8), np.zeros(8), np.zeros(8))
    summary = summarise(derive_maps(zeros, N, nothing, options), nothing, nothing, N, options)
    json.dumps(summary, allow_nan=False)
    for key in ("RMean", "RMaximum", "TMinimum", "PMinimum", "PMaximum"):
        assert summary[key] is None
    assert summary["SignificantPercent"] == summary["PercentAboveTThreshold"] == 0


# --- write_maps -----------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path, write_connectome):
    """Write maps of moments that give the t wanted, as one partial result for each count."""
    series = np.random.default_rng(0).normal(size=(1, 10, 8)).astype(np.float32)
    file = read_connectome_file(write_connectome(tmp_path / "c.h5", series, VOXELS, SHAPE, AFFINE))

    def write_for(options=None, n_subjects=N, t=T, z=Z, seeds=((SEED,),), outside=(4,)):
        with np.errstate(divide="ignore", invalid="ignore"):
            m2 = np.where(t == 0, 0.0, (z / t) ** 2 * n_subjects * (n_subjects - 1))
        partial = tmp_path / "partial.h5"
        with h5py.File(partial, "w") as out:
            out["mean"] = np.tile(z, (len(seeds), 1))
            out["m2"] = np.tile(m2, (len(seeds), 1))
            out["n_varying"] = np.where(VALID, n_subjects, 0)
            out["seed_voxels"] = [len(seed) for seed in seeds]
            out["seed_voxels_outside"] = list(outside)
            out["seed_positions"] = np.array([v for seed in seeds for v in seed], dtype=int)
            out.attrs.update(
                n_subjects=n_subjects, mask_digest=file.mask_digest, seeds_digest="same"
            )
        return write_maps([partial], file, tmp_path / "maps", options)

    return write_for


def volume(path):
    image = nb.load(path)
    np.testing.assert_array_equal(image.affine, AFFINE)
    return np.asanyarray(image.dataobj)


def test_types_and_backgrounds(write):
    written = write(MapOptions(t_threshold=2.0))
    brain = np.zeros(SHAPE, dtype=bool)
    brain[tuple(VOXELS)] = True
    for key, dtype, background in (
        ("r", "f4", 0), ("z", "f4", 0), ("t", "f4", 0), ("p", "f8", 1), ("q", "f8", 1),
        ("qsig", "u1", 0), ("tsig", "u1", 0),
    ):  # fmt: skip
        (path,) = written[f"{key}_maps"]
        data = volume(path)
        assert data.dtype == np.dtype(dtype)
        assert np.isfinite(data).all()
        assert (data[~brain] == background).all()
    np.testing.assert_allclose(volume(written["z_maps"][0])[tuple(VOXELS)], Z, rtol=1e-7)
    np.testing.assert_allclose(volume(written["t_maps"][0])[tuple(VOXELS)], T, rtol=1e-6)
    q = volume(written["q_maps"][0])[tuple(VOXELS)]
    assert q[[SEED, CONSTANT]].tolist() == [1, 1]
    valid = volume(written["valid_mask"])
    assert valid.dtype == np.uint8
    np.testing.assert_array_equal(valid[tuple(VOXELS)], VALID)
    assert valid.sum() == 7


def test_tiny_probabilities_survive_on_disk(write):
    t = T.copy()
    # Far below the smallest number of single precision, and below that of double precision.
    t[1], t[2] = 41.0, -1e5
    written = write(n_subjects=1000, t=t)
    p = volume(written["p_maps"][0])[tuple(VOXELS)]
    q = volume(written["q_maps"][0])[tuple(VOXELS)]
    exact = 2 * stats.t.sf(41.0, 999)
    assert 0 < exact < 1e-200
    assert p[1] == pytest.approx(exact, rel=1e-9)
    assert q[1] == pytest.approx(exact * 6 / 2, rel=1e-9)
    assert 0 < p[2] <= np.finfo(np.float64).tiny
    assert np.isfinite(-np.log10(p)).all()
    summary = read_json(written["summaries"][0])
    assert 0 < summary["PMinimum"] < 1e-300


@pytest.mark.parametrize(
    ("options", "n_subjects", "made"),
    [
        (None, N, "r z t p q qsig"),
        (MapOptions(p_maps=False), N, "r z t"),
        (MapOptions(p_maps=False, t_threshold=1.0), N, "r z t tsig"),
        (MapOptions(t_threshold=1.0), 1, "r z"),
    ],
)
def test_only_the_maps_asked_for_are_written(tmp_path, write, options, n_subjects, made):
    written = write(options, n_subjects)
    names = {path.name for path in (tmp_path / "maps").iterdir()}
    assert names == {
        "lesion-0000.json", "valid_mask.nii.gz",
        *(f"lesion-0000_{key}.nii.gz" for key in made.split()),
    }  # fmt: skip
    assert {key for key in MAPS if written[f"{key}_maps"]} == set(made.split())
    keys = read_json(written["summaries"][0]).keys()
    assert ("FDRFamilySize" in keys) == ("p" in made.split())
    assert ("TThreshold" in keys) == ("tsig" in made.split())
    assert ("DegreesOfFreedom" in keys) == ("t" in made.split())


def test_every_seed_has_a_family_of_its_own(write):
    written = write(seeds=((SEED,), (), (1, 2, CONSTANT)), outside=(4, 0, 2))
    summaries = [read_json(path) for path in written["summaries"]]
    assert [summary["FDRFamilySize"] for summary in summaries] == [6, 7, 5]
    assert [summary["SeedVoxels"] for summary in summaries] == [1, 0, 3]
    assert [summary["SeedVoxelsOutsideConnectome"] for summary in summaries] == [4, 0, 2]
    q = [volume(path)[tuple(VOXELS)] for path in written["q_maps"]]
    assert q[1][SEED] < 1
    assert q[2][[1, 2, CONSTANT]].tolist() == [1, 1, 1]
    assert q[2][SEED] < 1


def test_a_connectome_in_which_nothing_varies(write):
    written = write(t=np.zeros(8), z=np.zeros(8))
    summary = read_json(written["summaries"][0])
    assert summary["SignificantVoxels"] == 0
    assert summary["PMinimum"] == summary["PMaximum"] == 1
    assert (volume(written["p_maps"][0]) == 1).all()
    assert (volume(written["q_maps"][0]) == 1).all()
