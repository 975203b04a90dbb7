"""A server on this machine that answers like siibra-api v3: pages, fuzzy names, odd errors, maps.

``server.url`` is what LACUNA_SIIBRA_URL names. ``seen`` holds all requests as (path, query) with
the path as it was sent; statuses in ``fail_next`` are answered first, one for each request; the
faults of :mod:`loopback` work by path as well. Volumes lie below ``/volumes/`` and can be replaced
in ``server.volumes``.
"""

import gzip
import io
import json
import zipfile
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import unquote

import nibabel as nb
import numpy as np
from loopback import LoopbackServer, Reply

VERSION = "0.3.35"
ICBM_2009C = "minds/core/referencespace/v1.0.0/dafcffc5-4826-4bf1-8ff6-46b8a31ff8e2"
COLIN_27 = "minds/core/referencespace/v1.0.0/7f39f7be-445b-47c0-9791-e971c0b6d992"
FSAVERAGE = "minds/core/referencespace/v1.0.0/tmp-fsaverage"
BIG_BRAIN = "minds/core/referencespace/v1.0.0/a1655b99-82f1-420f-a3c2-fe80fd4c8588"
JULICH = "minds/core/parcellationatlas/v1.0.0/94c1125b-b87e-45e4-901c-00daee7f2579-310"
JULICH_OLD = "minds/core/parcellationatlas/v1.0.0/94c1125b-b87e-45e4-901c-00daee7f2579-290"
MANY = "parcellation/many"
SHEETS = "parcellation/sheets"
PACKED = "parcellation/packed"
PRECOMPUTED = "parcellation/precomputed"
ELSEWHERE = "parcellation/elsewhere"
SURFACE = "parcellation/surface"

SHAPE = (12, 14, 10)
AFFINE = np.array([[5.0, 0, 0, -27], [0, 5, 0, -33], [0, 0, 5, -20], [0, 0, 0, 1]])
# One with characters that an address does not like.
AREAS = ("Area 3b (PostCG)", "Fo5/6 100% (OFC)", "CA1 (Hippocampus)")
SIDES = ("left hemisphere", "right hemisphere")
N_MANY = 300


def nifti_bytes(data, affine=AFFINE, packed=True):
    """A NIfTI image in bytes."""
    image = nb.Nifti1Image(data, affine).to_bytes()
    return gzip.compress(image, 1) if packed else image


def side_labels(side):
    """Three regions on one side, numbered 1 to 3: 8, 12 and 16 voxels."""
    data = np.zeros(SHAPE, dtype=np.uint8)
    first = 1 if side == "left hemisphere" else 7
    for number in range(3):
        data[first : first + 2, 2 : 4 + number, 1 + 3 * number : 3 + 3 * number] = number + 1
    return data


def many_labels():
    """Regions 1000 to 1299, two voxels each."""
    data = np.zeros(SHAPE, dtype=np.int32)
    data.reshape(-1)[100 : 100 + 2 * N_MANY] = np.repeat(np.arange(N_MANY) + 1000, 2)
    return data


def block(start, stop):
    data = np.zeros(SHAPE, dtype=np.uint8)
    data[3, 3, start:stop] = 1
    return data


