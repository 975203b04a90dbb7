"""Every public connectome's whole way, from a server on this machine to a registered result.

The servers behave like the real ones; the user's table of sources points to them. Fetches run as
processes, so that they can be killed.
"""

import gzip
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import nibabel as nb
import numpy as np
import pytest
from loopback import (
    DataverseServer,
    FigshareServer,
    GithubServer,
    OsfServer,
    busy,
    corrupt,
    drop,
    page,
    slow,
)
from nibabel.streamlines import LazyTractogram, TrkFile

from lacuna_nipype.connectomes.functional import iter_subjects, open_connectome
from lacuna_nipype.connectomes.tractogram import iter_tck_streamlines, read_tck_header

KEY = "0f1e2d3c-test-key-4b5a6978"
SHAPE = (20, 24, 18)
AFFINE = np.array([[8.0, 0, 0, -76], [0, 8, 0, -108], [0, 0, 8, -64], [0, 0, 0, 1]])
BRAIN = np.zeros(SHAPE, np.uint8)
BRAIN[4:16, 4:20, 4:14] = 1
N_TIMES = 30
OK, FAILED, USAGE = 0, 1, 2


def image_bytes(data, affine=AFFINE):
    return gzip.compress(nb.Nifti1Image(data, affine).to_bytes(), 1, mtime=0)


def series_of(number):
    rng = np.random.default_rng(number)
    return (300 + 20 * rng.normal(size=(*SHAPE, N_TIMES))).astype("f4")


