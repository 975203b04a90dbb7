"""Thin Nipype interfaces; importing this package costs nothing until a name is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {
    "ValidateMask": "mask",
    "ResampleMask": "mask",
    "ApplyTransform": "transforms",
    "ConnectomeMask": "functional",
    "CorrelateBatch": "functional",
    "ListMaps": "functional",
    "PickMaps": "functional",
    "ReduceCorrelation": "functional",
    "SeedCorrelations": "functional",
    "SelectSeeds": "functional",
    "VerifyMaps": "functional",
    "PrepareParcels": "parcels",
    "RegionalDamage": "parcels",
    "AggregateParcels": "parcels",
    "ParcelScores": "afnm",
    "BundleAtlas": "atlases",
    "FetchParcellation": "atlases",
    "MapInfo": "atlases",
    "RegionMask": "atlases",
    "ResampleParcellation": "atlases",
    "TemplateGrid": "structural",
    "DisconnectionMap": "structural",
    "CombineSummaries": "structural",
    "ReturnFunctionalMaps": "returned",
    "ReturnMap": "returned",
    "AssignIndexedStreamlines": "streamlines",
    "BuildStreamlineIndex": "streamlines",
    "CheckTractogram": "streamlines",
    "ConvertTractogram": "streamlines",
    "IndexedDensity": "streamlines",
    "IndexedDisconnection": "streamlines",
    "BundleDisconnection": "disconnectivity",
    "DisconnectivityMatrix": "disconnectivity",
    "FullMatrix": "disconnectivity",
    "PrepareGroups": "disconnectivity",
    "PrepareNodes": "disconnectivity",
    "PrepareWeights": "disconnectivity",
    "AssignStreamlines": "assignment",
    "MRCalc": "mrtrix",
    "SelectStreamlines": "mrtrix",
    "TCK2Connectome": "mrtrix",
    "TCKEdit": "mrtrix",
    "TCKInfo": "mrtrix",
    "TCKMap": "mrtrix",
    "AssociateMaps": "group",
    "AssociateTables": "group",
    "CollectTable": "group",
    "CountOverlap": "group",
    "DerivativesDataSink": "bids",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
