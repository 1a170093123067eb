"""How the documentation site is built: `python -m sphinx -W --keep-going docs docs/_build/html`."""

import inspect
import os
import re
import tomllib
from pathlib import Path

import numpy.typing
from sphinx.util.inspect import stringify_signature

ROOT = Path(__file__).resolve().parents[1]

project = "jaxgru"
author = "the jaxgru authors"
project_copyright = "2026, the jaxgru authors"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "performance/*.json", "**.ipynb_checkpoints"]
default_role = "py:obj"  # what a docstring puts between backticks links to its page, if it has one
add_module_names = False
toc_object_entries_show_parents = "hide"

# The guides are notebooks in text form. A cell that raises an error fails the build. The cache is
# keyed by the code of a guide, so only guides that have changed run again.
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
# The reference shows the name of this type. Sphinx would write out the union that it stands for.
numpy.typing.ArrayLike = type("ArrayLike", (), {"__module__": "numpy.typing"})
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_favicon = "_static/favicon.svg"
html_title = f"jaxgru {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": False,
    "navbar_persistent": [],  # the sidebar has the search already
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "default",
    "pygments_dark_style": "github-dark",
}
html_show_sourcelink = False

# Pages that stand beside the code they are about, and where the site includes them.
INCLUDED = {
    "README.md": "reference/promises.md",
    "CONTRIBUTING.md": "contribute/index.md",
    "CHANGELOG.md": "contribute/changelog.md",
    "experiments/README.md": "studies/index.md",
    "experiments/results/README.md": "studies/results.md",
    "experiments/results/mechanism/README.md": "studies/mechanism.md",
}


def relinked(text, source, page):
    """Text of the file `source`, for `page`: its relative links lead on, and to included pages."""

    def relative(match):
        before, target, anchor = match.groups()
        target = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if target != "README.md":
            target = f"docs/{INCLUDED[target]}" if target in INCLUDED else target
        return f"{before}({os.path.relpath(target, os.path.dirname(page))}{anchor or ''})"

    return re.sub(r"(\[[^\]]*\])\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", relative, text)


def on_include(app, path, parent, content):
    """Relink an included page."""
    source = os.path.relpath((Path(app.srcdir) / path).resolve(), ROOT)
    if source in INCLUDED:
        content[0] = relinked(content[0], source, f"docs/{INCLUDED[source]}")


def on_read(app, name, content):
    """Relink a page of this folder, whose links lead to files of the repository."""
    page = f"docs/{name}.md"
    content[0] = relinked(content[0], page, page)


def plain(line):
    """A line of a docstring, in which |x| is no markup, `size: H.` no list, and pages are links."""
    line = re.sub(r"(?<=: )([A-Z])\.$", r"\1\\.", line.replace("|", r"\|"))
    return re.sub(r"docs/(\w+/\w+)\.md", r":doc:`/\1`", line)


def tables(lines):
    """Make list-tables of the tables in Markdown that a docstring has."""
    text = []
    for before, line in zip(["", *lines], lines, strict=False):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            text.append(line)
        elif not before.startswith("|"):
            text += [".. list-table::", "   :header-rows: 1", "", *row(cells)]
        elif set(line) - set("|- "):
            text += row(cells)
    return text


def row(cells):
    """A row of a list-table."""
    return [f"   {'  ' if k else '* '}- {cell}" for k, cell in enumerate(cells)]


def equations(app, what, name, thing, options, lines):
    """Make the indented equations of a docstring literal blocks."""
    lines[:] = tables(lines)
    text, inside, section = [], False, False
    for before, line in zip(["", *lines], lines, strict=False):
        section = section or bool(re.fullmatch(r"(Args|Returns|Raises|Example|Attributes):", line))
        if not section and line.startswith("    ") and not inside and not before.strip():
            text += [".. code-block:: text", ""]
            inside = True
        elif line.strip() and not line.startswith("    "):
            inside = False
        code = inside or line.lstrip().startswith((">>>", "...", ":", ".. "))
        text.append(line if code else plain(line))
    lines[:] = text


def signature(app, what, name, thing, options, shown, returns):
    """The signature of a module of nnx, which its metaclass hides."""
    if shown != "(*args, **kwargs)":
        return None
    whole = inspect.signature(thing.__init__)
    own = whole.replace(parameters=list(whole.parameters.values())[1:])
    return stringify_signature(own, show_annotation=False, show_return_annotation=False), None


def setup(app):
    """Connect the functions above."""
    app.connect("include-read", on_include)
    app.connect("source-read", on_read)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", equations, priority=400)  # before napoleon's 500
