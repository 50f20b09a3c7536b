"""The repository keeps its own rules: modules are what the notebooks export, notebooks are clean, chapters form a staircase."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").glob("*.ipynb") if p.name[0] not in "_.")
CHAPTERS = [p for p in NOTEBOOKS if p.name[0].isdigit()]
MODULES = sorted(p for p in (ROOT / "gptlearn").glob("*.py") if p.name[0] != "_")


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]
def source(cell): return "".join(cell["source"])
def name(path): return path.name


@pytest.fixture
def checkout(tmp_path):
    "A copy of what nbdev reads and writes, so that no test changes the checkout."
    for file in ("settings.ini", "setup.py", "README.md"): shutil.copy(ROOT / file, tmp_path)
    for folder in ("nbs", "gptlearn"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", ".*", "_proc"))
    return tmp_path


def nbdev(command, folder):
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # with IN_TEST nbdev exports nothing
    code = f"from nbdev.{'doclinks' if command == 'nbdev_export' else 'clean'} import {command}; {command}()"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def differing(folder, other, pattern):
    names = {p.relative_to(root).as_posix() for root in (folder, other) for p in root.glob(pattern)}
    same = lambda n: (folder / n).exists() and (other / n).exists() and (folder / n).read_bytes() == (other / n).read_bytes()
    return sorted(n for n in names if not same(n))


def test_modules_are_what_the_notebooks_export(checkout):
    for module in (checkout / "gptlearn").glob("*.py"):
        if module.name != "__init__.py": module.unlink()  # a module whose notebook is gone must not survive
    nbdev("nbdev_export", checkout)
    stale = differing(ROOT, checkout, "gptlearn/*.py")
    assert not stale, f"{', '.join(stale)}: not what the notebooks export. Run nbdev_export (or make prepare)."
    assert not (checkout / "pyproject.toml").exists() and not (ROOT / "pyproject.toml").exists()


def test_notebooks_are_clean(checkout):
    nbdev("nbdev_clean", checkout)
    unclean = differing(ROOT, checkout, "nbs/*.ipynb")
    assert not unclean, f"{', '.join(unclean)}: not clean. Run nbdev_clean (or make prepare)."


def test_readme_is_the_index():
    "Without Quarto, word by word: each paragraph and heading of index.ipynb, but its subtitle, stands in README.md."
    words = lambda text: " ".join(re.findall(r"\w+", re.sub(r"\]\([^)]*\)|<[^>]*>|^#\|.*$", " ", text, flags=re.M)))
    readme = words((ROOT / "README.md").read_text(encoding="utf-8"))
    for cell in cells(ROOT / "nbs" / "index.ipynb"):
        if cell["cell_type"] != "markdown": continue
        text = re.sub(r"^> .*$", "", source(cell), flags=re.M) if source(cell).startswith("# ") else source(cell)
        for block in re.split(r"\n\s*\n|\n(?=\||\s*[-*] |\s*\d+\. |#)", text):
            assert words(block) in readme, f"README.md lacks, from index.ipynb: {block!r}. Run make prepare (with Quarto)."


def test_sidebar_names_every_page_once_in_reading_order():
    text = (ROOT / "nbs" / "sidebar.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^\s*- (?:href: )?(\S+\.ipynb)$", text, re.M)
    assert sorted(listed) == sorted(p.name for p in NOTEBOOKS)
    assert [n for n in listed if n[0].isdigit()] == [p.name for p in CHAPTERS]
    assert yaml.safe_load(text)["website"]["sidebar"]["contents"][0] == "index.ipynb"


def imported_modules(path):
    "The modules of the package that a module imports, wherever in its text."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level == 1: yield from [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
            elif node.module == "gptlearn": yield from (a.name for a in node.names)
            elif node.module and node.module.startswith("gptlearn."): yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("gptlearn."))


def test_a_chapter_imports_only_from_chapters_before_it():
    number = {}
    for path in MODULES:
        chapter = re.search(r"File to edit: \.\./nbs/(\d+b?)_", path.read_text(encoding="utf-8"))
        assert chapter, f"no chapter exports {path.name}"
        number[path.stem] = chapter[1]
    for path in MODULES:
        for other in set(imported_modules(path)) - {path.stem}:  # itself, by name, for what runs in another process
            assert other in number, f"{path.name} imports {other}, which no chapter exports"
            assert number[other] < number[path.stem], f"{path.name} (chapter {number[path.stem]}) imports {other} ({number[other]})"


IMPORT_ALL = """
import importlib, sys
class Absent:  # as on a machine without the development tools
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
for module in {modules!r}: importlib.import_module(module)
print([m for m in {slow!r} if m in sys.modules])
"""


def test_imports_need_no_development_tools_and_nothing_slow():
    absent = ["nbdev", "execnb", "ghapi", "IPython", "ipywidgets", "jupytext", "jupyterlab", "ipykernel", "pytest",
              "hypothesis", "transformers", "tokenizers", "mlflow", "wandb", "optuna", "fastapi", "uvicorn"]
    slow = ["matplotlib", "datasets", "tiktoken", "pandas", "pyarrow"]
    modules = ["gptlearn", *(f"gptlearn.{p.stem}" for p in MODULES)]
    code = IMPORT_ALL.format(absent=absent, slow=slow, modules=modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", f"imported with the package: {done.stdout}"
    assert not done.stderr, done.stderr


LOCAL_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|var|Users|work|workspace|mnt|private|content)/\w|[A-Z]:\\\\?Users")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_saved_outputs(path):
    "No error, no warning and no path of somebody's machine; every picture is described for those who do not see it."
    for number, cell in enumerate(cells(path)):
        for output in cell.get("outputs", []):
            where = f"{path.name}, cell {number}"
            text = "".join(output.get("text", "")) + "".join(
                "".join(v) for k, v in output.get("data", {}).items() if k.startswith("text/"))
            assert output["output_type"] != "error", f"{where} ends in an error"
            assert not LOCAL_PATH.search(text), f"{where} shows a local path: {LOCAL_PATH.search(text)[0]}"
            assert str(ROOT) not in text, f"{where} shows where its author works"
            assert not (output.get("name") == "stderr" and "Warning" in text), f"{where} shows a warning"
            if any(k.startswith("image/") for k in output.get("data", {})):
                assert "#| fig-alt:" in source(cell), f"{where} draws a picture without `#| fig-alt:`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_cells_that_import_do_nothing_else(path):
    "nbdev executes such cells when it builds the site, and warns where one does more."
    for number, cell in enumerate(cells(path)):
        text = source(cell)
        if cell["cell_type"] != "code" or re.search(r"^#\| *(exports?|exporti)\b|^ *%", text, re.M): continue
        nodes = list(ast.walk(ast.parse(text)))
        if any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes):
            more = any(isinstance(n, (ast.Expr, ast.Assign)) for n in nodes)
            assert not more, f"{path.name}, cell {number}: imports and other code in one cell:\n{text}"


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_a_chapter_has_outputs_and_starts_as_all_do(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    assert sum(bool(c["outputs"]) for c in code) >= len(code) / 4, "run the notebook and keep what it shows"
    assert "google.colab" in source(code[0]), "the first cell installs the package on Colab"
    first = next(source(c) for c in cells(path) if c["cell_type"] == "markdown")
    assert re.match(r"# .+\n+> .+", first), "the first text is a title and, after `> `, one sentence"
    badge = f"https://colab.research.google.com/github/gptlearn/gptlearn/blob/main/nbs/{path.name}"
    assert any(badge in source(c) for c in cells(path)), f"no Colab badge that opens {badge}"


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_what_gives_an_exercise_away_is_folded_in_notebooks_too(path):
    "Solutions, and the right and wrong answers that a check is tested on: in JupyterLab and in Colab, which have marks of their own."
    behind = False
    for number, cell in enumerate(cells(path)):
        text = source(cell)
        behind |= cell["cell_type"] == "markdown" and bool(re.search("^## Exercises", text, re.M))
        folded = bool(cell["metadata"].get("jupyter", {}).get("source_hidden"))
        assert folded == (cell["metadata"].get("cellView") == "form"), f"cell {number} of {path.name} is folded in one place only"
        gives_away = re.search(r"^#\| *(hide\b|code-fold: true)", text, re.M) if behind else re.search(r'^#\| code-summary: "(Solution|Right|Wrong)', text, re.M)
        if cell["cell_type"] == "code" and gives_away: assert folded, f"cell {number} of {path.name} is open in JupyterLab"
    assert behind, f"{path.name} has no exercises"


def test_the_table_of_the_index_agrees_with_the_chapters():
    index = (ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8")
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        said = re.search(r"about (\d+) minutes to read, (\d+) s to run", path.read_text(encoding="utf-8"))
        row = re.search(rf"\| \[[^]]*\]\({path.name}\).*\| (\d+) \| (\d+) \|", index)
        assert row, f"the index has no row for {path.name}"
        assert row.groups() == said.groups(), f"{path.name} says {said[0]}, the index {' and '.join(row.groups())}"
