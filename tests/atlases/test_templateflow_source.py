"""TemplateFlow's atlases: the shipped list against the real client, and fetching offline."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading

import nibabel as nb
import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.atlases import (
    IntegrityError,
    SourceUnavailable,
    fetch_parcellation,
    find_run_atlases,
    get_atlas,
    list_atlases,
    list_regions,
)
from lacuna_nipype.atlases.catalogue import atlas_description, check_atlas
from lacuna_nipype.atlases.parcels import load_parcels
from lacuna_nipype.atlases.templateflow import TemplateFlowSource
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.spaces import template_grid
from lacuna_nipype.data import load_json

NLIN6, NLIN2009C = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
SCHAEFER = "atlas-Schaefer2018_desc-100Parcels7Networks"
SIDES = {"LH": "left", "RH": "right"}


def client(script, home):
    """Run a script with the real client in a process of its own, which sees no network."""
    prelude = (
        "import socket\n"
        "real = socket.socket.connect\n"
        "def connect(self, address):\n"
        "    assert address[0] == '127.0.0.1', f'network: {address}'\n"
        "    return real(self, address)\n"
        "socket.socket.connect = connect\n"
    )
    environment = {
        **os.environ, "TEMPLATEFLOW_HOME": str(home), "PYTHONPATH": ":".join(sys.path)
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", prelude + script], env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory):
    """A home that the real client filled with its list of files, and what it lists."""
    home = tmp_path_factory.mktemp("skeleton") / "home"
    lines = client(
        "from templateflow import api\n"
        f"for space in ('{NLIN6}', '{NLIN2009C}'):\n"
        "    for suffix in ('dseg', 'probseg'):\n"
        "        for path in api.ls(space, suffix=suffix): print('file', path.name)\n",
        home,
    )
    return home, {line.split()[1] for line in lines if line.startswith("file ")}


@pytest.fixture
def home(data_dir, tmp_path):
    return tmp_path / "templateflow"


@pytest.fixture
def schaefer(home, write_labels):
    """Schaefer's 100 parcels at 2 mm and their table, as TemplateFlow stores them."""
    folder = home / f"tpl-{NLIN6}"
    image = write_labels(
        folder / f"tpl-{NLIN6}_res-02_{SCHAEFER}_dseg.nii.gz", NLIN6, 2, range(1, 101)
    )
    names = [f"7Networks_{'LH' if n <= 50 else 'RH'}_Vis_{n}" for n in range(1, 101)]
    table = pd.DataFrame({"index": range(1, 101), "name": names, "color": "#781283"})
    table.to_csv(folder / f"tpl-{NLIN6}_{SCHAEFER}_dseg.tsv", sep="\t", index=False)
    return image


# The list


def test_every_file_of_the_list_is_one_of_the_clients(skeleton):
    listed = set()
    catalogue = load_json("templateflow_atlases.json")
    for row in catalogue["atlases"]:
        for space, numbers in row["spaces"].items():
            listed |= {row["image"].format(space=space, res=number) for number in numbers}
            if row["table"]:
                listed.add(row["table"].format(space=space))
    assert listed <= skeleton[1]
    # And the other way round: no image of an atlas is left out.
    images = {name for name in skeleton[1] if name.endswith(".nii.gz") and "_atlas-" in name}
    assert images <= listed


def test_voxel_sizes_are_those_of_templateflow(skeleton):
    for space, sizes in load_json("templateflow_atlases.json")["voxel_sizes"].items():
        path = skeleton[0] / f"tpl-{space}" / "template_description.json"
        described = json.loads(path.read_text())["res"]
        assert {number: described[number]["zooms"] for number in sizes} == {
            number: [size] * 3 for number, size in sizes.items()
        }


def test_tables_of_the_client_give_as_many_regions_as_the_list_says(skeleton):
    from lacuna_nipype.atlases.templateflow import make_table

    home = skeleton[0]
    tested = 0
    for row in load_json("templateflow_atlases.json")["atlases"]:
        for space in row["spaces"] if row["table"] else ():
            name = row["table"].format(space=space)
            table = make_table(row, home / name.split("_")[0] / name)
            assert len(table) == row["n_regions"], row["id"]
            assert table["index"].tolist() == list(range(1, len(table) + 1))
            assert table["name"].is_unique
            assert (table["name"].str.strip() == table["name"]).all()
            tested += 1
    # All but HCP and aseg, whose names are FreeSurfer's.
    assert tested == 67


