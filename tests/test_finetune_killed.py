"""Fine-tuning is killed at any instant and resumed: all weights, adapters and preferences end as if it had run alone, bit for bit."""
import json
import os
import random
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

if os.name == "nt": pytest.skip("fork and signals of POSIX", allow_module_level=True)

# One process imports everything, and forks a child for each attempt, which dies before a certain line of those that write the run's
# folder, or after some processor time.
TEMPLATE = r"""
import json, os, random, resource, signal, sys, warnings
import torch
import gptlearn.finetune, gptlearn.trainer
from gptlearn.bpe import ByteTokenizer
from gptlearn.finetune import *
from gptlearn.model import GPT, GPTConfig
from gptlearn.trainer import *

torch.set_num_threads(1)
torch.manual_seed(1)
base = GPT(GPTConfig(vocab_size=257, context_length=48, n_layer=2, n_head=2, d_model=16, dropout=0.1))
base, tokenizer = add_special_tokens(base, ByteTokenizer())
pairs = RatedPairs([RatedPair(f"say {i % 9}", "yes " * (i % 4 + 1) + "no " * (i % 3), float(i % 5 + 1)) for i in range(60)])
cfg = TrainConfig(steps=12, batch_size=4, grad_accum=2, optimizer="adamw", lr=0.01, eval_every=4, log_every=3, checkpoint_every=2,
                  sample_tokens=4)
kinds = dict(full=lambda *a: finetune(*a, replay=["once", "upon a time"], mix=0.25), lora=lambda *a: finetune(*a, lora=2),
             dpo=lambda *a: dpo(*a, beta=0.3), dpo_lora=lambda *a: dpo(*a, lora=2))
FILES = {gptlearn.finetune.__file__, gptlearn.trainer.__file__}
WRITING = {"save_checkpoint", "_write_checkpoint", "_write_tensors", "_save_tensors", "_remove", "save", "save_lora", "before_fit", "_merge",
           "merged"}

def train(run, kind):
    warnings.simplefilter("ignore")
    callbacks = [Samples(), Metrics(), Checkpoint()]
    if os.path.exists(f"{run}/config.yaml"): resume_finetune(run, callbacks)
    else: kinds[kind](base, tokenizer, pairs, cfg, run, None, "data", callbacks)

def die_at(count):
    def line(frame, event, arg):
        nonlocal count
        count -= event == "line"
        if count < 0: os.kill(os.getpid(), signal.SIGKILL)
        return line
    sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename in FILES and frame.f_code.co_name in WRITING else None)

def attempt(run, kind, how, value):
    child = os.fork()
    if child: return child
    if how == "time": signal.setitimer(signal.ITIMER_PROF, value)
    try:
        random.seed(); torch.seed()                    # nothing may depend on what a new process draws
        sys.stdout = sys.stderr = open(os.devnull, "w")
        if how == "line": die_at(value)
        train(run, kind)
        os._exit(0)
    except BaseException as error:
        with open(f"{run}.error", "w") as f: f.write(f"{type(error).__name__}: {error}")
        os._exit(1)

killed = {}
for kind in kinds:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert os.waitpid(attempt(f"runs/{kind}", kind, "never", 0), 0)[1] == 0, open(f"runs/{kind}.error").read()
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    for i, plan in enumerate(json.loads(sys.argv[1])):
        run, killed[f"{kind}-{i}"] = f"runs/{kind}-{i}", 0
        for how, value in [*plan, ("never", 0)]:
            status = os.waitpid(attempt(run, kind, how, max(.01, value * seconds) if how == "time" else value), 0)[1]
            killed[f"{kind}-{i}"] += os.WIFSIGNALED(status)
            if not os.WIFSIGNALED(status): break
print(json.dumps(killed))
"""


def test_killed_and_resumed(tmp_path):
    rng = random.Random(0)
    plans = [[("line", rng.randrange(30, 500)) for _ in range(2)] for _ in range(2)]
    plans += [[("time", rng.uniform(.2, .7)) for _ in range(2)] for _ in range(1)]
    (tmp_path / "runs").mkdir()
    done = subprocess.run([sys.executable, "-c", TEMPLATE, json.dumps(plans)], cwd=tmp_path, capture_output=True, text=True,
                          env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr
    killed, last = json.loads(done.stdout), "checkpoints/step_00000012"
    for name in killed:
        run, alone = (tmp_path / "runs" / n for n in (name, name.split("-")[0]))
        error = run.with_name(f"{name}.error")
        assert not error.exists(), f"{name}: {error.read_text()}"
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (run / last / file).read_bytes() == (alone / last / file).read_bytes(), f"{name}: another {file}"
        if "lora" in name:
            ours, theirs = (load_file(r / "adapter.safetensors") for r in (run, alone))    # a file's header has no fixed order
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours), f"{name}: other adapters"
        losses = [[line.get("loss", line.get("val_loss")) for line in map(json.loads, (r / "metrics.jsonl").open())] for r in (run, alone)]
        assert losses[0] == losses[1], f"{name}: another history"
    assert sum(killed.values()) >= len(killed), f"killed too little in the midst of work: {killed}"
