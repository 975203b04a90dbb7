"""From lesion masks to a table of regions: ``python masks_to_table.py [FOLDER]``."""

import sys
from pathlib import Path

import lacuna_nipype
from lacuna_nipype.io import batch_export_to_tsv
from lacuna_nipype.io.demonstration import write_demonstration

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "masks-to-table")
data = write_demonstration(folder / "data", force=True)

lesions = lacuna_nipype.run(
    data.bids_dir,
    functional_connectome=data.functional_connectome,
    structural_connectome=data.structural_connectome,
    atlases=["Demo"],
    work_dir=folder / "work",
)
lesion = lesions["sub-01_ses-01_label-acuteinfarct"]
damage = lesion.results["rd"]["damagepct_atlas-Demo_seg-7n_scale-100"].data  # by region
network = lesion.results["fnm"]["z"].image  # a nibabel image
batch_export_to_tsv(list(lesions.values()), folder / "lesions.tsv")
