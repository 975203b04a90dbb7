#!/usr/bin/env bash
# After fMRIPrep: masks drawn on the T1w image (space-T1w in their names) go to the connectomes'
# space with the transforms that fMRIPrep left, and the maps come out there.
#
#   after_fmriprep.sh BIDS FMRIPREP OUT FUNCTIONAL STRUCTURAL [further options of lacuna-nipype]
#
# BIDS holds the masks (sub-01/anat/sub-01_space-T1w_label-lesion_mask.nii.gz), FMRIPREP the
# derivatives, of a run whose --output-spaces named the space of the connectomes
# (sub-01/anat/sub-01_from-T1w_to-MNI152NLin6Asym_mode-image_xfm.h5); FUNCTIONAL and STRUCTURAL
# are paths or registered names. Work files go to LACUNA_WORK_DIR, else beside OUT.
set -euo pipefail

if (($# < 5)); then
    sed -n '2,/^set/{/^#/p}' "$0" >&2
    exit 2
fi
bids=$1 fmriprep=$2 out=$3 functional=$4 structural=$5
work=${LACUNA_WORK_DIR:-${out%/}-work}
shift 5

exec lacuna-nipype "$bids" "$out" participant \
    --derivatives "fmriprep=$fmriprep" \
    --functional-connectome "$functional" --functional-space MNI152NLin6Asym \
    --structural-connectome "$structural" --structural-space MNI152NLin6Asym \
    --snm-engine index \
    -w "$work" "$@"
