import numpy as np
import pytest
from group_data import SPACE, write_map, write_table
from nipype.pipeline.engine.utils import generate_expanded_graph

from lacuna_nipype.core.association import make_design
from lacuna_nipype.io.group_maps import overlap_maps
from lacuna_nipype.workflows import init_group_wf
from lacuna_nipype.workflows.group import node_name

PLACE = {"template": SPACE, "label": "a+b"}


def settings(paths, **others):
    design = make_design(np.arange(6.0), np.arange(6.0)[:, None] ** 2, covariate_names=["v"])
    return {
        "paths": paths, "metadata": {"Sources": []}, "design": design, "minimum": 1,
        "permutations": 19, "seed": 0, "valid_paths": [], "memory_gb": 0.5, **others,
    }  # fmt: skip


@pytest.mark.parametrize("tfce", [False, True])
def test_all_results_find_their_places(tmp_path, tfce):
    rng = np.random.default_rng(0)
    maps, tables = [], []
    for number in range(6):
        maps.append(write_map(tmp_path / "in", f"{number}", rng.normal(size=(4, 4, 4))))
        tables.append(write_table(tmp_path / "in", f"{number}", rng.normal(size=3)))
    place = {**PLACE, "model": "iq", "desc": "fnm"}
    atlas = {**PLACE, "atlas": "Toy", "model": "iq", "desc": "fnm"}
    workflow = init_group_wf(
        output_dir=tmp_path / "out",
        base_dir=tmp_path / "work",
        tables=[
            {
                "name": "t", "paths": tables, "quantity": "z", "metadata": {},
                "first_columns": [("participant_id", [f"sub-{n}" for n in range(6)])],
                "entities": {
                    "datatype": "phenotype", "space": SPACE, "atlas": "Toy", "label": "a",
                    "statistic": "z", "desc": "fnm", "suffix": "parcelstats",
                },
            }
        ],
        overlaps=[
            {
                "name": "o", "paths": maps, "made": overlap_maps("fnm", "t"), "metadata": {},
                "entities": {**PLACE, "session": "01", "res": "2"},
            }
        ],
        map_tests=[settings(maps, name="m", entities={**place, "res": "2"}, tfce=tfce)],
        table_tests=[
            settings(
                tables, name="p", quantity="z",
                entities={**atlas, "statistic": "z", "suffix": "parcelstats"},
            )
        ],
    )  # fmt: skip
    workflow.config["execution"]["crashdump_dir"] = str(tmp_path)
    workflow.run()
    start = f"tpl-{SPACE}"
    model = f"{start}/anat/{start}_res-2_label-a+b_model-iq"
    session = f"{start}/ses-01/anat/{start}_ses-01_res-2_label-a+b"
    expected = {
        f"phenotype/group_space-{SPACE}_atlas-Toy_label-a_stat-z_desc-fnm_parcelstats.tsv",
        f"{session}_stat-overlappositive_desc-fnm_statmap.nii.gz",
        f"{session}_stat-overlapnegative_desc-fnm_statmap.nii.gz",
        f"{start}/anat/{start}_atlas-Toy_label-a+b_model-iq_stat-z_desc-fnm_parcelstats.tsv",
        f"{model}_stat-t_desc-fnm_clusters.tsv",
        *(
            f"{model}_stat-{name}_desc-fnm_statmap.nii.gz"
            for name in ("t", "logpfwe", "partialr", "tested", *(["logptfce"] if tfce else []))
        ),
    }
    made = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert {name for name in made if not name.endswith(".json")} == expected
    assert len(made) == 2 * len(expected)


def test_nothing_asked_is_an_empty_graph(tmp_path):
    workflow = init_group_wf(output_dir=tmp_path)
    assert len(generate_expanded_graph(workflow._create_flat_graph())) == 0


def test_names_of_nodes_are_words():
    assert node_name("collect", "label-a+b_stat-z") == "collect_label_aplusb_stat_z"