def zip_bytes(member, content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(member, content)
    return stream.getvalue()


def error_reply(status, message):
    """The service's form of an error: JSON as a text in JSON, without a type."""
    body = {"error": True, "status_code": status, "message": json.dumps(message)}
    return Reply(status, json.dumps(body).encode(), "")


@dataclass
class Map:
    """A map of the service; ``volumes`` as in ``providedVolumes``."""

    id: str
    map_type: str
    parcellation: str
    space: str
    indices: dict
    volumes: list = field(default_factory=list)


class SiibraServer(LoopbackServer):
    """The service, with a fragmented Julich-Brain and odd atlases beside it."""

    def __init__(self):
        super().__init__()
        self.seen, self.fail_next = [], deque()
        self.version = VERSION
        self.volumes = self._make_volumes()
        # What is not NIfTI there; the service makes a file of it itself.
        self.merged = {PRECOMPUTED: nifti_bytes(side_labels("left hemisphere"))}
        self.statistical = {}
        for number, side in enumerate(SIDES):
            data = side_labels(side).astype(np.float32)
            for label, area in enumerate(AREAS, start=1):
                values = (data == label) * np.float32(0.25 * label + 0.05 * number)
                self.statistical[f"{area} - {side}"] = nifti_bytes(values)

    def __enter__(self):
        super().__enter__()
        # An answer goes out in two pieces; without this the second waits for 40 ms.
        handler = self._server.RequestHandlerClass
        self._server.RequestHandlerClass = type(
            "Handler", (handler,), {"disable_nagle_algorithm": True}
        )
        self.maps = self._make_maps()
        return self

    def paths(self):
        """Paths of all requests, in order."""
        return [path for path, _ in self.seen]

    def volume_url(self, name):
        return f"{self.url}/volumes/{name}"

    def _make_volumes(self):
        volumes = {f"{side[0]}h.nii.gz": nifti_bytes(side_labels(side)) for side in SIDES}
        volumes["many.nii.gz"] = nifti_bytes(many_labels())
        volumes["first.nii"] = nifti_bytes(block(0, 3), packed=False)
        volumes["second.nii.gz"] = nifti_bytes(block(2, 6))
        member = nifti_bytes(side_labels("left hemisphere"))
        volumes["packed.zip"] = zip_bytes("inner folder/labels.nii.gz", member)
        fsl = np.diag([2.0, 2, 2, 1])
        fsl[:3, 3] = [-90, -126, -72]
        grid = np.zeros((91, 109, 91), dtype=np.uint8)
        grid[40, 50, 40] = 1
        volumes["elsewhere.nii.gz"] = nifti_bytes(grid, fsl)
        return volumes

    def _make_maps(self):
        url = self.volume_url
        sides = {side: url(f"{side[0]}h.nii.gz") for side in SIDES}
        julich = {
            f"{area} - {side}": [{"volume": 0, "label": label, "fragment": side}]
            for side in SIDES
            for label, area in enumerate(AREAS, start=1)
        }
        few = {area: [{"volume": 0, "label": n}] for n, area in enumerate(AREAS, start=1)}
        whole = {"Sheet A": [{"volume": 0}], "Sheet B": [{"volume": 1, "label": None}]}
        statistical = {name: [{"volume": n}] for n, name in enumerate(self.statistical)}
        return [
            Map("siibra-map/julich 3.1", "LABELLED", JULICH, ICBM_2009C, julich, [{"nii": sides}]),
            Map("m-julich-colin", "LABELLED", JULICH, COLIN_27, julich, [{"nii": sides}]),
            Map("m-julich-surface", "LABELLED", JULICH, FSAVERAGE, julich, [{"gii": sides}]),
            Map("m-julich-stat", "STATISTICAL", JULICH, ICBM_2009C, statistical),
            Map("m-old", "LABELLED", JULICH_OLD, ICBM_2009C, julich, [{"nii": sides}]),
            Map(
                "m-many", "LABELLED", MANY, ICBM_2009C,
                {f"Region {n}": [{"volume": 0, "label": n + 1000}] for n in range(N_MANY)},
                [{"nii": url("many.nii.gz")}],
            ),
            Map(
                "m-sheets", "LABELLED", SHEETS, ICBM_2009C, whole,
                [{"nii": url("first.nii")}, {"nii": url("second.nii.gz")}],
            ),
            Map(
                "m-packed", "LABELLED", PACKED, ICBM_2009C, few,
                [{"zip/nii": url("packed.zip") + " inner folder/labels.nii.gz"}],
            ),
            Map(
                "m-precomputed", "LABELLED", PRECOMPUTED, ICBM_2009C, few,
                [{"neuroglancer/precomputed": url("chunks")}],
            ),
            Map(
                "m-elsewhere", "LABELLED", ELSEWHERE, ICBM_2009C,
                {"Lobe": [{"volume": 0, "label": 1}]}, [{"nii": url("elsewhere.nii.gz")}],
            ),
            Map("m-surface", "LABELLED", SURFACE, FSAVERAGE, few, [{"gii": url("a.gii")}]),
        ]  # fmt: skip

    def find_map(self, parcellation, space, map_type="LABELLED"):
        wanted = (parcellation, space, map_type)
        return next(
            (m for m in self.maps if (m.parcellation, m.space, m.map_type) == wanted), None
        )

    @staticmethod
    def parcellations():
        rows = [
            (JULICH, "Julich-Brain Cytoarchitectonic Atlas (v3.1)", "Julich-Brain 3.1",
             [ICBM_2009C, COLIN_27, FSAVERAGE]),
            (JULICH_OLD, "Julich-Brain Cytoarchitectonic Atlas (v2.9)", "Julich-Brain 2.9",
             [ICBM_2009C]),
            (MANY, "Atlas of many regions", "Many", [ICBM_2009C]),
            (SHEETS, "Sheets", "Sheets", [ICBM_2009C]),
            (PACKED, "Twin", "Twin", [ICBM_2009C]),
            (PRECOMPUTED, "Twin of the first", "Twin", [ICBM_2009C]),
            (ELSEWHERE, "Cortical lobes of FSL", None, [ICBM_2009C]),
            (SURFACE, "Surface atlas", "Surface", [FSAVERAGE]),
        ]  # fmt: skip
        versions = {
            JULICH: {"name": "3.1", "deprecated": False, "prev": {"@id": JULICH_OLD},
                     "next": None},
            JULICH_OLD: {"name": "2.9", "deprecated": True, "prev": None,
                         "next": {"@id": JULICH}},
        }  # fmt: skip
        return [
            {
                "@type": "siibra-0.4/parcellation", "@id": identifier, "name": name,
                "shortname": short, "modality": "cytoarchitecture" if "julich" in name else None,
                "datasets": [], "version": versions.get(identifier),
                "brainAtlasVersions": [
                    {"coordinateSpace": {"@id": space}, "license": {"@id": ""},
                     "accessibility": {"@id": ""}, "releaseDate": "1970-01-01"}
                    for space in spaces
                ],
            }
            for identifier, name, short, spaces in rows
        ]  # fmt: skip

    @staticmethod
    def spaces():
        rows = [
            (ICBM_2009C, "MNI152 ICBM 2009c nonl asym", "ICBM 2009c"),
            (COLIN_27, "MNI Colin 27", "Colin 27"),
            (FSAVERAGE, "Freesurfer fsaverage", "fsaverage"),
            (BIG_BRAIN, "Big Brain (Histology)", "BigBrain"),
        ]
        return [
            {"@type": "siibra-0.4/space", "@id": identifier, "fullName": name, "shortName": short,
             "nativeUnit": {"@id": "micrometer"}, "defaultImage": []}
            for identifier, name, short in rows
        ]  # fmt: skip

    def atlases(self):
        human = {
            "@type": "siibra-0.4/atlas", "@id": "juelich/iav/atlas/v1.0.0/1",
            "name": "Multilevel Human Atlas", "species": "Homo sapiens",
            "spaces": [{"@id": space["@id"]} for space in self.spaces()],
            "parcellations": [{"@id": item["@id"]} for item in self.parcellations()],
        }  # fmt: skip
        rat = {"@type": "siibra-0.4/atlas", "@id": "atlas/rat", "name": "Waxholm Space atlas",
               "species": "Rattus norvegicus", "spaces": [], "parcellations": []}  # fmt: skip
        return [human, rat]

    @staticmethod
    def regions():
        """Root, areas, and their sides: inner nodes are listed among the leaves."""
        rows = [("root", "Julich-Brain", None, None)]
        for number, area in enumerate(AREAS):
            rows.append((f"area{number}", area, "root", None))
            for side in SIDES:
                colour = f"#0{number}ff{'aa' if side[0] == 'l' else 'bb'}"
                name = f"{area} - {side}"
                rows.append((f"area{number}{side[0]}", name, f"area{number}", colour))
        return [
            {"@type": "siibra-0.4/region", "@id": identifier, "name": name,
             "hasParent": [{"@id": parent}] if parent else None,
             "hasAnnotation": {"displayColor": colour}}
            for identifier, name, parent, colour in rows
        ]  # fmt: skip

    def route(self, path, query, headers):
        self.seen.append((path, query))
        if self.fail_next:
            status = self.fail_next.popleft()
            return Reply(status, b"upstream", "text/plain")
        if path.startswith("/volumes/"):
            content = self.volumes.get(unquote(path.removeprefix("/volumes/")))
            return None if content is None else Reply(body=content)
        reply = self._answer([unquote(part) for part in path.strip("/").split("/")], query)
        fields = (("x-siibra-api-version", self.version), *reply.fields)
        return Reply(reply.status, reply.body, reply.kind, fields, reply.content)

    def _answer(self, parts, query):
        concepts = {
            "atlases": self.atlases,
            "spaces": self.spaces,
            "parcellations": self.parcellations,
        }
        first, rest = parts[0], parts[1:]
        if first in concepts:
            items = concepts[first]()
            return self._single(items, rest[0]) if rest else self._page(items, query)
        if first == "regions":
            return self._regions(rest, query)
        if first == "maps":
            return self._maps(rest, query)
        if first == "map":
            return self._map_file(rest, query)
        if parts == ["feature", "_types"]:
            return self._page(self.feature_types(), query)
        return error_reply(404, "Not Found")

    @staticmethod
    def feature_types():
        return [
            {"name": "Feature", "display_name": "Feature", "path": None, "category": None},
            {"name": "Feature.Tabular", "display_name": "Tabular", "path": "/feature/Tabular",
             "category": None},
            {"name": "Feature.Tabular.CellDensityProfile", "display_name": "Cell Density Profile",
             "path": "/feature/CellDensityProfile", "category": "cellular"},
        ]  # fmt: skip

    @staticmethod
    def _json(content):
        return Reply(200, json.dumps(content).encode(), "application/json")

    def _page(self, items, query):
        number, size = int(query.get("page", 1)), int(query.get("size", 50))
        if not 1 <= size <= 100:
            detail = [{"loc": ["query", "size"], "msg": "too large", "type": "value_error"}]
            return error_reply(422, detail)
        pages = -(-len(items) // size)
        shown = items[(number - 1) * size :][:size]
        return self._json(
            {"items": shown, "total": len(items), "page": number, "size": size, "pages": pages}
        )

    def _single(self, items, wanted):
        """Whatever fits best: the id, then any that has the text somewhere."""
        exact = [item for item in items if item["@id"] == wanted]
        text = wanted.lower()
        fuzzy = [item for item in items if text in json.dumps(item).lower()]
        if not exact + fuzzy:
            known = "\n".join(str(item.get("name") or item.get("fullName")) for item in items)
            message = f"InstanceTable has no entry matching {wanted!r}. Possible values: {known}"
            return error_reply(404, message)
        return self._json((exact + fuzzy)[0])

    def _regions(self, rest, query):
        if "parcellation_id" not in query:
            detail = [{"loc": ["query", "parcellation_id"], "msg": "field required",
                       "type": "value_error.missing"}]  # fmt: skip
            return error_reply(422, detail)
        if query["parcellation_id"] not in {item["@id"] for item in self.parcellations()}:
            return error_reply(404, "InstanceTable has no entry matching it.")
        regions = self.regions()
        if not rest:
            text = query.get("find", "").lower()
            return self._page([r for r in regions if text in r["name"].lower()], query)
        found = [r for r in regions if rest[0].lower() in r["name"].lower()]
        exact = [r for r in regions if r["name"].lower() == rest[0].lower()]
        if not exact + found:
            message = f"{rest[0]!r} could not be decoded under 'Julich-Brain'"
            return error_reply(500, message)
        region = (exact + found)[0]
        if rest[1:] == ["related"]:
            return self._page(self._relations(region), query)
        if "space_id" in query:
            point = {
                "coordinateSpace": {"@id": query["space_id"]},
                "coordinates": [
                    {"value": value, "unit": {"@id": "mm"}} for value in (-40, 3.5, 9)
                ],
            }
            region["hasAnnotation"]["bestViewPoint"] = point
        return self._json(region)

    def _relations(self, region):
        old = next(p for p in self.parcellations() if p["@id"] == JULICH_OLD)
        many = next(p for p in self.parcellations() if p["@id"] == MANY)
        if not region["name"].startswith("Area 3b"):
            return []
        return [
            {
                "@type": "siibra-0.4/regionRelationAssessment", "qualification": kind,
                "query_structure": region, "assigned_structure": {**region, "name": name},
                "assigned_structure_parcellation": parcellation,
            }
            for kind, name, parcellation in (
                ("OTHER_VERSION", "Area 3b (PostCG) left", old), ("OVERLAPS", "Region 7", many)
            )
        ]  # fmt: skip

    def _maps(self, rest, query):
        if rest:
            found = next((m for m in self.maps if m.id == rest[0]), None)
            if found is None:
                return error_reply(400, f"map with id {rest[0]} not found.")
            return self._json(self._map_model(found, detail=True))
        shown = [
            found
            for found in self.maps
            if query.get("parcellation_id") in (None, found.parcellation)
            and query.get("space_id") in (None, found.space)
            and query.get("map_type") in (None, found.map_type)
        ]
        return self._page([self._map_model(found, detail=False) for found in shown], query)

    @staticmethod
    def _map_model(found, detail):
        return {
            "@type": "siibra-0.4/map", "@id": found.id, "name": f"map {found.id}",
            "maptype": found.map_type, "species": "Homo sapiens",
            "parcellation": {"@id": found.parcellation}, "space": {"@id": found.space},
            "publications": [
                {"citation": "Amunts K et al. (2020) Science.", "url": "https://doi.org/10/x"}
            ] if detail else [],
            "datasets": [],
            "indices": found.indices if detail else {},
            "volumes": [
                {"formats": list(volume), "providedVolumes": volume} for volume in found.volumes
            ] if detail else [],
        }  # fmt: skip

    def _map_file(self, rest, query):
        parcellation, space = query.get("parcellation_id"), query.get("space_id")
        none = error_reply(500, f"Map with parc id {parcellation}, space id {space} returns None")
        name = rest[0] if rest else ""
        if name.startswith("statistical_map"):
            if self.find_map(parcellation, space, "STATISTICAL") is None:
                return none
            return self._statistical(name, query.get("region_id"))
        if self.find_map(parcellation, space) is None:
            return none if name else error_reply(400, "")
        if name == "resampled_template":
            template = np.linspace(0, 100, np.prod(SHAPE)).reshape(SHAPE).astype(np.float32)
            return Reply(body=nifti_bytes(template))
        if name == "labelled_map.nii.gz":
            return self._labelled(parcellation, query.get("region_id"))
        return error_reply(404, "Not Found")

    def _labelled(self, parcellation, region):
        if region is None:
            # What the service does with fragments: one image, numbers as they are.
            both = np.maximum(*(side_labels(side) for side in SIDES))
            return Reply(body=self.merged.get(parcellation, nifti_bytes(both)))
        mask = np.zeros(SHAPE, dtype=np.uint8)
        for side in SIDES:
            for label, area in enumerate(AREAS, start=1):
                if f"{area} - {side}".startswith(region) or region == "Julich-Brain":
                    mask |= side_labels(side) == label
        if not mask.any():
            return error_reply(500, f"{region!r} could not be decoded under 'Julich-Brain'")
        return Reply(body=nifti_bytes(mask))

    def _statistical(self, name, region):
        if region not in self.statistical:
            return error_reply(500, f"{region!r} could not be decoded under 'Julich-Brain'")
        if name == "statistical_map.nii.gz":
            return Reply(body=self.statistical[region])
        image = nb.Nifti1Image.from_bytes(gzip.decompress(self.statistical[region]))
        values = image.get_fdata()
        return self._json({"min": values.min(), "max": values.max()})
