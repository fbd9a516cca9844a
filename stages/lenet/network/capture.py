"""A training step's tensor operations, recorded once and replayed in the same memory, as a CUDA graph is.

A step of LeNet is a hundred operations of 2 to 200 microseconds. Python, autograd, views and memory allocation add half
of that again, and do the same in each step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = Callable[..., tuple[Tensor, ...]]

LARGEST = 1024
"""The largest mini-batch that is captured. A recording keeps every intermediate result, whose memory grows with the
mini-batch, while what a replay saves does not."""


def capture(step: Step) -> Step:
    """Return a step that computes the same, bit for bit, and is quicker from its second call on.

    The first call with inputs of given shapes and types runs the step and records its operations. Later calls replay
    them, and return the same tensors with new values. So the step may depend on its inputs, on PyTorch's random numbers
    and on tensors that are changed in-place, such as parameters, and on nothing else; which operations it runs may
    depend on shapes only. Mini-batches of more than `LARGEST` images are not recorded.
    """
    recordings: dict[Any, tuple[list[Tensor], list[Callable[[], object]], tuple[Tensor, ...]]] = {}

    @torch.no_grad()
    def replay(*given: Tensor) -> tuple[Tensor, ...]:
        if len(given[0]) > LARGEST:
            with torch.enable_grad():
                return step(*given)
        key = tuple((tensor.shape, tensor.dtype) for tensor in given)
        if key not in recordings:
            inputs = [tensor.clone() for tensor in given]
            with torch.enable_grad(), _Recorder() as recorder:
                outputs = step(*inputs)
            recordings[key] = inputs, recorder.operations, outputs
            return outputs
        inputs, operations, outputs = recordings[key]
        for mine, tensor in zip(inputs, given, strict=True):
            mine.copy_(tensor)
        for operation in operations:
            operation()
        return outputs

    return replay


# Operations that make a constant tensor. A replay fills the tensor with the constant.
_FILLED = {"zeros": 0, "new_zeros": 0, "zeros_like": 0, "ones_like": 1}


class _Recorder(TorchDispatchMode):
    """Records each operation of PyTorch, in the forward and in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Callable[[], object]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # With True, PyTorch imports its compiler to exempt this class from it, which takes a second.
        return False

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        new = _new(results, args, kwargs)
        name = func.overloadpacket.__name__
        if not new:
            # In-place, or a view of memory that the replay changes too.
            if func._schema.is_mutable:
                self.operations.append(partial(func, *args, **kwargs))
        elif name in _FILLED:
            self.operations.append(partial(new[0].fill_, _FILLED[name]))
        elif not name.startswith(("empty", "new_empty")):
            self.operations.append(_into(new, func, args, kwargs))
        return results


def _into(results: list[Tensor], func: OpOverload, args: Any, kwargs: Any) -> Callable[[], object]:
    """The operation with its results in these tensors: by its `out` variant if it has one, else by a copy."""
    schema = func._schema
    inputs = [(argument.name, str(argument.type)) for argument in schema.arguments]
    for overload in func.overloadpacket.overloads():
        variant = getattr(func.overloadpacket, overload)
        names = [argument.name for argument in variant._schema.arguments if argument.is_out]
        others = [(argument.name, str(argument.type)) for argument in variant._schema.arguments if not argument.is_out]
        if others == inputs and len(names) == len(results) == len(schema.returns) and not schema.is_mutable:
            return partial(variant, *args, **kwargs, **dict(zip(names, results, strict=True)))

    def copied() -> None:
        for mine, tensor in zip(results, _new(func(*args, **kwargs), args, kwargs), strict=True):
            mine.copy_(tensor)

    return copied


def _new(results: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The results of an operation that do not share memory with its arguments."""
    given = {_memory(tensor) for tensor in _tensors((args, kwargs))}
    return [tensor for tensor in _tensors(results) if _memory(tensor) not in given]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
