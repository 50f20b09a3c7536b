"Worker processes must not outlive the process that started them, however it ends."
import os
import subprocess
import sys
import time

import psutil
import pytest

PROGRAM = """
import sys
from gptlearn.bpe import ByteTokenizer
ids = ByteTokenizer().encode_stream(("the lantern " * 90_000 for _ in range(10**9)), workers=2)
for _ in range(8): next(ids)
print("going", flush=True)
for _ in ids: pass
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows does not say that a parent is gone")
def test_workers_end_when_their_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout.readline() == "going\n"
        workers = [p for p in psutil.Process(parent.pid).children() if "resource_tracker" not in " ".join(p.cmdline())]
        assert len(workers) == 2
    finally:
        parent.kill()
        parent.wait()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    for process in alive: process.kill()
    assert not alive, f"{len(alive)} of {len(workers)} workers were still there after 20 seconds"
