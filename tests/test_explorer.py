"""The explorer in a browser: its modules against this package, and the page as a reader uses it.

`make docs` runs this once more on the page that Quarto made (--site _docs); otherwise a bare page carries the same body.
"""
import base64
import http.server
import io
import json
import os
import random
import re
import shutil
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from browser import CHROMIUM, Browser, stop

from gptlearn.bpe import BPE, EOT, GPT4_PATTERN, ByteTokenizer, CharTokenizer
from gptlearn.cli import chosen_step, main
from gptlearn.generate import generate
from gptlearn.inside import attention_maps, export_explorer, logit_lens
from gptlearn.model import GPT, GPTConfig
from gptlearn.tales import tale_rules, tale_slots, tales, tales_grammar
from gptlearn.trainer import checkpoints, load_run

ROOT = Path(__file__).parents[1]
try: import websocket  # noqa: F401
except ImportError: CHROMIUM = None
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium and websocket-client")
KINDS = [  # together they take every option that a GPTConfig has, and every type that weights are stored in
    dict(),
    dict(position="rope", norm="rmsnorm", activation="swiglu", bias=False, tie_weights=False, qk_norm=True, n_kv_head=2),
    dict(position="sinusoidal", activation="gelu_tanh", logit_soft_cap=5.0, bias=False),
    dict(position="rope", activation="relu2", n_kv_head=1, rope_base=500.0, tie_weights=False),
    dict(norm="rmsnorm", activation="relu", d_head=6, norm_eps=1e-3),
    dict(activation="silu", qk_norm=True, d_ff=50, n_layer=3),
    dict(activation="swiglu", n_head=2, n_kv_head=1, position="rope", norm_eps=1e-2),
]
DTYPES = ["float32", "float16", "bfloat16"]
SAMPLING = [dict(temperature=0.7), dict(temperature=1.3, top_k=20), dict(temperature=1.0, top_p=0.6), dict(temperature=1.5, min_p=0.1),
            dict(temperature=0.9, repetition_penalty=1.7), dict(temperature=0.8, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.2)]


class Watched(Browser):
    "A browser that keeps what the console said and which addresses were asked for."
    events = ()
    def note(self, event):
        if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Network.requestWillBeSent"):
            self.events = [*self.events, event]

    def run(self, script):
        "The value of the last expression; promises are waited for, errors raised."
        answer = self.send("Runtime.evaluate", expression=f"(async () => {{ {script} }})()", awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]["exception"].get("description")
        return answer["result"].get("value")

    def until(self, condition, seconds=30):
        "Waits for a JavaScript expression to become true."
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {condition}")):
            assert time.monotonic() < end, f"never true: {condition}\n{self.text()[:3000]}"
            time.sleep(0.1)
        return value

    def size(self, width, height):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)


def bare_page():
    "The body of explorer.qmd without Quarto around it."
    body = re.search(r"^```\{=html\}\n(.*?)^```$", (ROOT / "nbs" / "explorer.qmd").read_text(encoding="utf-8"), re.S | re.M)[1]
    return ('<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>t</title><link rel="icon" href="data:,"><link rel="stylesheet" href="explorer/explorer.css"><body>{body}').encode()


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/favicon.ico":  # browsers ask for one by themselves
            self.send_response(204)
            return self.end_headers()
        if urlsplit(self.path).path == "/explorer.html" and not self.server.site:
            page = bare_page()
            self.send_response(200); self.send_header("Content-Type", "text/html"); self.send_header("Content-Length", len(page)); self.end_headers()
            return self.wfile.write(page)
        super().do_GET()
    def translate_path(self, path):
        name = unquote(urlsplit(path).path).lstrip("/")
        if name.startswith("made/"): return str(self.server.made / name[5:])
        return str((self.server.site or ROOT / "nbs") / name)
    def log_message(self, *args): pass


@pytest.fixture(scope="module")
def made(tmp_path_factory): return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def browser(made, tmp_path_factory, pytestconfig):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = pytestconfig.getoption("--site")
    server.made, server.site = made, Path(site).resolve() if site else None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chromium = Watched(tmp_path_factory.mktemp("chromium"))
    try:
        for domain in ("Runtime", "Log", "Network"): chromium.send(f"{domain}.enable")
        chromium.address = f"http://127.0.0.1:{server.server_port}"
        yield chromium
    finally:
        stop(chromium.process)
        server.shutdown()


@pytest.fixture
def page(browser):
    "The page, open, its model loaded."
    browser.events = []
    browser.send("Page.navigate", url=f"{browser.address}/explorer.html")
    browser.until("!!document.querySelector('#x-guesses li') && !!document.querySelector('#x-heads canvas')")
    yield browser
    bad = [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")
           or e["method"] == "Runtime.consoleAPICalled" and e["params"]["type"] in ("error", "warning")]
    assert not bad, bad[:3]
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith((browser.address, "data:", "blob:")) for url in asked), asked
    assert not [e for e in browser.events if e.get("params", {}).get("request", {}).get("method", "GET") != "GET"]  # nothing is sent


