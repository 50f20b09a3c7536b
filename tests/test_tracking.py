"""Trackers where a notebook cannot go: a killed process, servers that refuse or hang, packages that are missing, the network."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

MISSING = [name for name in ("mlflow", "wandb") if find_spec(name) is None]
needs_both = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install 'gptlearn[track]'")

RUN = """
import os, signal, sys, time, warnings
import torch
from gptlearn.bpe import BPE
from gptlearn.data import load_corpus, prepare
from gptlearn.model import GPT, GPTConfig
from gptlearn.tracking import MLflowTracker, WandbTracker, trackers
from gptlearn.trainer import Callback, TrainConfig, Trainer, default_callbacks, resume
torch.set_num_threads(1)

class Killed(Callback):
    def after_step(self, trainer):
        if trainer.step != 33: return
        for tracker in trainer.callbacks:             # have their say about step 32, which is after the last checkpoint
            while hasattr(tracker, "mail") and not tracker.mail.empty(): time.sleep(0.1)
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)

def start(name, *more):
    corpus = load_corpus("tales", n_docs=200, n_val=30)
    data = prepare(corpus, BPE.train(corpus.train, 300))
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=data.tokenizer.vocab_size, context_length=32, n_layer=1, n_head=2, d_model=16, dropout=0.1))
    cfg = TrainConfig(steps=60, batch_size=4, log_every=4, eval_every=10, checkpoint_every=20, eval_tokens=300, final_eval_tokens=300,
                      sample_tokens=10)
    return Trainer(model, data, cfg, f"runs/{name}", [*default_callbacks(), *more])

def fit(trainer):
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RuntimeWarning)
        trainer.fit()
    print("SECONDS", time.perf_counter() - began)
    for w in said: print("SAID", w.message)
"""


def python(code, folder, timeout=240, **env):
    "Runs code in a process of its own, in `folder`; returns the exit status and what was printed."
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "WANDB_"))}
    clean |= dict(WANDB_DATA_DIR=str(folder / "wandb-data"), WANDB_CACHE_DIR=str(folder / "wandb-cache"), WANDB_CONFIG_DIR=str(folder / "wandb-config"),
                  NETRC=str(folder / "netrc"), OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-c", RUN + code], cwd=folder, env=clean | env, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def same_weights(folder, a, b):
    files = [folder / "runs" / name / "checkpoints" / "step_00000060" / "model.safetensors" for name in (a, b)]
    return files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "A folder with a run that nobody watched."
    folder = tmp_path_factory.mktemp("tracking")
    code, out, err = python("fit(start('alone'))", folder)
    assert code == 0, err
    return folder


def lines(folder, run, key):
    return [(line["step"], line[key]) for line in map(json.loads, open(folder / "runs" / run / "metrics.jsonl")) if key in line]


def in_mlflow(folder, tag):
    "Status and points of the one run that has this id."
    code, out, err = python(f"""
from mlflow import MlflowClient
import json
client = MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("gptlearn").experiment_id])
print(json.dumps([[r.info.status, {{k: [(m.step, m.value) for m in client.get_metric_history(r.info.run_id, k)] for k in ("loss", "val_loss")}}]
                  for r in runs if r.data.tags["gptlearn.id"] == "{tag}"]))
