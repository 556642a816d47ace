#!/usr/bin/env python3
"""Chat-template language against jinja2 itself, configured as transformers configures it.

    check_jinja.py CONCLAVE [--show N]
    check_jinja.py --write FILE         (the expressions with jinja2's answers: the vectors of tests/text/jinja_test.cpp)
Renders every snippet below, each with several sets of variables, through jinja2 3.1 and through
`conclave template --jsonl`; texts must be equal, and what one refuses the other must refuse. The last line is the figure."""
import argparse, datetime, itertools, json, subprocess, sys, tempfile

import jinja2
from jinja2.ext import loopcontrols, Extension
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = "2024-07-26 09:05:03"


class Generation(Extension):
    """The `generation` block of transformers, without its bookkeeping."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = datetime.datetime.fromisoformat(NOW).strftime
    return env


CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 3, "deep": {"a": [1, 2.5, None, True]}}}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather\nof a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "The city"}, "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
                                     "days": {"type": ["integer", "null"]}}, "required": ["city"]}}}]
DIALOGUES = [
    dict(messages=[{"role": "user", "content": "Hello"}]),
    dict(messages=[{"role": "system", "content": "Be \"kind\" <b>."}, {"role": "user", "content": "  Zwölf Boxkämpfer\n\n日本語 🙂 \n"},
                   {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}, {"role": "user", "content": "And\tthen?"}], add_generation_prompt=True),
    dict(messages=[{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                   {"role": "tool", "content": "{\"t\": 21}", "tool_call_id": "abcdefghi", "name": "get_weather"}], tools=TOOLS, add_generation_prompt=True),
    dict(messages=[{"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image"}]},
                   {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}], extra={"enable_thinking": False, "n": 7, "x": -2.5}),
]

from check_jinja_cases import EXPRESSIONS, SNIPPETS, TEMPLATES  # noqa: E402


def cases():
    for e in EXPRESSIONS:
        yield "{{ " + e + " }}", DIALOGUES[1]
    for s in SNIPPETS:
        for d in DIALOGUES[:3]:
            yield s, d
    for t, d in itertools.product(TEMPLATES, DIALOGUES):
        yield t, d


def reference(env, template, d):
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    try:
        return {"text": env.from_string(template).render(messages=d["messages"], tools=d.get("tools"), documents=None,
                add_generation_prompt=d.get("add_generation_prompt", False), **tokens, **d.get("extra", {}))}
    except Exception as e:  # noqa: BLE001 - any failure of the reference counts as refusal
        return {"error": f"{type(e).__name__}: {e}", "raised": type(e) is jinja2.exceptions.TemplateError and str(e)}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("conclave", nargs="?")
    p.add_argument("--write")
    p.add_argument("--show", type=int, default=20)
    args = p.parse_args()
    env, rows, wants = environment(), [], []
    if args.write:
        vectors = [[e, reference(env, "{{ " + e + " }}", DIALOGUES[1]).get("text")] for e in EXPRESSIONS]
        head = {k: v for k, v in DIALOGUES[1].items()}
        with open(args.write, "w", encoding="utf-8") as f:
            f.write("{\n\"jinja2\": " + json.dumps(jinja2.__version__) + ",\n\"now\": " + json.dumps(NOW) + ",\n\"variables\": " + json.dumps(head)
                    + ",\n\"vectors\": [\n" + ",\n".join(json.dumps(v) for v in vectors) + "\n]\n}\n")
        return False
    for template, d in cases():
        rows.append(dict({"add_generation_prompt": False}, **d, template=template, special_tokens={"bos_token": "<s>", "eos_token": "</s>"}, now=NOW))
        wants.append(reference(env, template, d))
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
        f.write("".join(json.dumps(r) + "\n" for r in rows)); f.flush()
        r = subprocess.run([args.conclave, "template", "--jsonl", f.name], capture_output=True, text=True, timeout=300)
    answers = [json.loads(line) for line in r.stdout.splitlines()]
    wrong = 0
    for row, want, got in itertools.zip_longest(rows, wants, answers, fillvalue={}):
        ok = got.get("text") == want["text"] if "text" in want else "error" in got and (not want["raised"] or want["raised"] in got["error"])
        wrong += not ok
        if not ok and wrong <= args.show:
            print(repr(row["template"][:300]), "\n  jinja2  ", repr(want)[:600], "\n  conclave", repr(got)[:600])
    print(f"{len(rows) - wrong} of {len(rows)} renderings equal")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
