"""What can be held against docker/ without Docker: its steps are run by hand, its commands are parsed, its health check asks.

No image is built here. `hadolint docker/Dockerfile` and `docker compose -f docker/compose.yaml config` say more where they are installed.
"""
import fnmatch
import http.server
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from browser import free_port

ROOT = Path(__file__).parents[1]


def instructions():
    "The Dockerfile as (stage, word, rest); continued lines joined, comments gone."
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    found, stage = [], -1
    for line in re.sub(r"\\\n", "\0", text).splitlines():
        if not line.strip(): continue
        word, rest = line.split(None, 1)
        stage += word == "FROM"
        found.append((stage, word, rest.replace("\0", "\\\n")))
    return found


STEPS = instructions()
def every(word, stage=None): return [rest for at, found, rest in STEPS if found == word and stage in (None, at)]
def shell(run): return re.sub(r"--mount=\S+\s*(\\\n)?", "", run)


def goes(name):
    "Does .dockerignore let this file through? Of its rules the last that fits decides."
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    starts, kept = ["/".join(name.split("/")[:n]) for n in range(1, name.count("/") + 2)], True  # a folder takes along what is in it
    for rule in rules:
        pattern = rule.removeprefix("!")
        def fits(start): return fnmatch.fnmatch(start.split("/")[-1], pattern[3:]) if pattern.startswith("**/") else fnmatch.fnmatch(start, pattern)
        if any(map(fits, starts)): kept = rule.startswith("!")
    return kept


