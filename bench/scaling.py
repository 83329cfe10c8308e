#!/usr/bin/env python3
"""How the time of a training step grows: with the batch, CSQ's planes, threads, and the width of the network.

    pip install matplotlib
    cargo build --release
    python bench/scaling.py --out docs/scaling.svg

Every point is a process of its own, `bitsmith bench train`; the points of all curves alternate over --rounds rounds, and the
fastest median counts: on a machine that is not alone, others only ever add time. One JSON object per point on stdout, then the
picture. `--from FILE` draws points of an earlier run.
"""
import argparse, json, subprocess, sys

ap = argparse.ArgumentParser()
ap.add_argument("--bitsmith", default="target/release/bitsmith")
ap.add_argument("--out", default="docs/scaling.svg")
ap.add_argument("--rounds", type=int, default=3)
ap.add_argument("--seconds", type=float, default=2.0, help="per point and round")
ap.add_argument("--from", dest="saved", help="points of an earlier run, one JSON object per line")
args = ap.parse_args()

BASE = {"model": "resnet20", "batch": 128, "threads": 2, "method": "float"}
BITS = ["--weight-bits", "4", "--activation-bits", "4"]


def point(curve, x, more=(), **changes):
    return {"curve": curve, "x": x, "more": list(more), **{**BASE, **changes}}


points = [point(f"batch, {t} thread{'s' * (t > 1)}", b, batch=b, threads=t) for t in (1, 2) for b in (32, 128, 512)]
points += [point("LSQ W4A4", b, BITS, batch=b, method="lsq") for b in (32, 128, 512)]
points += [point("planes", p, ["--weight-bits", str(p + 1)], method="csq") for p in (2, 4, 7)]
points += [point("width", w, model=m, batch=32) for w, m in ((1, "resnet20"), (2, "resnet20x2"), (4, "resnet20x4"))]


def measure(p):
    command = [args.bitsmith, "bench", "train", "--model", p["model"], "--batch", str(p["batch"]), "--threads",
               str(p["threads"]), "--method", p["method"], "--seconds", str(args.seconds), "--quiet", "--json", *p["more"]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return json.loads(done.stdout)["median_ms"]


if args.saved:
    points = [json.loads(line) for line in open(args.saved) if line.startswith("{")]
else:
    times = [[] for _ in points]
    for _ in range(args.rounds):
        for p, t in zip(points, times):
            t.append(measure(p))
    for p, t in zip(points, times):
        p["ms"] = min(t)
        print(json.dumps({**p, "all_ms": t}), flush=True)

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

curves = {}
for p in points:
    curves.setdefault(p["curve"], []).append((p["x"], p["ms"]))
panels = [
    ("Batch", "images per step", [c for c in curves if c.startswith("batch") or c.startswith("LSQ")]),
    ("CSQ, batch 128", "bit-planes beside the sign", ["planes"]),
    ("Width, batch 32", "channels, times ResNet-20's", ["width"]),
]
plt.rcParams.update({"font.size": 9, "svg.hashsalt": "bitsmith"})
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
for axis, (title, label, names) in zip(axes, panels):
    for name in names:
        xs, ys = zip(*curves[name])
        line = axis.plot(xs, ys, "o-", label=name)[0]
        # What growth in proportion, or by the square of the width, would give from the first point on.
        power = 2 if name == "width" else 1
        if name != "planes":
            axis.plot(xs, [ys[0] * (x / xs[0]) ** power for x in xs], ":", color=line.get_color(), alpha=0.6)
    if title == "CSQ, batch 128":
        axis.set_ylim(0, 1.25 * max(y for name in names for _, y in curves[name]))
    else:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        for a in (axis.xaxis, axis.yaxis):
            a.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%d"))
    axis.set(title=title, xlabel=label, ylabel="ms per step")
    axis.grid(alpha=0.25)
    if len(names) > 1:
        axis.legend(frameon=False)
figure.tight_layout()
figure.savefig(args.out, metadata={"Date": None})
print(f"{args.out} written")
