#!/bin/sh
# Trains, scores and describes all five demo models. Run from the repository root inside the Python environment.
set -eu
for family in mixtral deepseek_v3 deepseek_v2 deepseek ernie4_5_moe; do
  python tools/demo/train.py "$family" --out models
done
python tools/demo/evaluate.py --models models --data tests/data/demo
python tools/demo/card.py --models models --data tests/data/demo
