#!/usr/bin/env python3
"""What serving costs beside computing: planning, sampling, handing over, and the threads of the connections (HTTP, JSON, tokenizing), per step
and as a share of the model's own time; and what is added to the time to first token.

    overhead.py [CONCLAVE] [--streams 16] [--tokenizer DIR] [-- options of `conclave serve`]

Default model: ERNIE-4.5-21B-A3B with 6 layers of random int8 weights. The load's own processor time falls on the same machine: measure on an
otherwise idle one. With --tokenizer the texts are that tokenizer's; else ids written as numbers."""
import argparse
import sys

from program import Server

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("program", nargs="?", default="build/conclave")
parser.add_argument("--streams", type=int, default=16)
parser.add_argument("--requests", type=int, default=64)
parser.add_argument("--prompt-tokens", type=int, default=128)
parser.add_argument("--new-tokens", type=int, default=64)
parser.add_argument("--tokenizer")
own = sys.argv[1:sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
options = sys.argv[len(own) + 2:] or ["ernie-4.5-21b-a3b", "--random-weights", "--layers", "6", "--format", "w8a8", "--max-context", "1024"]
arguments = parser.parse_args(own)
if arguments.tokenizer:
    options += ["--tokenizer", arguments.tokenizer]

server = Server(arguments.program, [*options, "--max-batch-size", str(arguments.streams)])
server.bench("--concurrency", arguments.streams, "--requests", arguments.streams, "--new-tokens", 8)
before, cpu_before = server.metrics(), server.thread_seconds()
row = server.bench("--concurrency", arguments.streams, "--requests", arguments.requests, "--prompt-tokens", arguments.prompt_tokens,
                   "--new-tokens", arguments.new_tokens, "--seed", 9)
after, cpu_after = server.metrics(), server.thread_seconds()
spent = lambda key: after[key] - before[key]  # noqa: E731
steps = spent("engine_steps_total")
stage = {name: spent(f'engine_seconds_total{{stage="{name}"}}') for name in ("schedule", "forward", "sample", "deliver")}
connections = cpu_after["connections"] - cpu_before["connections"]
beside = stage["schedule"] + stage["sample"] + stage["deliver"] + connections
alone = server.bench("--concurrency", 1, "--requests", 20, "--prompt-tokens", arguments.prompt_tokens, "--new-tokens", 8, "--seed", 10)
code = server.stop()

print(f"{steps:.0f} steps, {row['output_tokens_per_s']:.1f} output tokens/s, TTFT p50 {row['ttft_ms']['p50']:.0f} ms, errors {row['errors']}")
print("| part | ms per step | share of the model's time |\n|---|---|---|")
for name, seconds in [*stage.items(), ("connections (CPU)", connections), ("all but forward", beside)]:
    print(f"| {name} | {1000 * seconds / steps:.3f} | {100 * seconds / stage['forward']:.2f} % |")
print(f"time to first token beyond queue and prefill, one client: p50 {alone['outside_ms']['p50']:.2f} ms, p99 {alone['outside_ms']['p99']:.2f} ms")
sys.exit(code)
