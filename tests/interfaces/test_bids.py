"""The data sink through nodes: names, sidecars, caching, whole files."""

import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from nipype import config
from nipype.interfaces import utility as niu
from nipype.interfaces.base import Undefined
from nipype.pipeline import engine as pe

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.interfaces import DerivativesDataSink

LESION = {"subject": "01", "session": "02", "space": "MNI152NLin6Asym", "label": "acuteinfarct"}
STEM = "sub-01/ses-02/anat/sub-01_ses-02_space-MNI152NLin6Asym"
MASK = {**LESION, "res": "2", "desc": "lesion", "suffix": "mask"}


@pytest.fixture
def dataset(tmp_path):
    return tmp_path / "derivatives"


@pytest.fixture
def three_files(make_mask, tmp_path):
    """A map, a table and a summary, as one analysis leaves them."""
    table, summary = tmp_path / "inputs" / "table.tsv", tmp_path / "inputs" / "numbers.json"
    image = make_mask("map.nii.gz", dtype=np.float32)
    table.write_text("index\tname\tz\tcoverage\n1\tlow\t0.5\t1\n")
    summary.write_text('{"Answer": 42}\n')
    return [image, str(table), str(summary)]


@pytest.fixture
def make_sink(dataset, three_files):
    def make(**changes):
        return DerivativesDataSink(
            **{
                "base_directory": str(dataset),
                "in_file": three_files,
                "entities": {**LESION, "desc": "fnm"},
                "variants": [
                    {"statistic": "z", "suffix": "statmap", "res": "2"},
                    {
                        "atlas": "Demo", "segmentation": "7n", "scale": "100",
                        "statistic": "z", "suffix": "parcelstats",
                    },
                    {"suffix": "stats"},
                ],
                **changes,
            }
        )  # fmt: skip

    return make


EXPECTED = [
    f"{STEM}_res-2_label-acuteinfarct_stat-z_desc-fnm_statmap.nii.gz",
    f"{STEM}_atlas-Demo_seg-7n_scale-100_label-acuteinfarct_stat-z_desc-fnm_parcelstats.tsv",
    f"{STEM}_label-acuteinfarct_desc-fnm_stats.json",
]


def test_names_of_a_list(make_sink, run_node, dataset):
    outputs = run_node(make_sink())
    assert outputs.out_file == [str(dataset / name) for name in EXPECTED]
    written = {path.relative_to(dataset).as_posix() for path in dataset.rglob("*.*")}
    sidecars = {EXPECTED[0].replace(".nii.gz", ".json"), EXPECTED[1].replace(".tsv", ".json")}
    assert written == {*EXPECTED, *sidecars}
    assert outputs.out_meta == [str(dataset / name) for name in sorted(sidecars, reverse=True)]


def test_single_file(make_mask, run_node, dataset):
    sink = DerivativesDataSink(base_directory=str(dataset), in_file=make_mask(), entities=MASK)
    outputs = run_node(sink)
    name = f"{STEM}_res-2_label-acuteinfarct_desc-lesion_mask"
    assert outputs.out_file == str(dataset / f"{name}.nii.gz")
    assert outputs.out_meta == str(dataset / f"{name}.json")


def test_bytes_are_those_of_the_source(make_sink, run_node, three_files):
    outputs = run_node(make_sink())
    for source, stored in zip(three_files, outputs.out_file, strict=True):
        assert Path(stored).read_bytes() == Path(source).read_bytes()


def test_sidecars_merge_from_general_to_specific(make_sink, run_node, tmp_path, content_of):
    files = []
    for number in range(2):
        files.append(tmp_path / "inputs" / f"meta_{number}.json")
        files[-1].write_text(f'{{"A": "file {number}", "B": "file {number}"}}')
    outputs = run_node(
        make_sink(
            metadata={"A": "shared", "B": "shared", "C": "shared", "D": ["shared"]},
            meta_files=[str(path) for path in files],
            variant_metadata=[{"B": "own"}, {}, {}],
        )
    )
    image, table = (content_of(path) for path in outputs.out_meta)
    assert image == {"A": "file 1", "B": "own", "C": "shared", "D": ["shared"]}
    assert {key: table[key] for key in "ABCD"} == {**image, "B": "file 1"}


