"""The end of a process among others: none is aborted by its own threads, none waits for ever for one that has failed, and two agents
of torchrun, as on two machines, meet again after one has lost its process."""
import os
import socket
import subprocess
import sys
import time

import pytest

if not hasattr(os, "SCHED_IDLE"): pytest.skip("threads are given a rank as Linux does", allow_module_level=True)

# A thread that runs only when nobody else wants the processor is what a busy machine makes of one now and then: it still holds
# the tensors of a message that has arrived, when Python ends.
PROGRAM = r"""
import os, signal, sys, time
import torch
import torch.distributed as dist
from gptlearn.distributed import DDP, FSDP

torch.set_num_threads(1)
how, rank = sys.argv[1], int(os.environ["RANK"])
def say(text): os.write(1, f"{text}\n".encode())      # whole lines, also from two at once
say(f"attempt {rank}")
strategy = DDP()
strategy.total(1.0)
if how == "killed" and rank == 1 and not os.path.exists("again"):
    open("again", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
module = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(5, 5))
for _ in range(3):
    module(torch.ones(2, 5)).sum().backward()
    assert strategy.total(1.0) == strategy.world
if how == "lame":
    core = {sorted(os.sched_getaffinity(0))[rank % 2 - 1]}
    for thread in map(int, os.listdir("/proc/self/task")):
        os.sched_setaffinity(thread, core)
        if thread != os.getpid(): os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
if how == "lame": module(torch.ones(2, 5)).sum().backward(), strategy.total(1.0)
if how == "fails" and rank == 1: raise RuntimeError("rank 1 fails")
if how == "fails": strategy.total(1.0)
if how == "late" and rank == 1: time.sleep(2)
say(f"end {rank}")
"""


def start(folder, how, *options, ranks=2):
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--monitor-interval", "0.1",
               *options, "program.py", how]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=dict(os.environ, OMP_NUM_THREADS="1"))


@pytest.mark.parametrize("how", ["lame", "late"])
def test_no_process_is_aborted_by_its_own_threads(tmp_path, how):
    for _ in range(2 if how == "lame" else 1):
        running = start(tmp_path, how, "--standalone", "--max-restarts", "0")
        said, errors = running.communicate(timeout=1800)
        assert running.returncode == 0, errors
        assert sorted(line for line in said.splitlines() if "end" in line) == ["end 0", "end 1"]


def test_one_that_fails_is_waited_for_by_nobody(tmp_path):
    running = start(tmp_path, "fails", "--standalone", "--max-restarts", "0")
    said, errors = running.communicate(timeout=1800)
    assert running.returncode != 0 and "rank 1 fails" in errors and "end" not in said


def test_two_agents_meet_again_after_one_has_lost_its_process(tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    line = ["--nnodes", "2", "--max-restarts", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "two"]
    agents = [start(tmp_path, "killed", *line, ranks=1) for _ in range(2)]
    said = [agent.communicate(timeout=1800) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    lines = "".join(out for out, _ in said).splitlines()
    assert sorted(line for line in lines if "end" in line) == ["end 0", "end 1"]
    assert sum(line.startswith("attempt") for line in lines) == 4
