"""Interfaces of the catalogue through nodes; expected values by hand."""

import json
import zipfile

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from nipype.pipeline import engine as pe

from lacuna_nipype.atlases import (
    AtlasNotFound,
    IntegrityError,
    SpaceMismatch,
    fetch_parcellation,
    register_atlas,
)
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.interfaces import (
    BundleAtlas,
    FetchParcellation,
    MapInfo,
    RegionMask,
    ResampleParcellation,
)

SPACE, OTHER = "MNI152NLin6Asym", "MNI152NLin2009cAsym"


@pytest.fixture
def register(atlas):
    """Register the atlas of two halves, 105 voxels each."""

    def make(image=None, **options):
        return register_atlas("Halves", image or atlas[0], atlas[1], SPACE, **options)

    return make


def table_of(path):
    return pd.read_csv(path, sep="\t")


# FetchParcellation


def test_fetch_gives_files_of_its_own(register, run_node, in_node_folder, content_of):
    register(citation="Me 2020")
    files = fetch_parcellation("Halves")
    outputs = run_node(FetchParcellation(atlas="halves"))
    assert in_node_folder([outputs.out_file, outputs.labels_file, outputs.out_meta])
    assert open(outputs.out_file, "rb").read() == files.image.read_bytes()  # noqa: SIM115
    assert table_of(outputs.labels_file)["name"].tolist() == ["low", "high"]
    assert content_of(outputs.out_meta)["Citation"] == "Me 2020"
    assert (outputs.space, outputs.resolution, outputs.sha256) == (SPACE, 8, files.sha256)


def test_fetch_of_a_region_is_its_mask(register, run_node, data_of):
    register()
    outputs = run_node(FetchParcellation(atlas="Halves", region="high"))
    mask = data_of(outputs.out_file)
    assert mask[3:].all()
    assert not mask[:3].any()


def test_fetch_runs_once_until_the_atlas_changes(
    register, runs_once, make_image, shape, run_node, tmp_path
):
    register()
    first = fetch_parcellation("Halves").sha256
    assert runs_once(lambda: FetchParcellation(atlas="Halves", sha256=first))
    changed = np.ones(shape, dtype=np.int16)
    changed[1:] = 2
    register(make_image("changed.nii.gz", changed), overwrite=True)
    second = fetch_parcellation("Halves").sha256
    assert second != first
    node = pe.Node(
        FetchParcellation(atlas="Halves", sha256=first), name="stale", base_dir=tmp_path
    )
    with pytest.raises(Exception, match="build the workflow again"):
        node.run()
    outputs = run_node(FetchParcellation(atlas="Halves", sha256=second), "twice")
    image = np.asanyarray(nb.load(outputs.out_file).dataobj)
    np.testing.assert_array_equal(image, changed)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"atlas": "Nobodys"}, AtlasNotFound),
        ({"atlas": "Halves", "region": "middle"}, AtlasNotFound),
        ({"atlas": "Halves", "space": OTHER}, SpaceMismatch),
        ({"atlas": "Halves", "resolution": 1.0}, ValidationError),
        ({"atlas": "Halves", "sha256": "0" * 64}, IntegrityError),
    ],
)
def test_fetch_says_what_is_wrong(register, options, error, tmp_path, monkeypatch):
    register()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        FetchParcellation(offline=True, **options).run()


def test_catalogue_to_mask_in_a_workflow(register, tmp_path, make_image):
    """Fetched on the submitting process, resampled, masked and described."""
    register()
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = (-22, -26, -18)
    reference = make_image("fine.nii.gz", np.zeros((12, 14, 10), np.uint8), affine)
    fetch = pe.Node(FetchParcellation(atlas="Halves"), "fetch", run_without_submitting=True)
    resample = pe.Node(ResampleParcellation(reference=reference), "resample")
    mask = pe.Node(RegionMask(regions=["low"]), "mask")
    info = pe.Node(MapInfo(), "info")
    workflow = pe.Workflow("atlas", base_dir=str(tmp_path / "work"))
    names = ("out_file", "in_file"), ("labels_file", "labels_file")
    workflow.connect(
        [
            (fetch, resample, names),
            (resample, mask, names),
            (mask, info, [("out_file", "in_file")]),
        ]
    )
    graph = {node.name: node for node in workflow.run("Linear").nodes()}
    outputs = graph["info"].result.outputs
    # Eight fine voxels in each of 3 x 7 x 5.
    assert outputs.n_nonzero == 8 * 105
    assert (outputs.minimum, outputs.maximum, outputs.labels) == (0, 1, [1])


