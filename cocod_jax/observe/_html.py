"""Pieces of a page that needs nothing but itself: no script, no network."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cocod_jax.style import PAGE

# Whatever a log holds, a browser runs no script of it and fetches nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_LIGHT, _DARK = (
    " ".join(f"--{name}: {shades[which]};" for name, shades in PAGE.items())
    for which in (0, 1)
)
_COLOURS = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
"""
_STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; line-height: 1.25;
  overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; padding-top: 1rem; font-size: 1.2rem;
  border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.soft, figcaption, th, dt { color: var(--soft); }
.alarm { color: var(--alarm); }
code, pre { font: .875em/1.45 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { padding: .75rem; background: var(--card); border-radius: 6px;
  white-space: pre-wrap; }
dl.tiles { display: grid; gap: .75rem; margin: 1.25rem 0 0;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
dl.tiles > div { padding: .6rem .75rem; background: var(--card); border-radius: 6px; }
dt { font-size: .85rem; }
dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.figures { display: grid; gap: 1rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
figure { margin: .5rem 0; max-width: 28rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: system-ui, sans-serif !important; }
figcaption { font-size: .85rem; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 600; }
td { font-variant-numeric: tabular-nums; min-width: 4rem; }
"""


def escaped(value: Any) -> str:
    """A value as text that is no markup, whatever it holds."""
    return html.escape(str(value))


def paragraph(text: Any, kind: str = "") -> str:
    """A sentence or two, of the class ``kind``."""
    return (
        f'<p class="{kind}">{escaped(text)}</p>' if kind else f"<p>{escaped(text)}</p>"
    )


def code(text: Any) -> str:
    """A paragraph of code, such as a command."""
    return f"<p><code>{escaped(text)}</code></p>"


def preformatted(text: Any) -> str:
    """A text whose lines stay as they are."""
    return f"<pre>{escaped(text)}</pre>"


def tiles(values: Mapping[str, Any]) -> str:
    """A few numbers side by side, each with its name."""
    each = (
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>"
        for name, value in values.items()
    )
    return f'<dl class="tiles">{"".join(each)}</dl>'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table with a line of names above it."""
    row = lambda cells, tag: "".join(f"<{tag}>{escaped(c)}</{tag}>" for c in cells)
    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{row(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(values: Mapping[str, Any]) -> str:
    """Names and values, one pair a line."""
    rows = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{escaped(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<div class="scroll"><table>{rows}</table></div>'


def figures(drawn: Iterable[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="figures">{"".join(drawn)}</div>'


def section(title: str, body: str) -> str:
    """A part of the page under its heading."""
    return f"<section>\n<h2>{escaped(title)}</h2>\n{body}\n</section>\n"


def document(title: str, body: str) -> str:
    """The whole page, with what UTF-8 cannot hold, as of odd paths, as its number."""
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<style>{_COLOURS}{_STYLE}</style>
</head>
<body>
{body}</body>
</html>
"""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
