"""The server of chapter 18 among people who come together, hang up, send rubbish, have no key, or want it to end."""
import asyncio
import base64
import json
import signal
import subprocess
import sys
import threading

import pytest

pytest.importorskip("fastapi")

from serving import ROOT, begin, body_of, exchange, head_of, make_model, running, streamed, wait_until

from gptlearn.interop import load_pretrained

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory): return make_model(tmp_path_factory.mktemp("serve") / "long", context_length=1024)


@pytest.fixture(scope="module")
def server(run):
    with running(run, "--max_batch", 4, "--queue", 4) as server: yield server


@pytest.fixture(scope="module")
def model(run): return load_pretrained(run)


@pytest.fixture(scope="module")
def endless(model):
    "A text that does not end before its 1,000 tokens, a second or more of work."
    return dict(prompt="Once", max_tokens=1000, logit_bias={str(model[1].eot): -100})


def refused(answer, *statuses):
    status, headers, body = answer
    assert status in statuses, (status, body)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) > 10
    return error["message"], headers


# a queue with an end

def test_more_than_it_takes_is_refused_with_429(server, endless):
    async def crowd():
        reader, writer = await begin(server, "POST", "/v1/completions", {**endless, "n": 8, "stream": True})
        assert (await head_of(reader))[0] == 200
        await reader.readline()  # all eight are in: four slots, four waiting
        answers = [await exchange(server, "POST", "/v1/completions", {"prompt": "x"}) for _ in range(3)]
        well = await exchange(server, "GET", "/healthz")
        writer.transport.abort()
        return answers, well
    answers, well = asyncio.run(crowd())
    for answer in answers:
        message, headers = refused(answer, 429)
        assert headers["retry-after"] == "1"
    assert well[0] == 200
    wait_until(server.idle)
    assert server.post("/v1/completions", {"prompt": "x"})[0] == 200
    refused(server.post("/v1/completions", {"prompt": "x", "n": 9}), 400)  # never, so not 429
    refused(server.post("/v1/completions", {"prompt": ["x"] * 9}), 400)


def test_a_reader_who_leaves_frees_the_slot(server, endless):
    hung_up, written = server.metric("hung_up_total"), server.metric("tokens_total")
    async def leave():
        streams = [streamed(server, endless, leave_after=2) for _ in range(4)]
        assert {r[3] for r in await asyncio.gather(*streams)} == {"left"}
        waiting = []
        for _ in range(8):  # four in slots, four in the queue; none has been sent a byte
            waiting.append(await begin(server, "POST", "/v1/completions", endless))
            await waiting[-1][1].drain()
        await asyncio.to_thread(wait_until, lambda: server.metric("load") >= 5)
        for _, writer in waiting: writer.transport.abort()
    asyncio.run(leave())
    wait_until(server.idle)
    assert server.metric("hung_up_total") >= hung_up + 5
    assert server.metric("tokens_total") - written < 12 * 1000 * 0.9  # most of it was never written


def test_a_reader_who_does_not_read_keeps_no_slot(server, endless):
    async def stare():
        reader, writer = await begin(server, "POST", "/v1/completions", {**endless, "n": 4, "stream": True, "logprobs": 20})
        writer.transport.pause_reading()
        await asyncio.to_thread(wait_until, lambda: server.metric("load") > 0)
        await asyncio.to_thread(wait_until, server.idle)  # all is written, though nothing was read
        writer.transport.abort()
    asyncio.run(stare())


# the key

def test_nothing_but_healthz_without_the_key(run):
    with running(run, env={"GPTLEARN_API_KEY": "sesame é"}) as server:
        paths = ["/", "/static/app.js", "/metrics", "/openapi.json", "/docs", "/v1/models", "/v1/models/long", "/nowhere", "/v1/completions",
                 "/v1/chat/completions", "/healthz/", "//healthz", "/v1/../healthz", "/%68ealthz/x"]
        def basic(text): return "Basic " + base64.b64encode(text.encode()).decode()
        key = "sesame é".encode().decode("latin-1")  # as bytes on the wire
        wrong = [None, "", "Bearer", "Bearer x", "Bearer sesame", basic("sesame é:"), basic("u:x"), "Basic %%%", "Basic w6k", "Basic /w==", key]
        assert server.get("/healthz")[0] == 200
        for path in paths:
            for given in wrong:
                headers = {} if given is None else {"authorization": given}
                message, found = refused(server.get(path, **headers), 401)
                assert found["www-authenticate"].startswith("Bearer" if path.startswith("/v1/") else "Basic")
            refused(server.post(path, {"prompt": "x"}), 401)
        assert server.post("/v1/completions", {"prompt": "x"}, authorization="Bearer " + "sesame é")[0] in (200, 401)
        assert server.get("/v1/models", authorization=basic("anybody:sesame é"))[0] == 200
        assert server.post("/v1/completions", {"prompt": "x"}, authorization=basic(":sesame é"))[0] == 200
        assert "sesame" not in server.log.read_text()
    with running(run, "--api_key", "a:b") as server:
        for given in ("Bearer a:b", "bearer  a:b", basic("me:a:b")): assert server.get("/v1/models", authorization=given)[0] == 200


