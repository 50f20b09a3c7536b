"""A rank is killed, at a step or in the midst of a checkpoint; torchrun starts all ranks again, and the run ends as if nothing had
happened: the same bits. A newest checkpoint that is torn is passed over by all ranks alike."""
import json
import os
import subprocess
import sys

import pytest

from gptlearn.trainer import find_checkpoint

if os.name == "nt": pytest.skip("signals of POSIX", allow_module_level=True)

PROGRAM = r"""
import os, signal, sys
import torch
from gptlearn import distributed, trainer as module
from gptlearn.bpe import ByteTokenizer
from gptlearn.data import Prepared, load_corpus, prepare
from gptlearn.distributed import begin_or_resume, pick_strategy
from gptlearn.model import GPT, GPTConfig
from gptlearn.trainer import *

torch.set_num_threads(1)
kind, run, how = sys.argv[1:]
if kind == "data": prepare(load_corpus("tales", n_docs=60, n_val=10), ByteTokenizer(), progress=False); sys.exit()
first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
strategy = pick_strategy(kind)

def die(): os.kill(os.getpid(), signal.SIGKILL)

class Fails(Callback):
    everywhere = True
    def after_step(self, trainer):
        if first and (strategy.rank, trainer.step, how) == (1, 13, "step"): die()
        if trainer.step < 10 or not first: return
        if how == "rename" and strategy.rank == 0: module._write_checkpoint = distributed._write_checkpoint = writes_and_dies
        if how == "shards" and strategy.rank == 1: distributed._sync = lambda path: die()

def writes_and_dies(trainer, temp, **more):
    real(trainer, temp, **more)
    die()

real = module._write_checkpoint
def callbacks(): return [Samples(), Metrics(), Fails(), Checkpoint()]

def begin():
    torch.manual_seed(0)
    model = GPT(GPTConfig(257, 24, 2, 2, d_model=16, dropout=0.1))
    cfg = TrainConfig(steps=18, batch_size=4, grad_accum=2, eval_every=5, eval_tokens=200, log_every=1, sample_tokens=5)
    data = Prepared.load(next(os.scandir("data/processed")).path)
    return Trainer(model, data, cfg, run, callbacks(), strategy)

trainer = begin_or_resume(begin, run, strategy, callbacks())
with open(f"{run.replace('/', '-')}.{strategy.rank}", "a") as f: f.write(f"{trainer.step} ")
if how != "look": trainer.fit()
"""


def torchrun(folder, *args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2",
               "--monitor-interval", "0.1", "program.py", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800,
                          env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr


def lines(run):
    read = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if "second" not in k} for line in read]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("restart")
    (folder / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, "program.py", "data", "-", "-"], cwd=folder, capture_output=True, text=True,
                          env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr
    return folder


def calm(folder, kind):
    run = folder / "runs" / f"{kind}-calm"
    if not run.exists(): torchrun(folder, kind, f"runs/{run.name}", "never")
    return run


@pytest.mark.parametrize("kind, how, begins", [("ddp", "step", "0 10 "), ("fsdp", "step", "0 10 "),
                                               ("ddp", "rename", "0 5 "), ("fsdp", "shards", "0 5 ")])
def test_killed_and_started_again(folder, kind, how, begins):
    calm(folder, kind)
    run = folder / "runs" / f"{kind}-{how}"
    torchrun(folder, kind, f"runs/{run.name}", how)
    for rank in (0, 1): assert (folder / f"runs-{run.name}.{rank}").read_text() == begins     # all from the newest
    (one, state), (two, their) = find_checkpoint(run), find_checkpoint(calm(folder, kind))
    assert set(one) == set(two) and all((one[name] == two[name]).all() for name in one)
    assert state["rngs"] == their["rngs"] and state["rngs"][0] != state["rngs"][1]
    assert lines(run) == lines(calm(folder, kind))
    assert (run / "samples.txt").read_text() == (calm(folder, kind) / "samples.txt").read_text()
    assert not [*run.rglob(".*")]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_torn_checkpoint_is_passed_over_by_all(folder, kind):
    run = calm(folder, kind)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    file = sorted(newest.rglob("*.safetensors"))[-1]                         # with FSDP that of rank 1
    file.write_bytes(file.read_bytes()[:-7])
    torchrun(folder, kind, f"runs/{run.name}", "look")
    for rank in (0, 1): assert (folder / f"runs-{run.name}.{rank}").read_text() == "0 15 "
