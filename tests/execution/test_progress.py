"""Progress of a run, told by nodes that are not real."""

import errno
import io
import logging
import time
from pathlib import Path

import pytest

from lacuna_nipype.execution.progress import RunProgress, log_progress, step_name


class FakeNode:
    """A node with a name, a folder, and a result when it is told to run."""

    def __init__(self, base_dir, fullname):
        self.fullname = fullname
        self.name = fullname.rpartition(".")[2]
        self._folder = Path(base_dir, *fullname.split("."))

    def output_dir(self):
        return str(self._folder)

    def write_result(self):
        self._folder.mkdir(parents=True, exist_ok=True)
        result = self._folder / f"result_{self.name}.pklz"
        result.unlink(missing_ok=True)
        result.write_bytes(b"")

    def run_with(self, listener, status="end"):
        listener(self, "start")
        if status == "end":
            self.write_result()
        listener(self, status)


class FakePiece(FakeNode):
    """A piece of a MapNode: nipype gives it a short name."""

    def __init__(self, base_dir, mapnode, number):
        super().__init__(base_dir, f"{mapnode}.mapflow._{mapnode.rpartition('.')[2]}{number}")
        self.fullname = self.name


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def nodes(tmp_path):
    return [FakeNode(tmp_path, f"wf.inner.step{number}") for number in range(3)]


@pytest.fixture
def progress(tmp_path):
    return RunProgress(3, io.StringIO(), base_dir=tmp_path)


def statuses(progress):
    return {name.rpartition(".")[2]: record.status for name, record in progress.records.items()}


def test_done_cached_and_failed(nodes, progress):
    done, cached, failed = nodes
    cached.write_result()
    done.run_with(progress)
    progress(cached, "start")
    assert statuses(progress) == {"step0": "done", "step1": "running"}
    assert progress.finished == 1
    progress(cached, "end")
    failed.run_with(progress, "exception")
    assert statuses(progress) == {"step0": "done", "step1": "cached", "step2": "failed"}
    assert progress.finished == 3
    assert progress.records["wf.inner.step0"].seconds >= 0
    assert progress.records["wf.inner.step1"].seconds is None


def test_step_that_ran_again_is_done_even_right_after_its_last_run(nodes, tmp_path):
    for _ in range(2):
        progress = RunProgress(1, io.StringIO(), base_dir=tmp_path)
        nodes[0].run_with(progress)
        assert statuses(progress) == {"step0": "done"}
    progress = RunProgress(1, io.StringIO(), base_dir=tmp_path)
    progress(nodes[0], "start")
    progress(nodes[0], "end")
    assert statuses(progress) == {"step0": "cached"}


def test_multiproc_does_not_announce_cached_steps(nodes, tmp_path):
    nodes[0].write_result()
    # Times of files are coarser than the clock.
    time.sleep(0.05)
    progress = RunProgress(3, io.StringIO(), base_dir=tmp_path)
    progress(nodes[0], "end")
    assert statuses(progress) == {"step0": "cached"}


def test_failure_is_not_undone_by_a_later_report(nodes, progress):
    nodes[0].run_with(progress, "exception")
    progress(nodes[0], "end")
    assert statuses(progress) == {"step0": "failed"}


def test_pieces_of_a_mapnode_count_and_have_full_names(tmp_path):
    progress = RunProgress(1, io.StringIO(), base_dir=tmp_path)
    for number in range(3):
        FakePiece(tmp_path, "wf.fnm_wf.correlate", number).run_with(progress)
    FakeNode(tmp_path, "wf.fnm_wf.correlate").run_with(progress)
    assert set(progress.records) == {
        "wf.fnm_wf.correlate",
        *(f"wf.fnm_wf.correlate._correlate{number}" for number in range(3)),
    }
    assert progress.total == progress.finished == 4


def test_names_without_a_work_folder(tmp_path):
    folder = tmp_path / "wf" / "map" / "mapflow" / "_map0"
    assert step_name("_map0", folder, None) == "_map0"
    assert step_name("_map0", folder, tmp_path / "elsewhere") == "_map0"
    assert step_name("_map0", folder, str(tmp_path)) == "wf.map._map0"
    assert step_name("wf.map", folder.parent.parent, tmp_path) == "wf.map"


@pytest.mark.parametrize("total", [1, 3, 10, 137])
def test_few_lines_where_there_is_no_terminal(tmp_path, total):
    stream = io.StringIO()
    progress = RunProgress(total, stream, base_dir=tmp_path)
    for number in range(total):
        FakeNode(tmp_path, f"wf.step{number}").run_with(progress)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert 1 <= len(lines) <= 10
    assert str(total) in lines[-1]


def test_bar_on_a_terminal(nodes, tmp_path):
    stream = Terminal()
    progress = RunProgress(3, stream, base_dir=tmp_path)
    for node in nodes:
        node.run_with(progress)
    progress.close()
    assert "3/3" in stream.getvalue()


class FullTerminal(Terminal):
    """Its disk, or whatever takes what is written to it, is full."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", ["terminal", "file", "closed", "none"])
def test_a_stream_that_cannot_be_written_ends_nothing(nodes, tmp_path, monkeypatch, kind):
    with open("/dev/full", "w") as full:
        closed = io.StringIO()
        closed.close()
        streams = {"terminal": FullTerminal(), "file": full, "closed": closed}
        monkeypatch.setattr("sys.stderr", None)
        progress = RunProgress(3, streams.get(kind), base_dir=tmp_path)
        for node in nodes:
            node.run_with(progress)
        progress.close()
    assert set(statuses(progress).values()) == {"done"}


def test_log_lines_are_rare(caplog):
    caplog.set_level(logging.INFO, logger="nipype.interface.lacuna")
    logging.getLogger("nipype").propagate = True
    report = log_progress("subject", every_seconds=3600)
    for done in range(100):
        report(done + 1, 100)
    assert caplog.records == []


def test_log_lines_say_how_far_it_is(caplog):
    caplog.set_level(logging.INFO, logger="nipype.interface.lacuna")
    log_progress("batch.h5: subject", every_seconds=0)(7, 20)
    assert [record.getMessage() for record in caplog.records] == ["batch.h5: subject 7 of 20"]
