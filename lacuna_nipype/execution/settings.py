"""Nipype's settings of this process."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from typing import Any


def use_settings(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Make nipype follow settings; only graphs built afterwards do.

    Parameters
    ----------
    settings : mapping of str to mapping
        By section and option.
    """
    from nipype import config, logging

    # A percent sign in a path is no reference to another option.
    config._config._interpolation = configparser.Interpolation()
    config.update_config(settings)
    logging.update_logging(config)
