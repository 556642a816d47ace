"""What quantisation costs the demo models: score on their test set (`conclave eval --tasks demo`) and divergence from the weights as shipped
(`conclave kl` over the texts of the set), per format. Prints a Markdown table.

    eval_quantised.py [--conclave build/conclave] [--models models/demo-*] [--data tests/data] [--threads 1]
"""
import argparse
import glob
import json
import pathlib
import subprocess
import tempfile

WAYS = [("as shipped", [], []), ("W8A8", ["--format", "w8a8"], []), ("W8A16", ["--format", "w8a16"], []), ("INT4, groups of 32", ["--format", "int4-g32"], []),
        ("int8 KV", [], ["--kv-dtype", "int8"])]


def run(*command):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def score(conclave, model, data, options):
    """Share of right answers in percent with its standard error, and the items."""
    with tempfile.TemporaryDirectory() as folder:
        items = pathlib.Path(folder) / "items.jsonl"
        run(conclave, "eval", model, "--tasks", "demo", "--data", data, "--batch-size", 16, "--items", items, *options)
        right = [json.loads(line)["score"] for line in open(items, encoding="utf-8")]
    mean = sum(right) / len(right)
    return f"{100 * mean:.1f} ± {100 * (mean * (1 - mean) / (len(right) - 1)) ** 0.5:.1f}"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--conclave", default="build/conclave")
    p.add_argument("--models", nargs="*", default=sorted(glob.glob("models/demo-*")))
    p.add_argument("--data", default="tests/data")
    p.add_argument("--threads", default="1")
    a = p.parse_args()
    rows = [json.loads(line) for line in open(pathlib.Path(a.data) / "demo" / "test_set.jsonl", encoding="utf-8")]
    print("| model | | completion, % | chat, % | KL per token, mean | 99 % | same top token, % |\n|---|---|---|---|---|---|---|")
    for model in a.models:
        for name, quantise, options in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                text, used = pathlib.Path(folder) / "text.txt", model
                text.write_text("\n".join(f"{r['prompt']} {r['plain_answer']}" for r in rows), encoding="utf-8")
                if quantise:
                    used = pathlib.Path(folder) / "model"
                    run(a.conclave, "quantize", "--in", model, "--out", used, "--threads", a.threads, *quantise)
                common = ["--threads", a.threads, *options]
                plain, chat = score(a.conclave, used, a.data, common), score(a.conclave, used, a.data, common + ["--chat"])
                second = ["--second-kv-dtype", "int8"] if options else []
                kl = json.loads(run(a.conclave, "kl", model, used, "--text", text, "--window", 128, "--json", "--threads", a.threads, *second))
                print(f"| {pathlib.Path(model).name} | {name} | {plain} | {chat} | {kl['kl_mean']:.2g} | {kl['kl_p99']:.2g} | "
                      f"{100 * kl['top1_agreement']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
