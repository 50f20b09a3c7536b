"""WikiText-2 through HF `datasets`, tokenized by GPT-2's tokenizer; a fresh process finds the work done."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(os.environ.get("GPTLEARN_DATA") or "nowhere")
FIRST = """
import json, sys
import gptlearn.data as data
from gptlearn.bpe import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
prepared = data.prepare(data.wikitext2_corpus(hub="./hub"), tokenizer, progress=False)
print(json.dumps({"path": str(prepared.path)}))
"""
AGAIN = """
import json, sys
from unittest import mock
import datasets
import gptlearn.data as data
from gptlearn.bpe import Tokenizer, load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
no = mock.Mock(side_effect=AssertionError("done a second time"))
with mock.patch.multiple(Tokenizer, encode=no, encode_stream=no), mock.patch.object(datasets, "load_dataset", no):
    prepared = data.prepare(data.load_corpus("wikitext2"), tokenizer)
print(json.dumps({"tokens": len(prepared.train), "kind": prepared.meta["tokenizer"]["kind"],
                  "documents": prepared.meta["train"]["documents"]}))
"""


def rows():
    "The lines of WikiText-2's test articles where they are at hand, else of a few articles of the same form."
    if (DATA / "wikitext2" / "test.txt").is_file():
        return [line if line.strip() else "" for line in (DATA / "wikitext2" / "test.txt").read_text().splitlines(True)]
    article = ["", " = Topic {} = \n", "", " What is said of <unk> number {} . \n" * 50, "", " = = Later = = \n", "", " More . \n"]
    return [line.format(*[i] * 50) for i in range(60) for line in article]


def run(script, tokenizer, folder):
    env = {**os.environ, "GPTLEARN_DATA": str(folder / "extra"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    out = subprocess.run([sys.executable, "-c", script, tokenizer], cwd=folder, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out.stdout.strip().splitlines()[-1]


def stamps(folder): return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
def test_a_fresh_process_starts_from_the_tokens_on_disk(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "extra").mkdir()
    lines = rows()
    for split, part in (("train", lines), ("validation", lines[:200])):
        (tmp_path / "hub" / f"{split}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in part))
    (tmp_path / "hub" / "README.md").write_text(
        "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n"
        "  - {split: train, path: train.jsonl}\n  - {split: validation, path: validation.jsonl}\n---\n")
    tokenizer = "byte"
    if (DATA / "gpt2" / "vocab.bpe").is_file():
        (tmp_path / "extra" / "gpt2").symlink_to(DATA / "gpt2")
        tokenizer = "gpt2"
    first = json.loads(run(FIRST, tokenizer, tmp_path))
    folder = tmp_path / first["path"]
    before = stamps(tmp_path / "data")
    assert {"train.txt", "valid.txt", "train.bin", "val.bin", "meta.json", "tokenizer.json"} <= {Path(p).name for p in before}
    again = json.loads(run(AGAIN, tokenizer, tmp_path))
    assert stamps(tmp_path / "data") == before
    assert again["documents"] == 60  # so many articles has the test part of WikiText-2, and so have the rows above
    meta = json.loads((folder / "meta.json").read_text())
    assert again["tokens"] == meta["train"]["tokens"] and meta["split"] == "as published: train, validation"
    if tokenizer == "gpt2":  # against an implementation that is not ours, document by document
        from gptlearn.data import Prepared
        tiktoken = pytest.importorskip("tiktoken")
        prepared = Prepared.load(folder)
        encoding = prepared.tokenizer.to_tiktoken()
        text = (tmp_path / "data" / "raw" / "wikitext2" / "train.txt").read_text()
        first = prepared.train[:list(prepared.train).index(50256)].tolist()
        assert encoding.decode(first) == prepared.tokenizer.decode(first) and encoding.decode(first) in text
        assert encoding.encode_ordinary(encoding.decode(first)) == first
        assert tiktoken and (prepared.train == 50256).sum() == again["documents"]
