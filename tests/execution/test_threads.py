"""Libraries of linear algebra keep to the processors of a step."""

import os

import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from lacuna_nipype.execution.multiproc import GuardedMultiProcPlugin
from lacuna_nipype.execution.threads import VARIABLES, limited_threads


def look():
    """Threads of the libraries that are loaded, and of those that would be."""
    import os

    import numpy as np  # noqa: F401 - loads one
    from threadpoolctl import threadpool_info

    return [pool["num_threads"] for pool in threadpool_info()], os.environ["OMP_NUM_THREADS"]


@pytest.mark.parametrize("n_procs", [1, 2])
def test_a_worker_limits_them_to_what_a_step_declares(tmp_path, n_procs):
    workflow = pe.Workflow("threads", base_dir=str(tmp_path))
    node = pe.Node(
        Function(output_names=["threads", "variable"], function=look), "look", n_procs=n_procs
    )
    workflow.add_nodes([node])
    graph = workflow.run(GuardedMultiProcPlugin({"n_procs": 2, "memory_gb": 1}))
    (ran,) = graph.nodes
    assert ran.result.outputs.threads
    assert max(ran.result.outputs.threads) <= n_procs
    assert ran.result.outputs.variable == str(n_procs)


def test_everything_is_as_before_afterwards(monkeypatch):
    monkeypatch.setenv(VARIABLES[0], "7")
    monkeypatch.delenv(VARIABLES[1], raising=False)
    before = dict(os.environ)
    with limited_threads(3):
        assert all(os.environ[name] == "3" for name in VARIABLES)
    assert dict(os.environ) == before
    with pytest.raises(KeyError, match="gone"), limited_threads(3):
        raise KeyError("gone")
    assert dict(os.environ) == before