def test_an_error_on_the_console_is_seen(page):
    "The fixture's own checks can fail."
    page.run("console.error('seen')")
    assert [e for e in page.events if e["method"] == "Runtime.consoleAPICalled" and e["params"]["type"] == "error"]
    page.events = [e for e in page.events if e["method"] == "Network.requestWillBeSent"]


def rough(seed, dtype, **options):
    "A small GPT with weights far from 0 in every part, as it is after rounding to `dtype`."
    torch.manual_seed(seed)
    gpt = GPT(GPTConfig(**dict(vocab_size=257, context_length=48, n_layer=2, n_head=4, d_model=32, init_std=0.3) | options)).eval()
    with torch.no_grad():
        for p in gpt.parameters():
            if p.ndim == 1: p.add_(0.3 * torch.randn_like(p))
            p.copy_(p.to(getattr(torch, dtype)))
    return gpt


def shipped():
    "The site's own model, in PyTorch."
    with safe_open(ROOT / "nbs" / "explorer" / "demo.safetensors", "pt") as file:
        config, state = (json.loads(file.metadata()[f"gptlearn.{key}"]) for key in ("config", "tokenizer"))
        gpt = GPT(GPTConfig(**config)).eval()
        with torch.no_grad():
            for name, p in gpt.named_parameters(): p.copy_(file.get_tensor(name))
    return gpt, BPE._from_state(state)


LOAD = """const {load} = await import('/explorer/open.js');
const open = async (name) => (await load({name, file: await (await fetch(name)).blob()})).reader;"""


def differences(page, address, gpt, prompts):
    "The largest difference of logits from PyTorch's after each prompt, read by a fresh reader or on from a beginning in the cache."
    ours = page.run(f"""{LOAD} const reader = await open('{address}'), all = [];
        for (const [i, ids] of {json.dumps(prompts)}.entries()) {{
            if (i % 2) reader.read([]);
            reader.read(ids);
            all.push([...reader.logits(ids.length - 1)]);
        }}
        return all;""")
    with torch.no_grad(): theirs = [gpt(torch.tensor([ids]))[0][0, -1] for ids in prompts]
    return [(torch.tensor(a) - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)]


@pytest.fixture(scope="module", params=range(len(KINDS)), ids=lambda i: " ".join(map(str, KINDS[i].values())) or "gpt2")
def pair(request, made):
    "A model in PyTorch and where the browser finds the same one."
    i, dtype = request.param, DTYPES[request.param % 3]
    gpt = rough(i, dtype, **KINDS[i])
    export_explorer(gpt, made / f"{i}.safetensors", ByteTokenizer(), dtype)
    return gpt, f"/made/{i}.safetensors", random.Random(i)


def test_numbers_of_every_type(page, made):
    "All 65,536 of each 16-bit type, and the two wider ones, to the last bit."
    bits = torch.arange(65536).to(torch.uint16)
    tensors = dict(half=bits.view(torch.float16), brain=bits.clone().view(torch.bfloat16), single=torch.randn(3, 5), double=torch.randn(7, dtype=torch.float64))
    save_file(tensors, made / "types.safetensors", {"note": "Grüße"})
    ours = page.run("""const {readSafetensors} = await import('/explorer/safetensors.js');
        const {tensors, metadata} = readSafetensors(await (await fetch('/made/types.safetensors')).arrayBuffer(), 'it');
        return [Object.fromEntries(Object.entries(tensors).map(([name, t]) => [name, [t.shape, [...new Uint32Array(t.data.buffer)]]])), metadata];""")
    assert ours[1] == {"note": "Grüße"}
    for name, t in tensors.items():
        shape, words = ours[0][name]
        got = torch.tensor(words).to(torch.uint32).view(torch.float32)
        assert shape == list(t.shape) and torch.equal(got.nan_to_num(7.25), t.float().flatten().nan_to_num(7.25)) and torch.equal(got.isnan(), t.isnan().flatten())


def test_logits_of_every_kind(page, pair):
    gpt, address, rng = pair
    prompts = [[rng.randrange(257) for _ in range(rng.randint(1, 48))] for _ in range(8)]
    prompts += [prompts[0][:5] + [7], prompts[0][:5] + [8, 9]]  # the beginning is in the cache, the end is not
    assert max(differences(page, address, gpt, prompts)) < 1e-4


def test_text_of_every_kind(page, pair):
    "Greedy and drawn, 100 tokens each, so that the context of 48 is full twice; drawn with the same seed and every rule."
    gpt, address, rng = pair
    prompt = [rng.randrange(257) for _ in range(6)]
    rules = [dict(temperature=0), *SAMPLING] if address.endswith("/0.safetensors") else [dict(temperature=0), SAMPLING[-1]]
    ours = page.run(f"""{LOAD} const reader = await open('{address}');
        delete reader.tokenizer.eot;  // generate without `stop` does not end at it either
        return {json.dumps(rules)}.map((rule) => {{ reader.read({prompt}); for (const _ of reader.write(100, {{seed: 5, ...rule}})); return reader.ids; }});""")
    for rule, ids in zip(rules, ours, strict=True):
        assert ids == generate(gpt, torch.tensor([prompt]), 100, seed=5, **rule)[0].tolist(), rule


