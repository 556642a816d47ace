#!/usr/bin/env python3
"""Writes tests/data/tokenizers/small.json: tiny tokenizers of every supported construct with ids and texts from the
`tokenizers` and `sentencepiece` packages.

    make_tokenizer_cases.py OUT"""
import base64
import io
import json
import sys

import sentencepiece
from tokenizers import Tokenizer, pre_tokenizers

TEXTS = ["", " ", "a", "ab abc", " ab", "  ab  cab ", "a\nb\r\n c", "123 abc4567", "abc-def-ghi", "--a--b--", "über café", "cafe\u0301 ①", "A Bc ABC",
         "\u3000a\u00a0b\u180ec", "don't we'll I'm", "[X]ab[X] ab", " [X] ", "a[X]b", "[X][X]", "<s>ab</s>", "日本語ab", "\u2581ab\u2581", "a\0b", "½ ٣ Ⅷ", "é\t!?"]
CHARS = sorted(set("".join(TEXTS)) - set("日本①")) + ["\u2581", "i", "n", "e"]


def bpe(merges=("a b", "ab c", "\u2581 ab", "\u2581 a", "- -", "1 2"), **model):
    vocab = {}
    for token in ["<unk>", "<s>", "</s>"] + sorted(set(CHARS)) + [m.replace(" ", "") for m in merges]:
        vocab.setdefault(token, len(vocab))
    if model.get("byte_fallback"):
        for b in range(256):
            vocab[f"<0x{b:02X}>"] = len(vocab)
    return dict(dict(type="BPE", dropout=None, unk_token="<unk>", continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False,
                     byte_fallback=False, ignore_merges=False), **model, vocab=vocab, merges=list(merges))


def byte_bpe():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["a b", "Ġ a", "Ġa b", "ab c", "1 2"]
    vocab = {t: i for i, t in enumerate(alphabet + [m.replace(" ", "") for m in merges])}
    return dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False, byte_fallback=False,
                ignore_merges=False, vocab=vocab, merges=merges)


def added(content, id, special=False, **flags):
    return dict(dict(id=id, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=special), **flags)


def make(model=None, **parts):
    for i, token in enumerate(t for t in parts.get("added_tokens", []) if t["id"] >= 900):
        token["id"] = len((model or bpe())["vocab"]) + i            # the package numbers new tokens this way
    return dict(dict(version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None, pre_tokenizer=None, post_processor=None,
                     decoder=dict(type="Fuse")), **parts, model=model or bpe())


def split(pattern, behavior, invert=False, kind="Regex"):
    return dict(type="Split", pattern={kind: pattern}, behavior=behavior, invert=invert)


