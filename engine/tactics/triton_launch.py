"""From a Triton kernel's signature and named arguments to the parameters of its launch.

The list of Triton 3.6: parameters in the order of the function, constants left out; a tensor
descriptor is a tensor map of 128 bytes, then its sizes as 32-bit and its strides as 64-bit
integers, outermost axis first; two null pointers end the list (global and profile scratch).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from engine.cuda.kernel import DeviceKernel
from engine.ir.sizes import Dim, Size
from engine.plan.device import Null, Parameter, Pointer, Scalar, TensorMap

__all__ = ["Argument", "parameters"]

Argument = Pointer | TensorMap | Dim | float
_DESCRIPTOR = re.compile(r"tensordesc<\w+\[([\d, ]+)\]>")


def parameters(kernel: DeviceKernel, arguments: Mapping[str, Argument]) -> tuple[Parameter, ...]:
    """The parameters of a launch of ``kernel``; ``arguments`` are by parameter name.

    "*..." takes a `Pointer`, "i32" and "i64" a size, "fp32" a number, "tensordesc<...>" a
    `TensorMap`, whose ``form`` is numbered here. Raises ValueError naming the parameter when one
    is missing, left over or of the wrong kind.
    """
    if kernel.compiler != "triton":
        raise ValueError(f"the kernel {kernel.entry!r} is for {kernel.compiler}, not for triton")
    names = [name for name, _ in kernel.signature]
    if set(names) != set(arguments):
        odd = ", ".join(sorted(set(names) ^ set(arguments)))
        raise ValueError(f"kernel {kernel.entry!r}: parameters and arguments disagree about {odd}")
    found: list[Parameter] = []
    maps = 0
    for name, form in kernel.signature:
        argument = arguments[name]
        if form.startswith("tensordesc"):
            if not isinstance(argument, TensorMap):
                raise ValueError(f"parameter {name!r} is {form}, found {argument!r}")
            found += _descriptor(name, form, replace(argument, form=maps))
            maps += 1
        else:
            found.append(_plain(name, form, argument))
    return (*found, Null(), Null())


def _plain(name: str, form: str, argument: Argument) -> Parameter:
    if form.startswith("*"):
        if isinstance(argument, Pointer):
            return argument
    elif form in ("i32", "i64"):
        if isinstance(argument, (int, Size)):
            return Scalar("i32" if form == "i32" else "i64", argument)
    elif form == "fp32":
        if isinstance(argument, (int, float)):
            return Scalar("f32", float(argument))
    else:
        raise ValueError(f"parameter {name!r} has the type {form}, which no launch passes")
    raise ValueError(f"parameter {name!r} is {form}, found {argument!r}")


def _descriptor(name: str, form: str, argument: TensorMap) -> list[Parameter]:
    match = _DESCRIPTOR.match(form)
    rank = match[1].count(",") + 1 if match is not None else 0
    if not rank == len(argument.sizes) == len(argument.strides):
        raise ValueError(
            f"parameter {name!r} is {form}, found {len(argument.sizes)} sizes and "
            f"{len(argument.strides)} strides"
        )
    if argument.strides[-1] != 1:
        raise ValueError(f"the last stride of {name!r} is {argument.strides[-1]}, expected 1")
    return [
        argument,
        *(Scalar("i32", size) for size in argument.sizes),
        *(Scalar("i64", stride) for stride in argument.strides),
    ]
