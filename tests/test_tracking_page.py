"""MLflow's own page, in a browser: the run, its settings, its curves and its files are there to be seen.

The picture in chapter 15 was made by this test:  GPTLEARN_SCREENSHOT=nbs/images/15_mlflow.png pytest tests/test_tracking_page.py
"""
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, free_port, started, stop

MISSING = [name for name in ("mlflow", "websocket") if importlib.util.find_spec(name) is None] + ([] if CHROMIUM else ["chromium"])
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

TRAIN = """
import torch
from gptlearn.bpe import BPE
from gptlearn.data import load_corpus, prepare
from gptlearn.model import GPT, GPTConfig
from gptlearn.tracking import MLflowTracker
from gptlearn.trainer import TrainConfig, Trainer, default_callbacks
torch.set_num_threads(1); torch.manual_seed(0)
corpus = load_corpus("tales", n_docs=300, n_val=30)
data = prepare(corpus, BPE.train(corpus.train, 320))
model = GPT(GPTConfig(vocab_size=data.tokenizer.vocab_size, context_length=64, n_layer=1, n_head=2, d_model=32))
cfg = TrainConfig(steps=120, batch_size=8, eval_every=20, log_every=4, eval_tokens=1500, final_eval_tokens=1500, sample_tokens=60)
for name, lr in (("tales", 0.003), ("tales-2", 0.01)):
    cfg.lr = lr
    tracker = MLflowTracker("tales")
    Trainer(model, data, cfg, f"runs/{name}", [*default_callbacks(), tracker]).fit()
    assert tracker.failure is None, tracker.failure
print(tracker.run_id)
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "A run in MLflow, its server, and a browser: (browser, address of the run's page, the run's folder)."
    folder = tmp_path_factory.mktemp("mlflow")
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | dict(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    done = subprocess.run([sys.executable, "-c", TRAIN], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run_id, port = done.stdout.split()[-1], free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server, _ = started(command, f"{address}/health", cwd=folder, env=env)
    browser = None
    try:
        browser = Browser(tmp_path_factory.mktemp("chromium"))
        yield browser, f"{address}/#/experiments/1/runs/{run_id}", folder / "runs" / "tales-2"
    finally:
        if browser: stop(browser.process)
        stop(server)


def test_the_page_names_the_run_with_its_settings_and_figures(page):
    browser, run, _ = page
    text = browser.open(run, "tales-2", "train.lr", "0.01", "val_loss", "gptlearn.version", "Finished")
    assert "model.d_model" in text and "val_bits_per_byte" in text


CURVES = """JSON.stringify([...document.querySelectorAll('.js-plotly-plot')].filter(p => p.data && p.data.length)
    .map(p => [[...p.data[0].x], [...p.data[0].y]]))"""  # what the page's plotting library was given


def test_the_page_draws_the_curves(page):
    browser, run, folder = page
    browser.open(f"{run}/model-metrics", "grad_norm", "loss", "lr")
    lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    expected = {key: [[line["step"] for line in lines if key in line], [line[key] for line in lines if key in line]]
                for key in ("loss", "lr", "grad_norm")}  # the first row of the page; those below are drawn when they are scrolled to
    end = time.monotonic() + 60
    while True:
        drawn = json.loads(browser.value(CURVES) or "[]")
        if all(curve in drawn for curve in expected.values()): break
        assert time.monotonic() < end, f"the page draws {drawn}"
        time.sleep(0.5)
    if shot := os.environ.get("GPTLEARN_SCREENSHOT"):
        browser.value("document.querySelector('[data-component-id=\"mlflow.assistant.chat_panel.close\"]')?.click()")
        browser.value("document.head.insertAdjacentHTML('beforeend', '<style>.modebar {display: none !important}</style>')")
        time.sleep(3)
        browser.screenshot(Path(__file__).parents[1] / shot)


def test_the_page_shows_the_files(page):
    browser, run, folder = page
    browser.open(f"{run}/artifacts", "config.yaml", "loss_curve.png", "samples.txt", "tokenizer.json", "checkpoints")
    browser.value("[...document.querySelectorAll('*')].filter(e => e.innerText && e.innerText.trim() == 'samples.txt').pop().click()")
    browser.wait("--- step 0", "--- step 120")
