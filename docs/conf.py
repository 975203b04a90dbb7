"""How the documentation is built: ``make docs``."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))
# Usage texts are wrapped for this width; importing nipype asks no server for its version.
os.environ["COLUMNS"] = "88"
os.environ["NIPYPE_NO_ET"] = "1"

from lacuna_nipype import __version__  # noqa: E402

project = "lacuna-nipype"
author = "The lacuna-nipype developers"
copyright = author  # noqa: A001 - Sphinx's name
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "command_usage",
    "package_tables",
    "public_names",
    "workflow_graph",
]
exclude_patterns = ["examples", "extensions"]
highlight_language = "text"
# Two hyphens begin an option and shall not become a dash.
smartquotes = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Inputs", "params_style"), ("Outputs", "params_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"lacuna-nipype {release}"
html_static_path = ["static"]
html_css_files = ["graphs.css"]
html_copy_source = False
