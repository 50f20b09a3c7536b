"""What a reader installs: an sdist and a wheel that work in an empty folder, without the development tools."""
import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, cwd, **env):
    done = subprocess.run([str(c) for c in command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Clone → sdist → wheel, so that the sdist is proved complete too; built in a copy, the checkout stays as it is."
    tmp = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".*", "_*cs", "_proc", "runs", "data", "build", "dist", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, tmp / "source", ignore=ignored)
    sdist = run(sys.executable, "-c", "from setuptools.build_meta import build_sdist; print(build_sdist('..'))", cwd=tmp / "source")
    sdist = tmp / sdist.strip().splitlines()[-1]
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp, sdist, cwd=tmp)
    return next(tmp.glob("*.whl"))


@pytest.fixture(scope="module")
def venv(wheel, tmp_path_factory):
    "A new environment with the wheel; it borrows the dependencies from this one instead of installing them again."
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    site = next(folder.glob("lib/python*/site-packages"))
    # A .pth line adds a folder, but not what that folder's own .pth files add: so not the editable checkout.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    return folder


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    expected = {f"gptlearn/{p.name}" for p in (ROOT / "gptlearn").iterdir() if p.suffix in (".py", ".mplstyle")}
    expected |= {f"gptlearn/configs/{p.name}" for p in (ROOT / "gptlearn" / "configs").glob("*.yaml")}
    expected |= {f"gptlearn/static/{p.name}" for p in (ROOT / "gptlearn" / "static").iterdir()}
    expected |= {f"gptlearn/{p.parent.name}/{p.name}" for folder in ("measured", "sweeps") for p in (ROOT / "gptlearn" / folder).iterdir()}
    assert {"gptlearn/configs/demo.yaml", "gptlearn/static/index.html"} <= expected  # the demo and the server read them
    assert names == expected


def test_the_package_page(wheel):
    "What the page shows is README.md; nothing on it leads into a checkout that its reader does not have."
    archive = zipfile.ZipFile(wheel)
    metadata = email.message_from_bytes(archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))))
    text = metadata.get_payload(decode=True).decode("utf-8")
    assert metadata["Description-Content-Type"] == "text/markdown" and text.startswith("# gptlearn")
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    pictures = [link for link in found if link.endswith((".svg", ".png"))]
    assert pictures and len(found) > 25
    for link in found: assert re.match(r"https?://|#", link), f"{link} leads nowhere from the package page"
    for link in pictures:  # GitHub hands out a raw SVG as text; the site hands it out as a picture
        name = link.removeprefix("https://gptlearn.github.io/gptlearn/")
        assert name != link and (ROOT / "nbs" / name).exists(), link


def test_imports_from_an_empty_folder(venv, tmp_path):
    code = "import gptlearn; print(gptlearn.__file__, gptlearn.__version__)"
    file, version = run(venv / "bin" / "python", "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(venv)
    assert f"version = {version}\n" in (ROOT / "settings.ini").read_text()
    style = "import matplotlib; matplotlib.use('agg'); import matplotlib.pyplot as p; p.style.use('gptlearn.course')"
    run(venv / "bin" / "python", "-c", style, cwd=tmp_path)


HEAVY = ["matplotlib", "datasets", "tiktoken", "pandas", "pyarrow", "transformers", "tokenizers", "mlflow", "wandb", "optuna", "fastapi", "uvicorn", "IPython",
         "nbdev", "sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.checkpoint", "torch.distributed.fsdp"]
BRINGS = {"serve": {"fastapi", "uvicorn"}}  # the command line imports this module where it serves, and nobody else does
ONE_BY_ONE = """
import importlib, json, sys, torch
before, new = set(sys.modules), {{}}
for module in {modules!r}:
    importlib.import_module("gptlearn." + module)
    new[module], before = sorted(set({heavy!r}) & (set(sys.modules) - before)), set(sys.modules)
print(json.dumps(new))
"""


def test_what_a_module_imports_comes_with_torch_or_is_small():
    "An import of the package takes little longer than torch's own: what is slow to import is imported where it is used."
    modules = re.findall(r"^ *- (?:href: )?\w+?_(\w+)\.ipynb$", (ROOT / "nbs" / "sidebar.yml").read_text(encoding="utf-8"), re.M)
    modules = [m for m in modules if (ROOT / "gptlearn" / f"{m}.py").exists()]  # in reading order, so each answers for itself
    assert len(modules) == len(list((ROOT / "gptlearn").glob("[a-z]*.py")))
    new = json.loads(run(sys.executable, "-c", ONE_BY_ONE.format(modules=modules, heavy=HEAVY), cwd=ROOT))
    for module, found in new.items(): assert set(found) <= BRINGS.get(module, set()), f"gptlearn.{module} imports {found}"


def test_the_command_line(venv, tmp_path):
    if not (ROOT / "nbs" / "19_cli.ipynb").exists(): pytest.skip("nbs/19_cli.ipynb is not written yet")
    text = run(venv / "bin" / "gptlearn", "--help", cwd=tmp_path)
    for command in ("demo", "train", "generate", "evaluate"): assert command in text
    assert "shakespeare-char" in run(venv / "bin" / "gptlearn", "configs", cwd=tmp_path)
    assert not list(tmp_path.iterdir()), "--help left files behind"