def test_both_sides_agree_with_the_rows_that_templateflow_has(skeleton):
    from lacuna_nipype.atlases.templateflow import make_table

    folder = skeleton[0] / f"tpl-{NLIN6}"
    row = next(
        row
        for row in load_json("templateflow_atlases.json")["atlases"]
        if row["id"] == "hocpalth0"
    )
    ours = make_table(row, folder / f"tpl-{NLIN6}_atlas-HOCPA_dseg.tsv").set_index("index")
    theirs = pd.read_csv(folder / f"tpl-{NLIN6}_atlas-HOCPAL_dseg.tsv", sep="\t")
    assert len(theirs) == 52
    # Theirs counts from 0.
    assert ours["name"][theirs["index"] + 1].tolist() == theirs["name"].str.strip().tolist()


def test_ids_aliases_and_entities():
    entry = get_atlas("schaefer2018parcels100networks7", NLIN6)
    assert entry.entities == {"atlas": "Schaefer2018", "seg": "7n", "scale": "100"}
    assert (entry.n_regions, entry.resolutions, entry.kind) == (100, (1.0, 2.0), "labelled")
    assert get_atlas("Schaefer2018_100Parcels7Networks", "FSL") == entry
    assert get_atlas("hcp").resolutions == (1.6, 2.0)
    assert "10.1093/cercor/bhx179" in entry.citation
    entries = list(TemplateFlowSource().entries())
    assert len({(entry.id, entry.space) for entry in entries}) == len(entries) == 69
    schaefer = [entry for entry in entries if entry.entities["atlas"] == "Schaefer2018"]
    assert {(e.entities["scale"], e.entities["seg"]) for e in schaefer} == {
        (str(scale), seg)
        for scale in (100, 200, 300, 400, 500, 600, 800, 1000)
        for seg in ("7n", "17n")
    }
    names = [name.lower() for entry in schaefer for name in (entry.id, *entry.aliases)]
    assert len(set(names)) == len(names) / 2
    # Files of different atlases never share a name.
    keys = {(e.id, e.kind): (*sorted(e.entities.items()), e.kind) for e in entries}
    assert len(set(keys.values())) == len(keys)


def test_listing_imports_no_client_and_touches_no_folder(tmp_path):
    lines = client(
        "import sys\n"
        "from lacuna_nipype.atlases import list_atlases\n"
        "found = list_atlases(find='schaefer')\n"
        "print(len(found), 'templateflow' in sys.modules, 'requests' in sys.modules,\n"
        "      'bids' in sys.modules)\n",
        tmp_path / "none",
    )
    assert lines == ["32 False False False"]
    assert not (tmp_path / "none").exists()


# Fetching


def test_a_file_that_is_there_is_served_offline(schaefer, data_dir):
    found = fetch_parcellation(
        "Schaefer2018_100Parcels7Networks", NLIN6, resolution=2, offline=True
    )
    assert not found.from_cache
    stem = f"tpl-{NLIN6}_atlas-Schaefer2018_seg-7n_scale-100_res-2_dseg"
    assert found.image == data_dir / "atlases" / "templateflow" / f"tpl-{NLIN6}" / f"{stem}.nii.gz"
    assert found.image.read_bytes() == schaefer.read_bytes()
    table = pd.read_csv(found.labels, sep="\t")
    assert table["index"].tolist() == list(range(1, 101))
    assert table.columns.tolist() == ["index", "name", "color"]
    content = json.loads(found.metadata.read_text())
    assert content["URL"].endswith(f"/tpl-{NLIN6}/{schaefer.name}")
    assert content["License"] == "MIT"
    assert (content["MapInfo"]["max"], len(content["MapInfo"]["labels"])) == (100, 100)
    # From then on TemplateFlow's folder is not needed.
    schaefer.unlink()
    again = fetch_parcellation(found.entry.id, NLIN6, 2, offline=True, verify=True)
    assert again.from_cache
    assert again.sha256 == found.sha256
    with pytest.raises(SourceUnavailable):
        fetch_parcellation(found.entry.id, NLIN6, 2, offline=True, refresh=True)
    assert fetch_parcellation(found.entry.id, NLIN6, 2, offline=True).sha256 == found.sha256
    regions = list_regions(found.entry.id, "_vis_7", NLIN6, resolution=2, offline=True)
    assert regions["name"].tolist() == [
        f"7Networks_{'LH' if n <= 50 else 'RH'}_Vis_{n}" for n in (7, *range(70, 80))
    ]
    assert regions["network"].unique().tolist() == ["Vis"]
    assert regions["hemisphere"].tolist() == [SIDES[name[10:12]] for name in regions["name"]]