# rubbish

BODIES = {
    "no json": b"Once", "empty": b"", "torn": b'{"prompt": "On', "not utf-8": b'{"prompt": "\xff\xfe"}', "utf-16": '{"prompt": "x"}'.encode("utf-16"),
    "nan": b'{"temperature": NaN}', "nan, ignored": b'{"metadata": {"x": NaN}}', "infinity": b'{"temperature": Infinity}', "1e999": b'{"temperature": 1e999}', "-1e999": b'{"presence_penalty": -1e999}',
    "deep": b"[" * 200_000, "deep objects": b'{"a":' * 100_000, "digits": b'{"seed": ' + b"9" * 100_000 + b"}", "list": b"[]", "null": b"null",
    "number": b"1", "two": b"{} {}", "key twice, wrong": b'{"n": 1, "n": "x"}', "surrogate": b'{"prompt": "\\ud800"}',
    "surrogate field": b'{"\\ud800": 1}', "surrogate model": b'{"model": "\\ud800"}', "surrogate stop": b'{"stop": "\\ud800", "n": 0}',
}
FIELDS = [
    {"prompt": 1}, {"prompt": {}}, {"prompt": [1.5]}, {"prompt": [[]]}, {"prompt": []}, {"prompt": [True]}, {"prompt": ["x", 1]}, {"prompt": [[1], "x"]},
    {"prompt": [10**9]}, {"prompt": [-1]}, {"prompt": [10**30]}, {"prompt": [0] * 1024}, {"prompt": "word " * 5000}, {"prompt": "x" * 900_000},
    {"max_tokens": -1}, {"max_tokens": 10**30}, {"max_tokens": 1024}, {"max_tokens": "5"}, {"max_tokens": 1.5}, {"max_tokens": True},
    {"temperature": "hot"}, {"temperature": -0.1}, {"temperature": 1e-9}, {"temperature": 1e300}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": 0}, {"min_p": 2},
    {"repetition_penalty": 0}, {"presence_penalty": 3}, {"n": 0}, {"n": 10**6}, {"seed": 2**64}, {"seed": 0.5}, {"stop": 1}, {"stop": ""}, {"stop": [""]},
    {"stop": ["a"] * 65}, {"stop": "a" * 65}, {"logprobs": 21}, {"logprobs": True}, {"logit_bias": {"x": 1}}, {"logit_bias": {"99999": 1}},
    {"logit_bias": {"1": 101}}, {"logit_bias": {"\u0661": 1}}, {"logit_bias": []}, {"stream": 1}, {"stream_options": {"x": 1}}, {"model": 1}, {"tools": []}, {"echo": "x"},
]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_rubbish_gets_a_reason(server, path):
    async def all_of():
        for name, body in BODIES.items():
            answer = await exchange(server, "POST", path, body, JSON)
            refused(answer, 404 if name == "surrogate model" and path == "/v1/completions" else 400)
        for fields in FIELDS:
            if path.endswith("chat/completions"):
                if not {"prompt", "echo", "logprobs"}.isdisjoint(fields): continue
                fields = {"messages": [{"role": "user", "content": "x"}], **fields}
            refused(await exchange(server, "POST", path, fields), 400, 404)
        for messages in ([], {}, [1], [{}], [{"role": "user"}], [{"role": "robot", "content": "x"}], [{"role": "user", "content": 1}],
                         [{"role": "user", "content": [{"type": "image_url"}]}], [{"role": "system", "content": "x"}], [{"role": "user", "content": "\ud800"}]):
            refused(await exchange(server, "POST", "/v1/chat/completions", {"messages": messages}), 400)
    asyncio.run(all_of())
    assert server.post("/v1/completions", {"prompt": "x"})[0] == 200 and server.idle() and server.metric("failures_total") == 0


