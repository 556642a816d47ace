#!/bin/bash
# The reference stack's test harness: run.sh <pa_fp16|pa_bf16|fa|basic> MODE [arguments of the mode] BATCH MODEL_NAME [base|chat] WEIGHT_DIR
# [trust_remote_code] CHIPS [PARALLEL_PARAMS] [MAX_POSITION]. Its documented command lines run as they are; docs/performance-tests.md lists
# the modes. Data sets lie in $MODELTEST_DATA (default: ./data).
set -uf
compat=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$compat/common.sh"

take_trust "$@"
set -- ${arguments[@]+"${arguments[@]}"}
usage="run.sh <pa_fp16|pa_bf16|fa|basic> MODE [...] BATCH MODEL_NAME [base|chat] WEIGHT_DIR CHIPS [PARALLEL_PARAMS] [MAX_POSITION]"
data=${MODELTEST_DATA:-data}
options=()

type=${1:-}
case $type in
  pa_fp16) options+=(--dtype f16); say "pa_fp16: weights are held as f16" ;;
  pa_bf16) options+=(--dtype bf16); say "pa_bf16: weights are held as bf16" ;;
  fa) options+=(--kv contiguous); say "fa: a contiguous cache" ;;
  basic) ;;
  *) refuse "the first argument is \"$type\", wanted pa_fp16, pa_bf16, fa or basic: $usage" ;;
esac
shift
mode=${1:-}
shift

# The arguments of the mode, up to the batch size.
pairs="" ranges="" limit_ms="" text="" shots="" context="" batch="" dataset=""
case $mode in
  performance | performance_maxbs | performance_single | precision_single)
    pairs=${1:-}
    [[ $pairs == \[* ]] || refuse "$mode: \"$pairs\" stands where [[input,output],...] is wanted"
    shift ;;
  full_CEval | full_MMLU | full_CMMLU) shots=${1:-}; shift ;;
  full_NeedleBench) context=${1:-}; shift ;;
  full_BoolQ | full_GSM8K | full_TruthfulQA | full_HumanEval | full_HumanEval_X | full_LongBench | full_LongBench-E | full_GPQA | full_AIME2024) ;;
  edge_BoolQ | edge_GSM8K) options+=(--limit 100) ;;
  simplified_*) refuse "$mode compares logits with a recorded run, which no version of the harness finished; use \`conclave kl MODEL_A MODEL_B --text FILE\`" ;;
  *) refuse "mode is \"$mode\"; wanted performance, performance_maxbs, performance_single, precision_single or full_<data set>" ;;
esac
if [ "$mode" = performance_maxbs ]; then
  ranges="1,2000"
  if [[ ${1:-} == \[* ]]; then ranges=$1; shift; fi
  limit_ms=${1:-}; shift
else
  case $mode in *_single) text=${1:-}; shift ;; esac
  batch=${1:-}; shift
fi
if [ "$mode" = performance ]; then
  if [[ ${1:-} =~ ^[0-9]+$ ]]; then say "a prefill batch of $1 is not needed: prompts are computed in chunks of --step-tokens"; shift; fi
  if [ "${1:-}" = prefill_length ]; then say "prefill_length is not needed: there are no separate prefill and decode roles"; shift 2; fi
  if [ "${1:-}" = dataset ]; then
    dataset=${2:-}; shift 2
    case $dataset in
      boolq) file=dev.jsonl ;;
      gsm8k) file=GSM8K.jsonl ;;
      humaneval) file=human-eval.jsonl ;;
      customize) file=customize.jsonl ;;
      *) refuse "data set is \"$dataset\", wanted boolq, gsm8k, humaneval or customize" ;;
    esac
    options+=(--dataset "$data/$dataset/$file")
    if [ "${1:-}" = padding ]; then options+=(--pad); shift; fi
    if [[ ${1:-} =~ ^[0-9]+$ || ${1:-} == INF ]]; then options+=(--batches "${1/INF/all}"); shift; fi
  fi
fi

# The model and the world.
name=${1:-}
[ $# -ge 3 ] || refuse "model name, folder or number of chips is missing: $usage"
shift
chat=""
case ${1:-} in chat | base) chat=$1; shift ;; esac
if [ "${1:-}" = lora ]; then refuse "lora: adapters are not supported; merge them into the weights"; fi
model=${1:-}; shift
found=$(model_type "$model") || exit 2
case $name:$found in
  deepseek:deepseek | mixtral:mixtral | ernie_moe:ernie4_5_moe | deepseekv2:deepseek_v2 | deepseekv2:kimi_k2 | deepseekv3:deepseek_v3) ;;
  *) refuse "model name is \"$name\", but $model/config.json says model_type \"$found\"; wanted deepseek, mixtral, ernie_moe, deepseekv2 or deepseekv3, and the model of that name" ;;
