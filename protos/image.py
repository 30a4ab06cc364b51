"""A descriptor image with source info, as plain values: messages, fields and RPCs with comments and options."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message as AnyMessage
from google.protobuf.message_factory import GetMessageClass

Options = Mapping[str, Any]
"""Options by name. Those that a .proto file declares have brackets: `[google.api.http]`."""

# The numbers of fields in descriptor.proto. The path of a comment in the source info consists of them.
_PACKAGE, _MESSAGES, _SERVICES, _FIELDS, _METHODS = 2, 4, 6, 2, 2
_Path = tuple[int, ...]


class Field(NamedTuple):
    """A field of a message."""

    full_name: str
    proto: FieldDescriptorProto
    comment: str
    options: Options

    @property
    def name(self) -> str:
        """Its name in the proto, which is its name in JSON too."""
        return self.proto.name

    @property
    def is_repeated(self) -> bool:
        """Whether it is a list."""
        return self.proto.label == FieldDescriptorProto.LABEL_REPEATED


class Message(NamedTuple):
    """A message."""

    name: str
    comment: str
    options: Options
    fields: tuple[Field, ...]


class Method(NamedTuple):
    """An RPC."""

    full_name: str
    comment: str
    options: Options
    request: Message
    response: Message
    file: FileDescriptorProto
    """The file of its request."""

    @property
    def name(self) -> str:
        """Its name without its service."""
        return self.full_name.rpartition(".")[2]


class Image:
    """What `protoc --include_imports --include_source_info` wrote."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self._files = files.file
        # A pool of its own knows the options that the image itself declares.
        self._pool = DescriptorPool()
        for file in files.file:
            self._pool.AddSerializedFile(file.SerializeToString())
        self._file_of = {f".{file.package}.{each.name}": file for file in files.file for each in file.message_type}

    @cached_property
    def messages(self) -> Mapping[str, Message]:
        """All messages that are not inside another one, by their full name after a dot."""
        return {f".{file.package}.{each.name}": self._message(file, i, each)
                for file in self._files for i, each in enumerate(file.message_type)}  # fmt: skip

    def methods(self) -> Iterator[Method]:
        """Yield the RPCs of all services."""
        for file in self._files:
            comments = _comments(file)
            for i, service in enumerate(file.service):
                for j, proto in enumerate(service.method):
                    name = f"{file.package}.{service.name}.{proto.name}"
                    yield self._method(name, proto, comments.get((_SERVICES, i, _METHODS, j), ""))

    def service_comment(self) -> str:
        """The comment of the first service."""
        file = next(file for file in self._files if file.service)
        return _comments(file).get((_SERVICES, 0), "")

    def _method(self, name: str, proto: MethodDescriptorProto, comment: str) -> Method:
        request, response = self.messages[proto.input_type], self.messages[proto.output_type]
        return Method(name, comment, self._options(proto.options), request, response, self._file_of[proto.input_type])

    def _message(self, file: FileDescriptorProto, index: int, proto: DescriptorProto) -> Message:
        comments, path = _comments(file), (_MESSAGES, index)
        fields = (
            Field(f"{file.package}.{proto.name}.{each.name}", each, comments.get((*path, _FIELDS, i), ""),
                  self._options(each.options))
            for i, each in enumerate(proto.field)
        )  # fmt: skip
        return Message(proto.name, comments.get(path, ""), self._options(proto.options), tuple(fields))

    def _options(self, options: AnyMessage) -> Options:
        """Parse options again, with all that the image declares."""
        known = GetMessageClass(self._pool.FindMessageTypeByName(options.DESCRIPTOR.full_name))
        parsed = known.FromString(options.SerializeToString())
        text = json_format.MessageToJson(parsed, preserving_proto_field_name=True, descriptor_pool=self._pool)
        found: Options = json.loads(text)
        return found


def file_comment(file: FileDescriptorProto) -> str:
    """The comment of a file's package, which tells what the file has."""
    return _comments(file).get((_PACKAGE,), "")


def _comments(file: FileDescriptorProto) -> Mapping[_Path, str]:
    """Return the comments of a file as Markdown, by path."""
    return {tuple(at.path): _markdown(at.leading_comments.splitlines())
            for at in file.source_code_info.location if at.leading_comments}  # fmt: skip


def _markdown(lines: Iterable[str]) -> str:
    """Return a comment with one line per paragraph, because some readers of Markdown keep line breaks."""
    paragraphs = "\n".join(line.strip() for line in lines).split("\n\n")
    return "\n\n".join(" ".join(each.split("\n")) for each in paragraphs)
