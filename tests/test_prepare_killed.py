"""`prepare` is killed at any instant: what it leaves is never taken for whole, and the next call tidies up."""
import os
import random
import signal
import subprocess
import sys
import time

import pytest

if os.name == "nt": pytest.skip("signals and locks of POSIX", allow_module_level=True)

from gptlearn.bpe import ByteTokenizer
from gptlearn.data import Prepared, load_corpus, prepare

PREPARE = """
import sys, time
from gptlearn.bpe import ByteTokenizer
from gptlearn.data import load_corpus, prepare
class Slow(ByteTokenizer):  # a call takes long enough to be killed inside of it
    def encode(self, text, allowed_special="all"):
        time.sleep(.0005)
        return super().encode(text, allowed_special)
corpus = load_corpus("text.txt", in_memory=1000)
print("begun", flush=True)
prepare(corpus, Slow(), progress=False)
print("done", flush=True)
"""


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("<|endoftext|>\n".join(f"Document number {i} says so.\n" for i in range(2000)))
    return tmp_path / "text.txt"


def start():
    child = subprocess.Popen([sys.executable, "-c", PREPARE], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "begun\n"
    return child


def hidden(folder): return [path.name for path in folder.glob(".*")]


def test_killed_at_random_instants_and_started_again(text):
    child, began = start(), time.perf_counter()
    assert child.stdout.read() == "done\n" and child.wait() == 0
    seconds, processed = time.perf_counter() - began, text.parent / "data" / "processed"
    (name,) = [path.name for path in processed.iterdir()]
    whole = {file.name: file.read_bytes() for file in (processed / name).iterdir()}
    rng, killed, left = random.Random(0), 0, 0
    for share in [.02, .3, .6, .9, *(rng.uniform(0, 1.1) for _ in range(6)), *(rng.uniform(.9, 1) for _ in range(4))]:
        for file in (processed / name).glob("*"): file.unlink()
        if (processed / name).exists(): (processed / name).rmdir()
        child = start()
        time.sleep(share * seconds)
        child.kill()
        killed += child.wait() == -signal.SIGKILL
        left += bool(hidden(processed))
        if (processed / name).exists():  # then it is all there
            assert {file.name: file.read_bytes() for file in (processed / name).iterdir()} == whole
            Prepared.load(processed / name)
    assert killed >= 5 and left >= 3, "the test killed nothing in the middle of its work: let it take longer"
    prepare(load_corpus("text.txt", in_memory=1000), ByteTokenizer())
    assert [path.name for path in processed.iterdir()] == [name]
    assert {file.name: file.read_bytes() for file in (processed / name).iterdir()} == whole


def test_the_folder_of_a_living_process_is_not_swept(text):
    child = start()
    processed = text.parent / "data" / "processed"
    while not (processed.exists() and hidden(processed)): time.sleep(.01)
    (temporary,) = hidden(processed)
    other = text.with_name("other.txt")
    other.write_text("another text\n" * 99)
    prepare(load_corpus(other), ByteTokenizer())  # sweeps
    assert hidden(processed) == [temporary] and child.poll() is None
    assert child.stdout.read() == "done\n" and child.wait() == 0
    assert hidden(processed) == [] and len(list(processed.iterdir())) == 2


def test_two_at_once_make_the_same_folder(text):
    children = [start() for _ in range(3)]
    assert [child.communicate()[0] for child in children] == ["done\n"] * 3
    (folder,) = (text.parent / "data" / "processed").iterdir()
    Prepared.load(folder)