def test_what_the_page_shows_is_what_chapter_17_computes(page, pair):
    gpt, address, rng = pair
    ids = [rng.randrange(257) for _ in range(20)]
    seen = page.run(f"""{LOAD} const reader = await open('{address}'); reader.read({ids});
        const all = [3, 19].map((p) => {{ const s = reader.look(p, {{temperature: 1}}); return {{...s, heads: s.heads.map((l) => l.map((h) => [...h]))}}; }});
        return [all, reader.steps.map((s) => s.nats), reader.maps().maps.map((m) => [...m])];""")
    maps, lens = attention_maps(gpt, torch.tensor([ids])), logit_lens(gpt, torch.tensor([ids])).softmax(-1)
    with torch.no_grad(): nats = -gpt(torch.tensor([ids]))[0][0].log_softmax(-1)
    for p, look in zip((3, 19), seen[0], strict=True):
        assert (torch.tensor(look["heads"]) - maps[:, 0, :, p, :p + 1]).abs().max() < 1e-4
        for row, q in zip(look["lens"], lens[:, 0, p], strict=True):
            assert all(abs(guess["p"] - q[guess["id"]]) < 1e-4 for guess in row) and row[0]["id"] == q.argmax()
    assert all(abs(n - nats[i - 1, ids[i]]) < 1e-4 for i, n in enumerate(seen[1]) if i) and seen[1][0] == 0
    small = torch.tensor(seen[2]).view(-1, 20, 20) / 255
    assert (small - maps[:, 0].flatten(0, 1)).abs().max() < 0.51 / 255


def test_the_shipped_model(page):
    "50 prompts: logits; greedy text, 100 tokens; and it is as small as the page says."
    gpt, tok = shipped()
    texts = [tale.text for tale in tales(50, seed=3)]
    prompts = [[tok.eot, *tok.encode(text)][: 10 + 3 * i] for i, text in enumerate(texts)]
    assert max(differences(page, "/explorer/demo.safetensors", gpt, prompts)) < 1e-4
    ours = page.run(f"""{LOAD} const reader = await open('/explorer/demo.safetensors'); delete reader.tokenizer.eot;
        reader.read({prompts[0]}); for (const _ of reader.write(200, {{temperature: 0}})); return reader.ids;""")
    assert ours == generate(gpt, torch.tensor([prompts[0]]), 200, temperature=0)[0].tolist()
    size = (ROOT / "nbs" / "explorer" / "demo.safetensors").stat().st_size
    assert size < 2_000_000 and f"{size:,} bytes" in (ROOT / "nbs" / "explorer.qmd").read_text(encoding="utf-8")


def test_the_speed(page):
    "At least 50 tokens a second for the demo's model, in time that this thread had: another process may take the rest."
    speed = page.run(f"""{LOAD} const reader = await open('/explorer/demo.safetensors'); delete reader.tokenizer.eot;
        let best = 0;
        for (let i = 0; i < 5; i++) {{
            reader.read([reader.tokenizer.special['<|endoftext|>']]);
            const begun = performance.now();
            for (const _ of reader.write(60, {{temperature: 0.7, seed: i}}));
            best = Math.max(best, 60000 / (performance.now() - begun));
        }}
        return best;""")
    print(f"{speed:.0f} tokens a second")
    assert speed >= 50


LETTERS = ["abcdefgst ", "ABC'sStTdDmM", " \t\n\r\x0b\x0c\x1c\x1f\x85\u00a0\u2003\u2028\u3000\ufeff\u200b", "0123456789²½٣", ".,;:!?-_'\"()[]{}|\\/^$*+",
           "äßéñøžſK", "Привет", "日本語中文", "שלום", "😀👍🏽👨‍👩‍👧", "\u0301\u0308\u0915\u094d", "e\u0301", "\x00\x7f", "\ud7ff\ue000\uffff\U0010ffff"]


def random_texts(n, seed):
    rng = random.Random(seed)
    words = ["don't", "I'LL", "it'ſ", "it'ſtop", "we'RE", EOT, EOT[:-1], "<|end|>", "<|e", "once upon a time", "2024", "\r\n\r\n", "   ", " \n x", " \x85\n\x85  y", "\ufeff\ufeff"]
    for _ in range(n):
        yield "".join(rng.choice(words) if rng.random() < 0.15 else "".join(rng.choices(rng.choice(LETTERS), k=rng.randint(1, 6)))
                      for _ in range(rng.randint(0, 12)))


def tokenizers():
    texts = [tale.text for tale in tales(200)] + list(random_texts(200, 1))
    texts += ["it'ſ we'ſ beſt ſtop beſt ſtop " * 300, "x \x85 \x85\n\x85  y\ufeff\ufeff z" * 30]  # so that merges cross what patterns may cut
    plain = BPE.train(texts, 700)
    yield plain
    yield BPE.train(texts, 600, special_tokens=[EOT, "<|e", "<|end|>"], pattern=GPT4_PATTERN)
    ids = list(range(len(plain.vocab)))
    random.Random(2).shuffle(ids)
    yield BPE({ids[i]: token for i, token in plain.vocab.items() if i != plain.eot}, plain.merges, {EOT: ids[plain.eot]})
    yield ByteTokenizer()
    yield CharTokenizer("".join(LETTERS), unk="<|unk|>")


