"""The documented names of ``lacuna_nipype.io`` and their signatures."""

import dataclasses
import inspect
import subprocess
import sys
from inspect import Parameter

import pytest

import lacuna_nipype
import lacuna_nipype.io
from lacuna_nipype.atlases import masks as brain_masks
from lacuna_nipype.core import exceptions

REQUIRED = Parameter.empty
KEYWORDS = "keywords"  # parameters after it are keyword-only

# Parameters in their order, with their defaults. Further keyword-only ones are allowed.
FUNCTIONS = {
    "load_bids_dataset": {
        "bids_root": REQUIRED, "pattern": "*", "suffix": "_mask.nii.gz", "recursive": True,
        "space": None, "resolution": None, "subjects": None,
    },
    "load_derivatives": {"derivatives_dir": REQUIRED},
    "export_bids_derivatives": {
        "subject_data": REQUIRED, "output_dir": REQUIRED, "export_lesion_mask": True,
        "export_voxelmaps": True, "export_parcel_data": True, "export_connectivity": True,
        "export_scalars": True, "export_provenance": True, "overwrite": False,
    },
    "save_nifti": {"mask_data": REQUIRED, "output_path": REQUIRED, "save_anatomical": False},
    "validate_bids_derivatives": {"derivatives_dir": REQUIRED, "raise_on_error": True},
    "export_results_to_csv": {
        "mask_data": REQUIRED, "output_path": REQUIRED, "analysis_name": None,
        "include_metadata": True,
    },
    "export_results_to_tsv": {
        "mask_data": REQUIRED, "output_path": REQUIRED, "analysis_name": None,
        "include_metadata": True,
    },
    "export_results_to_json": {
        "mask_data": REQUIRED, "output_path": REQUIRED, "analysis_name": None,
        "include_metadata": True, "include_provenance": False, "indent": 2,
    },
    "export_provenance_to_json": {"mask_data": REQUIRED, "output_path": REQUIRED, "indent": 2},
    "batch_export_to_csv": {
        "mask_data_list": REQUIRED, "output_path": REQUIRED, "analysis_name": None,
        "include_metadata": True,
    },
    "batch_export_to_tsv": {
        "mask_data_list": REQUIRED, "output_path": REQUIRED, "analysis_name": None,
        "include_metadata": True,
    },
    "list_fetchable_connectomes": {},
    "fetch_connectome": {"name": REQUIRED, "output_dir": REQUIRED},
    "fetch_gsp1000": {
        "output_dir": REQUIRED, KEYWORDS: KEYWORDS, "api_key": None, "batches": 10,
        "test_mode": False, "skip_checksum": False, "register": True,
        "register_name": "GSP1000", "force": False, "progress_callback": None, "verbose": False,
    },
    "fetch_dtor985": {
        "output_dir": REQUIRED, KEYWORDS: KEYWORDS, "api_key": None, "keep_original": True,
        "register": True, "register_name": "dTOR985", "force": False, "progress_callback": None,
        "verbose": False,
    },
    "fetch_dtor985_subsample": {
        "variant": REQUIRED, "output_dir": REQUIRED, KEYWORDS: KEYWORDS, "register": True,
        "register_name": None, "force": False, "progress_callback": None, "verbose": False,
    },
    "fetch_hcp1065": {
        "output_dir": REQUIRED, KEYWORDS: KEYWORDS, "keep_original": True, "register": True,
        "register_name": "HCP1065", "force": False, "progress_callback": None, "verbose": False,
    },
    "get_connectome_path": {"name_or_path": REQUIRED},
    "get_data_dir": {},
    "get_fetch_status": {"name": REQUIRED},
    "gsp1000_to_hdf5": {
        "gsp_dir": REQUIRED, "mask_path": REQUIRED, "output_dir": REQUIRED,
        "subjects_per_chunk": 10, KEYWORDS: KEYWORDS, "max_subjects": None, "overwrite": False,
    },
    "trk_to_tck": {
        "trk_path": REQUIRED, "output_path": REQUIRED, KEYWORDS: KEYWORDS, "overwrite": False,
    },
    "merge_trk_to_tck": {
        "source_dir": REQUIRED, "output_path": REQUIRED, KEYWORDS: KEYWORDS,
        "exclude_patterns": None, "overwrite": False,
    },
}  # fmt: skip

# Fields in their order, with their defaults. Further ones at the end are allowed.
RECORDS = {
    "ConnectomeSource": {
        "name": REQUIRED, "display_name": REQUIRED, "type": REQUIRED, "description": REQUIRED,
        "source_type": REQUIRED, "persistent_id": None,
        "dataverse_server": "https://dataverse.harvard.edu", "download_url": None,
        "article_id": None, "default_batches": 10, "requires_mask": False, "mask_url": None,
        "n_subjects": 0, "space": "MNI152NLin6Asym", "estimated_size_gb": 0.0, "citation": "",
    },
    "FetchConfig": {
        "connectome": REQUIRED, "output_dir": REQUIRED, "api_key": None, "batches": 10,
        "keep_original": True, "register": True, "register_name": None, "force": False,
        "resume": True,
    },
    "FetchProgress": {
        "phase": REQUIRED, "current_file": REQUIRED, "files_completed": REQUIRED,
        "files_total": REQUIRED, "bytes_transferred": 0, "bytes_total": 0, "message": "",
    },
    "FetchResult": {
        "success": REQUIRED, "connectome_name": REQUIRED, "output_dir": REQUIRED,
        "output_files": [], "registered": False, "register_name": None, "duration_seconds": 0,
        "download_time_seconds": 0, "processing_time_seconds": 0, "warnings": [], "error": None,
    },
    "SubjectData": {
        "mask_img": REQUIRED, "space": None, "resolution": None, "metadata": {}, "results": {},
        "provenance": None,
    },
}  # fmt: skip
OTHER_NAMES = ("VoxelMap", "ParcelData", "ConnectivityMatrix", "Tractogram", "ScalarMetric")
ERRORS = {
    "BidsError": (), "ValidationError": (), "EmptyMaskError": (), "SpatialMismatchError": (),
    "DownloadError": ("url", "reason"), "ProcessingError": ("operation", "reason"),
    "AuthenticationError": ("url", "reason"),
}  # fmt: skip


