# What the wrappers share; sourced with `compat` set to this folder. Only this file knows where the program is and how ranks are asked for.

# The program: $CONCLAVE, else the build beside this folder, else PATH.
if [ -n "${CONCLAVE:-}" ]; then conclave=$CONCLAVE
elif [ -x "$compat/../build/conclave" ]; then conclave=$compat/../build/conclave
else conclave=conclave
fi

host_share=""  # of a world over several hosts: "WORLD HOSTS FIRST MASTER"
say() { echo "compat: $*" >&2; }
refuse() { say "error: $*"; exit 2; }

# rank_options N: sets `ranks` to the options for a world of N. COMPAT_RANKS replaces N: a machine or a model may allow fewer.
rank_options() {
  local world=${COMPAT_RANKS:-$1}
  [[ $world =~ ^[0-9]+$ && $world -ge 1 ]] || refuse "world size is \"$world\", wanted a whole number of at least 1"
  ranks=()
  [ "$world" = 1 ] || ranks=(--tp "$world")
  rank_layout
}

# rank_layout: makes the layout in `ranks` (--tp 8, ...) one of threads in one process.
rank_layout() { [ ${#ranks[@]} -eq 0 ] || ranks+=(--ranks threads); }

# take_trust ARGUMENTS...: sets `arguments` to them without the flag for remote code, wherever and however it is written.
take_trust() {
  arguments=()
  local argument
  for argument in "$@"; do
    case $argument in
      trust_remote_code | -trust_remote_code | --trust_remote_code | --trust-remote-code)
        say "$argument has no effect: no remote code is ever run" ;;
      *) arguments+=("$argument") ;;
    esac
  done
}

# model_type FOLDER: of its config.json.
model_type() {
  [ -f "$1/config.json" ] || refuse "$1/config.json is not there; wanted the folder of a model"
  sed -n 's/^.*"model_type"[[:space:]]*:[[:space:]]*"\([a-z0-9_]*\)".*$/\1/p' "$1/config.json" | head -n 1
}

# The documented question and answer length of a family: sets `question` and `length`.
question_of() {
  case $1 in
    ernie*) question="What's Deep Learning?" length=20 ;;
    *) question="Who is the CEO of Google?" length=10 ;;
  esac
}

# Number of ids in the list of visible devices, 1 without a list.
visible_devices() {
  local ids
  IFS=, read -ra ids <<< "${ASCEND_RT_VISIBLE_DEVICES:-0}"
  echo ${#ids[@]}
}

# run_host WORLD HOSTS FIRST MASTER COMMAND...: this host's share of a world over several hosts, one process per rank.
run_host() {
  local world=$1 hosts=$2 first=$3 master=$4 rank code=0 pids=()
  shift 4
  for rank in "$world" "$hosts" "$first"; do [[ $rank =~ ^[0-9]+$ ]] || refuse "\"$rank\" stands where a number is wanted: RANK_TABLE WORLD_SIZE HOSTS FIRST_RANK MASTER_ADDR"; done
  [ "$hosts" -ge 1 ] && [ $((world % hosts)) = 0 ] && [ $((first + world / hosts)) -le "$world" ] ||
    refuse "$world ranks from $first on do not divide among $hosts hosts"
  say "ranks $first to $((first + world / hosts - 1)) of $world: $(printf '%q ' "${conclave##*/}" "$@")"
  for ((rank = first; rank < first + world / hosts; rank++)); do
    RANK=$rank LOCAL_RANK=$((rank - first)) WORLD_SIZE=$world MASTER_ADDR=$master MASTER_PORT=${MASTER_PORT:-12345} "$conclave" "$@" &
    pids+=($!)
  done
  for rank in "${pids[@]}"; do wait "$rank" || code=$?; done
  exit "$code"
}

run() {
  [ -z "$host_share" ] || run_host $host_share "$@"
  say "$(printf '%q ' "${conclave##*/}" "$@")"
  exec "$conclave" "$@"
}
