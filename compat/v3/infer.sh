#!/bin/bash
# The runner of the DeepSeek-V3 sample, with its variables and the guide's defaults.
#   MODEL_DIR=DIR [WORLD_SIZE=8] [INPUT_MAX_LEN=1024] [MAX_NEW_TOKENS=32] [BATCH_SIZE=1] [TOKENIZER_MODE=default|chat] [EXE_MODE=eager|dynamo]
#   [ENABLE_ACLGRAPH=0|1] [NO_CKPT=0|1] [ENABLE_MIX=0|1 ATTN_DP_SIZE=N] [PROMPT=TEXT] bash infer.sh [options of `conclave run`]
set -u
compat=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$compat/common.sh"

model=${MODEL_DIR:-}
[ -n "$model" ] || refuse "MODEL_DIR is not set: the folder of the model${MODEL_NAME:+ $MODEL_NAME}"
options=(--max-input-length "${INPUT_MAX_LEN:-1024}" --max-output-length "${MAX_NEW_TOKENS:-32}" --max-batch-size "${BATCH_SIZE:-1}" --ignore-eos
  --warm-up --compat-output)
case ${TOKENIZER_MODE:-default} in
  default) options+=(--raw --prompt "${PROMPT:-请用一句话说明什么是深度学习？}") ;;
  chat) options+=(--chat --prompt "${PROMPT:-Write a piece of quicksort code in C++.}") ;;
  *) refuse "TOKENIZER_MODE is \"$TOKENIZER_MODE\", wanted default or chat" ;;
esac
case ${EXE_MODE:-eager} in
  eager) ;;
  dynamo) say "EXE_MODE=dynamo has no effect on processors: every buffer is fixed before the first step anyway" ;;
  *) refuse "EXE_MODE is \"$EXE_MODE\", wanted eager or dynamo" ;;
esac
[ "${ENABLE_ACLGRAPH:-0}" = 0 ] || say "ENABLE_ACLGRAPH has no effect on processors"
[ "${NO_CKPT:-0}" = 0 ] || options+=(--random-weights)
rank_options "${WORLD_SIZE:-8}"
if [ "${ENABLE_MIX:-0}" != 0 ] && [ ${#ranks[@]} -gt 0 ]; then options+=(--dp "${ATTN_DP_SIZE:?ENABLE_MIX needs ATTN_DP_SIZE}"); fi
unset WORLD_SIZE RANK LOCAL_RANK MASTER_ADDR MASTER_PORT  # this process is alone: its ranks are threads
run run --model "$model" "${options[@]}" ${ranks[@]+"${ranks[@]}"} "$@"
