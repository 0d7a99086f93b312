"""Sphinx's configuration; contributing.md has the command."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cocod_jax as cj
from docs import generate

project = "cocod_jax"
author = "The cocod_jax authors"
copyright = author
version = release = cj.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute"]  # what this build leaves
nitpicky = True
nitpick_ignore_regex = [
    # Types of other libraries: no link leaves this site, so that it builds offline.
    ("py:.*", r"(?!cocod_jax\b).*"),
]
smartquotes_action = "D"  # dashes only: quotes stay as they are written

generate.write_sources()

# Markdown and notebooks
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3
myst_substitutions = generate.substitutions()
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = (
    90  # for a cell; generate.warn_of_slow_notebook sees to the whole
)
nb_execution_show_tb = True
nb_merge_streams = True

# Docstrings
autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # descriptions of fields say shape and dtype
napoleon_use_ivar = True
napoleon_use_rtype = False

# HTML
html_theme = "sphinx_book_theme"
html_title = "cocod_jax"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "navbar_persistent": [],  # one search field, that of the side bar
    "use_download_button": False,
    "use_fullscreen_button": False,
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app):
    """What Sphinx asks, what autodoc gets wrong, and what a notebook may take."""
    app.add_config_value("notebook_seconds", 90, "")
    app.connect("doctree-read", generate.warn_of_slow_notebook)
    app.connect("autodoc-skip-member", generate.is_tuple_field)
    app.connect("autodoc-process-signature", generate.no_signature_of_protocols)
    after_napoleon = 600
    app.connect("autodoc-process-docstring", generate.keep_underscores, after_napoleon)
