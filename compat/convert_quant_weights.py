#!/usr/bin/env python3
"""The quantiser of the Mixtral guide: convert_quant_weights.py --model_path DIR --save_directory DIR

Calls `conclave quantize`, which needs no calibration data. Flags that change nothing in the guide's recipe are named and ignored."""
import argparse
import os
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here)
from conclave_program import run, say  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model_path", required=True)
parser.add_argument("--save_directory", required=True)
parser.add_argument("--w_bit", type=int, default=8, choices=[8])
parser.add_argument("--a_bit", type=int, default=8, choices=[8, 16])
parser.add_argument("--trust_remote_code", action="store_true")
arguments, others = parser.parse_known_args()
if arguments.trust_remote_code:
    say("--trust_remote_code has no effect: no remote code is ever run")
if others:
    say("without effect here: " + " ".join(others))
run(["quantize", "--in", arguments.model_path, "--out", arguments.save_directory, "--format", "w8a8" if arguments.a_bit == 8 else "w8a16",
     "--layout", "description"])
