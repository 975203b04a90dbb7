"""How commands end: the exit code of each error, and one sentence as the last line."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lacuna_nipype.atlases.entries import AtlasNotFound
from lacuna_nipype.cli.ending import describe_os_error, run_command
from lacuna_nipype.core.exceptions import (
    AuthenticationError,
    DependencyError,
    DownloadError,
    SpatialMismatchError,
    ValidationError,
)


def ending(capsys, error, **options):
    """Exit code, and what is printed, of a command that raises an error."""

    def run(words):
        print("a line", end="")  # noqa: T201 - not flushed
        raise error

    code = run_command(list, run, **options)
    printed = capsys.readouterr()
    assert printed.out == "a line"
    assert len(printed.err.splitlines()) == 1
    return code, printed.err.strip().removeprefix("lacuna-nipype: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValidationError("wrong"), 2),
        (SpatialMismatchError("wrong"), 2),
        (AtlasNotFound("wrong"), 2),
        (DependencyError("wrong"), 127),
        (DownloadError("there", "wrong"), 2),
        (PermissionError(errno.EACCES, "no", "file"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_codes(capsys, error, code):
    assert ending(capsys, error)[0] == code


def test_the_nearest_class_counts(capsys):
    codes = {DownloadError: 1, OSError: 1, FileNotFoundError: 2}
    for error, code in [
        (AuthenticationError("there", "wrong"), 1),
        (ValidationError("wrong"), 2),
        (FileNotFoundError(errno.ENOENT, "no such file", "x"), 2),
        (IsADirectoryError(errno.EISDIR, "a folder", "x"), 1),
    ]:
        assert ending(capsys, error, codes=lambda: codes)[0] == code, error


def test_codes_are_asked_for_after_an_error_only():
    assert run_command(list, lambda words: None, codes=None) == 0
    assert run_command(list, lambda words: 3, codes=None) == 3


def test_an_unexpected_error_keeps_its_traceback():
    with pytest.raises(KeyError):
        run_command(list, lambda words: {}["no"])


@pytest.mark.parametrize("asked", [0, 2, None])
def test_a_parser_that_ends_the_command(capsys, asked):
    def parse():
        raise SystemExit(asked)

    assert run_command(parse, list) == (asked or 0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a"), "a: No space left on device."),
        (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), "b: Cross-device link."),
        (OSError(errno.ENOSPC, "No space left on device"), "out: No space left on device."),
        (OSError("Unable to open file"), "out: Unable to open file."),
    ],
)
def test_errors_of_the_system(capsys, tmp_path, monkeypatch, error, sentence):
    assert describe_os_error(error, Path("out")) == sentence
    assert ending(capsys, error, where=lambda words: Path("out")) == (2, sentence)


def test_errors_of_the_system_that_name_nothing():
    full = OSError(errno.ENOSPC, "No space left on device")
    assert describe_os_error(full) == "A file: No space left on device."
    assert describe_os_error(FileNotFoundError("x is gone.")) == "x is gone."


def test_what_is_printed_is_not_logged_on_the_terminal_too():
    script = (
        "import sys\n"
        "from lacuna_nipype.cli.ending import end\n"
        "from lacuna_nipype.cli.terminal import say, show_log\n"
        "if sys.argv[1:]: show_log('lacuna_nipype')\n"
        "say('first')\n"
        "sys.exit(end(1, 'last'))\n"
    )
    for words in ([], ["logged"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False
        )
        expected = (1, "first\n", "lacuna-nipype: last\n")
        assert (done.returncode, done.stdout, done.stderr) == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("closed", [True, False])
def test_a_run_goes_on_where_nothing_can_be_printed(tmp_path, closed):
    """And ends with its own exit code; a command whose lines are its result does not."""
    script = (
        "import logging, sys\n"
        "from lacuna_nipype.cli.ending import end\n"
        "from lacuna_nipype.cli.terminal import say\n"
        f"logging.basicConfig(filename={str(tmp_path / 'log')!r}, level='INFO')\n"
        "for _ in range(3): say('a line' * 5000)\n"
        "sys.exit(end(int(sys.argv[1]), 'last'))\n"
    )
    words = [sys.executable, "-c", script]
    for code in (0, 1):
        if closed:
            shell = 'exec "$@" >&- 2>&-'
            done = subprocess.run(["sh", "-c", shell, "sh", *words, str(code)], check=False)
        else:
            with open("/dev/full", "w") as stream:
                done = subprocess.run(
                    [*words, str(code)], stdout=stream, stderr=stream, check=False
                )
        assert done.returncode == code
    assert (tmp_path / "log").read_text().count("last") == 2
    printing = (
        "import sys\n"
        "from lacuna_nipype.cli.ending import run_command\n"
        "from lacuna_nipype.cli.terminal import print_lines\n"
        "sys.exit(run_command(list, lambda words: print_lines('result')))\n"
    )
    with open("/dev/full", "w") as stream:
        done = subprocess.run(
            [sys.executable, "-c", printing], stdout=stream, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert b"No space left" in done.stderr


@pytest.mark.e2e
def test_an_interrupted_command(tmp_path):
    """Ctrl-C while a command reads from a pipe that nobody closes: 130 and one sentence."""
    pipe = tmp_path / "answers"
    os.mkfifo(pipe)
    with open(os.open(pipe, os.O_RDWR)) as never_ends:
        process = subprocess.Popen(
            [sys.executable, "-m", "lacuna_nipype", "fetch", "--interactive"],
            stdin=never_ends, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        found = ""
        while "Connectome:" not in found:
            found += process.stdout.read(1)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "lacuna-nipype: Interrupted; run the same command again to continue.\n"
