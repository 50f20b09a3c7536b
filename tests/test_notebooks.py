"""The collector of conftest.py: a notebook that proves nothing must not pass."""
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def notebook(*cells, language="python", raw=None):
    "A notebook of code cells, as JSON."
    def cell(kind, source, **kw): return dict(cell_type=kind, id=f"c{abs(hash(source)) % 10**8}", metadata={}, source=source, **kw)
    front = [cell("raw", raw)] if raw else []
    code = [cell("code", source, execution_count=None, outputs=[]) for source in cells]
    kernel = dict(display_name="python3", language=language, name="python3")
    return json.dumps(dict(cells=front + code, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5))


NOTEBOOKS = {  # name: (notebook, what the report of its failure says; None where it passes)
    "good": (notebook("x = 1", "#| slow\nassert x == 2", "assert x == 1"), None),
    "wrong": (notebook("x = 1", "assert x == 2, 'x is not two'"), "x is not two"),
    "skip_exec": (notebook("assert False", raw="---\nskip_exec: true\n---"), "No cell of skip_exec.ipynb was executed"),
    "language": (notebook("assert False", language="Python"), "No cell of language.ipynb was executed"),
    "flagged": (notebook("#| slow\nassert False"), "No cell of flagged.ipynb was executed"),
    "stopped": (notebook("import sys\nsys.exit(0)", "assert False"), ""),
    "network": (notebook("import urllib.request\nurllib.request.urlopen('http://example.org')"), "do not use the network"),
    "place": (notebook("from pathlib import Path\nassert Path.cwd().name == 'nbs' and Path('place.ipynb').exists()"), None),
    "_ignored": (notebook("assert False"), "never collected"),
}


def run(folder, *options):
    "Run pytest in the folder: {name of the notebook: None or the report of its failure}."
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}", *options, "nbs"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert report.exists(), done.stdout + done.stderr
    results = {}
    for case in ET.parse(report).iter("testcase"):
        failure = case.find("failure")
        results[case.get("name")] = None if failure is None else (failure.text or "") + (failure.get("message") or "")
    return results


@pytest.fixture
def project(tmp_path):
    for name in ("conftest.py", "pytest.ini", "settings.ini", "tests/run_notebook.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "nbs").mkdir()
    return tmp_path


def test_what_passes_and_what_fails(project):
    for name, (text, _) in NOTEBOOKS.items(): (project / "nbs" / f"{name}.ipynb").write_text(text)
    results = run(project)
    assert sorted(results) == sorted(name for name in NOTEBOOKS if name[0] != "_")
    for name, report in results.items():
        expected = NOTEBOOKS[name][1]
        if expected is None: assert report is None, f"{name} failed:\n{report}"
        else: assert report is not None and expected in report, f"{name}: expected {expected!r} in\n{report}"


def test_flags_are_run_on_request(project):
    (project / "nbs" / "good.ipynb").write_text(NOTEBOOKS["good"][0])
    assert "x == 2" in run(project, "--flags", "slow")["good"]


def test_each_chapter_is_collected_once():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--collect-only", "-q", "nbs"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    collected = [line.split("::")[0] for line in out.splitlines() if "::" in line]
    chapters = [p.relative_to(ROOT).as_posix() for p in (ROOT / "nbs").glob("*.ipynb")]
    assert sorted(collected) == sorted(chapters)
