"""The source siibra, against a server that answers as siibra-api v3 does.

Tests named ``test_row_NN`` belong to the numbered rows of what the service offers: 2 and 3
atlases, 4 and 5 parcellations, 6 and 7 regions, 8 related regions, 9 and 10 spaces, 11 types of
features, 12 maps, 13 the range of a map. ``TestLabels`` and ``TestCache`` belong to the faults of
its files and of its cache.
"""

import gzip
import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from loopback import drop, page, slow, truncate

from lacuna_nipype.atlases.cache import cache_folder
from lacuna_nipype.atlases.entries import (
    AtlasNotFound,
    AtlasSource,
    IntegrityError,
    SourceUnavailable,
    SpaceMismatch,
)
from lacuna_nipype.atlases.labels import read_labels
from lacuna_nipype.atlases.parcels import load_parcels
from lacuna_nipype.atlases.services import (
    fetch_parcellation,
    find_run_atlases,
    get_atlas,
    list_atlases,
    list_regions,
)
from lacuna_nipype.atlases.siibra import PREFIX, SiibraSource
from lacuna_nipype.atlases.siibra_maps import (
    build_labelled_map,
    fetch_region_mask,
    fetch_template_on_map_grid,
    plan_parts,
)
from lacuna_nipype.atlases.siibra_queries import (
    find_labelled_map,
    find_statistical_region,
    get_map,
    get_parcellation,
    get_region,
    get_siibra_atlas,
    get_space,
    leaf_regions,
    list_feature_types,
    list_maps,
    list_parcellations,
    list_related_regions,
    list_siibra_atlases,
    list_siibra_regions,
    list_siibra_spaces,
    read_map_range,
)
from lacuna_nipype.atlases.siibra_service import DEFAULT_URL, SiibraService, service_url
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.remote.http_client import BackOff

if "siibra_server" not in sys.modules:
    _path = Path(__file__).parents[1] / "siibra_server.py"
    _spec = importlib.util.spec_from_file_location("siibra_server", _path)
    sys.modules["siibra_server"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["siibra_server"])

from siibra_server import (
    AFFINE,
    AREAS,
    BIG_BRAIN,
    COLIN_27,
    ELSEWHERE,
    ICBM_2009C,
    JULICH,
    JULICH_OLD,
    MANY,
    N_MANY,
    PACKED,
    PRECOMPUTED,
    SHAPE,
    SHEETS,
    SIDES,
    VERSION,
    SiibraServer,
    nifti_bytes,
    side_labels,
)

QUICK = BackOff(first=0.01, longest=0.02)
LEAVES = [f"{area} - {side}" for side in SIDES for area in AREAS]
# With a slash and a percent sign.
ODD_REGION = "Fo5/6 100% (OFC) - left hemisphere"
JULICH_ID = "siibra:julichbrain31"
SPACE = "MNI152NLin2009cAsym"
JULICH_WHERE = (JULICH, ICBM_2009C)


@pytest.fixture
def server(monkeypatch):
    with SiibraServer() as running:
        monkeypatch.setenv("LACUNA_SIIBRA_URL", running.url)
        yield running


@pytest.fixture
def service(server):
    with SiibraService(back_off=QUICK) as client:
        yield client


@pytest.fixture
def folder():
    return cache_folder("siibra", SPACE)


def make_source(**options):
    return SiibraSource(SiibraService(back_off=QUICK), **options)


def entry_of(source, name=JULICH_ID, space=SPACE):
    return next(e for e in source.entries() if (e.id, e.space) == (name, space))


def voxels(path):
    return np.asanyarray(nb.load(path).dataobj)


def files_in(folder):
    """What is in a folder of the cache, apart from locks."""
    return sorted(path.name for path in folder.glob("*") if path.suffix != ".lock")