@pytest.mark.parametrize("state", ["missing", "empty"])
def test_offline_without_the_file(schaefer, state):
    if state == "empty":
        schaefer.write_bytes(b"")
    else:
        schaefer.unlink()
    with pytest.raises(SourceUnavailable) as caught:
        fetch_parcellation("schaefer2018parcels100networks7", NLIN6, 2, offline=True)
    assert f"tpl-{NLIN6}/{schaefer.name}" in str(caught.value)
    command = f"lacuna-nipype atlas fetch schaefer2018parcels100networks7 --space {NLIN6}"
    assert command in str(caught.value)


def test_a_truncated_file_is_refused_and_nothing_is_kept(schaefer, data_dir):
    schaefer.write_bytes(schaefer.read_bytes()[:-300])
    with pytest.raises(IntegrityError, match="remove it") as caught:
        fetch_parcellation("schaefer2018parcels100networks7", NLIN6, 2, offline=True)
    assert schaefer.name in str(caught.value)
    assert not list(data_dir.rglob("*.nii.gz"))


def test_an_image_of_another_space_is_refused(schaefer, write_labels):
    write_labels(schaefer, NLIN2009C, 2, range(1, 101))
    with pytest.raises(SpatialMismatchError, match=NLIN2009C):
        fetch_parcellation("schaefer2018parcels100networks7", NLIN6, 2, offline=True)


def test_a_voxel_size_that_there_is_none_of(schaefer):
    with pytest.raises(ValidationError, match="1, 2 mm"):
        fetch_parcellation("schaefer2018parcels100networks7", NLIN6, 3, offline=True)


def test_harvard_oxford_in_2009c_borrows_the_table(home, write_labels):
    write_labels(
        home / f"tpl-{NLIN2009C}" / f"tpl-{NLIN2009C}_res-02_atlas-HOSPA_desc-th25_dseg.nii.gz",
        NLIN2009C, 2, range(1, 22),
    )  # fmt: skip
    table = home / f"tpl-{NLIN6}" / f"tpl-{NLIN6}_atlas-HOSPA_dseg.tsv"
    table.parent.mkdir()
    rows = ["0\tBackground\t", *(f"{n}\tRegion {n} \t1, 2, 3" for n in range(1, 22))]
    table.write_text("index\tname\txyz\n" + "\n".join(rows) + "\n")
    found = fetch_parcellation("hospath25", NLIN2009C, 2, offline=True)
    names = pd.read_csv(found.labels, sep="\t")
    assert names["name"].tolist() == [f"Region {n}" for n in range(1, 22)]
    table.unlink()
    with pytest.raises(SourceUnavailable, match=re.escape(table.name)):
        fetch_parcellation("hospath25", NLIN2009C, 2, offline=True, refresh=True)


def test_freesurfers_numbers_name_the_regions_of_hcp(home, write_labels):
    labels = [8, 10, 11, 12, 13, 16, 17, 18, 26, 28, 47, 49, 50, 51, 52, 53, 54, 58, 60]
    path = home / f"tpl-{NLIN6}" / f"tpl-{NLIN6}_res-02_atlas-HCP_dseg.nii.gz"
    write_labels(path, NLIN6, 2, labels)
    found = fetch_parcellation("hcp", resolution=2, offline=True)
    table = pd.read_csv(found.labels, sep="\t")
    assert table["index"].tolist() == labels
    named = table.set_index("index")["name"]
    assert (named[17], named[53], named[16]) == (
        "Left-Hippocampus", "Right-Hippocampus", "Brain-Stem",
    )  # fmt: skip
    assert found.entry.n_regions == 19
    write_labels(path, NLIN6, 2, [17, 19])
    with pytest.raises(IntegrityError, match="19"):
        fetch_parcellation("hcp", resolution=2, offline=True, refresh=True)


def test_probabilities_of_difumo(home, write_image):
    grid = template_grid(NLIN6, 2)
    data = np.zeros((*grid.shape, 64), np.uint8)
    for number in range(64):
        data[number, 0, 0, number] = 1
    folder = home / f"tpl-{NLIN6}"
    stem = "atlas-DiFuMo_desc-64dimensions_probseg"
    write_image(folder / f"tpl-{NLIN6}_res-02_{stem}.nii.gz", data, grid.affine)
    rows = "".join(f"{n}\tArea\tNo network found\t0.5\n" for n in range(1, 65))
    (folder / f"tpl-{NLIN6}_{stem}.tsv").write_text(
        f"Component\tDifumo_names\tYeo_networks7\tGM\n{rows}"
    )
    found = fetch_parcellation("difumodimensions64", NLIN6, offline=True)
    assert (found.entry.kind, found.resolution) == ("probabilistic", 2.0)
    table = pd.read_csv(found.labels, sep="\t")
    # One name for several components becomes one for each.
    assert table["name"].tolist() == [f"Area {n}" for n in range(1, 65)]
    write_image(folder / f"tpl-{NLIN6}_res-02_{stem}.nii.gz", data * 0, grid.affine)
    with pytest.raises(IntegrityError, match="no value above zero"):
        fetch_parcellation("difumodimensions64", NLIN6, offline=True, refresh=True)


