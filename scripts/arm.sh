#!/usr/bin/env bash
# Builds for 64-bit ARM and runs there, on an emulated processor: the tests of kernels and runtime, or what the arguments say.
#
#   scripts/arm.sh                                               # cargo test --release -p bitsmith-kernels -p bitsmith-runtime
#   scripts/arm.sh run --release -p bitsmith-runtime --example run -- model.bitsmith
#
# Needs `rustup target add aarch64-unknown-linux-gnu` and, of Debian, gcc-aarch64-linux-gnu and qemu-user. RUSTFLAGS may name another
# `--sysroot` with a standard library for ARM. QEMU_CPU is the processor, `max` having dot products and `cortex-a53` none.
set -euo pipefail
cd "$(dirname "$0")/.."
for program in aarch64-linux-gnu-gcc qemu-aarch64; do
  command -v "$program" >/dev/null || { echo "$program is missing: apt-get install gcc-aarch64-linux-gnu qemu-user" >&2; exit 1; }
done
target=aarch64-unknown-linux-gnu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
export QEMU_CPU=${QEMU_CPU:-max}
if [ $# = 0 ]; then
  set -- test --release --lib -p bitsmith-kernels -p bitsmith-runtime
fi
command=$1
shift
exec cargo "$command" --target "$target" "$@"
