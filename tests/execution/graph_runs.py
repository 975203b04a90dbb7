"""Small graphs run to their end in processes of their own: nipype's settings are global."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import lacuna_nipype

PRELUDE = """
import json, sys, time
from pathlib import Path
from lacuna_nipype.execution import runner

def value(x):
    return x

def doubled(x):
    return 2 * x

def total(x):
    return sum(x)

def raises(x):
    raise ValueError(f"Mask {x} is damaged: copy it again.")

def is_killed(x):
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)

def leaves(x):
    import os
    os._exit(3)

def is_killed_if_one(x):
    import os, signal
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

def sleeps(x):
    import subprocess
    from pathlib import Path
    Path("started").touch()
    subprocess.run(["sleep", str(x)])
    return x

def times(x):
    import time
    start = time.time()
    time.sleep(x)
    return [start, time.time()]

def function(f, name, kind=None, x=None, **options):
    from nipype.interfaces import utility as niu
    from nipype.pipeline import engine as pe
    interface = niu.Function(input_names=["x"], output_names=["y"], function=f)
    node = (kind or pe.Node)(interface, name=name, **options)
    if x is not None:
        node.inputs.x = x
    return node

def values_of(graph_folder):
    from nipype.pipeline.engine.utils import load_resultfile
    found = {}
    for path in sorted(graph_folder.rglob("result_*.pklz")):
        outputs = load_resultfile(path).outputs
        found[path.parent.name] = getattr(outputs, "y", None) if outputs else None
    return found

def main(folder, options):
    logs = Path(folder, "logs")
    logs.mkdir(exist_ok=True)
    runner.configure_nipype(log_dir=logs, stop_on_first_crash=options.get("stop", False))
    from nipype.pipeline import engine as pe
    workflow = pe.Workflow("wf", base_dir=str(Path(folder, "work")))
    build(workflow, pe)
    if options.get("nipype"):
        import nipype
        from nipype.pipeline import plugins
        nipype.config.set("execution", "poll_sleep_duration", "0.05")
        workflow.config["execution"] = {"poll_sleep_duration": "0.05"}
        runner.make_plugin = lambda name, arguments: getattr(plugins, name + "Plugin")(
            {**arguments, "mp_context": "forkserver"}
        )
    start = time.monotonic()
    outcome = runner.run_graph(
        workflow, n_nodes=len(runner.expanded_nodes(workflow)), plugin=options["plugin"],
        nprocs=options.get("nprocs", 2), memory_gb=options.get("memory_gb", 4.0), crash_dir=logs,
        plugin_args=options.get("plugin_args"),
    )
    result = {
        "seconds": time.monotonic() - start,
        "nodes": {name: record.status for name, record in outcome.nodes.items()},
        "failures": {f.node: f.reason for f in outcome.failures},
        "error": outcome.error,
        "values": values_of(Path(folder, "work", "wf")),
    }
    Path(folder, "outcome.json").write_text(json.dumps(result))
"""
ENDING = """
if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
"""
MARK = "LACUNA_TEST_RUN"


class GraphRun:
    """A folder in which a graph is run, again and again if need be."""

    def __init__(self, folder, build, environment=None, **options):
        self.folder = Path(folder)
        self.work = self.folder / "work" / "wf"
        self.logs = self.folder / "logs"
        self.options = options
        self.environment = environment or {}
        self.folder.mkdir(exist_ok=True, parents=True)
        self.script = self.folder / "script.py"
        self.rebuild(build)

    def rebuild(self, build):
        self.script.write_text(PRELUDE + textwrap.dedent(build) + ENDING)

    def start(self, **options):
        """Start a run and do not wait for it."""
        for path in (self.folder / "outcome.json", *self.logs.glob("*")):
            path.unlink(missing_ok=True)
        # Packages are found from any folder, also by the jobs of a cluster.
        checkout = str(Path(lacuna_nipype.__file__).parents[1])
        paths = [checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
        words = [sys.executable, self.script, self.folder, json.dumps(self.options | options)]
        with (self.folder / "printed.txt").open("w") as stream:
            return subprocess.Popen(
                list(map(str, words)),
                cwd=self.folder,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(paths),
                    MARK: str(self.folder),
                    **self.environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, process, timeout=180):
        """Wait for a run: what became of it."""
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"the run hangs: {self.printed}") from None
        assert process.returncode == 0, self.printed
        return json.loads((self.folder / "outcome.json").read_text())

    def run(self, **options):
        return self.finish(self.start(**options))

    @property
    def printed(self):
        return (self.folder / "printed.txt").read_text()

    @property
    def log(self):
        path = self.logs / "run.log"
        return path.read_text() if path.exists() else ""

    def processes(self):
        """Processes that belong to a run, wherever they hang in the tree."""
        mark = f"{MARK}={self.folder}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


def wait_until(condition, seconds=60.0, say=lambda: ""):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, say()
        time.sleep(0.05)
