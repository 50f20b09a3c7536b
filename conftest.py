"""Every notebook is one test. nbdev's own runner executes it, in a process of its own, with the flags of settings.ini.

    pytest                                  all chapters and tests/
    pytest nbs/04_attention.ipynb           one chapter
    pytest --flags "slow" nbs               the cells flagged `#| slow` too
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
RUNNER = ROOT / "tests" / "run_notebook.py"
SECONDS = 600  # a chapter takes well under one minute by itself; this is for a machine that is busy
SECONDS_FLAGGED = 4 * 3600


def pytest_addoption(parser):
    parser.addoption("--flags", default="", help='flagged notebook cells to run too, for example --flags "slow cuda"')
    parser.addoption("--colab", default=None, help="Python of an environment like Colab's, in which every chapter is then run alone")
    parser.addoption("--site", default=None, help="folder of the built site, whose pages are then checked")


def skip_flags():
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return settings["DEFAULT"]["tst_flags"].split()


def pytest_collect_file(file_path, parent):
    if file_path.suffix != ".ipynb" or ROOT / "nbs" not in file_path.parents: return None
    if any(part[0] in "_." for part in file_path.relative_to(ROOT).parts): return None  # as nbdev does
    return NotebookFile.from_parent(parent, path=file_path)


def pytest_collection_modifyitems(items):
    "Start the longest chapters first, so that no worker ends long after the others."
    items.sort(key=lambda item: -item.seconds if isinstance(item, NotebookItem) else -10)


class NotebookFile(pytest.File):
    def collect(self):
        yield NotebookItem.from_parent(self, name=self.path.stem)


class NotebookFailure(Exception): pass


class NotebookItem(pytest.Item):
    def __init__(self, **kw):
        super().__init__(**kw)
        cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        self.code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and "".join(c["source"]).strip()]
        text = "".join("".join(c["source"]) for c in cells[:6])
        found = re.search(r"(\d+) s to run", text)  # a chapter's first lines say how long it takes
        self.seconds = int(found[1]) if found else 0

    def reportinfo(self): return self.path, None, f"{self.path.relative_to(ROOT)}"

    def repr_failure(self, excinfo):
        return str(excinfo.value) if excinfo.errisinstance(NotebookFailure) else super().repr_failure(excinfo)

    def runtest(self):
        forced = self.config.getoption("--flags").split()
        skipped = [flag for flag in skip_flags() if flag not in forced]
        to_run = [source for source in self.code if not is_skipped(source, skipped)]
        ok, executed, output = execute(self.path, skipped, SECONDS_FLAGGED if forced else SECONDS)
        if not ok: raise NotebookFailure(output)
        # nbdev passes a notebook in silence when its language or front matter tells it to run nothing
        if self.code and not executed:
            raise NotebookFailure(f"No cell of {self.path.name} was executed: look for `skip_exec` in its front matter, a "
                                  f"kernel whose language is not `python`, or flags ({' '.join(skipped)}) on all its cells.")
        if executed != len(to_run):
            raise NotebookFailure(f"{executed} cells of {self.path.name} were executed, {len(to_run)} were expected.")


def is_skipped(source, flags):
    "Do the directives at the top of a cell exclude it? Read here a second time, to check what nbdev did."
    for line in source.strip().splitlines():
        directive = re.match(r"\s*#\s*\|\s*(.*)", line)
        if not directive: break
        if re.match(r"eval:\s*false", directive[1], re.I) or directive[1].split()[:1] in [[flag] for flag in flags]: return True
    return "nbdev_export(" in source


def execute(path, skipped, seconds):
    "Run a notebook in a fresh process; returns whether it passed, how many cells were executed, and what was printed."
    env = dict(os.environ, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    env.setdefault("OMP_NUM_THREADS", "1")  # several notebooks run at once
    env.pop("IN_TEST", None)
    command = [sys.executable, str(RUNNER), str(path), str(seconds), *skipped]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True)
        try:
            process.wait(timeout=seconds + 60)
        except subprocess.TimeoutExpired:
            print(f"{path.name} was stopped after {seconds} seconds.", file=out)
        finally:
            try: os.killpg(process.pid, signal.SIGKILL)  # with whatever the notebook started and left behind
            except ProcessLookupError: pass
        out.seek(0)
        output = out.read()
    counts = re.findall(r"^executed (\d+) cells$", output, re.M)
    return process.wait() == 0 and bool(counts), int(counts[-1]) if counts else 0, output
