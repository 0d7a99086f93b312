"""Links within the repository lead somewhere: to files, to pages, to headings."""

import re
from pathlib import Path

import pytest

from docs import generate
from docs.generate import DOCS, ROOT

GENERATED = [generate.algorithm_pages, generate.study_pages, generate.notebooks]
WRITTEN = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.glob("*.md"),
        *DOCS.glob("api/*.md"),
        *DOCS.glob("how-to/*.md"),
        *ROOT.glob("notebooks/*.md"),
        *ROOT.glob("notebooks/*.py"),
        *generate.RESULTS.rglob("*.md"),
    ]
)


def prose(path: Path) -> str:
    """A page without code; of a notebook, the cells of text."""
    text = path.read_text()
    if path.suffix == ".py":
        cells = re.findall(r"^# %% \[markdown\]\n((?:#.*\n)+)", text, re.M)
        text = re.sub(r"^# ?", "", "\n".join(cells), flags=re.M)
    return re.sub(r"^(```+).*?^\1|`[^`\n]+`", "", text, flags=re.M | re.S)


def links(text: str) -> list[str]:
    """The targets of links and images that do not leave the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if "://" not in target]


def headings(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub and MyST make them."""
    lower = [line.lower() for line in re.findall(r"^#+ (.+)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", line).replace(" ", "-") for line in lower}


@pytest.fixture(scope="module")
def pages():
    """What the documentation makes, and which need not be there yet, with its text."""
    return {path: text for make in GENERATED for path, text in make().items()}


@pytest.fixture(scope="module")
def labels():
    """Names that the documentation gives to places, for all of its pages."""
    texts = "\n".join(path.read_text() for path in WRITTEN if DOCS in path.parents)
    return set(re.findall(r"^\((.+)\)=$", texts, re.M))


def lost(path: Path, text: str, pages: dict[Path, str], labels: set[str]) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in links(text):
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        there = file.exists() or file in pages
        if there and anchor:
            own = headings(pages.get(file) or file.read_text())
            there = anchor in own or (DOCS in path.parents and anchor in labels)
        if not there:
            found.append(link)
    return found


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path, pages, labels):
    assert not lost(path, prose(path), pages, labels)


def test_a_link_that_leads_nowhere_is_found(pages, labels):
    text = """
[a](LICENSE) [b](NOTHING) ![c](docs/none.png) [d](README.md#start) [e](README.md#stop)
[f](https://example.org) [g](docs/algorithms/cocod-sgd.md) [h](#the-idea) [i](#bad)
"""
    readme = ROOT / "README.md"
    nowhere = ["NOTHING", "docs/none.png", "README.md#stop", "#bad"]
    assert lost(readme, text, pages, labels) == nowhere
    text = "[a](#certificate-in-loop) [b](#certificate-none) [c](overlap.md)"
    assert lost(DOCS / "faq.md", text, pages, labels) == ["#certificate-none"]


@pytest.mark.parametrize("name", ["README.md", "docs/faq.md", "docs/how-to/flax.md"])
def test_links_are_seen(name):
    assert links(prose(ROOT / name))
