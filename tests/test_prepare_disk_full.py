"""A disk that fills up while tokens are written: one sentence, and nothing half-written."""
import os
import subprocess
import sys

import pytest

if os.name == "nt": pytest.skip("limits of POSIX", allow_module_level=True)

PREPARE = """
import os, resource
from gptlearn.bpe import ByteTokenizer, write_whole
from gptlearn.data import Corpus, prepare
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # no file may grow beyond that
for act in (lambda: prepare(Corpus("full", ["a" * 50_000], ["b"]), ByteTokenizer()),
            lambda: write_whole(Path("raw/input.txt"), b"a" * 50_000)):
    try: act()
    except OSError as e: print(e)
print(os.listdir("data/processed"))
prepare(Corpus("small", ["a" * 500], ["b"]), ByteTokenizer())
"""


def test_a_full_disk(tmp_path):
    out = subprocess.run([sys.executable, "-c", PREPARE], cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    first, second, left = out.stdout.splitlines()
    assert "the disk of data/processed is full" in first and "make room" in first
    assert "the disk of raw is full" in second
    assert left == "[]"  # at once, not only when the next call sweeps
    (made,) = (tmp_path / "data" / "processed").iterdir()
    assert made.name.startswith("small-") and list((tmp_path / "raw").iterdir()) == []
