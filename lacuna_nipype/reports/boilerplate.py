"""The text of the methods, put together from the parameters that ran, and its references.

Every sentence comes from the record that a run left, never from what a run usually does.
Citations are written as in Pandoc's Markdown: ``[@key; @key]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import same_space
from lacuna_nipype.data import load_text

_CITATION = re.compile(r"\[(@[^\]]+)\]")
_ENTRY = re.compile(r"^@\w+\{(?P<key>[^,]+),\n(?P<fields>.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^  (\w+) = \{(.*)\},?$", re.MULTILINE)
_ACCENT = re.compile(r"\{\\(.)(\w)\}")
_MARKS = {'"': "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303"}

# What is cited for a connectome or an atlas, if a word of its description says that it is that.
_CONNECTOMES = {
    "gsp1000": ("cohen2020", "holmes2015"),
    "dtor985": ("elias2024",),
    "dtor-985": ("elias2024",),
    "hcp1065": ("yeh2022",),
}
_ATLASES = {
    "schaefer": ("schaefer2018", "yeo2011"),
    "tian": ("tian2020",),
    "hcp1065": ("yeh2022",),
}
# By analysis, and whether regions are tested instead of voxels.
_TESTED = {
    ("lesion", False): "lesion or none at every voxel",
    ("fnm", False): "the z of network maps at every voxel",
    ("snm", False): "the disconnection of every voxel",
    ("rd", True): "the damage of every region",
    ("fnm", True): "the mean z of every region",
    ("afnm", True): "the network score of every region",
    ("snm", True): "the disconnection of every region",
}
_TEMPLATES = {"MNI152NLin6": "evans2012", "MNI152NLin2009": "fonov2011"}


@dataclass(frozen=True)
class Reference:
    """An entry of the bibliography.

    Parameters
    ----------
    key : str
    fields : mapping of str to str
        As in the file, accents resolved.
    source : str
        The entry in BibTeX.
    """

    key: str
    fields: Mapping[str, str]
    source: str

    @property
    def short(self) -> str:
        """Author and year, as cited in a text."""
        authors = self._surnames()
        if len(authors) > 2 or "others" in authors:
            named = f"{authors[0]} et al."
        else:
            named = " and ".join(authors)
        return f"{named}, {self.fields['year']}"

    @property
    def full(self) -> str:
        """Authors, year, title and place, without the DOI."""
        authors = [name for name in self.fields["author"].split(" and ") if name != "others"]
        listed = "; ".join(authors[:6])
        if len(authors) > 6 or "others" in self._surnames():
            listed += "; et al."
        place = self.fields.get("journal") or self.fields.get("howpublished", "")
        numbers = ":".join(filter(None, (self.fields.get("volume"), self.fields.get("pages"))))
        where = " ".join(filter(None, (place, numbers.replace("--", "\u2013"))))
        return f"{listed} ({self.fields['year']}). {self.fields['title']}. {where}."

    @property
    def address(self) -> str:
        """Web address of the DOI."""
        return f"https://doi.org/{self.fields['doi']}"

    def _surnames(self) -> list[str]:
        return [name.partition(",")[0] for name in self.fields["author"].split(" and ")]


@cache
def load_references() -> dict[str, Reference]:
    """Read the bibliography that the package carries.

    Returns
    -------
    dict of str to Reference
        By key, shared between callers.
    """
    references = {}
    for match in _ENTRY.finditer(load_text("boilerplate.bib")):
        fields = {name: _plain(value) for name, value in _FIELD.findall(match["fields"])}
        references[match["key"]] = Reference(match["key"], fields, match[0])
    return references


def _plain(text: str) -> str:
    import unicodedata

    accented = _ACCENT.sub(lambda match: match[2] + _MARKS[match[1]], text)
    return unicodedata.normalize("NFC", accented)


def cited_references(text: str) -> list[Reference]:
    """List the references that a text cites.

    Parameters
    ----------
    text : str
        Markdown with ``[@key]``.

    Returns
    -------
    list of Reference
        In the order of their first citation.

    Raises
    ------
    ValidationError
        A key is not in the bibliography.
    """
    keys = [key for group in _CITATION.findall(text) for key in citation_keys(group)]
    unknown = sorted(set(keys) - set(load_references()))
    if unknown:
        raise ValidationError(f"The bibliography lacks {', '.join(unknown)}.")
    return [load_references()[key] for key in dict.fromkeys(keys)]


def citation_keys(group: str) -> list[str]:
    """Take the inside of a citation, ``@key; @key``, apart."""
    return [key.strip().removeprefix("@") for key in group.split(";")]


def bibtex(references: Sequence[Reference]) -> str:
    """Write references as a BibTeX file."""
    return "\n\n".join(reference.source for reference in references) + "\n"


def describe_methods(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe in words what runs did, as a paper's methods section would.

    Parameters
    ----------
    runs : mapping of str to mapping
        For every analysis, the entry of the provenance file of the run that did it.

    Returns
    -------
    str
        Paragraphs in Markdown; empty where nothing ran.

    Raises
    ------
    KeyError
        An entry lacks what every run records.
    """
    if not runs:
        return ""
    describe = {"rd": _damage, "fnm": _functional, "snm": _structural, "afnm": _regional_network}
    last = max(runs.values(), key=lambda run: str(run["Started"]))
    paragraphs = [_masks(last, runs), _atlases(runs)]
    paragraphs += [describe[name](run["Analyses"][name], run) for name, run in runs.items()]
    paragraphs.append(_software(last, runs))
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def describe_group_methods(
    sidecars: Sequence[Mapping[str, Any]], software: Mapping[str, str]
) -> str:
    """Describe in words how results of a group were made.

    Parameters
    ----------
    sidecars : sequence of mapping
        Of all results, with the entities of each file's name under ``Entities``.
    software : mapping of str to str
        Versions, from the record of the run.

    Returns
    -------
    str
        Paragraphs in Markdown; empty where there are no results.

    Raises
    ------
    KeyError
        A sidecar lacks what every one of its kind says.
    """
    tested = [own for own in sidecars if "model" in own["Entities"] and "Parameters" in own]
    paragraphs = [_overlaps([own for own in sidecars if "Threshold" in own])]
    # Tests of one score may have been made with several settings, by several runs.
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for own in tested:
        settings = (own["Entities"]["model"], own["Parameters"], own.get("Contrast"))
        alike.setdefault(json.dumps(settings, sort_keys=True), []).append(own)
    paragraphs += [_tests(together) for together in alike.values()]
    if any(paragraphs) and "Python" in software:
        paragraphs.append(_software({"Software": software}, {}))
    text = "\n\n".join(filter(None, paragraphs))
    return f"{text}\n" if text else ""


