"""A saved folder among strangers: opened without gptlearn, written without transformers, on a full disk, by a killed process."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest

WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
MODEL = """
import json, torch
from gptlearn.bpe import BPE, CharTokenizer
from gptlearn.generate import generate
from gptlearn.interop import load_pretrained, save_pretrained
from gptlearn.model import GPT, GPTConfig
from gptlearn.tales import tales
torch.manual_seed(0)
def model(**changes):
    m = GPT(GPTConfig(**dict(vocab_size=300, context_length=64, n_layer=2, n_head=2, d_model=32, position="rope", norm="rmsnorm",
                             activation="relu2", bias=False, qk_norm=True, tie_weights=False) | changes))
    for p in m.parameters(): torch.nn.init.normal_(p, std=0.3)
    return m.eval()
text = "\\n".join(tale.text for tale in tales(60, 0))
"""
SAVE = MODEL + """
llama = dict(activation="swiglu", qk_norm=False, n_kv_head=1)
gpt2 = dict(position="learned", norm="layernorm", activation="gelu_tanh", qk_norm=False, tie_weights=True)
ids, report = torch.arange(40)[None], {}
for name, changes, tokenizer in (("apertus", {}, BPE.train(text, 300)), ("llama", llama, CharTokenizer.train(text)), ("gpt2", gpt2, BPE.train(text, 280))):
    m = model(**changes)
    save_pretrained(m, name, tokenizer)
    again, same = load_pretrained(name)
    assert all(torch.equal(p, q) for p, q in zip(m.parameters(), again.parameters(), strict=True)) and same.fingerprint == tokenizer.fingerprint
    words = text[:500]
    report[name] = dict(logits=m(ids)[0].tolist(), greedy=generate(m, ids[:, :5], 50, temperature=0).tolist(), words=words, ids=tokenizer.encode(words))
json.dump(report, open("report.json", "w"))
"""
LOAD = """
import json, sys, torch, warnings
warnings.simplefilter("error")
from transformers import AutoModelForCausalLM, AutoTokenizer
for name, said in json.load(open("report.json")).items():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    ids = torch.arange(40)[None]
    assert (model(ids).logits - torch.tensor(said["logits"])).abs().max() <= 1e-4
    text = model.generate(ids[:, :5], attention_mask=torch.ones(1, 5, dtype=torch.long), max_new_tokens=50, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert text.tolist() == said["greedy"] and tokenizer.encode(said["words"]) == said["ids"] and tokenizer.decode(said["ids"]) == said["words"]
    print(name, type(model).__name__)
assert "gptlearn" not in sys.modules
"""


def python(code, cwd, absent=()):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if not absent and "PYTHONPATH" in os.environ: env["PYTHONPATH"] = os.environ["PYTHONPATH"]
    done = subprocess.run([sys.executable, "-c", WITHOUT.format(absent=list(absent)) + code], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_written_without_transformers_and_read_without_gptlearn(tmp_path):
    pytest.importorskip("transformers")
    python(SAVE, tmp_path, absent=["transformers", "tokenizers", "huggingface_hub"])
    assert python(LOAD, tmp_path, absent=["gptlearn"]).split() == ["apertus", "ApertusForCausalLM", "llama", "LlamaForCausalLM", "gpt2", "GPT2LMHeadModel"]


FULL = MODEL + """
import os, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file may grow beyond that
try: save_pretrained(model(), "out/saved")
except OSError as error: print(error)
print(os.listdir("out"))
"""


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_full_disk_leaves_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    sentence, left = python(FULL, tmp_path).splitlines()
    assert "is full" in sentence and "make room" in sentence and left == "[]"


SLOWLY = MODEL + """
m, tokenizer = model(n_layer=4, d_model=512, n_head=8, vocab_size=5000), BPE.train(text, 300)
print("now", flush=True)
save_pretrained(m, "saved", tokenizer)
print("done", flush=True)
time.sleep(60)
""".replace("time.sleep", "__import__('time').sleep")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_process_leaves_a_whole_folder_or_none(tmp_path):
    seen = set()
    for delay in (0, 0.02, 0.05, 0.1, 0.2, None):  # None: when it says that it is done
        folder = tmp_path / "saved"
        process = subprocess.Popen([sys.executable, "-c", SLOWLY], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "now\n"
        if delay is None: assert process.stdout.readline() == "done\n"
        else: time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        seen.add(folder.exists())
        if folder.exists():
            config = json.loads((folder / "config.json").read_text())
            code = f"from gptlearn.interop import load_pretrained; m, t = load_pretrained('saved'); print(m.num_params(), t.vocab_size)"
            assert python(code, tmp_path).split()[1] == "300" and config["model_type"] == "apertus"
            for file in folder.iterdir(): file.unlink()
            folder.rmdir()
    assert seen == {True, False}  # both were seen, or the test proves nothing
    assert not [p.name for p in tmp_path.iterdir() if p.name != ".saved.part"]
