"""Layout of derivatives datasets."""

import json

import pytest

from lacuna_nipype.core.exceptions import BidsError
from lacuna_nipype.io.validation import validate_bids_derivatives

DESCRIPTION = {
    "Name": "Results",
    "BIDSVersion": "1.10.1",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "lacuna-nipype"}],
}


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "dataset_description.json").write_text(json.dumps(DESCRIPTION))
    for folder in ("sub-01/anat", "sub-02/ses-01/func", "sub-02/ses-02/dwi", "logs", ".cache"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("sub-01.html", "README.md", ".bidsignore"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_sound_dataset(dataset):
    assert validate_bids_derivatives(dataset) == {"errors": [], "warnings": []}
    assert validate_bids_derivatives(str(dataset))["errors"] == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "missing"),
        ("{", "JSON"),
        ("[]", "object"),
        ({**DESCRIPTION, "Name": ""}, "Name"),
        ({**DESCRIPTION, "Name": 1}, "Name"),
        ({k: v for k, v in DESCRIPTION.items() if k != "BIDSVersion"}, "BIDSVersion"),
        ({k: v for k, v in DESCRIPTION.items() if k != "GeneratedBy"}, "GeneratedBy"),
        ({**DESCRIPTION, "GeneratedBy": {"Name": "x"}}, "list"),
        ({**DESCRIPTION, "GeneratedBy": []}, "list"),
        ({**DESCRIPTION, "GeneratedBy": [{"Name": "x"}, {"Version": "1"}]}, "Name"),
        ({**DESCRIPTION, "GeneratedBy": ["x"]}, "Name"),
    ],
)
def test_the_description_must_be_complete(dataset, content, reason):
    path = dataset / "dataset_description.json"
    path.unlink()
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    (error,) = validate_bids_derivatives(dataset, raise_on_error=False)["errors"]
    assert reason in error
    with pytest.raises(BidsError, match=reason):
        validate_bids_derivatives(dataset)


def test_participants_need_a_datatype(dataset):
    (dataset / "sub-02" / "ses-02" / "dwi").rename(dataset / "sub-02" / "ses-02" / "other")
    (dataset / "sub-0_3" / "anat").mkdir(parents=True)
    errors = validate_bids_derivatives(dataset, raise_on_error=False)["errors"]
    assert len(errors) == 2
    assert "ses-02" in errors[0]
    assert "sub-0_3" in errors[1]


def test_what_does_not_belong_is_a_warning(dataset):
    (dataset / "work").mkdir()
    (dataset / "notes.txt").touch()
    found = validate_bids_derivatives(dataset)
    assert found["errors"] == []
    assert ["notes.txt" in found["warnings"][0], "work" in found["warnings"][1]] == [True, True]


def test_other_oddities(tmp_path):
    description = {**DESCRIPTION, "DatasetType": "raw"}
    (tmp_path / "dataset_description.json").write_text(json.dumps(description))
    warnings = validate_bids_derivatives(tmp_path)["warnings"]
    assert "DatasetType" in warnings[0]
    assert "no participant" in warnings[1]
    with pytest.raises(FileNotFoundError):
        validate_bids_derivatives(tmp_path / "elsewhere")