def _overlaps(sidecars: Sequence[Mapping[str, Any]]) -> str:
    sentences: list[str] = []
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for own in sidecars:
        desc = own["Entities"]["desc"]
        kinds.setdefault("lesion" if desc == "overlap" else desc, []).append(own)
    if "lesion" in kinds:
        sentences.append(
            "At every voxel, the participants with a lesion there were counted"
            f"{_of_how_many(kinds['lesion'])}."
        )
    if "fnm" in kinds:
        rules = sorted((own["Threshold"] for own in kinds["fnm"]), key=lambda r: -r["Value"])
        signs = {"above": ">", "below": "<"}
        limits = dict.fromkeys(f"t {signs[r['Comparison']]} {r['Value']:g}" for r in rules)
        sentences.append(
            "The functional network map of every lesion was thresholded at "
            f"{join_words(list(limits))}, and the share of the lesions whose map passes the "
            f"threshold was computed at every voxel{_of_how_many(kinds['fnm'])} [@boes2015]."
        )
    if "snm" in kinds:
        least = kinds["snm"][0]["Threshold"]["Value"]
        sentences.append(
            f"Likewise, the share of the lesions that cut at least {least:g} % of the streamlines "
            f"through a voxel was computed{_of_how_many(kinds['snm'])}."
        )
    return f"**Overlap.** {' '.join(sentences)}" if sentences else ""


def _of_how_many(sidecars: Sequence[Mapping[str, Any]]) -> str:
    return f" ({_range([int(own['NumberOfParticipants']) for own in sidecars])})"


def _range(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least} participants" if least == most else f"{least} to {most} participants"


