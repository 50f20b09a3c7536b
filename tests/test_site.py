"""The pages of the course: every link leads somewhere, every chapter says how to run it, nobody is kept out.

The first part reads notebooks and README.md and needs no Quarto. `make docs` builds the site and then checks its pages too, the
last tests in Chromium where it is, and with axe where that is (npm install --no-save axe-core).
"""
import functools
import gzip
import html
import http.server
import importlib.util
import json
import os
import re
import struct
import threading
import time
import xml.etree.ElementTree as ET
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

try:
    import websocket  # noqa: F401
    from browser import CHROMIUM, Browser, stop
except ImportError: CHROMIUM, Browser = None, object

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(p for p in NBS.glob("*.ipynb") if p.name[0] not in "_.")
CHAPTERS = [p for p in NOTEBOOKS if p.name[0].isdigit()]
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
    kept = '<a href="https://pytorch.org">PyTorch</a><img src="images/colab.svg" alt="badge"><code>@import "https://x.org"</code>'
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
    (tmp_path / "a.html").write_text('<a href="b.html">[<code>x</code>](https://gptlearn.github.io/gptlearn/b.html#kvcache) of b</a>')
    assert after_quarto().mend_pages(tmp_path) == []  # written as a link: nbdev makes one more within it
    assert (tmp_path / "a.html").read_text() == '<a href="b.html"><code>x</code> of b</a>'


def test_a_name_that_several_chapters_have(tmp_path):
    "nbdev sends each to the last of them."
    for page, ids in dict(bpe=("bpe.train", "chartokenizer.train"), trainer=("trainer.fit", "strategy.evaluate"), evaluate=("evaluate",), cli=("fit", "train", "one")).items():
        (tmp_path / f"{page}.html").write_text("".join(f'<h3 id="{i}">' for i in ids))
    def leads_to(here, name, address="https://gptlearn.github.io/gptlearn/cli.html#", before=None):
        page = tmp_path / f"{here}.html"
        text = page.read_text()
        before = text if before is None else before
        page.write_text(f'{before}<a href="{address}{name}"><code>x</code></a>{text[len(before):]}')
        assert after_quarto().mend_pages(tmp_path) == []
        found = re.search(r'<a href="([^"]*)"', page.read_text())[1]
        page.write_text(text)
        return found
    for page in ("finetune", "tales", "index"): (tmp_path / f"{page}.html").write_text("")
    assert leads_to("trainer", "fit") == leads_to("finetune", "fit") == "trainer.html#trainer.fit"
    assert leads_to("cli", "fit") == "cli.html#fit" and leads_to("bpe", "one") == "cli.html#one"
    assert leads_to("bpe", "train") == "bpe.html#chartokenizer.train" and leads_to("bpe", "train", before="") == "bpe.html#bpe.train"  # the nearest
    assert leads_to("tales", "fit") == "cli.html#fit"
    assert leads_to("finetune", "fit", "cli.html#") == "cli.html#fit"  # somebody has chosen it
    assert leads_to("index", "fit") == "cli.html#fit"
    assert leads_to("finetune", "evaluate", "https://gptlearn.github.io/gptlearn/evaluate.html#") == "evaluate.html#evaluate"


def test_a_link_in_a_comment_of_code_is_a_name(tmp_path):
    page = tmp_path / "a.html"
    search = tmp_path / "search.json"
    search.write_text('[{"text": "eot: int # of [`Row`](https://gptlearn.github.io/gptlearn/cuda.html#row)\\nnext"}]')
    page.write_text('<pre><span class="co"># [`Row`](https://gptlearn.github.io/gptlearn/cuda.html#row) or [`x`](https://gptlearn.github.io/gptlearn/b.html#x.y)</span></pre>')
    assert after_quarto().mend_pages(tmp_path) == []
    assert page.read_text() == '<pre><span class="co"># `Row` or `x`</span></pre>'
    assert json.loads(search.read_text()) == [{"text": "eot: int # of `Row`\nnext"}]


