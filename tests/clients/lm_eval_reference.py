#!/usr/bin/env python3
"""Writes what lm_eval_client.py compares with: log-likelihoods of choices by transformers in float32.

    lm_eval_reference.py CHECKPOINT... > tests/data/clients/lm_eval.json       needs torch and transformers"""
import json
import pathlib
import sys

import torch
import transformers

ITEMS = [
    ("Tom has the red", [" ball", " book", " of the coins"]),
    ("The quick brown fox jumps over the", [" lazy dog", " dog lazy", "!"]),
    ("Zwölf Boxkämpfer jagen", [" Viktor", " über den Sylter Deich"]),
    ("Question: what is 2 + 2?\nAnswer:", [" 4", " 5", " 22", " four"]),
    ("你好", ["吗", "，世界"]),
    ("x" * 60, ["x", "y" * 20]),
]


def log_likelihood(model, tokenizer, context, continuation):
    whole = tokenizer.encode(context + continuation, add_special_tokens=False)
    begin = len(tokenizer.encode(context, add_special_tokens=False))
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([whole])).logits[0].float(), dim=-1)
    rows = scores[begin - 1:-1]
    target = torch.tensor(whole[begin:])
    return {"log_likelihood": rows.gather(1, target[:, None]).sum().item(), "greedy": bool((rows.argmax(-1) == target).all())}


def main():
    result = {"transformers": transformers.__version__, "models": {}}
    for folder in map(pathlib.Path, sys.argv[1:]):
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        result["models"][folder.name] = [
            {"question": context, "choices": choices, "reference": [log_likelihood(model, tokenizer, context, c) for c in choices]}
            for context, choices in ITEMS]
    json.dump(result, sys.stdout, ensure_ascii=False, indent=1)
    print()


main()
