#!/usr/bin/env python3
"""What a training step of larger networks costs in PyTorch, for a side-by-side ratio on the same machine.

    pip install torch numpy
    python bench/peers/torch_models.py --model resnet18 --what float --batch 16 --channels-last
    python bench/peers/torch_models.py --model mobilenetv2 --what lsq --w-bits 4 --a-bits 4
    python bench/peers/torch_models.py --model vit-tiny-224 --what infer --batch 1

The networks are bitsmith's own built-in ones: `bitsmith bench train --model NAME` is the counterpart. Synthetic batch, SGD with momentum 0.9
and weight decay 5e-4; with `lsq` every layer but the first and last rounds its weight and its input with learned steps, one
tensor expression after another as published code does. One JSON object on stdout with the median of --steps steps.
"""
import argparse, json, resource, statistics, time
import torch
import torch.nn as nn
import torch.nn.functional as F

from lsq import Lsq

ap = argparse.ArgumentParser()
ap.add_argument("--model", choices=["resnet18", "mobilenetv2", "vit-tiny", "vit-tiny-224"], default="resnet18")
ap.add_argument("--what", choices=["float", "lsq", "infer"], default="float")
ap.add_argument("--batch", type=int, default=16)
ap.add_argument("--steps", type=int, default=10)
ap.add_argument("--warmup", type=int, default=3)
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--w-bits", type=int, default=4)
ap.add_argument("--a-bits", type=int, default=4)
ap.add_argument("--channels-last", action="store_true")
args = ap.parse_args()
torch.set_num_threads(args.threads)
torch.manual_seed(0)


class LsqConv(nn.Conv2d):
    def __init__(self, *a, **k):
        super().__init__(*a, **k)
        self.quant_w, self.quant_x = Lsq(args.w_bits, True), Lsq(args.a_bits)

    def forward(self, x):
        return F.conv2d(self.quant_x(x), self.quant_w(self.weight), self.bias, self.stride, self.padding, 1, self.groups)


class LsqLinear(nn.Linear):
    def __init__(self, *a, **k):
        super().__init__(*a, **k)
        self.quant_w, self.quant_x = Lsq(args.w_bits, True), Lsq(args.a_bits)

    def forward(self, x):
        return F.linear(self.quant_x(x), self.quant_w(self.weight), self.bias)


Conv = LsqConv if args.what == "lsq" else nn.Conv2d
Linear = LsqLinear if args.what == "lsq" else nn.Linear


def conv_norm(cin, cout, kernel, stride=1, groups=1, act=None, conv=None):
    layers = [(conv or Conv)(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, *([act] if act else []))


class BasicBlock(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.a = conv_norm(cin, cout, 3, stride, act=nn.ReLU())
        self.b = conv_norm(cout, cout, 3)
        self.shortcut = conv_norm(cin, cout, 1, stride) if stride != 1 or cin != cout else nn.Identity()

    def forward(self, x):
        return F.relu(self.b(self.a(x)) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 64, 7, 2, act=nn.ReLU(), conv=nn.Conv2d), nn.MaxPool2d(3, 2, 1))
        blocks, cin = [], 64
        for cout, stride in [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]:
            blocks.append(BasicBlock(cin, cout, stride))
            cin = cout
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(512, 1000)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Inverted(nn.Module):
    def __init__(self, cin, cout, stride, expand):
        super().__init__()
        wide = cin * expand
        layers = [conv_norm(cin, wide, 1, act=nn.ReLU6())] if expand != 1 else []
        layers += [conv_norm(wide, wide, 3, stride, groups=wide, act=nn.ReLU6()), conv_norm(wide, cout, 1)]
        self.body, self.skips = nn.Sequential(*layers), stride == 1 and cin == cout

    def forward(self, x):
        return x + self.body(x) if self.skips else self.body(x)


class MobileNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        layers, cin = [conv_norm(3, 32, 3, 2, act=nn.ReLU6(), conv=nn.Conv2d)], 32
        for expand, cout, count, stride in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                            (6, 160, 3, 2), (6, 320, 1, 1)]:
            for i in range(count):
                layers.append(Inverted(cin, cout, stride if i == 0 else 1, expand))
                cin = cout
        layers.append(conv_norm(320, 1280, 1, act=nn.ReLU6()))
        self.body, self.head = nn.Sequential(*layers), nn.Linear(1280, 1000)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)
        self.fc1, self.fc2 = Linear(dim, 4 * dim), Linear(4 * dim, dim)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
        x = x + self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    def __init__(self, size, patch, depth, classes, dim=192, heads=3):
        super().__init__()
        self.embed = nn.Conv2d(3, dim, patch, patch)
        self.places = nn.Parameter(torch.randn(1, (size // patch) ** 2, dim) * 0.02)
        self.blocks = nn.Sequential(*[Block(dim, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


build = {"resnet18": ResNet18, "mobilenetv2": MobileNetV2, "vit-tiny": lambda: Vit(32, 4, 6, 10),
         "vit-tiny-224": lambda: Vit(224, 16, 12, 1000)}
model = build[args.model]()
size, classes = (32, 10) if args.model == "vit-tiny" else (224, 1000)
x, y = torch.randn(args.batch, 3, size, size), torch.randint(0, classes, (args.batch,))
if args.channels_last:
    model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
opt = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


def step():
    opt.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), y).backward()
    opt.step()


def infer():
    with torch.inference_mode():
        return model(x)


if args.what == "infer":
    model.eval()
run = infer if args.what == "infer" else step
for _ in range(args.warmup):
    run()
times = []
for _ in range(args.steps):
    t = time.perf_counter()
    run()
    times.append(time.perf_counter() - t)
ms = 1e3 * statistics.median(times)
print(json.dumps({"peer": "pytorch " + torch.__version__, "model": args.model, "what": args.what, "batch": args.batch,
                  "threads": args.threads, "channels_last": args.channels_last, "median_ms": round(ms, 2),
                  "images_per_s": round(args.batch * 1e3 / ms, 1),
                  "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
