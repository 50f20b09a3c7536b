"""Fifty steps on one process, on two with DDP and on two with FSDP end with the same weights; a checkpoint of two ranks goes on
on one and on four."""
import os
import shutil
import subprocess
import sys

import pytest

from gptlearn.trainer import find_checkpoint

if os.name == "nt": pytest.skip("gloo and torchrun of POSIX", allow_module_level=True)

# In float64, so that a mistake cannot pass for rounding. Each rank begins with other weights, which must not matter.
PROGRAM = r"""
import os, sys
import torch
from gptlearn.bpe import ByteTokenizer
from gptlearn.data import Prepared, load_corpus, prepare
from gptlearn.distributed import DDP, FSDP
from gptlearn.model import GPT, GPTConfig
from gptlearn.trainer import *

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
kind, run, what = sys.argv[1:]
if kind == "data": prepare(load_corpus("tales", n_docs=60, n_val=10), ByteTokenizer(), progress=False); sys.exit()
data = Prepared.load(next(os.scandir("data/processed")).path)
strategy = dict(one=Strategy, ddp=DDP, fsdp=FSDP)[kind]()
callbacks = [Samples(), Metrics(), Checkpoint()]
if what == "resume": trainer = resume(run, callbacks, strategy)
else:
    torch.manual_seed(1 + strategy.rank)
    model = GPT(GPTConfig(257, 24, 2, 3, d_model=18, position="rope", norm="rmsnorm"))     # 9 rows a rank, or 5, 5, 5, 3
    cfg = TrainConfig(steps=50, batch_size=4, grad_accum=2, grad_clip=0.5, eval_every=25, eval_tokens=300,
                      final_eval_tokens=400, sample_tokens=8, optimizer=what)
    trainer = Trainer(model, data, cfg, run, callbacks, strategy)
trainer.fit()
"""


def start(folder, ranks, *args):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    done = subprocess.run([sys.executable, *launch, "program.py", *args], cwd=folder, capture_output=True, text=True,
                          env=dict(os.environ, OMP_NUM_THREADS="1"), timeout=1800)
    assert done.returncode == 0, done.stderr


def apart(a, b, part):
    assert set(a) == set(b)
    return max((a[name] - b[name]).abs().max().item() for name in a if name.startswith(part))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "program.py").write_text(PROGRAM)
    start(folder, 0, "data", "-", "-")
    return folder


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_fifty_steps_three_ways(folder, optimizer):
    ends = {}
    for kind, ranks in (("one", 0), ("ddp", 2), ("fsdp", 2)):
        start(folder, ranks, kind, f"runs/{optimizer}/{kind}", optimizer)
        ends[kind] = find_checkpoint(folder / "runs" / optimizer / kind)[0]
    for kind in ("ddp", "fsdp"):
        for part in ("model.", "optimizer."): assert apart(ends["one"], ends[kind], part) < 1e-10
    begin = find_checkpoint(folder / "runs" / optimizer / "one", 25)[0]
    assert apart(begin, ends["one"], "model.") > 1e-3                        # something was learned


@pytest.mark.parametrize("kind, ranks", [("one", 0), ("fsdp", 4), ("ddp", 4)])
def test_a_checkpoint_of_two_ranks_on_one_and_four(folder, kind, ranks):
    source = folder / "runs" / "muon" / "fsdp"
    if not source.exists(): test_fifty_steps_three_ways(folder, "muon")
    run = folder / "runs" / f"{kind}{ranks}"
    shutil.copytree(source, run)
    shutil.rmtree(run / "checkpoints" / "step_00000050")
    start(folder, ranks, kind, f"runs/{run.name}", "resume")
    one, other = find_checkpoint(folder / "runs" / "muon" / "one")[0], find_checkpoint(run)[0]
    for part in ("model.", "optimizer."): assert apart(one, other, part) < 1e-10
    pieces = len([*(run / "checkpoints" / "step_00000050").rglob("shard*.safetensors")])
    assert pieces == (4 if kind == "fsdp" else 0)
