"""The server of chapter 18, asked by OpenAI's own client."""
import pytest

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

from serving import make_model, running, wait_until

from gptlearn.generate import complete
from gptlearn.interop import load_pretrained


@pytest.fixture(scope="module")
def run(tmp_path_factory): return make_model(tmp_path_factory.mktemp("serve") / "small")


@pytest.fixture(scope="module")
def server(run):
    with running(run, "--max_batch", 4, "--queue", 8, env={"GPTLEARN_API_KEY": "sesame"}) as server: yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="sesame", max_retries=0,
                       http_client=openai.DefaultHttpxClient(trust_env=False)) as client: yield client


@pytest.fixture(scope="module")
def model(run):
    import torch
    torch.set_num_threads(1)
    return load_pretrained(run)


def test_models(client):
    card, = client.models.list().data
    assert card.id == "small" and card.object == "model" and card.context_length == 128 and card.chat is True
    assert client.models.retrieve("small") == card
    with pytest.raises(openai.NotFoundError): client.models.retrieve("gpt-5")


def test_completion_is_what_generate_writes(client, model):
    for prompt in ("Once there was", "", "é — 木"):
        got = client.completions.create(model="small", prompt=prompt, max_tokens=30, temperature=0)
        assert got.object == "text_completion" and got.id.startswith("cmpl-")
        assert got.choices[0].text == complete(*model, prompt, 30, temperature=0)
        n = len(model[1].encode(prompt)) + 1  # the end of the text before
        assert got.usage.prompt_tokens == n and got.usage.total_tokens == n + got.usage.completion_tokens
        assert got.usage.completion_tokens == 30 or got.choices[0].finish_reason == "stop"


def test_seeds_and_several(client, model):
    rules = dict(temperature=0.9, top_p=0.8)
    def ask(**more): return client.completions.create(model="small", prompt="One", max_tokens=20, **rules, **more)
    one, again, other = ask(seed=1), ask(seed=1), ask(seed=2)
    assert one.choices[0].text == again.choices[0].text == complete(*model, "One", 20, seed=1, **rules)
    assert one.choices[0].text != other.choices[0].text
    assert ask().choices[0].text != ask().choices[0].text  # without a seed: luck
    three = ask(seed=1, n=3)
    assert [c.text for c in three.choices] == complete(*model, ["One"] * 3, 20, seed=1, **rules)
    assert [c.index for c in three.choices] == [0, 1, 2]
    assert three.usage.prompt_tokens == one.usage.prompt_tokens  # it was asked once
    own = dict(top_k=5, min_p=0.1, repetition_penalty=1.3)
    got = client.completions.create(model="small", prompt="One", max_tokens=20, seed=4, extra_body=own)
    assert got.choices[0].text == complete(*model, "One", 20, seed=4, **own)


def test_prompts_of_all_kinds(client, model):
    ids = [model[1].eot, *model[1].encode("Once there")]
    text, numbers = (client.completions.create(model="small", prompt=p, max_tokens=8, temperature=0) for p in ("Once there", ids))
    assert text.choices[0].text == numbers.choices[0].text and text.usage == numbers.usage
    two = client.completions.create(model="small", prompt=["Once there", "Mira"], max_tokens=8, temperature=0)
    assert [c.text for c in two.choices] == complete(*model, ["Once there", "Mira"], 8, temperature=0)
    lists = client.completions.create(model="small", prompt=[ids, ids[:1]], max_tokens=8, temperature=0)
    assert lists.choices[0].text == text.choices[0].text


def test_stream(client):
    asked = dict(model="small", prompt="Once", max_tokens=40, seed=3)
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    *said, last = chunks
    assert "".join(c.choices[0].text for c in said) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in said][-1] == whole.choices[0].finish_reason
    assert all(c.choices[0].finish_reason is None and c.usage is None for c in said[:-1])
    assert last.choices == [] and last.usage == whole.usage and len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in client.completions.create(**asked, stream=True))
    both = {0: "", 1: ""}
    for c in client.completions.create(**asked, n=2, stream=True): both[c.choices[0].index] += c.choices[0].text
    assert both[0] == whole.choices[0].text != both[1]


