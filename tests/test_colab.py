"""A chapter alone: opened on Colab or in JupyterLab, without the repository around it.

The first tests read the notebooks and take seconds. The last runs each of them as Colab does, from the cell that installs
the package, in an empty folder, with Colab's Python and Colab's packages. That takes 5 GB and half an hour, so it asks first:
    make colab PYTHON=python3.13
    make colab PYTHON=python3.13 ARGS="-k 04_attention"
"""
import ast
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
FIRST = re.compile(r"""#\| hide
# On Colab only: install the package that this notebook is the source of
import sys
if "google.colab" in sys.modules:
    %pip install -q "gptlearn\[([a-z,]+)\]"
""".strip())

settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]
COLAB = {canonicalize_name(line.split("==")[0]): line.split("==")[1]
         for line in (ROOT / "tests" / "colab.txt").read_text().splitlines() if line[:1] not in ("#", "")}

# module: what brings it, where the name is not the distribution's or it comes with another
BRINGS = {"yaml": "pyyaml", "pandas": "datasets", "huggingface_hub": "datasets", "h11": "uvicorn", "pydantic": "fastapi",
          "starlette": "fastapi", "IPython": "ipykernel"}
KERNEL = {"ipykernel"}  # what runs a notebook anywhere


def code_cells(path):
    return ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def parsed(cell): return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell, flags=re.M))


def extras(path): return FIRST.fullmatch(code_cells(path)[0].strip())[1].split(",")


def requirements(*names):
    "What the package asks for, with these extras: {name: Requirement}."
    lines = [settings["requirements"], *(settings[f"{name}_requirements"] for name in names)]
    return {canonicalize_name(r.name): r for r in map(Requirement, " ".join(lines).split())}


def is_flagged(cell): return bool(re.match(r"(?:\s*#\s*\|.*\n)*?\s*#\s*\|\s*(slow|cuda)\b", cell))


def name(path): return path.name


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_the_first_cell_installs_on_colab_only(path, monkeypatch):
    from IPython.core.inputtransformer2 import TransformerManager
    cell = code_cells(path)[0]
    assert FIRST.fullmatch(cell.strip()), f"the first cell of {path.name} is not the one that all chapters have:\n{cell}"
    code, calls = TransformerManager().transform_cell(cell), []
    shell = SimpleNamespace(run_line_magic=lambda *words: calls.append(words))
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    exec(code, dict(get_ipython=lambda: shell))
    assert not calls, f"{path.name} installs something where it is not on Colab"
    monkeypatch.setitem(sys.modules, "google.colab", object())
    exec(code, dict(get_ipython=lambda: shell))
    assert [magic for magic, _ in calls] == ["pip"]


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_what_it_installs_leaves_colabs_packages_alone(path):
    "Each requirement is met by what Colab has, or Colab has nothing of the name. So pip has no reason to replace torch."
    replaced = {"wandb"}  # chapter 15 needs a newer one; nothing else on Colab depends on it
    for package, wanted in requirements(*extras(path)).items():
        if package in COLAB and package not in replaced:
            assert wanted.specifier.contains(COLAB[package]), f"{wanted} would replace Colab's {package} {COLAB[package]}"
        assert not any(s.operator in ("==", "<", "<=", "~=", "===") for s in wanted.specifier), f"{wanted} has an upper bound"


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_what_it_imports_is_installed_by_its_first_cell(path):
    there = set(requirements(*extras(path))) | KERNEL
    for number, cell in enumerate(code_cells(path)):
        for node in ast.walk(parsed(cell)):
            if isinstance(node, ast.Import): modules = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom): modules = [node.module]
            else: continue
            for module in {m.split(".")[0] for m in modules} - {"gptlearn"} - set(sys.stdlib_module_names):
                package = canonicalize_name(BRINGS.get(module, module))
                assert package in there, (f"{path.name}, code cell {number} imports {module}, which neither the package nor the "
                                          f"extras of its first cell ({', '.join(extras(path))}) bring")


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_it_reads_no_file_that_only_the_repository_has(path):
    "What a chapter measured once lies in the package. A file of the repository is read where it `.exists()`."
    for number, cell in enumerate(code_cells(path)):
        where = f"{path.name}, code cell {number}"
        nodes = list(ast.walk(parsed(cell)))
        asks = any(isinstance(n, ast.Attribute) and n.attr in ("exists", "is_file", "is_dir") for n in nodes)
        for text in (n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)):
            if asks or not re.fullmatch(r"[\w.-]+(/[\w.-]+)*\.\w+", text): continue
            assert not (ROOT / "nbs" / text).is_file(), f"{where} reads {text}, which is beside the notebook only in the repository"
        for call in (n for n in nodes if isinstance(n, ast.Attribute) and n.attr == "parent" and ast.unparse(n.value).endswith("cwd()")):
            assert asks or is_flagged(cell), f"{where} looks for files in {ast.unparse(call)}, which is the repository only there"


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_run_all_leaves_out_what_takes_long(path):
    "The cell that sees to it stands in each chapter that has flagged cells, before them, and is the same everywhere but for the flags."
    cells = code_cells(path)
    places = [i for i, cell in enumerate(cells) if is_flagged(cell)]
    found = [i for i, cell in enumerate(cells) if "leave_out" in cell]
    if not places: assert not found; return
    assert len(found) == 1 and found[0] < places[0], f"{path.name} has flagged cells: it needs the cell of its neighbours that leaves them out"
    cell = cells[found[0]]
    code = cell[cell.index("def leave_out"):]
    assert code == first_of_its_kind() and ("#| cuda" in cell) == any(c.startswith("#| cuda") for c in cells)
    for i in places: assert cells[i].startswith(("#| slow", "#| cuda")), f"{path.name}, code cell {i}: the flag is the first line"


