"""What Quarto leaves to be done; started by `post-render` in _quarto.yml, in the folder _proc. Standard library only
(fontTools, which comes with matplotlib, is used where it is).

Pages: chapters carry their numbers, in the sidebar, above their titles and on the way to the next one. The picture of the first
page stands in it as SVG, so that its boxes are links. Figures without a text for those who do not see them get one. Beside the
badge for Colab stands the command for JupyterLab.
nbdev links `names` in prose to their definitions with the full address of the site; here these links become relative,
so that a copy of the site works anywhere. A name that several chapters have leads to this one's, or to the latest before it. A
method without a heading of its own leads to its class, a private name nowhere. In the comments of a signature, which are code, such a link goes.
Quarto adds require.js and jquery from a CDN to every page with an HTML output, in case the output is a widget.
The course has no widgets, so these lines go; anything else that a page would load from another host stops the build.

Style sheets: Quarto's two hold all of Bootstrap, half a megabyte each, and load before a page shows. Rules for classes that no
page and no script names go; so do the rules, and the drawings, of the icons that nobody shows.

README.md: its links are those of index.ipynb, so they start at nbs/ and must start at the top of the repository.
"""
import logging
import os
import re
import sys
from functools import partial
from pathlib import Path

FOR_WIDGETS = re.compile(
    r'<script src="https://cdnjs\.cloudflare\.com/ajax/libs/(?:require\.js|jquery)/[^>]*></script>\n?'
    r"|<script type=\"application/javascript\">define\('jquery'[^\n]*</script>\n?"
    r'|<script src="https://unpkg\.com/@jupyter-widgets/[^>]*></script>\n?')
LOADED = [  # what a browser fetches by itself; links (<a href>) are not
    re.compile(r'<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc="((?:https?:)?//[^"]*)', re.I),
    re.compile(r'<link\b(?![^>]*rel="(?:canonical|prev|next|alternate)")[^>]*?\bhref="((?:https?:)?//[^"]*)', re.I),
    re.compile(r"""url\(\s*["']?((?:https?:)?//[^)"']*)""", re.I),
    re.compile(r"""@import\s+(?:url\()?["']?((?:https?:)?//[^)"';]*)""", re.I),
]
NAME = re.compile(r'<a href="(?:https?://[^"]*/)?([\w-]+\.html)#([\w.]+)">(<code>[^<]*</code>)</a>')
BADGE = re.compile(r'(<a href="https://colab\.research\.google\.com/[^"]*/(nbs/[^"/]+)"><img src="images/colab\.svg")(?! class="colab")[^>]*></a>')
BADGE_AS_FIGURE = re.compile(r'<div class="quarto-figure[^>]*>\s*<figure[^>]*>\s*(<p><a href="https://colab\.[^>]*><img src="images/colab\.svg"[^>]*></a></p>)'
                             r'\s*<figcaption>[^<]*</figcaption>\s*</figure>\s*</div>')
UNDESCRIBED = re.compile(r'<img(?![^>]*\balt=)(?=[^>]*>)')
INLINE = re.compile(r'<p><img src="images/map\.svg"[^>]*>(?:<!--[^>]*-->)?</p>')
LISTED = re.compile(r'(<a href="\./([\w-]+)\.html"[^>]*>)((?:(?!</a>).)*?<span class="(?:menu-text|nav-page-text)">)(?!<span)', re.S)
TITLE = re.compile(r'(<h1 class="(?:title|quarto-secondary-nav-title)[^>]*>)(?!<span class="chapter-number")')
HOW_TO_RUN = "read-it-run-it"  # a heading of index.ipynb
AS_WRITTEN = re.compile(r'\[(`[^`\]]*`)\]\(https?://[^)\s]*\.html#[\w.]+\)')  # nbdev's link in the comment of a parameter, which is code
NESTED = re.compile(r'\[(<code>[^<]*</code>)\]\(https?://[^)\s]*\.html#[\w.]+\)')  # a name that was a link already, linked once more
FROM_NBS = re.compile(r'(\]\(|(?:src|href)=")(?=images/|\w+\.ipynb\b)')
PAGE_ONLY = re.compile(r'(\]\(|href=")(\w+)\.qmd\b')  # has nothing to show but on the site
BY_SCRIPT = ("aa-", "quarto-", "tippy", "headroom", "search-")  # classes whose names scripts may put together; "bi-" + name, too
SITE = "https://gptlearn.github.io/gptlearn"