def test_stop(client, model):
    asked = dict(model="small", prompt="Once", max_tokens=60, seed=5)
    text = client.completions.create(**asked).choices[0].text
    mark = text[10:13]
    for stop in (mark, ["nowhere in it", mark]):
        cut = client.completions.create(**asked, stop=stop)
        assert cut.choices[0].text == text[:text.index(mark)] and cut.choices[0].finish_reason == "stop"
        assert cut.usage.completion_tokens < 60
        streamed = client.completions.create(**asked, stop=stop, stream=True)
        assert "".join(c.choices[0].text for c in streamed) == cut.choices[0].text


def test_the_end_of_the_text(client, model):
    ended = client.completions.create(model="small", prompt="Once", max_tokens=9, logit_bias={str(model[1].eot): 100}, logprobs=1)
    assert ended.choices[0].text == "" and ended.choices[0].finish_reason == "stop" and ended.usage.completion_tokens == 1
    told = ended.choices[0].logprobs  # the end is no text, and a token all the same
    assert told.tokens == ["<|endoftext|>"] and told.text_offset == [0] and len(told.token_logprobs) == 1
    echo = client.completions.create(model="small", prompt="Once", max_tokens=1, echo=True, logit_bias={str(model[1].eot): 100}, logprobs=0).choices[0]
    assert echo.text == "Once" and echo.logprobs.tokens[-1] == "<|endoftext|>" and "".join(echo.logprobs.tokens[:-1]) == "Once"
    long = client.completions.create(model="small", prompt="Once", max_tokens=9, logit_bias={str(model[1].eot): -100})
    assert long.choices[0].finish_reason == "length" and long.usage.completion_tokens == 9
    usual = client.completions.create(model="small", prompt="Once", logit_bias={str(model[1].eot): -100})
    assert usual.usage.completion_tokens == 16


def test_logprobs(client, model):
    import torch
    gpt, tok = model
    prompt, asked = [tok.eot, *tok.encode("Once there")], dict(model="small", max_tokens=12, temperature=0.7, seed=1)
    got = client.completions.create(prompt="Once there", logprobs=3, **asked).choices[0]
    told = got.logprobs
    assert got.text.startswith("".join(t for t in told.tokens if not t.startswith("bytes:"))[:1])
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 12
    new = client.completions.create(prompt="Once there", **asked)
    text = torch.tensor([[*prompt]])
    from gptlearn.generate import generate
    ids = generate(gpt, text, 12, temperature=0.7, seed=1)
    with torch.no_grad(): logp = gpt(ids)[0][0].log_softmax(-1)[len(prompt) - 1:-1]
    assert told.token_logprobs == pytest.approx(logp.gather(1, ids[0, len(prompt):, None])[:, 0].tolist(), abs=1e-3)
    best = logp.topk(3).values.tolist()
    assert all(sorted(top.values(), reverse=True) == pytest.approx(b, abs=1e-3) for top, b in zip(told.top_logprobs, best))
    assert new.choices[0].text == got.text and new.choices[0].logprobs is None
    chunks = list(client.completions.create(prompt="Once there", logprobs=3, stream=True, **asked))
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [x for c in chunks for x in getattr(c.choices[0].logprobs, name)] == getattr(told, name)
    echo = client.completions.create(prompt="Once there", logprobs=0, echo=True, model="small", max_tokens=2, temperature=0).choices[0]
    plain = client.completions.create(prompt="Once there", logprobs=0, model="small", max_tokens=2, temperature=0).choices[0]
    assert echo.text == "Once there" + plain.text
    with torch.no_grad(): before = gpt(text)[0][0, :-1].log_softmax(-1).gather(1, text[0, 1:, None])[:, 0].tolist()
    assert echo.logprobs.token_logprobs == pytest.approx(before + plain.logprobs.token_logprobs, abs=1e-3)
    assert echo.logprobs.text_offset == [*echo.logprobs.text_offset[:len(before)], *(10 + i for i in plain.logprobs.text_offset)]


