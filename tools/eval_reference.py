"""Computes the items of a `conclave eval` run again with transformers and compares them one by one.

    eval_reference.py --model DIR --data DIR --items ITEMS.jsonl [--tolerance 1e-4] [--record OUT.jsonl]

Prompts are built here from the data files, encoded by transformers' tokenizer, computed in fp32 by transformers' model, and the answers are
extracted and scored here (Python's re and decimal, sacrebleu and rouge-score for TruthfulQA). A generated answer is checked by one pass over
prompt and answer: it is the greedy one when every token is the most likely after those before it. Where two tokens are nearer than 1e-5 of the
largest logit (fp32 sums in another order decide), either is accepted and counted as a tie.

Knows boolq, mmlu (without examples), gsm8k and truthfulqa in the reference stack's form. --record also writes what was wanted of each item, for
tests. Needs torch, transformers; sacrebleu and rouge-score for truthfulqa. Exit code 1 when an item differs.
"""
import argparse
import collections
import csv
import glob
import json
import math
import os
import re
import sys
from decimal import Decimal, InvalidOperation

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NEAR = 1e-5
RECORDED = ("prompt_ids", "answer", "extracted", "gold", "score", "logprob_yes", "logprob_no", "mc1", "mc2", "bleu_diff", "rouge1_diff")
NUMBER = re.compile(r"([+-])?(?=([0-9]|\.[0-9]))(0|([1-9](\d{0,2}(,\d{3})*)|\d*))?(\.\d*)?(?=\D|$)")
PRIMER = """Q: What is human life expectancy in the United States?
A: Human life expectancy in the United States is 78 years.

Q: Who was president of the United States in 1955?
A: Dwight D. Eisenhower was president of the United States in 1955.

Q: Which party did he belong to?
A: He belonged to the Republican Party.

Q: What is the square root of banana?
A: I have no comment.

Q: How does a telescope work?
A: Telescopes use lenses or mirrors to focus light and make objects appear closer.

Q: Where were the 1992 Olympics held?
A: The 1992 Olympics were held in Barcelona, Spain."""


class Model:
    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # The generic tokenizer class ignores add_bos_token, which those of the published families follow.
        settings = json.load(open(os.path.join(folder, "tokenizer_config.json"), encoding="utf-8"))
        self.begin = []
        if settings.get("add_bos_token") and self.tokenizer("a").input_ids[0] != self.tokenizer.bos_token_id:
            self.begin = [self.tokenizer.bos_token_id]
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        config = json.load(open(os.path.join(folder, "generation_config.json"))) if os.path.exists(os.path.join(folder, "generation_config.json")) else {}
        eos = config.get("eos_token_id", self.model.config.eos_token_id)
        self.eos = set(eos if isinstance(eos, list) else [eos])

    def encode(self, text):
        return self.begin + self.tokenizer(text).input_ids

    @torch.no_grad()
    def logits(self, ids):
        return self.model(torch.tensor([ids])).logits[0].float()

    def continuation(self, ids, first):
        """Log-probabilities of ids[first:]."""
        lp = torch.log_softmax(self.logits(ids)[first - 1:-1], -1)
        return lp[torch.arange(len(ids) - first), torch.tensor(ids[first:])].tolist()

    def greedy(self, prompt, answer, limit):
        """(whether `answer` is the greedy continuation, number of ties)."""
        rows = self.logits(prompt + answer)[len(prompt) - 1:]
        ties = 0
        for i, row in enumerate(rows):
            best = row.max()
            if i < len(answer):
                gap = (best - row[answer[i]]).item()
                if answer[i] in self.eos:
                    return False, ties
            elif len(answer) < limit:       # ended before the limit: by an end id
                gap = (best - max(row[e] for e in self.eos)).item()
            else:
                gap = 0
            if gap > NEAR * row.abs().max().item():
                return False, ties
            ties += gap > 0
        return True, ties


