"""`gptlearn train` under torchrun: two processes do what one does, a second start goes on, wrong calls are told in a sentence."""
import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "gptlearn.cli"]
TRAIN = ("train --corpus tales --n_docs 200 --tokenizer byte --model.n_layer 1 --model.n_head 2 --model.d_model 16 "
         "--model.context_length 32 --train.batch_size 4 --train.device cpu --train.sample_tokens 0 --train.log_every 1").split()


def call(folder, *words, torchrun=True):
    env = os.environ | dict(OMP_NUM_THREADS="1")
    start = TORCHRUN if torchrun else ["-m", "gptlearn.cli"]
    return subprocess.run([sys.executable, *start, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=1800)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_and_go_on(tmp_path, strategy):
    alone = call(tmp_path, *TRAIN, "--steps", "8", "--run", "runs/one", torchrun=False)
    assert alone.returncode == 0, alone.stderr
    for steps in ("8", "12"):     # the second start finds the run, which has to be told of more steps by --resume alone
        words = [*TRAIN, "--steps", steps, "--run", "runs/two", "--strategy", strategy] if steps == "8" else \
                ["train", "--resume", "runs/two", "--steps", steps, "--strategy", strategy]
        done = call(tmp_path, *words)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = losses(tmp_path / "runs" / "one"), losses(tmp_path / "runs" / "two")
    assert one and one.keys() <= two.keys() and max(two) == 12
    assert all(abs(two[step] - loss) < 1e-4 for step, loss in one.items())


def test_a_run_needs_a_name_and_a_strategy_a_team(tmp_path):
    nameless = call(tmp_path, *TRAIN, "--steps", "2")
    assert nameless.returncode != 0 and "give --run" in nameless.stderr
    unknown = call(tmp_path, *TRAIN, "--steps", "2", "--run", "runs/x", "--strategy", "zero", torchrun=False)
    assert unknown.returncode == 2 and "'zero'" in unknown.stderr and "Traceback" not in unknown.stderr
    assert not (tmp_path / "runs").exists()
