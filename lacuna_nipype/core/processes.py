"""Processes beside this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from multiprocessing.context import ForkServerContext
from multiprocessing.util import get_temp_dir

# Paths of sockets have up to 103 bytes on some systems; multiprocessing adds
# "/pymp-xxxxxxxx/listener-xxxxxxxx" to the folder.
_LONGEST_FOLDER = 103 - 32
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - for a folder of our own


def forkserver() -> ForkServerContext:
    """Give the context of processes that are forked from a small one.

    Returns
    -------
    multiprocessing context
        It works too where the path of temporary files is too long for a socket.
    """
    _keep_sockets_short()
    return multiprocessing.get_context("forkserver")


def _keep_sockets_short() -> None:
    """Let multiprocessing have a folder for sockets whose path is short enough.

    It chooses one, below that of temporary files, when it first needs it, and removes it at the
    end.
    """
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) <= _LONGEST_FOLDER:
        return
    try:
        for folder in _SHORT_FOLDERS:
            with contextlib.suppress(OSError):
                tempfile.tempdir = folder
                get_temp_dir()
                return
    finally:
        # All other files stay where the user wants them.
        tempfile.tempdir = usual