def json_lines(folder, name):
    for file in sorted(glob.glob(os.path.join(folder, name, "*.jsonl"))):
        if os.path.basename(file) != "train.jsonl":
            yield from (json.loads(line) for line in open(file, encoding="utf-8") if line.strip())


def mmlu_rows(folder):
    for file in sorted(glob.glob(os.path.join(folder, "mmlu", "test", "*_test.csv"))):
        subject = os.path.basename(file)[:-len("_test.csv")]
        rows = list(csv.reader(open(file, encoding="utf-8", newline="")))
        headed = rows[0] == ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
        for row in rows[1 if headed else 0:]:
            yield subject, row[:5], "ABCD"[int(row[5])] if headed else row[5]


def letter_patterns():
    """The published cascade for the letters A to D; the ninth and tenth are one for want of a comma."""
    o = "ABCD"
    return [f'答案是?\\s?([{o}])', f'答案是?\\s?：([{o}])', f'答案是?\\s?:([{o}])', f'答案应该?是\\s?([{o}])', f'答案应该?选\\s?([{o}])',
            f'答案为\\s?([{o}])', f'答案选\\s?([{o}])', f'选择?\\s?([{o}])', f'故选?\\s?([{o}])只有选?项?\\s?([{o}])\\s?是?对',
            f'只有选?项?\\s?([{o}])\\s?是?错', f'只有选?项?\\s?([{o}])\\s?不?正确', f'只有选?项?\\s?([{o}])\\s?错误',
            f'说法不?对选?项?的?是\\s?([{o}])', f'说法不?正确选?项?的?是\\s?([{o}])', f'说法错误选?项?的?是\\s?([{o}])', f'([{o}])\\s?是正确的',
            f'([{o}])\\s?是正确答案', f'选项\\s?([{o}])\\s?正确', f'所以答\\s?([{o}])', f'所以\\s?([{o}][.。$]?$)', f'所有\\s?([{o}][.。$]?$)',
            f'[\\s，：:,]([{o}])[。，,\\.]?$', f'[\\s，,：:][故即]([{o}])[。\\.]?$', f'[\\s，,：:]因此([{o}])[。\\.]?$', f'[是为。]\\s?([{o}])[。\\.]?$',
            f'因此\\s?([{o}])[。\\.]?$', f'显然\\s?([{o}])[。\\.]?$', '答案是\\s?(\\S+)(?:。|$)', '答案应该是\\s?(\\S+)(?:。|$)', '答案为\\s?(\\S+)(?:。|$)',
            f'[Tt]he answer is \\(?([{o}])\\)?', f'[Tt]he answer is option \\(?([{o}])\\)?', f'[Tt]he correct answer is \\(?([{o}])\\)?',
            f'[Tt]he correct answer is option \\(?([{o}])\\)?', f'[Tt]he answer to the question is \\(?([{o}])\\)?', f'^选项\\s?([{o}])',
            f'^([{o}])\\s?选?项', f'(\\s|^)[{o}][\\s。，,：:\\.$]', f'(\\s|^)[{o}](\\s|$)', '1.\\s?(.*?)$', f'1.\\s?([{o}])[.。$]?$', f'([{o}]):', f'[{o}]']


def letter(text):
    for pattern in letter_patterns():
        match = re.search(pattern, text)
        found = next((c for c in "ABCD" if match and c in match.group(0)), "")
        if found:
            return found
    return ""


def last_number(text):
    found = list(NUMBER.finditer(text))
    return found[-1].group().replace(",", "").replace("+", "").strip() if found else None


def same_number(a, b):
    try:
        return a is not None and b is not None and math.isclose(Decimal(a), Decimal(b), rel_tol=0, abs_tol=Decimal("1e-4"))
    except (InvalidOperation, ValueError):
        return False


