"""One-pass reward modelling for a network: damped Newton steps, each by the Hessian of its own batch."""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from grpovi_lightning.distributed import world_size
from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.rewards.online.conjugate_gradient import conjugate_gradient


class OnePassOptimizer(torch.optim.Optimizer):
    """theta <- theta - lr * x, with x from K steps of conjugate gradient for (Hess_t + lambda_t I) x = g_t.

    The update for neural networks of arXiv 2502.07193 (Algorithm 5). g_t and Hess_t are gradient and Hessian of the
    loss of batch t over all parameters given; only products of Hess_t with vectors are computed (Pearlmutter, 1994).
    Unlike the linear estimator it keeps no Hessians of earlier batches and does not project. The damping
    lambda_t = damping * min(1, t / total_steps) takes their place; as it grows, x tends to g_t / lambda_t, a step of
    SGD. The parameters may be those of a linear head, where the loss is convex, or of the full model.

    The loss comes from a closure, so that the optimizer drops into any Lightning module with automatic optimization.
    The scale of the loss matters: the mean over b pairs has 1 / b of the Hessian of their sum, which the linear
    estimator takes, beside the same damping.

    For the loss x'x the Hessian is 2 I, and with damping 0.5 a step takes x - 2 x / (2 + 0.5) = 0.2 x:

    >>> x = nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> def closure():
    ...     x.grad = None
    ...     (x @ x).backward()
    >>> OnePassOptimizer([x], lr=1.0, total_steps=1, damping=0.5).step(closure)
    >>> [round(value, 4) for value in x.tolist()]
    [0.2, 0.4]

    Left open by the paper, and chosen here:
        - The first update has t = 1: with lambda = 0 the system of a small batch is singular.
        - A full model's Hessian can be indefinite. An iteration that meets a direction of negative curvature ends
          there. If the direction is g_t itself, x is g_t divided by the size of its curvature, at least lambda_t (see
          `conjugate_gradient`), so that `lr` means the same as in other updates. `n_negative_curvature` counts these
          updates; if it is nearly all of them, raise `damping`.
        - g_t is read from `.grad` after the closure. Lightning clips there, so the right-hand side is the clipped
          gradient; the Hessian is that of the loss itself.

    A Hessian-vector product differentiates the backward pass. During an update `scaled_dot_product_attention` therefore
    runs on its mathematical kernel, the only one that can be differentiated twice. Other fused kernels, such as
    `flash_attention_2`, and compiled models cannot, and PyTorch says so. The graph of the batch is kept until the
    update is done.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        total_steps: int,
        n_steps: int = 3,
        damping: float = 0.8,
    ) -> None:
        """Check the settings; the defaults are the paper's.

        Args:
            params: leaf tensors, or groups of them with their own `lr`. Only these get gradients.
            lr: eta, the step size; 1 is a damped Newton step.
            total_steps: T, updates until the damping has its full value: the length of the run.
            n_steps: K, conjugate gradient steps an update, each with one Hessian-vector product.
            damping: lambda_0, the value that the damping reaches.

        Raises:
            UserError: a setting is out of range, or the parameters cannot be optimised.
        """
        at_least_one("one-pass optimizer ", total_steps=total_steps, n_steps=n_steps)
        if not damping > 0.0:
            raise UserError(f"one-pass optimizer damping: got {damping}, expected a positive number such as 0.8")
        try:
            super().__init__(params, {"lr": lr})
        except ValueError as error:
            raise UserError(f"one-pass optimizer: {error}; expected the trainable leaf tensors of a model") from error
        for group in self.param_groups:
            if not group["lr"] > 0.0:
                raise UserError(f"one-pass optimizer lr: got {group['lr']}, expected a positive number such as 1.0")
        self.total_steps, self.n_steps, self.damping = total_steps, n_steps, damping

    @property
    def n_updates(self) -> int:
        """Updates made, over the whole run: t of the last one."""
        return self._counts.get("n_updates", 0)

    @property
    def n_negative_curvature(self) -> int:
        """Updates, over the whole run, whose conjugate gradient met a direction of negative curvature."""
        return self._counts.get("n_negative_curvature", 0)

    @property
    def _counts(self) -> dict[str, int]:
        """Counts of the run, kept with the first parameter, as in `LBFGS`: so they are part of `state_dict`."""
        return self.state[self.param_groups[0]["params"][0]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one update.

        Args:
            closure: clears the gradients of earlier batches, computes the loss and calls its `backward()` once. What it
                returns is returned.

        Raises:
            UserError: there is no closure, it does not call `backward()` exactly once, gradients were accumulated, or
                more than one process trains.
            TrainingError: gradient or curvature is not finite; the parameters have not changed.
        """
        if closure is None:
            raise UserError(
                "one-pass optimizer: got step() without a closure, expected one that computes the loss and calls "
                "backward(); in Lightning use automatic optimization, and bf16-mixed instead of 16-mixed precision"
            )
        _refuse_several_processes()
        parameters = [p for p, _ in self._trained()]
        with sdpa_kernel(SDPBackend.MATH):
            with torch.enable_grad(), _KeptGraph(parameters) as graph:
                result = closure()
            self._update(graph)
        return result

    def _trained(self) -> list[tuple[nn.Parameter, dict[str, Any]]]:
        """Return the parameters that are not frozen, each with its group."""
        return [(p, group) for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _update(self, graph: "_KeptGraph") -> None:
        if graph.gradients is None:
            raise UserError(
                "one-pass optimizer: the closure never called backward() on a loss, expected one call; return a loss "
                "from every training step"
            )
        t = self.n_updates + 1
        damping = self.damping * min(1.0, t / self.total_steps)
        right_hand_side = graph.flat([p.grad for p in graph.parameters])
        found = conjugate_gradient(
            lambda v: graph.hessian_product(v).add_(v, alpha=damping), right_hand_side, self.n_steps, floor=damping
        )
        for (p, group), change in zip(self._trained(), graph.split(found.solution), strict=True):
            p.sub_(change, alpha=group["lr"])
        self._counts.update(n_updates=t, n_negative_curvature=self.n_negative_curvature + int(found.negative_curvature))


class _KeptGraph(TorchFunctionMode):
    """A context in which `loss.backward()` fills `.grad` as usual, and keeps the graph of the gradients."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.parameters = parameters
        self.gradients: tuple[Tensor | None, ...] | None = None
        self.dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.backward:
            return self._backward(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _backward(self, loss: Tensor, gradient: Any = None, inputs: Any = None, **keep: bool) -> None:
        """Replace `Tensor.backward`. `keep` (`retain_graph`, `create_graph`) is ignored: the graph is always kept."""
        if self.gradients is not None or gradient is not None or inputs is not None:
            raise UserError(
                "one-pass optimizer: got a second backward() in one closure, or one with `gradient` or `inputs`, "
                "expected a single plain loss.backward(); add the losses up first"
            )
        if any(p.grad is not None and bool(p.grad.any()) for p in self.parameters):
            raise UserError(
                "one-pass optimizer: got gradients of earlier batches, expected none, as their curvature is gone; set "
                "accumulate_grad_batches: 1, or call zero_grad() before backward()"
            )
        self.gradients = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        for p, g in zip(self.parameters, self.gradients, strict=True):
            p.grad = None if g is None else g.detach().clone()  # clipping in place must not reach the graph

    def hessian_product(self, vector: Tensor) -> Tensor:
        """Return the loss's Hessian times a vector, as the gradient of g'v: [N] -> [N]."""
        assert self.gradients is not None
        parts = zip(self.gradients, self.split(vector), strict=True)
        curved = [(g, v) for g, v in parts if g is not None and g.requires_grad]  # others are constant
        if not curved:
            return torch.zeros_like(vector)
        outputs, weights = zip(*curved, strict=True)
        products = torch.autograd.grad(
            outputs, self.parameters, grad_outputs=weights, retain_graph=True, allow_unused=True
        )
        return self.flat(products)

    def flat(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """Return one vector [N], float32 at least, of a tensor for each parameter; None counts as zeros."""
        parts = zip(self.parameters, tensors, strict=True)
        return torch.cat([(torch.zeros_like(p) if x is None else x).flatten().to(self.dtype) for p, x in parts])

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return a vector [N] as one tensor for each parameter, of its shape and dtype."""
        parts = vector.split([p.numel() for p in self.parameters])
        return [part.view_as(p).to(p.dtype) for part, p in zip(parts, self.parameters, strict=True)]


def _refuse_several_processes() -> None:
    if world_size() > 1:
        raise UserError(
            f"one-pass optimizer: got {world_size()} processes, expected 1, as Hessian-vector products are not "
            "averaged over processes; set `devices: 1`"
        )
