"""Training is killed at any instant, in the midst of a checkpoint too, and resumed: the same weights, bit for bit."""
import json
import os
import random
import subprocess
import sys

import pytest

if os.name == "nt": pytest.skip("fork and signals of POSIX", allow_module_level=True)

# One process imports everything, and forks a child for each attempt. A child is killed by the kernel after some processor time
# (that of the watch would depend on what else the machine does), or by itself, before it runs a certain line of those that write
# a checkpoint, or in the middle of a file.
TEMPLATE = r"""
import json, os, random, resource, signal, sys, warnings
import torch
from gptlearn import trainer as module
from gptlearn.bpe import ByteTokenizer
from gptlearn.data import load_corpus, prepare
from gptlearn.model import GPT, GPTConfig
from gptlearn.trainer import *

torch.set_num_threads(1)
data = prepare(load_corpus("tales", n_docs=40, n_val=10), ByteTokenizer(), progress=False)
shape = dict(vocab_size=data.tokenizer.vocab_size, context_length=32, n_layer=2, n_head=2, d_model=16, dropout=0.2)
cfg = TrainConfig(steps=24, batch_size=2, grad_accum=2, lr=0.01, eval_every=5, eval_tokens=200, final_eval_tokens=400,
                  log_every=3, checkpoint_every=2, sample_tokens=4, early_stopping=9)
WRITING = {"save_checkpoint", "_write_checkpoint", "_save_tensors", "_remove", "save", "before_fit"}

def callbacks(): return [Samples(), Metrics(), Memorising(), Checkpoint()]

def train(run):
    warnings.simplefilter("ignore")
    if os.path.exists(f"{run}/config.yaml"): trainer = resume(run, callbacks())
    else:
        torch.manual_seed(1)
        trainer = Trainer(GPT(GPTConfig(**shape)), data, cfg, run, callbacks())
    trainer.fit()

def die(): os.kill(os.getpid(), signal.SIGKILL)

def die_at(count):  # before the count-th line of what writes checkpoints
    def line(frame, event, arg):
        nonlocal count
        count -= event == "line"
        if count < 0: die()
        return line
    sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename == module.__file__
                 and frame.f_code.co_name in WRITING else None)

def die_in_file(count):  # when half of the count-th file is written
    real = module.save_file
    def half(tensors, path):
        nonlocal count
        real(tensors, path)
        count -= 1
        if count < 0: os.truncate(path, os.path.getsize(path) // 2); die()
    module.save_file = half

def attempt(run, how, value):
    child = os.fork()
    if child: return child
    if how == "time": signal.setitimer(signal.ITIMER_PROF, value)   # nobody handles SIGPROF: it ends the process on the spot
    try:
        random.seed(); torch.seed()                    # nothing may depend on what a new process draws
        sys.stdout = sys.stderr = open(os.devnull, "w")
        if how == "line": die_at(value)
        if how == "file": die_in_file(value)
        train(run)
        os._exit(0)
    except BaseException as error:
        with open(f"{run}.error", "w") as f: f.write(f"{type(error).__name__}: {error}")
        os._exit(1)

def finish(run, plan, seconds):
    "Attempts until one ends by itself; returns how often it was killed."
    killed = 0
    for how, value in [*plan, ("never", 0)]:
        status = os.waitpid(attempt(run, how, max(.01, value * seconds) if how == "time" else value), 0)[1]
        if os.WIFSIGNALED(status): killed += 1
        elif os.WEXITSTATUS(status): return -1
        else: break
    return killed

assert finish("runs/alone", [], 0) == 0
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds = used.ru_utime + used.ru_stime
drivers = {}
for i, plan in enumerate(json.loads(sys.argv[1])):
    if len(drivers) == 3: drivers.pop(os.wait()[0])    # three at a time
    driver = os.fork()
    if not driver:
        with open(f"killed{i}", "w") as f: f.write(str(finish(f"runs/{i}", plan, seconds)))
        os._exit(0)
    drivers[driver] = i
while drivers: drivers.pop(os.wait()[0])
"""


def plans():
    "For each of 20 runs when its attempts are killed: after shares of a run's time, at lines, in files."
    rng = random.Random(0)
    timed = [[("time", rng.uniform(.02, .6)), *(("time", rng.uniform(.02, .35)) for _ in range(2))] for _ in range(8)]
    lines = [[("line", rng.randrange(600)) for _ in range(3)] for _ in range(8)]
    files = [[("file", rng.randrange(12)), ("file", rng.randrange(6))] for _ in range(4)]
    return timed + lines + files


def lines(run):
    read = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in read]


def test_twenty_runs_killed_and_resumed(tmp_path):
    env = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-c", TEMPLATE, json.dumps(plans())], cwd=tmp_path, env=env,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone, killed = tmp_path / "runs" / "alone", []
    for i in range(20):
        run = tmp_path / "runs" / str(i)
        errors = [f.read_text() for f in [run.with_name(f"{i}.error")] if f.exists()]
        killed.append(int((tmp_path / f"killed{i}").read_text()))
        assert not errors, f"run {i} was not resumed: {errors[0]}"
        last = "checkpoints/step_00000024"
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (run / last / file).read_bytes() == (alone / last / file).read_bytes(), f"run {i}: another {file}"
        states = [json.loads((folder / last / "state.json").read_text()) for folder in (run, alone)]
        for state in states:
            for key in ("seconds", "recent", "sha256"): del state[key]  # time, and what hashes it
        assert states[0] == states[1]
        assert lines(run) == lines(alone) and (run / "samples.txt").read_text() == (alone / "samples.txt").read_text()
        hidden = [path.name for path in run.rglob(".*")]
        assert not hidden, f"run {i} left {hidden} behind"
    print("killed", killed)
    assert all(killed) and sum(killed) >= 40, f"kills: {killed}; the test killed too little in the midst of work"
