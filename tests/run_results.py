"""What tests of whole runs look at: the results, and whether every file of them is whole."""

import gzip
import json
import time

import nibabel as nib
import numpy as np


def results(out):
    """Content of every result by its path; logs and provenance tell when and how instead."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and "logs" not in path.parts
        and "desc-provenance" not in path.name
        # A killed process may leave a hidden file under a name that no reader takes for a result.
        and not path.name.startswith(".tmp-")
    }


def assert_every_file_is_whole(out):
    """Nothing that is named like a result is half of one."""
    for name, content in results(out).items():
        assert content, name
        if name.endswith(".nii.gz"):
            image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
            assert np.isfinite(image.get_fdata()).all(), name
        elif name.endswith(".json"):
            json.loads(content)
        elif name.endswith(".tsv"):
            rows = [line.split("\t") for line in content.decode().splitlines()]
            assert len({len(row) for row in rows}) == 1, name
            assert len(rows) > 1, name


def wait_until(condition, process, log, seconds=120):
    """Wait for something that a run in the background does."""
    deadline = time.monotonic() + seconds
    while not condition():
        text = log.read_text()
        assert process.poll() is None, f"the run ended before: {text}"
        assert time.monotonic() < deadline, text
        time.sleep(0.01)