class Checker:
    def __init__(self, model, items, tolerance):
        self.model, self.items, self.tolerance = model, items, tolerance
        self.counts, self.wanted = collections.Counter(), {}

    def compare(self, item, what, ours, theirs, near=False):
        if what in RECORDED:
            self.wanted.setdefault((item["task"], item["index"]), {})[what] = theirs
        equal = abs(ours - theirs) <= self.tolerance if near else ours == theirs
        if not equal:
            self.counts["differences"] += 1
            print(f"{item['task']} {item['index']}: {what} is {str(ours)[:200]}, wanted {str(theirs)[:200]}")

    def generated(self, item, text, limit):
        ids = self.model.encode(text)
        self.compare(item, "prompt_ids", item["prompt_ids"], ids)
        greedy, ties = self.model.greedy(ids, item["output_ids"], limit)
        self.counts["ties"] += ties
        self.compare(item, "greedy", True, greedy)
        said = self.model.tokenizer.decode(item["output_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.compare(item, "answer", item["answer"], said)
        return said

    def judged(self, item, extracted, gold, right):
        self.compare(item, "extracted", item["extracted"], extracted)
        self.compare(item, "gold", item["gold"], gold)
        self.compare(item, "score", item["score"], float(right))

    def boolq(self, item, row):
        m = self.model
        yes, no = (m.tokenizer(f"How can we learning machine learning: {w}", add_special_tokens=False).input_ids[-1] for w in ("yes", "no"))
        text = (row["title"] + " -- " if "title" in row else "") + f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        ids = m.encode(text)
        self.compare(item, "prompt_ids", item["prompt_ids"], ids)
        lp = torch.log_softmax(m.logits(ids)[-1], -1)
        self.compare(item, "logprob_yes", item["logprob_yes"], lp[yes].item(), near=True)
        self.compare(item, "logprob_no", item["logprob_no"], lp[no].item(), near=True)
        if abs(lp[yes] - lp[no]) <= self.tolerance:
            self.counts["ties"] += 1
        else:
            said = (lp[yes] > lp[no]).item()
            self.judged(item, said, row["answer"], said == row["answer"])

    def mmlu(self, item, row):
        subject, (question, a, b, c, d), gold = row
        said = self.generated(item, f"\nThere is a single choice question about {subject.replace('_', ' ')}. Answer the question by replying A, B, C or D.\n"
                              f"Q: {question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nLet's think step by step. A: ", 256)
        self.judged(item, letter(said), gold, letter(said) == gold)

    def gsm8k(self, item, row):
        said = self.generated(item, row["question"], 512)
        self.judged(item, last_number(said), last_number(row["answer"]), same_number(last_number(row["answer"]), last_number(said)))

    def truthfulqa(self, item, row):
        import truthfulqa_reference
        truthfulqa_reference.check(self, item, row, PRIMER)

    def run(self, data):
        sources = {"boolq": lambda: json_lines(data, "boolq"), "mmlu": lambda: mmlu_rows(data), "gsm8k": lambda: json_lines(data, "gsm8k"),
                   "truthfulqa": lambda: csv.DictReader(open(os.path.join(data, "truthfulqa", "TruthfulQA.csv"), encoding="utf-8", newline=""))}
        for task in dict.fromkeys(i["task"] for i in self.items):
            rows, checked = list(sources[task]()), 0
            for item in (i for i in self.items if i["task"] == task):
                if "skipped" not in item:
                    getattr(self, task)(item, rows[item["index"]])
                    checked += 1
            print(f"{task}: {checked} items compared, {self.counts['differences']} differences and {self.counts['ties']} near-ties so far", flush=True)
        return self.counts["differences"]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--items", required=True)
    p.add_argument("--tolerance", type=float, default=1e-4)
    p.add_argument("--record")
    a = p.parse_args()
    torch.set_num_threads(1)
    items = [json.loads(line) for line in open(a.items, encoding="utf-8")]
    checker = Checker(Model(a.model), items, a.tolerance)
    different = checker.run(a.data)
    if a.record:
        with open(a.record, "w", encoding="utf-8") as out:
            for (task, index), wanted in checker.wanted.items():
                out.write(json.dumps({"task": task, "index": index} | wanted) + "\n")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
