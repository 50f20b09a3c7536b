"""A server in a process of its own, and a plain client that can do what clients should not."""
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


def make_model(folder, context_length=128):
    "A small model with random weights, which can be asked to chat, in the form that export writes."
    import torch
    from gptlearn.bpe import BPE
    from gptlearn.interop import save_pretrained
    from gptlearn.model import GPT, GPTConfig
    from gptlearn.tales import tales
    tokenizer = BPE.train([t.text for t in tales(200, seed=0)], 400,
                          special_tokens=("<|endoftext|>", "<|prompt|>", "<|response|>"))
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, context_length=context_length, n_layer=2, n_head=4, d_model=64,
                          position="rope", norm="rmsnorm", activation="swiglu", bias=False, tie_weights=False, init_std=0.08))
    save_pretrained(model, folder, tokenizer)
    return folder


class Running:
    "A server that answers."
    def __init__(self, process, url, log):
        self.process, self.url, self.log = process, url, log
        self.host, port = re.fullmatch(r"http://([\d.]+):(\d+)", url).groups()
        self.port = int(port)

    def get(self, path, **headers):
        return asyncio.run(exchange(self, "GET", path, headers=headers))

    def post(self, path, body, **headers):
        return asyncio.run(exchange(self, "POST", path, body, headers))

    def metric(self, name, key="none"):
        "The sum of a metric over its labels."
        _, _, text = self.get("/metrics", authorization=f"Bearer {key}")
        found = re.findall(rf"^gptlearn_{name}(?:{{.*}})? (\S+)$", text.decode(), re.M)
        return sum(map(float, found))

    def idle(self, key="none"):
        "Is no slot taken, and does nobody wait?"
        return self.metric("load", key) == 0 and self.metric("slots_used", key) == 0

    def memory(self):
        "MiB of this process that lie in memory, or None where the system does not tell."
        try: return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) / 1024
        except OSError: return None


def wait_until(condition, seconds=120, every=0.05):
    "Wait for a condition, not for a time."
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"it did not come within {seconds} s"
        time.sleep(every)
    return found


@contextmanager
def running(run, *options, cores=None, env={}):
    "`gptlearn serve` on a free port; at the end it is ended."
    log = Path(run).parent / f"serve-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "gptlearn.cli", "serve", "--run", str(run), "--port", "0", *map(str, options)]
    if cores: command = ["taskset", "-c", cores, *command]
    with open(log, "w") as out:
        process = subprocess.Popen(command, cwd=log.parent, stdout=out, stderr=out, start_new_session=True,
                                   env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env})
    try:
        def address():
            assert process.poll() is None, log.read_text()
            return re.search(r"serving .* at (http://\S+)", log.read_text())
        yield Running(process, wait_until(address)[1], log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def begin(server, method, path, body=b"", headers={}):
    "Send a request; returns the connection's two ends."
    if isinstance(body, (dict, list)): body, headers = json.dumps(body).encode(), {"content-type": "application/json", **headers}
    reader, writer = await asyncio.open_connection(server.host, server.port, limit=2**24)
    head = {"host": f"{server.host}:{server.port}", "connection": "close", "content-length": len(body), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in head.items())
    writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
    return reader, writer


async def head_of(reader):
    "Status and headers of an answer; (None, {}) where the connection was closed without one."
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").strip().split("\r\n")
    return int(first.split()[1]), {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}


async def body_of(reader, headers):
    if "content-length" in headers: return await reader.readexactly(int(headers["content-length"]))
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    return b"".join(parts)


async def exchange(server, method, path, body=b"", headers={}):
    "One request and its answer: status, headers, body."
    reader, writer = await begin(server, method, path, body, headers)
    try:
        status, found = await head_of(reader)
        return status, found, await body_of(reader, found)
    finally: writer.close()


async def streamed(server, fields, path="/v1/completions", leave_after=None):
    "Read a stream: (status, seconds to the first token, tokens, finish_reason); leaves after so many events."
    start = time.perf_counter()
    reader, writer = await begin(server, "POST", path, {**fields, "stream": True, "stream_options": {"include_usage": True}})
    try:
        status, headers = await head_of(reader)
        if status != 200: return status, None, 0, None
        first, tokens, reason, events, done = None, 0, None, 0, False
        while line := await reader.readline():
            if not line.startswith(b"data: "): continue
            first = first or time.perf_counter() - start
            events += 1
            if leave_after and events >= leave_after:
                writer.transport.abort()
                return status, first, 0, "left"
            if line.startswith(b"data: [DONE]"):
                done = True
                break
            event = json.loads(line[6:])
            assert "error" not in event, event
            if event["choices"]: reason = event["choices"][0]["finish_reason"] or reason
            else: tokens = event["usage"]["completion_tokens"]
        assert done and reason in ("stop", "length"), (done, reason)
        return status, first, tokens, reason
    finally: writer.close()