def _tests(sidecars: Sequence[Mapping[str, Any]]) -> str:
    first = sidecars[0]
    asked = first["Parameters"]
    values = [
        words
        for (desc, of_regions), words in _TESTED.items()
        if any(
            own["Entities"]["desc"] == desc
            and (own["Entities"]["suffix"] == "parcelstats") == of_regions
            for own in sidecars
        )
    ]
    tested = f"the score {asked['Tested']}"
    if "Contrast" in first:
        tested = f"the groups of {asked['Tested']} ({first['Contrast']})"
    covariates = [
        str(name).replace("lesion_volume_ml", "the volume of the lesion")
        for name in asked["Covariates"]
    ]
    beside = f" and, as covariates, {join_words(covariates)}" if covariates else ""
    what = join_words(values)
    n = _range([int(own["NumberOfParticipants"]) for own in sidecars])
    model = (
        f"**Association with {asked['Tested']}.** {what[0].upper()}{what[1:]} were explained by "
        f"{tested} in a linear model with an intercept{beside} ({n})."
    )
    permutations = (
        f"Two-sided p values come from {asked['Permutations']:,} permutations (seed "
        f"{asked['Seed']}) of what the covariates leave of the score, after Freedman and Lane as "
        "implemented by permuted_ols of nilearn [@freedman1983; @winkler2014; @abraham2014]."
    )
    correction = (
        "They were corrected for all voxels or all regions of a test by the distribution of the "
        "largest |t|, which controls the family-wise error [@nichols2002]."
    )
    sentences = [model, permutations, correction]
    if asked["TFCE"]:
        sentences.append(
            "Maps were also tested after threshold-free cluster enhancement [@smith2009]."
        )
    sparse = {"lesion", "rd", "snm"} & {own["Entities"]["desc"] for own in sidecars}
    if sparse:
        sentences.append(
            "Of lesion masks, damage and disconnection, voxels and regions were tested that are "
            f"touched in at least {asked['MinimumOverlapPercent']:g} % of the participants."
        )
    left = {name for own in sidecars for name in own.get("ParticipantsLeftOut", {})}
    if left:
        are = "participant was" if len(left) == 1 else "participants were"
        sentences.append(f"{len(left)} {are} left out for want of values.")
    return " ".join(sentences)


