"""Sphinx: `make docs`. The sources are the Markdown files where they lie, so that one relative
link serves a code host and the built pages alike; hence the root of the repository is the source.
"""

from __future__ import annotations

from sphinx.util.inspect import TypeAliasForwardRef

import resfed_codec

project = "resfed_codec"
author = "The resfed_codec authors"
copyright = f"2026, {author}"
version = release = resfed_codec.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "benchmarks/results/**.md"]
html_theme = "furo"
html_title = f"resfed_codec {release}"
html_extra_path = ["_site"]  # index.html, which leads to docs/index.html
html_show_sourcelink = False
html_copy_source = False
suppress_warnings = ["toc.not_included"]  # results are reached by the links of those who quote them

myst_heading_anchors = 4  # links such as guide.md#memory, as code hosts make them

napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_mock_imports = ["flwr", "nvflare"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_type_aliases = {
    name: name for name in ("ClientId", "Initial", "Like", "Payload", "Predictor", "State")
}
# In unions Sphinx writes the repr of an alias; this makes that its name.
TypeAliasForwardRef.__repr__ = lambda alias: alias.name  # type: ignore[method-assign]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Every reference must lead somewhere; but NumPy's, Python's and the frameworks' pages are not here.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(collections|fnmatch|numpy|flwr|nvflare|torch)\b.*"),
    ("py:class", r"(resfed_codec\.[a-z.]+\.)?(ArrayT|OutT|StateT|ConfigOptions)"),
    ("py:class", "|".join(autodoc_type_aliases)),
    ("py:class", "(resfed_codec\\._native\\.)?DeviceArray"),
]