def test_style_sheets_keep_what_is_used(tmp_path):
    slim, words = after_quarto().slim, {"used", "search", "b-c"}
    css = """@charset "UTF-8";/* .gone{} */.used,.gone{a:b}.gone .used{c:d}.bi-search::before{content:"}"}.bi-gone::before{content:"{"}
        p:not(.gone) > a[href*=".gone,x"],.gone{e:f}@media (min-width:1px){.gone{g:h}.b-c:hover{i:j}}@media print{.gone{k:l}}@font-face{src:url(x)}h1{m:n}.aa-X{}"""
    assert re.sub(r"\s+", " ", slim(css, words)) == ('@charset "UTF-8";.used{a:b}.bi-search::before{content:"}"}p:not(.gone) > a[href*=".gone,x"]{e:f}'
        "@media (min-width:1px){.b-c:hover{i:j}}@font-face{src:url(x)}h1{m:n}.aa-X{}")


def test_links_of_the_readme_start_at_the_top(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text('[a](04_attention.ipynb#x) [e](e.qmd) ![b](images/b.svg) <img src="images/c.png"> [d](https://x.org/images/d)')
    after_quarto().mend_readme(readme)
    assert readme.read_text() == ('[a](nbs/04_attention.ipynb#x) [e](https://gptlearn.github.io/gptlearn/e.html) ![b](nbs/images/b.svg) <img src="nbs/images/c.png"> '
                                  "[d](https://x.org/images/d)")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_begins_with_how_to_run_it(path):
    "On Colab a cell installs the package; then title, one line, badge, what one will have, what it needs, how long it takes."
    first, title, *rest = ("".join(c["source"]) for c in cells(path)[:6])
    assert first.startswith("#| hide") and 'if "google.colab" in sys.modules:\n    %pip install -q' in first
    assert re.fullmatch(r"# .+\n+> .+\n*", title), f"{path.name}: its second cell is not a title and one line"
    text = next(t for t in rest if "colab.svg" in t)
    assert text.startswith(f"[![Open in Colab](images/colab.svg)](https://colab.research.google.com/github/gptlearn/gptlearn/blob/main/nbs/{path.name})\n")
    assert re.search(r"\*\*You will have\*\*(?s:.+?)·\s\*\*Needs\*\*(?s:.+?)·\s\*\*Takes\*\* about \d+ minutes to read, \d+ s to run", text), f"{path.name}: {text[:300]}"


SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_of_the_course_leads_to_every_chapter():
    svg = ET.parse(NBS / "images" / "map.svg").getroot()
    boxes = {}
    for a in svg.iter(SVG + "a"):
        number = "".join(t.text for t in a.iter(SVG + "text") if t.get("class") == "m-no")
        name = " ".join(filter(None, (number, "".join(t.text for t in a.iter(SVG + "text") if t.get("class") == "m-ink"))))
        assert a.find(SVG + "title").text.startswith(name + ": "), f"the box {name} is called otherwise for those who do not see it"
        assert a.get("href").startswith(ON_SITE + "/")
        boxes[page_of_site(a.get("href").removeprefix(ON_SITE)).name] = number
    assert boxes == {p.name: p.name.split("_")[0] for p in CHAPTERS} | {"explorer.qmd": ""}
    said = re.search(r"!\[([^\]]*)\]\(images/map\.svg\)", prose(NBS / "index.ipynb"))[1]
    assert svg.find(SVG + "desc").text in said, "index.ipynb describes another picture"


def test_the_picture_for_shared_links():
    head = (NBS / "images" / "share.png").read_bytes()[:24]
    assert struct.unpack(">II", head[16:]) == (1200, 630)


def glossary():
    text = (NBS / "glossary.qmd").read_text(encoding="utf-8")
    return re.findall(r"^\[(.+)\]\{#.+\}\n:   (.+)$|^## (\w)$", text, re.M)


def in_order(term): return re.sub(r"[^a-z0-9 ]", "", term.replace("–", "-").lower().replace("-", " "))


def test_the_glossary():
    "In alphabetical order under its letters, no term twice, each explained and led to its chapter; three or more from every chapter."
    entries, letter = glossary(), None
    terms = [in_order(term) for term, _, _ in entries if term]
    assert len(terms) >= 100 and terms == sorted(terms) and len(terms) == len(set(terms))
    for term, text, heading in entries:
        letter = heading or letter
        if heading: continue
        assert in_order(term)[0].upper() == letter, f"{term} stands under {letter}"
        assert re.match(r"[^\[]{10,}[.?] \[Chapter \w+\]\(", text), f"{term}: {text}"
        for number, link in re.findall(r"\[[Cc]hapter (\w+)\]\(([^)]+)\)", text): assert link.startswith(f"{number}_"), f"{term}: {link}"
    for path in CHAPTERS:
        assert sum(f"]({path.name}" in text for _, text, _ in entries) >= 3, f"the glossary has fewer than three terms of {path.name}"


PAGE = """<nav id="sidebar"><a href="./b.html" class="sidebar-link"> <span class="menu-text">Beta</span></a></nav>
<h1 class="title d-none">Alpha</h1><div class="quarto-figure quarto-figure-left">
<figure class="figure">
<p><a href="https://colab.research.google.com/github/gptlearn/gptlearn/blob/main/nbs/00_a.ipynb"><img src="images/colab.svg" class="img-fluid figure-img"></a></p>
<figcaption>Open in Colab</figcaption>
</figure>
</div>
<figure><p><img src="images/x.svg" class="figure-img"></p><figcaption>What it shows</figcaption></figure>
<p><img src="images/map.svg" class="img-fluid" alt="A map"><!-- no caption --></p>
<a href="./b.html" class="pagination-link" aria-label="Beta"> <span class="nav-page-text">Beta</span></a>"""


def test_what_is_added_to_pages(tmp_path, monkeypatch):
    module = after_quarto()
    monkeypatch.setattr(module, "chapters", lambda: {"a": "00", "b": "01b"})
    page = tmp_path / "a.html"
    page.write_text(PAGE)
    assert module.mend_pages(tmp_path) == []
    text = page.read_text()
    assert '<span class="menu-text"><span class="chapter-number">01b</span> Beta' in text and 'aria-label="01b Beta"' in text
    assert '<h1 class="title d-none"><span class="chapter-number">00</span> Alpha</h1>' in text
    assert 'class="colab" alt="Open in Colab"></a>' in text and "<code>jupyter lab nbs/00_a.ipynb</code>" in text
    assert 'href="index.html#read-it-run-it"' in text and "read-it-run-it" in anchors(NBS / "index.ipynb")
    assert '<img alt="" src="images/x.svg"' in text and text.count("<figure") == text.count("</figure>") == 1
    assert '<svg' in text and 'href="attention.html"' in text and ON_SITE not in text
    assert module.mend_pages(tmp_path) == [] and page.read_text() == text  # a second time changes nothing




@pytest.fixture(scope="module")
def site(pytestconfig):
    if not pytestconfig.getoption("--site"): pytest.skip("the site is checked by make docs")
    return Path(pytestconfig.getoption("--site")).resolve()


def test_the_built_site(site):
    pages = {p: p.read_text(encoding="utf-8") for p in site.glob("*.html")}
    assert len(pages) == len(NOTEBOOKS) + len(OTHERS)
    ids = {p: set(re.findall(r'\bid="([^"]+)"', text)) for p, text in pages.items()}
    problems = after_quarto().mend_pages(site)
    for page, text in pages.items():
        shown = re.sub(r"<(pre|code|script|style|textarea)\b.*?</\1>", "", text, flags=re.S)
        problems += [f"{page.name} shows a link as it is written: {found}" for found in re.findall(r".{0,60}\]\((?:https?:|[\w.]+#).{0,60}", shown)]
        problems += [f"{page.name} shows a link of nbdev in code: {found}" for found in re.findall(r"\[`[^`]*`\]\([^)]*\)", text)]
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
    found = re.findall(r"\[`[^`]*`\]\(", (site / "search.json").read_text(encoding="utf-8"))
    if found: problems.append(f"search shows {len(found)} links as they are written")
    assert not problems, "\n".join(problems)


def page_name(path): return re.sub(r"^\d+[a-zA-Z0-9]*_", "", path.stem) + ".html"


def test_every_page_leads_on(site):
    "Search, both themes, the page before and the page after; a chapter's number, its badge, JupyterLab, what it needs, how long it takes."
    order = re.findall(r"^\s*- (\S+\.(?:ipynb|qmd))$", (NBS / "sidebar.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(order) == sorted(p.name for p in [*NOTEBOOKS, *OTHERS])
    names = [page_name(Path(n)) for n in order]
    for i, (source, name) in enumerate(zip(order, names)):
        text = (site / name).read_text(encoding="utf-8")
        lacks = [what for what in ('id="quarto-search"', "quarto-color-scheme-toggle", 'property="og:image" content="https://gptlearn.github.io/gptlearn/images/share.png"',
                                   'name="twitter:card" content="summary_large_image"', '<script src="site.js" defer', '<html xmlns="http://www.w3.org/1999/xhtml" lang="en"') if what not in text]
        assert not lacks, f"{name} lacks {lacks}"
        links = re.findall(r'<a href="\./([^"]+)" class="pagination-link"', text)
        assert links == [names[j] for j in (i - 1, i + 1) if 0 <= j < len(names)], f"{name} leads to {links}"
        if not source[0].isdigit(): continue
        number = source.split("_")[0]
        assert f'<span class="chapter-number">{number}</span>' in re.search(r'<h1 class="title.*?</h1>', text, re.S)[0], f"{name} does not say that it is chapter {number}"
        start = re.sub(r"<[^>]+>", "", text[text.index('id="quarto-document-content"'):].split("<section", 1)[0])
        for words in ("You will have", "Needs", "Takes", "minutes to read", f"jupyter lab nbs/{source}"): assert words in start, f"{name} does not say {words!r} at its top"
        assert 'alt="Open in Colab"' in text


def test_names_lead_to_their_own_headings(site):
    "What a name in prose leads to is the place of that name, or of the class that it belongs to; most go to other chapters."
    counts = {}
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        for to, place, code in re.findall(r'<a href="([\w-]+\.html)#([\w.]+)"><code>([^<]*)</code></a>', text):
            parts = re.findall(r"\w+", html.unescape(code).lower())
            assert set(place.lower().split(".")) & set(parts), f"{page.name}: `{code}` leads to {to}#{place}"
            counts.setdefault(page.name, []).append(to)
    assert all(len(counts.get(page_name(p), [])) >= 3 for p in CHAPTERS), {k: len(v) for k, v in counts.items()}
    across = sum(to != page for page, found in counts.items() for to in found)
    assert across >= 80, across


AXE = next((p for p in (Path(os.environ.get("AXE", "")), ROOT / "node_modules" / "axe-core" / "axe.min.js") if p.is_file()), None)


class Reader(Browser):
    "A browser that keeps what the console said, what was asked for and how much came."
    def __init__(self, folder):
        self.events = []
        super().__init__(folder)
        for domain in ("Runtime", "Log", "Network"): self.send(domain + ".enable")

    def note(self, event):
        if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Network.requestWillBeSent",
                                   "Network.loadingFinished", "Network.dataReceived"): self.events.append(event)

    def wait_for(self, script, seconds=90):
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def read(self, address, dark, phone):
        self.send("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value="dark" if dark else "light")])
        self.send("Emulation.setDeviceMetricsOverride", width=390 if phone else 1280, height=844, deviceScaleFactor=1, mobile=phone)
        self.events = []
        self.send("Page.navigate", url=address)
        end = time.monotonic() + 90
        while self.value("document.readyState === 'complete' && location.href") != address or not self.value("!!document.querySelector('[aria-label=\"Search\"]')"):
            assert time.monotonic() < end, f"{address} is not there"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def served(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def reader(site, tmp_path_factory):
    if not CHROMIUM: pytest.skip("needs chromium and websocket-client")
    reader = Reader(tmp_path_factory.mktemp("chromium"))
    yield reader
    stop(reader.process)


FAULTS = """axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.filter(v => ['serious', 'critical'].includes(v.impact))
    .map(v => `${v.id} (${v.nodes.length}): ${v.nodes[0].html.slice(0, 200)} ${v.nodes[0].failureSummary.slice(0, 200)}`))"""
# What axe would find, in few lines, so that a machine without it is not blind: pictures, buttons and links without a name,
# sideways scrolling out of reach of the keyboard, colours of code too near to that of their background.
OWN_FAULTS = """(() => {
  const seen = el => el.getClientRects().length && getComputedStyle(el).visibility !== "hidden", found = [];
  const note = (what, el) => found.push(`${what}: ${el.outerHTML.slice(0, 160)}`);
  for (const el of document.images) if (!el.hasAttribute("alt")) note("no alt", el);
  for (const el of document.querySelectorAll("a[href], button, [role=button]"))
    if (seen(el) && !el.closest("[aria-hidden=true]") && !(el.getAttribute("aria-label") || el.title || el.textContent).trim() && ![...el.querySelectorAll("img")].some(i => i.alt)) note("no name", el);
  for (const el of document.querySelectorAll("main pre, main table"))
    if (seen(el) && el.scrollWidth > el.clientWidth + 1 && el.tabIndex < 0 && !el.querySelector("a, button")) note("out of reach", el);
  const light = rgb => { const [r, g, b] = rgb.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  for (const el of document.querySelectorAll("main pre.sourceCode span[class]")) {
    if (!seen(el)) continue;
    let box = el; while (box && (numbers(getComputedStyle(box).backgroundColor)[3] ?? 1) === 0) box = box.parentElement;
    const [a, b] = [getComputedStyle(el).color, getComputedStyle(box).backgroundColor].map(c => light(numbers(c).slice(0, 3))).sort();
    if ((b + 0.05) / (a + 0.05) < 4.5) note("too pale", el);
  }
  return found.slice(0, 5);
})()"""


@pytest.mark.parametrize("name", [page_name(p) for p in [*NOTEBOOKS, *OTHERS]])
def test_a_page_in_the_browser(name, site, served, reader):
    """Light and wide, dark and on a phone: no error, no other host, no sideways scrolling, no serious fault for those who use a
    keyboard or a screen reader; less than 2 MB to load, packed as GitHub's pages are."""
    for dark, phone in ((False, False), (True, True)):
        where = f"{name}, {'dark, phone' if dark else 'light, wide'}"
        reader.read(served + name, dark, phone)
        own = reader.wait_for(OWN_FAULTS)
        assert not own, f"{where}: {own}"
        if AXE:
            reader.send("Runtime.evaluate", expression=AXE.read_text(encoding="utf-8"))
            faults = reader.wait_for(FAULTS)
            assert not faults, f"{where}: " + "\n".join(faults)
        assert reader.value("document.documentElement.scrollWidth") <= (390 if phone else 1280), f"{where} scrolls sideways"
        assert reader.value("document.body.classList.contains('quarto-dark')") == dark, where
        said = [e["params"] for e in reader.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")
                or e["method"] == "Runtime.consoleAPICalled" and e["params"]["type"] in ("error", "warning")]
        assert not said, f"{where}: {said}"
        asked = {e["params"]["request"]["url"] for e in reader.events if e["method"] == "Network.requestWillBeSent"}
        assert asked and all(url.startswith((served, "data:", "blob:")) for url in asked), f"{where}: {asked}"
        files = {site / unquote(urlsplit(url).path).lstrip("/") for url in asked if url.startswith(served)} - {site / "search.json"}  # search loads that
        size = sum(len(gzip.compress(p.read_bytes(), 6)) if p.suffix in (".html", ".css", ".js", ".svg", ".json") else p.stat().st_size for p in files)
        assert size < 2_000_000, f"{where}: {size:,} bytes"
