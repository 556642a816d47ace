"""Writes the prompts of NeedleBench (single needle) for `conclave eval --tasks needlebench`: DIR/prompts_<length>.jsonl.

    needlebench_prompts.py DIR [--context 4k]      needs tiktoken (whose gpt-4 encoding defines the lengths)

DIR holds needles.jsonl, PaulGrahamEssays.jsonl and zh_finance.jsonl as published (https://huggingface.co/datasets/opencompass/NeedleBench).
Texts, depths, repetitions and questions are those of OpenCompass's needlebench_single; seeds are Python's, so the prompts are always the same.
"""
import argparse
import json
import os
import random

import tiktoken

DEPTHS = [0, 10, 21, 31, 42, 52, 63, 73, 84, 94, 100]
LENGTHS = {  # context -> lengths, depths, tokens left free in English (200 in Chinese)
    "4k": ([1000, 2000, 3000, 4000], [100 / 19 * i for i in range(20)], 600),
    "8k": ([5000, 6000, 7000, 8000], [100 / 19 * i for i in range(20)], 600),
    "32k": ([9000, 13000, 17000, 21000, 25000, 29000, 31000, 32000], DEPTHS, 3000),
    "128k": (list(range(16000, 128001, 16000)), DEPTHS, 600),
    "200k": ([16000, 48000, 80000, 112000, 128000, 144000, 176000, 200000], DEPTHS, 600),
    "256k": ([32000, 128000, 256000], DEPTHS, 600),
    "1000k": ([20000, 160000, 300000, 440000, 580000, 720000, 860000, 1000000], DEPTHS, 600),
}
FORMS = {
    "English": ("PaulGrahamEssays", "Please answer in the format", "Before answering, please consider what in the document is most relevant to this question. ",
                "You are an intelligent AI assistant skilled in answering user questions.\nPlease keep your answers concise and clear. Do not talk about "
                "irrelevant topics or repeat your answers.\nThe document given to you by the user is {context}\n\nNow, the question is: {question}"),
    "Chinese": ("zh_finance", "请按照", "在回答之前，请思考文档中与此问题最相关的内容是什么。",
                "你是一个善于回答用户问题的智能AI助手\n请保持你的回答简洁清楚。不要说和下面文档中的无关的话，或重复你的回答\n用户现在给你的文档是{context}\n\n现在请问：{question}"),
}


def read(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--context", default="4k", choices=LENGTHS)
    a = p.parse_args()
    encoding = tiktoken.encoding_for_model("gpt-4")
    lengths, depths, free = LENGTHS[a.context]
    with open(os.path.join(a.folder, f"prompts_{a.context}.jsonl"), "w", encoding="utf-8") as out:
        for language, (name, form, hint, prompt) in FORMS.items():
            texts, needles = read(a.folder, f"{name}.jsonl"), [n for n in read(a.folder, "needles.jsonl") if n["language"] == language]
            for length in lengths:
                for depth in depths:
                    lines = texts.copy()
                    for counter in range(10):
                        random.seed(counter)
                        random.shuffle(lines)
                        random.seed(counter)
                        chosen = random.choice(needles)
                        needle = "\n" + chosen["needle"] + "\n"
                        wanted = max(0, length - (free if language == "English" else 200) - len(encoding.encode(needle)))
                        tokens = []
                        for line in lines:
                            tokens += encoding.encode(line["text"])
                            if len(tokens) >= wanted:
                                break
                        tokens = tokens[:wanted]
                        at = int(len(tokens) * (depth / 100))
                        context = encoding.decode(tokens[:at] + encoding.encode(needle) + tokens[at:])
                        before, after = chosen["retrieval_question"].split(form)[:2]
                        question = before + hint + form + after
                        row = {"name": f"{name}_{length}_{depth}", "prompt": prompt.format(context=context, question=question), "answer": f"{needle}*{chosen['arg2']}"}
                        out.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
