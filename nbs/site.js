// What Quarto's pages lack for those who use a keyboard or a screen reader. Loaded by every page, from the site itself.
const scrolls = el => el.scrollWidth > el.clientWidth + 1;

// What scrolls sideways can be reached with the Tab key, and only that.
function reachable() {
  for (const el of document.querySelectorAll("main pre, main table, main math[display=block], main .cell-output-display > div"))
    if (scrolls(el)) el.tabIndex = 0;
    else if (el.getAttribute("tabindex") === "0") el.removeAttribute("tabindex");
}

// The search that Quarto draws has no name.
function named() {
  for (const [where, name] of [[".aa-Autocomplete", "Search the course"], [".aa-DetachedSearchButton", "Search"]])
    document.querySelectorAll(where).forEach(el => el.setAttribute("aria-label", name));
}

addEventListener("load", () => { reachable(); named(); });
addEventListener("resize", reachable);
document.addEventListener("toggle", reachable, true);   // an exercise is unfolded
new MutationObserver(named).observe(document.documentElement, { childList: true, subtree: true });
