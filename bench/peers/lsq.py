"""Rounding with a learned step size (LSQ, arXiv 1902.08153) as published code writes it: one tensor expression after another."""
import torch
import torch.nn as nn


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class Lsq(nn.Module):
    """Learned step size; signed unless the first input it sees has no negative value."""

    def __init__(self, bits, signed=None):
        super().__init__()
        self.bits, self.signed = bits, signed
        self.step, self.is_set = nn.Parameter(torch.tensor(0.0)), False

    def forward(self, x):
        if self.signed is None:
            self.signed = bool((x < 0).any())
        low, high = (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)
        if not self.is_set:
            self.step.data.fill_(2 * x.detach().abs().mean().item() / high**0.5 + 1e-8)
            self.is_set = True
        gain = 1.0 / (x.numel() * high) ** 0.5
        step = (self.step - self.step * gain).detach() + self.step * gain
        return Round.apply(torch.clamp(x / step, low, high)) * step
