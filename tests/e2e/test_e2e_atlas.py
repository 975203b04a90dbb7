"""``lacuna-nipype atlas``: every command as a process, on TemplateFlow's layout, atlases of one's
own, datasets, and a server that answers as siibra-api v3 does.

Tests named ``test_row_NN`` belong to what that service offers, as in ``tests/atlases``.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from loopback import truncate

import lacuna_nipype
from lacuna_nipype.core.spaces import template_grid


def load_server():
    """The module beside the folders of the tests, which other tests may have loaded."""
    if "siibra_server" not in sys.modules:
        path = Path(__file__).parents[1] / "siibra_server.py"
        spec = importlib.util.spec_from_file_location("siibra_server", path)
        sys.modules["siibra_server"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["siibra_server"])
    return sys.modules["siibra_server"]


siibra = load_server()
OK, FAILED, USAGE, PARTIAL = 0, 1, 2, 3
SPACE, OTHER = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
SCHAEFER = "schaefer2018parcels100networks7"
STEM = f"tpl-{SPACE}_atlas-Schaefer2018_seg-7n_scale-100_res-2_dseg"
JULICH = "siibra:julichbrain31"
LEAVES = [f"{area} - {side}" for side in siibra.SIDES for area in siibra.AREAS]
# With a slash, a percent sign and parentheses.
ODD_REGION = "Fo5/6 100% (OFC) - left hemisphere"
DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None


def start(*words):
    checkout = str(Path(lacuna_nipype.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "lacuna_nipype", "atlas", *map(str, words)],
        env={**os.environ, "PYTHONPATH": checkout}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, code):
    """Both streams of a command that ends with a code."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return out, err


def run(*words):
    return finish(start(*words), OK)[0]


def read(*words, code=OK):
    """What a command prints as JSON; nothing else is on its output."""
    return json.loads(finish(start(*words, "--json"), code)[0])


def fail(*words, code):
    """The one sentence of a command that fails."""
    out, err = finish(start(*words), code)
    assert out == ""
    return err


def voxels(path):
    return np.asanyarray(nb.load(path).dataobj)