def test_tokenizers(page, tmp_path):
    "1,000 strings, the same ids as Python's, and back to the same text."
    texts = list(random_texts(1000, 0))
    for tokenizer in tokenizers():
        tokenizer.save(tmp_path / "tokenizer.json")
        state = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
        ours = page.run(f"""const {{makeTokenizer}} = await import('/explorer/tokenizer.js');
            const tokenizer = makeTokenizer(JSON.parse({json.dumps(state)}), 'it'), texts = {json.dumps(texts)};
            const ids = texts.map((text) => tokenizer.encode(text));
            return [ids, ids.map((row) => tokenizer.decode(row)), ids.map((row) => tokenizer.decode(row.slice(1, -1)))];""")
        for text, ids, back, part in zip(texts, *ours, strict=True):
            assert ids == tokenizer.encode(text), (tokenizer, text)
            assert back == tokenizer.decode(ids) and part == tokenizer.decode(ids[1:-1]), (tokenizer, text)


def test_the_floor(page):
    "Of tales, of their beginnings, and where a text is none: the figures of chapter 00."
    assert json.loads((ROOT / "nbs" / "explorer" / "tales.json").read_text()) == json.loads(json.dumps(dict(rules=tale_rules, slots=tale_slots)))
    rng, cases = random.Random(0), []
    for tale in tales(40, seed=9):
        cut = rng.randrange(len(tale.text))
        cases += [(tale.text, False), (tale.text[:cut], True), (tale.text[:cut], False), (tale.text[:cut] + "x" + tale.text[cut:], True)]
    ours = page.run(f"""const {{Grammar}} = await import('/explorer/tales.js'), grammar = new Grammar(await (await fetch('/explorer/tales.json')).json());
        const drawn = Array.from({{length: 200}}, () => grammar.sample());
        return [{json.dumps(cases)}.map(([text, prefix]) => ({{...grammar.surprise(text, prefix)}})).map((r) => ({{...r, nats: r.nats === Infinity ? null : r.nats}})), drawn];""")
    for (text, prefix), got in zip(cases, ours[0], strict=True):
        try: want = -tales_grammar.log_prob(text, prefix)
        except ValueError as error:
            assert got["nats"] is None and str(error).startswith(f"character {got['at']}:"), (text, got, error)
            assert got["allowed"] and all(repr(a[:24]) in str(error) for a in sorted(got["allowed"])[:1] if a)
        else: assert abs(got["nats"] - want) < 1e-9, text
    for text in ours[1]: tales_grammar.log_prob(text)  # every tale that the page draws is one


def shown(page): return page.run("return [...document.querySelectorAll('.x-token')].map((t) => t.textContent)")


def type_text(page, text):
    page.run(f"const box = document.getElementById('x-text'); box.value = {json.dumps(text)}; box.dispatchEvent(new Event('input'));")
    last = (text.split(" ")[-1] or text)[-3:]
    page.until(f"[...document.querySelectorAll('.x-token')].map((t) => t.textContent).join('').includes({json.dumps(text[-12:])})"
               f" && {json.dumps(last)}.length > 0")


def test_typing(page):
    gpt, tok = shipped()
    text = "Once there was a brave mouse named Emil, who lived in the village. One Monday night, rain fell."
    type_text(page, text)
    ids = [tok.eot, *tok.encode(text)]
    assert shown(page) == ["⟨start⟩", *(tok.decode([i]) for i in ids[1:])]
    with torch.no_grad(): nats = -gpt(torch.tensor([ids]))[0][0].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    total, floor = nats.sum().item() / 0.693147, -tales_grammar.log_prob(text, prefix=True) / 0.693147
    said = page.until("document.getElementById('x-total').textContent.includes('floor') && document.getElementById('x-total').textContent")
    figures = [float(x) for x in re.findall(r"([\d.]+) bits", said)]
    assert abs(figures[0] - total) < 0.06 and abs(figures[1] - floor) < 0.06 and abs(figures[2] - abs(total - floor)) < 0.11, said
    assert ("above it" in said) == (total >= floor)
    assert f"{len(text)} bytes" in said
    type_text(page, text + " Zzz")
    page.until("document.getElementById('x-total').textContent.includes('no tale from “Zzz” on')")
    assert page.run("return document.querySelector('.x-outside').textContent") in " Zzz"