def loaded_from_elsewhere(text):
    "Addresses on other hosts that a browser would load with this page or style sheet."
    shown = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.S)  # what a page shows as code is not loaded
    return [address for pattern in LOADED for address in pattern.findall(shown)]


def chapters(nbs=Path(__file__).parent):
    "Page → number: attention → 04. The number is the beginning of the notebook's name."
    return {stem: number for p in nbs.glob("[0-9]*_*.ipynb") for number, _, stem in [p.stem.partition("_")]}


def with_numbers(text, page, numbers):
    "The number of a chapter before its name, wherever the page names one by itself."
    def link(match):
        tag, to, rest = match.groups()
        if to not in numbers: return match[0]
        return tag.replace('aria-label="', f'aria-label="{numbers[to]} ') + rest + f'<span class="chapter-number">{numbers[to]}</span> '

    text = LISTED.sub(link, text)
    if page in numbers: text = TITLE.sub(rf'\1<span class="chapter-number">{numbers[page]}</span> ', text)
    return text


def with_badge(text):
    "Colab's badge with its name, and beside it what a reader with a clone types instead."
    def badge(match):
        link, notebook = match.groups()
        return (f'{link} class="colab" alt="Open in Colab"></a> <span class="run-it">or in <a href="index.html#{HOW_TO_RUN}">JupyterLab</a>: '
                f"<code>jupyter lab {notebook}</code></span>{'' if text.startswith('</p>', match.end()) else '<br>'}")

    text = BADGE_AS_FIGURE.sub(r"\1", text)
    return BADGE.sub(badge, text)


def with_picture(text, nbs=Path(__file__).parent):
    "The picture of the first page as part of the page; its links are relative there."
    if not INLINE.search(text): return text
    svg = (nbs / "images" / "map.svg").read_text(encoding="utf-8")
    svg = re.sub(r'href="https://[^"]*/([\w-]+\.html)"', r'href="\1"', svg).strip()
    return INLINE.sub(lambda _: f'<div class="map-figure">{svg}</div>', text)


def mend_pages(site):
    texts = {p.name: p.read_text(encoding="utf-8") for p in site.glob("*.html")}
    places = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in texts.items()}

    problems, numbers = [], chapters()

    def place_of(name, page, near=0):
        "Where a page defines a name: `fit`, or the method of this name, `trainer.fit`, whose heading is nearest; else None."
        if name in places[page]: return name
        ends = [i for i in places[page] if i.endswith("." + name)]
        return min(sorted(ends), key=lambda i: abs(texts[page].index(f'id="{i}"') - near), default=None)

    def meant(name, to, here):
        """nbdev knows each name once, and takes the last chapter that has it. A reader means this chapter's, or the latest that
        came before; a later chapter's only where there is no other."""
        if here not in numbers or place_of(name, here + ".html"): return here + ".html" if here in numbers else to
        if numbers.get(to.removesuffix(".html"), "") < numbers[here]: return to
        before = [n for n in numbers if numbers[n] < numbers[here] and n + ".html" in places and place_of(name, n + ".html")]
        return max(before, key=numbers.get) + ".html" if before else to

    def link(match, here):
        page, name, code = match.groups()
        if page not in places: return match[0]
        if name.split(".")[-1].startswith("_") and name not in places[page]: return code
        if match[0].startswith('<a href="http'): page = meant(name, page, here)  # else somebody has chosen it
        place = place_of(name, page, match.start() if page == here + ".html" else 0) or name.split(".")[0]
        return f'<a href="{page}#{place}">{code}</a>'

    for path in sorted(p for p in site.rglob("*") if p.suffix in (".html", ".css") or p.name in ("quarto-nav.js", "search.json")):
        text = path.read_text(encoding="utf-8")
        mended = text
        if path.suffix == ".html":
            mended = NESTED.sub(r"\1", AS_WRITTEN.sub(r"\1", FOR_WIDGETS.sub("", text)))
            mended = NAME.sub(partial(link, here=path.stem), mended)
            mended = with_numbers(with_picture(with_badge(mended)), path.stem, numbers)
            mended = re.sub(r'(<a class="flex-grow-1 no-decor") role="[a-z]+"([^>]*) aria-label="[^"]*"', r'\1\2', mended)  # the title on a phone
            mended = re.sub(r'(<a\b[^>]*) role="navigation"', r'\1 role="button"', mended)  # what folds a part of the sidebar
            mended = re.sub(r'<img (?!loading)(?=[^>]*\bwidth=)(?=[^>]*\bheight=)', '<img loading="lazy" ', mended)
            mended = UNDESCRIBED.sub('<img alt=""', mended)  # a figure whose caption describes it
        if path.name == "search.json": mended = AS_WRITTEN.sub(r"\1", text)
        if path.name == "quarto-nav.js": mended = text.replace("if (links[i].href) {", 'if (typeof links[i].href === "string") {')  # not in SVG
        if mended != text: path.write_text(mended, encoding="utf-8")
        if path.suffix in (".html", ".css"): problems += [f"{path.relative_to(site)} loads {address}" for address in loaded_from_elsewhere(mended)]
    return problems


