"""The look of all figures: colours, names, grid and bars."""

from typing import Any

import numpy as np

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLACK = "#000000"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
GREEN = "#009E73"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#777777"  # for what is drawn only for comparison
INK = "#010203"  # stands for the colour of the text of a page that a figure is in

# For each algorithm, by its name in code and logs: its name for people, and its colour
# in curves and bars. In a timeline, colours say what a worker does.
ALGORITHMS = {
    "ssgd": ("S-SGD", BLACK),
    "pipe_sgd": ("Pipe-SGD", ORANGE),
    "local_sgd": ("Local SGD", GREEN),
    "cocod": ("CoCoD-SGD", VERMILION),
    "just_in_time": ("CoCoD-SGD, just in time", BLUE),
    "streamed": ("CoCoD-SGD, streamed", PURPLE),
}
OTHERS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY_BLUE, BLACK)
COMPUTE, EXCHANGE = BLUE, ORANGE  # the lanes of a measured timeline
# The page of a run: each colour in the light, and in the dark.
PAGE = {
    "ink": ("#1b1f24", "#e6edf3"),
    "soft": ("#57606a", "#9aa4ae"),
    "paper": ("#ffffff", "#0f1318"),
    "card": ("#f6f8fa", "#1a2027"),
    "line": ("#d0d7de", "#333c46"),
    "alarm": ("#b3400a", "#ff9d66"),
    "curve": (BLUE, "#4db2f0"),
}


def pyplot() -> Any:
    """Imports matplotlib, when the first figure is drawn.

    Returns:
      ``matplotlib.pyplot``.

    Raises:
      ImportError: when matplotlib is not installed; it says how to install it.

    Examples:
      >>> figure, ax = cj.style.pyplot().subplots()
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Figures need matplotlib: pip install 'cocod-jax[plots]'"
        ) from error
    return plt


def tidy(ax: Any) -> None:
    """A pale grid behind the data in place of a frame, and enough labels to read.

    Args:
      ax: matplotlib axes on which everything has been drawn.

    Examples:
      >>> figure, ax = cj.style.pyplot().subplots()
      >>> lines = ax.plot([1, 2], [0.5, 4.0], color=cj.style.VERMILION)
      >>> cj.style.tidy(ax)
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log" and high < 1000 * low:
        # So few powers of ten would leave too few labels.
        ax.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
        ax.yaxis.set_major_formatter("{x:,g}")
        ax.yaxis.set_minor_formatter("")


def bars(
    ax: Any,
    starts: np.ndarray,
    ends: np.ndarray,
    bottom: float,
    height: float,
    colour: str,
) -> None:
    """A row of bars from start to end, with white between those that touch.

    Args:
      ax: matplotlib axes to draw on.
      starts: where each bar begins, such as seconds, [bars].
      ends: where each ends, [bars].
      bottom: the row's bottom, or its top where the axis is upside down.
      height: the row's height.
      colour: the bars' colour.

    Examples:
      >>> figure, ax = cj.style.pyplot().subplots()
      >>> cj.style.bars(ax, np.array([0.0, 2.0]), np.array([1.5, 3.0]), 0, 0.8, "black")
    """
    ax.broken_barh(
        np.column_stack([starts, ends - starts]),
        (bottom, height),
        facecolor=colour,
        edgecolor="white",
        linewidth=0.5,
    )
