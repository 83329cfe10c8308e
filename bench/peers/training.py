#!/usr/bin/env python3
"""Training steps of bitsmith beside PyTorch's on this machine: one run, alternating rounds, medians.

    pip install torch numpy
    cargo build --release
    python bench/peers/training.py                                      # the networks of torch_models.py at 224x224
    python bench/peers/training.py --resnet20 torch_step.py             # and ResNet-20, with a script that times its steps
    python bench/peers/training.py --only resnet18 --rounds 1

Every measurement is a process of its own. PyTorch runs as it is strongest: with an allocator that keeps its memory, and in the better of
its two memory layouts, which the first round finds out. One JSON object per line, then a table: images per second and peak memory
of both (medians), and how many times as fast bitsmith is.
"""
import argparse, json, os, statistics, subprocess, sys

ap = argparse.ArgumentParser()
ap.add_argument("--bitsmith", default="target/release/bitsmith")
ap.add_argument("--resnet20", metavar="SCRIPT", help="times PyTorch's steps of ResNet-20; options and output as torch_models.py")
ap.add_argument("--only", default="", help="rows whose name contains this")
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--rounds", type=int, default=3)
ap.add_argument("--seconds", type=float, default=5.0, help="per measurement of ours")
args = ap.parse_args()

ALLOCATOR = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296:glibc.malloc.hugetlb=1"
MODELS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_models.py")
BITS = ["--weight-bits", "4", "--activation-bits", "4"]
TRAIN = ["bench", "train", "--json"]

# Name, PyTorch's script and options, our options, batch.
ROWS = []
if args.resnet20:
    r20 = lambda what, ours, *peer: (f"resnet20 {what}", [args.resnet20, "--what", *peer], TRAIN + ["--model", "resnet20"] + ours, 128)
    ROWS += [
        r20("float", ["--method", "float"], "float"),
        r20("lsq W4A4", ["--method", "lsq", *BITS], "lsq"),
        r20("csq, soft phase", ["--method", "csq", "--weight-bits", "8"], "csq", "--planes", "8"),
        r20("csq, finetuning A4", ["--method", "csq", "--phase", "1", "--activation-bits", "4"], "lsq"),
        r20("saq W4A4", ["--method", "saq", *BITS], "saq"),
        ("resnet20 inference", [args.resnet20, "--what", "infer"], ["bench", "resnet20", "--json"], 128),
    ]
for model in ["resnet18", "mobilenetv2", "vit-tiny-224"]:
    for what, ours in [("float", []), ("lsq", BITS)]:
        name = f"{model} {what}" + (" W4A4" if ours else "")
        ROWS.append((name, [MODELS, "--model", model, "--what", what], TRAIN + ["--model", model, "--method", what] + ours, 16))


def call(command, **env):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peer(script, batch, layout):
    command = [sys.executable, *script, "--batch", str(batch), "--threads", str(args.threads)]
    return call(command + ["--channels-last"] * layout, GLIBC_TUNABLES=ALLOCATOR)


table = []
for name, script, ours, batch in ROWS:
    if args.only not in name:
        continue
    both, layout = [[], []], None
    for _ in range(args.rounds):
        if layout is None:
            first = [peer(script, batch, layout) for layout in (False, True)]
            layout = first[1]["images_per_s"] > first[0]["images_per_s"]
            both[0].append(first[layout])
        else:
            both[0].append(peer(script, batch, layout))
        limits = ["--batch", str(batch), "--threads", str(args.threads), "--seconds", str(args.seconds), "--quiet"]
        both[1].append(call([args.bitsmith, *ours, *limits]))
    pace = [[run["images_per_s"] for run in runs] for runs in both]
    memory = [statistics.median(run["peak_rss_mb"] for run in runs) for runs in both]
    print(json.dumps({"step": name, "batch": batch, "threads": args.threads, "channels_last": layout,
                      "images_per_s": dict(zip(("pytorch", "bitsmith"), pace)),
                      "peak_rss_mb": dict(zip(("pytorch", "bitsmith"), memory))}), flush=True)
    table.append((name, *map(statistics.median, pace), *memory))

print(f"\n{'step':24} {'PyTorch':>9} {'bitsmith':>9} {'times as fast':>14} {'MB':>7} {'ours':>7} {'share':>6}")
for name, theirs, own, their_memory, memory in table:
    print(f"{name:24} {theirs:9.1f} {own:9.1f} {own / theirs:14.2f} {their_memory:7.0f} {memory:7.0f} {memory / their_memory:6.2f}")
