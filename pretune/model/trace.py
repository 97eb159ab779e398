"""A network as a graph of plain PyTorch operations, for any batch size, height and width; and that graph as Python."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

LARGEST = 16_384  # px of a side


class Traced(NamedTuple):
    """A network's graph."""

    program: ExportedProgram
    free: bool  # whether height and width are free, as multiples of the stride


def trace(network: nn.Module, example: Tensor, stride: int) -> Traced:
    """Trace a network in eval mode.

    Args:
        example: images (B, 3, H, W), B at least 2, or volumes (B, 1, D, H, W), whose sides stay as they are.
        stride: height and width of images are multiples of it.

    Sides of networks with attention (Swin's windows, for one) stay those of `example`: tracing them free does not end.
    """
    attends = any("Attention" in type(module).__name__ for module in network.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own deprecations; whoever traces checks the result
        if example.ndim > 4 or attends:
            return Traced(torch.export.export(network, (example,), dynamic_shapes=[{0: Dim("batch")}]), False)
        rows, columns = (stride * Dim(name, min=1, max=LARGEST // stride) for name in ("rows", "columns"))
        # Unequal sides: where they are equal, the tracer may take one for the other.
        wide = torch.rand(2, example.shape[1], 4 * stride, 6 * stride)
        shapes = [{0: Dim("batch"), 2: rows, 3: columns}]
        return Traced(torch.export.export(network, (wide,), dynamic_shapes=shapes), True)


_MODULE = '''\
"""The network as plain PyTorch operations; needs torch alone. Written by Pretune from the trained model."""

# fmt: off
# ruff: noqa
import torch

WEIGHTS = {weights}
CONSTANTS = {constants}


def network(weights, images):
    """float32 images (B, 3, H, W) in [0, 1] -> {output}. {sizes}

    weights: name -> tensor, the content of the safetensors file beside this one, on the device of the images.
    """
    made = [torch.tensor(value, device=images.device) for value in CONSTANTS]
    return {result}(None, *(weights[name] for name in WEIGHTS), *made, images){index}

'''


def source(traced: Traced, stride: int, output: str) -> str:
    """A Python module with `network(weights, images)`, for anybody who has torch alone.

    Args:
        output: what it returns, in words: of one tensor where it begins with "logits", else a list.
    """
    signature = traced.program.graph_signature
    lifted = signature.inputs_to_lifted_tensor_constants
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **lifted}
    kept = traced.program.state_dict
    ordered = [name for key, name in names.items() if name in kept]
    constants = [
        torch.as_tensor(traced.program.constants[name]).tolist() for name in names.values() if name not in kept
    ]
    lines = [line for line in traced.program.graph_module.code.strip().splitlines() if "_assert_" not in line]
    one = output.startswith("logits")
    head = _MODULE.format(
        weights=_rows(ordered),
        constants=_rows(constants),
        output=output,
        result="_graph" if one else "list(_graph",
        index="[0]" if one else ")",
        sizes=f"H and W are multiples of {stride}." if traced.free else "Of one size only.",
    )
    body = "\n".join(lines).replace("def forward(", "def _graph(").replace("device(type='cpu')", "at")
    first, rest = body.split("\n", 1)
    return f"{head}\n{first}\n    at = {first.removesuffix('):').rsplit(' ', 1)[-1]}.device\n{rest}\n"


def _rows(values: Sequence[object]) -> str:
    return "[" + "".join(f"\n    {value!r}," for value in values) + "\n]" if values else "[]"
