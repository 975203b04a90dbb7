"""The list of connectomes by name: what is in it, who may change it, and what survives."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

import lacuna_nipype
from lacuna_nipype.connectomes import registry
from lacuna_nipype.connectomes.registry import (
    find_change,
    find_registered,
    get_connectome_path,
    get_data_dir,
    list_registered,
    register_connectome,
    registered_at,
    registered_space,
    registry_file,
    unregister_connectome,
)
from lacuna_nipype.connectomes.streamline_index import write_index
from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.files import combined_fingerprint
from lacuna_nipype.core.spaces import template_grid

SPACE, OTHER = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
SHAPE = (6, 5, 4)
AFFINE = np.array([[5.0, 0, 0, -12], [0, 5, 0, -10], [0, 0, 5, 3], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    monkeypatch.setenv("LACUNA_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def functional(tmp_path, write_connectome):
    """A folder of two files: three subjects and one; without a space where asked."""

    def write(name="functional", *, space=SPACE, seed=0, affine=AFFINE):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(seed)
        voxels = np.argwhere(np.ones(SHAPE)).T
        for number, n_subjects in enumerate((3, 1)):
            series = rng.normal(size=(n_subjects, 12, voxels.shape[1])).astype(np.float32)
            write_connectome(
                folder / f"part-{number}.h5", series, voxels, SHAPE, affine, space=space
            )
        return folder

    return write


def tractogram(path, *, space=None, n=3):
    steps = np.tile([[0, 0, 1.0]], (10, 1))
    write_tck(path, [np.cumsum(steps, axis=0) + k for k in range(n)], step_size=1.0)
    if space:
        path.with_suffix(".json").write_text(json.dumps({"Space": space}))
    return path


# Where it is


def test_data_folder(monkeypatch, tmp_path):
    assert get_data_dir() == tmp_path / "data"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LACUNA_DATA_DIR", "here")
    assert get_data_dir() == tmp_path / "here"
    monkeypatch.setenv("LACUNA_DATA_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert get_data_dir() == Path("/cache/lacuna")
    monkeypatch.setenv("HOME", "/someone")
    for value in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert get_data_dir() == Path("/someone/.cache/lacuna")
    assert registry_file() == Path("/someone/.cache/lacuna/connectomes/registry.json")


def test_a_user_without_home_can_use_paths(monkeypatch, functional):
    folder = functional()

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("LACUNA_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert get_connectome_path(folder) == folder
    assert registered_at(folder) is None
    assert registered_space(folder) is None
    with pytest.raises(FileNotFoundError, match="/no/such"):
        get_connectome_path("/no/such")
    with pytest.raises(ValidationError, match="set LACUNA_DATA_DIR"):
        get_connectome_path("gsp1000")


# Registering


def test_functional_connectome(functional, monkeypatch, tmp_path):
    folder = functional()
    assert list_registered() == []
    monkeypatch.chdir(tmp_path)
    before = datetime.now(timezone.utc).replace(microsecond=0)
    entry = register_connectome(
        "Mini-4", "functional", citation="Doe\n  2020", licence="CC0", n_subjects=4, resolution=5
    )
    assert (entry.name, entry.kind, entry.path) == ("Mini-4", "functional", folder)
    assert (entry.space, entry.resolution, entry.n_subjects) == (SPACE, 5.0, 4)
    assert (entry.citation, entry.licence) == ("Doe 2020", "CC0")
    # What sidecars of runs call the connectome's fingerprint.
    assert entry.fingerprint == combined_fingerprint(sorted(folder.iterdir()))
    added = datetime.fromisoformat(entry.added_on)
    assert added.utcoffset() == timedelta(0)
    assert before <= added <= datetime.now(timezone.utc)
    assert list_registered() == [entry]
    assert find_registered("mINI-4") == registered_at("functional") == entry
    assert find_registered("mini") is None
    assert find_change(entry) is None
    stored = json.loads(registry_file().read_text())
    assert [item["path"] for item in stored["Connectomes"]] == [str(folder)]
    assert unregister_connectome("MINI-4") == entry
    assert list_registered() == []
    assert len(list(folder.iterdir())) == 2


def test_tractogram_and_index(tmp_path):
    tck = tractogram(tmp_path / "lines.tck", space="MNI152NLin2009bAsym")
    entry = register_connectome("Lines", tck)
    assert (entry.kind, entry.space) == ("structural", "MNI152NLin2009bAsym")
    assert (entry.resolution, entry.n_subjects) == (None, 0)
    assert entry.fingerprint == f"sha256:{hashlib.sha256(tck.read_bytes()).hexdigest()}"
    entry = register_connectome(
        "lines", tck, resolution=1, n_subjects=985, space="mni152nlin2009casym", overwrite=True
    )
    assert (entry.space, entry.resolution, entry.n_subjects) == (OTHER, 1, 985)
    assert list_registered() == [entry]
    index = tmp_path / "index.h5"
    write_index(tck, index, grid=template_grid(OTHER, 2), space=OTHER, upsample=1)
    entry = register_connectome("Index", index, kind="structural")
    assert (entry.kind, entry.space, entry.resolution) == ("structural", OTHER, 2.0)
    for wrong in ({"space": SPACE}, {"resolution": 1.0}):
        with pytest.raises(SpatialMismatchError, match=r"index\.h5"):
            register_connectome("Index", index, overwrite=True, **wrong)
    with pytest.raises(ValidationError, match="1 or 2 mm"):
        register_connectome("Lines", tck, resolution=0.5, overwrite=True)
    tck.unlink()
    with pytest.raises(ValidationError, match=r"lines\.tck"):
        register_connectome("Index", index, overwrite=True)


def test_space_has_to_be_known(functional, tmp_path):
    for path in (functional(space=None), tractogram(tmp_path / "lines.tck")):
        with pytest.raises(ValidationError, match="--space"):
            register_connectome("Nameless", path)
        assert register_connectome("Nameless", path, space="FSL", overwrite=True).space == SPACE
        unregister_connectome("Nameless")


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "structural"},
        {"kind": "effective"},
        {"n_subjects": 5},
        {"n_subjects": -1},
        {"resolution": 2.0},
        {"resolution": float("nan")},
        {"resolution": 0.0},
        {"space": "Mars"},
        {"sha256": "ab" * 32},
    ],
)
def test_contradictions_are_refused(functional, wrong):
    folder = functional()
    with pytest.raises(ValidationError):
        register_connectome("Mini", folder, **wrong)
    assert list_registered() == []


def test_space_of_the_files_can_be_overridden(functional):
    folder = functional()
    # The grid is nobody's: what is said when registering goes before what the files say.
    register_connectome("Mini", folder, space=OTHER)
    assert registered_space("Mini") == OTHER


def test_what_is_no_connectome(functional):
    folder = functional()
    (folder / "part-1.h5").write_bytes(b"\x89HDF")
    for path in (folder, folder / "part-1.h5", folder / "none", folder.parent):
        with pytest.raises(ValidationError, match=str(path)):
            register_connectome("Other", path)


def test_checksum(tmp_path):
    tck = tractogram(tmp_path / "lines.tck", space=SPACE)
    right = hashlib.sha256(tck.read_bytes()).hexdigest()
    wrong = hashlib.sha256(b"").hexdigest()
    for given, words in ((wrong, right), (right[:-1], "64 hexadecimal"), ("", "64 hexadecimal")):
        with pytest.raises(ValidationError, match=words):
            register_connectome("Lines", tck, sha256=given)
    register_connectome("Lines", tck, sha256=f"sha256:{right.upper()}")


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "-a", ".a", "a/b", "..", "~", "é", "a" * 65, "a\n", "a|b", "*"]
)
def test_names_that_could_be_something_else(functional, name):
    with pytest.raises(ValidationError, match="cannot be the name"):
        register_connectome(name, functional())


def test_names_and_paths_are_taken_once(functional, tmp_path):
    first, second = functional("first"), functional("second", seed=1)
    register_connectome("One", first)
    with pytest.raises(ValidationError, match="--overwrite"):
        register_connectome("ONE", second)
    link = tmp_path / "link"
    link.symlink_to(first)
    for path in (first, link):
        with pytest.raises(ValidationError, match="registered already, as One"):
            register_connectome("Two", path, overwrite=True)
    assert registered_at(link).name == "One"
    entry = register_connectome("ONE", second, overwrite=True)
    assert list_registered() == [entry]
    register_connectome("Two", link)
    assert find_registered("two").path == link
    with pytest.raises(ValidationError, match=r"as Three \(registered: ONE, Two\)"):
        unregister_connectome("Three")


# Using


def test_path_of_a_name(functional, monkeypatch, tmp_path, data_dir):
    folder = functional()
    register_connectome("Mini", folder)
    assert get_connectome_path("mini") == get_connectome_path("Mini") == folder
    # A path that exists comes first.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Mini").mkdir()
    assert get_connectome_path("Mini") == tmp_path / "Mini"
    assert get_connectome_path(Path("mini")) == folder
    # What lies in the data folder
    for name in ("plain", "lower.h5", "Upper.h5"):
        (data_dir / "connectomes" / name).touch()
    assert get_connectome_path("plain") == data_dir / "connectomes" / "plain"
    assert get_connectome_path("PLAIN") == data_dir / "connectomes" / "plain"
    assert get_connectome_path("Lower") == data_dir / "connectomes" / "lower.h5"
    assert get_connectome_path("Upper") == data_dir / "connectomes" / "Upper.h5"
    for name in ("registry.json", "registry.json.bak", "../connectomes/plain", "\udcff"):
        with pytest.raises(FileNotFoundError):
            get_connectome_path(name)


def test_unknown_names_get_the_nearest_first(tmp_path):
    for number, name in enumerate(("dTOR985", "GSP1000", "HCP1065", "Abc")):
        register_connectome(name, tractogram(tmp_path / f"{number}.tck", space=SPACE))
    with pytest.raises(FileNotFoundError) as caught:
        get_connectome_path("gsp100")
    sentence = str(caught.value)
    assert "(registered: GSP1000, " in sentence
    assert all(name in sentence for name in ("dTOR985", "HCP1065", "Abc", "lacuna-nipype fetch"))
    assert "\n" not in sentence


def test_gone_and_changed(functional, tmp_path):
    folder = functional()
    entry = register_connectome("Mini", folder)
    assert registered_space("MINI") == registered_space(folder) == SPACE
    assert registered_space(tmp_path) is None
    assert registered_space("Nobody") is None
    # What is beside the series does not count.
    (folder / "notes.txt").write_text("mine")
    assert find_change(entry) is None
    functional(seed=1)
    with pytest.raises(ValidationError, match="not what was registered as Mini"):
        get_connectome_path("Mini")
    assert registered_space("Mini") is registered_space(folder) is None
    functional()
    assert get_connectome_path("Mini") == folder
    (folder / "part-1.h5").rename(tmp_path / "part-1.h5")
    with pytest.raises(ValidationError, match="not what was registered as Mini"):
        get_connectome_path("Mini")
    (folder / "part-0.h5").unlink()
    with pytest.raises(ValidationError, match="is not there"):
        get_connectome_path("Mini")
    shutil.rmtree(folder)
    with pytest.raises(ValidationError, match=r"is not there.*register Mini PATH --overwrite"):
        get_connectome_path("Mini")


# What can happen to the file


def test_cut_anywhere(tmp_path):
    entries = [
        register_connectome(name, tractogram(tmp_path / f"{name}.tck", space=SPACE))
        for name in ("one", "two")
    ]
    path = registry_file()
    whole = path.read_bytes()
    assert whole.endswith(b"}\n")
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValidationError, match=r"registry\.json is damaged; put its copy back"):
            list_registered()
    for action in (
        lambda: get_connectome_path("one"),
        lambda: registered_at(tmp_path / "one.tck"),
        lambda: unregister_connectome("one"),
        lambda: register_connectome("x", tractogram(tmp_path / "x.tck", space=SPACE)),
    ):
        with pytest.raises(ValidationError, match="is damaged"):
            action()
    assert path.read_bytes() == whole[: len(whole) - 2]
    # A path needs no registry.
    assert get_connectome_path(tmp_path / "x.tck") == tmp_path / "x.tck"
    with pytest.raises(ValidationError) as caught:
        list_registered()
    words = str(caught.value).split("`")[1].split()
    subprocess.run(words, check=True)
    assert list_registered() == entries
    path.write_text("[")
    path.with_name("registry.json.bak").unlink()
    with pytest.raises(ValidationError, match="remove it and register again"):
        list_registered()


def test_other_content(tmp_path):
    register_connectome("one", tractogram(tmp_path / "one.tck", space=SPACE))
    path = registry_file()
    good = json.loads(path.read_text())
    (entry,) = good["Connectomes"]
    for bad in (
        [],
        {},
        "text",
        {**good, "FormatVersion": "1"},
        {**good, "Connectomes": None},
        {**good, "Connectomes": [1]},
        {**good, "Connectomes": [{**entry, "path": None}]},
        {**good, "Connectomes": [{**entry, "kind": "both"}]},
        {**good, "Connectomes": [{**entry, "resolution": "2"}]},
        {**good, "Connectomes": [{key: entry[key] for key in entry if key != "space"}]},
    ):
        path.write_text(json.dumps(bad))
        with pytest.raises(ValidationError, match="is damaged"):
            list_registered()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValidationError, match="is damaged"):
        list_registered()
    path.write_text(json.dumps({**good, "FormatVersion": 2}))
    with pytest.raises(ValidationError, match="newer version"):
        list_registered()


def test_a_registry_out_of_reach(tmp_path, data_dir, monkeypatch):
    tck = tractogram(tmp_path / "lines.tck", space=SPACE)
    registry_file().mkdir(parents=True)
    assert registered_at(tck) is None
    with pytest.raises(ValidationError, match="cannot be read"):
        list_registered()
    registry_file().rmdir()
    monkeypatch.setenv("LACUNA_DATA_DIR", str(tck))
    assert list_registered() == []
    with pytest.raises(ValidationError, match="cannot be changed"):
        register_connectome("Lines", tck)


def test_full_disk_leaves_the_registry_as_it_was(tmp_path, monkeypatch):
    register_connectome("one", tractogram(tmp_path / "one.tck", space=SPACE))
    before = registry_file().read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(registry.os, "fsync", full)
        with pytest.raises(ValidationError, match="No space left on device"):
            register_connectome("two", tractogram(tmp_path / "two.tck", space=SPACE))
    assert registry_file().read_bytes() == before
    names = {path.name for path in registry_file().parent.iterdir()}
    assert names == {"registry.json", "registry.json.bak", "registry.json.lock"}


# Several processes


def python(code, *words, **options):
    checkout = str(Path(lacuna_nipype.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": checkout},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


REGISTER_MANY = """
import sys, time
from pathlib import Path
from lacuna_nipype.connectomes.registry import list_registered, register_connectome
folder, me, n = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
# What registering needs is imported by a first call, so that all work at the same time.
register_connectome(f"{me}-first", folder / f"{me}-first.tck", space="MNI152NLin6Asym")
(folder / f"{me}.ready").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for number in range(n):
    register_connectome(f"{me}-{number}", folder / f"{me}-{number}.tck", space="MNI152NLin6Asym")
    list_registered()
"""


def test_processes_that_register_at_once(tmp_path):
    """Nobody's entry is lost, and nobody reads half a file."""
    n_processes, n_names = 4, 12
    names = {
        f"{process}-{number}"
        for process in range(n_processes)
        for number in ("first", *range(n_names))
    }
    for name in names:
        tractogram(tmp_path / f"{name}.tck", n=1)
    processes = [python(REGISTER_MANY, tmp_path, k, n_names) for k in range(n_processes)]
    try:
        while len(list(tmp_path.glob("*.ready"))) < n_processes:
            assert all(process.poll() is None for process in processes)
        (tmp_path / "go").touch()
        for process in processes:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert {entry.name for entry in list_registered()} == names
    assert registry_file().read_bytes() == (
        registry_file().with_name("registry.json.bak").read_bytes()
    )


HOLD = """
import sys, time
from lacuna_nipype.connectomes import registry
with registry._locked():
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock(tmp_path):
    holder = python(HOLD)
    try:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
    finally:
        holder.kill()
        holder.communicate()
    register_connectome("one", tractogram(tmp_path / "one.tck", space=SPACE))
    assert [entry.name for entry in list_registered()] == ["one"]
