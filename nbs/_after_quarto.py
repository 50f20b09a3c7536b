"""What Quarto leaves to be done; started by `post-render` in _quarto.yml, in the folder _proc. Standard library only.

Pages: nbdev links `names` in prose to their definitions with the full address of the site; here these links become relative,
so that a copy of the site works anywhere. A method leads to its class, a private name nowhere: neither has a place of its own.
Quarto adds require.js and jquery from a CDN to every page with an HTML output, in case the output is a widget.
The course has no widgets, so these lines go; anything else that a page would load from another host stops the build.

README.md: its links are those of index.ipynb, so they start at nbs/ and must start at the top of the repository.
"""
import os
import re
import sys
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
FROM_NBS = re.compile(r'(\]\(|(?:src|href)=")(?=images/|\w+\.(?:ipynb|qmd)\b)')


def loaded_from_elsewhere(text):
    "Addresses on other hosts that a browser would load with this page or style sheet."
    shown = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.S)  # what a page shows as code is not loaded
    return [address for pattern in LOADED for address in pattern.findall(shown)]


def mend_pages(site):
    pages = {p.name: p.read_text(encoding="utf-8") for p in site.glob("*.html")}
    places = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}

    def link(match):
        page, name, code = match.groups()
        if page not in places: return match[0]
        if name.split(".")[-1].startswith("_") and name not in places[page]: return code
        place = name if name in places[page] else name.split(".")[0]
        return f'<a href="{page}#{place}">{code}</a>'

    problems = []
    for path in sorted(p for p in site.rglob("*") if p.suffix in (".html", ".css")):
        text = path.read_text(encoding="utf-8")
        mended = NAME.sub(link, FOR_WIDGETS.sub("", text)) if path.suffix == ".html" else text
        if mended != text: path.write_text(mended, encoding="utf-8")
        problems += [f"{path.relative_to(site)} loads {address}" for address in loaded_from_elsewhere(mended)]
    return problems


def mend_readme(path): path.write_text(FROM_NBS.sub(r"\1nbs/", path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    site = Path(os.environ["QUARTO_PROJECT_OUTPUT_DIR"])
    if (site / "README.md").exists(): mend_readme(site / "README.md")
    sys.exit("\n".join(mend_pages(site)) or 0)