def test_hover_tap_and_keys(page):
    gpt, tok = shipped()
    text = "Once there was a brave mouse named Emil, who lived in the village."
    type_text(page, text)
    ids = torch.tensor([[tok.eot, *tok.encode(text)]])
    maps = attention_maps(gpt, ids)[:, 0]
    box = "JSON.stringify(document.querySelector('.x-token[data-p=\"7\"]').getBoundingClientRect())"
    at = json.loads(page.run(f"document.getElementById('x-tokens').scrollIntoView({{block: 'center', behavior: 'instant'}}); return {box}"))
    for dx in (0, 2, 4): page.send("Input.dispatchMouseEvent", type="mouseMoved", x=at["x"] + at["width"] / 3 + dx, y=at["y"] + at["height"] / 2)
    page.until("document.getElementById('x-looks').textContent.startsWith('From “␣Emil”') || document.getElementById('x-looks').textContent.startsWith('From')"
               f" && document.getElementById('x-looks').textContent.includes({json.dumps(tok.decode([ids[0, 7].item()]).strip())})")
    weights = page.until("(() => { const w = [...document.querySelectorAll('.x-token')].map((t) => Number(t.style.getPropertyValue('--a')));"
                         " return w[9] === 0 && w[7] + w[0] > 0 && w; })()")
    assert (torch.tensor(weights[:8]) - maps[1, 0, 7, :8]).abs().max() < 2e-3
    page.run("document.querySelectorAll('#x-heads button')[2].focus()")  # the keyboard chooses a head …
    page.until("document.getElementById('x-looks').textContent.includes('head 0.2')")
    page.run("document.querySelector('.x-token[data-p=\"7\"]').click()")  # … a tap chooses a token, and arrows move on
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    page.until("document.activeElement.dataset.p === '7'")
    for key in ("ArrowRight", "ArrowRight"):
        for kind in ("keyDown", "keyUp"): page.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)
    page.until("document.activeElement.dataset.p === '9' && document.activeElement.getAttribute('aria-selected') === 'true'")
    weights = page.until("(() => { const w = [...document.querySelectorAll('.x-token')].map((t) => Number(t.style.getPropertyValue('--a')));"
                         f" return Math.abs(w[9] - {maps[0, 2, 9, 9]:.5f}) < 2e-3 && w; }})()")
    assert (torch.tensor(weights[:10]) - maps[0, 2, 9, :10]).abs().max() < 2e-3
    want = logit_lens(gpt, ids)[:, 0, 9].softmax(-1).topk(3)
    rows = page.run("return [...document.querySelectorAll('#x-lens tbody tr')].map((r) => [...r.querySelectorAll('.x-word')].map((w) => w.textContent))")
    assert [[w.strip("␣") for w in row] for row in rows[::-1]] == [[tok.decode([i]).strip() for i in row] for row in want.indices.tolist()]


def test_writing_stopping_and_sampling(page):
    gpt, tok = shipped()
    page.run("document.getElementById('x-temperature').value = 0; document.getElementById('x-temperature').dispatchEvent(new Event('input', {bubbles: true}));")
    page.until("document.getElementById('x-left').textContent.includes('leave 1 token to')")
    page.run("document.getElementById('x-new').click()")
    page.until("document.getElementById('x-write').textContent === 'Write on' && document.querySelector('.x-token:last-child').textContent === '⟨end⟩'")
    ids = generate(gpt, torch.tensor([[tok.eot]]), 200, temperature=0, stop=tok.eot)[0].tolist()
    assert page.run("return document.getElementById('x-text').value") == tok.decode([i for i in ids if i != tok.eot])
    assert re.match(r"[\d,]+ tokens a second$", page.run("return document.getElementById('x-status').textContent"))
    page.run("""document.getElementById('x-temperature').value = 0.7; document.getElementById('x-n').value = 5000; document.getElementById('x-seed').value = 4;
        document.getElementById('x-top_k').value = 3; document.getElementById('x-top_k').dispatchEvent(new Event('input', {bubbles: true}));""")
    page.until("document.getElementById('x-left').textContent.includes('leave 3 tokens to') || document.getElementById('x-left').textContent.includes('leave 2 tokens') || 0")
    type_text(page, "Once there was")
    page.until("document.getElementById('x-after').textContent === '␣was'")
    page.run("document.getElementById('x-guesses').querySelectorAll('button')[1].click()")  # a guess goes into the text
    page.until("document.getElementById('x-text').value.length > 'Once there was'.length && document.querySelector('.x-token:last-child').textContent === "
               "document.getElementById('x-text').value.slice('Once there was'.length)")
    page.run("document.getElementById('x-tale').click()")
    page.until("document.getElementById('x-total').textContent.includes('floor is') && document.querySelector('.x-token:last-child').textContent === '⟨end⟩'")
    tales_grammar.log_prob(page.run("return document.getElementById('x-text').value"))


def test_a_click_on_guesses_of_an_older_text_does_nothing(page):
    type_text(page, "Once there was a brave mouse named Emil")
    page.until("document.getElementById('x-after').textContent === '␣Emil'")
    page.run("""const tokens = document.getElementById('x-tokens');
        window.clicked = 0;  // at once when new tokens stand there, before their guesses do
        const watch = new MutationObserver(() => { watch.disconnect(); window.clicked++; document.querySelectorAll('#x-guesses button')[2].click(); });
        watch.observe(tokens, {childList: true});""")
    type_text(page, "Once there was a shy")
    page.until("window.clicked === 1 && document.getElementById('x-after').textContent === '␣shy'")
    time.sleep(0.3)
    assert page.run("return document.getElementById('x-text').value") == "Once there was a shy"