class TestRequests:
    def test_address_is_the_variable_or_that_of_ebrains(self, monkeypatch):
        monkeypatch.delenv("LACUNA_SIIBRA_URL", raising=False)
        assert service_url() == DEFAULT_URL
        assert DEFAULT_URL == "https://siibra-api-stable.apps.ebrains.eu/v3_0"
        monkeypatch.setenv("LACUNA_SIIBRA_URL", "http://127.0.0.1:1/v3_0/")
        assert service_url() == "http://127.0.0.1:1/v3_0"

    def test_pages_of_one_item_give_the_whole_list_in_order(self, server):
        with SiibraService(page_size=1) as small, SiibraService() as large:
            assert list_parcellations(small) == list_parcellations(large)
        sizes = [query["size"] for path, query in server.seen if path == "/parcellations"]
        assert sizes == ["1"] * 8 + ["100"]

    @pytest.mark.parametrize("size", [0, 101])
    def test_page_sizes_that_the_service_refuses_are_not_asked_for(self, server, size):
        with pytest.raises(ValidationError, match="1 to 100"):
            SiibraService(page_size=size)

    def test_list_that_changes_meanwhile_is_refused(self, server, monkeypatch):
        monkeypatch.setattr(
            server, "_page", lambda items, query: server._json({"items": [], "total": 3})
        )
        with SiibraService() as client, pytest.raises(SourceUnavailable, match="3 items"):
            list_parcellations(client)

    def test_version_is_that_of_the_last_answer(self, service):
        assert service.version == ""
        list_siibra_spaces(service)
        assert service.version == VERSION

    def test_missing_field_is_refused_with_the_reason_of_the_service(self, service):
        with pytest.raises(ValidationError, match="field required"):
            service.read("regions")

    @pytest.mark.parametrize("status", [429, 502, 503, 504])
    def test_temporary_failure_is_tried_again(self, server, service, status):
        server.fail_next += [status, status]
        assert len(list_siibra_spaces(service)) == 4
        assert server.paths() == ["/spaces"] * 3

    def test_broken_connection_is_tried_again(self, server, service):
        server.add_fault("/spaces", drop(20))
        assert len(list_siibra_spaces(service)) == 4

    def test_500_is_not_tried_again(self, server, service):
        server.fail_next += [500]
        with pytest.raises(SourceUnavailable, match="500"):
            list_siibra_spaces(service)
        assert server.paths() == ["/spaces"]

    def test_tries_are_used_up(self, server):
        server.fail_next += [503] * 9
        client = SiibraService(retries=2, back_off=QUICK)
        with client, pytest.raises(SourceUnavailable, match="3 tries"):
            list_siibra_spaces(client)
        assert len(server.seen) == 3

    def test_no_server_is_unavailable(self):
        client = SiibraService("http://127.0.0.1:9", retries=0)
        with client, pytest.raises(SourceUnavailable, match="no connection"):
            list_siibra_spaces(client)

    def test_address_without_encryption_is_refused(self):
        client = SiibraService("http://example.org/v3_0")
        with client, pytest.raises(SourceUnavailable, match="https"):
            list_siibra_spaces(client)

    def test_web_page_is_no_answer(self, server, service):
        server.add_fault("/spaces", page())
        with pytest.raises(SourceUnavailable, match="web page"):
            list_siibra_spaces(service)

    @pytest.mark.parametrize("answer", [[], {"items": 3, "total": 3}, {"items": [1], "total": 1}])
    def test_answers_of_another_form_are_refused(self, server, service, monkeypatch, answer):
        monkeypatch.setattr(server, "_answer", lambda parts, query: server._json(answer))
        with pytest.raises(SourceUnavailable, match="LACUNA_SIIBRA_URL"):
            list_siibra_spaces(service)


def test_row_02_all_atlases(service):
    human, rat = list_siibra_atlases(service)
    assert (human.species, rat.species) == ("Homo sapiens", "Rattus norvegicus")
    assert ICBM_2009C in human.spaces
    assert JULICH in human.parcellations
    assert rat.spaces == ()


def test_row_03_single_atlas_by_id_with_slashes(server, service):
    found = get_siibra_atlas(service, "juelich/iav/atlas/v1.0.0/1")
    assert found.name == "Multilevel Human Atlas"
    assert server.paths() == ["/atlases/juelich%2Fiav%2Fatlas%2Fv1.0.0%2F1"]
    with pytest.raises(AtlasNotFound, match="Multilevel Human Atlas"):
        get_siibra_atlas(service, "human")


def test_row_04_all_parcellations(service):
    by_id = {item.id: item for item in list_parcellations(service)}
    assert len(by_id) == 8
    new, old = by_id[JULICH], by_id[JULICH_OLD]
    assert (new.version, new.previous, new.deprecated) == ("3.1", JULICH_OLD, False)
    assert (old.version, old.following, old.deprecated) == ("2.9", JULICH, True)
    assert new.spaces[:2] == (ICBM_2009C, COLIN_27)
    assert (by_id[MANY].version, by_id[MANY].modality) == ("", "")


@pytest.mark.parametrize(
    "name", [JULICH, "Julich-Brain 3.1", "julich-brain cytoarchitectonic atlas (v3.1)"]
)
def test_row_05_single_parcellation(service, name):
    assert get_parcellation(service, name).id == JULICH


def test_row_05_fuzzy_parcellation_is_refused_with_the_versions(service):
    # The service itself answers with one of the versions.
    assert service.read("parcellations", "julich")["@id"] == JULICH
    with pytest.raises(AtlasNotFound) as error:
        get_parcellation(service, "julich")
    assert "Julich-Brain 3.1" in str(error.value)
    assert "Julich-Brain 2.9" in str(error.value)


def test_row_05_name_of_two_parcellations_lists_both(server, service, monkeypatch):
    monkeypatch.setattr(
        server, "_single", lambda items, wanted: server._json(server.parcellations()[0])
    )
    with pytest.raises(AtlasNotFound) as error:
        get_parcellation(service, "Twin")
    assert PACKED in str(error.value)
    assert PRECOMPUTED in str(error.value)


def test_row_05_unknown_parcellation_offers_near_names(service):
    with pytest.raises(AtlasNotFound, match=r"Julich-Brain 3\.1"):
        get_parcellation(service, "Julich-Brian 3.1")


