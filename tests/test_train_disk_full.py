"""A disk that fills up while a run is saved: one sentence, nothing half-written, and the last good checkpoint loads."""
import os
import subprocess
import sys

import pytest

if os.name == "nt": pytest.skip("limits of POSIX", allow_module_level=True)

TRAIN = r"""
import json, os, resource
from pathlib import Path
import torch
from gptlearn.bpe import ByteTokenizer
from gptlearn.data import load_corpus, prepare
from gptlearn.model import GPT, GPTConfig
from gptlearn.trainer import *

data = prepare(load_corpus("tales", n_docs=40, n_val=10), ByteTokenizer(), progress=False)
cfg = TrainConfig(steps=30, batch_size=2, eval_every=15, eval_tokens=200, final_eval_tokens=200, log_every=1, sample_tokens=30)
def model():
    torch.manual_seed(1)
    return GPT(GPTConfig(data.tokenizer.vocab_size, 32, n_layer=2, n_head=2, d_model=16, dropout=0.1))

def usual(): return [c for c in default_callbacks() if not isinstance(c, Progress)]

Trainer(model(), data, cfg, "runs/whole", usual()).fit()
whole = {p.name: p.stat().st_size for p in Path("runs/whole").rglob("*") if p.is_file()}
ten_lines = sum(map(len, Path("runs/whole/metrics.jsonl").read_bytes().splitlines(True)[:10]))
first_sample = Path("runs/whole/samples.txt").read_bytes().index(b"--- step 15")

def limit(size):  # no file may grow beyond that
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

class Stop(Callback):
    def after_step(self, trainer): trainer.stopping = trainer.step == 9

class Fills(Callback):
    def __init__(self, late, size): self.late, self.size = late, size
    def after_step(self, trainer):
        if trainer.step == 10 and not self.late: limit(self.size)
    def state_dict(self):  # asked for when the tensors of a checkpoint are written, and its state is not
        if self.late: limit(self.size)
        return {}

kinds = {"model.safetensors": whole["model.safetensors"] // 2, "optimizer.safetensors": whole["model.safetensors"] + 500,
         "state.json": whole["state.json"] // 2, "metrics.jsonl": ten_lines + 60, "samples.txt": first_sample + 5,
         "loss_curve.png": whole["loss_curve.png"] // 2}
small = {"metrics.jsonl": [Metrics], "samples.txt": [Samples], "loss_curve.png": [ProgressPlot]}
for name, size in kinds.items():
    run = Path("runs") / name
    callbacks = [kind() for kind in small.get(name, [Samples, Metrics])] + [Checkpoint()] * (name not in small)
    Trainer(model(), data, cfg, run, [*usual(), Stop()]).fit()
    again = resume(run, [Fills(name == "state.json", size), *callbacks])
    try: again.fit(); print(name, "did not fail"); continue
    except OSError as error: print(f"{name}: {error}")
    finally: limit(resource.RLIM_INFINITY)
    hidden = [p.name for p in run.rglob(".*")]
    assert not hidden, hidden
    assert (run / "loss_curve.png").read_bytes().endswith(b"IEND\xaeB`\x82"), "a torn picture"
    for line in (run / "metrics.jsonl").read_text().splitlines(): json.loads(line)
    load_run(run)                                            # the last good one
    end = resume(run, usual()).fit()                          # with room again, as if nothing had happened
    same = [(Path(folder) / "checkpoints/step_00000030/model.safetensors").read_bytes() for folder in (run, "runs/whole")]
    assert same[0] == same[1], "other weights"
"""


def test_a_full_disk(tmp_path):
    out = subprocess.run([sys.executable, "-W", "error", "-c", TRAIN], cwd=tmp_path, capture_output=True, text=True,
                         env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert out.returncode == 0, out.stderr + out.stdout
    told = [line for line in out.stdout.splitlines() if "the disk of" in line]
    assert len(told) == 6 and "did not fail" not in out.stdout, out.stdout
    for line in told: assert "is full" in line and "make room" in line
    for line in told[:3]: assert "could not be saved" in line and "last good checkpoint is runs/" in line
