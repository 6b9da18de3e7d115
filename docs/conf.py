"""How Sphinx builds the site; `make docs` runs it. Nothing here needs a network."""

import os
import sys
from importlib.metadata import version as installed
from pathlib import Path

# A list of fonts that another environment left behind would fill the notebooks with warnings.
os.environ["MPLCONFIGDIR"] = str(Path(__file__).parent / "_build" / "matplotlib")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # on a busy machine XLA reports slow compilation
sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "muon_jax"
version = release = installed("muon_jax")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
exclude_patterns = ["_build", "_extensions", "*.py"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

# Notebooks are Python files; their outputs are made here, and kept until their text changes.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

default_role = "code"
autodoc_typehints = "none"  # the docstrings say types, ranges and units in words
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
highlight_language = "text"  # what names no language is a command, or what one prints
python_maximum_signature_line_length = 80

html_theme = "sphinx_book_theme"
html_title = "muon_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_context = {"default_mode": "auto"}  # without it the theme complains in the console
html_theme_options = {
    "show_toc_level": 2,
    "navbar_persistent": [],
    "footer_content_items": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
}
