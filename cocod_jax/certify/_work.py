"""How much work the instructions of a compiled module are, as far as its text tells.

A schedule knows no times. For shares of a step, work is counted in bytes: an
instruction is worth what it reads and writes, or what it multiplies where that takes
longer.
"""

import math
import re

from cocod_jax.certify._hlo import Instruction, Module, bytes_of, dims_of

# What a GPU multiplies, in float32, while it moves a byte. It is 20 on an H100
# (67 TFLOP/s, 3.35 TB/s) and 10 on an A100; tensor cores reach more.
FLOPS_PER_BYTE = 20

_CONTRACTED = re.compile(r"lhs_contracting_dim(?:s=\{|ensions\":\[)([\d\",]*)[}\]]")
_DIM_LABELS = re.compile(r"dim_labels=\w+?_(\w+)->\w+")
_GEMM = re.compile(r'custom_call_target="[^"]*(?:gemm|matmul)', re.IGNORECASE)
# Which of a convolution's input, kernel and output are its operands; the third is what
# it returns.
_CONVOLUTIONS = {
    "Forward": ("input", "kernel"),
    "BackwardInput": ("output", "kernel"),
    "BackwardFilter": ("input", "output"),
}
_CUDNN = re.compile(r'custom_call_target="__cudnn\$conv(\w+?)(?:Activation)?"')
_SLICES = ("dynamic-slice", "slice", "gather")
_IN_PLACE = "dynamic-update-slice"

Shapes = dict[str, str]


class Work:
    """The work of a module's instructions."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.shapes: dict[str, Shapes] = {
            name: {i.name: i.shape for i in body}
            for name, body in module.computations.items()
        }

    def of(self, instruction: Instruction, computation: str) -> float:
        """The bytes that an instruction of this computation is worth."""
        if not instruction.is_operation:
            return 0.0
        if instruction.opcode in ("while", "conditional", "call"):
            parts = [
                sum(self.of(i, name) for i in self.module.computations[name])
                for name in instruction.called
            ]
            if instruction.opcode == "conditional":
                return max(parts, default=0.0)
            return sum(parts) * self._trips(instruction)
        products = self.flops(instruction, computation) / FLOPS_PER_BYTE
        return max(products, self._bytes(instruction, computation))

    def flops(self, instruction: Instruction, computation: str) -> float:
        """What its matrix products and convolutions multiply and add."""
        flops = _own_flops(instruction, self.shapes[computation])
        for name in instruction.called:
            body = self.module.computations[name]
            flops += sum(self.flops(i, name) for i in body)
        return flops * self._trips(instruction)

    def _trips(self, instruction: Instruction) -> int:
        """How often a loop runs; 1 for what is none, or not known."""
        is_loop = instruction.opcode == "while"
        return (is_loop and self.module.trips(instruction)) or 1

    def _bytes(self, instruction: Instruction, computation: str) -> float:
        """What it reads and writes."""
        shapes = self.shapes[computation]
        names = [name for name in instruction.operands if name in shapes]
        if instruction.opcode != "fusion":
            return bytes_of(instruction.shape) + sum(bytes_of(shapes[n]) for n in names)
        (fused,) = instruction.called
        body = self.module.computations[fused]
        parameters = {i.number: i for i in body if i.opcode == "parameter"}
        # Of what is updated in place, the update alone is written.
        updates = {
            i.shape: self.shapes[fused].get(i.operands[1], i.shape)
            for i in body
            if i.opcode == _IN_PLACE
        }
        parts = _parts(instruction.shape)
        if body and body[-1].opcode == "tuple":  # what it passes on is not written
            computed = {i.name for i in body if i.opcode != "parameter"}
            given = zip(parts, body[-1].operands, strict=True)
            parts = [part for part, name in given if name in computed]
        return sum(bytes_of(updates.get(part, part)) for part in parts) + sum(
            self._read(parameters[n], body) if n in parameters else bytes_of(shapes[x])
            for n, x in enumerate(names)
        )

    def _read(self, parameter: Instruction, body: list[Instruction]) -> float:
        """What a fusion reads of a parameter, of which it may need a slice only."""
        users = [
            i for i in body if parameter.name in i.operands and i.opcode != "tuple"
        ]
        total = 0.0
        for user in users:
            if user.opcode in _SLICES and user.operands[0] == parameter.name:
                total += bytes_of(user.shape)
            elif user.opcode == "bitcast":
                total += self._read(user, body)
            elif user.opcode != _IN_PLACE or user.operands[0] != parameter.name:
                return bytes_of(parameter.shape)
        return min(total, bytes_of(parameter.shape))


def _parts(shape: str) -> list[str]:
    """The arrays of a shape that may be a tuple."""
    return re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shape)


def _own_flops(instruction: Instruction, shapes: Shapes) -> float:
    """What one instruction multiplies and adds."""
    cudnn = _CUDNN.search(instruction.rest)
    is_gemm = instruction.opcode == "dot" or _GEMM.search(instruction.rest)
    if not (cudnn or is_gemm or instruction.opcode == "convolution"):
        return 0.0
    names = [name for name in instruction.operands if name in shapes]
    sizes = [dims_of(shapes[name]) for name in names[:2]]
    result = dims_of(instruction.shape)
    if len(sizes) < 2:
        return 0.0
    if is_gemm:
        axes = re.findall(r"\d+", ",".join(_CONTRACTED.findall(instruction.rest)))
        contracted = (sizes[0][int(i)] for i in axes)
        return 2.0 * math.prod(result) * math.prod(contracted)
    labels = _DIM_LABELS.search(instruction.rest)
    operands = _CONVOLUTIONS.get(cudnn.group(1) if cudnn else "Forward")
    if labels is None or operands is None:
        return 0.0
    of = dict(zip(operands, sizes, strict=True))
    kernel, output = of.get("kernel", result), of.get("output", result)
    features = kernel[labels.group(1).index("o")]
    return 2.0 * math.prod(output) * math.prod(kernel) / features