def test_row_06_all_regions_with_inner_nodes(service):
    regions = list_siibra_regions(service, JULICH)
    assert len(regions) == 10
    assert sorted(r.name for r in leaf_regions(regions)) == sorted(LEAVES)
    assert [r.parents for r in regions if r.name == "Julich-Brain"] == [()]
    assert next(r.color for r in regions if r.name == LEAVES[0]) == "#00ffaa"


def test_row_06_find_is_asked_of_the_service(server, service):
    found = list_siibra_regions(service, JULICH, "ca1")
    assert [region.name for region in found] == [
        AREAS[2], f"{AREAS[2]} - {SIDES[0]}", f"{AREAS[2]} - {SIDES[1]}"
    ]  # fmt: skip
    assert server.seen[-1][1]["find"] == "ca1"


def test_row_06_unknown_parcellation_is_not_found(service):
    with pytest.raises(AtlasNotFound):
        list_siibra_regions(service, "no such")


def test_row_07_single_region_with_slash_and_percent(server, service):
    region = get_region(service, JULICH, ODD_REGION, ICBM_2009C)
    assert region.name == ODD_REGION
    assert region.centroid == (-40.0, 3.5, 9.0)
    assert server.paths() == ["/regions/Fo5%2F6%20100%25%20%28OFC%29%20-%20left%20hemisphere"]


def test_row_07_without_space_there_is_no_centroid(service):
    assert get_region(service, JULICH, LEAVES[0].upper()).centroid is None


def test_row_07_unknown_region_is_not_found_although_the_status_is_500(service):
    with pytest.raises(AtlasNotFound, match="CA1"):
        get_region(service, JULICH, "CA11 (Hippocampus)")


def test_row_07_region_that_the_service_guesses_is_refused(service):
    with pytest.raises(AtlasNotFound, match="CA1"):
        get_region(service, JULICH, "ca1")


def test_row_08_related_regions(service):
    relations = list_related_regions(service, JULICH, AREAS[0])
    assert [(r.qualification, r.region, r.parcellation_id) for r in relations] == [
        ("OTHER_VERSION", "Area 3b (PostCG) left", JULICH_OLD),
        ("OVERLAPS", "Region 7", MANY),
    ]
    assert list_related_regions(service, JULICH, ODD_REGION) == []


def test_row_08_unknown_region_has_no_relations(service):
    with pytest.raises(AtlasNotFound):
        list_related_regions(service, JULICH, "Nowhere")


def test_row_09_all_spaces(service):
    spaces = {space.id: space.template_space for space in list_siibra_spaces(service)}
    assert spaces[ICBM_2009C] == "MNI152NLin2009cAsym"
    assert spaces[COLIN_27] == "MNIColin27"
    assert spaces[BIG_BRAIN] is None


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        (ICBM_2009C, ICBM_2009C),
        ("MNI152NLin2009cAsym", ICBM_2009C),
        ("MNI152 ICBM 2009c nonl asym", ICBM_2009C),
        ("Colin27", COLIN_27),
        ("BigBrain", BIG_BRAIN),
    ],
)
def test_row_10_single_space(service, name, identifier):
    assert get_space(service, name).id == identifier


def test_row_10_fuzzy_space_is_refused(service):
    # The service takes ``icbm`` for ICBM 2009c.
    with pytest.raises(AtlasNotFound, match="ICBM 2009c"):
        get_space(service, "icbm")


@pytest.mark.parametrize("name", ["MNI152NLin6Asym", "FSL", "MNI152"])
def test_row_10_space_that_the_service_lacks_is_not_replaced(service, name):
    # The service takes ``mni152`` for ICBM 2009c; here it is the name of FSL's space.
    with pytest.raises(SpaceMismatch, match="MNI152NLin2009cAsym"):
        get_space(service, name)


def test_row_11_all_feature_types(service):
    types = list_feature_types(service)
    assert [kind.name for kind in types][-1] == "Feature.Tabular.CellDensityProfile"
    assert types[-1].category == "cellular"
    assert types[0].path == ""


def test_row_12_maps_are_listed_without_and_given_with_indices(service):
    listed = list_maps(service, "LABELLED", *JULICH_WHERE)
    assert [(found.id, found.indices, found.volumes) for found in listed] == [
        ("siibra-map/julich 3.1", {}, ())
    ]
    found = get_map(service, listed[0].id)
    assert list(found.indices) == LEAVES
    assert found.citation.startswith("Amunts")


def test_row_12_unknown_map_is_not_found_although_the_status_is_400(service):
    with pytest.raises(AtlasNotFound, match=r"no-such"):
        get_map(service, "no-such")
    with pytest.raises(AtlasNotFound, match="no labelled map"):
        find_labelled_map(service, SHEETS, COLIN_27)
    # What the service says of no map without any text.
    with pytest.raises(AtlasNotFound):
        service.read("map", parcellation_id=SHEETS, space_id=COLIN_27, map_type="LABELLED")


