"""Names in a model: protobuf gives those that are no UTF-8 as bytes, which nothing else expects."""

from __future__ import annotations

from google.protobuf.message import Message
from onnx import TensorProto

from engine.errors import InvalidModelError

__all__ = ["check_text"]


def check_text(model: Message, title: str) -> None:
    """Raise InvalidModelError when a name in the model is no UTF-8."""
    stack: list[Message] = [model]
    while stack:
        message = stack.pop()
        if isinstance(message, TensorProto):
            _check(message.name, "name", title)
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                if isinstance(value, Message):
                    stack.append(value)
                else:
                    stack.extend(value)
            elif field.cpp_type == field.CPPTYPE_STRING and field.type != field.TYPE_BYTES:
                for item in [value] if isinstance(value, (str, bytes)) else value:
                    _check(item, field.name, title)


def _check(text: object, field: str, title: str) -> None:
    if not isinstance(text, str):
        raise InvalidModelError(f"{title} is damaged: the {field} {text!r} is no UTF-8")
