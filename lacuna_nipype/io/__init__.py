"""Lesion masks in, derivatives out: files, and the functions for notebooks.

The names of ``__all__`` are imported when they are first used, wherever they live, so that
``import lacuna_nipype.io`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "lacuna_nipype.core.exceptions": (
        "AuthenticationError", "BidsError", "DownloadError", "EmptyMaskError", "LacunaError",
        "ProcessingError", "SpatialMismatchError", "ValidationError",
    ),
    "lacuna_nipype.core.files": ("get_data_dir",),
    "lacuna_nipype.connectomes.conversion": ("merge_trk_to_tck", "trk_to_tck"),
    "lacuna_nipype.connectomes.gsp1000": ("gsp1000_to_hdf5",),
    "lacuna_nipype.connectomes.public": ("ConnectomeSource", "list_fetchable_connectomes"),
    "lacuna_nipype.connectomes.registry": ("get_connectome_path",),
    "lacuna_nipype.io.containers": (
        "ConnectivityMatrix", "ParcelData", "ScalarMetric", "SubjectData", "Tractogram",
        "VoxelMap",
    ),
    "lacuna_nipype.io.exports": (
        "batch_export_to_csv", "batch_export_to_tsv", "export_bids_derivatives",
        "export_provenance_to_json", "export_results_to_csv", "export_results_to_json",
        "export_results_to_tsv", "save_nifti",
    ),
    "lacuna_nipype.io.fetching": (
        "FetchConfig", "FetchProgress", "FetchResult", "fetch_connectome", "fetch_dtor985",
        "fetch_dtor985_subsample", "fetch_gsp1000", "fetch_hcp1065", "get_fetch_status",
    ),
    "lacuna_nipype.io.reading": ("load_bids_dataset", "load_derivatives"),
    "lacuna_nipype.io.validation": ("validate_bids_derivatives",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
