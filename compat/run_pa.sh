#!/bin/bash
# The dialogue scripts of the DeepSeek-MoE, Mixtral and ERNIE guides: asks the guide's question.
#   run_pa.sh MODEL [-trust_remote_code] [DP TP MOE_TP MOE_EP] [options of `conclave run`]
# The flag may stand anywhere. The world size is the number of ids in ASCEND_RT_VISIBLE_DEVICES, or what the four numbers say.
set -u
compat=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$compat/common.sh"

take_trust "$@"
set -- ${arguments[@]+"${arguments[@]}"}
[ $# -ge 1 ] || refuse "no model given: run_pa.sh MODEL [-trust_remote_code] [DP TP MOE_TP MOE_EP]"
model=$1
shift
family=$(model_type "$model") || exit 2
question_of "$family"

numbers=()
while [ $# -ge 1 ] && [[ $1 =~ ^-?[0-9]+$ ]]; do numbers+=("$1"); shift; done
case ${#numbers[@]} in
  0) rank_options "$(visible_devices)" ;;
  4)
    names=(dp tp moe-tp moe-ep) ranks=()
    for i in 0 1 2 3; do [ "${numbers[i]}" -lt 1 ] || ranks+=("--${names[i]}" "${numbers[i]}"); done
    rank_layout ;;
  *) refuse "${#numbers[@]} numbers after the model, wanted none or four: DP TP MOE_TP MOE_EP" ;;
esac
run run --model "$model" --prompt "$question" --max-output-length "$length" --chat --compat-output ${ranks[@]+"${ranks[@]}"} "$@"
