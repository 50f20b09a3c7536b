"""JupyterLab itself: a chapter is opened in its page, all cells are run, progress moves while a model trains, plots appear.

    GPTLEARN_SCREENSHOT=/tmp/jupyterlab pytest tests/test_jupyterlab.py     keeps pictures of it
"""
import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, free_port, started, stop

ROOT = Path(__file__).parents[1]
MISSING = [name for name in ("jupyterlab", "ipywidgets", "websocket") if importlib.util.find_spec(name) is None] + ([] if CHROMIUM else ["chromium"])
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

# Runs all cells, and notes each picture that a cell showed, also those that were replaced by the next.
RUN_ALL = """(async () => {
  const {commands, shell} = window.jupyterapp, panel = window.panel;
  shell.activateById(panel.id);
  await panel.sessionContext.ready;
  window.shown = panel.content.widgets.map(cell => {
    const pictures = [], outputs = cell.model.outputs;
    if (outputs) outputs.changed.connect(() => {
      for (let i = 0; i < outputs.length; i++) {
        const picture = outputs.get(i).data['image/png'];
        if (picture && !pictures.includes(picture)) pictures.push(picture);
      }
    });
    return pictures;
  });
  window.ended = null;
  commands.execute('notebook:run-all-cells').then(ok => { window.ended = String(ok); }, e => { window.ended = 'failed: ' + e; });
})()"""
SHOW = "(() => { const {content} = window.panel; content.activeCellIndex = %d; content.scrollToItem(%d, 'center'); })()"


@pytest.fixture
def lab(tmp_path):
    "A JupyterLab whose folder is empty, with a kernel of this environment; nobody's settings."
    port, folder = free_port(), tmp_path / "work"
    folder.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON", "MPL"))}
    env |= dict(HOME=str(tmp_path / "home"), JUPYTER_CONFIG_DIR=str(tmp_path / "config"), JUPYTER_RUNTIME_DIR=str(tmp_path / "runtime"),
                JUPYTERLAB_SETTINGS_DIR=str(tmp_path / "settings"), JUPYTERLAB_WORKSPACES_DIR=str(tmp_path / "spaces"),
                IPYTHONDIR=str(tmp_path / "ipython"), OMP_NUM_THREADS="1")
    (tmp_path / "home").mkdir()
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{env['PYTHONPATH']}" if env.get("PYTHONPATH") else str(ROOT)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}"]
    process, _ = started(command, f"http://127.0.0.1:{port}/api", env=env, cwd=folder)
    yield folder, f"http://127.0.0.1:{port}"
    stop(process)


@pytest.fixture
def page(tmp_path):
    page = Browser(tmp_path / "browser")
    yield page
    stop(page.process)


def flagged(cell): return bool(re.match(r"(?:\s*#\s*\|.*\n)*?\s*#\s*\|\s*(slow|cuda)\b", "".join(cell["source"])))


def keep(page, name):
    if os.environ.get("GPTLEARN_SCREENSHOT"): page.screenshot(f"{os.environ['GPTLEARN_SCREENSHOT']}_{name}.png")


def count_pictures(cell): return sum("image/png" in o.get("data", {}) for o in cell.get("outputs", []))


def until(page, script, seconds):
    end = time.monotonic() + seconds
    while not (found := page.value(script)):
        assert time.monotonic() < end, f"it did not come within {seconds} s: {script}"
        time.sleep(0.3)
    return found


@pytest.mark.parametrize("name, watched", [("04_attention", None), ("10_trainer", "ProgressPlot(), Metrics()")])
def test_a_chapter_runs_in_the_page(lab, page, name, watched):
    "`watched` stands in the cell whose picture grows while a model trains."
    folder, address = lab
    chapter = json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8"))
    pictures = [0 if flagged(c) else count_pictures(c) for c in chapter["cells"]]
    for cell in chapter["cells"]:  # as on the first day: nothing has run
        if cell["cell_type"] == "code": cell["outputs"], cell["execution_count"] = [], None
    (folder / f"{name}.ipynb").write_text(json.dumps(chapter), encoding="utf-8")
    page.send("Page.navigate", url=f"{address}/lab/tree/{name}.ipynb")
    until(page, "!!(window.panel = [...(window.jupyterapp?.shell.widgets('main') || [])].find(w => w.sessionContext?.session?.kernel))", 180)
    page.value(RUN_ALL)
    if watched:
        at = next(i for i, c in enumerate(chapter["cells"]) if watched in "".join(c["source"]) and c["cell_type"] == "code")
        until(page, f"window.ended || (window.shown?.[{at}]?.length || 0) > 1", 900)
        page.value(SHOW % (at, at))
        keep(page, f"{name}_progress")
    ended = until(page, "window.ended", 900)
    after = json.loads(page.value("JSON.stringify(window.panel.content.model.toJSON())"))["cells"]
    for number, cell in enumerate(after):
        if cell["cell_type"] != "code": continue
        errors = [f"{o['ename']}: {o['evalue']}" for o in cell["outputs"] if o["output_type"] == "error"]
        assert not errors, f"{name}, cell {number}: {errors[0]}"
        assert cell["execution_count"], f"{name}, cell {number} was not run"
        if flagged(cell): assert "Left out" in "".join(cell["outputs"][0]["text"]), f"{name}, cell {number} takes minutes and was run"
    assert ended == "true", ended
    assert [count_pictures(c) for c in after] == pictures and sum(pictures) > 4
    plot = next(i for i, n in enumerate(pictures) if n)
    page.value(SHOW % (plot, plot))
    until(page, "document.querySelectorAll('.jp-OutputArea-output img').length", 60)
    keep(page, f"{name}_plot")
    if watched: assert page.value(f"window.shown[{at}].length") > 2, "the curve did not grow"