""", folder)
    (status, points), = json.loads(out.splitlines()[-1])
    return status, {key: [tuple(point) for point in of] for key, of in points.items()}


@needs_both
def test_a_killed_run_goes_on_in_the_same_places(alone):
    code, out, err = python("ts = trackers('mlflow,wandb'); print('IDS', *[t.id for t in ts], flush=True); fit(start('killed', *ts, Killed()))", alone)
    assert code == -signal.SIGKILL, err
    ids = re.search(r"IDS (\w+) (\w+)", out).groups()
    status, points = in_mlflow(alone, ids[0])
    assert status == "RUNNING" and points["loss"] == [p for p in lines(alone, "alone", "loss") if p[0] <= 33]
    code, out, err = python("ts = trackers('mlflow,wandb'); fit(t := resume('runs/killed', [*default_callbacks(), *ts])); "
                            "print('IDS', *[t.id for t in ts])", alone)
    assert code == 0, err
    assert "SAID" not in out and re.search(r"IDS (\w+) (\w+)", out).groups() == ids
    assert same_weights(alone, "alone", "killed")
    status, points = in_mlflow(alone, ids[0])
    assert status == "FINISHED"
    for key in ("loss", "val_loss"): assert points[key] == lines(alone, "alone", key)
    reader = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json"]
    files = sorted((alone / "wandb").glob(f"offline-run-*-{ids[1]}/*.wandb"))
    assert len(files) == 2
    records = [json.loads(line) for line in subprocess.run([*reader, files[1]], capture_output=True, text=True, check=True).stdout.splitlines()]
    rows = [r["history"]["item"] for r in records if r["type"] == "history"]
    for key in ("loss", "val_loss"): assert [(row["_step"], row[key]) for row in rows if key in row] == lines(alone, "alone", key)
    assert records[-1]["type"] == "exit" and records[-1]["exit"].get("exit_code", 0) == 0


@pytest.fixture
def silent_server():
    "Accepts every connection and never answers."
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        held = []
        def accept():
            try:
                while True: held.append(server.accept()[0])
            except OSError: pass
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@needs_both
@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
@pytest.mark.parametrize("server", ["refuses", "hangs"])
def test_a_server_that_is_not_there(kind, server, alone, silent_server):
    "With the real clients: one sentence, the same weights, and the process ends."
    address, name = silent_server if server == "hangs" else "http://127.0.0.1:9", f"{kind}-{server}"
    make = f"MLflowTracker(tracking_uri={address!r}, timeout=5)" if kind == "mlflow" else "WandbTracker(mode='online', timeout=5)"
    began = time.monotonic()
    code, out, err = python(f"fit(start({name!r}, t := {make})); print('FAILED', t.failure)", alone,
                            WANDB_API_KEY="0" * 40, WANDB_BASE_URL=address)
    assert code == 0, err
    assert out.count("SAID") == 1 and "Tracker failed (start" in out and "FAILED None" not in out
    assert same_weights(alone, "alone", name)
    # the run waits 5 s at most for each of two attempts; beside it: start, imports, a busy machine, and W&B's own last word
    assert float(re.search(r"SECONDS (\S+)", out)[1]) < 60 and time.monotonic() - began < 180


LISTEN = """
import socket
asked, connect, getaddrinfo = [], socket.socket.connect, socket.getaddrinfo
def noted(sock, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"): asked.append(address)
    return connect(sock, address)
def looked_up(host, *args, **kw):
    if host not in (None, "127.0.0.1", "localhost", "::1", socket.gethostname()): asked.append(host)
    return getaddrinfo(host, *args, **kw)
socket.socket.connect, socket.getaddrinfo = noted, looked_up
"""


@needs_both
def test_nothing_is_sent_anywhere(alone):
    code, out, err = python(LISTEN + "fit(start('quiet', *trackers('mlflow,wandb'))); time.sleep(2); print('ASKED', asked)", alone)
    assert code == 0, err
    assert "ASKED []" in out and "SAID" not in out
    assert not err.strip(), f"trackers are quiet, and this was said: {err}"
    assert same_weights(alone, "alone", "quiet")


def test_without_the_packages(tmp_path):
    code, out, err = python("""
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mlflow", "wandb", "optuna"): raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
for name in ("mlflow", "wandb"):
    try: trackers(name)
    except ModuleNotFoundError as e: print("SAID", e)
print("LOADED", [m for m in ("mlflow", "wandb", "optuna", "pandas", "matplotlib") if m in sys.modules])
""", tmp_path)
    assert code == 0, err
    for package in ("mlflow", "wandb"): assert f'needs {package}, which is not installed: pip install "gptlearn[track]"' in out
    assert "LOADED []" in out
