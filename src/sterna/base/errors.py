"""The exception tree. Leaves are causes; `except sterna.Error` is the useful catch.

    Error
    ├─ UsageError                 a command or argument that makes no sense
    ├─ CheckpointError            a file from outside is not what it claims
    │    ├─ UnsupportedModel      a family, option or variant Sterna does not have
    │    ├─ MissingTensor         a tensor or shard that the config calls for is not there
    │    ├─ UnexpectedTensor      a tensor that nothing in the model reads
    │    ├─ ShapeMismatch         a shape or dtype that does not fit the config
    │    └─ UnsafeFile            lengths that lie, paths that escape, pickle, NaN weights
    ├─ TokenizerError             tokenizer or chat template missing, malformed or hostile
    ├─ CompileError
    │    ├─ InvalidIR             verify() found a broken rule of the IR
    │    ├─ ScheduleError         a step that cannot be applied; normal control flow in a search
    │    ├─ CodegenError          a construct the target cannot express
    │    └─ ToolchainError        an outside compiler failed; carries command, log, source path
    ├─ ArtifactError              library or folder for another target, model or version
    ├─ DeviceError
    │    ├─ Unavailable           the device asked for is not here, and what is missing
    │    └─ OutOfMemory           named from the memory plan before anything is allocated
    └─ RequestError               a prompt or option the engine cannot serve

A message says what was asked, what was found, what is possible and what to do, in one sentence
or two. Structured fields ride along as attributes. User input never reaches an `assert`.
"""

from __future__ import annotations

from pathlib import Path


class Error(Exception):
    """Root of every error Sterna raises on purpose."""


class UsageError(Error):
    """A command or argument that makes no sense."""


class CheckpointError(Error):
    """A file from outside is not what it claims."""


class UnsupportedModel(CheckpointError):
    """A family, option or variant Sterna does not have."""


class MissingTensor(CheckpointError):
    """A tensor or shard that the config calls for is not there."""


class UnexpectedTensor(CheckpointError):
    """A tensor that nothing in the model reads."""


class ShapeMismatch(CheckpointError):
    """A shape or dtype that does not fit the config."""


class UnsafeFile(CheckpointError):
    """Lengths that lie, paths that escape, pickle, NaN weights."""


class TokenizerError(Error):
    """Tokenizer or chat template missing, malformed or hostile."""


class CompileError(Error):
    """The compiler could not turn the model into a program."""


class InvalidIR(CompileError):
    """verify() found a broken rule of the IR."""


class ScheduleError(CompileError):
    """A schedule step that cannot be applied."""


class CodegenError(CompileError):
    """A construct the target cannot express."""


class ToolchainError(CompileError):
    """An outside compiler failed. `command`, `log` and `source` let the user repeat it."""

    def __init__(self, message: str, command: list[str], log: str, source: Path | None) -> None:
        super().__init__(message)
        self.command = command
        self.log = log
        self.source = source


class ArtifactError(Error):
    """A library or model folder for another target, model or version."""


class DeviceError(Error):
    """A device could not do what was asked."""


class Unavailable(DeviceError):
    """The device asked for is not here; the message names what is missing."""


class OutOfMemory(DeviceError):
    """The memory plan does not fit; named before anything is allocated."""


class RequestError(Error):
    """A prompt or option the engine cannot serve.

    `param` is the field at fault, if it is one; `code` is OpenAI's name for what is wrong, where
    programs act on it.
    """

    def __init__(self, message: str, param: str | None = None, *, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
