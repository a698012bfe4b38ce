"""Reading the bytes of a source: whole files, tar members, frames of an .npy file.

One `pread` a span, nothing kept open: a packer's worker reads tens of thousands of files in any order.
"""

from __future__ import annotations

import os
from pathlib import Path

from unetfast.data.sample import FileSpan
from unetfast.errors import BadSampleError

_TAR_BLOCK = 512  # a tar header stands in the 512 bytes before its data


def read_span(span: FileSpan) -> bytes:
    """Read the bytes of a span, and no others of its file.

    Raises:
        BadSampleError: the file is missing, unreadable, empty, or ends before the span does.
    """
    try:
        with Path(span.path).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            length = size - span.offset if span.length < 0 else span.length
            if size == 0 or length <= 0 or span.offset + length > size:
                raise BadSampleError(
                    describe_span(span),
                    "the file is empty"
                    if size == 0
                    else f"bytes {span.offset} to {span.offset + length} were looked for, the file ends at {size}",
                    "get the file again: it is cut short, or was changed while it was read",
                )
            data = _pread_all(file.fileno(), length, span.offset)
    except OSError as error:
        raise BadSampleError(
            describe_span(span), f"cannot be read ({error.strerror or error})", "check that it exists and may be read"
        ) from None
    if len(data) != length:
        raise BadSampleError(describe_span(span), "was changed while it was read", "pack again when nothing writes to it")
    return data


def describe_span(span: FileSpan) -> str:
    """Name a span for a message: the file, and the frame or tar member in it."""
    if span.frame >= 0:
        return f"{span.path}, frame {span.frame}"
    if span.offset < _TAR_BLOCK or not span.path.endswith(".tar"):
        return span.path
    try:
        with Path(span.path).open("rb") as file:
            header = os.pread(file.fileno(), _TAR_BLOCK, span.offset - _TAR_BLOCK)
    except OSError:
        return span.path
    name = header[:100].split(b"\0", 1)[0].decode("utf-8", "replace")
    return f"{span.path}: {name}" if name else span.path


def _pread_all(descriptor: int, length: int, offset: int) -> bytes:
    data = os.pread(descriptor, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]  # one pread gives at most 2 GiB
    while data and sum(map(len, parts)) < length:
        done = sum(map(len, parts))
        data = os.pread(descriptor, length - done, offset + done)
        parts.append(data)
    return b"".join(parts)
