"""What the site makes from docstrings, from the clock and from the logs.

:func:`write_sources` leaves pages, figures and notebooks where Sphinx looks for its
sources, before it looks; git ignores them. :func:`substitutions` are the tables and
sentences that a page takes in with ``{{ name }}``.
"""

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

import cocod_jax as cj
from cocod_jax.certify import REASONS
from cocod_jax.observe.loggers import read_jsonl
from cocod_jax.style import ALGORITHMS
from cocod_jax.timeline import Compute, Timeline, gantt, simulate
from docs import composes_table, house
from docs.algorithm_table import PERIOD, ROWS, Row
from experiments.cluster.network import links_of
from experiments.conformance import report as conformance
from experiments.conformance.config import ConformanceConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "experiments" / "results"

# The clock of every timeline in these pages.
_COMPUTE = Compute(seconds=0.1, workers=3, jitter=0.1)
_EXCHANGE_SECONDS = 0.25
_CAPTION = (
    f"{3 * PERIOD} local steps of {_COMPUTE.workers} workers, period {PERIOD}. A step "
    f"takes {_COMPUTE.seconds} s and varies by {_COMPUTE.jitter:.0%}; an exchange "
    f"takes {_EXCHANGE_SECONDS} s. Rounds are dark and light in turn."
)


def write_sources() -> None:
    """Writes what is not there or has changed; removes what has no source any more."""
    wanted = {
        **algorithm_pages(),
        **study_pages(),
        **notebooks(),
    }
    for path, content in wanted.items():
        _write(path, content)
    for folder in ("algorithms", "results", "tutorials"):
        for path in (DOCS / folder).glob("*"):
            if path not in wanted:
                path.unlink()
    timelines = {row.name: _timeline(row) for row in ROWS if row.timeline}
    two = (ALGORITHMS[key][0] for key in ("local_sgd", "cocod"))
    _figure("timelines", gantt(timelines))
    _figure("between-and-beside", gantt({name: timelines[name] for name in two}))
    for row in ROWS:
        if row.timeline:
            _figure(row.slug, gantt({row.name: timelines[row.name]}))
    _figure("house", house.picture())


def substitutions() -> dict[str, Any]:
    """By the names that pages use."""
    pages = [f"algorithms/{row.slug}" for row in ROWS]
    overlap = latest("overlap")
    composes = latest("composes") / "composes.jsonl"
    streaming = latest("streaming_certificate") / "table.txt"
    return {
        "comparison": comparison_table(),
        "algorithms": algorithm_table(link=lambda row: f"algorithms/{row.slug}.md"),
        "algorithm_pages": "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"]),
        "caption": _CAPTION,
        "certificate": {name: reason_box(name) for name in REASONS},
        "composes": composes_table.tables(composes),
        "composes_source": composes_table.source(composes),
        "conformance": conformance.tables(ConformanceConfig(out=latest("conformance"))),
        "reference": {name: reference(name) for name in PACKAGES},
        "seconds": seconds_table(overlap / "overlap.jsonl"),
        "seconds_slower": seconds_table(latest("overlap_slower") / "overlap.jsonl"),
        "streaming": "\n".join(re.findall(r"^\|.*", streaming.read_text(), re.M)),
        "tpus": latest("tpu").joinpath("table.txt").read_text().split("\n\n")[1],
        "seconds_study": f"[Log, profile and caveats](results/{overlap.name}.md)",
    }


def is_tuple_field(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Sphinx's question whether to skip a member; None leaves it as it is."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def no_signature_of_protocols(
    app: Any, what: str, name: str, obj: Any, *signature: Any
) -> tuple[str, None] | None:
    """Sphinx's question how an object is called; None leaves it as it is."""
    return ("", None) if getattr(obj, "_is_protocol", False) else None


