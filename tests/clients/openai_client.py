#!/usr/bin/env python3
"""The official `openai` client against `conclave serve` with the demo model: every scenario is one function, run on one server.

    openai_client.py CONCLAVE MODEL        exit 1 when a scenario fails"""
import pathlib
import sys
import threading

import openai

from server_process import Server

QUESTION = [{"role": "user", "content": "Tom has the red ball. Anna is in the kitchen. Ben has the blue book. Lucy has four of the black coins. Who has the red ball?"}]
SCENARIOS = []


def scenario(function):
    SCENARIOS.append(function)
    return function


def text_of(stream):
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def fails(error, call, code=None):
    try:
        call()
    except error as e:
        assert code is None or e.code == code, f"code {e.code}"
        assert e.request_id, "no request id"
        return e
    raise AssertionError(f"no {error.__name__}")


def chat(client, **extra):
    options = {"model": client.model_name, "messages": QUESTION, "temperature": 0, "max_tokens": 24} | extra
    return client.chat.completions.create(**options)


def complete(client, **extra):
    options = {"model": client.model_name, "prompt": "Tom has the red", "temperature": 0, "max_tokens": 8} | extra
    return client.completions.create(**options)


@scenario
def lists_models(c):
    assert [m.id for m in c.models.list()] == [c.model_name]


@scenario
def retrieves_a_model(c):
    assert c.models.retrieve(c.model_name).object == "model"


@scenario
def unknown_model_is_not_found(c):
    fails(openai.NotFoundError, lambda: c.models.retrieve("none"), "model_not_found")


@scenario
def chat_answers(c):
    r = chat(c)
    assert "Tom" in r.choices[0].message.content and r.choices[0].message.role == "assistant" and r.choices[0].finish_reason == "stop"


@scenario
def chat_usage_adds_up(c):
    u = chat(c).usage
    assert u.prompt_tokens + u.completion_tokens == u.total_tokens and u.prompt_tokens_details.cached_tokens >= 0


@scenario
def chat_streams_the_same_text(c):
    assert text_of(chat(c, stream=True)) == chat(c).choices[0].message.content


@scenario
def stream_chunks_are_constant(c):
    chunks = list(chat(c, stream=True))
    assert len({(x.id, x.created, x.model, x.object) for x in chunks}) == 1


@scenario
def stream_role_comes_first_and_once(c):
    roles = [x.choices[0].delta.role for x in chat(c, stream=True)]
    assert roles[0] == "assistant" and not any(roles[1:])


@scenario
def stream_ends_with_a_reason(c):
    reasons = [x.choices[0].finish_reason for x in chat(c, stream=True)]
    assert reasons[-1] == "stop" and not any(reasons[:-1])


@scenario
def stream_usage_chunk_is_last(c):
    chunks = list(chat(c, stream=True, stream_options={"include_usage": True}))
    assert not chunks[-1].choices and chunks[-1].usage.total_tokens > 0 and all(x.usage is None for x in chunks[:-1])


@scenario
def stream_helper_gathers_a_completion(c):
    with c.chat.completions.stream(model=c.model_name, messages=QUESTION, temperature=0, max_tokens=24) as stream:
        for _ in stream:
            pass
        assert "Tom" in stream.get_final_completion().choices[0].message.content


