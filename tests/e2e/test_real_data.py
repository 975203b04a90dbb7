"""All 33 real stroke lesions through regional damage, functional and structural mapping.

Structural disconnection is computed twice, with both engines.

Lesions, atlas, functional data and tractogram come from different MNI templates (Colin27 grid,
MNI152NLin6Asym, an unnamed MNI space at 7.5 mm, ICBM 2009a). For this test all are declared
MNI152NLin6Asym: an approximation of a few millimetres that says nothing about the anatomy, and
that does not matter for what is tested, which is that the numbers equal independent ones.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import nibabel as nb
import numpy as np
import pytest

SPACE = "MNI152NLin6Asym"
DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None
ATLAS_STEM = "tpl-MNI152NLin6Asym_res-01_atlas-Schaefer2018_desc-100Parcels7Networks_dseg"
MATRICES = ("streamlinesfull", "streamlineslesion", "streamlinesintact", "disconnectionpct")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real_data,
    pytest.mark.mrtrix,
    pytest.mark.skipif(
        DATA is None or not (DATA / "lesions_stroke").is_dir(),
        reason="LACUNA_TEST_DATA does not name a folder with the real data",
    ),
    pytest.mark.skipif(shutil.which("tckmap") is None, reason="MRtrix3 is not on PATH"),
]


def clean(series: np.ndarray) -> np.ndarray:
    """Remove a quadratic trend and the global signal; (timepoints, voxels) in and out."""
    times = np.linspace(-1, 1, len(series))
    nuisance = np.stack([np.ones_like(times), times, times**2], axis=1)
    series = series - nuisance @ np.linalg.lstsq(nuisance, series, rcond=None)[0]
    signal = series.mean(axis=1, keepdims=True)
    return series - signal @ np.linalg.lstsq(signal, series, rcond=None)[0]


def write_connectome(folder: Path) -> None:
    """Four real subjects in two files of Lacuna's layout."""
    mask_img = nb.load(DATA / "fmri_lowres" / "mask_mni152brain_lowres.nii.gz")
    mask = np.asarray(mask_img.dataobj) > 0
    images = sorted((DATA / "fmri_lowres").glob("sub-*_lowres.nii.gz"))
    assert len(images) == 4
    folder.mkdir()
    for number, pair in enumerate((images[:2], images[2:])):
        series = np.stack(
            [clean(np.asarray(nb.load(p).dataobj, float)[mask].T) for p in pair]
        ).astype(np.float32)
        with h5py.File(folder / f"real_{number}.h5", "w") as handle:
            handle.create_dataset("timeseries", data=series, chunks=(1, *series.shape[1:]))
            handle["mask_indices"] = np.array(np.nonzero(mask), dtype=np.int32)
            handle["mask_affine"] = mask_img.affine
            handle.attrs["mask_shape"] = mask.shape