def test_http_that_is_none(server):
    async def all_of():
        big = await exchange(server, "POST", "/v1/completions", b"x" * 10 * 2**20, JSON)
        refused(big, 413)
        chunked = {**JSON, "transfer-encoding": "chunked"}
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(40): writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")  # its length is not said
        status, headers = await head_of(reader)
        refused((status, headers, await body_of(reader, headers)), 413)
        writer.close()
        for headers in ({"x": "a" * 100_000}, {f"x-{i}": "a" * 100 for i in range(2000)}):
            refused(await exchange(server, "GET", "/healthz", headers=headers), 400, 431)
        for raw in (b"rubbish\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
                    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9" + b"9" * 30 + b"\r\n\r\n"):
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(raw)
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 60)
            assert not answer or answer.split()[1][:1] == b"4", (raw, answer)
            writer.close()
        refused(await exchange(server, "POST", "/v1/completions", b"prompt=x", {"content-type": "application/x-www-form-urlencoded"}), 415)
        refused(await exchange(server, "POST", "/v1/completions", b"{}"), 415)
        refused(await exchange(server, "GET", "/v1/completions"), 405)
        refused(await exchange(server, "DELETE", "/v1/models"), 405)
        refused(await exchange(server, "GET", "/v1/models/%00%ff"), 404)
        refused(await exchange(server, "GET", "/docs"), 404)
    asyncio.run(all_of())
    assert server.post("/v1/completions", {"prompt": "x"})[0] == 200 and server.idle()
    assert "Traceback" not in server.log.read_text()


def test_what_prometheus_reads(server):
    parser = pytest.importorskip("prometheus_client.parser")
    server.post("/v1/completions", {"prompt": "x", "max_tokens": 3})
    families = {f.name: f for f in parser.text_string_to_metric_families(server.get("/metrics")[2].decode())}
    assert families["gptlearn_slots"].samples[0].value == 4 and families["gptlearn_tokens"].type == "counter"
    h = families["gptlearn_first_token_seconds"]
    buckets = [s.value for s in h.samples if s.name.endswith("_bucket")]
    assert h.type == "histogram" and buckets == sorted(buckets) and buckets[-1] == [s.value for s in h.samples if s.name.endswith("_count")][0] > 0


# slow ones, and a model that breaks: the server in a thread, with short limits

@pytest.fixture
def inside(model):
    import uvicorn
    from gptlearn import serve
    class Quick(serve._Protocol): head_timeout = 0.5
    app = serve.create_app(*model, max_batch=2, queue=2, body_timeout=0.5)
    sock, server = serve.listen(port=0), serve.make_server(app)
    server.config.http = Quick
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[sock]), daemon=True)
    thread.start()
    from types import SimpleNamespace
    yield SimpleNamespace(host="127.0.0.1", port=sock.getsockname()[1], app=app)
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def test_slow_ones_are_not_waited_for(inside):
    async def slow():
        reader, writer = await begin(inside, "POST", "/v1/completions", b"", {**JSON, "content-length": 100})
        writer.write(b"{")
        status, headers = await asyncio.wait_for(head_of(reader), 60)
        refused((status, headers, await body_of(reader, headers)), 408)
        assert await asyncio.wait_for(reader.read(), 60) == b""  # closed
        for lines in (b"", b"GET /healthz HTTP/1.1\r\nhost:"):
            reader, writer = await asyncio.open_connection(inside.host, inside.port)
            writer.write(lines)
            answer = await asyncio.wait_for(reader.read(), 60)
            assert answer.startswith(b"HTTP/1.1 408 ") and b'"error"' in answer
        assert (await exchange(inside, "GET", "/healthz"))[0] == 200
    asyncio.run(slow())


def test_a_model_that_breaks_is_told_and_the_next_one_served(inside, model):
    import torch
    weight = model[0].blocks[0].attention.qkv.weight
    kept = weight.detach().clone()
    async def ask(**more): return await exchange(inside, "POST", "/v1/completions", {"prompt": "Once", "max_tokens": 3, **more})
    try:
        with torch.no_grad(): weight.fill_(torch.nan)
        for answer in asyncio.run(gathered(ask(), ask(stream=True))): assert "nan" in refused(answer, 500)[0]
    finally:
        with torch.no_grad(): weight.copy_(kept)
    assert asyncio.run(ask())[0] == 200
    assert inside.app.state.service.engine.failures > 0
    wait_until(lambda: not inside.app.state.service.inboxes)


