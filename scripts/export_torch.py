#!/usr/bin/env python3
"""Exports a CIFAR ResNet from PyTorch to ONNX in every way people do, to test that each file can be read.

    pip install torch onnx onnxscript numpy
    scripts/export_torch.py OUT [--weights cifar10_resnet20.safetensors] [--depth 20]

Writes OUT/<exporter>-<mode>[-fixed].onnx for both exporters (the older TorchScript one, and dynamo), inference and
training mode, symbolic and fixed batch; OUT/input.npy and OUT/logits.npy hold an input and what PyTorch answers in
inference mode. The last line on stdout is a JSON list of the files written; files that this PyTorch cannot export are
reported on stderr.
"""
import argparse
import json
import pathlib
import struct
import sys
import warnings

import numpy as np
import onnx
import onnx.numpy_helper
import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    """Two 3x3 convolutions; a shortcut that changes shape takes every second pixel and pads channels (option A)."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.grow = c_out - c_in

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grow:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow // 2, self.grow // 2))
        return F.relu(x + y)


class ResNet(nn.Module):
    """Tensor names as in the usual CIFAR ResNet files: conv1, bn1, layer1.0.conv1, ..., linear."""

    def __init__(self, depth, classes):
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self.stage(16, 16, n)
        self.layer2 = self.stage(16, 32, n)
        self.layer3 = self.stage(32, 64, n)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def stage(c_in, c_out, n):
        return nn.Sequential(*[Block(c_in if i == 0 else c_out, c_out, 1 + (i == 0 and c_in != c_out)) for i in range(n)])

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


def read_safetensors(path):
    """The float tensors of a safetensors file."""
    data = pathlib.Path(path).read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + n]), data[8 + n :]
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = {"F32": np.float32, "I64": np.int64}[entry["dtype"]]
        out[name] = torch.from_numpy(np.frombuffer(body[begin:end], dtype).reshape(entry["shape"]).copy())
    return out


def randomize(model):
    """Weights and statistics that make every layer matter, for runs without a weights file."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def export(model, x, path, dynamo, training, fixed):
    mode = torch.onnx.TrainingMode.TRAINING if training else torch.onnx.TrainingMode.EVAL
    model.train(training)
    common = dict(input_names=["input"], output_names=["logits"], dynamo=dynamo, opset_version=20 if dynamo else 17)
    if dynamo:
        if not fixed:
            common["dynamic_shapes"] = ({0: torch.export.Dim("batch", min=2)},)
        common["external_data"] = not fixed
        # The optimiser would fold batch normalisation away, with the running statistics, also in training mode.
        common["optimize"] = not training
    else:
        common["training"] = mode
        common["do_constant_folding"] = not training
        if not fixed:
            common["dynamic_axes"] = {"input": {0: "batch"}, "logits": {0: "batch"}}
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    torch.onnx.export(model, (x[:1] if fixed else x[:4],), str(path), **common)
    if training and not dynamo:
        restore(path, weights)


def restore(path, weights):
    """The TorchScript exporter runs the model in training mode, which moves its running statistics: put them back."""
    file = onnx.load(str(path))
    for tensor in file.graph.initializer:
        if tensor.name in weights and ".running_" in tensor.name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name].numpy(), tensor.name))
    onnx.save(file, str(path))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--weights", help="safetensors file; random weights without it")
    ap.add_argument("--depth", type=int, default=20)
    ap.add_argument("--classes", type=int, default=10)
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")

    model = ResNet(args.depth, args.classes)
    if args.weights:
        missing, unexpected = model.load_state_dict(read_safetensors(args.weights), strict=False)
        missing = [m for m in missing if not m.endswith("num_batches_tracked")]
        if missing or unexpected:
            sys.exit(f"{args.weights}: missing {missing}, unexpected {unexpected}")
    else:
        randomize(model)
    weights = {k: v.clone() for k, v in model.state_dict().items()}

    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model.eval()(x)
    np.save(args.out / "input.npy", x.numpy())
    np.save(args.out / "logits.npy", logits.numpy())

    written = []
    for dynamo in (False, True):
        for training in (False, True):
            for fixed in (False, True):
                name = f"{'dynamo' if dynamo else 'torchscript'}-{'training' if training else 'inference'}"
                path = args.out / f"{name}{'-fixed' if fixed else ''}.onnx"
                # A training-mode export runs the model and so moves its running statistics.
                model.load_state_dict(weights)
                try:
                    export(model, x, path, dynamo, training, fixed)
                    written.append(str(path))
                except Exception as error:  # each exporter fails in its own way; the others are still worth having
                    print(f"{path.name}: {type(error).__name__}: {str(error)[:2000]}", file=sys.stderr)
    print(json.dumps(written))


if __name__ == "__main__":
    main()
