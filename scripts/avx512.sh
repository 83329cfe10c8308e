#!/usr/bin/env bash
# Runs a program on an emulated processor with AVX-512 and VNNI: for tests of kernels that the machine at hand cannot run.
#
#     cargo test --release -p bitsmith-kernels --lib --no-run        # prints the test program's path
#     scripts/avx512.sh target/release/deps/bitsmith_kernels-… integer::tests::any_shape --test-threads 1
#
# Bochs boots a Linux that runs the program and exits with its exit code (124: timeout, 125: no result). Eighty times as slow as the
# machine itself. CPU=corei7_skylake_x is AVX-512 without VNNI, CPU=corei7_haswell_4770 AVX2; TIMEOUT is in seconds.
#
# Debian: apt-get install bochsbios vgabios busybox-static cpio isolinux syslinux-common xorriso; the kernel comes from the package
# linux-image-cloud-amd64, which is unpacked, not installed. Debian's bochs itself has no AVX: build one from its source package, 2.7 or later, and
# name it in BOCHS:
#
#     ./configure --enable-x86-64 --enable-cpu-level=6 --enable-long-phy-address --enable-avx --enable-evex --enable-pci \
#       --enable-all-optimizations --disable-debugger --disable-plugins --disable-docbook --with-nogui && make
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^set/p' "$0" | grep '^#' >&2; exit 125; }
program=$(readlink -f "$1"); shift
bochs=${BOCHS:-bochs}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/bitsmith-avx512
work=$(mktemp -d)
trap 'kill -9 $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

if ! ls "$cache"/boot/vmlinuz-* >/dev/null 2>&1; then
  mkdir -p "$cache"
  package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
  (cd "$work" && apt-get download -qq "$package" && dpkg-deb -x ./*.deb "$cache")
fi

guest=$work/guest
mkdir -p "$guest"/{bin,lib,lib64,proc,sys,dev,tmp} "$work/iso/isolinux"
cp /bin/busybox "$guest/bin/"
cp "$program" "$guest/bin/program"
strip --strip-debug "$guest/bin/program"
ldd "$program" | grep -oE '/[^ ]+' | while read -r library; do
  mkdir -p "$guest$(dirname "$library")" && cp -L "$library" "$guest$library"
done
{ echo '#!/bin/sh'; printf 'exec /bin/program'; printf ' %q' "$@"; echo; } > "$guest/run"
cat > "$guest/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev 2>/dev/null; mount -t tmpfs t /tmp
stty -F /dev/ttyS0 -onlcr
exec </dev/null >/dev/ttyS0 2>&1
echo "guest:$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2)$(grep -m1 flags /proc/cpuinfo | tr ' ' '\n' | grep avx512 | sed 's/^/, /' | tr -d '\n')"
cd /tmp
sh /run
echo "guest: exit $?"
sync; sleep 1; poweroff -f
INIT
chmod +x "$guest"/{init,run,bin/*}
(cd "$guest" && find . | cpio -o -H newc --quiet) > "$work/iso/initrd"
cp "$cache"/boot/vmlinuz-* "$work/iso/vmlinuz"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/iso/isolinux/"
# clearcpuid=580 (FSRM): Bochs reports it without ERMS, which Linux 6.1 does not survive.
cat > "$work/iso/isolinux/isolinux.cfg" <<'BOOT'
DEFAULT l
PROMPT 0
TIMEOUT 0
LABEL l
 KERNEL /vmlinuz
 INITRD /initrd
 APPEND console=ttyS0,115200 quiet nokaslr mitigations=off tsc=reliable no_timer_check clocksource=tsc lpj=1000000 random.trust_cpu=on nowatchdog clearcpuid=580 panic=-1 rdinit=/init
BOOT
xorrisofs -quiet -o "$work/boot.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 \
  -boot-info-table -J -R "$work/iso" 2>/dev/null
cat > "$work/bochsrc" <<BOCHS
display_library: nogui
cpu: model=${CPU:-corei7_icelake_u}, count=1, ips=200000000, reset_on_triple_fault=0
memory: guest=1024, host=1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path=$work/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial
clock: sync=none
log: $work/log
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
BOCHS
touch "$work/serial"
(cd "$work" && exec "$bochs" -q -f bochsrc </dev/null >screen 2>&1) & machine=$!
tail -n +1 -s 0.5 -f --pid=$machine "$work/serial" &
ends=$((SECONDS + ${TIMEOUT:-3600}))
while kill -0 $machine 2>/dev/null && ! grep -qa '^guest: exit' "$work/serial"; do
  sleep 0.5
  [ $SECONDS -lt $ends ] || { echo "no result after ${TIMEOUT:-3600} s" >&2; exit 124; }
done
sleep 1
code=$(tr -d '\r' < "$work/serial" | sed -n 's/^guest: exit //p')
if [ -z "$code" ]; then
  tail -n 10 "$work/screen" >&2
  echo "$bochs gave no result: is it built as the head of this script says?" >&2
  exit 125
fi
if [ -z "${CPU:-}" ] && ! grep -qa 'avx512_vnni' "$work/serial"; then
  echo "$bochs has no AVX-512: build one with --enable-evex and name it in BOCHS" >&2
  exit 125
fi
exit "$code"
