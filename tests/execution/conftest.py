"""What several test files of this folder share."""

import importlib.util
import sys
from pathlib import Path

# Loaded before any test module, so that these write ``from graph_runs import ...``.
if "graph_runs" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        "graph_runs", Path(__file__).with_name("graph_runs.py")
    )
    sys.modules["graph_runs"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["graph_runs"])
