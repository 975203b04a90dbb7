"""A small derivatives folder with everything that a page can show."""

import json

import nibabel as nb
import numpy as np
import pandas as pd
import pytest

SPACE = "MNI152NLin6Asym"
LABEL = "stroke"
REGIONS = [
    "7Networks_LH_Vis_1", "7Networks_LH_SomMot_1", "7Networks_LH_Default_1",
    "7Networks_RH_Vis_1", "7Networks_RH_SomMot_1", "Thalamus",
]  # fmt: skip
RUN_ID = "20260102T030405-0123abcd"
RAS = np.array([[6.0, 0, 0, -87], [0, 6, 0, -120], [0, 0, 6, -70], [0, 0, 0, 1]])
SHAPE = (30, 36, 28)


def save(path, data, affine=RAS, **sidecar):
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.save(nb.Nifti1Image(data, affine), path)
    if sidecar:
        write_json(path.with_name(path.name.replace(".nii.gz", ".json")), sidecar)
    return path


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def left_lesion():
    """A block in the left hemisphere: x from -51 to -27 mm."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[6:11, 14:20, 12:17] = 1
    return mask


def run_record(**changes):
    """What a run writes into the provenance file of a participant."""
    functional = {"Name": "GSP1000", "SpaceName": SPACE, "NumberOfSubjects": 1000,
                  "NumberOfFiles": 10, "Fingerprint": "sha256:f"}  # fmt: skip
    structural = {"Name": "dTOR985.tck", "SpaceName": "MNI152NLin2009bAsym",
                  "Fingerprint": "sha256:s"}  # fmt: skip
    record = {
        "RunID": RUN_ID,
        "Started": "2026-01-02T03:04:05+00:00",
        "Ended": "2026-01-02T03:14:05+00:00",
        "CommandLine": "lacuna-nipype /data/bids /data/out participant --mem '<16G>'",
        "Software": {"lacuna-nipype": "0.1.0", "Python": "3.11.7", "nipype": "1.11.0",
                     "nibabel": "5.4", "numpy": "2.0", "scipy": "1.14", "nilearn": "0.11",
                     "pybids": "0.17"},
        "Parameters": {"fnm_method": "boes", "pini_percentile": 20.0, "fdr_alpha": 0.05,
                       "t_threshold": None, "p_map": True, "streamline_weights": None,
                       "streamline_groups": None, "compute_disconnectivity_matrix": True,
                       "compute_roi_disconnection": True, "participant_label": ["01"]},
        "Analyses": {
            "rd": {"Method": "."},
            "fnm": {"Method": ".", "Connectome": functional},
            "snm": {"Method": ".", "Engine": "mrtrix", "HitTest": "vertices",
                    "MRtrixVersion": "3.0.4", "Connectome": structural},
        },
        "Atlases": [{"Name": "Schaefer2018_100", "Image": "tpl_dseg.nii.gz", "SpaceName": SPACE,
                     "Fingerprint": "sha256:a"}],
        "Inputs": [{"URI": "bids:raw:sub-01/anat/mask.nii.gz", "Fingerprint": "sha256:m",
                    "SpaceName": SPACE, "SpaceFrom": "entity", "Transforms": [], "Warnings": []}],
        "Steps": [],
    }  # fmt: skip
    return {**record, **changes}


def write_table(path, name, values, **columns):
    frame = pd.DataFrame({"index": range(1, len(values) + 1), "name": REGIONS[: len(values)]})
    frame[name] = values
    for column, numbers in columns.items():
        frame[column] = numbers
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, sep="\t", index=False, na_rep="n/a")
    write_json(path.with_suffix(".json"), {"Description": f"What {name} is.",
                                           "Atlas": {"Name": "Schaefer2018_100"}})  # fmt: skip


def write_matrix(path, values):
    pd.DataFrame(values, index=pd.Index(REGIONS, name="name"), columns=REGIONS).to_csv(
        path, sep="\t"
    )
    statistics = {"Matrices": {"Schaefer2018_100": {"Edges": 5, "EdgesAffected": 2}}}
    write_json(path.with_suffix(".json"), {"Statistics": statistics,
                                           "Atlas": {"Name": "Schaefer2018_100"}})  # fmt: skip


def write_participant(out, subject="01", session=None, mask=None, label=LABEL):
    """Write all results of a lesion and a record of the run that made them."""
    ids = f"sub-{subject}" + (f"_ses-{session}" if session else "")
    home = out / f"sub-{subject}" / (f"ses-{session}" if session else "") / "anat"
    space, atlas = f"{ids}_space-{SPACE}", "atlas-Schaefer2018_seg-7n_scale-100"
    mask = left_lesion() if mask is None else mask
    rng = np.random.default_rng(1)
    t = rng.normal(size=SHAPE).astype(np.float32)
    t[mask > 0] = 40
    t[22:25, 14:20, 12:17] = 20
    connectome = {"Name": "GSP1000", "NumberOfSubjects": 1000}
    outside = 10
    statistics = {"SeedVoxels": int(mask.sum()), "SeedVoxelsOutsideConnectome": outside,
                  "DegreesOfFreedom": 999, "NumberOfSubjects": 1000, "FDRAlpha": 0.05,
                  "SignificantPercent": 93.2}  # fmt: skip
    resampling = {"VoxelsBefore": 4000, "VoxelsAfter": int(mask.sum()), "VolumeMLBefore": 32.0,
                  "VolumeMLAfter": 32.4, "CentreShiftMM": 0.4, "KeptByCentre": False,
                  "VoxelsAdjusted": 0}  # fmt: skip
    save(home / f"{space}_res-6_label-{label}_desc-lesion_mask.nii.gz", mask,
         Sources=[f"bids:raw:sub-{subject}/anat/drawn_mask.nii.gz"])  # fmt: skip
    save(home / f"{space}_res-6_label-{label}_stat-t_desc-fnm_statmap.nii.gz", t,
         Statistics=statistics, Connectome=connectome, LesionResampling=resampling)  # fmt: skip
    save(home / f"{space}_res-6_label-{label}_stat-valid_desc-fnm_statmap.nii.gz",
         np.ones(SHAPE, dtype=np.uint8))  # fmt: skip
    cut = np.zeros(SHAPE, dtype=np.float32)
    cut[6:20, 16, 14] = np.linspace(100, 2, 14)
    save(home / f"{space}_res-6_label-{label}_stat-disconnectionpct_desc-snm_statmap.nii.gz", cut,
         Connectome={"Name": "dTOR985.tck"})  # fmt: skip
    write_json(home / f"{space}_label-{label}_desc-rd_stats.json",
               {"Atlases": [{"Name": "Schaefer2018_100", "Regions": 6, "RegionsTouched": 2,
                             "LesionInRegionsPercent": 45.2}]})  # fmt: skip
    write_json(home / f"{space}_label-{label}_desc-snm_stats.json",
               {"Streamlines": 12000, "StreamlinesHit": 1938, "StreamlinesHitPercent": 16.15,
                "VolumeHalfDisconnectedML": 20.2})  # fmt: skip
    table = f"{space}_{atlas}_label-{label}_stat-{{}}_desc-{{}}_parcelstats.tsv"
    write_table(home / table.format("damagepct", "rd"), "damagepct", [0, 65.14606, 8.5, 0, 0, 0],
                volume_ml=[7.6, 8.5, 9, 7, 8, 6])  # fmt: skip
    write_table(home / table.format("t", "fnm"), "t", [3.25, 20, -15, 1, 18, np.nan])
    write_table(home / table.format("disconnectionpct", "snm"), "disconnectionpct",
                [0, 94.5, 60, 0, 40, 0])  # fmt: skip
    matrix = f"{space}_{atlas}_label-{label}_stat-{{}}_desc-snm_relmat.tsv"
    full = np.ones((6, 6)) - np.eye(6)
    full[0, 3] = full[3, 0] = 0
    write_matrix(home / matrix.format("streamlinesfull"), full)
    lost = np.zeros((6, 6))
    lost[1, 2] = lost[2, 1] = 50
    write_matrix(home / matrix.format("disconnectionpct"), lost)
    write_json(out / f"sub-{subject}" / f"{ids}_desc-provenance.json", {"Runs": [run_record()]})
    return home


@pytest.fixture
def out(tmp_path):
    """Derivatives folder of one participant with one lesion."""
    write_participant(tmp_path / "out")
    return tmp_path / "out"