def first_of_its_kind():
    "The code of that cell in the first chapter that has it."
    cell = next(c for path in CHAPTERS for c in code_cells(path) if "def leave_out" in c)
    return cell[cell.index("def leave_out"):]


def test_in_a_kernel_flagged_cells_are_left_out_and_elsewhere_they_run():
    import nbformat
    from execnb.shell import CaptureShell
    from nbclient import NotebookClient
    see_to_it = 'flags = "#| slow"\n' + first_of_its_kind()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (
        see_to_it, "#| slow\nassert False", "#| slow and more\nassert False", "", "print('ran')\n#| slow", "# slow\nprint('ran, too')")])
    cells = NotebookClient(notebook, timeout=60).execute().cells
    printed = ["".join(o.text for o in cell.outputs) for cell in cells]
    assert printed[4:] == ["ran\n", "ran, too\n"]
    assert all("To run this cell, delete its first line, #| slow" in text for text in printed[1:3])
    shell = CaptureShell()  # nbdev's runner: flags are its own business
    shell.run(see_to_it)
    shell.run("#| slow\nran = True")
    assert shell.user_ns["ran"]


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_saved_outputs_of_flagged_cells_are_kept(path):
    "Run All puts a sentence in their place; `git restore` brings them back."
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        for output in cell.get("outputs", []):
            assert not "".join(output.get("text", "")).startswith("Left out. To run"), f"{path.name}, cell {number} was run without its flag's leave"


def pytest_generate_tests(metafunc):
    asked = metafunc.config.getoption("--colab")
    if "alone" in metafunc.fixturenames: metafunc.parametrize("alone", CHAPTERS if asked else [], ids=name)


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory):
    "A folder with the wheel, under a version above every one that PyPI may have."
    tmp = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "_*cs", "_proc", "runs", "data", "build", "dist", "*.egg-info", "__pycache__", "tests", "docker")
    shutil.copytree(ROOT, tmp / "source", ignore=ignored)
    ini = tmp / "source" / "settings.ini"
    ini.write_text(re.sub(r"^version = .*$", "version = 1!0", ini.read_text(encoding="utf-8"), flags=re.M), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp / "wheels", tmp / "source"]
    subprocess.run(command, check=True)
    return tmp / "wheels"


def site_packages(python):
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())


def layer(colab, folder):
    "A new environment on top of Colab's: what is installed goes here and hides what is below. So each chapter has its own Colab."
    subprocess.run([colab, "-m", "venv", "--without-pip", folder], check=True)
    python, pip = folder / "bin" / "python", folder / "bin" / "pip"
    (site_packages(python) / "below.pth").write_text(f"{site_packages(colab)}\n")
    pip.write_text(f'#!/bin/sh\nexec "{python}" -m pip "$@"\n')
    pip.chmod(0o755)
    return python


def test_as_on_colab(alone, request, tmp_path, wheelhouse):
    colab = Path(request.config.getoption("--colab")).absolute()
    import nbformat
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from nbclient import NotebookClient
    python, folder = layer(colab, tmp_path / "venv"), tmp_path / "content"
    folder.mkdir()
    # a kernel as Colab starts it: google.colab is there before the first cell
    start = tmp_path / "ipython" / "profile_default" / "startup" / "colab.py"
    start.parent.mkdir(parents=True)
    start.write_text("import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n")
    env = {k: v for k, v in os.environ.items() if not re.match(r"PYTHON|GPTLEARN|HF_|VIRTUAL_ENV|MPL|TRANSFORMERS|IPYTHON|IN_TEST", k)}
    env |= dict(PATH=f"{python.parent}:{Path(colab).parent}:{env['PATH']}", HOME=str(tmp_path), IPYTHONDIR=str(tmp_path / "ipython"),
                PIP_FIND_LINKS=str(wheelhouse), MPLBACKEND="module://matplotlib_inline.backend_inline")
    env |= {k: os.environ[k] for k in ("GPTLEARN_DATA",) if k in os.environ}
    kernel = AsyncKernelManager(kernel_name="python3")
    kernel._kernel_spec = KernelSpec(argv=[str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python")
    notebook = nbformat.read(alone, 4)
    try: NotebookClient(notebook, km=kernel, timeout=900, resources={"metadata": {"path": str(folder)}}).execute(env=env)
    finally: asyncio.run(kernel.shutdown_kernel(now=True))
    installed = {canonicalize_name(p.name.split("-")[0]) for p in site_packages(python).glob("*.dist-info")}
    print(alone.stem, "installed", *sorted(installed))
    assert "gptlearn" in installed, "the first cell did not run as on Colab"
    kept = {"torch", "numpy", "matplotlib", "transformers", "tokenizers", "datasets", "pandas", "ipykernel", "ipython", "ipywidgets", "tqdm"}
    assert not installed & kept, f"replaced on Colab: {', '.join(installed & kept)}"
