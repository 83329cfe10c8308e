#!/usr/bin/env python3
"""Holds the runtime to its size and memory: a program of its own around it, and a session of ResNet-18 with 4-bit weights.

usage: check_runtime.py BITSMITH EXAMPLE FOLDER

BITSMITH is the tool, EXAMPLE the runtime's example `run`, both built for release; FOLDER is for what is made here.
"""

import os
import re
import shutil
import subprocess
import sys

MOST_BYTES = 3_000_000
MOST_MEMORY = 60_000_000
# What every Rust program asks of the C library.
SYSTEM = {"linux-vdso", "ld-linux-x86-64", "ld-linux-aarch64", "libc", "libm", "libgcc_s"}


def main(bitsmith, example, folder):
    os.makedirs(folder, exist_ok=True)
    program = os.path.join(folder, "run")
    shutil.copy(example, program)
    subprocess.run(["strip", program], check=True)
    size = os.path.getsize(program)
    needed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    others = {os.path.basename(name) for name in re.findall(r"^\s*(\S+?)\.so", needed, re.MULTILINE)} - SYSTEM

    model = os.path.join(folder, "resnet18")
    quantize = ["quantize", "resnet18", "--method", "ptq", "--data", "random", "--data-limit", "16"]
    bits = ["--weight-bits", "4", "--activation-bits", "4"]
    subprocess.run([bitsmith, *quantize, *bits, "--quiet", "--out", model], check=True, stdout=subprocess.DEVNULL)
    packed = os.path.join(model, "model.bitsmith")
    child = subprocess.Popen([program, packed], stdout=subprocess.PIPE, text=True)
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    # Kibibytes, as Linux counts them.
    memory = usage.ru_maxrss * 1024

    print(said.strip())
    print(f"{size:,} bytes, stripped; {memory / 1e6:.1f} MB at the most for {os.path.getsize(packed):,} bytes of model")
    assert status == 0, status
    assert size < MOST_BYTES, f"the program has {size} bytes"
    assert not others, f"it needs {others}"
    assert memory < MOST_MEMORY, f"it takes {memory} bytes"


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