def lacuna(root: Path, out: str, *options: object) -> str:
    """Run the command with matrices and bundles; gives what it printed."""
    atlas = DATA / "parcellations" / ATLAS_STEM
    tractogram = DATA / "tractogram_hcp1065"
    command = [
        sys.executable, "-m", "lacuna_nipype", root / "bids", root / out, "participant",
        "--mask-space", SPACE,
        "--structural-connectome", tractogram / "hcp1065_10403_step2mm.tck",
        "--structural-space", SPACE,
        "--custom-parcellation", "Schaefer100", f"{atlas}.nii.gz", f"{atlas}.txt", SPACE,
        "--compute-disconnectivity-matrix", "--compute-roi-disconnection",
        "--streamline-groups", tractogram / "streamline_bundle.tsv.gz",
        "--plugin", "MultiProc", "-w", root / f"work-{out}", "--no-reports", *options,
    ]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One command over the whole cohort; gives the folder that holds everything."""
    root = tmp_path_factory.mktemp("real")
    bids = root / "bids"
    for source in sorted((DATA / "lesions_stroke").glob("Subject_*.nii.gz")):
        subject = source.name.removeprefix("Subject_").removesuffix(".nii.gz")
        target = bids / f"sub-{subject}" / "anat" / f"sub-{subject}_label-stroke_mask.nii.gz"
        target.parent.mkdir(parents=True)
        target.symlink_to(source)
    (bids / "dataset_description.json").write_text(
        json.dumps({"Name": "real", "BIDSVersion": "1.10.1", "DatasetType": "derivative"})
    )
    write_connectome(root / "connectome")
    functional = ("--functional-connectome", root / "connectome", "--functional-space", SPACE)
    printed = lacuna(root, "out", *functional)
    assert "-upsample" in printed, "the missing step_size of the tractogram is announced"
    return root


@pytest.fixture(scope="module")
def with_mrtrix(run) -> Path:
    """Results of the other engine: so many lesions are done with the index by default."""
    lacuna(run, "mrtrix", "--analysis", "snm", "--snm-engine", "mrtrix")
    return run / "mrtrix"


def subjects(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "bids").glob("sub-*"))


def output(root: Path, subject: str, tail: str, out: str = "out") -> Path:
    return root / out / subject / "anat" / f"{subject}_space-{SPACE}_{tail}"


def of_atlas(quantity: str, suffix: str, atlas: str = "Schaefer100") -> str:
    return f"atlas-{atlas}_label-stroke_stat-{quantity}_desc-snm_{suffix}"


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def lesion_positions(root: Path, subject: str) -> np.ndarray:
    """World coordinates of the lesion's voxel centres, (n, 3) mm."""
    image = nb.load(root / "bids" / subject / "anat" / f"{subject}_label-stroke_mask.nii.gz")
    voxels = np.argwhere(np.asarray(image.dataobj) > 0.5)
    return voxels @ image.affine[:3, :3].T + image.affine[:3, 3]


def test_every_lesion_has_every_result(run):
    names = subjects(run)
    assert len(names) == 33
    for subject in names:
        for tail in (
            "res-1_label-stroke_desc-lesion_mask.nii.gz",
            "label-stroke_stat-z_desc-fnm_statmap.nii.gz",
            "res-2_label-stroke_stat-disconnectionpct_desc-snm_statmap.nii.gz",
            "atlas-Schaefer100_label-stroke_stat-damagepct_desc-rd_parcelstats.tsv",
            "atlas-Schaefer100_label-stroke_stat-r_desc-fnm_parcelstats.tsv",
            "atlas-Schaefer100_label-stroke_stat-mapdisconnectionpct_desc-snm_parcelstats.tsv",
            "label-stroke_desc-snm_stats.json",
        ):
            assert output(run, subject, tail).is_file(), tail


