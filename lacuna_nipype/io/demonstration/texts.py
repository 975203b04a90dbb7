"""The texts that accompany the demonstration dataset."""

DATASET_README = """\
# Lacuna demonstration: synthetic lesions on MNI anatomy

This is a synthetic demonstration, not for science. No mask belongs to a real person, and ages,
scores and causes are made up.

Seven lesion masks of five participants on the 1 mm grid of MNI152NLin6Asym (182 x 218 x 182),
values 0 and 1. Some files are stored LAS (first voxel at +90, -126, -72 mm, as FSL writes them),
the others RAS (first voxel at -91, -126, -72 mm): world coordinates decide, not array indices.

| participant | session | label | place | storage |
|---|---|---|---|---|
| sub-01 | ses-01 | acuteinfarct | left middle cerebral artery | LAS |
| sub-02 | ses-01 | acuteinfarct | left posterior territory | RAS |
| sub-02 | ses-02 | acuteinfarct | the same lesion, smaller | RAS |
| sub-03 | | acuteinfarct | left thalamus | LAS |
| sub-03 | | haemorrhage | right putamen | RAS |
| sub-04 | | acuteinfarct | left frontal lobe | RAS |
| sub-05 | | acuteinfarct | right middle cerebral artery | LAS |

`tpl-MNI152NLin6Asym` holds the parcellation "Demo": 100 cortical parcels in 7 networks on the 2 mm
grid. Parcel i + 50 is the mirror image of parcel i.

The anatomy behind it is the ICBM 2009a nonlinear *symmetric* template that nilearn ships,
regridded in world coordinates and declared as MNI152NLin6Asym. The two templates differ by a few
millimetres.
"""

README = """\
# A demonstration dataset for lacuna-nipype

**This is a synthetic demonstration, not for science.** It was made from a random seed by
`lacuna-nipype tutorial`. The anatomy is the ICBM 2009a nonlinear *symmetric* template shipped with
nilearn; it was regridded in world coordinates onto the grids of MNI152NLin6Asym and is declared
as that space, from which it differs by a few millimetres. Lesions, parcels, time series
and streamlines were then simulated on it: their anatomy is plausible, their physiology is not.

## Run it

DIR is this folder, OUT is a new folder for the results (each command is one line):

    lacuna-nipype DIR/bids OUT participant \
--functional-connectome DIR/connectomes/functional \
--structural-connectome DIR/connectomes/structural/demo.tck --parcel-atlases Demo \
--plugin MultiProc
    lacuna-nipype DIR/bids OUT group

## What is here

- `bids/`: a BIDS derivative dataset with seven lesion masks of five participants, 1 mm grid.
  sub-02 has two sessions, sub-03 two lesions with different labels, and the lesion of sub-05 is
  in the right hemisphere. Some files are stored LAS and some RAS. `participants.tsv` has a
  made-up `symptom_score` for group statistics.
- `bids/tpl-MNI152NLin6Asym/`: the parcellation "Demo", 100 cortical parcels in 7 networks, 2 mm.
  The right parcels mirror the left ones.
- `connectomes/functional/`: two HDF5 files with {n_subjects} simulated subjects each,
  {n_timepoints} time points, {n_voxels} voxels of the brain on a 4 mm grid stored LAS
  (46 x 55 x 46, first voxel at +90, -126, -72 mm). The series of one network correlate; the
  default network is anticorrelated with the two attention networks; white matter has noise and a
  weak global signal only.
- `connectomes/structural/demo.tck`: {n_streamlines} streamlines with a vertex every millimetre:
  association fibres (more within a network and over short distances), callosal fibres between
  mirrored parcels, and corticospinal fibres. `demo.json` beside it names the space.

The seed was {seed}. The same seed gives the same bytes with the same versions of the libraries.
"""