def save(path, data, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nb.Nifti1Image(data, affine)
    image.set_sform(affine, 4)
    nb.save(image, path)
    return path


def blocks(shape, labels, dtype=np.int16):
    """Ten voxels for each label."""
    data = np.zeros(shape, dtype)
    for number, label in enumerate(labels):
        data.reshape(-1)[10 * number : 10 * number + 10] = label
    return data


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """TemplateFlow's folder, empty, and no service unless a test starts one."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    monkeypatch.setenv("LACUNA_SIIBRA_URL", "http://127.0.0.1:9/v3_0")
    return tmp_path / "templateflow"


@pytest.fixture
def schaefer(home):
    """Schaefer's 100 parcels at 2 mm, their table, and the template, in TemplateFlow's layout."""
    folder, grid = home / f"tpl-{SPACE}", template_grid(SPACE, 2)
    name = "atlas-Schaefer2018_desc-100Parcels7Networks_dseg"
    image = save(
        folder / f"tpl-{SPACE}_res-02_{name}.nii.gz",
        blocks(grid.shape, range(1, 101)),
        grid.affine,
    )
    rows = [f"{n}\t7Networks_{'LH' if n <= 50 else 'RH'}_Vis_{n}\t#781283" for n in range(1, 101)]
    table = folder / f"tpl-{SPACE}_{name}.tsv"
    table.write_text("\n".join(["index\tname\tcolor", *rows]) + "\n")
    save(folder / f"tpl-{SPACE}_res-02_T1w.nii.gz", np.ones(grid.shape, np.uint8), grid.affine)
    return image


@pytest.fixture
def mine(tmp_path):
    """Image and names of three regions, the last one above 255."""
    grid = template_grid(SPACE, 2)
    image = save(tmp_path / "mine.nii.gz", blocks(grid.shape, [1, 2, 300]), grid.affine)
    labels = tmp_path / "mine.tsv"
    labels.write_text("index\tname\n1\tThing left\n2\tThing right\n300\tStem\n")
    return image, labels


@pytest.fixture
def server(monkeypatch):
    with siibra.SiibraServer() as running:
        monkeypatch.setenv("LACUNA_SIIBRA_URL", running.url)
        yield running


def read_zip(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


# list, show, spaces: from what is shipped


def test_list_without_network_or_files(home):
    entries = read("list")
    assert {entry["source"] for entry in entries} == {"templateflow"}
    names = {(entry["id"], entry["space"]) for entry in entries}
    assert {(SCHAEFER, SPACE), (SCHAEFER, OTHER), ("hcp", SPACE)} <= names
    assert len(names) == len(entries)
    assert not home.exists()
    found = read("list", "--space", "FSL", "--kind", "probabilistic", "--find", "DIFUMO")
    assert {entry["entities"]["atlas"] for entry in found} == {"DiFuMo"}
    assert {entry["space"] for entry in found} == {SPACE}
    lines = run("list", "--find", "1000Parcels").splitlines()
    assert lines[0].split()[:2] == ["id", "space"]
    assert len(lines) == 1 + 4
    assert run("list", "--find", "nothing-like-it").strip() == "There is no such atlas."
    assert read("list", "--find", "nothing-like-it") == []


def test_show_by_id_and_alias():
    entries = read("show", SCHAEFER.upper())
    assert {entry["space"] for entry in entries} == {SPACE, OTHER}
    (entry,) = read("show", "Schaefer2018_100Parcels7Networks", "--space", "MNI152")
    assert (entry["id"], entry["space"], entry["n_regions"]) == (SCHAEFER, SPACE, 100)
    assert entry["entities"] == {"atlas": "Schaefer2018", "seg": "7n", "scale": "100"}
    text = run("show", SCHAEFER)
    assert SPACE in text
    assert OTHER in text
    assert "10.1093/cercor/bhx179" in text


def test_what_is_not_known():
    assert SCHAEFER in fail("show", "schaefer2018parcel100networks7", code=USAGE)
    assert OTHER in fail("fetch", SCHAEFER, code=USAGE)
    assert SPACE in fail("fetch", "hcp", "--space", OTHER, code=USAGE)
    assert "templateflow" in fail("list", "--source", "nowhere", code=USAGE)
    fail("list", "--space", "nowhere", code=USAGE)
    fail("fetch", SCHAEFER, "--space", SPACE, "--resolution", "5", code=USAGE)
    for words in ([], ["lst"], ["show"], ["list", "--sp", "FSL"], ["register", "a", "b", "c"]):
        assert "usage:" in fail(*words, code=USAGE)


def test_spaces():
    spaces = {space["name"]: space for space in read("spaces")}
    assert "FSL" in spaces[SPACE]["aliases"]
    assert spaces[OTHER]["siibra_id"] == siibra.ICBM_2009C
    assert [spaces[name]["usable"] for name in (SPACE, OTHER, "fsaverage")] == [True, True, False]
    assert SPACE in run("spaces")


def test_reader_that_has_seen_enough(tmp_path, mine):
    """More lines than a pipe holds, read by nobody."""
    grid = template_grid(SPACE, 2)
    image = save(tmp_path / "big.nii.gz", blocks(grid.shape, range(1, 3001)), grid.affine)
    labels = tmp_path / "big.txt"
    labels.write_text("".join(f"A rather long name of region {n}\n" for n in range(1, 3001)))
    run("register", "Big", image, labels, "--space", SPACE)
    process = start("regions", "Big")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == OK
    process.stderr.close()


# TemplateFlow


def test_templateflow_offline(schaefer, data_folder):
    words = ("fetch", SCHAEFER, "--space", SPACE, "--resolution", 2, "--offline")
    files = read(*words)
    assert not files["from_cache"]
    image = Path(files["image"])
    assert data_folder in image.parents
    assert image.name == f"{STEM}.nii.gz"
    # What the real client gives from the same folder.
    script = (
        "import os; os.environ['TEMPLATEFLOW_AUTOUPDATE'] = 'off'\n"
        "from templateflow import api\n"
        f"print(api.get('{SPACE}', atlas='Schaefer2018', desc='100Parcels7Networks',"
        " resolution=2, suffix='dseg', extension='.nii.gz'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert Path(done.stdout.strip().splitlines()[-1]) == schaefer
    assert image.read_bytes() == schaefer.read_bytes()
    assert files["sha256"] == hashlib.sha256(schaefer.read_bytes()).hexdigest()
    assert set(pd.read_csv(files["labels"], sep="\t")["index"]) == set(range(1, 101))
    # The cache needs TemplateFlow's folder no more.
    schaefer.unlink()
    assert read(*words) == {**files, "from_cache": True}
    assert f"Image: {image}" in run(*words)


def test_templateflow_without_the_file(home, schaefer):
    words = ("fetch", SCHAEFER, "--space", SPACE, "--resolution", 2, "--offline")
    size = schaefer.stat().st_size
    # As the client leaves a file that was not fetched.
    os.truncate(schaefer, 0)
    sentence = fail(*words, code=FAILED)
    assert schaefer.name in sentence
    assert f"lacuna-nipype atlas fetch {SCHAEFER} --space {SPACE}" in sentence
    os.truncate(schaefer, size)
    assert schaefer.name in fail(*words, code=FAILED)


def test_cache_is_checked(schaefer):
    words = ("fetch", SCHAEFER, "--space", SPACE, "--resolution", 2, "--offline")
    image = Path(read(*words)["image"])
    content = image.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 255
    image.write_bytes(changed)
    assert "--refresh" in fail(*words, "--verify", code=FAILED)
    assert not read(*words, "--refresh")["from_cache"]
    assert image.read_bytes() == content
    image.write_bytes(content[:-5])
    assert not read(*words)["from_cache"]
    assert image.read_bytes() == content


def test_regions_of_a_local_atlas(schaefer, tmp_path):
    out = tmp_path / "regions.tsv"
    words = ("regions", SCHAEFER, "--space", SPACE, "--resolution", 2, "--offline")
    rows = read(*words)
    table = pd.DataFrame(rows)
    assert table["index"].tolist() == list(range(1, 101))
    assert table["hemisphere"].tolist() == ["left"] * 50 + ["right"] * 50
    assert table["volume_mm3"].tolist() == [80] * 100
    affine, data = nb.load(schaefer).affine, voxels(schaefer)
    for label in (1, 37, 100):
        expected = affine[:3, :3] @ np.argwhere(data == label).mean(axis=0) + affine[:3, 3]
        assert table.loc[label - 1, ["x", "y", "z"]].tolist() == pytest.approx(expected.tolist())
    assert [row["name"] for row in read(*words, "--find", "vis_10")] == [
        "7Networks_LH_Vis_10", "7Networks_RH_Vis_100"
    ]  # fmt: skip
    run(*words, "--tsv", out)
    assert pd.read_csv(out, sep="\t")["name"].tolist() == table["name"].tolist()
    assert "--overwrite" in fail(*words, "--tsv", out, code=USAGE)
    lines = run(*words).splitlines()
    assert len(lines) == 101
    assert lines[0].split() == list(table.columns)


# Atlases of one's own


def test_registered_atlas(mine, tmp_path):
    image, labels = mine
    entry = read(
        "register", "Mine", image, labels, "--space", "FSL", "--license", "CC0", "--citation", "Me"
    )
    assert (entry["id"], entry["space"], entry["n_regions"]) == ("Mine", SPACE, 3)
    assert [e["id"] for e in read("list", "--source", "user")] == ["Mine"]
    # The registry keeps copies.
    content = image.read_bytes()
    image.unlink()
    labels.unlink()
    files = read("fetch", "mine")
    assert Path(files["image"]).read_bytes() == content
    mask = read("fetch", "mine", "--region", "stem")
    np.testing.assert_array_equal(voxels(mask["image"]), voxels(files["image"]) == 300)
    assert "Stem" in fail("fetch", "mine", "--region", "Sten", code=USAGE)
    assert "siibra" in fail("fetch", "mine", "--statistical", "Stem", code=USAGE)
    assert [row["name"] for row in read("regions", "Mine")] == [
        "Thing left", "Thing right", "Stem"
    ]  # fmt: skip
    assert [entry["id"] for entry in read("unregister", "MINE")] == ["Mine"]
    assert read("list", "--source", "user") == []
    fail("unregister", "Mine", code=USAGE)
    fail("fetch", "Mine", code=USAGE)


def test_registered_name_wins_and_is_not_replaced_by_chance(mine, schaefer):
    image, labels = mine
    words = ("register", SCHAEFER, image, labels, "--space", SPACE)
    run(*words)
    assert read("fetch", SCHAEFER)["entry"]["source"] == "user"
    files = read("fetch", SCHAEFER, "--source", "templateflow", "--space", SPACE,
                 "--resolution", 2, "--offline")  # fmt: skip
    assert files["entry"]["n_regions"] == 100
    labels.write_text("index\tname\n1\ta\n2\tb\n300\tc\n")
    assert "--overwrite" in fail(*words, code=USAGE)
    run(*words, "--overwrite")
    assert [row["name"] for row in read("regions", SCHAEFER)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("other space", OTHER),
        ("negative", "negative"),
        ("fraction", "whole"),
        ("unnamed", "300"),
        ("double", "Stem"),
        ("cut short", "cut short"),
    ],
)
def test_what_cannot_be_registered(mine, change, named):
    image, labels = mine
    data, affine = voxels(image), nb.load(image).affine
    if change == "other space":
        grid = template_grid(OTHER, 2)
        save(image, blocks(grid.shape, [1, 2, 300]), grid.affine)
    elif change == "negative":
        save(image, np.where(data == 2, -2, data).astype(np.int16), affine)
    elif change == "fraction":
        save(image, np.where(data == 2, 1.5, data).astype(np.float32), affine)
    elif change == "unnamed":
        labels.write_text("index\tname\n1\ta\n2\tb\n")
    elif change == "double":
        labels.write_text("index\tname\n1\ta\n2\tStem\n300\tStem\n")
    else:
        image.write_bytes(image.read_bytes()[:1000])
    assert named in fail("register", "Mine", image, labels, "--space", SPACE, code=USAGE)
    assert read("list", "--source", "user") == []


def test_four_dimensions_of_two_kinds(tmp_path):
    """Probabilities, and one binary volume for each region; one name on each line."""
    grid = template_grid(SPACE, 3)
    rng = np.random.default_rng(0)
    labels = tmp_path / "names.txt"
    labels.write_text("One\nTwo\n")
    values = {"Prob": rng.random((*grid.shape, 2)).astype("f4")}
    values["Binary"] = (values["Prob"] > 0.9).astype(np.uint8)
    for name, data in values.items():
        image = save(tmp_path / f"{name}.nii.gz", data, grid.affine)
        entry = read("register", name, image, labels, "--space", SPACE)
        assert (entry["kind"], entry["n_regions"]) == ("probabilistic", 2)
        volumes = [row["volume_mm3"] for row in read("regions", name)]
        assert volumes == pytest.approx((27 * data.sum(axis=(0, 1, 2), dtype=float)).tolist())


def test_atlas_of_a_dataset(mine, tmp_path):
    folder = tmp_path / "dataset" / f"tpl-{SPACE}"
    folder.mkdir(parents=True)
    for path, ending in zip(mine, (".nii.gz", ".tsv"), strict=True):
        path.rename(folder / f"tpl-{SPACE}_atlas-Things_res-02_dseg{ending}")
    datasets = ("--datasets", f"things={tmp_path / 'dataset'}")
    assert "Things" in [entry["id"] for entry in read("list", *datasets)]
    files = read("fetch", "things", *datasets)
    assert files["entry"]["source"] == "bids"
    assert files["image"].startswith(str(folder))
    fail("fetch", "things", code=USAGE)
    fail("list", "--datasets", tmp_path / "none", code=USAGE)
    assert "one name" in fail("list", *datasets, datasets[1], code=USAGE)


# bundle


def test_bundle_with_all_parts(schaefer, tmp_path):
    region = "7Networks_RH_Vis_100"
    words = ("bundle", SCHAEFER, "--space", SPACE, "--resolution", 2, "--region", region,
             "--template", "--offline")  # fmt: skip
    first = read(*words, "-o", tmp_path / "first.zip")
    assert first["missing"] == []
    assert "SHA-256" in run(*words, "-o", tmp_path / "second.zip", "--refresh")
    content = [(tmp_path / f"{name}.zip").read_bytes() for name in ("first", "second")]
    assert content[0] == content[1]
    assert hashlib.sha256(content[0]).hexdigest() == first["sha256"]
    found = read_zip(tmp_path / "first.zip")
    assert list(found) == first["members"]
    assert found[f"{STEM}.nii.gz"] == schaefer.read_bytes()
    assert "MIT" in found["LICENSE.txt"].decode()
    assert "10.1093" in found["CITATION.txt"].decode()
    assert f"template/tpl-{SPACE}_res-02_T1w.nii.gz" in found
    manifest = json.loads(found["manifest.json"])
    for member in manifest["Members"]:
        assert member["SHA256"] == hashlib.sha256(found[member["Name"]]).hexdigest()
    assert "--overwrite" in fail(*words, "-o", tmp_path / "first.zip", code=USAGE)
    run(*words, "-o", tmp_path / "first.zip", "--overwrite")


def test_bundle_that_fails(schaefer, tmp_path):
    target = tmp_path / "a.zip"
    words = ("bundle", SCHAEFER, "--space", SPACE, "--resolution", 2, "--region", "nobody",
             "7Networks_LH_Vis_1", "--offline", "-o", target)  # fmt: skip
    assert "nobody" in fail(*words, code=FAILED)
    assert not target.exists()
    done = read(*words, "--keep-going", code=PARTIAL)
    assert [part["error"] for part in done["missing"]] == ["AtlasNotFound"]
    found = read_zip(target)
    assert "nobody" in json.loads(found["errors.json"])["Errors"][0]["message"]
    assert sum(name.endswith("_mask.nii.gz") for name in found) == 1
    assert "zip" in fail("bundle", SCHAEFER, "-o", tmp_path / "a.tar", code=USAGE)


# info


def test_info(tmp_path):
    grid = template_grid(SPACE, 3)
    data = np.zeros(grid.shape, np.float32)
    data[0, 0, :4] = (np.nan, np.inf, -2.5, 7.5)
    path = save(tmp_path / "map.nii.gz", data, grid.affine)
    found = read("info", path)
    assert (found["min"], found["max"]) == (-2.5, 7.5)
    assert found["mean"] == pytest.approx(5 / (data.size - 2))
    assert (found["n_nonzero"], found["n_nan"], found["n_infinite"]) == (2, 1, 1)
    assert (found["shape"], found["voxel_size"]) == (list(grid.shape), [3, 3, 3])
    assert found["labels"] is None
    text = run("info", path)
    assert "7.5" in text
    labels = save(tmp_path / "labels.nii.gz", blocks(grid.shape, [1, 300]), grid.affine)
    assert read("info", labels)["labels"] == [1, 300]
    assert "2, from 1 to 300" in run("info", labels)
    path.write_bytes(path.read_bytes()[:500])
    assert str(path) in fail("info", path, code=USAGE)
    assert "none.nii.gz" in fail("info", tmp_path / "none.nii.gz", code=USAGE)


# siibra


def test_nothing_asks_the_service_unless_told_to(server, schaefer):
    run("list")
    run("show", SCHAEFER)
    fail("show", "julich", code=USAGE)
    run("spaces")
    run("fetch", SCHAEFER, "--space", SPACE, "--resolution", 2)
    assert server.seen == []


def test_row_02_to_05_parcellations(server):
    entries = read("list", "--source", "siibra")
    assert {entry["source"] for entry in entries} == {"siibra"}
    ids = {(entry["id"], entry["space"]) for entry in entries}
    assert {(JULICH, OTHER), (JULICH, "MNIColin27")} <= ids
    # The same listing serves for a day.
    requests = len(server.seen)
    (entry,) = read("show", JULICH, "--space", OTHER)
    assert len(server.seen) == requests
    assert siibra.JULICH in entry["aliases"]
    assert {e["space"] for e in read("show", siibra.JULICH, "--source", "siibra")} == {
        OTHER, "MNIColin27"
    }  # fmt: skip
    # The service would give one of several; here the name is not of any.
    assert JULICH in fail("show", "siibra:julich", code=USAGE)
    assert "MNIColin27" in fail("fetch", JULICH, "--space", SPACE, code=USAGE)


def test_row_06_and_07_regions(server, tmp_path):
    rows = read("regions", JULICH, "--space", OTHER)
    assert sorted(row["name"] for row in rows) == sorted(LEAVES)
    assert [row["index"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert Counter(row["hemisphere"] for row in rows) == {"left": 3, "right": 3}
    by_name = {row["name"]: row for row in rows}
    for side in siibra.SIDES:
        for label, area in enumerate(siibra.AREAS, start=1):
            inside = np.argwhere(siibra.side_labels(side) == label)
            centre = siibra.AFFINE[:3, :3] @ inside.mean(axis=0) + siibra.AFFINE[:3, 3]
            row = by_name[f"{area} - {side}"]
            assert [row["x"], row["y"], row["z"]] == pytest.approx(centre.tolist())
            assert row["volume_mm3"] == pytest.approx(125 * len(inside))
    found = read("regions", JULICH, "--space", OTHER, "--find", "100% (ofc)")
    assert len(found) == 2
    words = ("fetch", JULICH, "--space", OTHER, "--region", "Area 4")
    # The service answers this with 500.
    assert "Area 3b" in fail(*words, code=USAGE)


def test_row_12_labelled_map_of_fragments(server, data_folder):
    words = ("fetch", JULICH, "--space", OTHER)
    files = read(*words)
    table = pd.read_csv(files["labels"], sep="\t")
    names = dict(zip(table["index"], table["name"], strict=True))
    data = voxels(files["image"])
    assert set(np.unique(data)) - {0} == set(names) == {1, 2, 3, 4, 5, 6}
    for side in siibra.SIDES:
        for label, area in enumerate(siibra.AREAS, start=1):
            number = next(n for n, name in names.items() if name == f"{area} - {side}")
            np.testing.assert_array_equal(data == number, siibra.side_labels(side) == label)
    # Never the merged file, in which left and right have the same numbers.
    assert not [path for path in server.paths() if path.endswith("labelled_map.nii.gz")]
    requests = len(server.seen)
    assert read(*words)["from_cache"]
    assert len(server.seen) == requests
    read(*words, "--refresh")
    assert len(server.seen) > requests


def test_row_12_more_than_255_labels(server):
    (entry,) = [e for e in read("list", "--source", "siibra") if siibra.MANY in e["aliases"]]
    files = read("fetch", entry["id"])
    assert len(np.unique(voxels(files["image"]))) == 1 + siibra.N_MANY
    assert files["entry"]["n_regions"] == siibra.N_MANY


def test_row_12_map_on_the_grid_of_another_space(server):
    (entry,) = [e for e in read("list", "--source", "siibra") if siibra.ELSEWHERE in e["aliases"]]
    assert SPACE in fail("fetch", entry["id"], code=USAGE)


def test_row_12_region_with_odd_signs(server):
    files = read("fetch", JULICH, "--space", OTHER, "--region", ODD_REGION)
    np.testing.assert_array_equal(
        voxels(files["image"]), siibra.side_labels("left hemisphere") == 2
    )


def test_row_12_and_13_statistical_map(server):
    files = read("fetch", JULICH, "--space", OTHER, "--statistical", ODD_REGION)
    expected = (siibra.side_labels("left hemisphere") == 2) * np.float32(0.5)
    np.testing.assert_allclose(voxels(files["image"]), expected)
    found = read("info", files["image"])
    assert (found["min"], found["max"]) == (0, 0.5)
    assert found["n_nonzero"] == 12
    content = json.loads(Path(files["metadata"]).read_text())
    assert (content["Minimum"], content["Maximum"]) == (0, 0.5)


def test_row_01_bundle(server, tmp_path, data_folder, monkeypatch):
    words = ("bundle", JULICH, "--space", OTHER, "--region", LEAVES[0], "--statistical",
             ODD_REGION)  # fmt: skip
    run(*words, "-o", tmp_path / "a.zip")
    found = read_zip(tmp_path / "a.zip")
    assert [name.split("/")[0] for name in found if name.endswith(".nii.gz") and "/" in name] == [
        "regions", "statistical"
    ]  # fmt: skip
    assert "Amunts" in found["CITATION.txt"].decode()
    assert "not known" in found["LICENSE.txt"].decode()
    manifest = json.loads(found["manifest.json"])
    assert {m.get("SourceVersion") for m in manifest["Members"] if "Kind" in m} == {siibra.VERSION}
    # Offline, from the cache, and fetched anew into another one: the same bytes.
    requests = len(server.seen)
    for listing in (data_folder / "atlases" / "siibra").glob("listing-*.json"):
        os.utime(listing, (0, 0))
    run(*words, "-o", tmp_path / "b.zip", "--offline")
    assert len(server.seen) == requests
    monkeypatch.setenv("LACUNA_DATA_DIR", str(tmp_path / "other"))
    run(*words, "-o", tmp_path / "c.zip")
    content = {(tmp_path / f"{name}.zip").read_bytes() for name in "abc"}
    assert len(content) == 1
    # The service packs a text in the place of what it cannot give, and calls that a success.
    words = (*words[:-1], "Area 4", "-o", tmp_path / "d.zip")
    assert "Area 4" in fail(*words, code=FAILED)
    assert not (tmp_path / "d.zip").exists()


def test_service_that_is_busy_for_a_moment(server):
    server.fail_next.extend([503, 502])
    assert read("list", "--source", "siibra")


def test_download_that_is_cut_short(server, data_folder):
    read("list", "--source", "siibra")
    for name in ("lh.nii.gz", "rh.nii.gz"):
        server.add_fault(f"/volumes/{name}", truncate(100), times=99)
    fail("fetch", JULICH, "--space", OTHER, code=FAILED)
    folder = data_folder / "atlases" / "siibra" / f"tpl-{OTHER}"
    assert not [path for path in folder.iterdir() if not path.name.endswith(".lock")]


def test_service_that_cannot_be_reached(data_folder):
    assert "127.0.0.1" in fail("list", "--source", "siibra", code=FAILED)
    sentence = fail("fetch", JULICH, "--space", OTHER, "--offline", code=FAILED)
    assert "lacuna-nipype atlas list --source siibra" in sentence


def test_two_fetches_at_once_download_once(server, data_folder):
    read("list", "--source", "siibra")
    words = ("fetch", JULICH, "--space", OTHER, "--json")
    found = [json.loads(finish(process, OK)[0]) for process in [start(*words), start(*words)]]
    assert sorted(files["from_cache"] for files in found) == [False, True]
    assert found[0]["sha256"] == found[1]["sha256"]
    downloads = Counter(path for path in server.paths() if path.startswith("/volumes/"))
    assert downloads == {"/volumes/lh.nii.gz": 1, "/volumes/rh.nii.gz": 1}


# Real files


@pytest.mark.real_data
@pytest.mark.skipif(DATA is None, reason="LACUNA_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("name", "space", "count"),
    [
        ("atlas-Schaefer2018_desc-100Parcels7Networks", SPACE, 100),
        ("atlas-Schaefer2018_desc-400Parcels17Networks", SPACE, 400),
        ("atlas-TianSubcortex_desc-3TS1", OTHER, 16),
    ],
)
def test_real_files(name, space, count):
    """The Tian file is named after one space and lies on the grid of another."""
    image = DATA / "parcellations" / f"tpl-{SPACE}_res-01_{name}_dseg.nii.gz"
    labels = image.with_name(image.name.replace(".nii.gz", ".txt"))
    if space != SPACE:
        sentence = fail("register", "Real", image, labels, "--space", SPACE, code=USAGE)
        assert image.name in sentence
        assert space in sentence
    entry = read("register", "Real", image, labels, "--space", space)
    assert entry["n_regions"] == count
    assert len(read("info", image)["labels"]) == count
    rows = read("regions", "Real")
    assert len(rows) == count
    index, counts = np.unique(voxels(image), return_counts=True)
    voxel = abs(np.linalg.det(nb.load(image).affine[:3, :3]))
    expected = (voxel * counts[index > 0]).tolist()
    assert [row["volume_mm3"] for row in rows] == pytest.approx(expected)