esac
chips=${1:-}
if ! [[ $chips =~ ^[0-9]+$ ]]; then  # RANK_TABLE WORLD_SIZE HOSTS FIRST_RANK MASTER_ADDR
  [ $# -ge 5 ] || refuse "\"$chips\" stands where the number of chips is wanted, or for several hosts RANK_TABLE WORLD_SIZE HOSTS FIRST_RANK MASTER_ADDR"
  say "the rank table $chips is not needed: ranks find each other through the master's address"
  host_share="$2 $3 $4 $5" chips=$2
  [[ $chips =~ ^[0-9]+$ ]] || refuse "\"$chips\" stands where the number of ranks is wanted"
  shift 4
fi
shift

case $mode in performance | performance_maxbs) command=perf ;; *_single) command=run ;; *) command=eval ;; esac
if [[ ${1:-} == \[* ]]; then
  IFS=, read -ra sizes <<< "${1//[\[\] ]/}"
  names=(dp tp sp moe-tp moe-ep pp microbatch cp) ranks=()
  [ ${#sizes[@]} -le ${#names[@]} ] || refuse "parallel_params is $1, wanted at most ${#names[@]} numbers: ${names[*]}"
  others=1  # ranks that dp, pp and cp account for; tp is the rest unless it is given
  for i in "${!sizes[@]}"; do
    [[ ${sizes[i]} =~ ^(-1|[0-9]+)$ ]] || refuse "parallel_params is $1: \"${sizes[i]}\" is not a number"
    [ "${sizes[i]}" -ge 1 ] || continue
    ranks+=("--${names[i]}" "${sizes[i]}")
    case ${names[i]} in dp | pp | cp) others=$((others * sizes[i])) ;; esac
  done
  if [ "${sizes[1]:--1}" -lt 1 ]; then
    world=${COMPAT_RANKS:-$chips}
    [ $((world % others)) = 0 ] && [ "$world" -ge 1 ] || refuse "parallel_params is $1: dp, pp and cp make $others, which does not divide $world ranks"
    ranks+=(--tp $((world / others)))
  fi
  [ -n "$host_share" ] || rank_layout
  shift
elif [ -n "$host_share" ]; then ranks=(--tp "$chips")
else rank_options "$chips"
fi
if [ $# -ge 1 ]; then options+=(--max-position-embeddings "$1"); shift; fi
[ $# -eq 0 ] || refuse "unexpected: $*"
options+=(${ranks[@]+"${ranks[@]}"})

# Texts of a *_single mode: a list in brackets, or a file with one per line.
dictionary_of() {
  python3 - "$1" << 'PYTHON' || refuse "\"$1\" is neither a list of texts [\"...\"] nor a readable file"
import ast, json, sys
try:
    texts = ast.literal_eval(sys.argv[1])
except (ValueError, SyntaxError):
    texts = open(sys.argv[1], encoding="utf-8").read().splitlines()
print(json.dumps([{"prompt": str(text)} for text in texts]))
PYTHON
}

case $mode in
  performance) run perf "$model" --cases "$pairs" --batch "$batch" --name "${name/ernie_moe/ernie}" "${options[@]}" ;;
  performance_maxbs) run perf "$model" --cases "$pairs" --max-batch "$ranges" --limit-ms "$limit_ms" --name "${name/ernie_moe/ernie}" "${options[@]}" ;;
  *_single)
    [[ $pairs =~ ^\[+([0-9]+),([0-9]+)\]+$ ]] || refuse "$mode: \"$pairs\" stands where one pair [[input,output]] is wanted"
    dictionary=$(dictionary_of "$text") || exit 2
    [ "$chat" = chat ] && options+=(--chat) || options+=(--raw)
    [ "$mode" = performance_single ] && options+=(--ignore-eos --benchmark)
    run run --model "$model" --input-dict "$dictionary" --max-input-length "${BASH_REMATCH[1]}" --max-output-length "${BASH_REMATCH[2]}" \
      --max-batch-size "${batch//[\[\]]/}" --compat-output "${options[@]}" ;;
  *)
    task=${mode#*_}
    case $task in LongBench-E) task=longbench_e ;; *) task=${task,,} ;; esac
    [ "$chat" = chat ] && options+=(--chat)
    [ -z "$shots" ] || options+=(--shots "$shots")
    [ -z "$context" ] || options+=(--context "$context")
    run eval "$model" --tasks "$task" --data "$data" --batch-size "${batch//[\[\]]/}" --output outputs --model-name "${name/ernie_moe/ernie}" "${options[@]}" ;;
esac
