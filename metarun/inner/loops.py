"""Shared pieces of inner loops: functions, not parents."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

from metarun import modes
from metarun.core import Params
from metarun.inner.optimizers import InnerOptimizer
from metarun.models.exact.layers import differentiated_once, transformed
from metarun.modes import set_var
from metarun.trees import detach, tree_flatten, tree_leaves, tree_map, tree_unflatten


def recomputing(wanted: bool) -> AbstractContextManager[None]:
    """Make ``repeat`` keep the params between steps and nothing within them; the execution decides, not a learner."""
    return set_var(modes.recompute, wanted)


def repeat(step: Callable[..., Params], params: Params, steps: int, *given: Any) -> Iterator[Params]:
    """Yield params after 0, 1, ..., ``steps`` applications of params <- step(params, *given).

    Differentiable with respect to params and to every float tensor of ``given``. ``step`` must be a pure function
    without random draws, and must reach differentiated or per-task tensors through its arguments alone: when steps are
    recomputed (``execution.inner_memory``) it runs again in the backward pass.
    """
    yield params
    for _ in range(steps):
        params = _recomputed(step, params, *given) if modes.recompute.get() else step(params, *given)
        yield params


def checkpointed(fn: Callable[..., Any], *arguments: Any) -> Any:
    """Value of fn(*arguments), whose intermediates are not kept where steps are recomputed: a loss at each step, say.

    ``fn`` is as a step of ``repeat``; what it returns may hold tensors that are not to be differentiated.
    """
    return _recomputed(fn, *arguments) if modes.recompute.get() else fn(*arguments)


def outermost() -> AbstractContextManager[None]:
    """Differentiate recomputed steps once: the gradient taken inside is a constant to whoever uses it.

    Else torch.func's grad records the backward pass, for a derivative of its own, and so keeps what was recomputed.
    """
    return set_var(modes.outermost, True)


def descent(
    loss: Callable[..., Tensor], params: Params, rule: InnerOptimizer, steps: int, *given: Any
) -> Iterator[Params]:
    """Yield params after 0, 1, ..., ``steps`` steps of ``rule`` along grad(loss)(params, *given)."""

    def step(moving: tuple[Params, Any], *given: Any) -> tuple[Params, Any]:
        params, state = moving
        return rule.step(params, gradient(loss, params, *given), state)

    return (params for params, _ in repeat(step, (params, rule.start(params)), steps, *given))


def first_order_descent(
    loss: Callable[..., Tensor], params: Params, rule: InnerOptimizer, steps: int, *given: Any
) -> Iterator[Params]:
    """Yield what ``descent`` does, with the inner gradients taken as constants: d params_k / d params_0 is the identity."""
    constants, state = detach(given), rule.start(detach(params))
    yield params
    for _ in range(steps):
        params, state = rule.step(params, constant_grad(loss, params, *constants), state)
        yield params


def constant_grad(loss: Callable[..., Tensor], params: Params, *given: Any) -> Params:
    """Gradient of ``loss`` at params as a constant; ``loss`` takes no derivative of a batch norm itself."""
    with differentiated_once(), torch.no_grad():
        return detach(gradient(loss, detach(params), *given))


def gradient(loss: Callable[..., Tensor], params: Params, *given: Any) -> Params:
    """Gradient of ``loss`` at params, by autograd alone where no transform is at work: functorch's costs a millisecond."""
    leaves, structure = tree_flatten(params)
    kept = torch.is_grad_enabled()
    constant = not any(leaf.requires_grad for leaf in leaves)
    if transformed() or torch.is_inference_mode_enabled() or (constant and (kept or not leaves)):
        return grad(loss)(params, *given)
    with torch.enable_grad():
        # views: a tensor of params may stand among the given too, where it is not to be differentiated
        moving = [p.view_as(p) if kept and p.requires_grad else p.detach().requires_grad_() for p in leaves]
        value = loss(tree_unflatten(moving, structure), *given)
        if not value.requires_grad:
            return tree_map(torch.zeros_like, params)
        grads = torch.autograd.grad(value, moving, create_graph=kept, materialize_grads=True)
    return tree_unflatten(grads, structure)


def last(path: Iterator[Params]) -> Params:
    """The end of a descent; earlier params are let go, so the memory of a first-order one does not grow with steps."""
    return deque(path, maxlen=1).pop()


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """An x with A x = b [n], begun at 0, and the relative residual ||b - A x|| / ||b||; ``product(v)`` is A v, A symmetric.

    All of ``steps`` steps are computed, so that tasks under vmap take one path, but x stays as it is once the relative
    residual is at ``tolerance``, or where A turns out not to be positive definite. x is not for differentiation.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    square = begun = b @ b
    for _ in range(steps):
        image = product(direction)
        curvature = direction @ image
        going = (curvature > 0) & (square > tolerance**2 * begun)
        step = torch.where(going, square / curvature, 0)
        x, residual = x + step * direction, residual - step * image
        smaller = residual @ residual
        direction = torch.where(going, residual + smaller / square * direction, direction)
        square = torch.where(going, smaller, square)
    return x, torch.where(begun > 0, (square / begun).sqrt(), 0)


def _recomputed(fn: Callable[..., Params], *arguments: Any) -> Params:
    """Value of fn(*arguments), of which the backward pass keeps the arguments alone and runs ``fn`` again.

    It is the backward recursion v <- v - lr * H(phi_k) v of MixFlow-MG (Kemaev et al., ICML 2025,
    https://arxiv.org/abs/2505.00793), for any step. ``torch.utils.checkpoint`` cannot do this: it does not run under vmap.
    """
    leaves, structure = tree_flatten(arguments)
    out_structure: list[Any] = []
    again = copy_context().run  # a GPU's backward pass runs in a thread of its own, which knows no context variable
    around = nullcontext() if not modes.outermost.get() else torch.no_grad()

    def flat(*values: Tensor) -> tuple[Tensor, ...]:
        out, spec = tree_flatten(again(fn, *tree_unflatten(values, structure)))
        out_structure[:] = [spec]
        return tuple(out)

    out = _Recomputed.apply(flat, around, *leaves)
    return tree_unflatten(out, out_structure[0])


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        fn: Callable[..., tuple[Tensor, ...]], around: AbstractContextManager[None], *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        return fn(*leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.fn, ctx.around = inputs[:2]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
        leaves: list[Tensor] = list(ctx.saved_tensors)
        floats = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]

        def of_floats(*values: Tensor) -> tuple[Tensor, ...]:
            full = list(leaves)
            for i, value in zip(floats, values, strict=True):
                full[i] = value
            return ctx.fn(*full)

        gradients: list[Tensor | None] = [None] * len(leaves)
        with ctx.around:
            pull_back: Callable[..., Any] = vjp(of_floats, *(leaves[i] for i in floats))[1]
            for i, g in zip(floats, tree_leaves(pull_back(v)), strict=True):
                gradients[i] = g
        return None, None, *gradients