def json_cases():
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    sequence = lambda kind, key, *steps: dict(type=kind, **{key: list(steps)})
    for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            yield f"split {behavior} {invert}", make(pre_tokenizer=split("-|\\s", behavior, invert))
        yield f"split string {behavior}", make(pre_tokenizer=split("ab", behavior, False, "String"))
    for individual in (True, False):
        yield f"digits {individual}", make(pre_tokenizer=dict(type="Digits", individual_digits=individual))
    for prefix in (True, False):
        for regex in (True, False):
            step = dict(byte_level, add_prefix_space=prefix, use_regex=regex)
            yield f"byte level {prefix} {regex}", make(byte_bpe(), pre_tokenizer=step, decoder=byte_level)
    for scheme in ("first", "always", "never"):
        for cut in (True, False):
            step = dict(type="Metaspace", replacement="\u2581", prepend_scheme=scheme, split=cut)
            yield f"metaspace {scheme} {cut}", make(pre_tokenizer=step, decoder=step, added_tokens=[added("[X]", 900, True)])
    old = dict(type="Metaspace", replacement="\u2581", add_prefix_space=True)
    yield "metaspace old", make(pre_tokenizer=old, decoder=old)
    for name in ("Whitespace", "WhitespaceSplit"):
        yield name, make(pre_tokenizer=dict(type=name))
    yield "punctuation", make(pre_tokenizer=dict(type="Punctuation", behavior="Isolated"))
    yield "delimiter", make(pre_tokenizer=dict(type="CharDelimiterSplit", delimiter="-"))
    yield "sequence", make(byte_bpe(), pre_tokenizer=sequence("Sequence", "pretokenizers", split("\\p{N}{1,3}", "Isolated"), split("\\s?\\w+", "Isolated"),
                                                               dict(byte_level, use_regex=False)), decoder=byte_level)
    for form in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"):
        yield form, make(normalizer=dict(type=form))
    yield "strip", make(normalizer=dict(type="Strip", strip_left=True, strip_right=False))
    yield "replace regex", make(normalizer=dict(type="Replace", pattern=dict(Regex="\\s+"), content="\u2581"))
    yield "normalized added", make(normalizer=dict(type="Lowercase"), added_tokens=[added("ABC", 900, normalized=True), added("Bc", 901)])
    prepend = sequence("Sequence", "normalizers", dict(type="Prepend", prepend="\u2581"), dict(type="Replace", pattern=dict(String=" "), content="\u2581"))
    llama = sequence("Sequence", "decoders", dict(type="Replace", pattern=dict(String="\u2581"), content=" "), dict(type="ByteFallback"), dict(type="Fuse"),
                     dict(type="Strip", content=" ", start=1, stop=0))
    for fallback in (True, False):
        for fuse in (True, False):
            yield f"llama {fallback} {fuse}", make(bpe(byte_fallback=fallback, fuse_unk=fuse), normalizer=prepend, decoder=llama,
                                                   added_tokens=[added("<s>", 1, True), added("</s>", 2, True)])
    yield "no unk", make(bpe(unk_token=None))
    yield "ignore merges", make(bpe(ignore_merges=True, merges=("a b", "ab c")), pre_tokenizer=dict(type="WhitespaceSplit"))
    for flags in (dict(), dict(lstrip=True), dict(rstrip=True), dict(single_word=True), dict(lstrip=True, rstrip=True), dict(normalized=True)):
        yield f"added {flags}", make(added_tokens=[added("[X]", 900, True, **flags), added("b", bpe()["vocab"]["b"], **flags)])
    template = dict(type="TemplateProcessing", single=[dict(SpecialToken=dict(id="<s>", type_id=0)), dict(Sequence=dict(id="A", type_id=0)),
                                                       dict(SpecialToken=dict(id="</s>", type_id=0))], pair=[dict(Sequence=dict(id="A", type_id=0)),
                                                       dict(Sequence=dict(id="B", type_id=1))],
                    special_tokens={"<s>": dict(id="<s>", ids=[1], tokens=["<s>"]), "</s>": dict(id="</s>", ids=[2], tokens=["</s>"])})
    yield "template", make(post_processor=sequence("Sequence", "processors", dict(type="ByteLevel", add_prefix_space=True, trim_offsets=False, use_regex=True), template),
                           added_tokens=[added("<s>", 1, True), added("</s>", 2, True)])
    yield "roberta", make(post_processor=dict(type="RobertaProcessing", sep=["</s>", 2], cls=["<s>", 1], trim_offsets=True, add_prefix_space=False))
    yield "no decoder", make(decoder=None)
    yield "pairs", make(dict(bpe(), merges=[["a", "b"], ["ab", "c"]]))


def model_cases():
    corpus = ["ab abc cab abcab", "the cat sat on the mat", "a  b   c", "über café naïve", "1 12 123", "we are here, there and here"] * 20
    base = dict(vocab_size=60, hard_vocab_limit=False, normalization_rule_name="identity", minloglevel=2, num_threads=1, character_coverage=0.99)
    variants = {"plain": {}, "keep spaces": dict(remove_extra_whitespaces=False), "no prefix": dict(add_dummy_prefix=False),
                "byte fallback": dict(byte_fallback=True, vocab_size=330), "user defined": dict(user_defined_symbols=["ab", "\u2581\u2581", "[X]"]),
                "control": dict(control_symbols=["[X]"]), "suffix": dict(treat_whitespace_as_suffix=True), "bos last": dict(unk_id=3, bos_id=0, eos_id=1, pad_id=2)}
    for kind in ("bpe", "unigram"):
        for name, options in variants.items():
            out = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=out, model_type=kind, **dict(base, **options))
            yield f"{kind} {name}", out.getvalue()


def main():
    cases = []
    for name, file in json_cases():
        reference = Tokenizer.from_str(json.dumps(file))
        rows = []
        for text in TEXTS:
            ids = reference.encode(text, add_special_tokens=True).ids
            # Normalized added tokens decode to their literal content here, to the normalized one in the package.
            rows.append([text, ids, None if name == "normalized added" else reference.decode(ids)])
        cases.append(dict(name=name, json=file, rows=rows))
    for name, model in model_cases():
        reference = sentencepiece.SentencePieceProcessor(model_proto=model)
        rows = [[text, reference.encode(text), reference.decode(reference.encode(text))] for text in TEXTS]
        cases.append(dict(name=name, model=base64.b64encode(model).decode(), rows=rows))
    with open(sys.argv[1], "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")


main()
