"""Results from the work folder to their BIDS names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Directory,
    File,
    InputMultiObject,
    OutputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)


# File systems keep times to two seconds, or better.
_SAME_TIME_SECONDS = 2


class _DerivativesDataSinkInputSpec(BaseInterfaceInputSpec):
    base_directory = Directory(mandatory=True, desc="derivatives dataset to write into")
    in_file = InputMultiObject(File(exists=True), mandatory=True, desc="files to store")
    entities = traits.Dict(
        traits.Str(), traits.Str(), mandatory=True, desc="BIDS entities that all files share"
    )
    variants = traits.List(
        traits.Dict(traits.Str(), traits.Str()),
        desc="further entities of each file, in the order of in_file; suffix included",
    )
    metadata = traits.Dict(desc="sidecar content that all files share")
    variant_metadata = traits.List(
        traits.Dict(), desc="further sidecar content of each file, in the order of in_file"
    )
    meta_files = InputMultiObject(
        File(exists=True), desc="JSON files whose content goes into every sidecar"
    )
    statistics_file = File(
        exists=True, desc="JSON whose content goes into every sidecar under the key Statistics"
    )


class _DerivativesDataSinkOutputSpec(TraitedSpec):
    out_file = OutputMultiObject(File(exists=True), desc="stored files, in the order of in_file")
    out_meta = OutputMultiObject(File(exists=True), desc="their sidecars; none beside JSON files")


def _extension(in_file):
    """Extension of a file, ``.nii.gz`` as a whole; None lets the path pattern choose."""
    if in_file is None:
        return None
    return ".nii.gz" if in_file.endswith(".nii.gz") else Path(in_file).suffix


class DerivativesDataSink(SimpleInterface):
    """Copy files to the names that the package's path patterns give, each with a sidecar.

    Each file is complete under its name or not there at all, and its sidecar comes after it.
    The step runs again when a stored file has gone missing or is another now, and is cached
    otherwise.
    """

    input_spec = _DerivativesDataSinkInputSpec
    output_spec = _DerivativesDataSinkOutputSpec

    @property
    def always_run(self):
        """Nipype asks this before it trusts its cache: yes unless all is there as stored."""
        try:
            return not self._is_stored()
        except (ValueError, OSError, TypeError):
            # The run itself says what is wrong; raised here it would end all other steps too.
            return True

    def _is_stored(self):
        """Tell whether all files are those that this step has stored."""
        from lacuna_nipype.io.derivatives import sidecar_path

        targets = self.targets()
        if not isdefined(self.inputs.in_file):
            # Nipype may ask before it has fetched connected inputs.
            return all(path.is_file() for path in targets)
        for in_file, target in zip(self.inputs.in_file, targets, strict=True):
            source, stored = Path(in_file).stat(), target.stat()
            sidecar = stored if target.suffix == ".json" else sidecar_path(target).stat()
            times = [abs(each.st_mtime - source.st_mtime) for each in (stored, sidecar)]
            if stored.st_size != source.st_size or max(times) > _SAME_TIME_SECONDS:
                return False
        return True

    def targets(self):
        """Paths under which the files will be stored.

        Nipype may ask before it has fetched connected inputs: the entities alone then tell the
        names, with the usual extension of each kind of file.

        Returns
        -------
        list of Path

        Raises
        ------
        ValidationError
            Two files would have one name.
        """
        from lacuna_nipype.core.exceptions import ValidationError
        from lacuna_nipype.io.naming import build_path

        inputs = self.inputs
        if not isdefined(inputs.base_directory) or not isdefined(inputs.entities):
            return []
        variants = list(inputs.variants) if isdefined(inputs.variants) else []
        files = [None] * max(len(variants), 1)
        if isdefined(inputs.in_file):
            files = list(inputs.in_file)
        paths = [
            Path(inputs.base_directory)
            / build_path({**inputs.entities, **own, "extension": _extension(in_file)})
            for in_file, own in zip(files, variants or [{}] * len(files), strict=True)
        ]
        if len(set(paths)) < len(paths):
            raise ValidationError(f"Several files would be stored as one of {paths}.")
        return paths

    def _run_interface(self, runtime):
        from lacuna_nipype.core.files import atomic_path, write_json
        from lacuna_nipype.io.derivatives import sidecar_path

        sidecars = self._sidecars()
        self._results["out_file"], self._results["out_meta"] = [], []
        for in_file, target, sidecar in zip(
            self.inputs.in_file, self.targets(), sidecars, strict=True
        ):
            with atomic_path(target) as temporary:
                shutil.copyfile(in_file, temporary)
            self._results["out_file"].append(str(target))
            stored = [target]
            if target.suffix != ".json":
                stored.append(write_json(sidecar_path(target), sidecar))
                self._results["out_meta"].append(str(stored[-1]))
            # By their time, what others have stored or changed since is told from these.
            time = Path(in_file).stat().st_mtime_ns
            for path in stored:
                os.utime(path, ns=(time, time))
        return runtime

    def _sidecars(self):
        """Merge shared, computed and per-file metadata; the more specific wins."""
        import json

        from lacuna_nipype.io.tables import column_descriptions

        shared = dict(self.inputs.metadata) if isdefined(self.inputs.metadata) else {}
        for path in self.inputs.meta_files if isdefined(self.inputs.meta_files) else []:
            shared.update(json.loads(Path(path).read_text(encoding="utf-8")))
        if isdefined(self.inputs.statistics_file):
            text = Path(self.inputs.statistics_file).read_text(encoding="utf-8")
            shared["Statistics"] = json.loads(text)
        own = self.inputs.variant_metadata if isdefined(self.inputs.variant_metadata) else []
        sidecars = []
        for number, in_file in enumerate(self.inputs.in_file):
            sidecar = {**shared, **(own[number] if own else {})}
            if in_file.endswith(".tsv"):
                sidecar.update(column_descriptions(Path(in_file)))
            sidecars.append(sidecar)
        return sidecars