def check_parameters(function, documented):
    """Compare what is documented with what there is."""
    parameters = dict(inspect.signature(function).parameters)
    names = [name for name in documented if name != KEYWORDS]
    only_by_name = set()
    if KEYWORDS in documented:
        only_by_name = set(list(documented)[list(documented).index(KEYWORDS) + 1 :])
    assert [name for name in parameters if name in documented] == names
    for name, parameter in parameters.items():
        if name not in documented:
            assert parameter.kind in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD), name
            continue
        assert parameter.default is documented[name] or parameter.default == documented[name], name
        assert (parameter.kind is Parameter.KEYWORD_ONLY) == (name in only_by_name), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_documented_parameters(name):
    check_parameters(getattr(lacuna_nipype.io, name), FUNCTIONS[name])


def test_options_of_a_connectome_go_through():
    parameters = inspect.signature(lacuna_nipype.io.fetch_connectome).parameters
    assert list(parameters.values())[-1].kind is Parameter.VAR_KEYWORD


@pytest.mark.parametrize("name", RECORDS)
def test_records_have_the_documented_fields(name):
    fields = dataclasses.fields(getattr(lacuna_nipype.io, name))
    documented = RECORDS[name]
    assert [field.name for field in fields][: len(documented)] == list(documented)
    for field in fields:
        has_factory = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if has_factory else field.default
        default = REQUIRED if default is dataclasses.MISSING else default
        if field.name in documented:
            assert default is documented[field.name] or default == documented[field.name]
        else:
            assert default is not REQUIRED


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("FetchConfig", ["from_cli_args", "get_api_key"]),
        ("FetchProgress", ["percent_complete", "download_percent"]),
        ("FetchResult", ["summary"]),
    ],
)
def test_records_have_the_documented_members(name, members):
    assert all(hasattr(getattr(lacuna_nipype.io, name), member) for member in members)


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    error = getattr(lacuna_nipype.io, name)
    assert issubclass(error, exceptions.LacunaError)
    if ERRORS[name]:
        given = error(*ERRORS[name])
        assert [getattr(given, part) for part in ERRORS[name]] == list(ERRORS[name])


def test_brain_masks():
    documented = {"space": REQUIRED, "resolution": REQUIRED}
    check_parameters(brain_masks.mask_name, documented)
    check_parameters(
        brain_masks.load_brain_mask, {**documented, KEYWORDS: KEYWORDS, "validate": True}
    )
    fields = dataclasses.fields(brain_masks.BrainMaskMetadata)
    assert [field.name for field in fields][:6] == [
        *("name", "space", "resolution", "url", "sha256", "source"),
    ]
    assert [field.default for field in fields][3:6] == ["", "", "templateflow"]
    assert brain_masks.BrainMaskMetadata.__dataclass_params__.frozen


def test_every_documented_name_is_exported():
    documented = {*FUNCTIONS, *RECORDS, *ERRORS, *OTHER_NAMES}
    assert documented <= set(lacuna_nipype.io.__all__)
    assert set(lacuna_nipype.io.__all__) <= set(dir(lacuna_nipype.io))
    for name in lacuna_nipype.io.__all__:
        assert getattr(lacuna_nipype.io, name).__doc__


def test_unknown_names():
    with pytest.raises(AttributeError, match="nothing"):
        _ = lacuna_nipype.io.nothing
    with pytest.raises(AttributeError, match="nothing"):
        _ = lacuna_nipype.nothing


def test_a_run_takes_masks_and_everything_else_by_name():
    parameters = dict(inspect.signature(lacuna_nipype.run).parameters)
    assert parameters.pop("masks").kind is Parameter.POSITIONAL_OR_KEYWORD
    assert list(parameters) == [
        *("functional_connectome", "structural_connectome", "atlases"),
        *("work_dir", "output_dir", "plugin", "settings"),
    ]
    kinds = {parameter.kind for parameter in parameters.values()}
    assert kinds == {Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import lacuna_nipype.io", {"nipype", "nilearn", "pandas", "numpy", "nibabel"}),
        ("from lacuna_nipype.io import load_derivatives", {"nipype", "nilearn", "pandas"}),
    ],
)
def test_names_are_imported_when_they_are_used(statement, unwanted):
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not set(done.stdout.split()) & unwanted


def test_importing_the_module_is_cheap():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import lacuna_nipype.io"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    (line,) = [line for line in done.stderr.splitlines() if line.endswith(" lacuna_nipype.io")]
    assert int(line.split("|")[1]) < 100_000
