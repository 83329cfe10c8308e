#!/usr/bin/env python3
"""Kills a training with SIGKILL at random moments, resumes it each time, and compares its files with an uninterrupted run's.

    scripts/check_resume.py --data cifar-10-batches-bin [--weights resnet20.safetensors] [--recipe recipes/cifar10-resnet20-w3a4.toml]
        [--bitsmith target/release/bitsmith] [--kills 3] [--seed 0] [-- --set train.epochs=3 ...]

What follows `--` goes to `bitsmith train`; by default a short run on part of the data. Exit code 1 if a file differs.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

SHORT = ["data.limit=1280", "train.epochs=4", "train.checkpoint_steps=2", "method.target_bits=7", "method.search=0.5",
         "train.trial_batches=1", "finish.compare_uniform=[]", "finish.verify_samples=50"]
SHORT = [part for value in SHORT for part in ("--set", value)]

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--bitsmith", default="target/release/bitsmith")
ap.add_argument("--recipe", default="recipes/cifar10-resnet20-w3a4.toml")
ap.add_argument("--data", required=True)
ap.add_argument("--weights")
ap.add_argument("--threads", default="2")
ap.add_argument("--kills", type=int, default=3)
ap.add_argument("--seed", type=int, default=0)
ap.add_argument("rest", nargs="*")
args = ap.parse_args()


def train(*arguments, kill_after=None):
    """Runs to the end, or kills after some seconds; says whether it was killed."""
    command = [args.bitsmith, "train", *map(str, arguments), "--threads", args.threads, "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = child.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return True
    if child.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{errors[-2000:]}")
    return False


with tempfile.TemporaryDirectory() as scratch:
    whole, killed = pathlib.Path(scratch, "whole"), pathlib.Path(scratch, "killed")
    fresh = [args.recipe, "--data", args.data, *(args.rest or SHORT)]
    fresh += ["--weights", args.weights] if args.weights else []
    began = time.time()
    train(*fresh, "--out", whole)
    took = time.time() - began
    chance = random.Random(args.seed)
    moments, kills = [], 0
    for number in range(args.kills):
        has_begun = (killed / "checkpoints" / "last.ckpt").exists()
        moment = took * chance.uniform(0.1, 0.9 / args.kills + 0.1)
        arguments = [killed, "--resume"] if has_begun else [*fresh, "--out", killed, "--force"]
        kills += train(*arguments, kill_after=moment)
        moments.append(round(moment, 2))
    train(killed, "--resume")
    same = {f: (whole / f).read_bytes() == (killed / f).read_bytes() for f in ("model.bitsmith", "model.onnx")}
print(json.dumps({"seconds": round(took, 1), "killed_after": moments, "kills": kills, "identical": same}))
sys.exit(0 if all(same.values()) and kills == args.kills else 1)
