"""Comparisons of the Bradley-Terry model, and its estimators with dense matrices in plain NumPy."""

import numpy as np
import torch


def comparisons(n, dim, seed=0, norm=3.0, scale=None):
    """n pairs of a linear reward of that norm: differences [n, D] and labels [n], as float64 tensors, and its theta."""
    random = np.random.default_rng(seed)
    scale = np.ones(dim) / dim**0.5 if scale is None else scale
    z = random.standard_normal((n, dim)) * scale
    theta = random.standard_normal(dim)
    theta *= norm / np.linalg.norm(theta)
    y = (random.random(n) < sigmoid(z @ theta)).astype(float)
    return torch.from_numpy(z), torch.from_numpy(y), theta


def sigmoid(margin):
    return 1.0 / (1.0 + np.exp(-margin))


def hessian(z, theta):
    """The sum of s (1 - s) z z' over the pairs: [D, D]."""
    p = sigmoid(z @ theta)
    return sum(w * np.outer(row, row) for w, row in zip(p * (1 - p), z, strict=True))


def gradient(z, y, theta):
    """The sum of (s - y) z over the pairs: [D]."""
    return sum((p - label) * row for p, label, row in zip(sigmoid(z @ theta), y, z, strict=True))


def mirror_descent_round(h, theta, z, y, eta):
    """One round of Algorithm 1 of arXiv 2502.07193 without a bound: the next H and theta."""
    ahead = h + eta * hessian(z, theta)
    theta = theta - eta * np.linalg.solve(ahead, gradient(z, y, theta))
    return h + hessian(z, theta), theta


def newton(z, y, lam, iterations=60):
    """The theta of the smallest lam / 2 ||theta||^2 + losses, by Newton's method: [D]."""
    theta = np.zeros(z.shape[1])
    for _ in range(iterations):
        slope = lam * theta + gradient(z, y, theta)
        theta = theta - np.linalg.solve(lam * np.eye(len(theta)) + hessian(z, theta), slope)
    assert np.abs(slope).max() < 1e-10
    return theta
