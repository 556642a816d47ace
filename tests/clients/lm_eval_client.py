#!/usr/bin/env python3
"""`lm-eval --model local-completions` against `conclave serve --precision exact`: per item the log-likelihoods that transformers gives (1e-3).

    lm_eval_client.py CONCLAVE GOLDEN_FOLDER REFERENCE.json        exit 1 when an item differs; everything is local"""
import glob
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from server import Server, recorded

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
TOLERANCE = 1e-3


def evaluate(url, name, items, folder):
    data, results = folder / "items.jsonl", folder / "results"
    data.write_text("".join(json.dumps({"question": i["question"], "choices": i["choices"]}) + "\n" for i in items))
    (folder / "task.yaml").write_text(TASK.format(name="choices", data=data))
    arguments = f"model={name},base_url={url}/v1/completions,num_concurrent=2,max_retries=1,tokenizer_backend=remote,tokenized_requests=True"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.run([sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments, "--tasks", "choices",
                          "--include_path", str(folder), "--log_samples", "--output_path", str(results), "--batch_size", "2"],
                         env=environment, capture_output=True, text=True, timeout=600)
    samples = glob.glob(f"{results}/**/samples_choices_*.jsonl", recursive=True)
    if run.returncode or not samples:
        raise RuntimeError(f"lm-eval ended with {run.returncode}: {run.stdout[-1000:]}{run.stderr[-3000:]}")
    rows = [json.loads(line) for line in pathlib.Path(samples[0]).read_text().splitlines()]
    return {row["doc"]["question"]: row["filtered_resps"] for row in rows}


def main():
    program, golden, file = sys.argv[1:4]
    reference = json.loads(pathlib.Path(file).read_text())
    wrong = compared = 0
    for name, items in reference["models"].items():
        server = Server(program, str(pathlib.Path(golden) / name))
        with tempfile.TemporaryDirectory() as folder:
            found = evaluate(recorded(server.url), name, items, pathlib.Path(folder))
        wrong += server.stop()
        for item in items:
            for choice, wanted, got in zip(item["choices"], item["reference"], found[item["question"]], strict=True):
                compared += 1
                difference = abs(float(got[0]) - wanted["log_likelihood"])
                if difference > TOLERANCE or (str(got[1]) == "True") != wanted["greedy"]:
                    wrong += 1
                    print(f"FAILED {name} {item['question']!r} {choice!r}: {got}, transformers {wanted}")
    print(f"lm-eval: {compared} log-likelihoods compared with transformers {reference['transformers']}, {wrong} differ")
    return 1 if wrong or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