def context():
    "The files that the builder gets."
    tops = [p for p in ROOT.iterdir() if p.name not in (".git", ".venv", "_docs", "_proc")]
    files = (p for top in tops for p in ([top] if top.is_file() else top.rglob("*")) if p.is_file())
    return [p for p in files if goes(p.relative_to(ROOT).as_posix())]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    "/source as the first stage finds it: what the context has and COPY names."
    folder, files = tmp_path_factory.mktemp("source"), context()
    for line in every("COPY"):
        *names, to = line.split()
        for name in names:
            found = [p for p in files if (ROOT / name) in (p, *p.parents)]
            assert found, f"COPY {name}: .dockerignore lets nothing of it through"
            for path in found:
                target = folder / to / (path.relative_to(ROOT / name) if path != ROOT / name else path.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    return folder


def test_the_builder_gets_what_is_copied_and_nothing_else():
    names = {p.relative_to(ROOT).as_posix() for p in context()}
    copied = {name for line in every("COPY") for name in line.split()[:-1]}
    assert {n.split("/")[0] for n in names} == copied
    left = ".git/config", ".venv/bin/python", "data/raw/my.txt", "runs/demo/config.yaml", "gptlearn/__pycache__/cli.cpython-312.pyc", "docker/.env"
    assert not any(map(goes, left)) and goes("gptlearn/static/index.html")


def test_the_wheel_of_the_first_stage_is_whole(source, tmp_path):
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, source],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    wanted = [p for p in (ROOT / "gptlearn").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {p.relative_to(ROOT).as_posix() for p in wanted} <= names


def run_step(step, folder, **env):
    "A RUN step by the shell of the image, sh, with our own folder in place of /out."
    return subprocess.run(["sh", "-ec", shell(step).replace("/out", str(folder / "out"))], cwd=folder, env={**os.environ, **env}, capture_output=True, text=True)


@pytest.fixture
def tools(tmp_path):
    "Programs that only note how they were called, for the PATH."
    (tmp_path / "bin").mkdir(), (tmp_path / "out").mkdir()
    for name in ("pip", "useradd", "chown", "mkdir"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho "{name} $@" >> {tmp_path}/called\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    return dict(PATH=f"{tmp_path}/bin:{os.environ['PATH']}")


def test_the_first_stage_lists_what_the_server_needs(source, tools, tmp_path):
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    (step,) = every("RUN", 0)
    done = run_step(step, tmp_path, **tools)
    assert done.returncode == 0, done.stderr
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    wanted = f"{settings['DEFAULT']['requirements']} {settings['DEFAULT']['serve_requirements']}".split()
    assert (tmp_path / "out" / "requirements.txt").read_text().split() == wanted and "--no-deps" in (tmp_path / "called").read_text()
    assert (tmp_path / "out" / "constraints.txt").read_bytes() == (ROOT / "constraints.txt").read_bytes()


@pytest.mark.parametrize("variant", ["cpu", "cuda", "tpu"])
def test_the_variant_decides_where_torch_comes_from(tools, tmp_path, variant):
    import torch
    assert "VARIANT=cpu" in every("ARG")
    done = run_step(every("RUN", 1)[0], tmp_path, VARIANT=variant, **tools)
    if variant == "tpu":
        assert done.returncode == 1 and "neither cpu nor cuda" in done.stderr and not (tmp_path / "called").exists()
        return
    called = (tmp_path / "called").read_text()
    assert ("https://download.pytorch.org/whl/cpu" in called) == (variant == "cpu") and called.rstrip().endswith("constraints.txt torch")
    ours = "cuda" if torch.version.cuda else "cpu"  # the step looks whether the torch that came is the one that was asked for
    assert (done.returncode == 0) == (variant == ours), done.stderr


def test_every_step_is_a_sentence_of_the_shell_and_keeps_no_cache():
    for step in every("RUN"):
        done = subprocess.run(["sh", "-n", "-c", shell(step)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert all("--no-cache-dir" in step for step in every("RUN", 0)) and any("PIP_NO_CACHE_DIR=1" in line for line in every("ENV", 1))
    assert not any(re.search(r"--from=build(?!,source=/out,)", rest) for _, word, rest in STEPS if word in ("RUN", "COPY")), "only the wheel goes on"


def test_nobody_is_root():
    (user,) = every("USER", 1)
    words = [word for stage, word, _ in STEPS if stage == 1]
    assert user.isdigit() and user != "0" and "RUN" not in words[words.index("USER"):]
    added = next(step for step in every("RUN", 1) if "useradd" in step)
    assert f"--uid {user} " in added
    (work,), (volume,) = every("WORKDIR", 1), every("VOLUME", 1)
    assert volume in added and volume.startswith(work + "/")


@pytest.mark.parametrize("status", [200, 503, None])
def test_the_health_check_asks_the_server_itself(status):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self): self.send_response(status if self.path == "/healthz" else 404), self.end_headers()
        def log_message(self, *_): pass
    port = free_port()
    command = json.loads(every("HEALTHCHECK", 1)[0].split("CMD", 1)[1])
    assert "8000" in command[-1] and every("EXPOSE", 1) == ["8000"]
    if status:
        server = http.server.HTTPServer(("127.0.0.1", port), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = dict(http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")  # as many companies set it: not for this
    done = subprocess.run([sys.executable, *command[1:-1], command[-1].replace("8000", str(port))], env={**os.environ, **proxy}, capture_output=True)
    if status: server.shutdown(), server.server_close()
    assert (done.returncode == 0) == (status == 200)


def compose(**variables):
    text = (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], text))


def test_the_commands_are_those_of_gptlearn():
    from gptlearn.cli import commands, parse
    (entry,), (command,) = map(json.loads, every("ENTRYPOINT", 1)), map(json.loads, every("CMD", 1))
    assert entry == ["gptlearn"]
    if "serve" not in commands: pytest.skip("chapter 18 is not written yet")
    services = compose()["services"]
    for words in (command, *(service["command"] for service in services.values())):
        options = parse(words)
        assert options.serve.host == "0.0.0.0" and options.serve.port == 8000 and options.serve.run == "runs/demo"
    assert parse(["demo"]).command == "demo"


def test_compose_serves_this_machine_only_from_a_volume():
    found = compose(RUNS="/home/me/runs", RUN="tales", PORT="9000")
    usual, (work,), (volume,) = compose(), every("WORKDIR", 1), every("VOLUME", 1)
    for service in usual["services"].values():
        assert service["ports"] == ["127.0.0.1:8000:8000"] and f"runs:{volume}" in service["volumes"]
        assert {v.split(":")[0] for v in service["volumes"]} == set(usual["volumes"])
        assert all(v.split(":")[1].startswith(work + "/") for v in service["volumes"])
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).samefile(ROOT / "docker" / "Dockerfile")
        assert f"{every('RUN', 1)[-1].split('--create-home ')[1].split()[0]}:uid={every('USER', 1)[0]}" in service["tmpfs"][1]
    assert found["services"]["serve"]["volumes"][0] == f"/home/me/runs:{volume}" and "runs/tales" in found["services"]["serve"]["command"]
    assert found["services"]["serve"]["ports"] == ["127.0.0.1:9000:8000"]
    assert compose(GPTLEARN_API_KEY="k")["services"]["serve"]["environment"]["GPTLEARN_API_KEY"] == "k"


def test_compose_waits_for_what_is_being_written():
    pytest.importorskip("fastapi")
    serve = pytest.importorskip("gptlearn.serve")
    longest = inspect.signature(serve.create_app).parameters["timeout"].default
    assert float(compose()["services"]["serve"]["stop_grace_period"].rstrip("s")) > longest


def test_the_card_is_asked_for_where_torch_can_use_it():
    cpu, cuda = compose()["services"].values()
    assert cpu["build"]["args"] == {"VARIANT": "cpu"} and "deploy" not in cpu and "profiles" not in cpu
    assert cuda["build"]["args"] == {"VARIANT": "cuda"} and cuda["profiles"] == ["cuda"] and cuda["image"] != cpu["image"]
    assert cuda["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