async def gathered(*them): return await asyncio.gather(*them)


def test_time_limits(run, endless):
    with running(run, "--max_batch", 1, "--queue", 2, "--timeout", 0.5) as server:
        async def two():
            first = asyncio.create_task(exchange(server, "POST", "/v1/completions", endless))
            await asyncio.to_thread(wait_until, lambda: server.metric("load") == 1)
            return await asyncio.gather(first, exchange(server, "POST", "/v1/completions", {**endless, "max_tokens": 999}))
        (status, _, body), second = asyncio.run(two())
        choice = json.loads(body)["choices"][0]
        assert status == 200 and choice["finish_reason"] == "length" and json.loads(body)["usage"]["completion_tokens"] < 1000
        assert second[0] in (200, 503)  # it waited for most of its time
        if second[0] == 503: refused(second, 503)
        wait_until(server.idle)


# the end

def test_a_signal_lets_the_running_finish(run, endless):
    with running(run, "--max_batch", 1, "--queue", 4) as server:
        async def leave():
            reader, writer = await begin(server, "POST", "/v1/completions", {**endless, "stream": True})
            assert (await head_of(reader))[0] == 200
            await reader.readline()
            waiting = asyncio.create_task(exchange(server, "POST", "/v1/completions", {"prompt": "x"}))
            await asyncio.to_thread(wait_until, lambda: server.metric("load") == 2)
            server.process.send_signal(signal.SIGTERM)
            refused(await asyncio.wait_for(waiting, 60), 503)      # it had no slot yet
            assert (await exchange(server, "GET", "/healthz"))[0] == 503
            message, headers = refused(await exchange(server, "POST", "/v1/completions", {"prompt": "x"}), 503)
            assert headers["retry-after"]
            return await asyncio.wait_for(reader.read(), 120)
        text = asyncio.run(leave())
        assert b"data: [DONE]" in text and text.count(b'"finish_reason": "length"') == 1
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.log.read_text()


def test_a_second_signal_ends_at_once(run, endless):
    with running(run) as server:
        async def twice():
            reader, writer = await begin(server, "POST", "/v1/completions", {**endless, "n": 30, "stream": True})
            assert (await head_of(reader))[0] == 200
            server.process.send_signal(signal.SIGINT)
            await asyncio.to_thread(wait_until, lambda: server.get("/healthz")[0] == 503)
            server.process.send_signal(signal.SIGINT)
            text = await reader.read()
            assert text.count(b'"finish_reason": "length"') < 30
        asyncio.run(twice())
        server.process.wait(60)


# the command

def command(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_the_command_says_what_is_wrong(server, run):
    wrong = {"choose another --port": ["--port", server.port], "from 0 to 65535": ["--port", 99999], "--host": ["--host", "nowhere.invalid"],
             "max_batch": ["--max_batch", 0], "timeout": ["--timeout", 0], "{content}": ["--chat_template", "no place"],
             "--threads": ["--threads", 0], "key is empty": ["--api_key", " "], "queue": ["--queue", -1]}
    lines = [["serve", "--run", str(run), "--port", "0", *map(str, options)] for options in wrong.values()]
    got = command(f"""
from gptlearn.cli import main
for argv in {lines!r}:
    try: main(argv)
    except SystemExit as end: assert end.code == 2""")
    said = got.stderr.splitlines()
    assert got.returncode == 0 and len(said) == len(wrong), got.stderr
    for line, word in zip(said, wrong): assert line.startswith("gptlearn: ") and word in line


def test_without_the_extra_the_command_says_what_to_install(run):
    got = command(f"import sys; sys.modules['fastapi'] = None\nfrom gptlearn.cli import main\nmain(['serve', '--run', {str(run)!r}])")
    assert got.returncode == 2 and "pip install 'gptlearn[serve]'" in got.stderr and "Traceback" not in got.stderr, got.stderr


def test_a_template_lets_a_plain_model_chat(run, tmp_path):
    (tmp_path / "template.txt").write_text("{role}> {content}\n")
    with running(run, "--chat_template", tmp_path / "template.txt", "--model_name", "parrot") as server:
        status, _, body = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 5, "temperature": 0})
        a = json.loads(body)
        status, _, body = server.post("/v1/completions", {"prompt": "user> Once\nassistant> ", "max_tokens": 5, "temperature": 0, "stop": "\n"})
        b = json.loads(body)
        assert a["model"] == "parrot" and a["choices"][0]["message"]["content"] == b["choices"][0]["text"]
