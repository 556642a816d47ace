#!/usr/bin/env python3
"""One rank of the DeepSeek-MoE port: RANK=0 WORLD_SIZE=8 python3 run_deepseek.py --load_path DIR [options of `conclave run`]

On one host rank 0 runs all ranks as threads of its process and the others have nothing to do. Where LOCAL_RANK differs from RANK, or
COMPAT_RANKS_AS=processes is set, every rank is a process that finds the others through MASTER_ADDR and MASTER_PORT."""
import argparse
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from conclave_program import refuse, run, say  # noqa: E402


def number(name, default):
    text = os.environ.get(name, default)
    if not text.isdecimal():
        refuse(f"{name} is \"{text}\", wanted a whole number")
    return int(text)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--load_path", required=True)
arguments, others = parser.parse_known_args()
rank, world = number("RANK", "0"), number("WORLD_SIZE", "1")
several_hosts = number("LOCAL_RANK", str(rank)) != rank or os.environ.get("COMPAT_RANKS_AS") == "processes"
if rank >= world:
    refuse(f"RANK is {rank}, but WORLD_SIZE is {world}")
ranks = []
if world > 1:
    size = os.environ.get("COMPAT_RANKS") or str(world)
    ranks = ["--tp", size] + ([] if several_hosts else ["--ranks", "threads"])
    if os.environ.get("EXPERT_PARALLEL", "0") not in ("", "0"):
        ranks += ["--moe-ep", size]
if rank > 0 and not several_hosts:
    say(f"rank {rank} of {world} is part of rank 0's process")
    sys.exit(0)
if not several_hosts:  # what the ranks of other processes would need must not reach a process that is alone
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
run(["run", "--model", arguments.load_path, "--prompt", "Who is the CEO of Google?", "--max-output-length", "10", "--raw", "--compat-output",
     *ranks, *others])