def test_regional_damage_is_exact(run):
    """Lesion voxels are looked up in the atlas by world position, one by one."""
    atlas = nb.load(DATA / "parcellations" / f"{ATLAS_STEM}.nii.gz")
    labels = np.rint(np.asarray(atlas.dataobj)).astype(int)
    inverse = np.linalg.inv(atlas.affine)
    totals = np.bincount(labels.ravel(), minlength=101)
    for subject in subjects(run):
        position = lesion_positions(run, subject)
        voxels = np.rint(position @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        inside = np.all((voxels >= 0) & (voxels < labels.shape), axis=1)
        hit = np.bincount(labels[tuple(voxels[inside].T)], minlength=101)
        tail = "atlas-Schaefer100_label-stroke_stat-damagepct_desc-rd_parcelstats.tsv"
        rows = table(output(run, subject, tail))
        assert [int(row["index"]) for row in rows] == list(range(1, 101))
        for row in rows:
            label = int(row["index"])
            assert float(row["n_voxels_damaged"]) == hit[label]
            assert float(row["n_voxels"]) == totals[label]
            assert float(row["damagepct"]) == pytest.approx(
                100 * hit[label] / totals[label], rel=1e-9
            )


def reference_z(run: Path, seed: np.ndarray) -> np.ndarray:
    """Mean arctanh of np.corrcoef over the subjects, voxel by voxel."""
    z = []
    for path in sorted((run / "connectome").glob("*.h5")):
        with h5py.File(path) as handle:
            for series in handle["timeseries"][()].astype(np.float64):
                mean = series[:, seed].mean(axis=1)
                r = np.corrcoef(np.column_stack([mean, series]), rowvar=False)[0, 1:]
                z.append(np.arctanh(np.clip(r, -1 + 1e-7, 1 - 1e-7)))
    return np.array(z)


def test_functional_maps_agree_with_corrcoef(run):
    """Nearest lesion voxel of every functional voxel, then one correlation at a time."""
    brain = nb.load(DATA / "fmri_lowres" / "mask_mni152brain_lowres.nii.gz")
    mask = np.asarray(brain.dataobj) > 0
    centres = np.argwhere(mask) @ brain.affine[:3, :3].T + brain.affine[:3, 3]
    for subject in subjects(run)[::4]:
        image = nb.load(run / "bids" / subject / "anat" / f"{subject}_label-stroke_mask.nii.gz")
        lesion = np.asarray(image.dataobj) > 0.5
        inverse = np.linalg.inv(image.affine)
        # The package sends exact halves to the voxel with the larger world coordinate.
        voxels = np.floor(centres @ inverse[:3, :3].T + inverse[:3, 3] + 0.5 + 1e-4).astype(int)
        inside = np.all((voxels >= 0) & (voxels < lesion.shape), axis=1)
        seed = np.zeros(len(centres), dtype=bool)
        seed[inside] = lesion[tuple(voxels[inside].T)]
        assert seed.any()
        z = reference_z(run, seed)
        tails = {key: f"label-stroke_stat-{key}_desc-fnm_statmap.nii.gz" for key in "rzt"}
        maps = {
            key: np.asarray(nb.load(output(run, subject, tail)).dataobj)[mask]
            for key, tail in tails.items()
        }
        np.testing.assert_allclose(maps["z"], z.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(maps["r"], np.tanh(z.mean(axis=0)), atol=1e-5)
        t = z.mean(axis=0) / (z.std(axis=0, ddof=1) / 2)
        np.testing.assert_allclose(maps["t"], t, rtol=1e-4, atol=1e-4)


def test_both_engines_give_the_same_bytes(run, with_mrtrix):
    def digests(out: Path) -> dict[str, str]:
        return {
            str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(out.rglob("*_desc-snm_*"))
            if path.suffix != ".json"
        }

    found = digests(run / "out")
    # Map, its means by region, regions, bundles, and four matrices.
    assert len(found) == 33 * 8
    assert found == digests(with_mrtrix)
    for subject in subjects(run):
        tail = "label-stroke_desc-snm_stats.json"
        assert output(run, subject, tail).read_text() == (
            output(run, subject, tail, "mrtrix").read_text()
        )
    engines = [
        json.loads(output(run, subject, of_atlas(MATRICES[0], "relmat.json"), out).read_text())
        for out in ("out", "mrtrix")
    ]
    assert [sidecar["Engine"] for sidecar in engines] == ["index", "mrtrix"]


def matrix(path: Path) -> np.ndarray:
    rows = table(path)
    return np.array([[float(row[column["name"]]) for column in rows] for row in rows])


def positions_of(part: list[bytes], whole: list[bytes]) -> list[int]:
    """Where the streamlines of a selection stand in the whole, whose order it keeps."""
    places = iter(range(len(whole)))
    return [next(place for place in places if whole[place] == one) for one in part]


def test_matrices_and_bundles_equal_the_commands_typed_by_hand(run, with_mrtrix, tmp_path):
    tractogram = DATA / "tractogram_hcp1065" / "hcp1065_10403_step2mm.tck"
    atlas = DATA / "parcellations" / f"{ATLAS_STEM}.nii.gz"

    def connectome(streamlines: Path) -> np.ndarray:
        words = ["tck2connectome", streamlines, atlas, "m.csv", "-symmetric", "-zero_diagonal"]
        subprocess.run([*map(str, words), "-quiet", "-force"], check=True, cwd=tmp_path)
        return np.loadtxt(tmp_path / "m.csv", delimiter=",")

    def lines(path: Path) -> list[bytes]:
        return [line.tobytes() for line in nb.streamlines.load(path).streamlines]

    with gzip.open(DATA / "tractogram_hcp1065" / "streamline_bundle.tsv.gz", "rt") as stream:
        bundle_of = [row["bundle"] for row in csv.DictReader(stream, delimiter="\t")]
    full, whole = connectome(tractogram), lines(tractogram)
    assert full.shape == (100, 100)
    for subject in subjects(run)[::8]:
        mask = run / "bids" / subject / "anat" / f"{subject}_label-stroke_mask.nii.gz"
        words = ["tckedit", tractogram, tmp_path / "hit.tck", "-include", mask, "-force"]
        subprocess.run([*map(str, words), "-quiet"], check=True)
        lesion = connectome(tmp_path / "hit.tck")
        assert lesion.sum() > 0
        share = np.divide(100 * lesion, full, out=np.zeros_like(full), where=full > 0)
        expected = dict(zip(MATRICES, (full, lesion, full - lesion, share), strict=True))
        for quantity, values in expected.items():
            found = matrix(output(run, subject, of_atlas(quantity, "relmat.tsv"), "mrtrix"))
            np.testing.assert_allclose(found, values, rtol=1e-9)
        rows = table(output(run, subject, of_atlas("disconnectionpct", "parcelstats.tsv")))
        degree = np.maximum(full.sum(axis=1), 1)
        np.testing.assert_allclose(
            [float(row["disconnectionpct"]) for row in rows],
            100 * lesion.sum(axis=1) / degree,
            rtol=1e-9,
        )
        hits = positions_of(lines(tmp_path / "hit.tck"), whole)
        cut, size = Counter(bundle_of[hit] for hit in hits), Counter(bundle_of)
        tail = of_atlas("streamlinespct", "parcelstats.tsv", "streamlineBundle")
        rows = table(output(run, subject, tail))
        assert {row["name"] for row in rows} == set(size)
        for row in rows:
            name = row["name"]
            assert int(row["n_streamlines_hit"]) == cut[name]
            share = 100 * cut[name] / size[name]
            assert float(row["streamlinespct"]) == pytest.approx(share, rel=1e-9)


def test_disconnection_equals_the_commands_typed_by_hand(run, tmp_path):
    tractogram = DATA / "tractogram_hcp1065" / "hcp1065_10403_step2mm.tck"
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-90, -126, -72)
    nb.save(nb.Nifti1Image(np.zeros((91, 109, 91), np.uint8), affine), tmp_path / "grid.nii.gz")

    def mrtrix(*words: object) -> None:
        subprocess.run(
            [*map(str, words), "-quiet", "-force"], check=True, cwd=tmp_path, capture_output=True
        )

    # The file has no step size: its median step, and tckmap's own rule for the ratio.
    streamlines = nb.streamlines.load(tractogram).streamlines
    steps = [np.linalg.norm(np.diff(points, axis=0), axis=1) for points in streamlines]
    ratio = int(np.ceil(np.median(np.concatenate(steps)) / (2 * np.float32(0.333))))
    template = ("-template", "grid.nii.gz", "-upsample", ratio)
    mrtrix("tckmap", *template, tractogram, "full.nii")
    for subject in subjects(run):
        mask = run / "bids" / subject / "anat" / f"{subject}_label-stroke_mask.nii.gz"
        mrtrix("tckedit", tractogram, "hit.tck", "-include", mask)
        mrtrix("tckmap", *template, "hit.tck", "hit.nii")
        divided = ("hit.nii", "full.nii", "-divide")
        mrtrix("mrcalc", "full.nii", 0, "-gt", *divided, 0, "-if", 100, "-mult", "percent.nii")
        tail = "res-2_label-stroke_stat-disconnectionpct_desc-snm_statmap.nii.gz"
        ours, theirs = nb.load(output(run, subject, tail)), nb.load(tmp_path / "percent.nii")
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-6)
        ours, theirs = (np.asarray(image.dataobj, dtype=np.float32) for image in (ours, theirs))
        assert ours.tobytes() == theirs.tobytes()
        summary = json.loads(output(run, subject, "label-stroke_desc-snm_stats.json").read_text())
        header = (tmp_path / "hit.tck").read_bytes()[:2000].decode("latin-1")
        count = next(x for x in header.splitlines() if x.startswith("count:"))
        assert summary["StreamlinesHit"] == int(count.split(":")[1])
        assert summary["Streamlines"] == 10403
