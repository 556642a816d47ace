#!/usr/bin/env python3
"""Writes tests/data/engine/sampling.json: what transformers' logits processors leave of random logits.

    make_sampling_vectors.py OUT.json      needs torch and transformers"""
import json
import sys

import torch
from transformers.generation.logits_process import (LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor,
                                                    TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)

VOCAB = 60
SETTINGS = [
    {}, {"temperature": 0.5}, {"temperature": 1.7}, {"top_k": 1}, {"top_k": 7}, {"top_k": 60}, {"top_k": 1000},
    {"top_p": 0.01}, {"top_p": 0.3}, {"top_p": 0.9}, {"top_p": 0.999}, {"min_p": 0.05}, {"min_p": 0.4}, {"min_p": 1.0},
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.7}, {"temperature": 0.8, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.5, "top_p": 0.7, "min_p": 0.1}, {"repetition_penalty": 1.2, "temperature": 0.7, "top_k": 30, "top_p": 0.95},
    {"repetition_penalty": 1.1, "temperature": 1.2, "top_k": 12, "top_p": 0.85, "min_p": 0.08},
]


def processors(s):
    """The order of GenerationMixin._get_logits_processor."""
    chain = LogitsProcessorList()
    if s.get("repetition_penalty", 1.0) != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(penalty=s["repetition_penalty"]))
    if s.get("temperature", 1.0) != 1.0:
        chain.append(TemperatureLogitsWarper(s["temperature"]))
    if s.get("top_k"):
        chain.append(TopKLogitsWarper(top_k=s["top_k"]))
    if s.get("top_p", 1.0) < 1.0:
        chain.append(TopPLogitsWarper(top_p=s["top_p"]))
    if s.get("min_p"):
        chain.append(MinPLogitsWarper(min_p=s["min_p"]))
    return chain


torch.manual_seed(11)
cases = []
for i, settings in enumerate(SETTINGS * 2):
    logits = torch.randn(1, VOCAB) * (1.0 + i % 4)
    if i % 5 == 0:  # ties, among them at the boundary of top-k
        logits = torch.round(logits * 2) / 2 if "top_p" not in settings else logits
    tokens = torch.randint(0, VOCAB, (1, 9))
    scores = processors(settings)(tokens, logits.clone())[0]
    probabilities = torch.softmax(scores.double(), -1)
    kept = [t for t in range(VOCAB) if scores[t] > -float("inf")]
    cases.append({"sampling": settings, "logits": logits[0].tolist(), "tokens": tokens[0].tolist(), "kept": kept,
                  "probabilities": [round(probabilities[t].item(), 9) for t in kept]})
with open(sys.argv[1], "w", encoding="utf-8") as out:
    out.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
print(f"{len(cases)} cases")