def keep_underscores(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Argument names like ``round_``, which reStructuredText takes for links."""
    lines[:] = [re.sub(r"^(:param \w+)_:", r"\1\\_:", line) for line in lines]


def warn_of_slow_notebook(app: Any, doctree: Any) -> None:
    """A warning, and so no site, when all of a notebook took too long to execute."""
    # Sphinx is running when this is called; whoever only makes the tables lacks it.
    from sphinx.util import logging

    executed = app.env.nb_metadata[app.env.docname].get("exec_data")
    # A notebook that failed has no runtime, and its own error.
    seconds = (executed and executed["runtime"]) or 0.0
    if seconds > app.config.notebook_seconds:
        logging.getLogger(__name__).warning(
            f"{app.env.docname} took {seconds:.0f} s; notebook_seconds in conf.py "
            f"allows {app.config.notebook_seconds}."
        )


# Algorithms


def algorithm_table(link: Callable[[Row], str] | None = None) -> str:
    """The table of the README; here the names are links."""
    head = "algorithm", "in this library", "time of *k* steps"
    rows = [[*head, "all-reduces in *k* steps"]]
    for row in ROWS:
        name = f"**{row.name}**" if row.emphasis else row.name
        name = f"[{name}]({link(row)})" if link else name
        rows.append([name, row.code, row.seconds, row.exchanges])
    return _table(rows)


def comparison_table() -> str:
    """What travels, when it takes effect, and what is kept for it."""
    head = ["algorithm", "what travels", "when it takes effect", "copies", "hidden"]
    rows = [head]
    for row in ROWS:
        link = f"[{row.name}](algorithms/{row.slug}.md)"
        rows.append([link, row.travels, row.merged, row.memory, row.hidden])
    return _table(rows)


def algorithm_pages() -> dict[Path, str]:
    """A page for each row of the table."""
    return {
        DOCS / "algorithms" / f"{row.slug}.md": _algorithm_page(row) for row in ROWS
    }


def _algorithm_page(row: Row) -> str:
    references = row.references or row.source
    parts = [
        f"# {row.name[0].upper()}{row.name[1:]}",
        _rst(row.source, describe(row.source)),
        row.text,
        f"```python\n{row.example}```",
        _timeline_figure(row) if row.timeline else "",
        f"## When to use it\n\n{row.use}",
        f"## Cost\n\n*k* steps take {row.seconds} and {row.exchanges} all-reduce"
        f"{'' if row.exchanges == '1' else 's'}. {row.cost}",
        f"## More\n\nArguments and details: {_api_link(row.source)}.",
        _rst(references, section(references, "References")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _timeline_figure(row: Row) -> str:
    return (
        f"```{{figure}} ../figures/{row.slug}.svg\n"
        f":alt: Timeline of {row.name}\n\n{_CAPTION}\n```"
    )


def describe(documented: Any) -> str:
    """A docstring up to its first section, and its notes."""
    doc = inspect.getdoc(documented) or ""
    notes = re.findall(r"^\.\. note::\n(?:   .*\n?|\n)*", doc, re.M)
    return "\n\n".join([re.split(r"^[A-Z]\w+:\n", doc, flags=re.M)[0], *notes])


def section(documented: Any, title: str) -> str:
    """The text of a section of a docstring, empty when it is not there."""
    doc = inspect.getdoc(documented) or ""
    found = re.search(rf"^{title}:\n(.*?)(?=^\S|\Z)", doc, re.M | re.S)
    return inspect.cleandoc(found[1]) if found else ""


def _rst(documented: Any, text: str) -> str:
    """What a docstring says, as reStructuredText within Markdown."""
    module = ".. currentmodule:: " + _home(documented)
    return f"```{{eval-rst}}\n{module}\n\n{text.strip()}\n```" if text else ""


def _api_link(documented: Any) -> str:
    role = "class" if inspect.isclass(documented) else "func"
    return f"{{{role}}}`{_home(documented)}.{documented.__name__}`"


def _home(documented: Any) -> str:
    """Where users find it: in the library itself, or else in its package."""
    library, package, *_ = documented.__module__.split(".")
    shown = getattr(cj, documented.__name__, None) is documented
    return library if shown else f"{library}.{package}"


def _timeline(row: Row) -> Timeline:
    return simulate(row.timeline, _COMPUTE, _EXCHANGE_SECONDS, steps=3 * PERIOD)


def _figure(name: str, figure: Figure) -> None:
    path = DOCS / "figures" / f"{name}.svg"
    path.parent.mkdir(exist_ok=True)
    with plt.rc_context({"svg.hashsalt": name}):  # the same drawing, the same file
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# The reference

PACKAGES = (
    "exchanges",
    "rules",
    "rounds",
    "per_step",
    "workers",
    "execution",
    "advice",
    "measurement",
    "observe",
)

# What users call of an object; its fields stand in its docstring.
_METHODS = {
    "cocod_jax.DriftAlarm": ":special-members: __call__",
    "cocod_jax.Exchange": ":members: average",
    "cocod_jax.Round": ":members: run, snapshot, send, merge",
}


def public(module: ModuleType) -> dict[str, Any]:
    """The functions and classes that a module of the library offers, by name."""
    # A package has its names from its modules; a module offers only its own.
    homes = "cocod_jax." if hasattr(module, "__path__") else module.__name__
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__.startswith(homes)
    }


def reference_names(package: str) -> list[str]:
    """What a package offers, under the shortest names that users have for it."""
    module = importlib.import_module(f"cocod_jax.{package}")
    at_the_top = public(cj)
    return [
        f"cocod_jax.{name}" if name in at_the_top else f"{module.__name__}.{name}"
        # Functions first: they make what the classes hold.
        for name, value in sorted(
            public(module).items(), key=lambda item: inspect.isclass(item[1])
        )
        if value is at_the_top.get(name, value)
    ]


def reference(package: str) -> str:
    """A package's entries: what it exports is found, and need not be listed."""
    lines = [f".. automodule:: cocod_jax.{package}", ""]
    for name in reference_names(package):
        value = functools.reduce(getattr, name.split(".")[1:], cj)
        kind = "class" if inspect.isclass(value) else "function"
        lines.append(f".. auto{kind}:: {name}")
        if options := _METHODS.get(name):
            lines.append(f"   {options}")
        lines.append("")
    return "```{eval-rst}\n" + "\n".join(lines) + "```"


# The certificate


def reason_box(name: str) -> str:
    """What the certificate says, in its own words; flags are set as code."""
    reason = REASONS[name]
    cure = re.sub(r"\S*--\S+\w", r"`\g<0>`", reason.cure)
    return (
        f":::{{admonition}} {reason.id}\n:class: attention\n\n{reason.why}\n\n"
        f"→ {cure}\n:::"
    )


# Measurements


def latest(study: str) -> Path:
    """The newest folder of results whose name ends so.

    Raises:
      FileNotFoundError: when there is none.
    """
    folders = sorted(RESULTS.glob(f"*_{study}"))
    if not folders:
        raise FileNotFoundError(f"{RESULTS} has no folder of the study {study}.")
    return folders[-1]


def study_pages() -> dict[Path, str]:
    """A page for each folder of results: its README, or its table and figures."""
    pages = {}
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        readme = folder / "README.md"
        text = readme.read_text() if readme.exists() else _plain_study(folder)
        moved = functools.partial(_moved, folder=folder)
        page = re.sub(r"(!?)\[([^\]]*)\]\(([^)#]+)\)", moved, text)
        pages[DOCS / "results" / f"{folder.name}.md"] = page
    return pages


def _plain_study(folder: Path) -> str:
    """For a folder without a README: its command, its tables and its figures."""
    command = read_jsonl(min(folder.glob("*.jsonl")))["run"][0]["command"]
    parts = [f"# {folder.name}", f"The first of its logs: `{command}`."]
    parts += [path.read_text() for path in sorted(folder.glob("*.md"))]
    parts += [f"![{p.stem}]({p.name})" for p in sorted(folder.glob("*.png"))]
    return "\n\n".join(parts) + "\n"


def _moved(link: re.Match[str], folder: Path) -> str:
    """A link or an image of a study's README, as its page needs it."""
    image, text, target = link.groups()
    path = (folder / target).resolve()
    if "://" in target:
        return link[0]
    if path.name == "README.md" and path.parent.parent == RESULTS:
        return f"[{text}]({path.parent.name}.md)"
    from_page = f"../../{path.relative_to(ROOT)}"
    # What is no page can be downloaded.
    return f"![{text}]({from_page})" if image else f"{{download}}`{text} <{from_page}>`"


def seconds_table(log: Path) -> str:
    """Seconds per local step of every algorithm on every link."""
    results = [r for r in read_jsonl(log)["result"] if r["is_algorithm"]]
    rates = list(dict.fromkeys(r["rate"] for r in results))
    rows: dict[str, dict[str, float]] = {}
    for r in results:
        whose = "" if r["side"] == "ours" else f"{r['side']}: "
        row = rows.setdefault(whose + r["algorithm"], {})
        row[r["rate"]] = r["seconds_per_step"]
    return _table(
        [
            ["algorithm", *map(links_of, rates)],
            *(
                [name, *(f"{row[rate]:.2f}" if rate in row else "" for rate in rates)]
                for name, row in rows.items()
            ),
        ]
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; its first row is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


# Notebooks


def notebooks() -> dict[Path, str]:
    """Copies of the notebooks, which Sphinx executes."""
    sources = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return {DOCS / "tutorials" / source.name: source.read_text() for source in sources}


def _write(path: Path, content: str) -> None:
    """Leaves files alone that are as they should be: Sphinx goes by their age."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text() != content:
        path.write_text(content)