def rules(css):
    "The parts of a style sheet: (what stands before the braces, what stands within them or None for a line like @charset)."
    at = 0
    while at < len(css):
        found = re.compile(r"""/\*.*?\*/|"[^"]*"|'[^']*'|[{;]""", re.S).search(css, at)
        start = at
        while found and found[0] not in "{;": found = found.re.search(css, found.end())
        if not found: return
        head, at = css[start:found.start()].strip(), found.end()
        if found[0] == ";":
            yield head, None
            continue
        depth, body = 1, at
        while depth:
            found = re.compile(r"""/\*.*?\*/|"[^"]*"|'[^']*'|[{}]""", re.S).search(css, at)
            depth, at = depth + {"{": 1, "}": -1}.get(found[0], 0), found.end()
        yield head, css[body:found.start()]


def slim(css, words):
    "A style sheet without the selectors whose classes are not among `words`."
    kept = []
    for head, body in rules(re.sub(r"/\*.*?\*/", "", css, flags=re.S)):
        if body is None: kept.append(head + ";")
        elif head.startswith(("@media", "@supports")):
            if inner := slim(body, words): kept.append(f"{head}{{{inner}}}")
        elif head.startswith("@"): kept.append(f"{head}{{{body}}}")
        else:
            selectors = re.split(r",(?![^(\[]*[)\]])", head)
            wanted = [x for x in selectors if all({c, c.removeprefix('bi-')} & words or c.startswith(BY_SCRIPT) for c in re.findall(r"\.(-?[A-Za-z_][\w-]*)", re.sub(r":not\([^)]*\)|\[[^]]*\]", "", x)))]
            if wanted: kept.append(f"{','.join(wanted)}{{{body}}}")
    return "".join(kept)


def slim_site(site):
    "Style sheets and icon font of Quarto, cut down to what the pages and scripts of this site name."
    words = set()
    for path in site.rglob("*"):
        if path.suffix in (".html", ".js") and path.is_file(): words |= set(re.findall(r"[\w-]+", path.read_text(encoding="utf-8")))
    folder = site / "site_libs" / "bootstrap"
    sheets = {path: path.read_text(encoding="utf-8") for path in folder.glob("bootstrap*.css")}
    for path, css in sheets.items():
        sheets[path] = slim(css, words)
        if sheets[path] != css: path.write_text(sheets[path], encoding="utf-8")
    font = folder / "bootstrap-icons.woff"
    if not font.exists(): return
    try: from fontTools import subset
    except ImportError: return
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    letters = {int(code, 16) for css in sheets.values() for code in re.findall(r'content: ?"\\([0-9a-f]{4})"', css)}
    loaded = subset.load_font(font, subset.Options(flavor="woff"))
    if len(set(loaded.getBestCmap()) - letters) < 10: return   # done before
    subsetter = subset.Subsetter(subset.Options(flavor="woff"))
    subsetter.populate(unicodes=letters)
    subsetter.subset(loaded)
    subset.save_font(loaded, font, subset.Options(flavor="woff"))


def mend_readme(path):
    text = PAGE_ONLY.sub(rf"\1{SITE}/\2.html", path.read_text(encoding="utf-8"))
    path.write_text(FROM_NBS.sub(r"\1nbs/", text), encoding="utf-8")


if __name__ == "__main__":
    site = Path(os.environ["QUARTO_PROJECT_OUTPUT_DIR"])
    if (site / "README.md").exists(): mend_readme(site / "README.md")
    problems = mend_pages(site)
    slim_site(site)
    sys.exit("\n".join(problems) or 0)
