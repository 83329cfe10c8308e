#!/usr/bin/env python3
"""Checks ONNX files the way their users would: the official checker, and a run in ONNX Runtime.

    pip install onnx onnxruntime numpy
    scripts/check_onnx.py FILE...                                  # valid, and runs on random input
    scripts/check_onnx.py FILE... --inputs x.npy --expect y.npy    # and gives these outputs
        [--tolerance 1e-4]   largest difference that counts as equal, relative to the largest expected output
        [--top1 0.999]       judge by this share of equal top-1 predictions instead
        [--batch 100]        samples per run

One JSON object per file on stdout: {file, opset, valid, ran, samples, max_abs_diff, top1_agreement, agree, error}. The
exit code is 1 if any file is invalid, does not run or disagrees.
"""
import argparse
import json
import sys

import numpy as np
import onnx
import onnxruntime


def run(path, x, batch):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    if x is None:
        shape = [d if isinstance(d, int) else 2 for d in first.shape]
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if isinstance(first.shape[0], int):
        batch = first.shape[0]
    parts = [session.run(None, {first.name: x[i : i + batch]})[0] for i in range(0, len(x), batch)]
    return np.concatenate(parts)


def check(path, args):
    out = {"file": path, "opset": None, "valid": False, "ran": False, "samples": 0, "max_abs_diff": None,
           "top1_agreement": None, "agree": False, "error": None}
    try:
        model = onnx.load(path)
        out["opset"] = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
        onnx.checker.check_model(path, full_check=True)
        out["valid"] = True
        y = run(path, args.x, args.batch)
        out["ran"], out["samples"] = True, len(y)
        if not np.isfinite(y).all():
            raise ValueError("the output holds NaN or infinity")
        out["agree"] = True
        if args.y is not None:
            if y.shape != args.y.shape:
                raise ValueError(f"the output is {y.shape} but {args.y.shape} is expected")
            out["max_abs_diff"] = float(np.abs(y - args.y).max(initial=0.0))
            out["top1_agreement"] = float((y.argmax(-1) == args.y.argmax(-1)).mean())
            if args.top1 is not None:
                out["agree"] = out["top1_agreement"] >= args.top1
            else:
                out["agree"] = out["max_abs_diff"] <= args.tolerance * max(1.0, float(np.abs(args.y).max(initial=0.0)))
    except Exception as error:  # whatever a file provokes belongs into its line
        out["agree"], out["error"] = False, f"{type(error).__name__}: {error}"[:2000]
    print(json.dumps(out), flush=True)
    return out["agree"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("files", nargs="+")
    ap.add_argument("--inputs")
    ap.add_argument("--expect")
    ap.add_argument("--tolerance", type=float, default=1e-4)
    ap.add_argument("--top1", type=float)
    ap.add_argument("--batch", type=int, default=100)
    args = ap.parse_args()
    if args.expect and not args.inputs:
        ap.error("--expect needs --inputs")
    args.x = np.load(args.inputs).astype(np.float32) if args.inputs else None
    args.y = np.load(args.expect) if args.expect else None
    return 0 if all([check(path, args) for path in args.files]) else 1


if __name__ == "__main__":
    sys.exit(main())
