#!/bin/sh
# Installs the Debian packages that a purpose needs: packages.sh build|test|bench|clients. Does nothing when all are there.
# Without root or sudo it prints the line to run and stops.
set -eu
build="g++ cmake ninja-build libfmt-dev nlohmann-json3-dev libcli11-dev libspdlog-dev libtomlplusplus-dev libutf8proc-dev libpcre2-dev libedit-dev libboost-dev libssl-dev pkg-config libzmq3-dev libhwloc-dev"
tests="libgtest-dev clang libclang-rt-14-dev python3 python3-numpy python3-venv xz-utils openssl curl libopenmpi-dev openmpi-bin gnuplot-nox"
clients="python3-venv chromium fonts-dejavu-core"
case "${1:-build}" in
  build) wanted=$build ;;
  test) wanted="$build $tests" ;;
  bench) wanted="$build libbenchmark-dev libopenmpi-dev openmpi-bin" ;;
  clients) wanted=$clients ;;
  *) echo "usage: packages.sh build|test|bench|clients" >&2; exit 2 ;;
esac
missing=""
for package in $wanted; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then
  as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
  as_root="sudo"
elif command -v sudo >/dev/null 2>&1 && [ -t 0 ]; then
  as_root="sudo"
else
  echo "Conclave needs these Debian packages. Install them as root, then run make again:" >&2
  echo "  apt-get update && apt-get install -y --no-install-recommends$missing" >&2
  exit 1
fi
echo "Installing Debian packages:$missing" >&2
$as_root apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >&2
