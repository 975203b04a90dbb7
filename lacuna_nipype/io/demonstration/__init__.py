"""A demonstration dataset: synthetic lesions, atlas and connectomes on real MNI anatomy."""

from lacuna_nipype.io.demonstration.writer import (
    DEFAULT_SEED,
    DemonstrationPaths,
    write_demonstration,
)

__all__ = ["DEFAULT_SEED", "DemonstrationPaths", "write_demonstration"]