def test_row_12_labelled_map_of_fragments(service, tmp_path, server):
    result = build_labelled_map(
        service, find_labelled_map(service, *JULICH_WHERE), SPACE, tmp_path
    )
    left, right = (side_labels(side) for side in SIDES)
    expected = np.where(right > 0, right + 3, left)
    np.testing.assert_array_equal(result.labels, expected)
    assert result.grid.same_as(Grid.make(SHAPE, AFFINE))
    assert list(result.table["index"]) == [1, 2, 3, 4, 5, 6]
    assert list(result.table["name"]) == LEAVES
    assert list(result.table["hemisphere"]) == ["left"] * 3 + ["right"] * 3
    assert result.table["source"][3] == "volume 1, right hemisphere, label 1"
    assert (result.unnamed_voxels, result.overlap_voxels, result.without_voxels) == (0, 0, ())
    assert list(tmp_path.iterdir()) == []
    assert "/map/labelled_map.nii.gz" not in server.paths()


def test_row_12_region_mask_of_a_leaf_and_of_an_inner_node(service, tmp_path):
    left, right = (side_labels(side) for side in SIDES)
    for region, expected in (
        (ODD_REGION, left == 2),
        (AREAS[0], (left == 1) | (right == 1)),
        ("Julich-Brain", (left > 0) | (right > 0)),
    ):
        target = tmp_path / "mask.nii.gz"
        fetch_region_mask(service, *JULICH_WHERE, region, SPACE, target)
        np.testing.assert_array_equal(voxels(target), expected.astype(np.uint8))
        assert nb.load(target).get_data_dtype() == np.uint8


