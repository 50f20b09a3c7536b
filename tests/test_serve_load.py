"""The server of chapter 18 under load. Small here; GPTLEARN_SERVE_FULL=1 runs it in full (some 15 minutes), with -s to see the figures.

GPTLEARN_SERVE_RUN is the run that is served (default: a small model with random weights), GPTLEARN_SERVE_CORES the
cores that it may use, as `taskset -c` takes them."""
import asyncio
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

pytest.importorskip("fastapi")

from serving import ROOT, exchange, make_model, running, streamed, wait_until

FULL = bool(os.environ.get("GPTLEARN_SERVE_FULL"))
SLOTS, QUEUE = 32, 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    given = os.environ.get("GPTLEARN_SERVE_RUN")
    if not given: return make_model(tmp_path_factory.mktemp("serve") / "small")
    link = tmp_path_factory.mktemp("serve") / Path(given).name
    link.symlink_to(Path(given).resolve())
    return link


@pytest.fixture(scope="module")
def server(run):
    with running(run, "--max_batch", SLOTS, "--queue", QUEUE, "--chat_template", "{role}: {content}\n",
                 cores=os.environ.get("GPTLEARN_SERVE_CORES")) as server: yield server


async def crowd(server, n, seconds):
    "n readers, each of whom asks again and again: tokens a second, and seconds to the first token of each answer."
    end, answers = time.perf_counter() + seconds, []
    async def reader(i):
        k = 0
        while time.perf_counter() < end:
            answer = await streamed(server, dict(prompt="Once there was", max_tokens=100, seed=1000 * i + k))
            answers.append(answer)
            if answer[0] == 429: await asyncio.sleep(0.2)
            k += 1
    start = time.perf_counter()
    await asyncio.gather(*map(reader, range(n)))
    seconds = time.perf_counter() - start
    assert {a[0] for a in answers} <= ({200, 429} if n > SLOTS + QUEUE else {200})
    good = [a for a in answers if a[0] == 200]
    print(f"\n{n} readers for {seconds:.0f} s: {len(good)} answers, {len(answers) - len(good)} refused with 429, "
          f"{sum(a[2] for a in good) / seconds:,.0f} tokens/s, median time to first token {1000 * median(a[1] for a in good):.0f} ms")
    return sum(a[2] for a in good) / seconds


def test_many_readers_at_once(server):
    "32 stream together: no error, and far more tokens a second than one gets."
    asyncio.run(crowd(server, 1, 1))
    one = asyncio.run(crowd(server, 1, 20 if FULL else 2))
    many = asyncio.run(crowd(server, 32, 60 if FULL else 3))
    print(f"that is {many / one:.1f} times as many")
    assert many > (4 if FULL else 1.5) * one  # in full on a quiet machine; a busy one must not turn this red
    asyncio.run(crowd(server, 80, 20 if FULL else 2))  # more than it takes
    wait_until(server.idle)


def test_together_as_alone(server, run):
    "Whatever comes and goes beside it, a text is the same."
    def fields(i):
        dice = random.Random(i)
        rules = dice.choice([dict(temperature=0), dict(temperature=1.0), dict(temperature=0.8, top_k=20, top_p=0.9)])
        prompt = dice.choice(["", "Once there was a fox", "One Monday", "Mira lost " * dice.randrange(1, 8)])
        return dict(prompt=prompt, max_tokens=dice.randrange(1, 60), seed=i, logprobs=dice.choice([None, 2]), **rules)
    async def ask(i, wait):
        await asyncio.sleep(wait)
        status, _, body = await exchange(server, "POST", "/v1/completions", fields(i))
        assert status == 200, body
        import json
        return json.loads(body)["choices"][0]["text"]
    n = 400 if FULL else 40
    async def alone(): return [await ask(i, 0) for i in range(n)]
    async def together():
        texts = []
        for start in range(0, n, 40): texts += await asyncio.gather(*(ask(i, random.random() / 2) for i in range(start, start + 40)))
        return texts
    assert asyncio.run(alone()) == asyncio.run(together())
    import torch
    from gptlearn.generate import complete
    torch.set_num_threads(1)
    model, tokenizer = open_model(run)
    for i in range(0, n, 4):
        f = fields(i)
        expected = complete(model, tokenizer, f.pop("prompt"), f.pop("max_tokens"), **{k: v for k, v in f.items() if k != "logprobs"})
        assert asyncio.run(ask(i, 0)) == expected


def open_model(run):
    from gptlearn.interop import load_pretrained
    from gptlearn.trainer import load_run
    return load_pretrained(run) if (run / "config.json").is_file() else load_run(run, "best")


def test_readers_who_hang_up_leave_nothing(server):
    async def leave(n):
        results = []
        for start in range(0, n, 40):
            results += await asyncio.gather(*(streamed(server, dict(prompt="One", max_tokens=100), leave_after=1 + i % 5) for i in range(start, min(n, start + 40))))
        return results
    before, n = server.metric("hung_up_total"), 500 if FULL else 80
    results = asyncio.run(leave(n))
    wait_until(server.idle)
    left = sum(r[3] == "left" for r in results)
    print(f"\n{n} readers: {left} left midway; slots taken afterwards: {server.metric('slots_used'):.0f}")
    assert left > n / 2 and server.metric("hung_up_total") > before
    assert server.post("/v1/completions", {"prompt": "x"})[0] == 200


def test_memory_stays(server):
    "Answers leave nothing behind."
    async def ask(n):
        for start in range(0, n, 20):
            await asyncio.gather(*(streamed(server, dict(prompt="One " * (1 + i % 9), max_tokens=30, logprobs=5, echo=True, stop=["zebra"])) for i in range(20)))
    if server.memory() is None: pytest.skip("this system does not tell how much memory a process has")
    asyncio.run(ask(400 if FULL else 100))
    first, n = server.memory(), 2000 if FULL else 200
    asyncio.run(ask(n))
    last = server.memory()
    print(f"\n{n:,} requests: {first:.1f} MiB before, {last:.1f} MiB after")
    assert last - first < 8  # a request that left its answer behind would cost 40 KB: 80 MB in full, 8 in small


def test_fuzzed(server):
    "What a machine makes up from the server's own description: no 5xx, nothing that hangs."
    pytest.importorskip("schemathesis")
    n = "3600" if FULL else "25"
    phases = "coverage,fuzzing" if FULL else "fuzzing"
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection"
    done = subprocess.run([str(Path(sys.executable).with_name("schemathesis")), "run", server.url + "/openapi.json", "--max-examples", n, "--phases", phases,
                           "--checks", checks, "--request-timeout", "60", "--no-color", "--seed", "1", "--continue-on-failure",
                           "--suppress-health-check", "all", "--workers", "3" if FULL else "1"],
                          capture_output=True, text=True, cwd=server.log.parent, timeout=5400 if FULL else 600, env={**os.environ, "NO_PROXY": "*"})
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    statuses = dict(re.findall(r'^gptlearn_requests_total{(path="[^"]*",status="\d+")} (\d+)$', server.get("/metrics")[2].decode(), re.M))
    print("\n" + "\n".join(line for line in done.stdout.splitlines() if "generated" in line), statuses)
    assert not [k for k in statuses if 'status="5' in k] and server.metric("failures_total") == 0
    wait_until(server.idle)
    assert server.post("/v1/completions", {"prompt": "x"})[0] == 200
