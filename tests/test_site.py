"""Every link inside the course leads somewhere: in the notebooks and README.md always, in the built site with --site _docs.

The first part needs no Quarto. `make docs` builds the site and then checks its pages too.
"""
import html
import importlib.util
import json
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(p for p in NBS.glob("*.ipynb") if p.name[0] not in "_.")
OTHERS = sorted(NBS.glob("*.qmd"))  # pages without Python
PAGES = [*NOTEBOOKS, *OTHERS, *(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"))]
ON_GITHUB = re.compile(r"https://(?:colab\.research\.google\.com/)?github(?:\.com)?/gptlearn/gptlearn/(?:blob|tree|raw)/main/(.*)")
ON_SITE = "https://gptlearn.github.io/gptlearn"


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]


def prose(path):
    "The text of a page without its code."
    if path.suffix == ".ipynb": text = "\n\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")
    else: text = path.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```|`[^`\n]*`", " ", text, flags=re.S | re.M)


def links(path):
    text = prose(path)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [html.unescape(link) for link in found]


@lru_cache
def anchors(path):
    "What `page#…` can point at: headings, by Pandoc's rule, ids given by hand, and the exported names."
    found = set(re.findall(r'\{#([\w-]+)|\bid="([^"]+)"', prose(path)))
    found = {a or b for a, b in found}
    text = path.read_text(encoding="utf-8") if path.suffix != ".ipynb" else "\n\n".join(
        "".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")
    for heading in re.findall(r"^#+ +(.*?)(?: *\{.*\})? *$", text, re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        heading = re.sub(r"[^\w\s.-]", "", heading)
        slug = re.sub(r"\s+", "-", heading.strip())
        found |= {slug, re.sub(r"^[^a-z]+", "", slug)}
    if path.suffix == ".ipynb":
        for cell in cells(path):
            source = "".join(cell["source"])
            if re.search(r"^#\| *exports?\b", source, re.M):
                found |= {n.lower() for n in re.findall(r"^(?:class|def) (\w+)", source, re.M)}
            found |= set(re.findall(r"^#\| *label: *(\S+)", source, re.M))
    return found


def page_of_site(address):
    "nbs/04_attention.ipynb for …/attention.html"
    name = address.strip("/").removesuffix(".html") or "index"
    return next((p for p in [*NOTEBOOKS, *OTHERS] if re.sub(r"^\d+[a-zA-Z0-9]*_", "", p.stem.lower()) == name), NBS / name)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_of_a_page(path):
    for link in links(path):
        if found := ON_GITHUB.match(link): target, fragment = ROOT / urlsplit(found[1]).path, ""
        elif link.startswith(ON_SITE):
            parts = urlsplit(link.removeprefix(ON_SITE))
            target, fragment = page_of_site(parts.path), parts.fragment
        elif re.match(r"[a-z][a-z+.-]*:", link) or link.startswith("//"): continue  # elsewhere: tests are offline
        else:
            parts = urlsplit(link)
            target, fragment = (path.parent / unquote(parts.path)).resolve() if parts.path else path, unquote(parts.fragment)
        assert target.exists(), f"{path.name}: {link} leads to no file"
        if fragment and target.suffix in (".ipynb", ".md"):
            assert fragment in anchors(target), f"{path.name}: {target.name} has no place called #{fragment}"


def test_pictures_are_described():
    for path in PAGES:
        for alt, link in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", prose(path)):
            assert alt.strip(), f"{path.name}: {link} has no alternative text"


def after_quarto():
    spec = importlib.util.spec_from_file_location("after_quarto", NBS / "_after_quarto.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_from_another_host_is_let_through(tmp_path):
    page = tmp_path / "page.html"
    widget = '<script src="https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js" integrity="x"></script>\n'
    kept = '<a href="https://pytorch.org">PyTorch</a><img src="images/colab.svg"><code>@import "https://x.org"</code>'
    page.write_text(widget + kept)
    assert after_quarto().mend_pages(tmp_path) == [] and page.read_text() == kept
    for bad in ('<img src="https://x.org/a.png">', '<script async src="//x.org/a.js">', '<link rel="stylesheet" href="https://x.org/a">',
                "<style>@import url('https://x.org/font');</style>", "<style>a {background: url(https://x.org/a.png)}</style>"):
        page.write_text(bad)
        assert len(set(after_quarto().mend_pages(tmp_path))) == 1 or "font" in bad, bad
        assert after_quarto().mend_pages(tmp_path), bad


def test_names_in_prose_lead_to_their_definitions(tmp_path):
    (tmp_path / "b.html").write_text('<h3 id="kvcache">')
    link = '<a href="https://gptlearn.github.io/gptlearn/b.html#{}"><code>x</code></a>'.format
    (tmp_path / "a.html").write_text(link("kvcache") + link("kvcache.update") + link("_helper"))
    assert after_quarto().mend_pages(tmp_path) == []
    assert (tmp_path / "a.html").read_text() == 2 * '<a href="b.html#kvcache"><code>x</code></a>' + "<code>x</code>"


def test_links_of_the_readme_start_at_the_top(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text('[a](04_attention.ipynb#x) [e](e.qmd) ![b](images/b.svg) <img src="images/c.png"> [d](https://x.org/images/d)')
    after_quarto().mend_readme(readme)
    assert readme.read_text() == ('[a](nbs/04_attention.ipynb#x) [e](nbs/e.qmd) ![b](nbs/images/b.svg) <img src="nbs/images/c.png"> '
                                  "[d](https://x.org/images/d)")


def test_the_built_site(pytestconfig):
    if not pytestconfig.getoption("--site"): pytest.skip("the site is checked by make docs")
    site = Path(pytestconfig.getoption("--site")).resolve()
    pages = {p: p.read_text(encoding="utf-8") for p in site.glob("*.html")}
    assert len(pages) == len(NOTEBOOKS) + len(OTHERS)
    ids = {p: set(re.findall(r'\bid="([^"]+)"', text)) for p, text in pages.items()}
    problems = after_quarto().mend_pages(site)
    for page, text in pages.items():
        own = page.with_suffix("")  # what a page loads by itself lies in a folder of its name
        size = page.stat().st_size + sum(p.stat().st_size for p in own.rglob("*") if p.is_file())
        if size > 2_000_000: problems.append(f"{page.name} has more than 2 MB")
        for link in map(html.unescape, re.findall(r'(?:src|href)="([^"]*)"', re.sub(r"<pre\b.*?</pre>", "", text, flags=re.S))):
            link = link.removeprefix(ON_SITE + "/")
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not link: continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if target.is_dir(): target /= "index.html"
            if not target.exists(): problems.append(f"{page.name}: {link} leads to no file")
            elif parts.fragment and target in ids and unquote(parts.fragment) not in ids[target]:
                problems.append(f"{page.name}: {target.name} has no #{parts.fragment}")
    assert not problems, "\n".join(problems)
