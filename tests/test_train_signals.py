"""Ctrl-C and a polite kill, from outside, through `gptlearn train`: saved, 130 and 143, and nothing is lost."""
import os
import signal
import subprocess
import sys
import time

import pytest

if os.name == "nt": pytest.skip("signals of POSIX", allow_module_level=True)

OPTIONS = ("--text my.txt --tokenizer char --steps 400 --model.n_layer 2 --model.n_head 2 --model.d_model 16 "
           "--model.context_length 16 --model.dropout 0.1 --train.batch_size 2 --train.grad_accum 2 "
           "--train.eval_tokens 100 --train.final_eval_tokens 200 --train.sample_tokens 0 --train.eval_every 300 "
           "--train.log_every 1 --train.device cpu").split()


def gptlearn(folder, *words):
    command = [sys.executable, "-m", "gptlearn.cli", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=dict(os.environ, OMP_NUM_THREADS="1"))


def step_of(run):
    file = run / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def checkpoints(run): return sorted(path.name for path in (run / "checkpoints").glob("*"))


def test_sigint_and_sigterm(tmp_path):
    (tmp_path / "my.txt").write_text("\n".join(f"A line, number {i}, of a text to learn from." for i in range(400)))
    whole = gptlearn(tmp_path, "train", *OPTIONS, "--run", "runs/whole")
    assert whole.wait() == 0, whole.stderr.read()
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        run = tmp_path / "runs" / str(code)
        child = gptlearn(tmp_path, "train", *OPTIONS, "--run", f"runs/{code}")
        while step_of(run) < 20 and child.poll() is None: time.sleep(.01)
        child.send_signal(number)
        told = child.communicate()[1]
        assert child.returncode == code, told
        (first, last) = checkpoints(run)[0], checkpoints(run)[-1]
        stopped = int(last.removeprefix("step_"))
        assert 20 <= stopped < 300 and f"stopped after step {stopped} of 400" in told, told
        assert f"train --resume runs/{code}" in told and len(told.splitlines()) == 1
        on = gptlearn(tmp_path, "train", "--resume", f"runs/{code}")
        assert on.wait() == 0, on.stderr.read()
        for file in ("model.safetensors", "optimizer.safetensors"):
            a, b = (tmp_path / "runs" / name / "checkpoints/step_00000400" / file for name in ("whole", str(code)))
            assert a.read_bytes() == b.read_bytes(), f"{file} differs after {number!r}"
