import json

import pytest

from lacuna_nipype.connectomes.public import list_fetchable_connectomes
from lacuna_nipype.core.exceptions import ValidationError


@pytest.mark.parametrize("field", ["name", "colour"])
def test_a_field_that_no_entry_has_is_named(data_folder, field):
    path = data_folder / "connectomes" / "sources.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"gsp1000": {field: "x"}}))
    with pytest.raises(ValidationError, match=f"unknown field '{field}'"):
        list_fetchable_connectomes()