def test_it_stops_when_told(page, made):
    "A model that never ends: its tokenizer's end is a token that it cannot draw."
    gpt = rough(1, "float32", vocab_size=300, context_length=64)
    with torch.no_grad(): gpt.token_embedding.weight[256] = 0
    if not (made / "endless.safetensors").exists(): export_explorer(gpt, made / "endless.safetensors", ByteTokenizer())
    choose(page, "x-file", made / "endless.safetensors")
    page.until("document.getElementById('x-about').textContent.includes('context 64')")
    page.run("document.getElementById('x-n').value = 5000; document.getElementById('x-top_k').value = 5; document.getElementById('x-write').click()")
    page.until("document.querySelectorAll('.x-token').length > 70 && document.getElementById('x-write').textContent === 'Stop'")
    page.run("document.getElementById('x-write').click()")
    page.until("document.getElementById('x-write').textContent === 'Write on' && !document.getElementById('x-text').disabled")
    assert 70 < len(shown(page)) < 5000 and page.run("return document.querySelectorAll('.x-gone').length") > 0  # what left the context is pale


def choose(page, input_id, *paths):
    root = page.send("DOM.getDocument")["root"]["nodeId"]
    node = page.send("DOM.querySelector", nodeId=root, selector=f"#{input_id}")["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])


DROP = """const files = {files}, transfer = new DataTransfer();
for (const {{name, data}} of files) transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
document.body.dispatchEvent(new DragEvent('drop', {{bubbles: true, cancelable: true, dataTransfer: transfer}}));"""


def drop(page, *files):
    page.run(DROP.format(files=json.dumps([dict(name=name, data=base64.b64encode(data).decode()) for name, data in files])))


@pytest.fixture(scope="module")
def run_folder(made):
    "A run of a few steps, as `gptlearn train` leaves it, and what `gptlearn export` makes of it."
    (made / "my.txt").write_text("".join(f"The {a} saw the {b}. " for a in ("cat", "dog", "owl") for b in ("sun", "moon", "sea")) * 40)
    def gptlearn(*words):
        with redirect_stdout(io.StringIO()) as said, redirect_stderr(io.StringIO()): main([*words])
        return said.getvalue()
    before = os.getcwd()
    os.chdir(made)
    gptlearn("train", "--text", "my.txt", "--tokenizer", "char", "--steps", "60", "--run", "runs/my", "--model.d_model", "32", "--model.n_head", "2",
             "--model.n_layer", "2", "--model.context_length", "32", "--train.eval_every", "20", "--train.checkpoint_every", "20")
    said = gptlearn("export", "--run", "runs/my", "--to", "explorer", "--out", "my.safetensors", "--dtype", "float16")
    os.chdir(before)
    assert "my.safetensors" in said
    return made / "runs" / "my"


def test_my_own_model_by_drop(page, run_folder, made):
    drop(page, ("my.safetensors", (made / "my.safetensors").read_bytes()))
    page.until("document.getElementById('x-name').textContent === 'my' && document.getElementById('x-about').textContent.includes('context 32')")
    page.until("document.getElementById('x-alert').textContent.includes('never seen')")  # the text that stands there is of the tales
    type_text(page, "The cat saw")
    page.until("document.getElementById('x-alert').hidden")
    assert shown(page)[1:] == list("The cat saw")
    page.run("document.getElementById('x-home').click()")
    page.until("document.getElementById('x-about').textContent.includes('context 160')")


def test_my_own_run_by_folder(page, run_folder):
    choose(page, "x-folder", run_folder)
    page.until("document.getElementById('x-name').textContent === 'my' && document.getElementById('x-about').textContent.includes('context 32')")
    steps = [int(folder.name[5:]) for folder in checkpoints(run_folder)]
    assert [int(v) for v in page.run("return [...document.querySelectorAll('#x-step option')].map((o) => o.value)")] == steps
    assert int(page.run("return document.getElementById('x-step').value")) == chosen_step(run_folder)  # as gptlearn generate chooses
    for step in (steps[0], steps[-1]):
        gpt, tok = load_run(run_folder, step)
        page.run(f"const s = document.getElementById('x-step'); s.value = {step}; s.dispatchEvent(new Event('change'));")
        page.until(f"document.getElementById('x-about').textContent.includes('step {step}')")
        type_text(page, "The owl s" + "aw"[: steps.index(step)])
        ids = torch.tensor([[tok.eot, *tok.encode("The owl s" + "aw"[: steps.index(step)])]])
        with torch.no_grad(): want = gpt(ids)[0][0, -1].softmax(-1).max().item()
        shares = f"Math.abs(parseFloat(document.querySelector('#x-guesses .x-share').textContent) - {100 * want:.3f}) < 0.6"
        page.until(shares)


def test_the_checkpoint_that_is_opened(page, run_folder, made):
    "The least loss among those evaluated on as many tokens as the newest, as chapter 10's find_checkpoint(run, 'best')."
    folder = made / "chosen"
    for step, loss, tokens in ((10, 1.0, 99), (20, 1.5, 500), (30, 1.2, 500), (40, 1.4, 500), (50, None, None)):
        (folder / f"checkpoints/step_{step:08}").mkdir(parents=True)
        shutil.copy(next(run_folder.glob("checkpoints/*/model.safetensors")), folder / f"checkpoints/step_{step:08}")
        (folder / f"checkpoints/step_{step:08}/state.json").write_text(json.dumps(dict(val_loss=loss, val_tokens=tokens)))
    for name in ("config.yaml", "tokenizer.json"): shutil.copy(run_folder / name, folder)
    choose(page, "x-folder", folder)
    page.until("document.getElementById('x-name').textContent === 'chosen'")
    assert page.run("return document.getElementById('x-step').value") == "30"
    for path in folder.rglob("state.json"): path.write_text('{"val_loss": null}')
    choose(page, "x-folder", folder)
    page.until("document.getElementById('x-step').value === '50'")  # none evaluated: the newest


def test_a_folder_is_dropped(page, run_folder, made):
    "What a browser hands over for a dropped folder is walked through."
    files = {p.relative_to(run_folder.parent).as_posix(): base64.b64encode(p.read_bytes()).decode()
             for p in run_folder.rglob("*") if p.is_file() and p.name not in ("optimizer.safetensors", "loss_curve.png")}
    page.run(f"""const files = {json.dumps(files)};
        const entry = (path) => {{
          const name = path.split('/').pop();
          if (path in files) return {{isFile: true, name, file: (take) => take(new File([Uint8Array.from(atob(files[path]), (c) => c.charCodeAt(0))], name))}};
          const inside = [...new Set(Object.keys(files).filter((f) => f.startsWith(path + '/')).map((f) => path + '/' + f.slice(path.length + 1).split('/')[0]))];
          let at = 0;  // two at a time, as a browser hands out a hundred
          return {{isFile: false, name, createReader: () => ({{readEntries: (take) => take(inside.slice(at, at += 2).map(entry))}})}};
        }};
        const event = new Event('drop', {{bubbles: true, cancelable: true}});
        event.dataTransfer = {{items: [{{webkitGetAsEntry: () => entry('my')}}], files: []}};
        document.body.dispatchEvent(event);""")
    page.until("document.getElementById('x-name').textContent === 'my' && document.querySelectorAll('#x-step option').length > 1")


def broken(made):
    "Files that are no model: name, bytes, and what the sentence says."
    good = (made / "my.safetensors").read_bytes()
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8:8 + size])
    def rewritten(change):
        changed = json.loads(json.dumps(header))
        change(changed)
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + good[8 + size:]
    def of(key, change):
        def inside(h):
            value = json.loads(h["__metadata__"][f"gptlearn.{key}"])
            change(value)
            h["__metadata__"][f"gptlearn.{key}"] = json.dumps(value)
        return rewritten(inside)
    yield "torn.safetensors", good[:-7], "is torn", "copy it again"
    yield "half.safetensors", good[:200], "is torn", "export or copy it again"
    yield "tiny.safetensors", b"abc", "has 3 bytes", "export or copy it again"
    yield "notes.safetensors", b"Dear diary, today I trained a model. " * 9, "no safetensors file", "export or copy it again"
    yield "photo.png", b"\x89PNG" + bytes(90), "photo.png is no model", "gptlearn export"
    yield "bare.safetensors", rewritten(lambda h: h.pop("__metadata__")), "not how the model is built", "gptlearn export"
    yield "int8.safetensors", rewritten(lambda h: h["norm.weight"].update(dtype="I8")), "norm.weight is of type I8", "float32"
    yield "less.safetensors", rewritten(lambda h: h.pop("norm.weight")), "norm.weight is missing", "export the model again"
    yield "wide.safetensors", of("config", lambda c: c.update(d_model=64)), "where the config wants (", "export the model again"
    yield "newer.safetensors", of("config", lambda c: c.update(activation="mish")), "activation mish", "gptlearn that made it"
    yield "kind.safetensors", of("tokenizer", lambda t: t.update(kind="words")), "none of bpe, char, byte", "tokenizer.json of the run"
    yield "chars.safetensors", of("tokenizer", lambda t: t.pop("chars")), "is damaged", "export the model again"