@scenario
def stream_closed_early_leaves_the_server_well(c):
    stream = chat(c, stream=True, max_tokens=400, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    assert "Tom" in chat(c).choices[0].message.content


@scenario
def async_client_answers(c):
    import asyncio

    async def run():
        async with openai.AsyncOpenAI(base_url=c.base_url, api_key="x") as a:
            r = await asyncio.gather(*[a.chat.completions.create(model=c.model_name, messages=QUESTION, temperature=0, max_tokens=24) for _ in range(6)])
            return {x.choices[0].message.content for x in r}
    assert len(asyncio.run(run())) == 1


@scenario
def async_client_streams(c):
    import asyncio

    async def run():
        async with openai.AsyncOpenAI(base_url=c.base_url, api_key="x") as a:
            text = ""
            async for x in await a.chat.completions.create(model=c.model_name, messages=QUESTION, temperature=0, max_tokens=24, stream=True):
                text += x.choices[0].delta.content or ""
            return text
    assert asyncio.run(run()) == chat(c).choices[0].message.content


@scenario
def several_choices(c):
    r = chat(c, n=3, temperature=1, seed=5)
    assert [x.index for x in r.choices] == [0, 1, 2]


@scenario
def seeds_repeat(c):
    a, b = (chat(c, temperature=1.5, seed=11).choices[0].message.content for _ in range(2))
    assert a == b


@scenario
def max_tokens_ends_with_length(c):
    r = chat(c, max_tokens=2)
    assert r.choices[0].finish_reason == "length" and r.usage.completion_tokens == 2


@scenario
def max_completion_tokens_is_understood(c):
    r = c.chat.completions.create(model=c.model_name, messages=QUESTION, temperature=0, max_completion_tokens=1)
    assert r.usage.completion_tokens == 1


@scenario
def stop_string_is_left_out(c):
    assert "Tom" not in chat(c, stop="Tom").choices[0].message.content


@scenario
def stop_list_is_left_out_of_streams(c):
    assert "om" not in text_of(chat(c, stop=["zzz", "om"], stream=True))


@scenario
def system_messages_count(c):
    r = chat(c, messages=[{"role": "system", "content": "Be short."}, *QUESTION])
    assert r.usage.prompt_tokens > chat(c).usage.prompt_tokens


@scenario
def developer_role_is_system(c):
    a = chat(c, messages=[{"role": "developer", "content": "Be short."}, *QUESTION]).usage.prompt_tokens
    assert a == chat(c, messages=[{"role": "system", "content": "Be short."}, *QUESTION]).usage.prompt_tokens


@scenario
def content_parts_are_joined(c):
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    assert chat(c, messages=parts).choices[0].message.content == chat(c).choices[0].message.content


@scenario
def dialogues_of_several_turns(c):
    first = chat(c).choices[0].message.content
    r = chat(c, messages=[*QUESTION, {"role": "assistant", "content": first}, {"role": "user", "content": "Who has the blue book?"}])
    assert r.choices[0].message.content


@scenario
def chat_logprobs(c):
    content = chat(c, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in content)
    assert all(abs(t.logprob - t.top_logprobs[0].logprob) < 1e-6 for t in content), "greedy takes the most likely token"


@scenario
def chat_logprobs_in_streams(c):
    whole = [t.token for t in chat(c, logprobs=True).choices[0].logprobs.content]
    streamed = [t.token for x in chat(c, logprobs=True, stream=True) if x.choices[0].logprobs for t in x.choices[0].logprobs.content]
    assert whole == streamed


@scenario
def raw_response_has_the_request_id(c):
    r = c.chat.completions.with_raw_response.create(model=c.model_name, messages=QUESTION, max_tokens=1, extra_headers={"X-Request-Id": "mine-1"})
    assert r.headers["x-request-id"] == "mine-1"


@scenario
def answers_have_a_request_id(c):
    assert chat(c, max_tokens=1)._request_id.startswith("req-")


@scenario
def completion_of_a_text(c):
    assert complete(c).choices[0].text.strip()


@scenario
def completion_of_several_texts(c):
    r = complete(c, prompt=["Tom has", "Anna is"])
    assert [x.index for x in r.choices] == [0, 1] and r.choices[0].text == complete(c, prompt="Tom has").choices[0].text


@scenario
def completion_of_token_ids(c):
    assert complete(c, prompt=[1, 300, 301]).usage.prompt_tokens == 3


@scenario
def completion_of_lists_of_token_ids(c):
    assert complete(c, prompt=[[1, 300, 301], [1, 302]]).usage.prompt_tokens == 5


@scenario
def completion_echo(c):
    assert complete(c, echo=True).choices[0].text == "Tom has the red" + complete(c).choices[0].text


@scenario
def completion_scores_without_tokens(c):
    r = complete(c, prompt=[1, 300, 301, 302], echo=True, logprobs=1, max_tokens=0)
    assert r.choices[0].logprobs.token_logprobs[0] is None and len(r.choices[0].logprobs.token_logprobs) == 4


@scenario
def completion_scores_as_lm_eval_asks(c):
    r = complete(c, prompt=[[1, 300, 301, 302]], echo=True, logprobs=1, max_tokens=1, seed=1234)
    l = r.choices[0].logprobs
    assert len(l.token_logprobs) == len(l.top_logprobs) == len(l.tokens) == len(l.text_offset) == 5


@scenario
def completion_best_of(c):
    assert len(complete(c, n=1, best_of=3, temperature=1, seed=3).choices) == 1


@scenario
def completion_streams(c):
    assert "".join(x.choices[0].text for x in complete(c, stream=True)) == complete(c).choices[0].text


@scenario
def completion_default_is_16_tokens(c):
    r = c.completions.create(model=c.model_name, prompt="Tom has", temperature=0, extra_body={"ignore_eos": True})
    assert r.usage.completion_tokens == 16


@scenario
def token_ids_on_request(c):
    r = complete(c, extra_body={"return_token_ids": True})
    assert len(r.choices[0].token_ids) == r.usage.completion_tokens


@scenario
def logit_bias_forces_a_token(c):
    r = complete(c, logit_bias={"300": 100}, max_tokens=3, extra_body={"return_token_ids": True})
    assert r.choices[0].token_ids == [300] * 3


@scenario
def penalties_are_taken(c):
    assert complete(c, presence_penalty=1, frequency_penalty=1).choices


@scenario
def bad_temperature_is_a_bad_request(c):
    e = fails(openai.BadRequestError, lambda: chat(c, temperature=-1), "invalid_value")
    assert e.param == "temperature"


@scenario
def wrong_type_is_a_bad_request(c):
    fails(openai.BadRequestError, lambda: chat(c, max_tokens="many"), "invalid_type")


@scenario
def unknown_model_in_chat(c):
    fails(openai.NotFoundError, lambda: chat(c, model="gpt-4"), "model_not_found")


@scenario
def long_prompts_are_refused(c):
    e = fails(openai.BadRequestError, lambda: complete(c, prompt=[300] * 600), "context_length_exceeded")
    assert "512" in e.message and "60" in e.message


@scenario
def empty_messages_are_refused(c):
    fails(openai.BadRequestError, lambda: chat(c, messages=[]), "invalid_value")


@scenario
def tools_are_refused_clearly(c):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    fails(openai.BadRequestError, lambda: chat(c, tools=[tool]), "unsupported_parameter")


@scenario
def structured_output_is_refused_clearly(c):
    fails(openai.BadRequestError, lambda: chat(c, response_format={"type": "json_object"}), "unsupported_parameter")


@scenario
def embeddings_are_not_there(c):
    fails(openai.NotFoundError, lambda: c.embeddings.create(model=c.model_name, input="x"), "endpoint_not_supported")


@scenario
def ignored_fields_are_named(c):
    r = c.chat.completions.with_raw_response.create(model=c.model_name, messages=QUESTION, max_tokens=1, user="me")
    assert r.headers["x-conclave-ignored-fields"] == "user"


@scenario
def deadlines_are_server_errors(c):
    quick = c.with_options(max_retries=0)
    quick.model_name = c.model_name
    fails(openai.InternalServerError, lambda: chat(quick, max_tokens=400, extra_body={"deadline_ms": 1, "ignore_eos": True}), "deadline_exceeded")


@scenario
def many_at_once_give_the_same(c):
    texts = [None] * 12
    threads = [threading.Thread(target=lambda i=i: texts.__setitem__(i, chat(c).choices[0].message.content)) for i in range(12)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(set(texts)) == 1 and texts[0]


def main():
    program, model = sys.argv[1:3]
    server = Server(program, model)
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="x", timeout=60)
    client.model_name = pathlib.Path(model).name
    failed = 0
    for run in SCENARIOS:
        try:
            run(client)
        except Exception as e:  # noqa: BLE001: every failure is reported
            failed += 1
            print(f"FAILED {run.__name__}: {type(e).__name__}: {e}")
    code = server.stop()
    print(f"{len(SCENARIOS) - failed} of {len(SCENARIOS)} scenarios passed with openai {openai.__version__}; the server ended with {code}")
    return 1 if failed or code else 0


if __name__ == "__main__":
    sys.exit(main())