# ResampleParcellation


def test_resampling_reports_what_is_lost(atlas, run_node, make_image, content_of, data_of):
    """On a grid of the lower half only."""
    reference = make_image("low.nii.gz", np.zeros((3, 7, 5), np.uint8))
    outputs = run_node(
        ResampleParcellation(in_file=atlas[0], labels_file=atlas[1], reference=reference)
    )
    assert data_of(outputs.out_file).tolist() == np.ones((3, 7, 5)).tolist()
    assert outputs.lost == ["high"]
    assert table_of(outputs.labels_file).to_dict("list") == {"index": [1], "name": ["low"]}
    report = content_of(outputs.out_meta)["RegionResampling"]
    assert report["RegionsLost"] == ["high"]
    assert report["VolumeMLBefore"] == pytest.approx(210 * 0.512)
    assert report["VolumeMLAfter"] == pytest.approx(105 * 0.512)


def test_resampling_to_a_standard_grid(atlas, run_node, data_of):
    outputs = run_node(
        ResampleParcellation(in_file=atlas[0], labels_file=atlas[1], space=SPACE, resolution=2.0)
    )
    image = nb.load(outputs.out_file)
    assert image.shape == (91, 109, 91)
    index, counts = np.unique(data_of(outputs.out_file), return_counts=True)
    assert index.tolist() == [0, 1, 2]
    # 105 voxels of 8 mm cover 64 of 2 mm each; some borders fall onto voxel centres.
    assert counts[1:] == pytest.approx([105 * 64] * 2, rel=0.2)


def test_resampling_keeps_the_most_frequent_label(run_node, make_image, data_of, affine, shape):
    """Of the eight voxels in each coarse one, three have label 7, and five label 9."""
    data = np.full((6, 6, 4), 9, np.int16)
    data[::2, ::2, :] = 7
    data[1::2, ::2, ::2] = 7
    coarse = affine @ np.diag([2.0, 2, 2, 1])
    coarse[:3, 3] = affine[:3, 3] + 4
    reference = make_image("coarse.nii.gz", np.zeros((3, 3, 2), np.uint8), coarse)
    outputs = run_node(
        ResampleParcellation(
            in_file=make_image("mixed.nii.gz", data), reference=reference, method="majority"
        )
    )
    assert np.unique(data_of(outputs.out_file)).tolist() == [9]
    assert outputs.lost == ["7"]


def test_resampling_through_a_transform(atlas, run_node, make_image, tmp_path, data_of):
    """A shift by one voxel along x: points of the target lie 8 mm further in the atlas."""
    transform = tmp_path / "shift.tfm"
    transform.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        # ITK counts x from right to left.
        "Parameters: 1 0 0 0 1 0 0 0 1 -8 0 0\nFixedParameters: 0 0 0\n"
    )
    reference = make_image("same.nii.gz", np.zeros((6, 7, 5), np.uint8))
    outputs = run_node(
        ResampleParcellation(in_file=atlas[0], reference=reference, transforms=[str(transform)])
    )
    before = data_of(atlas[0])
    moved = data_of(outputs.out_file)
    np.testing.assert_array_equal(moved[:-1], before[1:])
    assert not moved[-1].any()
    with open(outputs.out_meta) as stream:
        assert json.load(stream)["Transforms"][0]["File"] == "shift.tfm"