def test_a_broken_file_gets_one_sentence(page, run_folder, made):
    for name, data, what, remedy in broken(made):
        page.run("scrollTo({top: 1e6, behavior: 'instant'})")
        drop(page, (name, data))
        box = "document.getElementById('x-alert').textContent"
        said = page.until(f"{box}.includes({json.dumps(name.split('.')[0])}) && {box}")
        assert name in said and what in said and remedy in said and said[-1] in ".?" and "\n" not in said, said
        assert page.run("""const at = document.getElementById('x-alert').getBoundingClientRect();
            return at.top >= 0 && at.bottom <= innerHeight && at.height > 10""")  # in view, wherever one dropped it
    type_text(page, "Once there was a proud")  # the model before it is still there
    page.until("document.getElementById('x-alert').hidden")
    drop(page)
    page.until("document.getElementById('x-alert').textContent.includes('What was dropped is no model')")


def test_a_folder_that_is_no_run(page, run_folder, made):
    def copy(name, *without):
        shutil.copytree(run_folder, made / name, ignore=shutil.ignore_patterns("optimizer.safetensors", *without), dirs_exist_ok=True)
        return made / name
    copy("two/a"); copy("two/b")
    for folder, what, remedy in ((made / "two", "There are 2 runs", "drop one of them"), (copy("early", "checkpoints"), "early has no checkpoints", "drop the whole folder"),
                                 (copy("mute", "tokenizer.json"), "mute has no tokenizer.json", "drop the whole folder"),
                                 (copy("plain", "*.yaml", "*.safetensors"), "This folder is no model", "drop the folder of a run")):
        choose(page, "x-folder", folder)
        said = page.until(f"document.getElementById('x-alert').textContent.includes({json.dumps(what)}) && document.getElementById('x-alert').textContent")
        assert remedy in said and said.endswith(".")
    torn = copy("torn")
    for state in torn.rglob("state.json"): state.write_bytes(state.read_bytes()[:50])
    choose(page, "x-folder", torn)
    page.until("document.getElementById('x-alert').textContent.includes('the state.json of step') && document.getElementById('x-alert').textContent.includes('is torn')")


