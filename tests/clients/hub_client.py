#!/usr/bin/env python3
"""`huggingface_hub.InferenceClient` against `conclave serve` on the TGI routes and the chat route.

    hub_client.py CONCLAVE MODEL        exit 1 when a scenario fails"""
import sys

import huggingface_hub
from huggingface_hub import InferenceClient
from huggingface_hub.errors import GenerationError, HfHubHTTPError, ValidationError

from server import Server, recorded, run_scenarios

PROMPT = "Tom has the red"
SCENARIOS = []


def scenario(function):
    SCENARIOS.append(function)
    return function


@scenario
def continues_a_text(c):
    assert isinstance(c.text_generation(PROMPT, max_new_tokens=5), str)


@scenario
def gives_details(c):
    answer = c.text_generation(PROMPT, details=True, max_new_tokens=5, decoder_input_details=True)
    assert answer.details.generated_tokens == 5 and answer.details.finish_reason == "length"
    assert len(answer.details.tokens) == 5 and all(t.logprob <= 0 for t in answer.details.tokens)
    assert answer.details.prefill and answer.details.prefill[1].logprob <= 0
    assert answer.generated_text == c.text_generation(PROMPT, max_new_tokens=5)


@scenario
def streams(c):
    whole = c.text_generation(PROMPT, max_new_tokens=8)
    assert "".join(c.text_generation(PROMPT, stream=True, max_new_tokens=8)) == whole


@scenario
def streams_details(c):
    parts = list(c.text_generation(PROMPT, stream=True, details=True, max_new_tokens=4))
    assert len(parts) == 4 and parts[-1].details.generated_tokens == 4 and parts[-1].generated_text
    assert all(p.generated_text is None for p in parts[:-1])


@scenario
def stops_and_prefixes(c):
    whole = c.text_generation(PROMPT, max_new_tokens=20)
    word = whole.split()[1]
    assert c.text_generation(PROMPT, max_new_tokens=20, stop=[word]).rstrip() in whole
    assert c.text_generation(PROMPT, max_new_tokens=3, return_full_text=True).startswith(PROMPT)


@scenario
def samples_by_seed(c):
    draw = lambda seed: c.text_generation(PROMPT, max_new_tokens=12, do_sample=True, temperature=2.0, top_k=50, top_p=0.95, seed=seed)  # noqa: E731
    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(6)}) > 1


@scenario
def offers_the_best(c):
    answer = c.text_generation(PROMPT, max_new_tokens=5, do_sample=True, best_of=3, details=True, seed=1)
    assert len(answer.details.best_of_sequences) == 2


@scenario
def tops(c):
    answer = c.text_generation(PROMPT, max_new_tokens=3, details=True, top_n_tokens=4)
    assert all(len(top) == 4 for top in answer.details.top_tokens)


@scenario
def truncates_when_asked(c):
    assert isinstance(c.text_generation(PROMPT * 400, max_new_tokens=2, truncate=16), str)


@scenario
def refuses_what_does_not_fit(c):
    try:
        c.text_generation(PROMPT * 400, max_new_tokens=2)
    except (ValidationError, HfHubHTTPError) as e:
        assert "512" in str(e) or "422" in str(e), str(e)
        return
    raise AssertionError("an over-long prompt was accepted")


@scenario
def refuses_watermarks(c):
    try:
        c.text_generation(PROMPT, watermark=True)
    except (ValidationError, GenerationError, HfHubHTTPError):
        return
    raise AssertionError("a watermark was promised")


@scenario
def chats(c):
    messages = [{"role": "user", "content": "Tom has the red ball. Who has the red ball?"}]
    whole = c.chat_completion(messages, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2)
    assert whole.choices[0].finish_reason in ("stop", "length") and whole.usage.completion_tokens > 0
    parts = c.chat_completion(messages, max_tokens=8, temperature=0, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole.choices[0].message.content


def main():
    program, model = sys.argv[1:3]
    server = Server(program, model)
    client = InferenceClient(recorded(server.url), token="x")
    return run_scenarios(f"huggingface_hub {huggingface_hub.__version__}", SCENARIOS, server, client)


if __name__ == "__main__":
    sys.exit(main())
