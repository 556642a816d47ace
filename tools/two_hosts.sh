#!/bin/sh
# Runs a command as four ranks on two hosts, which are network namespaces joined by a link with 1 ms of delay and 1 % of loss (where the
# kernel has netem). Needs root, iproute2, and Open MPI for --start mpi. Removes all it made.
#   tools/two_hosts.sh [--start variables|mpi] [--cut-after SECONDS] [--plain-link] COMMAND...
# --start variables (the default) sets WORLD_SIZE, RANK ... for each process as torchrun would; --start mpi uses mpirun.
# --cut-after takes the link down: every rank must then end by itself. Prints the longest time that took.
# Exit code: that of the first rank that failed, or of mpirun.
set -eu
start=variables cut="" plain=""
while [ $# -gt 0 ]; do
  case "$1" in
    --start) start=$2; shift 2 ;;
    --cut-after) cut=$2; shift 2 ;;
    --plain-link) plain=yes; shift ;;
    --) shift; break ;;
    -*) sed -n '2,8p' "$0" | cut -c3- >&2; exit 2 ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || { sed -n '2,8p' "$0" | cut -c3- >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "two_hosts.sh: needs root for network namespaces" >&2; exit 2; }

a=cclv$$a b=cclv$$b work=$(mktemp -d)
cleanup() {
  for host in $a $b; do
    ip netns pids $host 2>/dev/null | while read -r process; do kill -KILL "$process" 2>/dev/null || true; done
    ip netns del $host 2>/dev/null || true
  done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

ip netns add $a
ip netns add $b
ip link add l$$a netns $a type veth peer name l$$b netns $b
for side in a b; do
  host=cclv$$$side
  ip -n $host link set lo up
  ip -n $host addr add "10.77.0.$([ $side = a ] && echo 1 || echo 2)/24" dev l$$$side
  ip -n $host link set l$$$side up
  [ -n "$plain" ] || ip netns exec $host tc qdisc add dev l$$$side root netem delay 1ms loss 1% 2>/dev/null ||
    echo "two_hosts.sh: this kernel has no netem: link without delay and loss" >&2
done

# A host of its own name, or MPI would take both for one.
cat > "$work/on" <<'EOF'
#!/bin/sh
# on HOST COMMAND...
host=$1
shift
exec ip netns exec "$host" unshare --uts sh -c 'hostname "$0" && exec sh -c "$*"' "$host" "$@"
EOF
chmod +x "$work/on"
printf '10.77.0.1 %s\n10.77.0.2 %s\n127.0.0.1 localhost\n' $a $b > "$work/hosts"
mkdir -p /etc/netns/$a /etc/netns/$b
cp "$work/hosts" /etc/netns/$a/hosts
cp "$work/hosts" /etc/netns/$b/hosts
cleanup_all() { cleanup; rm -rf /etc/netns/$a /etc/netns/$b; rmdir /etc/netns 2>/dev/null || true; }
trap cleanup_all EXIT

quoted=""
for word in "$@"; do quoted="$quoted '$(printf %s "$word" | sed "s/'/'\\\\''/g")'"; done
if [ -n "$cut" ]; then
  (sleep "$cut"; date +%s.%N > "$work/cut"; ip -n $a link set l$$a down) &
fi

code=0
if [ "$start" = mpi ]; then
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "$work/on" $a "mpirun --mca plm_rsh_agent '$work/on' --mca orte_keep_fqdn_hostnames 1 \
    --mca btl tcp,vader,self --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 \
    -x OMPI_ALLOW_RUN_AS_ROOT -x OMPI_ALLOW_RUN_AS_ROOT_CONFIRM --host $a:2,$b:2 -n 4 $quoted" || code=$?
else
  rank=0
  ranks=""
  for host in $a $a $b $b; do
    "$work/on" $host "WORLD_SIZE=4 RANK=$rank LOCAL_RANK=$((rank % 2)) MASTER_ADDR=10.77.0.1 CONCLAVE_JOB=two-hosts-$$ $quoted; code=\$?; date +%s.%N > '$work/end$rank'; exit \$code" &
    ranks="$ranks $!"
    rank=$((rank + 1))
  done
  for process in $ranks; do
    wait "$process" || { status=$?; [ $code != 0 ] || code=$status; }
  done
  if [ -f "$work/cut" ]; then
    sort -n "$work"/end* | tail -1 | { read -r end; echo "two_hosts.sh: the last rank ended $(echo "$end - $(cat "$work/cut")" | awk '{printf "%.1f", $1 - $3}') s after the link was cut"; }
  fi
fi
exit $code
