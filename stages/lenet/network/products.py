"""Matrix products with the same bits on every make of x86-64 processor, and the dense layer that is made of them.

Here each element of a product is defined to the last bit: the inner dimension is cut into blocks of 192; in each, one
fused multiply-add follows the other, from zero; then the blocks' sums are added in their order. MKL, in its strict mode
(`lenet.processor`) and with at most two threads, computes just that if the result has at least 4 rows and 24 columns
and the inner dimension is 2 to 192 or at least 384. For other shapes it adds in another order, and not in the same
on Intel's processors as on AMD's, so `mm` makes every product of such shapes. `tests/test_portable.py` compares
products with this definition, and `make portability` compares processors.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

ROWS, COLUMNS, BLOCK = 4, 24, 192


def mm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The product of two matrices, float32 [m, k] @ [k, n] -> [m, n]; `out`, if given, receives it."""
    rows, inner, columns = *a.shape, b.shape[1]
    if rows < ROWS or columns < COLUMNS:
        if out is None and columns < COLUMNS <= rows:
            return mm(b.t(), a.t()).t()
        product = mm(pad(a, (0, 0, 0, max(0, ROWS - rows))), pad(b, (0, max(0, COLUMNS - columns))))[:rows, :columns]
        return product if out is None else out.copy_(product)
    if inner == 1:
        # One make's kernel leaves out the addition to zero, and so gives -0 where the other gives 0.
        return torch.mul(a, b, out=out).add_(0.0)
    if BLOCK < inner < 2 * BLOCK:
        return torch.mm(a[:, :BLOCK], b[:BLOCK], out=out).addmm_(a[:, BLOCK:], b[BLOCK:])
    return torch.mm(a, b, out=out)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A dense layer: x [N, inputs], weight [outputs, inputs], bias [outputs] -> [N, outputs], all float32."""
    y: Tensor = _Linear.apply(x, weight, bias)
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = mm(x, weight.t())
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = mm(gradient, weight) if ctx.needs_input_grad[0] else None
        of_bias = gradient.sum(dim=0) if ctx.needs_input_grad[2] else None
        return of_x, mm(gradient.t(), x), of_bias