def _masks(last: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> str:
    inputs = [item for item in last["Inputs"] if item.get("SpaceName")]
    spaces = sorted({str(item["SpaceName"]) for item in inputs})
    if not spaces:
        return ""
    placed = join_words([f"{space}{_cite(_template_keys(space))}" for space in spaces])
    sentences = [
        f"**Lesion masks.** Binary lesion masks were analysed in the standard space {placed}."
    ]
    if any(item.get("Transforms") for item in inputs):
        sentences.append(
            "Masks drawn on the participants' own images were brought there with the transforms "
            "of their normalisation, by NiTransforms [@goncalves2021]."
        )
    others = {
        str(run["Analyses"][name].get("Connectome", {}).get("SpaceName", spaces[0]))
        for name, run in runs.items()
    }
    if any(not same_space(space, other) for space in spaces for other in others):
        sentences.append(
            "Between standard spaces, masks and maps were warped with the transforms of "
            "TemplateFlow [@ciric2022]."
        )
    sentences.append(
        "Where an analysis needed another voxel grid, masks were resampled by nearest neighbour "
        "such that no lesion vanished, and the volume before and after was recorded."
    )
    return " ".join(sentences)


def _template_keys(space: str) -> list[str]:
    return [key for name, key in _TEMPLATES.items() if space.startswith(name)]


def _atlases(runs: Mapping[str, Mapping[str, Any]]) -> str:
    atlases = {str(atlas["Name"]): atlas for run in runs.values() for atlas in run["Atlases"]}
    if not atlases:
        return ""
    named = [
        f"{name} ({atlas['SpaceName']}){_cite(_keys(_ATLASES, atlas))}"
        for name, atlas in sorted(atlases.items())
    ]
    return f"**Regions.** Values were summarised over the regions of {join_words(named)}."


def _damage(analysis: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    return (
        "**Regional damage.** For every region, the percentage of its voxels inside the lesion "
        "was computed on the finer of the grids of mask and atlas."
    )


def _functional(analysis: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    connectome, parameters = analysis["Connectome"], run["Parameters"]
    if parameters["fnm_method"] == "pini":
        seed = (
            "The seed was the part of the lesion that represents it: over the subjects of the "
            "connectome, each lesion voxel was correlated with the lesion's mean series, and "
            f"the {parameters['pini_percentile']:g} % of voxels with the smallest loadings on the "
            "first principal component were left out [@pini2021]."
        )
    else:
        seed = "The seed was the mean series of all lesion voxels [@boes2015]."
    n_subjects = connectome["NumberOfSubjects"]
    source = (
        "**Functional network mapping.** The network connected with the lesion was estimated from "
        f"the normative resting-state connectome {_connectome(connectome)}, {n_subjects} "
        f"{'subject' if n_subjects == 1 else 'subjects'}."
    )
    correlation = (
        "In every subject, Pearson's correlation of the seed with every voxel was computed and "
        "transformed to Fisher's z; z was averaged over subjects and back-transformed to r."
    )
    sentences = [source, seed, correlation]
    if n_subjects > 1:
        sentences.append("A one-sample t of z against zero was computed at every voxel.")
    if n_subjects > 1 and parameters["p_map"]:
        sentences.append(
            "Two-sided p values were corrected over all varying voxels outside the seed for a "
            f"false discovery rate of {parameters['fdr_alpha']:g} [@benjamini1995]."
        )
    if n_subjects > 1 and parameters["t_threshold"] is not None:
        sentences.append(f"Voxels with |t| > {parameters['t_threshold']:g} were marked.")
    return " ".join(sentences)


def _regional_network(analysis: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    weights = {
        "fractional": "one over the number of regions touched",
        "binary": "one",
        "voxel_count": "the fraction of the region that the lesion covers",
    }[analysis["Weighting"]]
    return (
        "**Network mapping by regions.** Each region that the lesion touches was given a weight "
        f"({weights}), and the weights were multiplied by the normative matrix of Fisher's z "
        f"between regions ({analysis['Matrix']})."
    )


def _structural(analysis: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    connectome, parameters = analysis["Connectome"], run["Parameters"]
    version = analysis.get("MRtrixVersion")
    rule = (
        "a stored point" if analysis.get("HitTest", "vertices") == "vertices"
        else "any part of its path"
    )  # fmt: skip
    if analysis["Engine"] == "mrtrix":
        tool = f"With tckedit and tckmap of MRtrix3 {version or ''}".rstrip() + " [@tournier2019]"
    else:
        tool = (
            "With an index of all streamlines that follows the rules of MRtrix3's tckedit and "
            "tckmap [@tournier2019]"
        )
    source = (
        "**Structural disconnection.** Disconnection was estimated indirectly [@griffis2021; "
        "@sperber2022] by embedding the lesion in the normative tractogram "
        f"{_connectome(connectome)}."
    )
    ratio = (
        f"Streamlines with {rule} inside the lesion counted as cut. {tool}, track density "
        "[@calamante2010] was mapped for all streamlines and for those cut, and their ratio is "
        "the percentage of disconnection of every voxel."
    )
    sentences = [source, ratio]
    if parameters["streamline_weights"]:
        sentences.append(
            "Each streamline counted by its weight, of the kind that SIFT2 gives [@smith2015]."
        )
    if parameters["compute_disconnectivity_matrix"]:
        sentences.append(
            "Streamlines between every two regions were counted, all and those cut, with the ends "
            "of streamlines assigned to the nearest region within 4 mm."
        )
    if parameters["compute_roi_disconnection"]:
        sentences.append(
            "For every region, the percentage of its streamlines to other regions that are cut "
            "was computed."
        )
    if parameters["streamline_groups"]:
        sentences.append("For every named bundle, the percentage of streamlines cut was computed.")
    return " ".join(sentences)


def _connectome(described: Mapping[str, Any]) -> str:
    name = described.get("RegisteredName") or described["Name"]
    text = f"{name} (space {described['SpaceName']})" if described.get("SpaceName") else name
    keys = _keys(_CONNECTOMES, described)
    if keys or not described.get("Citation"):
        return f"{text}{_cite(keys)}"
    return f"{text} ({described['Citation']})"


def _keys(known: Mapping[str, Sequence[str]], described: Mapping[str, Any]) -> list[str]:
    words = " ".join(str(described.get(key, "")) for key in ("Name", "RegisteredName", "Image"))
    found = [keys for word, keys in known.items() if word in words.casefold()]
    return list(dict.fromkeys(key for keys in found for key in keys))


def _cite(keys: Sequence[str]) -> str:
    return f" [{'; '.join(f'@{key}' for key in keys)}]" if keys else ""


def _software(last: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> str:
    versions = last["Software"]
    cited = {
        "nipype": "gorgolewski2011",
        "nibabel": "brett2024",
        "numpy": "harris2020",
        "scipy": "virtanen2020",
        "nilearn": "abraham2014",
        "pybids": "yarkoni2019",
    }
    tools = [
        f"{name} {versions[name]} [@{key}]" for name, key in cited.items() if name in versions
    ]
    return (
        f"**Software.** lacuna-nipype {versions['lacuna-nipype']} on Python {versions['Python']}, "
        f"with {join_words(tools)}. Inputs and outputs follow the Brain Imaging Data Structure "
        "[@gorgolewski2016]."
    )


def join_words(items: Sequence[str]) -> str:
    """Write a list as words: ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
