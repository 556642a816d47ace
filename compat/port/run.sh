#!/bin/bash
# The start script of the tensor- and expert-parallel DeepSeek-MoE port: one call per rank, as there. On one host the ranks are threads of
# the first one's process.
#   weight_dir=DIR bash run.sh      (or: bash run.sh DIR)
# WORLD_SIZE (8), RANK_ID_START (0): as in the port. EXPERT_PARALLEL=1 stands for its expert_parallel switch.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
weight_dir=${1:-${weight_dir:-}}
if [ -z "$weight_dir" ]; then echo "compat: error: weight_dir is not set: the folder of the model" >&2; exit 2; fi
export WORLD_SIZE=${WORLD_SIZE:-8} MASTER_ADDR=${MASTER_ADDR:-localhost}
start=${RANK_ID_START:-0}
pids=()
for ((rank = start; rank < WORLD_SIZE; rank++)); do
  LOCAL_RANK=$rank RANK=$rank python3 "$here/run_deepseek.py" --load_path "$weight_dir" &
  pids+=($!)
done
code=0
for pid in "${pids[@]}"; do
  wait "$pid" || code=$?
done
exit "$code"
