"""Writes tests/data/eval/metrics.jsonl: scores of texts by the packages that define them, and answers found by Python's regular expressions.

    make_eval_vectors.py OUT.jsonl      needs sacrebleu, rouge-score, rouge, torch, transformers
"""
import json
import sys

import sacrebleu
from rouge import Rouge
from rouge_score import rouge_scorer

from eval_reference import last_number, letter

PAIRS = [
    ("The cat sat on the mat.", "The cat sat on the mat."), ("The cat sat on the mat.", "A cat is sitting on a mat."),
    ("Nothing happens; you eat watermelon seeds.", "Nothing happens."), ("I have no comment.", "I have no comment."), ("yes", "no"), ("one two three", "one two three four"),
    ("It cost $3.50, i.e. 10,000 yen (really)!", "It cost $3.50 , that is 10,000 yen."), ("Zürich liegt in der Schweiz – schön!", "Zürich ist schön."),
    ("the the the the the", "the cat the mat"), ("First sentence . Second sentence here . Third", "Second sentence here . First one"),
    ("a b c d e f g", "g f e d c b a"), ("In 1990, in 1991. And 1992", "In 1990. In 1991 and in 1992"), ("東京は日本の首都です。", "日本の首都は東京です。"),
    ("x + y = z", "x + y"), ("word", ""), ("A. B. C.", "A. C. B."), ("line one\nline two\nline three", "line two\nline one"), ("K Ohm İstanbul", "k ohm istanbul"),
]
NUMBERS = ["The answer is 18.", "It costs $1,234.50 in all", "-3 or +4", "no number", "3.", ".5 left", "1,2,3", "12,345,678", "007", "a1b22c", "5-3=2", "1.2.3", "10,00", "x=-0.5!",
           "９ apples", "18.\n#### 72\n", "+ 5", "0", "00", "-", "1e5", "12,34"]
LETTERS = ["The answer is B.", "答案是C", "答案：D", "I think (A) because B is wrong", "", "none", "b", "A", " C ", "So B", "The correct answer is option D", "1. A", "选B", "因此A。", "Answer: C",
           "所以 D", "xAx", "A: yes", "B选项", "选项 C 正确", "只有B正确", "故选A只有选项B是对", "说法错误的是D", "显然C", "答案是 apple", "Cats are Dogs", "D,", "the answer to the question is (B)", "1.\nB",
           "ends with A\n", "为 B.", "A or B", "Is it D? No, C.", "答案应该是B", "The answer is not known. A"]


def main():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"])
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        for said, target in PAIRS:
            row = {"prediction": said, "target": target}
            row["bleu"] = sacrebleu.corpus_bleu([said], [[target]], smooth_method="exp", smooth_value=0.0, force=False, lowercase=False, tokenize="intl",
                                                use_effective_order=False).score
            scores = scorer.score(target=target.replace(" . ", " .\n"), prediction=said.replace(" . ", " .\n"))
            row |= {k: scores[k].fmeasure for k in scores}
            try:
                row["rouge_l"] = Rouge().get_scores([said], [target], avg=True)["rouge-l"]["f"]
            except ValueError:
                row["rouge_l"] = 0.0
            out.write(json.dumps(row) + "\n")
        for text in NUMBERS:
            out.write(json.dumps({"text": text, "number": last_number(text)}) + "\n")
        for text in LETTERS:
            out.write(json.dumps({"text": text, "letter": letter(text)}) + "\n")


if __name__ == "__main__":
    main()
