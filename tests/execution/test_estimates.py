"""What steps are estimated to take: beside what they take, and on a whole graph."""

import importlib.util
import math
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from nipype.interfaces.base import isdefined

from lacuna_nipype.execution.estimates import (
    Sizes,
    apply_estimates,
    estimate_resources,
    has_estimate,
    iter_nodes,
    sizes_on_grid,
    time_limit,
)
from lacuna_nipype.io.structural_outputs import StructuralOutputs
from lacuna_nipype.workflows import init_lacuna_wf

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "resources.py"
# Steps whose memory grows with their data, in the order in which they need each other.
STEPS = (
    "PrepareParcels",
    "RegionalDamage",
    "CorrelateBatch",
    "ReduceCorrelation",
    "BuildStreamlineIndex",
    "PrepareWeights",
    "PrepareParcels to maps",
    "AggregateParcels",
    "PrepareParcels to disconnection",
    "AggregateParcels of disconnection",
)
SMALL = Sizes(
    mask_voxels=100_000, functional_voxels=100_000, brain_voxels=25_000, timepoints=50,
    subjects=5, connectome_bytes=10**7, all_subjects=10, files=2, lesions=2, seed_voxels=300,
    maps=6, pass_gb=0.2, read_gb=0.15, atlas_voxels=100_000, atlas_values=30_000,
    all_atlas_values=60_000, regions=50, streamlines=10_000, tractogram_bytes=10**7,
    structural_voxels=100_000, returned_voxels=100_000, transform_bytes=10**6, threads=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("resources_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def cases(benchmark):
    return {
        case.name: case
        for case in (
            benchmark.Case("small", 4, 4, 2, 40, 2, 4, 10, 2, 4, 3_000, 40, 4),
            benchmark.Case("middle", 2, 4, 3, 60, 20, 2, 100, 2, 2, 40_000, 40, 2, layout="store"),
            benchmark.Case("large", 1, 3, 2, 150, 40, 1, 400, 2, 2, 200_000, 10, 1, n_threads=2),
        )
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["small", "middle", "large"])
def test_within_a_factor_of_two(benchmark, tmp_path, name):
    case = cases(benchmark)[name]
    data = benchmark.Data(case, tmp_path / name / "data")
    made = {
        "ValidateMask": {"out_file": data.mask()},
        "ResampleMask": {"out_file": data.seed()},
        "TemplateGrid": {"out_file": data.template()},
        # Images of their grids.
        "ConnectomeMask": {"out_file": data.seed()},
        "IndexedDisconnection": {"out_file": data.template(), "valid_mask": data.template()},
    }
    found = {
        step.key: (measured.gb, estimate.mem_gb)
        for step, measured, estimate in benchmark.run_case(case, tmp_path, STEPS, made)
    }
    assert set(found) == set(STEPS)
    wrong = {
        step: (gb, estimated)
        for step, (gb, estimated) in found.items()
        if not gb / 2 < estimated < 2 * gb
    }
    assert not wrong


@pytest.mark.parametrize("size", [field.name for field in fields(Sizes)])
def test_no_estimate_falls_when_data_grow(benchmark, size):
    larger = replace(SMALL, **{size: 4 * getattr(SMALL, size)})
    for step in [*{step.name for step in benchmark.all_steps()}, "SelectSeeds"]:
        # More streamlines in as many bytes are shorter ones, as many weights on more voxels are
        # fewer on other grids, and more threads take less time.
        if (size, step) not in (
            ("streamlines", "BuildStreamlineIndex"),
            ("atlas_voxels", "AggregateParcels"),
        ):
            before, after = estimate_resources(step, SMALL), estimate_resources(step, larger)
            assert after.mem_gb >= before.mem_gb
            assert after.minutes >= before.minutes or size == "threads"


def test_a_step_without_an_estimate():
    assert not has_estimate("Merge")
    with pytest.raises(KeyError):
        estimate_resources("Merge", SMALL)


def test_limits_of_time():
    assert time_limit(0) == time_limit(0.5) >= 10
    assert time_limit(100) > 200
    assert isinstance(time_limit(33.3), int)


def graph(tmp_path, engine):
    given = {
        key: tmp_path / name
        for key, name in (
            ("mask", "mask.nii.gz"), ("warp", "warp.h5"), ("atlas", "a.nii.gz"),
            ("labels", "a.txt"), ("series", "a.h5"), ("matrix", "m.tsv"), ("tracks", "t.trk"),
            ("groups", "groups.tsv"), ("weights", "weights.txt"),
        )
    }  # fmt: skip
    for path in given.values():
        path.touch()
    atlas = {"image": given["atlas"], "labels": given["labels"], "name": "A",
             "entities": {"atlas": "A"}}  # fmt: skip
    return init_lacuna_wf(
        lesions=[
            {
                "key": f"sub-{number}",
                "mask_file": given["mask"],
                "entities": {"subject": str(number), "space": "MNI152NLin6Asym", "label": "L"},
                **lesion,
            }
            for number, lesion in enumerate(
                (
                    {},
                    {
                        "normalisation": [given["warp"]],
                        "returns": {
                            "fnm": {"space": "MNI152NLin6Asym", "resolution": 1.0,
                                    "transforms": [], "n_subjects": 10},
                            "snm": {"space": "MNI152NLin6Asym", "resolution": 1.0,
                                    "transforms": [given["warp"]]},
                        },
                    },
                )
            )
        ],
        output_dir=tmp_path / "out",
        base_dir=tmp_path / "work",
        analyses=["rd", "fnm", "snm", "afnm"],
        atlases=[atlas],
        functional_files=[given["series"], given["series"]],
        functional_space="MNI152NLin6Asym",
        fnm_options={"method": "pini", "verify_voxels": 3, "verify_files": [given["series"]]},
        matrix_file=given["matrix"],
        tractogram={
            "tractogram": given["tracks"], "space": "MNI152NLin6Asym", "convert": True,
            "streamline_groups": given["groups"],
        },
        snm_options={"engine": engine, "streamline_weights": given["weights"]},
        snm_outputs=StructuralOutputs(
            matrix_atlases=[atlas],
            matrices=True, roi=True, bundles="groups", intermediate=False, weighted=True,
        ),
        memory_gb=0.2,
        omp_nthreads=2,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ["mrtrix", "index"])
def test_every_step_of_a_graph_is_estimated(tmp_path, engine):
    workflow = graph(tmp_path, engine)
    apply_estimates(workflow, SMALL)
    nodes = list(iter_nodes(workflow))
    assert len(nodes) == len(workflow.list_node_names())
    seen = set()
    for node in nodes:
        step = type(node.interface).__name__
        if step != "IdentityInterface" and not node.run_without_submitting:
            seen.add(step)
            estimate = estimate_resources(step, SMALL)
            assert node.plugin_args["minutes"] == time_limit(estimate.minutes)
            assert node.n_procs == estimate.n_procs
            assert 0.07 < node.mem_gb <= estimate.mem_gb
            if "num_threads" in node.interface.inputs.copyable_trait_names() and (
                isdefined(node.interface.inputs.num_threads)
            ):
                assert node.interface.inputs.num_threads == estimate.n_procs
    assert {"CorrelateBatch", "SelectSeeds", "ReturnMap", "PrepareGroups"} < seen
    assert ("TCKMap" in seen) == (engine == "mrtrix")


def test_only_steps_with_transforms_need_room_for_them(tmp_path):
    workflow = graph(tmp_path, "index")
    apply_estimates(workflow, replace(SMALL, transform_bytes=10**9))
    memory = {node.fullname.split(".", 1)[1]: node.mem_gb for node in iter_nodes(workflow)}
    warped = {name for name, gb in memory.items() if gb > 2}
    assert {name.rpartition(".")[2] for name in warped} == {"normalise", "snm_return"}


def test_what_runs_with_the_manager_keeps_what_it_declares(tmp_path):
    workflow = graph(tmp_path, "index")
    before = {n.fullname: n.mem_gb for n in iter_nodes(workflow) if n.run_without_submitting}
    apply_estimates(workflow, SMALL)
    after = {n.fullname: n.mem_gb for n in iter_nodes(workflow) if n.run_without_submitting}
    assert before == after
    assert not any(math.isnan(gb) for gb in after.values())


@pytest.mark.parametrize(
    ("grid", "size"), [("functional", "structural_voxels"), ("structural", "functional_voxels")]
)
def test_maps_on_one_grid_are_not_estimated_by_the_other(grid, size):
    sizes = sizes_on_grid(replace(SMALL, **{size: 10**9}), grid)
    for step in ("AggregateParcels", "PrepareParcels"):
        assert estimate_resources(step, sizes).mem_gb < 0.3


def test_steps_of_a_graph_know_their_grid(tmp_path):
    workflow = graph(tmp_path, "index")
    apply_estimates(workflow, replace(SMALL, structural_voxels=10**8))
    memory = {node.fullname: node.mem_gb for node in iter_nodes(workflow)}
    for kind in ("parcellate_wf.aggregate", "atlas_1"):
        found = {
            analysis: [gb for name, gb in memory.items() if f"{analysis}_{kind}" in name]
            for analysis in ("fnm", "snm")
        }
        assert found["fnm"]
        assert max(found["fnm"]) < 0.3
        assert min(found["snm"]) > 0.5
