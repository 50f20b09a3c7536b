"The rungs of chapter 12 that need a compiler, which takes longer than a cell may, and `gptlearn bench` in a process of its own."
import os
import subprocess
import sys

import pytest
import torch

from gptlearn.cuda import benchmark, cannot_compile, device_report

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")   # of torch itself


@pytest.mark.skipif(bool(cannot_compile(CPU)), reason=cannot_compile(CPU) or "a compiler is there")
def test_compiled_rungs_have_the_losses_of_the_first():
    "The loss in chunks too, whose gradients are made in the forward pass; and the opponent."
    report = device_report("cpu", long_enough=1e-4)
    small = dict(n_layer=1, d_model=32, n_head=2, vocab_size=100, context_length=16)
    rows = benchmark("mini", "cpu", 2, 4, 3, ["compile", "attention", "chunks"], "torch", report=report, **small)
    assert [(row.name, row.skipped) for row in rows] == [(name, "") for name in ("fp32", "compile", "attention", "chunks", "torch")]
    for row in rows[1:]:
        assert row.settings.compile and len(row.losses) == 3
        assert row.apart(rows[0]) <= 1e-5      # float32 throughout: some ten roundings of a loss near 5


def test_bench_of_an_unknown_device_is_one_sentence():
    done = subprocess.run([sys.executable, "-m", "gptlearn.cli", "bench", "--device", "warp"], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr and "warp" in done.stderr
    assert not done.stdout
