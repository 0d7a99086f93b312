"""Figures inside a page, in the colours of its text."""

import io
import re
from collections.abc import Callable
from typing import Any

from cocod_jax.observe._html import escaped
from cocod_jax.style import BLACK, BLUE, INK, pyplot, tidy

# What a page in the dark shows in another colour, as the style of the page has it.
_OF_PAGE = {INK: "currentColor", BLACK: "currentColor", BLUE: "var(--curve)"}


def svg_of(figure: Any, alt: str) -> str:
    """A figure as an element of a page.

    What is black takes the colour of the page's text.

    Args:
      figure: of matplotlib.
      alt: what it shows, for those who do not see it.
    """
    settings = {"svg.fonttype": "none", "svg.hashsalt": alt}
    buffer = io.StringIO()
    with pyplot().rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Every figure of matplotlib has a figure_1, and a page may have a name once only.
    text = re.sub(r' id="[\w.]+_\d+"', "", text)
    head, _, body = text.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    for colour, name in _OF_PAGE.items():
        body = body.replace(colour.lower(), name)
    return f'{head} role="img" aria-label="{escaped(alt)}">{body.rstrip()}'


def panel(
    draw: Callable[[Any], None],
    *,
    x: str,
    y: str,
    alt: str,
    caption: str,
    log_scale: bool = False,
) -> str:
    """A drawing of one pair of axes, with its caption.

    Args:
      draw: takes matplotlib axes and draws on them.
      x: what is counted.
      y: what is drawn against it.
      alt: what it shows, for those who do not see it.
      caption: what else there is to say.
      log_scale: whether ``y`` grows by factors; it has to be positive somewhere.
    """
    names = ("text.color", "axes.labelcolor", "axes.edgecolor")
    ink = dict.fromkeys((*names, "xtick.color", "ytick.color"), INK)
    with pyplot().rc_context({**ink, "font.size": 9}):
        figure = pyplot().Figure(figsize=(4.4, 2.8), layout="constrained")
        ax = figure.subplots()
        draw(ax)
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        if log_scale:
            ax.set_yscale("log", nonpositive="mask")
        if x == "epochs":
            ax.xaxis.get_major_locator().set_params(integer=True)
        tidy(ax)
        if len(ax.get_legend_handles_labels()[0]) > 1:
            ax.legend(frameon=False, fontsize=8, ncols=2)
        svg = svg_of(figure, alt)
    return f"<figure>{svg}<figcaption>{escaped(caption)}</figcaption></figure>"
