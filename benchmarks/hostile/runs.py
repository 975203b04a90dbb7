"""Whole runs on a damaged file, and what reads the results of a run."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import data, kinds, plain
from .commands import Command, environment

_OWN_ATLAS = ("--custom-parcellation", "Own", "labels.nii.gz", "labels.tsv", data.SPACE)
_MASK = f"bids/sub-01/anat/{data.MASK_NAME}"
_OF_RESULTS = ("rd", "fnm", *_OWN_ATLAS, "--functional-connectome", "packed.h5")
_RESULTS = f"out/sub-01/anat/sub-01_space-{data.SPACE}"
_TABLE = f"{_RESULTS}_atlas-Own_label-stroke_stat-damagepct_desc-rd_parcelstats"
_MAP = f"{_RESULTS}_res-6_label-stroke_stat-t_desc-fnm_statmap"
_LESION = f"{_RESULTS}_res-6_label-stroke_desc-lesion_mask"
_PROVENANCE = "out/sub-01/sub-01_desc-provenance.json"

# A participant


def _make_run(folder: Path) -> None:
    data.write_dataset(folder / "bids")
    data.write_atlas(folder)
    kinds.make_connectomes(folder)
    kinds.make_tractograms(folder)


def _own(folder: Path, words: tuple[str, ...]) -> list[object]:
    return [folder / word if "." in word else word for word in words]


def _run(*words: str) -> Callable[[Path], list[object]]:
    return lambda folder: [
        folder / "bids", folder / "out", "participant", "--plugin", "Linear", "-w",
        folder / "work", "--no-reports", "--analysis", *_own(folder, words),
    ]  # fmt: skip


def _lesion(folder: Path) -> dict[str, np.ndarray]:
    return plain.mask(folder / "bids" / "sub-01" / "anat" / f"{data.MASK_NAME}.nii.gz")


def _only(folder: Path, pattern: str) -> Path:
    (path,) = (folder / "out" / "sub-01").rglob(pattern)
    return path


def _right_damage(folder: Path, text: str) -> str:
    tables = list((folder / "out" / "sub-01").rglob("*_parcelstats.tsv"))
    if len(tables) != 1:
        return f"there are {len(tables)} tables"
    with tables[0].open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    lesion = _lesion(folder)
    labels, affine = plain.image(folder / "labels.nii.gz")
    labels = np.rint(labels.reshape(labels.shape[:3]).astype(float))
    if labels.shape != lesion["mask"].shape or not np.allclose(affine, lesion["affine"]):
        return ""  # resampled: what comes out is for other tests to say
    for row in rows:
        inside = labels == int(row["index"])
        if not inside.any():
            continue
        expected = 100 * (inside & lesion["mask"]).sum() / inside.sum()
        if not np.isclose(float(row["damagepct"]), expected, atol=1e-6):
            return f"region {row['index']} has {row['damagepct']} %, not {expected} %"
    return ""


def _right_disconnection(folder: Path, text: str) -> str:
    found = json.loads(_only(folder, "*_desc-snm_statmap.json").read_text("utf-8"))["Statistics"]
    lesion, hit = _lesion(folder), 0
    inverse = np.linalg.inv(lesion["affine"])
    for line in plain.tck(folder / "a.tck"):
        places = line @ inverse[:3, :3].T + inverse[:3, 3]
        voxels = np.floor(places + 0.5).astype(int)  # MRtrix's rule on a border
        inside = ((voxels >= 0) & (voxels < lesion["mask"].shape)).all(axis=1)
        hit += bool(lesion["mask"][tuple(voxels[inside].T)].any())
    if found["StreamlinesHit"] != hit:
        return f"{found['StreamlinesHit']} streamlines are hit, not {hit}"
    return ""


def _right_correlations(folder: Path, text: str) -> str:
    told = plain.connectome(folder / "packed.h5")
    lesion, voxels = _lesion(folder), tuple(told["voxels"])
    same_grid = lesion["mask"].shape == tuple(told["shape"])
    if not same_grid or not np.allclose(lesion["affine"], told["affine"]):
        return ""  # resampled: what comes out is for other tests to say
    means = []
    for series in told["series"].astype(float):
        seed = series[:, lesion["mask"][voxels]].mean(axis=1)
        with np.errstate(all="ignore"):
            r = np.corrcoef(np.column_stack([seed, series]).T)[0, 1:]
            means.append(np.arctanh(r))
    expected = np.mean(means, axis=0)
    found, _ = plain.image(_only(folder, "*_stat-z_desc-fnm_statmap.nii.gz"))
    sound = np.isfinite(expected) & (np.abs(expected) < 3)
    if not np.allclose(found[voxels][sound], expected[sound], atol=1e-3):
        return "z is not that of the series"
    return ""


def _results(ending: str) -> Callable[[Path], list[Path]]:
    return lambda folder: list((folder / "out").glob(f"sub-*/**/*{ending}"))


# What reads results


def _make_results(folder: Path) -> None:
    """Results of three participants; each lesion is one voxel further to the right."""
    _make_run(folder)
    first = folder / "bids" / "sub-01" / "anat" / data.MASK_NAME
    for number in (2, 3):
        name = data.MASK_NAME.replace("sub-01", f"sub-{number:02}")
        mask = folder / "bids" / f"sub-{number:02}" / "anat" / f"{name}.nii.gz"
        data.save(mask, np.roll(data.lesion(), number - 1, axis=0))
        shutil.copyfile(f"{first}.json", mask.with_name(f"{name}.json"))
    with (folder / "bids" / "participants.tsv").open("a") as stream:
        stream.write("sub-03\t7\tpatient\n")
    words = _run(*_OF_RESULTS)(folder)
    subprocess.run(
        [sys.executable, "-m", "lacuna_nipype", *map(str, words)],
        env=environment(folder),
        check=True,
        capture_output=True,
    )


def _group(folder: Path) -> list[object]:
    return [folder / "bids", folder / "out", "group", "--plugin", "Linear", "-w", folder / "group",
            "--participants-columns", "age", "group"]  # fmt: skip


def _check_output(folder: Path) -> list[object]:
    # What the run recorded is where the sound files were made.
    return ["check", "output", folder / "bids", folder / "out", "--analysis",
            *_own(folder, _OF_RESULTS), "-w", folder / "work"]  # fmt: skip


def _collect(folder: Path) -> list[object]:
    return ["collect", folder / "out", "--output-dir", folder / "tables"]


def _reports(folder: Path) -> list[object]:
    return [folder / "bids", folder / "out", "participant", "--reports-only",
            "--participant-label", "01", "--nprocs", 1]  # fmt: skip


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def _same(told: str, found: str) -> bool:
    """Whether two cells hold one number, or both none."""
    first, second = (
        np.nan if text.strip().lower() in ("", "n/a", "nan") else float(text)
        for text in (told, found)
    )
    return bool(np.isclose(first, second, rtol=1e-6, equal_nan=True))


def _right_collection(where: str) -> Callable[[Path, str], str]:
    def check(folder: Path, text: str) -> str:
        (collected,) = (folder / where).glob("group_*_stat-damagepct_desc-rd_parcelstats.tsv")
        rows = [row for row in _rows(collected) if row["participant_id"] == "sub-01"]
        if not rows:
            told = not (folder / f"{_TABLE}.tsv").exists() and re.search("Note:.*sub-01", text)
            return "" if told else "sub-01 is left out"
        (row,) = rows
        for region in _rows(folder / f"{_TABLE}.tsv"):
            told, found = region["damagepct"], row[region["name"]]
            if not _same(told, found):
                return f"{region['name']} has {found} %, not {told} %"
        return ""

    return check


def _right_group(folder: Path, text: str) -> str:
    (overlap,) = (folder / "out").rglob("*_stat-count_desc-*lesion*.nii.gz")
    paths = (folder / "out").glob("sub-*/**/sub-*_desc-lesion_mask.nii.gz")
    masks = [plain.image(path)[0] > 0 for path in paths]
    if not np.array_equal(plain.image(overlap)[0], np.sum(masks, axis=0)):
        return "the overlap is not the sum of the masks"
    return _right_collection("out/phenotype")(folder, text)


def _anything(folder: Path, text: str) -> str:
    return ""


RUNS: tuple[Command, ...] = (
    Command("participant rd", _make_run,
            (f"{_MASK}.nii.gz", f"{_MASK}.json", "labels.nii.gz", "labels.tsv"),
            _run("rd", *_OWN_ATLAS), _right_damage, _results("_parcelstats.tsv")),
    Command("participant snm", _make_run,
            (f"{_MASK}.nii.gz", "bids/dataset_description.json", "a.tck", "a.json"),
            _run("snm", "--structural-connectome", "a.tck", "--snm-engine", "index"),
            _right_disconnection, _results("_desc-snm_statmap.nii.gz")),
    Command("participant fnm", _make_run, (f"{_MASK}.json", "packed.h5", "packed.json"),
            _run("fnm", "--functional-connectome", "packed.h5"),
            _right_correlations, _results("_desc-fnm_statmap.nii.gz")),
    Command("group", _make_results,
            (f"{_TABLE}.tsv", f"{_TABLE}.json", f"{_MAP}.nii.gz", f"{_MAP}.json",
             f"{_LESION}.nii.gz", f"{_LESION}.json", "bids/participants.tsv",
             "out/dataset_description.json", _PROVENANCE), _group, _right_group),
    Command("collect", _make_results, (f"{_TABLE}.tsv", f"{_TABLE}.json"),
            _collect, _right_collection("tables")),
    Command("check output", _make_results,
            (f"{_TABLE}.json", f"{_MAP}.json", "out/dataset_description.json", _PROVENANCE),
            _check_output, _anything),
    Command("reports", _make_results,
            (f"{_TABLE}.tsv", f"{_TABLE}.json", f"{_MAP}.nii.gz", f"{_MAP}.json",
             f"{_LESION}.nii.gz", _PROVENANCE), _reports, _anything),
)  # fmt: skip
