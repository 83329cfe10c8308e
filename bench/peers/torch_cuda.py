#!/usr/bin/env python3
"""ResNet-20 on CIFAR-10 in PyTorch on a GPU, for a side-by-side ratio with `bitsmith bench train --device cuda` and `train`.

    pip install torch numpy
    python bench/peers/torch_cuda.py --what float                                  # a training step, synthetic batch
    python bench/peers/torch_cuda.py --what lsq --w-bits 4 --a-bits 4
    python bench/peers/torch_cuda.py --data cifar-10-batches-bin --epochs 5        # training, and accuracy on the test images

The network, its options and SGD are those of bitsmith's recipes; with `lsq` every layer but the first and last rounds its weight and its
input with learned steps, one tensor expression after another as published code does. One JSON object on stdout.
"""
import argparse, json, math, os, statistics, time
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from lsq import Lsq

ap = argparse.ArgumentParser()
ap.add_argument("--what", choices=["float", "lsq"], default="float")
ap.add_argument("--batch", type=int, default=128)
ap.add_argument("--steps", type=int, default=50)
ap.add_argument("--w-bits", type=int, default=4)
ap.add_argument("--a-bits", type=int, default=4)
ap.add_argument("--data", help="folder of CIFAR-10's binary version: train on it instead of timing a step")
ap.add_argument("--epochs", type=int, default=5)
args = ap.parse_args()
device = torch.device("cuda")
torch.manual_seed(1)
torch.backends.cudnn.benchmark = True


class LsqConv(nn.Conv2d):
    def __init__(self, *a, **k):
        super().__init__(*a, **k)
        self.quant_w, self.quant_x = Lsq(args.w_bits, True), Lsq(args.a_bits, False)

    def forward(self, x):
        return F.conv2d(self.quant_x(x), self.quant_w(self.weight), None, self.stride, self.padding)


Conv = LsqConv if args.what == "lsq" else nn.Conv2d


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1, self.bn1 = Conv(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = Conv(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.grow = cout - cin

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grow:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow // 2, self.grow // 2))
        return F.relu(x + y)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nn.Sequential(*[Block(a, b, 2 if a != b else 1) for a, b in zip(widths, widths[1:])])
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


model = ResNet20().to(device).to(memory_format=torch.channels_last)
opt = torch.optim.SGD(model.parameters(), lr=0.1 if args.data else 0.01, momentum=0.9, weight_decay=5e-4)


def step(x, y):
    opt.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    # The loop of a training run reads the loss; so does bitsmith's.
    return loss.item()


def load(name):
    raw = np.fromfile(os.path.join(args.data, name), np.uint8).reshape(-1, 3073)
    x = torch.tensor(raw[:, 1:].reshape(-1, 3, 32, 32)).to(device).float() / 255
    mean, std = ([torch.tensor(v, device=device).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    return (x - mean) / std, torch.tensor(raw[:, 0]).long().to(device)


out = {"peer": "pytorch " + torch.__version__, "gpu": torch.cuda.get_device_name(), "what": args.what, "batch": args.batch}
if args.data:
    train = [load(f"data_batch_{i}.bin") for i in range(1, 6)]
    x, y = torch.cat([t[0] for t in train]), torch.cat([t[1] for t in train])
    began, total = time.perf_counter(), args.epochs * (len(x) // args.batch)
    done = 0
    for epoch in range(args.epochs):
        order = torch.randperm(len(x), device=device)
        for first in range(0, len(x) - args.batch + 1, args.batch):
            for group in opt.param_groups:
                group["lr"] = 0.05 * (1 + math.cos(math.pi * done / total))
            index = order[first : first + args.batch]
            padded = F.pad(x[index], (4, 4, 4, 4))
            # One shift per batch instead of one per image: cheap, and about as good.
            top, left = torch.randint(0, 9, (2,)).tolist()
            batch = padded[:, :, top : top + 32, left : left + 32]
            flips = torch.rand(len(index), 1, 1, 1, device=device) < 0.5
            batch = torch.where(flips, batch.flip(3), batch).contiguous(memory_format=torch.channels_last)
            step(batch, y[index])
            done += 1
    seconds = time.perf_counter() - began
    model.eval()
    tx, ty = load("test_batch.bin")
    with torch.inference_mode():
        correct = sum((model(tx[i : i + 500]).argmax(1) == ty[i : i + 500]).sum().item() for i in range(0, len(tx), 500))
    out |= {"epochs": args.epochs, "seconds": round(seconds, 1), "images_per_s": round(done * args.batch / seconds),
            "accuracy": correct / len(tx)}
else:
    x = torch.randn(args.batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (args.batch,), device=device)
    for _ in range(10):
        step(x, y)
    times = []
    for _ in range(args.steps):
        torch.cuda.synchronize()
        t = time.perf_counter()
        step(x, y)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - t)
    ms = 1e3 * statistics.median(times)
    out |= {"median_ms": round(ms, 2), "images_per_s": round(args.batch * 1e3 / ms)}
print(json.dumps(out))