# The real client


def test_the_real_client_brings_the_table_without_a_network(schaefer, home):
    """A home with the image alone: the client completes it from the list that it ships."""
    (schaefer.parent / f"tpl-{NLIN6}_{SCHAEFER}_dseg.tsv").unlink()
    script = (
        "import sys\n"
        "from lacuna_nipype.atlases import fetch_parcellation\n"
        f"found = fetch_parcellation('schaefer2018parcels100networks7', '{NLIN6}', 2)\n"
        "print('templateflow' in sys.modules, found.from_cache, found.labels)\n"
    )
    words = client(script, home)[-1].split()
    assert words[:2] == ["True", "False"]
    table = pd.read_csv(words[2], sep="\t")
    assert (len(table), table["name"][0]) == (100, "7Networks_LH_Vis_1")
    # And serves it offline from then on; its own list finds the file by our query.
    found = fetch_parcellation(
        "schaefer2018parcels100networks7", NLIN6, 2, offline=True, refresh=True
    )
    assert not found.from_cache
    lines = client(
        "from templateflow import api\n"
        f"print(api.get('{NLIN6}', resolution=2, atlas='Schaefer2018', suffix='dseg',\n"
        "    desc='100Parcels7Networks', extension='.nii.gz'))\n",
        home,
    )
    assert lines[-1] == str(schaefer)


@pytest.fixture
def server(tmp_path):
    """Serve a folder as TemplateFlow's bucket; 404 for what is not there."""
    folder = tmp_path / "bucket"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *words):
            super().__init__(*words, directory=str(folder))

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_the_real_client_downloads_what_is_missing(schaefer, home, server):
    bucket, url = server
    target = bucket / f"tpl-{NLIN6}" / schaefer.name
    target.parent.mkdir()
    content = schaefer.read_bytes()
    target.write_bytes(content)
    schaefer.write_bytes(b"")
    script = (
        "from templateflow import conf\n"
        f"conf._cache.config.s3_root = '{url}'\n"
        "from lacuna_nipype.atlases import fetch_parcellation\n"
        "from lacuna_nipype.core.exceptions import LacunaError\n"
        "try:\n"
        f"    found = fetch_parcellation('schaefer2018parcels100networks7', '{NLIN6}', 2)\n"
        "    print(found.sha256)\n"
        "except LacunaError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    target.rename(target.with_suffix(".hidden"))
    line = client(script, home)[-1]
    assert line.startswith("SourceUnavailable")
    assert "atlas fetch" in line
    assert schaefer.stat().st_size == 0
    target.with_suffix(".hidden").rename(target)
    digest = client(script, home)[-1]
    assert schaefer.read_bytes() == content
    assert (
        digest
        == fetch_parcellation("schaefer2018parcels100networks7", NLIN6, 2, offline=True).sha256
    )
    assert nb.load(schaefer).shape == (91, 109, 91)


def test_the_source_lists_what_list_atlases_lists():
    assert {e.id for e in list_atlases(source="templateflow")} == {
        e.id for e in TemplateFlowSource().entries()
    }


def test_a_run_uses_it_by_id(schaefer, write_labels):
    table = schaefer.parent / f"tpl-{NLIN6}_{SCHAEFER}_dseg.tsv"
    # A run takes the finest voxels; those of 1 mm are not there.
    with pytest.raises(SourceUnavailable, match="res-01"):
        find_run_atlases(["Schaefer2018_100Parcels7Networks"], NLIN6)
    finest = schaefer.with_name(schaefer.name.replace("res-02", "res-01"))
    schaefer.rename(finest)
    with pytest.raises(IntegrityError, match="no voxels of 1 mm"):
        find_run_atlases(["Schaefer2018_100Parcels7Networks"], NLIN6)
    write_labels(finest, NLIN6, 1, range(1, 101))
    (atlas,) = find_run_atlases(["Schaefer2018_100Parcels7Networks"], NLIN6)
    assert atlas.entities == {"atlas": "Schaefer2018", "segmentation": "7n", "scale": "100"}
    check_atlas(atlas)
    assert load_parcels(atlas.image, atlas.labels).names == tuple(
        pd.read_csv(table, sep="\t")["name"]
    )
    described = atlas_description(atlas)
    assert described["License"] == "MIT"
    assert "Schaefer" in described["Citation"]
