"""Tractograms of any format as .tck files with a step size, which is what MRtrix needs.

Without a step size in the header, tckmap does not upsample and misses voxels in silence. So the
distance between consecutive points is measured; where it is not one number, or not the one that
is asked for, streamlines are resampled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype import __version__
from lacuna_nipype.connectomes.tractogram import (
    REGULAR_SHARE,
    StepSize,
    count_close,
    read_tck_header,
    sample_blocks,
    segment_lengths,
    summarize_segments,
    write_tck,
)
from lacuna_nipype.connectomes.tractogram_formats import (
    TractogramHeader,
    iter_streamlines,
    read_tractogram_header,
    tractogram_sidecar,
)
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.files import fingerprint, write_json
from lacuna_nipype.core.spaces import canonical_space, declared_space
from lacuna_nipype.core.streamline_resampling import resample_streamline

# Steps of irregular streamlines after resampling: the median of their segments, within limits.
# Compressed streamlines have segments of many mm, which would cut their bends.
FINEST_STEP_MM, COARSEST_STEP_MM = 0.1, 1.0
# Steps that differ by less are the same.
SAME_STEP = 0.01
# Points of the sample that the step is measured on first; the whole is checked while writing.
_SAMPLE_POINTS = 1_000_000
_BATCH, _BATCH_POINTS = 1024, 100_000
_SEPARATOR = np.full((1, 3), np.nan, np.float32)
# Fields of a .tck that are wrong for resampled points: the link to files of values per point,
# and a step size that some programs read before step_size.
_STALE_FIELDS = frozenset({"timestamp", "output_step_size"})


@dataclass(frozen=True)
class SourceRecord:
    """What was found in one file, and done with it.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    fingerprint : str
        Identifies its content (see :func:`lacuna_nipype.core.files.fingerprint`).
    n_streamlines, n_empty, n_one_point : int
        Number of streamlines, and of those without points and of one point.
    measured_step_size : float or None
        Median distance between consecutive points in mm; None where no streamline has two.
    regular : bool
        True when at least 90 % of the distances are within 5 % of the median.
    resampled : bool
        False when points were written as they were, bit for bit in float32.
    """

    path: Path
    fingerprint: str
    n_streamlines: int
    n_empty: int
    n_one_point: int
    measured_step_size: float | None
    regular: bool
    resampled: bool


@dataclass(frozen=True)
class ConversionRecord:
    """What a conversion wrote.

    Attributes
    ----------
    target : pathlib.Path
        The .tck file.
    step_size : float
        Step in its header, mm.
    space : str or None
        Space, as in its sidecar.
    sources : tuple of SourceRecord
        The files it was made from, in the order of their streamlines.
    """

    target: Path
    step_size: float
    space: str | None
    sources: tuple[SourceRecord, ...]

    @property
    def n_streamlines(self) -> int:
        """Number of streamlines written."""
        return sum(source.n_streamlines for source in self.sources)

    @property
    def n_empty(self) -> int:
        """Number of streamlines without points."""
        return sum(source.n_empty for source in self.sources)

    @property
    def n_one_point(self) -> int:
        """Number of streamlines of one point."""
        return sum(source.n_one_point for source in self.sources)

    @property
    def resampled(self) -> bool:
        """True when the points of any source were resampled."""
        return any(source.resampled for source in self.sources)


def measure_step(header: TractogramHeader) -> StepSize:
    """Measure the distance between consecutive points of a tractogram on a sample.

    Parameters
    ----------
    header : TractogramHeader
        The file: evenly spaced blocks of a .tck are read (32 MB), of other formats the first
        million points.

    Returns
    -------
    StepSize
        Median in mm, regularity and number of segments.

    Raises
    ------
    ValidationError
        No streamline of the sample has two points, or the file is damaged.
    """
    step = _measure(header)
    if step is None:
        raise _no_steps(header)
    return step


def convert_tractogram(
    source: str | os.PathLike[str],
    target_tck: str | os.PathLike[str],
    *,
    step_size: float | None = None,
    space: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionRecord:
    """Write a tractogram of any format as a .tck file with a step size.

    Points are written as they are where the distance between consecutive points is regular, and
    is ``step_size`` if that is given; otherwise streamlines are resampled along their length,
    to ``step_size`` or else to the median distance (at least 0.1 and at most 1 mm). The order of
    streamlines is kept, as are empty ones and those of one point.

    Parameters
    ----------
    source : path-like
        File of any format; a .tck file may lack a step size or have a wrong one.
    target_tck : path-like
        File to write, ending in .tck; a JSON file of the same name says what was done.
    step_size : float, optional
        Distance between points in mm.
    space : str, optional
        Standard space of the tractogram; that in the JSON file beside the source by default.
    overwrite : bool, optional
        Replace a target that is there already.
    progress : callable, optional
        Called with (streamlines done, of all) where the source tells their number.

    Returns
    -------
    ConversionRecord

    Raises
    ------
    ValidationError
        The source cannot be read, or holds no streamline of two points, or a coordinate that is
        not finite; the target exists, is the source, or does not end in .tck; the step or the
        space is not one.
    """
    return merge_tractograms(
        [source],
        target_tck,
        step_size=step_size,
        space=space,
        overwrite=overwrite,
        progress=progress,
    )


def merge_tractograms(
    sources: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    step_size: float | None = None,
    space: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionRecord:
    """Write several tractograms one after the other into one .tck file of one step size.

    Without ``step_size``, files whose steps agree keep their points; otherwise the smallest step
    among them is that of all, and the others are resampled to it.

    Parameters
    ----------
    sources : sequence of path-like
        Files of any format.
    target, step_size, space, overwrite, progress
        As in :func:`convert_tractogram`.

    Returns
    -------
    ConversionRecord

    Raises
    ------
    ValidationError
        As there; sources without a streamline of two points are taken as long as one has one.
    SpatialMismatchError
        No space is given and the JSON files beside the sources name different ones.
    """
    target, paths = Path(target), [Path(source) for source in sources]
    headers = [read_tractogram_header(path) for path in paths]
    _check_target(target, paths, overwrite)
    space = canonical_space(space) if space is not None else _common_space(paths)
    steps = [_measure(header) for header in headers]
    while True:
        plan = _plan(headers, steps, step_size)
        try:
            tallies = _write(target, headers, plan, progress)
            break
        except _IrregularError as error:
            # What the sample took for regular is not; once seen, it is resampled.
            steps = error.steps
    record = ConversionRecord(
        target,
        plan.step_size,
        space,
        tuple(
            SourceRecord(
                path=part.header.path,
                fingerprint=fingerprint(part.header.path),
                n_streamlines=tally.n_streamlines,
                n_empty=tally.n_empty,
                n_one_point=tally.n_one_point,
                measured_step_size=None if part.step is None else part.step.median,
                regular=part.step is not None and part.step.regular,
                resampled=part.resampled,
            )
            for part, tally in zip(plan.parts, tallies, strict=True)
        ),
    )
    _write_sidecar(record)
    return record


# Before writing


def _check_target(target: Path, sources: Sequence[Path], overwrite: bool) -> None:
    if not sources:
        raise ValidationError(f"There is no tractogram to write {target} from; give one or more.")
    if target.suffix != ".tck":
        raise ValidationError(
            f"{target} does not end in .tck, which MRtrix needs; choose such a name."
        )
    if any(target.exists() and target.samefile(source) for source in sources):
        raise ValidationError(f"{target} is the file to read from; choose another name.")
    sidecar, content = tractogram_sidecar(target)
    # One beside a source of the same name is completed, not lost.
    own = any(tractogram_sidecar(source)[0] == sidecar for source in sources)
    for path in (target, *([] if own or not content else [sidecar])):
        if path.exists() and not overwrite:
            raise ValidationError(
                f"{path} exists already; choose another name, or allow to overwrite it."
            )


def _common_space(paths: Sequence[Path]) -> str | None:
    """Give the space in which all sources say they are; None where one does not say."""
    sidecars = [tractogram_sidecar(path) for path in paths]
    names = [
        declared_space(content["Space"], sidecar) if content.get("Space") else None
        for sidecar, content in sidecars
    ]
    different = {name for name in names if name is not None}
    if len(different) > 1:
        raise SpatialMismatchError(
            f"The tractograms are in different spaces ({', '.join(sorted(different))}); bring "
            "them to one space before they are merged."
        )
    return names[0] if len(set(names)) == 1 else None


def _measure(header: TractogramHeader) -> StepSize | None:
    """Measure the step on a sample; None where no streamline has two points."""
    if header.suffix == ".tck":
        blocks = sample_blocks(read_tck_header(header.path))
    else:
        blocks = _beginning(iter_streamlines(header.path))
    return summarize_segments(
        np.concatenate([np.empty(0), *(segment_lengths(points) for points in blocks)])
    )


def _no_steps(header: TractogramHeader) -> ValidationError:
    return ValidationError(
        f"{header.path} has no streamline of two points; use a tractogram that does."
    )


def _beginning(streamlines: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    n_points = 0
    for batch in _batches(streamlines):
        yield (joined := _joined(batch))
        n_points += len(joined)
        if n_points > _SAMPLE_POINTS:
            return


@dataclass(frozen=True)
class _Part:
    """One source in a plan."""

    header: TractogramHeader
    step: StepSize | None
    resampled: bool


@dataclass(frozen=True)
class _Plan:
    """The common step, and which sources have to be resampled for it."""

    step_size: float
    parts: tuple[_Part, ...]


def _plan(
    headers: Sequence[TractogramHeader], steps: Sequence[StepSize | None], asked: float | None
) -> _Plan:
    measured = [step for step in steps if step is not None]
    if not measured:
        raise _no_steps(headers[0])
    smallest = min(step.median for step in measured)
    if asked is not None:
        common = asked
    elif smallest > 0 and all(step.regular for step in measured):
        common = _exact_step(headers, smallest)
    else:
        common = round(min(max(smallest, FINEST_STEP_MM), COARSEST_STEP_MM), 4)
    parts = [
        _Part(
            header,
            step,
            step is not None and not (step.regular and _same_step(step.median, common)),
        )
        for header, step in zip(headers, steps, strict=True)
    ]
    return _Plan(common, tuple(parts))


def _same_step(measured: float, step_size: float) -> bool:
    return abs(measured - step_size) <= SAME_STEP * step_size


def _exact_step(headers: Sequence[TractogramHeader], measured: float) -> float:
    """Give the step of a header that agrees with what was measured, else the measured one."""
    for header in headers:
        if header.step_size is not None and _same_step(measured, header.step_size):
            return header.step_size
    # Coordinates in float32 blur the fifth decimal.
    return round(measured, 4) or measured


# Writing


@dataclass
class _Tally:
    """What was counted in one source."""

    n_streamlines: int = 0
    n_empty: int = 0
    n_one_point: int = 0
    n_segments: int = 0
    n_close: int = 0

    def add(self, batch: Sequence[NDArray[np.float32]]) -> None:
        sizes = [len(streamline) for streamline in batch]
        self.n_streamlines += len(sizes)
        self.n_empty += sizes.count(0)
        self.n_one_point += sizes.count(1)

    def add_segments(self, joined: NDArray[np.float32], step_size: float) -> None:
        lengths = segment_lengths(joined)
        self.n_segments += len(lengths)
        self.n_close += count_close(lengths, step_size)


class _IrregularError(Exception):
    """Sources whose points were to be kept have irregular steps after all."""

    def __init__(self, steps: list[StepSize | None]) -> None:
        self.steps = steps


def _write(
    target: Path,
    headers: Sequence[TractogramHeader],
    plan: _Plan,
    progress: Callable[[int, int], None] | None,
) -> list[_Tally]:
    tallies = [_Tally() for _ in headers]
    counts = [header.count for header in headers]
    total = sum(count for count in counts if count is not None) if None not in counts else None

    def streamlines() -> Iterator[NDArray[np.float32]]:
        for part, tally in zip(plan.parts, tallies, strict=True):
            for batch in _source_batches(part, plan.step_size, tally):
                yield from batch
                if progress is not None and total is not None:
                    done = sum(each.n_streamlines for each in tallies)
                    progress(done, max(done, total))
        # Raised in here, so that the file is dropped before it is moved to its place.
        _check_kept(plan, tallies)

    write_tck(target, streamlines(), step_size=plan.step_size, fields=_fields(plan))
    return tallies


def _source_batches(
    part: _Part, step_size: float, tally: _Tally
) -> Iterator[list[NDArray[np.float32]]]:
    """Streamlines of one source as they are to be written, checked and counted."""
    for batch in _batches(iter_streamlines(part.header.path)):
        joined = _joined(batch)
        _check_finite(part.header.path, joined, batch, tally.n_streamlines)
        tally.add(batch)
        if part.resampled:
            batch = [resample_streamline(streamline, step_size) for streamline in batch]
        elif part.step is not None:
            tally.add_segments(joined, part.step.median)
        yield batch


def _batches(
    streamlines: Iterable[NDArray[np.float32]],
) -> Iterator[list[NDArray[np.float32]]]:
    """Group streamlines by numbers of them, and of points, that numpy is fast at."""
    batch, n_points = [], 0
    for streamline in streamlines:
        batch.append(streamline)
        n_points += len(streamline)
        if len(batch) == _BATCH or n_points >= _BATCH_POINTS:
            yield batch
            batch, n_points = [], 0
    if batch:
        yield batch


def _joined(batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Join streamlines by separators, as in a .tck file."""
    return np.concatenate([piece for streamline in batch for piece in (streamline, _SEPARATOR)])


