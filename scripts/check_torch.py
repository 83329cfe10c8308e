#!/usr/bin/env python3
"""Checks the whole way of a PyTorch model: export, import, the same logits, training with CSQ, export, ONNX Runtime.

    pip install torch onnx onnxscript onnxruntime numpy
    scripts/check_torch.py --bitsmith target/release/bitsmith [--weights cifar10_resnet20.safetensors] [--data cifar-10-batches-bin]

Runs scripts/export_torch.py (both exporters, inference and training mode, symbolic and fixed batch), then for each file:
logits of `bitsmith run` against PyTorch's, to 1e-4; and for those with a symbolic batch two short epochs of `bitsmith quantize
--method csq`, whose ONNX file must agree with the packed model in ONNX Runtime. Without --data a random set stands in. One JSON
object per file on stdout; exit code 1 if any fails.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

here = pathlib.Path(__file__).parent
ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--bitsmith", default="target/release/bitsmith")
ap.add_argument("--weights", help="safetensors file; random weights without it")
ap.add_argument("--data", default="random", help="CIFAR-10's binary files")
ap.add_argument("--limit", type=int, default=1000, help="samples to train with")
args = ap.parse_args()


def call(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr.strip()[-1500:]}")
    return done.stdout


def check(path, folder):
    out = {"file": path.name, "max_abs_diff": None, "mean_weight_bits": None, "accuracy": None, "agree": False, "error": None}
    try:
        # One sample after another, so that files of a fixed batch can be asked, too.
        x, wanted = np.load(folder / "input.npy"), np.load(folder / "logits.npy")
        step = 1 if "fixed" in path.stem else len(x)
        found = []
        for i in range(0, len(x), step):
            np.save(folder / "part.npy", x[i : i + step])
            call(args.bitsmith, "run", path, "--input", f"input={folder / 'part.npy'}", "--output-dir", folder / "out")
            found.append(np.load(folder / "out" / "logits.npy"))
        out["max_abs_diff"] = float(np.abs(np.concatenate(found) - wanted).max())
        out["agree"] = out["max_abs_diff"] <= 1e-4
        if step == len(x):
            run = folder / path.stem
            made = json.loads(call(
                args.bitsmith, "quantize", path, "--method", "csq", "--target-bits", 6, "--data", args.data, "--data-limit",
                args.limit, "--epochs", 3, "--edge-bits", 0, "--set", "train.distill=0.9", "--set", "train.trial_batches=1", "--out", run, "--json"))
            out["mean_weight_bits"], out["accuracy"] = made["mean_weight_bits"], made["accuracy"]
            call(args.bitsmith, "verify", run / "model.bitsmith", "--data", args.data, "--data-limit", 200, "--onnx", run / "model.onnx")
            out["agree"] &= made["verified"] and made["mean_weight_bits"] <= 6.0
    except (RuntimeError, ValueError, OSError) as error:
        out["error"], out["agree"] = str(error), False
    return out


with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    weights = ["--weights", args.weights] if args.weights else []
    files = json.loads(call(sys.executable, here / "export_torch.py", folder, *weights).splitlines()[-1])
    results = [check(pathlib.Path(f), folder) for f in files]
for result in results:
    print(json.dumps(result))
sys.exit(0 if all(r["agree"] for r in results) else 1)
