"""A step's tensor operations, recorded once and replayed in the same memory: what a CUDA graph is, for a processor.

A step of LeNet is a hundred operations of 2 to 200 microseconds. Python, autograd, views and finding memory take half
as long again, and do the same in every step.
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
"""Images in a mini-batch that is captured. A recording keeps all that it computes: with 1,024 images 0.2 GB more than
a step that is not captured, with 55,000 4 GB, and then it is no quicker."""


def capture(step: Step) -> Step:
    """A step that computes what this one does, to the bit, and is quicker from its second call on.

    The first call with inputs of certain shapes and types runs the step and records its operations; a further one
    replays just these, and returns the same tensors with new values in them. So the step may depend on nothing but its
    inputs, PyTorch's random numbers and tensors that stay where they are, such as parameters that are changed in-place,
    and its operations on nothing but their shapes. Mini-batches of more than `LARGEST` images are not recorded.
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


# What makes a tensor of one number: to replay it is to fill the tensor.
_FILLED = {"zeros": 0, "new_zeros": 0, "zeros_like": 0, "ones_like": 1}


class _Recorder(TorchDispatchMode):
    """Sees each operation that PyTorch does, in the forward and in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Callable[[], object]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else PyTorch imports its compiler, to tell it to leave this class alone: a second.
        return False

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        new = _new(results, args, kwargs)
        name = func.overloadpacket.__name__
        if not new:
            # In place, or a view, which is there already.
            if func._schema.is_mutable:
                self.operations.append(partial(func, *args, **kwargs))
        elif name in _FILLED:
            self.operations.append(partial(new[0].fill_, _FILLED[name]))
        elif not name.startswith(("empty", "new_empty")):
            self.operations.append(_into(new, func, args, kwargs))
        return results


def _into(results: list[Tensor], func: OpOverload, args: Any, kwargs: Any) -> Callable[[], object]:
    """The operation that leaves its results in these tensors: its variant with `out`, else one that copies."""
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
    """The results of an operation that are not in memory of its arguments."""
    given = {_memory(tensor) for tensor in _tensors((args, kwargs))}
    return [tensor for tensor in _tensors(results) if _memory(tensor) not in given]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
