#!/usr/bin/env python3
"""Compares `conclave tokenize --jsonl` with the `tokenizers` and `sentencepiece` packages on many generated texts.

    check_tokenizer.py CONCLAVE FOLDER [--texts N] [--seed S]

FOLDER holds tokenizer.json and/or tokenizer.model. Needs `pip install tokenizers sentencepiece`. Every text is encoded
without BOS/EOS, with added tokens recognised (tokenizer.json) or as plain text (tokenizer.model), and decoded again.
Exit 0 when all ids and all decoded texts agree."""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

RANGES = [(0x20, 0x7E), (0x20, 0x7E), (0, 0x1F), (0x80, 0x24F), (0x250, 0x2FF), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x7FF),
          (0x900, 0xDFF), (0xE00, 0xFFF), (0x1100, 0x11FF), (0x1680, 0x1680), (0x180B, 0x180F), (0x2000, 0x206F), (0x2070, 0x2BFF),
          (0x2E80, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFB00, 0xFDFF), (0xFE00, 0xFEFF),
          (0xFF00, 0xFFFF), (0x10400, 0x104FF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0xE0000, 0xE01EF)]
EDGES = ["", " ", "  ", "\n", "\0", "a\0b", "\r\n\r\n", " a", "a ", "  a  ", "\t\t x", "\u00a0", "\u3000\u3000x", "\u2581", "\u2581\u2581a",
         "e\u0301", "\u1112\u1161\u11ab", "\U0001F468\u200d\U0001F469\u200d\U0001F467", "\u202eabc\u202c", "\ufffe\uffff", "\U0010ffff",
         "don't I'LL we've 'S", "1234567890", "\u00bd\u0663\u2167", "x" * 3000, " " * 3000 + "x", "<0x41>", "\ufffd\ufeff"]
WORDS = "the of Hello world isn't 12 3456 www.example.com foo_bar() {\"a\": [1,2]} über naïve 模型 日本語 Привет мир مرحبا 한국어 \n\n\t".split(" ")


def texts(count, seed, specials):
    rng = random.Random(seed)
    yield from EDGES
    for s in specials[:60]:
        yield from (s, f"a{s}b", f" {s} ", s + s, f"{s}\n x", s[:-1], s[1:])
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.35:
                parts.append(rng.choice(WORDS))
            elif kind < 0.75:
                low, high = rng.choice(RANGES)
                parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6))))
            elif kind < 0.9:
                parts.append(rng.choice([" ", "  ", "\n", "\r\n", "\t", "   \n", "\u00a0", "\u3000"]) * rng.randint(1, 3))
            elif specials:
                parts.append(rng.choice(specials))
        yield rng.choice(["", " "]).join(parts)
    for code in range(0x110000):
        if code % 37 == seed % 37 and not 0xD800 <= code < 0xE000 and unicodedata.category(chr(code)) != "Cn":
            yield f"a{chr(code)} {chr(code)}1{chr(code)}{chr(code)}"


def json_reference(file):
    from tokenizers import Tokenizer
    reference = Tokenizer.from_file(str(file))
    added = json.loads(file.read_text())["added_tokens"]
    trap = {t["content"] for t in added if len(t["content"]) == 1}      # decoded as literal text, unlike the package

    def answer(text):
        ids = reference.encode(text, add_special_tokens=False).ids
        return ids, None if any(c in text for c in trap) else reference.decode(ids)
    return answer, [t["content"] for t in added]


def model_reference(file):
    import sentencepiece
    reference = sentencepiece.SentencePieceProcessor(model_file=str(file))
    specials = [reference.id_to_piece(i) for i in range(reference.get_piece_size()) if reference.is_control(i)]

    def answer(text):
        ids = reference.encode(text)
        return ids, reference.decode(ids)
    return answer, specials


def check(conclave, folder, file, args):
    answer, specials = (json_reference if file.suffix == ".json" else model_reference)(file)
    rows = [t for t in texts(args.texts, args.seed, specials)]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
        for t in rows:
            f.write(json.dumps({"text": t, "add_special_tokens": False, "parse_special": file.suffix == ".json"}) + "\n")
        f.flush()
        run = subprocess.run([conclave, "tokenize", str(folder), "--tokenizer-file", str(file), "--jsonl", f.name], capture_output=True)
    lines = run.stdout.decode().removesuffix("\n").split("\n")
    if len(lines) != len(rows):
        sys.exit(f"{file}: {len(lines)} answers for {len(rows)} texts: {run.stderr.decode(errors='replace')[-300:]}")
    wrong = 0
    for text, line in zip(rows, lines):
        got, (ids, decoded) = json.loads(line), answer(text)
        if got["ids"] != ids or (decoded is not None and got["decoded"] != decoded):
            wrong += 1
            if wrong <= 5:
                print(json.dumps(text)[:120], "want", ids[:20], "got", got["ids"][:20], json.dumps(decoded)[:80], json.dumps(got["decoded"])[:80])
    print(f"{file}: {len(rows) - wrong} of {len(rows)} texts agree")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conclave")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    files = [f for f in (args.folder / "tokenizer.json", args.folder / "tokenizer.model") if f.exists()]
    sys.exit(not files or sum(check(args.conclave, args.folder, f, args) for f in files) != 0)


if __name__ == "__main__":
    main()