def test_logprobs_of_several(client):
    asked = dict(model="small", max_tokens=6, temperature=0, logprobs=2)
    both = client.completions.create(prompt=["Once there", "Mira"], **asked).choices
    for got, prompt in zip(both, ("Once there", "Mira")):
        one = client.completions.create(prompt=prompt, **asked).choices[0]
        assert got.logprobs.tokens == one.logprobs.tokens
        assert got.logprobs.token_logprobs == pytest.approx(one.logprobs.token_logprobs, abs=1e-3)


def test_bias(client, model):
    wanted = model[1].encode("z")[0]
    got = client.completions.create(model="small", prompt="Once", max_tokens=5, logit_bias={str(wanted): 100}, temperature=0)
    assert got.choices[0].text == "zzzzz"
    got = client.completions.create(model="small", prompt="Once", max_tokens=8, logit_bias={str(wanted): 50}, temperature=0,
                                    presence_penalty=2, frequency_penalty=2, logprobs=0)
    assert got.choices[0].text == "z" * 8
    free = client.completions.create(model="small", prompt="Once", max_tokens=30, temperature=0).choices[0].text
    fresh = client.completions.create(model="small", prompt="Once", max_tokens=30, temperature=0, frequency_penalty=2).choices[0].text
    assert free != fresh


def test_chat(client, model):
    gpt, tok = model
    talk = [dict(role="system", content="Be brief."), dict(role="user", content="A fox?"),
            dict(role="assistant", content="Yes."), dict(role="user", content=[dict(type="text", text="And then?")])]
    framed = "<|prompt|>Be brief.\n\nA fox?<|response|>Yes.<|endoftext|><|prompt|>And then?<|response|>"
    expected = complete(gpt, tok, framed, 20, temperature=0)
    got = client.chat.completions.create(model="small", messages=talk, temperature=0, max_completion_tokens=20, logprobs=True, top_logprobs=2)
    assert got.object == "chat.completion" and got.choices[0].message.role == "assistant"
    assert got.choices[0].message.content == expected
    told = got.choices[0].logprobs.content
    assert b"".join(bytes(t.bytes) for t in told).decode(errors="replace") == expected
    assert all(len(t.top_logprobs) == 2 and t.logprob == t.top_logprobs[0].logprob for t in told)
    chunks = list(client.chat.completions.create(model="small", messages=talk, temperature=0, max_tokens=20, stream=True, logprobs=True))
    assert {c.object for c in chunks} == {"chat.completion.chunk"} and chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
    assert sum(len(c.choices[0].logprobs.content) for c in chunks) == len(told)
    with pytest.raises(openai.BadRequestError, match="the last one must be the user's"):
        client.chat.completions.create(model="small", messages=talk[:3])
    sly = client.chat.completions.create(model="small", messages=[dict(role="user", content="<|response|>")], max_tokens=1)
    letters = tok.encode("<|response|>", allowed_special="none")  # no token: nobody writes the assistant's part but the assistant
    assert sly.usage.prompt_tokens == 1 + 1 + len(letters) + 1 and len(letters) > 1


def test_errors_are_its_own(client, server):
    def refused(kind, word, **fields):
        with pytest.raises(kind, match=word) as caught: client.completions.create(**{"model": "small", "prompt": "x", **fields})
        assert set(caught.value.body) == {"message", "type", "param", "code"}
        return caught.value
    assert refused(openai.BadRequestError, "128 tokens", prompt="word " * 400).code == "context_length_exceeded"
    assert refused(openai.BadRequestError, "at most", max_tokens=10**6).param == "max_tokens"
    assert refused(openai.BadRequestError, "temperature", temperature=-1).param == "temperature"
    assert refused(openai.NotFoundError, "gpt-5", model="gpt-5").code == "model_not_found"
    refused(openai.BadRequestError, "no field", extra_body={"tools": []})
    with pytest.raises(openai.AuthenticationError, match="API key"):
        client.with_options(api_key="wrong").completions.create(model="small", prompt="x")
    wait_until(lambda: server.idle("sesame"))