def test_row_12_mask_of_a_space_without_map_is_not_found(service, tmp_path):
    with pytest.raises(AtlasNotFound, match="returns None"):
        fetch_region_mask(service, SHEETS, COLIN_27, "Sheet A", SPACE, tmp_path / "m.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_row_12_mask_with_other_values_is_refused(service, server, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_labelled", lambda *_: server._json([]))
    with pytest.raises(IntegrityError, match="compressed"):
        fetch_region_mask(service, *JULICH_WHERE, AREAS[0], SPACE, tmp_path / "m.nii.gz")
    server.merged[JULICH] = None
    reply = nifti_bytes(side_labels(SIDES[0]))
    monkeypatch.setattr(server, "_labelled", lambda *_: type(server._json([]))(body=reply))
    with pytest.raises(IntegrityError, match="up to 3"):
        fetch_region_mask(service, *JULICH_WHERE, AREAS[0], SPACE, tmp_path / "m.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_row_12_statistical_map(server, folder):
    source = make_source()
    files = source.fetch_region(entry_of(source), ODD_REGION, folder, statistical=True)
    expected = (side_labels(SIDES[0]) == 2) * np.float32(0.5)
    np.testing.assert_array_equal(voxels(files.image), expected)
    assert files.entry.kind == "probabilistic"
    assert files.image.name.endswith("_probseg.nii.gz")
    metadata = json.loads(files.metadata.read_text())
    assert (metadata["Minimum"], metadata["Maximum"]) == (0.0, 0.5)
    assert metadata["Region"] == ODD_REGION
    assert read_labels(files.labels)[0].name == ODD_REGION


def test_row_12_statistical_map_of_an_inner_node_is_not_found(service):
    with pytest.raises(AtlasNotFound, match="left hemisphere"):
        find_statistical_region(service, *JULICH_WHERE, AREAS[0])
    with pytest.raises(AtlasNotFound, match="no statistical map"):
        find_statistical_region(service, MANY, ICBM_2009C, "Region 1")


def test_row_12_statistical_map_without_positive_values_is_refused(server, folder):
    server.statistical[LEAVES[0]] = nifti_bytes(np.zeros(SHAPE, np.float32))
    source = make_source()
    with pytest.raises(IntegrityError, match="no positive"):
        source.fetch_region(entry_of(source), LEAVES[0], folder, statistical=True)
    assert files_in(folder) == []


def test_row_12_resampled_template_is_the_template(service, tmp_path):
    target = tmp_path / "template.nii.gz"
    assert fetch_template_on_map_grid(service, *JULICH_WHERE, SPACE, target) == target
    # Intensities, as many as voxels, not the six labels of the map.
    assert len(np.unique(voxels(target))) == np.prod(SHAPE)
    with pytest.raises(AtlasNotFound):
        fetch_template_on_map_grid(service, SHEETS, COLIN_27, SPACE, tmp_path / "no.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["template.nii.gz"]


def test_row_13_range_of_a_statistical_map(service):
    found = read_map_range(service, *JULICH_WHERE, f"{AREAS[2]} - {SIDES[1]}")
    assert (found.minimum, found.maximum) == (0.0, pytest.approx(0.8))


def test_row_13_range_that_is_no_number_is_refused(server, service):
    data = np.full(SHAPE, np.nan, dtype=np.float32)
    server.statistical[LEAVES[0]] = nifti_bytes(data)
    with pytest.raises(IntegrityError, match="no numbers"):
        read_map_range(service, *JULICH_WHERE, LEAVES[0])


def test_row_13_range_of_an_unknown_region_is_not_found(service):
    with pytest.raises(AtlasNotFound):
        read_map_range(service, *JULICH_WHERE, "Nowhere")


class TestLabels:
    """Faults of the service's own files that must not reach ours."""

    def test_labels_of_the_merged_file_are_not_used(self, server, folder):
        source = make_source()
        files = source.fetch(entry_of(source), None, folder)
        # The service's own file of the same map has 3 labels for 6 regions.
        assert len(np.unique(voxels(files.image))) - 1 == len(read_labels(files.labels)) == 6
        parcels = load_parcels(files.image, files.labels)
        # Each area has as many voxels on both sides.
        assert parcels.totals.tolist() == [8, 12, 16, 8, 12, 16]

    def test_labels_above_255(self, server, folder):
        source = make_source()
        files = source.fetch(entry_of(source, "siibra:many"), None, folder)
        assert files.entry.n_regions == N_MANY
        parcels = load_parcels(files.image, files.labels)
        assert parcels.totals.tolist() == [2] * N_MANY
        assert parcels.names[-1] == f"Region {N_MANY - 1}"
        assert parcels.index.tolist() == list(range(1, N_MANY + 1))

    def test_labels_of_several_volumes(self, service, tmp_path, caplog):
        found = find_labelled_map(service, SHEETS, ICBM_2009C)
        result = build_labelled_map(service, found, SPACE, tmp_path)
        assert result.labels[3, 3, :7].tolist() == [1, 1, 1, 2, 2, 2, 0]
        assert result.overlap_voxels == 1
        assert result.to_dict()["VoxelsInSeveralParts"] == 1
        assert "several parts" in caplog.text

    def test_labels_of_a_volume_in_an_archive(self, service, tmp_path):
        found = find_labelled_map(service, PACKED, ICBM_2009C)
        result = build_labelled_map(service, found, SPACE, tmp_path)
        np.testing.assert_array_equal(result.labels, side_labels(SIDES[0]))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("change", ["no archive", "no member"])
    def test_labels_of_an_archive_that_lacks_them(self, server, service, tmp_path, change):
        if change == "no archive":
            server.volumes["packed.zip"] = b"PK no archive"
        found = find_labelled_map(service, PACKED, ICBM_2009C)
        if change == "no member":
            found.volumes[0]["zip/nii"] = server.volume_url("packed.zip") + " other.nii"
        with pytest.raises(IntegrityError, match="no archive that holds"):
            build_labelled_map(service, found, SPACE, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_labels_of_one_volume_that_is_no_nifti_come_from_the_service(self, service, tmp_path):
        found = find_labelled_map(service, PRECOMPUTED, ICBM_2009C)
        result = build_labelled_map(service, found, SPACE, tmp_path)
        np.testing.assert_array_equal(result.labels, side_labels(SIDES[0]))

    def test_labels_of_fragments_that_are_no_nifti_are_refused(self, service, server):
        found = get_map(service, "m-julich-surface")
        with pytest.raises(SourceUnavailable, match="gii"):
            plan_parts(found)

    def test_labels_on_the_grid_of_another_space(self, server, folder):
        source = make_source()
        entry = next(e for e in source.entries() if ELSEWHERE in e.aliases)
        with pytest.raises(SpatialMismatchError, match="MNI152NLin6Asym"):
            source.fetch(entry, None, folder)
        assert files_in(folder) == []

    def test_labels_without_a_region_and_regions_without_a_label(self, server, service, tmp_path):
        data = side_labels(SIDES[0])
        data[data == 2] = 77
        server.volumes["lh.nii.gz"] = nifti_bytes(data)
        result = build_labelled_map(
            service, find_labelled_map(service, *JULICH_WHERE), SPACE, tmp_path
        )
        assert result.unnamed_voxels == 12
        assert result.without_voxels == (LEAVES[1],)
        # Numbers have no gap, and table and image agree.
        assert list(result.table["index"]) == [1, 2, 3, 4, 5]
        assert list(result.table["name"]) == [LEAVES[0], *LEAVES[2:]]
        assert np.unique(result.labels).tolist() == [0, 1, 2, 3, 4, 5]
        assert (result.labels == 2).sum() == 16

    def test_labels_on_two_grids_are_not_put_together(self, server, service, tmp_path):
        moved = AFFINE.copy()
        moved[0, 3] += 5
        server.volumes["rh.nii.gz"] = nifti_bytes(side_labels(SIDES[1]), moved)
        with pytest.raises(IntegrityError, match="different grids"):
            build_labelled_map(service, find_labelled_map(service, *JULICH_WHERE), SPACE, tmp_path)

    def test_labels_of_a_flipped_fragment_are_put_where_they_belong(
        self, server, service, tmp_path
    ):
        flipped = AFFINE.copy()
        flipped[0, 0], flipped[0, 3] = -5, AFFINE[0, 3] + 5 * (SHAPE[0] - 1)
        server.volumes["rh.nii.gz"] = nifti_bytes(side_labels(SIDES[1])[::-1].copy(), flipped)
        result = build_labelled_map(
            service, find_labelled_map(service, *JULICH_WHERE), SPACE, tmp_path
        )
        np.testing.assert_array_equal(result.labels > 3, side_labels(SIDES[1]) > 0)

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (side_labels(SIDES[0]).astype(np.float32) + 0.4, "whole numbers"),
            (-side_labels(SIDES[0]).astype(np.int16), "negative"),
            (np.zeros((*SHAPE, 2), np.uint8), "4 dimensions"),
        ],
    )
    def test_labels_that_are_none(self, server, service, tmp_path, bad, message):
        server.volumes["lh.nii.gz"] = nifti_bytes(bad)
        with pytest.raises((IntegrityError, ValidationError), match=message):
            build_labelled_map(service, find_labelled_map(service, *JULICH_WHERE), SPACE, tmp_path)

    def test_labels_of_the_same_number_for_two_regions(self, server, service):
        found = find_labelled_map(service, *JULICH_WHERE)
        found.indices["Another"] = found.indices[LEAVES[0]]
        with pytest.raises(IntegrityError, match="another region"):
            plan_parts(found)

    def test_labels_in_a_fragment_that_is_not_there(self, service):
        found = find_labelled_map(service, *JULICH_WHERE)
        del found.volumes[0]["nii"][SIDES[1]]
        with pytest.raises(IntegrityError, match="right hemisphere"):
            plan_parts(found)

    def test_labels_of_a_region_on_both_sides_are_one_region(self, service, tmp_path):
        found = find_labelled_map(service, *JULICH_WHERE)
        right = found.indices.pop(LEAVES[3])
        found.indices[LEAVES[0]] = (*found.indices[LEAVES[0]], *right)
        result = build_labelled_map(service, found, SPACE, tmp_path)
        assert (result.labels == 1).sum() == 16
        assert result.table["source"][0].count(";") == 1

    def test_labels_follow_the_names_of_the_same_answer(self, server, folder):
        julich = server.find_map(*JULICH_WHERE)
        julich.indices = {name + " renamed": i for name, i in julich.indices.items()}
        source = make_source()
        files = source.fetch(entry_of(source), None, folder)
        assert [r.name for r in read_labels(files.labels)] == [f"{n} renamed" for n in LEAVES]


class TestSource:
    def test_it_is_a_source(self):
        assert isinstance(make_source(), AtlasSource)

    def test_nothing_is_asked_before_it_is_needed(self, server):
        SiibraSource()
        make_source()
        assert server.seen == []

    def test_entries(self, server):
        entries = make_source().entries()
        places = {(entry.id, entry.space) for entry in entries}
        assert (JULICH_ID, SPACE) in places
        assert (JULICH_ID, "MNIColin27") in places
        assert all(entry.id.startswith(PREFIX) and entry.source == "siibra" for entry in entries)
        # Neither surfaces nor what has no map.
        assert len(places) == len(entries) == 8
        julich = entry_of(make_source())
        assert JULICH in julich.aliases
        assert "julichbrain31" in julich.aliases
        assert "Julich-Brain 3.1" in julich.aliases
        assert julich.entities == {"atlas": "JulichBrain31"}

    def test_parcellations_of_one_short_name_have_ids_of_their_own(self, server):
        ids = {e.aliases[1]: e.id for e in make_source().entries()}
        assert ids[PACKED] == "siibra:twin"
        assert ids[PRECOMPUTED] == "siibra:twinofthefirst"

    def test_fetch(self, server, folder):
        source = make_source()
        files = source.fetch(entry_of(source), 5, folder)
        assert files.from_cache is False
        assert files.resolution == 5
        assert (files.entry.n_regions, files.entry.resolutions) == (6, (5.0,))
        assert files.entry.citation.startswith("Amunts")
        assert files.image.parent == folder
        assert files.image.name == f"tpl-{SPACE}_atlas-JulichBrain31_dseg.nii.gz"
        metadata = json.loads(files.metadata.read_text())
        assert metadata["SourceVersion"] == VERSION
        assert metadata["Source"] == "siibra"
        assert metadata["Request"]["Parcellation"] == JULICH
        assert metadata["VoxelsWithoutRegion"] == 0
        table = pd.read_csv(files.labels, sep="\t")
        assert list(table) == ["index", "name", "hemisphere", "source"]

    def test_another_resolution_is_refused(self, server, folder):
        source = make_source()
        with pytest.raises(ValidationError, match="5 mm only"):
            source.fetch(entry_of(source), 2, folder)

    def test_unlisted_entry_is_not_found(self, server, folder):
        source = make_source()
        surface = entry_of(source)
        with pytest.raises(AtlasNotFound, match="MNI152NLin6Asym"):
            source.fetch(
                type(surface)(**{**vars(surface), "space": "MNI152NLin6Asym"}), None, folder
            )

    def test_regions(self, server):
        source = make_source()
        assert len(source.list_regions(entry_of(source), "CA1")) == 3

    def test_region_mask(self, server, folder):
        source = make_source()
        files = source.fetch_region(entry_of(source), AREAS[0].upper(), folder)
        assert voxels(files.image).sum() == 16
        assert read_labels(files.labels)[0].name == AREAS[0]
        again = make_source().fetch_region(entry_of(source), AREAS[0], folder)
        assert again.from_cache
        other = source.fetch_region(entry_of(source), AREAS[2], folder)
        assert other.image != files.image
        assert voxels(files.image).sum() == 16


class TestCatalogue:
    """The functions that everything else uses."""

    def test_it_is_not_asked_unless_it_is_named(self, server, folder):
        list_atlases()
        with pytest.raises(AtlasNotFound):
            get_atlas("julichbrain31")
        with pytest.raises(AtlasNotFound):
            find_run_atlases(["julichbrain31"], SPACE)
        assert server.seen == []

    @pytest.mark.parametrize(
        ("name", "source"),
        [
            (JULICH_ID, None),
            ("SIIBRA:JulichBrain31", None),
            (f"siibra:{JULICH}", None),
            ("siibra:Julich-Brain 3.1", None),
            ("Julich-Brain 3.1", "siibra"),
            ("julichbrain31", "siibra"),
        ],
    )
    def test_ways_to_name_it(self, server, name, source):
        assert get_atlas(name, SPACE, source=source).id == JULICH_ID

    def test_list(self, server):
        assert len(list_atlases(source="siibra")) == 8
        found = list_atlases("MNIColin27", "siibra", find="julich")
        assert [(entry.id, entry.space) for entry in found] == [(JULICH_ID, "MNIColin27")]

    def test_unknown_id_offers_what_is_near(self, server):
        with pytest.raises(AtlasNotFound, match=JULICH_ID):
            get_atlas("siibra:julichbrian31")

    def test_wrong_space_is_refused(self, server):
        with pytest.raises(SpaceMismatch, match="MNI152NLin2009cAsym"):
            get_atlas(JULICH_ID, "MNI152NLin6Asym")

    def test_name_of_two_atlases_lists_both(self, server):
        with pytest.raises(ValidationError, match=r"siibra:twin in .*siibra:twinofthefirst in"):
            get_atlas("Twin", source="siibra")

    def test_fetch_and_regions(self, server):
        files = fetch_parcellation(JULICH_ID, SPACE)
        table = list_regions(JULICH_ID, space=SPACE)
        assert list(table["name"]) == LEAVES
        assert list(table["hemisphere"]) == ["left"] * 3 + ["right"] * 3
        volumes = [n * 125 for n in (8, 12, 16, 8, 12, 16)]
        assert table["volume_mm3"].tolist() == pytest.approx(volumes)
        # By hand: voxels 1-2, 2-3, 1-2 of the first region on the left.
        assert table.loc[0, ["x", "y", "z"]].tolist() == pytest.approx([-19.5, -20.5, -12.5])
        assert fetch_parcellation(JULICH_ID, SPACE, offline=True).sha256 == files.sha256

    def test_region_and_statistical_map(self, server):
        mask = fetch_parcellation(JULICH_ID, SPACE, region=AREAS[0])
        assert voxels(mask.image).sum() == 16
        statistical = fetch_parcellation(JULICH_ID, SPACE, statistical=ODD_REGION)
        assert voxels(statistical.image).max() == 0.5

    def test_run_uses_what_was_fetched(self, server):
        with pytest.raises(SourceUnavailable):
            find_run_atlases([JULICH_ID], SPACE)
        files = fetch_parcellation(JULICH_ID, SPACE)
        server.seen.clear()
        (atlas,) = find_run_atlases([JULICH_ID], SPACE)
        assert (atlas.image, atlas.labels) == (files.image, files.labels)
        assert atlas.entities == {"atlas": "JulichBrain31"}
        assert server.seen == []


class TestCache:
    def test_cache_answers_without_a_request(self, server, folder):
        source = make_source()
        first = source.fetch(entry_of(source), None, folder)
        server.seen.clear()
        later = make_source()
        second = later.fetch(entry_of(later), None, folder)
        assert server.seen == []
        assert second.from_cache
        assert (second.sha256, second.entry) == (first.sha256, first.entry)

    def test_cache_answers_offline(self, server, folder):
        source = make_source()
        source.fetch(entry_of(source), None, folder)
        source.fetch_region(entry_of(source), AREAS[0], folder)
        server.seen.clear()
        offline = make_source(offline=True)
        entry = entry_of(offline)
        assert offline.fetch(entry, None, folder).from_cache
        assert offline.fetch_region(entry, AREAS[0], folder).from_cache
        assert server.seen == []

    def test_cache_miss_offline_names_what_to_run(self, server, folder):
        with pytest.raises(SourceUnavailable, match="atlas list --source siibra"):
            make_source(offline=True).entries()
        entry = entry_of(make_source())
        server.seen.clear()
        offline = make_source(offline=True)
        with pytest.raises(SourceUnavailable, match=f"atlas fetch {JULICH_ID} --space {SPACE}"):
            offline.fetch(entry, None, folder)
        with pytest.raises(SourceUnavailable, match="--region"):
            offline.fetch_region(entry, AREAS[0], folder)
        with pytest.raises(SourceUnavailable, match="atlas regions"):
            offline.list_regions(entry)
        assert server.seen == []
        assert files_in(folder) == []

    def test_cache_is_renewed_with_the_version_of_the_service(self, server, folder):
        source = make_source()
        source.fetch(entry_of(source), None, folder)
        server.version = "0.4.0"
        renewed = make_source(refresh=True)
        assert renewed.listing().version == "0.4.0"
        later = make_source()
        files = later.fetch(entry_of(later), None, folder)
        assert files.from_cache is False
        assert json.loads(files.metadata.read_text())["SourceVersion"] == "0.4.0"

    def test_cache_of_a_version_that_changed_after_the_listing(self, server, folder):
        source = make_source()
        entry = entry_of(source)
        server.version = "0.4.0"
        source.fetch(entry, None, folder)
        later = make_source()
        assert later.listing().version == "0.4.0"
        assert later.fetch(entry, None, folder).from_cache is False
        assert make_source().fetch(entry, None, folder).from_cache

    def test_cache_refresh_fetches_again(self, server, folder):
        source = make_source()
        source.fetch(entry_of(source), None, folder)
        data = side_labels(SIDES[0])
        data[0, 0, 0] = 1
        server.volumes["lh.nii.gz"] = nifti_bytes(data)
        renewed = make_source(refresh=True)
        files = renewed.fetch(entry_of(renewed), None, folder)
        assert files.from_cache is False
        assert (voxels(files.image) == 1).sum() == 9

    def test_cache_verifies_the_content(self, server, folder):
        source = make_source()
        files = source.fetch(entry_of(source), None, folder)
        content = bytearray(files.image.read_bytes())
        content[-9] ^= 255
        files.image.write_bytes(content)
        checked = make_source(verify=True)
        with pytest.raises(IntegrityError, match="SHA-256"):
            checked.fetch(entry_of(checked), None, folder)

    def test_cache_of_two_services_is_apart(self, server, folder):
        source = make_source()
        source.fetch(entry_of(source), None, folder)
        with SiibraServer() as other:
            second = SiibraSource(SiibraService(other.url, back_off=QUICK))
            files = second.fetch(entry_of(second), None, folder)
            assert files.from_cache is False
            assert other.paths()

    def test_listing_of_yesterday_is_asked_for_again(self, server, data_folder):
        make_source().entries()
        (listing,) = (data_folder / "atlases" / "siibra").glob("listing-*.json")
        server.seen.clear()
        make_source().entries()
        assert server.seen == []
        past = time.time() - 90_000
        os.utime(listing, (past, past))
        make_source().entries()
        assert "/parcellations" in server.paths()

    def test_listing_of_yesterday_without_a_service(self, server, folder, data_folder):
        source = make_source()
        source.fetch(entry_of(source), None, folder)
        (listing,) = (data_folder / "atlases" / "siibra").glob("listing-*.json")
        past = time.time() - 90_000
        os.utime(listing, (past, past))
        server.fail_next += [500] * 3
        with pytest.raises(SourceUnavailable, match="--offline"):
            make_source().entries()
        offline = make_source(offline=True)
        assert offline.fetch(entry_of(offline), None, folder).from_cache

    def test_damaged_listing_is_asked_for_again(self, server, data_folder, caplog):
        expected = make_source().entries()
        (listing,) = (data_folder / "atlases" / "siibra").glob("listing-*.json")
        listing.write_text("{")
        assert make_source().entries() == expected
        assert "damaged" in caplog.text

    @pytest.mark.parametrize("how", ["cut", "no gzip", "zeros", "no image"])
    def test_damaged_download_is_refused_and_leaves_nothing(self, server, folder, how):
        whole = server.volumes["rh.nii.gz"]
        server.volumes["rh.nii.gz"] = {
            "cut": whole[: len(whole) // 2],
            "no gzip": b'{"error": true}',
            "zeros": whole[:20] + bytes(20) + whole[40:],
            "no image": gzip.compress(b"no image" * 100),
        }[how]
        source = make_source()
        with pytest.raises(IntegrityError):
            source.fetch(entry_of(source), None, folder)
        assert files_in(folder) == []
        server.volumes["rh.nii.gz"] = whole
        assert source.fetch(entry_of(source), None, folder).from_cache is False

    def test_download_that_ends_early_is_tried_again(self, server, folder):
        server.add_fault("/volumes/rh.nii.gz", truncate(50))
        source = make_source()
        files = source.fetch(entry_of(source), None, folder)
        assert (voxels(files.image) > 3).sum() == 36
        assert server.paths().count("/volumes/rh.nii.gz") == 2

    def test_volume_that_is_gone_is_not_found(self, server, folder):
        del server.volumes["rh.nii.gz"]
        source = make_source()
        with pytest.raises(AtlasNotFound, match="rh"):
            source.fetch(entry_of(source), None, folder)
        assert files_in(folder) == []

    def test_concurrent_fetches_download_once(self, server, folder):
        entry = entry_of(make_source())
        server.seen.clear()
        server.add_fault("/volumes/lh.nii.gz", slow(1000), times=None)
        results = []

        def run():
            results.append(make_source().fetch(entry, None, folder))

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len({files.sha256 for files in results}) == 1
        assert sorted(files.from_cache for files in results) == [False, True, True, True]
        assert server.paths().count("/volumes/lh.nii.gz") == 1