def tar_of(numbers):
    """Subjects of the GSP data set as their tar files hold them."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as out:
        for number in numbers:
            subject = f"sub-{number:04d}"
            name = f"{subject}/func/{subject}_bld001_rest_skip4_stc_resid_sm7_finalmask.nii.gz"
            data = image_bytes(series_of(number))
            info = tarfile.TarInfo(f"GSP/{name}")
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def lines_of(seed, n_lines=300):
    rng = np.random.default_rng(seed)
    lines = []
    for n_points in rng.integers(12, 60, n_lines):
        steps = rng.normal(size=(n_points, 3)) + np.array([1.5, 0, 0])
        steps *= 0.5 / np.linalg.norm(steps, axis=1, keepdims=True)
        start = rng.uniform((-45, -70, -10), (15, 30, 45))
        lines.append((start + np.cumsum(steps, axis=0)).astype("f4"))
    return lines


def trk_of(lines):
    header = {"voxel_to_rasmm": np.eye(4), "voxel_sizes": (1, 1, 1), "dimensions": (91, 109, 91),
              "voxel_order": "RAS"}  # fmt: skip
    stream = io.BytesIO()
    TrkFile(LazyTractogram(lambda: iter(lines), affine_to_rasmm=np.eye(4)), header).save(stream)
    return stream.getvalue()


def tck_of(lines):
    body = (
        b"".join(
            np.vstack([line, np.full((1, 3), np.nan)]).astype("<f4").tobytes() for line in lines
        )
        + np.full((1, 3), np.inf, "<f4").tobytes()
    )
    fields = f"mrtrix tracks\ndatatype: Float32LE\ncount: {len(lines)}\nstep_size: 0.5\n"
    offset = len(fields) + len("file: . 1000\nEND\n")
    return f"{fields}file: . {offset:4d}\nEND\n".encode() + body


@pytest.fixture
def home(data_folder, tmp_path, monkeypatch):
    """A user's folders; gives a function that writes the table of sources."""
    for name in ("DATAVERSE_API_KEY", "FIGSHARE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def write(**entries):
        path = data_folder / "connectomes" / "sources.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries))

    return write


def start(*words, **options):
    command = [sys.executable, "-m", "lacuna_nipype", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def run(*words, code=OK, **options):
    process = start(*words, **options)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert KEY not in output
    return output


def kill_when(process, condition):
    """SIGKILL in the middle of something."""
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def files_with_key(*folders):
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and KEY.encode() in path.read_bytes()
    ]


def registered():
    found = json.loads(run("connectome", "list", "--json"))
    return {entry["name"]: entry for entry in found}


def bytes_on_disk(folder, name):
    """Size of what is there of a file that is being downloaded."""
    return sum(part.stat().st_size for part in folder.rglob(f".{name}.part"))


def resumes(server, path, name, size, process, command):
    """Kill a download in its middle, finish it, and see that only the missing bytes were sent."""
    folder = command[command.index("--output-dir") + 1]
    # What the server sent may not have been read yet.
    kill_when(process, lambda: bytes_on_disk(folder, name) > size // 8)
    server.clear_faults()
    output = run(*command)
    asked = server.accesses(path)[-1]
    assert asked.status == 206
    assert asked.start > size // 8
    assert asked.sent == size - asked.start
    return output


# Functional


@pytest.fixture
def gsp(home):
    contents = {
        "GSP1000/rest_1.tar": tar_of(range(1, 13)),
        "GSP1000/rest_2.tar": tar_of(range(13, 21)),
        "GSP1000/brain_mask.nii.gz": image_bytes(BRAIN),
        "README.txt": b"what is here",
    }
    with DataverseServer(contents, key=KEY, persistent_id="doi:10.1/GSP") as server:
        home(gsp1000={"dataverse_server": server.url, "persistent_id": "doi:10.1/GSP"})
        yield server


def subjects_in(folder):
    connectome = open_connectome(folder)
    return [series for file in connectome.files for series in iter_subjects(file)]


def check_gsp(folder, numbers):
    found = subjects_in(folder / "processed")
    assert len(found) == len(numbers)
    for series, number in zip(found, numbers, strict=True):
        np.testing.assert_array_equal(series, series_of(number)[BRAIN > 0].T)


def test_gsp1000_with_a_kill_in_the_middle(gsp, tmp_path, data_folder):
    out = tmp_path / "gsp"
    command = ("fetch", "gsp1000", "--output-dir", out, "--api-key", KEY, "--batches", 200)
    size = len(gsp.contents["GSP1000/rest_1.tar"])
    storage = gsp.storage_path("GSP1000/rest_1.tar")
    gsp.add_fault(storage, slow(size // 3))
    output = resumes(gsp, storage, "rest_1.tar", size, start(*command), command)
    assert "registered as GSP1000" in output
    check_gsp(out, range(1, 21))
    files = sorted((out / "processed").glob("*.h5"))
    assert len(files) == 4  # of 1000 // 200 subjects
    entry = registered()["GSP1000"]
    assert (entry["kind"], entry["space"]) == ("functional", "MNI152NLin6Asym")
    assert entry["n_subjects"] == 20
    # Again: nothing is asked for, nothing is written.
    n_requests, times = len(gsp.log), [path.stat().st_mtime_ns for path in files]
    run(*command)
    assert len(gsp.log) == n_requests
    assert [path.stat().st_mtime_ns for path in files] == times
    assert not files_with_key(tmp_path, data_folder)
    status = json.loads(run("fetch", "--status", "gsp1000", "--json"))["gsp1000"]
    assert status["downloaded"]
    assert status["processed"]
    assert status["registered"]
    assert status["location"] == str(out)
    run("fetch", "--clean", "gsp1000")
    assert not (out / "raw").exists()
    check_gsp(out, range(1, 21))
    run("connectome", "info", "GSP1000", "--check-data")


def test_a_conversion_that_is_killed_goes_on(gsp, tmp_path):
    out = tmp_path / "gsp"
    command = ("fetch", "gsp1000", "--output-dir", out, "--api-key", KEY, "--batches", 500)
    process = start(*command)
    kill_when(process, lambda: len(list((out / "processed").glob("*.h5"))) >= 2)
    kept = {path: path.stat().st_mtime_ns for path in (out / "processed").glob("*.h5")}
    run(*command)
    check_gsp(out, range(1, 21))
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def test_originals_go_as_they_are_converted(gsp, tmp_path):
    out = tmp_path / "gsp"
    command = ("fetch", "gsp1000", "--output-dir", out, "--api-key", KEY, "--no-keep-original")
    run(*command)
    check_gsp(out, range(1, 21))
    assert not list(out.rglob("*.tar"))
    assert not [p for p in out.rglob(".*") if "part" in p.name or "unpacked" in p.name]


def test_a_trial_and_then_the_whole(gsp, tmp_path):
    out = tmp_path / "gsp"
    command = ("fetch", "gsp1000", "--output-dir", out, "--api-key", KEY)
    run(*command, "--test-mode", "--no-register")
    check_gsp(out, range(1, 11))
    assert not registered()
    assert not gsp.accesses(gsp.storage_path("GSP1000/rest_2.tar"))
    run(*command)
    check_gsp(out, range(1, 21))


def test_what_servers_do_wrong(gsp, tmp_path):
    first, second = (gsp.storage_path(f"GSP1000/rest_{n}.tar") for n in (1, 2))
    gsp.add_fault(first, drop(5000))
    gsp.add_fault(first, busy(503))
    gsp.add_fault(second, busy(429, retry_after=1))
    gsp.add_fault(second, corrupt())
    out = tmp_path / "gsp"
    run("fetch", "gsp1000", "--output-dir", out, "--api-key", KEY)
    check_gsp(out, range(1, 21))


def test_keys(gsp, tmp_path, data_folder, monkeypatch):
    out = tmp_path / "gsp"
    command = ("fetch", "gsp1000", "--output-dir", out, "--test-mode")
    output = run(*command, code=FAILED)
    assert "DATAVERSE_API_KEY" in output
    assert len(output.strip().splitlines()) == 1
    output = run(*command, "--api-key", "wrong-key", code=FAILED)
    assert "refused" in output
    assert "wrong-key" not in output
    monkeypatch.setenv("DATAVERSE_API_KEY", KEY)
    run(*command, "--no-register")
    monkeypatch.delenv("DATAVERSE_API_KEY")
    config = tmp_path / "config" / "lacuna" / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"dataverse_api_key: {KEY}\n")
    config.chmod(0o600)
    run(*command, "--force")
    config.unlink()
    assert not files_with_key(tmp_path, data_folder)


def test_a_typed_key_is_not_among_the_arguments_of_the_process(gsp, tmp_path):
    storage = gsp.storage_path("GSP1000/rest_1.tar")
    gsp.add_fault(storage, slow(20_000))
    process = start("fetch", "gsp1000", "--output-dir", tmp_path / "gsp", f"--api-key={KEY}")
    end = time.monotonic() + 60
    while not gsp.accesses(storage):
        assert time.monotonic() < end
        time.sleep(0.02)
    arguments = open(f"/proc/{process.pid}/cmdline", "rb").read()  # noqa: SIM115
    assert b"gsp1000" in arguments
    assert KEY.encode() not in arguments
    process.kill()
    process.communicate()


def test_a_failing_fetch_leaves_no_key(gsp, tmp_path, data_folder):
    gsp.add_fault(gsp.storage_path("GSP1000/rest_1.tar"), page(), times=9)
    output = run("fetch", "gsp1000", "--output-dir", tmp_path / "gsp", "--api-key", KEY, "-v",
                 code=FAILED)  # fmt: skip
    assert "web page" in output
    assert not files_with_key(tmp_path, data_folder)
    assert not (tmp_path / "gsp" / "processed").exists()
    assert not registered()


def test_interrupted_by_the_user(gsp, tmp_path):
    storage = gsp.storage_path("GSP1000/rest_1.tar")
    gsp.add_fault(storage, slow(50_000))
    process = start("fetch", "gsp1000", "--output-dir", tmp_path / "gsp", "--api-key", KEY)
    end = time.monotonic() + 60
    while gsp.sent(storage) < 20_000:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert "again" in output.splitlines()[-1]


# Structural


def test_dtor985(home, tmp_path, data_folder):
    lines = lines_of(1, 3000)
    with FigshareServer({"dTOR_985.trk": trk_of(lines), "notes.txt": b"x"}, key=KEY) as server:
        home(dtor985={"download_url": server.api})
        out = tmp_path / "dtor"
        command = ("fetch", "dTOR985", "--output-dir", out, "--api-key", KEY,
                   "--no-keep-original")  # fmt: skip
        storage = server.storage_path("dTOR_985.trk")
        size = len(server.contents["dTOR_985.trk"])
        server.add_fault(storage, slow(size // 3))
        resumes(server, storage, "dTOR_985.trk", size, start(*command), command)
        header = read_tck_header(out / "dtor985.tck")
        assert header.count == len(lines)
        assert header.step_size == pytest.approx(0.5, rel=1e-4)
        found = list(iter_tck_streamlines(out / "dtor985.tck"))
        np.testing.assert_allclose(np.concatenate(found), np.concatenate(lines), atol=2e-4)
        assert not (out / "raw").exists()
        entry = registered()["dTOR985"]
        assert (entry["kind"], entry["space"]) == ("structural", "MNI152NLin2009bAsym")
        assert entry["n_subjects"] == 985
        n_requests = len(server.log)
        run(*command)
        assert len(server.log) == n_requests
    assert not files_with_key(tmp_path, data_folder)


def test_a_subsample_of_dtor985(home, tmp_path):
    output = run("fetch", "dtor985_10pct", code=USAGE)
    assert "sources.json" in output
    assert len(output.strip().splitlines()) == 1
    lines = lines_of(2, 2000)
    content = tck_of(lines)
    with OsfServer({"abc12": content}) as server:
        home(dtor985_10pct={"download_url": f"{server.url}/abc12/download"})
        out = tmp_path / "dtor"
        command = ("fetch", "dtor985_10pct", "--output-dir", out)
        storage = server.storage_path("abc12")
        server.add_fault(storage, slow(len(content) // 3))
        resumes(server, storage, "dtor985_10pct.tck", len(content), start(*command), command)
        assert (out / "dtor985_10pct.tck").read_bytes() == content
        sidecar = json.loads((out / "dtor985_10pct.json").read_text())
        assert sidecar["Space"] == "MNI152NLin2009bAsym"
        assert "dTOR985_10pct" in registered()
        server.contents["abc12"] = content[: len(content) // 2]
        run(*command, "--force", "--output-dir", tmp_path / "other", code=USAGE)
        assert not list((tmp_path / "other").glob("*.tck"))


def test_hcp1065(home, tmp_path):
    stream = io.BytesIO()
    kept = {"association/AF_L.trk.gz": lines_of(3), "projection/CST_R.trk.gz": lines_of(4)}
    nerve = {"Cranial_Nerve/CNII_L.trk.gz": lines_of(5, 20)}
    with zipfile.ZipFile(stream, "w") as archive:
        for name, lines in {**kept, **nerve}.items():
            archive.writestr(f"hcp1065/{name}", gzip.compress(trk_of(lines), 1))
    content = stream.getvalue()
    with GithubServer({"hcp1065_avg_tracts_trk.zip": content}) as server:
        url = server.release_url("hcp1065_avg_tracts_trk.zip")
        home(hcp1065={"download_url": url, "size_bytes": len(content)})
        out = tmp_path / "hcp"
        command = ("fetch", "hcp1065", "--output-dir", out)
        storage = server.storage_path("hcp1065_avg_tracts_trk.zip")
        server.add_fault(storage, slow(len(content) // 3))
        resumes(
            server, storage, "hcp1065_avg_tracts_trk.zip", len(content), start(*command), command
        )
    expected = [line for lines in kept.values() for line in lines]
    found = list(iter_tck_streamlines(out / "hcp1065.tck"))
    assert len(found) == len(expected)
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=2e-4)
    assert (out / "raw" / "hcp1065_avg_tracts_trk.zip").is_file()
    assert not (out / "unpacked").exists()
    assert registered()["HCP1065"]["space"] == "MNI152NLin2009aAsym"


# What needs no server


def test_lists_and_mistakes(home, tmp_path):
    names = [entry["name"] for entry in json.loads(run("fetch", "--list", "--json"))]
    assert names == ["dtor985", "dtor985_10pct", "dtor985_25pct", "gsp1000", "hcp1065"]
    assert "587" not in run("fetch", "--list")
    output = run("fetch", "gsp1001", code=USAGE)
    assert "gsp1000" in output
    assert "is needed" in run("fetch", code=USAGE)
    status = json.loads(run("fetch", "--status", "--json"))
    assert set(status) == set(names)
    assert status["hcp1065"] == {
        "downloaded": False, "processed": False, "registered": False, "location": None,
        "size_bytes": 0,
    }  # fmt: skip
    home(mine={"type": "functional"})
    assert "source_type" in run("fetch", "--list", code=USAGE)


def test_questions(home, tmp_path):
    content = tck_of(lines_of(2, 50))
    with OsfServer({"abc12": content}) as server:
        home(dtor985_10pct={"download_url": f"{server.url}/abc12/download"})
        cases = {
            130: ["dtor985_10pct", tmp_path / "no", "n"],
            OK: ["dtor985_10pct", tmp_path / "yes", "y"],
            USAGE: [],
        }
        for code, answers in cases.items():
            process = start("fetch", "--interactive", stdin=subprocess.PIPE)
            text = "".join(f"{answer}\n" for answer in answers)
            output, _ = process.communicate(text, timeout=100)
            assert process.returncode == code, output
            assert "Traceback" not in output
    assert (tmp_path / "yes" / "dtor985_10pct.tck").read_bytes() == content
    assert not (tmp_path / "no").exists()


def test_an_address_that_is_not_encrypted(home):
    home(dtor985_10pct={"download_url": "http://example.org/abc12/download"})
    output = run("fetch", "dtor985_10pct", code=FAILED)
    assert "https" in output
