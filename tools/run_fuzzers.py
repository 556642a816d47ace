#!/usr/bin/env python3
"""Runs every fuzz target of a folder for some seconds, seeded with its corpus; a crash, leak or time-out fails.

    run_fuzzers.py BINARIES CORPUS [--seconds N]"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("binaries", type=pathlib.Path)
parser.add_argument("corpus", type=pathlib.Path)
parser.add_argument("--seconds", type=int, default=10)
arguments = parser.parse_args()

targets = sorted(p for p in arguments.binaries.iterdir() if p.is_file() and os.access(p, os.X_OK))
failed = 0
for target in targets:
    seeds = arguments.corpus / target.name
    with tempfile.TemporaryDirectory() as scratch:
        folders = [scratch] + ([str(seeds)] if seeds.is_dir() else [])
        run = subprocess.run([str(target), f"-max_total_time={arguments.seconds}", "-timeout=10", "-rss_limit_mb=2048",
                              "-print_final_stats=1", f"-artifact_prefix={scratch}/", *folders], capture_output=True, text=True)
        executions = re.search(r"number_of_executed_units:\s*(\d+)", run.stderr)
        if run.returncode:
            failed += 1
            print(run.stderr[-4000:])
            for artifact in pathlib.Path(scratch).glob("*-*"):
                if re.match(r"(crash|leak|timeout|oom|slow-unit)-", artifact.name):
                    print(f"{artifact.name}: {artifact.read_bytes()[:400]!r}")
        print(f"fuzz {target.name}: {executions.group(1) if executions else '?'} executions, exit {run.returncode}")
print(f"fuzz: {len(targets) - failed} passed, {failed} failed")
sys.exit(1 if failed or not targets else 0)