def _check_finite(
    path: Path,
    joined: NDArray[np.float32],
    batch: Sequence[NDArray[np.float32]],
    n_before: int,
) -> None:
    if np.count_nonzero(~np.isfinite(joined).all(axis=1)) == len(batch):
        return
    for number, streamline in enumerate(batch, start=n_before):
        if not np.isfinite(streamline).all():
            raise ValidationError(
                f"{path} has a coordinate that is not a finite number in streamline {number} "
                "(counted from 0); remove that streamline, or write the file again."
            )


def _check_kept(plan: _Plan, tallies: Sequence[_Tally]) -> None:
    steps = [part.step for part in plan.parts]
    for number, (part, tally) in enumerate(zip(plan.parts, tallies, strict=True)):
        if part.step is None or part.resampled:
            continue
        if tally.n_close < REGULAR_SHARE * tally.n_segments:
            steps[number] = replace(part.step, regular=False, n_segments=tally.n_segments)
    if steps != [part.step for part in plan.parts]:
        raise _IrregularError(steps)


def _fields(plan: _Plan) -> dict[str, str]:
    """Header fields of the source, where one .tck file is written again."""
    part = plan.parts[0]
    if len(plan.parts) > 1 or part.header.suffix != ".tck":
        return {}
    stale = _STALE_FIELDS if part.resampled else {"output_step_size"}
    fields = read_tck_header(part.header.path).fields
    return {key: value for key, value in fields.items() if key not in stale}


def _write_sidecar(record: ConversionRecord) -> None:
    sidecar, _ = tractogram_sidecar(record.target)
    # What a source of the same name says stays, as far as it is not said anew.
    for source in record.sources:
        beside, content = tractogram_sidecar(source.path)
        if beside == sidecar:
            break
    else:
        content = {}
    if record.space is not None:
        content["Space"] = record.space
    write_json(sidecar, {**content, **_described(record)})


def _described(record: ConversionRecord) -> dict[str, Any]:
    return {
        "Units": "mm",
        "NumberOfStreamlines": record.n_streamlines,
        "NumberOfEmptyStreamlines": record.n_empty,
        "NumberOfOnePointStreamlines": record.n_one_point,
        "StepSize": record.step_size,
        "Resampled": record.resampled,
        "ConvertedFrom": [
            {
                "Name": source.path.name,
                "Fingerprint": source.fingerprint,
                "NumberOfStreamlines": source.n_streamlines,
                "MeasuredStepSize": source.measured_step_size,
                "RegularSteps": source.regular,
                "Resampled": source.resampled,
            }
            for source in record.sources
        ],
        "Software": {"Name": "lacuna-nipype", "Version": __version__},
    }