def test_table_sidecars_describe_their_columns(make_sink, run_node, content_of):
    image, table = (content_of(path) for path in run_node(make_sink()).out_meta)
    assert image == {}
    assert set(table) == {"index", "name", "z", "coverage"}
    assert all(entry["Description"] for entry in table.values())


def test_no_file_is_left_half_written(make_sink, run_node, dataset, monkeypatch):
    def fail(source, target):
        Path(target).write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", fail)
        with pytest.raises(RuntimeError, match="No space left"):
            run_node(make_sink())
    assert [path for path in dataset.rglob("*") if path.is_file()] == []


def test_stored_files_are_as_readable_as_any(make_sink, run_node, tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    outputs = run_node(make_sink())
    modes = {stat.S_IMODE(Path(path).stat().st_mode) for path in outputs.out_file}
    assert modes == {stat.S_IMODE(plain.stat().st_mode)}


def test_second_run_is_cached(make_sink, runs_once):
    assert runs_once(make_sink)


@pytest.mark.parametrize("number", range(3))
def test_missing_file_is_stored_again(make_sink, run_node, number):
    stored = [Path(path) for path in run_node(make_sink()).out_file]
    stored[number].unlink()
    run_node(make_sink())
    assert all(path.is_file() for path in stored)


@pytest.mark.parametrize("plugin", ["Linear", "MultiProc"])
def test_missing_file_is_stored_again_by_a_connected_sink(
    make_mask, dataset, tmp_path, plugin, monkeypatch
):
    """Linear asks whether to trust the cache before it has fetched the connected inputs."""

    mask = make_mask()
    monkeypatch.setitem(config._sections["execution"], "poll_sleep_duration", "0.05")

    def run():
        workflow = pe.Workflow("wf", base_dir=str(tmp_path / "work"))
        files = pe.Node(niu.Merge(1), name="files")
        files.inputs.in1 = mask
        sink = pe.Node(
            DerivativesDataSink(base_directory=str(dataset), entities=MASK), name="sink"
        )
        workflow.connect(files, "out", sink, "in_file")
        workflow.run(plugin, plugin_args={"n_procs": 1} if plugin == "MultiProc" else {})
        return tmp_path / "work" / "wf" / "sink" / "result_sink.pklz"

    result = run()
    before = result.stat().st_mtime_ns
    run()
    assert result.stat().st_mtime_ns == before
    (stored,) = dataset.rglob("*.nii.gz")
    stored.unlink()
    run()
    assert stored.is_file()


def test_changed_source_is_stored_again(make_mask, dataset, run_node, data_of):
    for box in (np.s_[0:2, 0, 0], np.s_[0:4, 0, 0]):
        sink = DerivativesDataSink(
            base_directory=str(dataset), in_file=make_mask(box=box), entities=MASK
        )
        stored = run_node(sink).out_file
    assert data_of(stored).sum() == 4


def test_targets_are_known_before_the_files(make_sink, dataset):
    sink = make_sink()
    assert sink.targets() == [dataset / name for name in EXPECTED]
    sink.inputs.trait_set(in_file=Undefined)
    assert sink.targets() == [dataset / name for name in EXPECTED]


def test_files_of_one_name_are_refused(make_mask, dataset):
    sink = DerivativesDataSink(
        base_directory=str(dataset),
        in_file=[make_mask("a.nii.gz"), make_mask("b.nii.gz")],
        entities=MASK,
    )
    with pytest.raises(ValidationError):
        sink.targets()
    assert sink.always_run


def test_entities_without_a_pattern_are_refused(make_mask, dataset, run_node):
    sink = DerivativesDataSink(
        base_directory=str(dataset), in_file=make_mask(), entities={**MASK, "atlas": "Demo"}
    )
    with pytest.raises(RuntimeError, match="pattern"):
        run_node(sink)
