#!/usr/bin/env python3
"""The weight splitter of the DeepSeek-V3 sample: split_weight.py --model-path DIR --output-path DIR [--world-size 8]

Calls `conclave split`, which reads the published FP8 files directly and holds one tensor at a time. Splitting is optional: every command
also reads its slice straight from the published folder."""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from conclave_program import run  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model-path", required=True)
parser.add_argument("--output-path", required=True)
parser.add_argument("--world-size", type=int, default=8)
arguments = parser.parse_args()
run(["split", "--in", arguments.model_path, "--out", arguments.output_path, "--world", str(arguments.world_size)])
