"""The catalogue: which source gives an id, what is refused, regions, masks, facts."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from transform_data import NLIN6, NLIN2009C

import lacuna_nipype.atlases
from lacuna_nipype.atlases import (
    AtlasEntry,
    AtlasNotFound,
    AtlasSource,
    SourceUnavailable,
    SpaceMismatch,
    fetch_parcellation,
    find_run_atlases,
    get_atlas,
    list_atlases,
    list_regions,
    list_spaces,
    map_info,
    region_mask,
    register_atlas,
    services,
)
from lacuna_nipype.atlases.region_tables import side_of
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError

pytestmark = pytest.mark.usefixtures("data_dir")
ID = "schaefer2018parcels100networks7"


@pytest.fixture
def dataset(tmp_path, write_labels):
    """A BIDS dataset with three atlases, one at two voxel sizes with one table for both."""
    root = tmp_path / "dataset"
    folder = root / f"tpl-{NLIN6}"
    for size in (1, 2):
        write_labels(folder / f"tpl-{NLIN6}_atlas-X_res-0{size}_dseg.nii.gz", NLIN6, size, [1, 2])
    (folder / f"tpl-{NLIN6}_atlas-X_dseg.tsv").write_text("index\tname\n1\tleft A\n2\tright A\n")
    (folder / f"tpl-{NLIN6}_atlas-X_res-02_dseg.json").write_text('{"License": "CC0"}')
    (root / "atlas-X_description.json").write_text('{"Name": "The X", "Citation": "Ex 2020"}')
    for scale in (100, 200):
        stem = f"tpl-{NLIN6}_res-02_atlas-Schaefer2018_desc-{scale}Parcels7Networks_dseg"
        write_labels(folder / f"{stem}.nii.gz", NLIN6, 2, [1, 2])
        (folder / f"{stem}.tsv").write_text("index\tname\n1\ta\n2\tb\n")
    return root


@pytest.fixture
def registered(tmp_path, write_labels):
    image = write_labels(tmp_path / "mine.nii.gz", NLIN6, 2, [1, 2, 3])
    labels = tmp_path / "mine.tsv"
    labels.write_text("index\tname\n1\tVis_L\n2\tVis_R\n3\tStem\n")
    return register_atlas("Mine", image, labels, NLIN6)


# Lists


def test_importing_the_package_is_cheap():
    script = (
        "import sys, lacuna_nipype.atlases as a; names = dir(a)\n"
        "heavy = {'numpy', 'pandas', 'nibabel', 'scipy', 'requests', 'templateflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert set(a.__all__) <= set(names)\n"
        "from lacuna_nipype.atlases import get_atlas; print(get_atlas.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout.strip() == "lacuna_nipype.atlases.services"
    for name in lacuna_nipype.atlases.__all__:
        assert getattr(lacuna_nipype.atlases, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        lacuna_nipype.atlases.nothing  # noqa: B018


def test_lists_are_filtered_and_in_order(registered, dataset):
    everything = list_atlases(datasets=[dataset])
    assert [entry.source for entry in everything[:4]] == ["user", "bids", "bids", "bids"]
    assert {entry.source for entry in everything[4:]} == {"templateflow"}
    schaefer = [e.id for e in list_atlases("FSL", "templateflow", find="SCHAEFER")]
    assert schaefer[:3] == [
        ID,
        "schaefer2018parcels100networks17",
        "schaefer2018parcels200networks7",
    ]
    assert schaefer[-1] == "schaefer2018parcels1000networks17"
    assert len(schaefer) == 16
    family = list_atlases("MNI152NLin2009aAsym", kind="probabilistic")
    assert {entry.space for entry in family} == {NLIN2009C}
    assert len(family) == 7
    assert list_atlases(source="bundled") == []
    assert [e.id for e in list_atlases(find="7n", source="bids", datasets={"x": dataset})] == [
        "Schaefer2018_seg-7n_scale-100", "Schaefer2018_seg-7n_scale-200",
    ]  # fmt: skip
    assert list_atlases(find="the x", datasets=[dataset])[0].citation == "Ex 2020"


@pytest.mark.parametrize(
    "options",
    [{"source": "web"}, {"kind": "surface"}, {"space": "MNI"}, {"datasets": ["nowhere"]}],
)
def test_lists_of_what_is_unknown(options):
    with pytest.raises(ValidationError):
        list_atlases(**options)


def test_spaces():
    spaces = {space.name: space for space in list_spaces()}
    assert spaces[NLIN6].resolutions == (0.5, 1.0, 2.0, 3.0)
    assert "FSL" in spaces[NLIN6].aliases
    assert spaces[NLIN6].siibra_id == ""
    assert spaces[NLIN2009C].siibra_id.endswith("dafcffc5-4826-4bf1-8ff6-46b8a31ff8e2")
    assert spaces["MNIColin27"].siibra_id.endswith("7f39f7be-445b-47c0-9791-e971c0b6d992")
    unusable = [space.name for space in list_spaces() if not space.usable]
    assert unusable == ["BigBrain", "fsaverage", "fsLR"]


# One atlas


def test_the_first_source_that_has_it_in_this_space(tmp_path, write_labels, dataset):
    assert get_atlas(ID, NLIN6).source == "templateflow"
    # The dataset's variant answers to both names.
    for name in (ID, ID.upper(), "Schaefer2018_100Parcels7Networks"):
        entry = get_atlas(name, NLIN6, datasets=[dataset])
        assert (entry.source, entry.id) == ("bids", "Schaefer2018_seg-7n_scale-100")
    assert get_atlas(ID, NLIN6, source="templateflow", datasets=[dataset]).id == ID
    assert get_atlas(ID, NLIN2009C, datasets=[dataset]).source == "templateflow"
    image = write_labels(tmp_path / "own.nii.gz", NLIN2009C, 2, [1])
    (tmp_path / "own.txt").write_text("one\n")
    register_atlas(ID, image, tmp_path / "own.txt", NLIN2009C)
    assert get_atlas(ID, "MNI152NLin2009bAsym", datasets=[dataset]).source == "user"
    assert get_atlas(ID, NLIN6, datasets=[dataset]).source == "bids"


def test_unknown_several_and_other_spaces():
    with pytest.raises(AtlasNotFound, match=ID) as caught:
        get_atlas("schaefer2018parcel100network7")
    assert not str(caught.value).startswith(("'", '"'))
    with pytest.raises(AtlasNotFound, match=r"hocpalth25"):
        get_atlas("HOCPAL_th52", NLIN6)
    with pytest.raises(ValidationError, match=f"{NLIN6}.*{NLIN2009C}.*space"):
        get_atlas(ID)
    with pytest.raises(SpaceMismatch, match=NLIN2009C):
        get_atlas("massp20", "FSL")
    with pytest.raises(SpatialMismatchError):
        get_atlas("massp20", "FSL")
    assert get_atlas("massp20").space == NLIN2009C


def test_a_plugin_is_a_source(monkeypatch):
    entry = AtlasEntry("other", "Other", "labelled", NLIN6, (1.0,), 2, "user", {"atlas": "O"})

    class Plugin:
        name = "lab"

        def entries(self):
            return [entry]

        def fetch(self, entry, resolution, target_dir):
            raise SourceUnavailable("The lab is closed.")

    assert isinstance(Plugin(), AtlasSource)
    monkeypatch.setattr(EntryPoint, "load", lambda point: Plugin)
    point = EntryPoint("lab", "lab:Plugin", services.PLUGIN_GROUP)
    monkeypatch.setattr(services, "entry_points", lambda group: [point])
    assert get_atlas("OTHER") is entry
    assert list_atlases(source="lab") == [entry]
    with pytest.raises(SourceUnavailable, match="closed"):
        fetch_parcellation("other", source="lab")


def test_siibra_is_not_asked_by_surprise(monkeypatch):
    monkeypatch.setattr(
        "lacuna_nipype.atlases.siibra.SiibraSource.entries",
        lambda self: pytest.fail("siibra was asked"),
    )
    list_atlases(find="julich")
    with pytest.raises(AtlasNotFound):
        get_atlas("julich")


# Datasets


def test_files_of_a_dataset_stay_where_they_are(dataset, data_dir):
    finest = fetch_parcellation("x", datasets=[dataset])
    assert finest.image == dataset / f"tpl-{NLIN6}" / f"tpl-{NLIN6}_atlas-X_res-01_dseg.nii.gz"
    assert finest.labels.name == f"tpl-{NLIN6}_atlas-X_dseg.tsv"
    assert (finest.resolution, finest.entry.resolutions) == (1.0, (1.0, 2.0))
    assert finest.metadata.name == "atlas-X_description.json"
    coarse = fetch_parcellation("X", resolution=2, datasets={"name": dataset})
    assert coarse.metadata.name == f"tpl-{NLIN6}_atlas-X_res-02_dseg.json"
    assert coarse.sha256 != finest.sha256
    assert not (data_dir / "atlases").exists()
    with pytest.raises(ValidationError, match="1, 2 mm"):
        fetch_parcellation("X", resolution=3, datasets=[dataset])


def test_a_dataset_whose_image_is_in_another_space(dataset, write_labels):
    path = dataset / f"tpl-{NLIN6}" / f"tpl-{NLIN6}_atlas-X_res-02_dseg.nii.gz"
    write_labels(path, NLIN2009C, 2, [1, 2])
    with pytest.raises(SpatialMismatchError, match=path.name):
        fetch_parcellation("X", resolution=2, datasets=[dataset])


# Regions


def test_regions_have_centroids_in_mm(registered):
    table = list_regions("mine")
    assert table.columns.tolist() == [
        "index", "name", "hemisphere", "network", "color", "x", "y", "z", "volume_mm3",
    ]  # fmt: skip
    assert table["hemisphere"].tolist() == ["left", "right", ""]
    # Ten voxels of 2 mm along z, from the first voxel of FSL's grid at (-90, -126, -72).
    np.testing.assert_allclose(table["x"], -90)
    np.testing.assert_allclose(table["z"], [-72 + 2 * 4.5, -72 + 2 * 14.5, -72 + 2 * 24.5])
    np.testing.assert_allclose(table["volume_mm3"], 80)
    assert list_regions("mine", "VIS")["index"].tolist() == [1, 2]
    assert list_regions("mine", "nothing").empty


def test_regions_of_probabilities_are_weighted(tmp_path, write_image):
    data = np.zeros((4, 4, 4, 2), np.float32)
    data[0, 1, 2, 0], data[3, 1, 2, 0] = 1, 3
    data[1, 1, 1, 1] = 0.5
    image = write_image(tmp_path / "p.nii.gz", data)
    # The table lists the second volume first.
    labels = tmp_path / "p.tsv"
    labels.write_text("index\tname\tnetwork\n2\tsecond\tn/a\n1\tfirst\tDefault\n")
    register_atlas("P", image, labels, NLIN6)
    table = list_regions("P").set_index("name")
    assert table.loc["first", "network"] == "Default"
    assert table.loc["second", "network"] == ""
    np.testing.assert_allclose(
        table.loc["first", ["x", "y", "z"]].astype(float), [2 * 9 / 4, 2, 4]
    )
    np.testing.assert_allclose(table.loc["second", ["x", "y", "z"]].astype(float), [2, 2, 2])
    np.testing.assert_allclose(table["volume_mm3"][["first", "second"]], [32, 4])
    mask = region_mask("P", "first", threshold=1)
    assert np.argwhere(np.asanyarray(mask.dataobj)).tolist() == [[3, 1, 2]]
    with pytest.raises(ValidationError, match="lower the threshold"):
        region_mask("P", ["second"], threshold=0.5)


def test_masks_of_regions(registered):
    original = np.asanyarray(nb.load(fetch_parcellation("Mine").image).dataobj)
    mask = region_mask("mine", ["vis_l", 3])
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(np.asanyarray(mask.dataobj), np.isin(original, [1, 3]))
    with pytest.raises(AtlasNotFound, match="Vis_L"):
        region_mask("mine", "Vis_LL")
    with pytest.raises(ValidationError, match="No region"):
        region_mask("mine", [])


def test_a_region_is_fetched_as_a_mask(registered, data_dir):
    found = fetch_parcellation("Mine", region="VIS_R")
    assert not found.from_cache
    original = np.asanyarray(nb.load(fetch_parcellation("Mine").image).dataobj)
    assert np.array_equal(np.asanyarray(nb.load(found.image).dataobj), original == 2)
    assert pd.read_csv(found.labels, sep="\t").to_dict("list") == {"index": [1], "name": ["Vis_R"]}
    again = fetch_parcellation("Mine", region="vis_r", offline=True, verify=True)
    assert again.from_cache
    assert again.image == found.image
    assert fetch_parcellation("Mine", region="Stem").image != found.image
    # Masks are no atlases of the user's.
    assert list_atlases(source="user") == [registered]
    with pytest.raises(AtlasNotFound, match="Vis_R"):
        fetch_parcellation("Mine", region="Vis")
    with pytest.raises(ValidationError, match="siibra"):
        fetch_parcellation("Mine", statistical="Stem")
    with pytest.raises(ValidationError, match="not both"):
        fetch_parcellation("Mine", region="Stem", statistical="Stem")


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("7Networks_LH_Vis_1", "left"), ("HIP-rh", "right"), ("Left-Thalamus", "left"),
        ("Area 3b (PostCG) right", "right"), ("Arcuate_Fasciculus_L", "left"),
        ("Brain-Stem", ""), ("left to right fibres", ""), ("Broca l", ""), ("Lobule VI", ""),
    ],
)  # fmt: skip
def test_sides_in_names(name, side):
    assert side_of(name) == side


# Facts


def test_map_info_against_numpy(tmp_path, write_image):
    rng = np.random.default_rng(1)
    data = rng.normal(size=(5, 6, 7)).astype(np.float32)
    data[0, 0, :3] = [np.nan, np.inf, 0]
    path = write_image(tmp_path / "m.nii.gz", data)
    found = map_info(path)
    finite = data[np.isfinite(data)].astype(np.float64)
    assert found["min"] == finite.min()
    assert found["max"] == finite.max()
    assert found["mean"] == pytest.approx(finite.mean())
    assert (found["n_voxels"], found["n_nan"], found["n_infinite"]) == (210, 1, 1)
    assert found["n_nonzero"] == np.count_nonzero(finite)
    assert (found["shape"], found["voxel_size"]) == ([5, 6, 7], [2.0, 2.0, 2.0])
    assert (found["dtype"], found["labels"]) == ("float32", None)


def test_map_info_of_labels_and_volumes(tmp_path, write_image):
    data = np.zeros((3, 3, 3), np.float32)
    data[0, 0] = [300, 2, 2]
    assert map_info(write_image(tmp_path / "l.nii", data))["labels"] == [2, 300]
    data[0, 0] = -1
    assert map_info(write_image(tmp_path / "n.nii", data))["labels"] is None
    four = map_info(write_image(tmp_path / "f.nii", np.stack([data, data + 3], -1)))
    assert (four["labels"], four["max"], four["shape"]) == (None, 3.0, [3, 3, 3, 2])
    data[:] = np.nan
    empty = map_info(write_image(tmp_path / "e.nii", data))
    assert (empty["min"], empty["mean"], empty["n_nan"]) == (None, None, 27)
    with pytest.raises(ValidationError, match="does not exist"):
        map_info(tmp_path / "none.nii")


# Runs


def test_atlases_of_a_run(registered, dataset):
    found = find_run_atlases(["x", "mine", "X", ID], NLIN6, datasets=[dataset])
    assert [atlas.id for atlas in found] == ["X", "Mine", "Schaefer2018_seg-7n_scale-100"]
    assert found[2].entities == {"atlas": "Schaefer2018", "segmentation": "7n", "scale": "100"}
    assert found[0].image.name == f"tpl-{NLIN6}_atlas-X_res-01_dseg.nii.gz"
    # One in another space is warped.
    assert find_run_atlases(["mine"], NLIN2009C)[0].space == NLIN6
    assert find_run_atlases(["mine"], None)[0].space == NLIN6


def test_all_misspelt_ids_are_told_before_anything_is_fetched(registered, monkeypatch):
    monkeypatch.setattr(services, "_run_atlas", lambda *words: pytest.fail("fetched"))
    with pytest.raises(AtlasNotFound) as caught:
        find_run_atlases(["Mine", "Mime", "schaefer100"], NLIN6)
    for text in ("'Mime'", "Mine", "'schaefer100'"):
        assert text in str(caught.value)


def test_a_run_prefers_its_space_and_does_not_download():
    for space in (NLIN6, NLIN2009C):
        with pytest.raises(SourceUnavailable, match=f"atlas fetch {ID} --space {space}"):
            find_run_atlases([ID], space)
    with pytest.raises(SourceUnavailable, match=f"--space {NLIN2009C}"):
        find_run_atlases([ID], "MNI152NLin2009aAsym")