@pytest.mark.parametrize("width", [360, 414, 800])
def test_on_a_phone(page, width):
    page.size(width, 740)
    try:
        page.run("document.getElementById('x-tale').click(); document.querySelector('.x-settings').open = true;")
        page.until("document.getElementById('x-total').textContent.includes('floor is')")
        wide = page.run("""const wide = [...document.querySelectorAll('#explorer *')].filter((e) => !e.closest('[type=file], svg') && e.getBoundingClientRect().right > innerWidth + 1
            && e.checkVisibility()).map((e) => `${e.tagName}#${e.id}.${e.className}`);
            return [document.documentElement.scrollWidth, innerWidth, wide];""")
        assert wide[0] <= wide[1] == width and not wide[2], wide
        small = page.run("""return [...document.querySelectorAll('#explorer button, #explorer select, #explorer .x-button')].filter((e) => e.checkVisibility())
            .filter((e) => e.getBoundingClientRect().height < 24).map((e) => e.outerHTML.slice(0, 80))""")
        assert not small, small  # large enough for a finger (WCAG 2.2, 2.5.8)
    finally: page.send("Emulation.clearDeviceMetricsOverride")


def test_it_is_said_to_those_who_do_not_see(page):
    page.run("document.getElementById('x-tale').click(); document.querySelector('.x-settings').open = true;")
    page.until("document.querySelector('.x-token:last-child').textContent === '⟨end⟩'")
    mute = page.run("""return [...document.querySelectorAll('#explorer button, #explorer input, #explorer select, #explorer textarea, #explorer [role]')]
        .filter((e) => e.checkVisibility() && !(e.ariaLabel || e.innerText?.trim() || e.labels?.length || ['alert', 'status'].includes(e.role))).map((e) => e.outerHTML.slice(0, 90))""")
    assert not mute, mute
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    options = [n["name"]["value"] for n in tree if n.get("role", {}).get("value") == "option" and not n.get("ignored")]
    assert any(re.search(r", [\d.]+ bits, floor [\d.]+$", name) for name in options), options[:5]
    assert page.run("return document.querySelectorAll('.x-token[tabindex=\"0\"]').length === 1 && document.querySelectorAll('#x-heads [tabindex=\"0\"]').length === 1")


CONTRAST = """const paint = (...colours) => {  // what one sees when they lie one upon the other
    const c = new OffscreenCanvas(1, 1).getContext('2d');
    for (const colour of colours) { c.fillStyle = colour; c.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...c.getImageData(0, 0, 1, 1).data].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const page = getComputedStyle(document.body).backgroundColor;
return [...document.querySelectorAll('.x-token, .x-swatch, .x-main, #x-lens td, #x-guesses .x-share')].map((e) => {
    const style = getComputedStyle(e), letters = paint(page, style.backgroundColor, style.color), ground = paint(page, style.backgroundColor);
    return (Math.max(letters, ground) + 0.05) / (Math.min(letters, ground) + 0.05);
})"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_letters_stand_out(page, theme):
    "On every colour that the page lays behind them, in both themes: 4.5 to 1 (WCAG 1.4.3)."
    scss = (ROOT / "nbs" / f"theme-{theme}.scss").read_text()
    ground, letters = (re.search(rf"\$body-{key}: (#\w+)", scss)[1] for key in ("bg", "color"))
    page.run(f"""document.body.className = 'quarto-{theme}'; document.body.style.cssText = 'background: {ground}; color: {letters}';
        for (const token of document.querySelectorAll('.x-token')) token.style.setProperty('--s', 1);
        for (const cell of document.querySelectorAll('#x-lens td')) cell.style.setProperty('--p', 1);""")
    ratios = page.run(CONTRAST)
    assert len(ratios) > 20 and min(ratios) >= 4.5, sorted(ratios)[:5]


def test_the_modules_can_be_read():
    "Short ones, all named on the page, and some 1,300 lines together, as chapter 17 says; nothing but each other is imported."
    modules = sorted((ROOT / "nbs" / "explorer").glob("*.js"))
    texts = {path.name: path.read_text(encoding="utf-8") for path in modules}
    page = (ROOT / "nbs" / "explorer.qmd").read_text(encoding="utf-8")
    assert len(modules) == 10 and "Ten modules" in page and all(f"](explorer/{name})" in page for name in texts)
    lines = {name: text.count("\n") for name, text in texts.items()}
    assert max(lines.values()) <= 270 and 1200 < sum(lines.values()) < 1400, lines
    for name, text in texts.items():
        assert all(found in {f"./{other}" for other in texts} for found in re.findall(r'^import .* from "(.*)";$', text, re.M)), name
        assert text.startswith("// ") and max(map(len, text.split("\n"))) <= 140, name
