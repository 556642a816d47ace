#!/usr/bin/env python3
"""lm-evaluation-harness 0.4.13 with its own `hf` backend against the same harness over `conclave serve` (`local-completions`): every sample of a
yes-or-no task, a four-option task and a generation task, all from local files.

    lm_eval_compare.py CONCLAVE MODEL DATA [--limit N]     exit 1 when a sample differs

MODEL: a folder that transformers can load. DATA: a folder with boolq/*.jsonl, mmlu/test/*.csv and gsm8k/*.jsonl (tests/data/eval).
Likelihoods may differ by 2e-3 per answer (fp32 sums in another order over tens of tokens), everything else must be equal.
Needs lm-eval[api]==0.4.13, torch, transformers."""
import argparse
import csv
import glob
import json
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import lm_eval  # noqa: E402
import torch  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from server import Server  # noqa: E402

TOLERANCE = 2e-3
TASKS = {
    "local_boolq": """task: local_boolq
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{passage}}}}\\nQuestion: {{{{question}}}}?\\nAnswer:"
doc_to_target: label
doc_to_choice: ["no", "yes"]
metric_list: [{{metric: acc}}]
""",
    "local_arc": """task: local_arc
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: label
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
""",
    "local_sums": """task: local_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["Question:"], do_sample: false, temperature: 0.0, max_gen_toks: 48}}
metric_list: [{{metric: exact_match}}]
""",
}


def write_tasks(data, folder, limit):
    def lines(pattern):
        for file in sorted(glob.glob(os.path.join(data, pattern))):
            yield from map(json.loads, open(file, encoding="utf-8"))

    def choices():
        for file in sorted(glob.glob(os.path.join(data, "mmlu", "test", "*.csv"))):
            for row in csv.reader(open(file, encoding="utf-8", newline="")):
                if row[5].isdigit():
                    yield {"question": row[0], "choices": row[1:5], "label": int(row[5])}

    rows = {"local_boolq": [{"passage": r["passage"], "question": r["question"], "label": int(r["answer"])} for r in lines("boolq/*.jsonl")],
            "local_arc": list(choices()), "local_sums": [{"question": r["question"], "answer": r["answer"]} for r in lines("gsm8k/*.jsonl")]}
    for name, template in TASKS.items():
        assert rows[name], f"{data} has no data for {name}"
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(r) + "\n" for r in rows[name][:limit]), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(template.format(file=file), encoding="utf-8")


def samples(model, arguments, folder, names):
    result = lm_eval.simple_evaluate(model=model, model_args=arguments, tasks=names, task_manager=TaskManager(include_path=str(folder), include_defaults=False),
                                     log_samples=True, batch_size=1, bootstrap_iters=0, device="cpu")
    return result["samples"], result["results"]


def differences(name, ours, theirs):
    for a, b in zip(sorted(ours, key=lambda s: s["doc_id"]), sorted(theirs, key=lambda s: s["doc_id"]), strict=True):
        for key in ("target", "acc", "acc_norm", "exact_match"):
            if a.get(key) != b.get(key):
                yield f"{name} {a['doc_id']}: {key} is {a.get(key)}, wanted {b.get(key)}"
        for x, y in zip(a["filtered_resps"], b["filtered_resps"], strict=True):
            same = x == y if isinstance(x, str) else abs(x[0] - y[0]) <= TOLERANCE and x[1] == y[1]
            if not same:
                yield f"{name} {a['doc_id']}: answered {x}, wanted {y}"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("conclave")
    p.add_argument("model")
    p.add_argument("data")
    p.add_argument("--limit", type=int, default=40)
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_tasks(a.data, folder, a.limit)
        theirs, wanted = samples("hf", f"pretrained={a.model},dtype=float32,max_length=4096", folder, list(TASKS))
        server = Server(a.conclave, a.model, "--max-context", "4096")
        try:
            ours, found = samples("local-completions", f"model={pathlib.Path(a.model).name},base_url={server.url}/v1/completions,tokenizer_backend=huggingface,"
                                  f"tokenizer={a.model},tokenized_requests=True,num_concurrent=1,max_length=4096", folder, list(TASKS))
        finally:
            server.stop()
    wrong = [d for name in TASKS for d in differences(name, ours[name], theirs[name])]
    for name in TASKS:
        print(f"{name}: {len(ours[name])} samples; hf {wanted[name]}; conclave {found[name]}")
    print("\n".join(wrong[:50]) or "no sample differs")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