def test_another_space_is_refused(atlas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parcellation = ResampleParcellation(
        in_file=atlas[0], in_space=SPACE, space=OTHER, resolution=2.0
    )
    with pytest.raises(SpaceMismatch, match="transform"):
        parcellation.run()


def test_reference_and_resolution_exclude_each_other(atlas):
    with pytest.raises(OSError, match="mutually exclusive"):
        ResampleParcellation(
            in_file=atlas[0], reference=atlas[0], space=SPACE, resolution=2.0
        ).run()
    with pytest.raises(ValueError, match="requires a value"):
        ResampleParcellation(in_file=atlas[0]).run()


# RegionMask


def test_mask_of_several_regions(run_node, make_image, tmp_path, data_of, content_of, shape):
    data = np.arange(np.prod(shape)).reshape(shape) % 4
    labels = tmp_path / "four.tsv"
    labels.write_text("index\tname\n1\tone\n2\ttwo\n3\tthree\n")
    image = make_image("four.nii.gz", data.astype(np.int16))
    outputs = run_node(RegionMask(in_file=image, labels_file=str(labels), regions=["THREE", "1"]))
    mask = data_of(outputs.out_file)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, (data == 3) | (data == 1))
    meta = content_of(outputs.out_meta)
    assert meta["Regions"] == [{"Index": 3, "Name": "three"}, {"Index": 1, "Name": "one"}]
    assert outputs.n_voxels == meta["Voxels"] == ((data == 3) | (data == 1)).sum()
    assert meta["VolumeML"] == pytest.approx(outputs.n_voxels * 0.512)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_mask_of_probabilities(run_node, make_image, atlas, data_of, shape, threshold):
    rng = np.random.default_rng(0)
    data = np.where(rng.random((*shape, 2)) < 0.5, rng.random((*shape, 2)), 0).astype("f4")
    outputs = run_node(
        RegionMask(
            in_file=make_image("prob.nii.gz", data), labels_file=atlas[1], regions=["high"],
            threshold=threshold,
        )
    )  # fmt: skip
    np.testing.assert_array_equal(data_of(outputs.out_file), data[..., 1] > threshold)


def test_unknown_region(atlas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AtlasNotFound, match="low"):
        RegionMask(in_file=atlas[0], labels_file=atlas[1], regions=["lower"]).run()


# MapInfo


def test_info_leaves_out_what_is_not_finite(run_node, make_image, content_of, shape):
    data = np.zeros(shape, np.float32)
    data[0, 0, :4] = (np.nan, np.inf, -2.5, 7.5)
    outputs = run_node(MapInfo(in_file=make_image("map.nii.gz", data)))
    assert (outputs.minimum, outputs.maximum) == (-2.5, 7.5)
    assert outputs.mean == pytest.approx(5 / (210 - 2))
    assert (outputs.n_nonzero, outputs.n_nan) == (2, 1)
    content = content_of(outputs.out_meta)
    assert (content["n_infinite"], content["shape"]) == (1, list(shape))
    assert content["voxel_size"] == [8, 8, 8]


def test_info_of_nothing(run_node, make_image, shape):
    outputs = run_node(MapInfo(in_file=make_image("nan.nii.gz", np.full(shape, np.nan, "f4"))))
    assert outputs.n_nan == np.prod(shape)
    assert not isinstance(outputs.minimum, float)


# BundleAtlas


def test_bundle(register, run_node, in_node_folder, runs_once):
    register(license="CC0")
    sha256 = fetch_parcellation("Halves").sha256
    make = lambda: BundleAtlas(atlas="Halves", regions=["low"], sha256=sha256)
    outputs = run_node(make())
    assert in_node_folder(outputs.out_file)
    with zipfile.ZipFile(outputs.out_file) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        assert "CC0" in archive.read("LICENSE.txt").decode()
    assert manifest["Members"][2]["SHA256"] == sha256
    assert outputs.missing == []
    assert runs_once(make)
    assert run_node(make(), "again").sha256 == outputs.sha256


def test_bundle_without_a_part(register, run_node, tmp_path, monkeypatch):
    register()
    outputs = run_node(BundleAtlas(atlas="Halves", regions=["low", "middle"], keep_going=True))
    (reason,) = outputs.missing
    assert "middle" in reason
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="middle"):
        BundleAtlas(atlas="Halves", regions=["low", "middle"]).run()
    assert not (tmp_path / "atlas.zip").exists()
    with pytest.raises(IntegrityError):
        BundleAtlas(atlas="Halves", sha256="0" * 64).run()
