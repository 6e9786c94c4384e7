"""The public engine: `Engine` for plain code, `AsyncEngine` for event loops, one thread behind.

In: a model folder with its compiled library, and requests in the manner of OpenAI's client. Out:
the objects of `api`. Compiles nothing: a caller that wants a missing library compiled passes
`resolve`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from sterna.base.artifact import Manifest
from sterna.base.errors import RequestError
from sterna.engine import prepare
from sterna.engine.api import ChatCompletion, ChatCompletionChunk, Completion
from sterna.engine.core import Core
from sterna.engine.draft_model import DraftModel
from sterna.engine.fingerprint import system_fingerprint
from sterna.engine.generation import Event
from sterna.engine.limits import Limits, draft_limits, plan
from sterna.engine.loader import Resolve, check_device, identity, load, load_draft
from sterna.engine.mailbox import Mailboxes
from sterna.engine.metrics import Histogram, Histograms
from sterna.engine.options import EngineOptions, Mode, SamplingOptions, Speculative
from sterna.engine.parts import Parts
from sterna.engine.pictures import readable
from sterna.engine.prefix import Divergence
from sterna.engine.prefix_store import PrefixStore
from sterna.engine.prepare import Job, Message, Prompt
from sterna.engine.speculative import NGramLookup, Source, Speculator
from sterna.engine.stream import AsyncStream, Stream
from sterna.engine.trace import trace_file
from sterna.runtime.executable import Executable
from sterna.text.template import Template
from sterna.text.tokenizer import Tokenizer

T = TypeVar("T")


class _Model:
    """What both faces share: loading, counters, closing."""

    def __init__(
        self,
        model: str | Path | None = None,
        model_lib: str | Path | None = None,
        device: str = "auto",
        *,
        mode: Mode | str | None = None,
        options: EngineOptions | None = None,
        name: str | None = None,
        resolve: Resolve,
    ) -> None:
        """`name`: what to call the model instead of its folder's name."""
        options = options or EngineOptions()
        if mode is not None:
            options = replace(options, mode=mode)
        check_device(device)
        trace = _trace_file(options)
        located = resolve(model, model_lib, device)
        draft = resolve(options.draft_model, None, device) if options.draft_model else None
        with ExitStack() as undo:
            parts = load(located, options, draft)
            undo.callback(parts.executable.close)
            source = load_draft(draft, options, parts) if draft else _source(options)
            if source is not None:
                undo.callback(source.close)
            store = _store(options, lambda: identity(located))
            if store is not None:
                undo.callback(store.close)
            named = parts if name is None else replace(parts, model_name=name)
            _check_adapters(named)
            self._start(named, _speculator(source, options), store, trace)
            undo.pop_all()

    @classmethod
    def from_parts(
        cls,
        executable: Executable,
        tokenizer: Tokenizer,
        template: Template | None,
        model_name: str,
        defaults: SamplingOptions | None = None,
        *,
        options: EngineOptions | None = None,
        stop_ids: frozenset[int] | None = None,
        stop_strings: Sequence[str] = (),
        draft: Executable | None = None,
        identity: str = "",
        adapters: Mapping[str, int] | None = None,
    ) -> Self:
        """An engine over a model that is already loaded; it closes the executable at its end.

        So with `draft`, a draft model of the same vocabulary, for speculative decoding. A prefix
        cache on disk is taken for this model's if it has the same `identity`. `adapters` are the
        numbers of those that the executable was loaded with.
        """
        options = options or EngineOptions()
        limits = plan(options, executable.manifest, executable.num_pages)
        parts = Parts(
            executable,
            limits,
            tokenizer,
            template,
            model_name,
            defaults or SamplingOptions(),
            frozenset(tokenizer.eos_ids) if stop_ids is None else stop_ids,
            tuple(stop_strings),
            fingerprint=system_fingerprint(identity or repr(executable.manifest)),
            adapters=adapters or {},
        )
        _check_adapters(parts)
        source = _source(options)
        if draft is not None:
            own = draft_limits(limits, draft.manifest, draft.num_pages)
            source = DraftModel(draft, own, parts.vocabulary)
        engine = cls.__new__(cls)
        store = _store(options, lambda: identity)
        engine._start(parts, _speculator(source, options), store, _trace_file(options))
        return engine

    def _start(
        self,
        parts: Parts,
        speculator: Speculator | None,
        store: PrefixStore | None,
        trace: Path | None,
    ) -> None:
        self._parts = parts
        self._core = Core(parts, speculator, store, trace)
        self._finalizer = weakref.finalize(self, self._core.close)

    @property
    def model_name(self) -> str:
        return self._parts.model_name

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that requests may ask for instead of the model's."""
        return tuple(self._parts.adapters)

    @property
    def context_window(self) -> int:
        """Most tokens that a prompt and its answer may have together."""
        return self._parts.limits.window

    @property
    def tokenizer(self) -> Tokenizer:
        return self._parts.tokenizer

    def chat_ids(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None
    ) -> list[int]:
        """The token ids that the model's template makes of a conversation."""
        return prepare.chat_ids(self._parts, messages, tools)

    @property
    def limits(self) -> Limits:
        """What was decided when the engine started: the most of everything."""
        return self._parts.limits

    @property
    def manifest(self) -> Manifest:
        """What the loaded library says of itself."""
        return self._parts.executable.manifest

    @property
    def failure(self) -> Exception | None:
        """What stopped the engine, for good; None while it runs."""
        return self._core.failure

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be asked at all; `completions` always can."""
        return (self._parts.template or self._parts.conv_template) is not None

    def metrics(self) -> dict[str, float]:
        """Counters since the start, and how full queues and cache are now."""
        scheduler, pages = self._core.scheduler, self._core.scheduler.pages
        tally = scheduler.tally
        return {
            **asdict(self._core.counters),
            "preemptions": tally.preemptions,
            "draft_pauses": self._core.draft_pauses,
            "prefix_queries": tally.admitted_tokens,
            "prefix_hits": tally.reused_tokens,
            "prefix_evictions": scheduler.prefix.evicted,
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "pages_free": pages.available + pages.idle,
            "pages_cached": len(scheduler.prefix),
            "pages_total": len(pages),
        }

    def histograms(self) -> dict[str, Histogram]:
        """Times and sizes of requests and steps since the start; see `metrics.Histograms`."""
        return {f.name: getattr(self._core.histograms, f.name) for f in fields(Histograms)}

    def explain_prefix(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        model: str | None = None,
    ) -> Divergence:
        """Where a prompt, or a conversation, leaves the cached sequence most like it.

        `model` is an adapter's name where one is meant: each has a cache of its own.
        """
        job: Job[Any]
        if messages is not None:
            job = prepare.chat_job(self._parts, messages, model, {})
        elif prompt is not None:
            job = prepare.completion_job(self._parts, prompt, model, {}, False)
        else:
            raise RequestError("there is nothing to explain; give a prompt or messages")
        ask = job.asks[0]
        asked = ask.spelling or ask.prompt
        found = self._core.call(lambda: self._core.scheduler.prefix.explain(asked, ask.adapter))
        if (images := self._parts.images) is None:
            return found
        prompt, known = (readable(t, images.vision) for t in (found.prompt, found.known))
        return replace(found, prompt=prompt, known=known)

    def start_trace(self) -> None:
        """Note every step from now on, until `stop_trace`; a trace that is on begins anew."""
        self._core.call(self._core.start_trace)

    def stop_trace(self) -> bytes:
        """The steps since `start_trace` as JSON for Perfetto or chrome://tracing.

        RequestError when no trace is on.
        """
        return self._core.call(self._core.stop_trace)

    def close(self) -> None:
        """End open requests with an error, stop the thread, free the model. Safe to call twice."""
        self._finalizer()


def _check_adapters(parts: Parts) -> None:
    if parts.model_name in parts.adapters:
        raise RequestError(
            f"model and adapter are both called {parts.model_name!r}; give the adapter another name"
        )


def _source(options: EngineOptions) -> Source | None:
    return NGramLookup() if options.speculative is Speculative.NGRAM else None


def _speculator(source: Source | None, options: EngineOptions) -> Speculator | None:
    return None if source is None else Speculator(source, options.draft_tokens)


def _trace_file(options: EngineOptions) -> Path | None:
    return None if options.trace is None else trace_file(options.trace)


def _store(options: EngineOptions, identity: Callable[[], str]) -> PrefixStore | None:
    folder = options.prefix_cache_dir
    return None if folder is None else PrefixStore(Path(folder), identity())


class Engine(_Model):
    """Blocking: `engine.chat.completions.create(...)`, `engine.completions.create(...)`."""

    def _start(
        self,
        parts: Parts,
        speculator: Speculator | None,
        store: PrefixStore | None,
        trace: Path | None,
    ) -> None:
        super()._start(parts, speculator, store, trace)
        self.completions = Completions(self._core, parts)
        self.chat = Chat(ChatCompletions(self._core, parts))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncEngine(_Model):
    """The same for event loops: `await engine.chat.completions.create(...)`."""

    def _start(
        self,
        parts: Parts,
        speculator: Speculator | None,
        store: PrefixStore | None,
        trace: Path | None,
    ) -> None:
        super()._start(parts, speculator, store, trace)
        self.completions = AsyncCompletions(self._core, parts)
        self.chat = AsyncChat(AsyncChatCompletions(self._core, parts))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Asked:
    def __init__(self, core: Core, parts: Parts) -> None:
        self._core = core
        self._parts = parts


class Chat:
    """`engine.chat`, as openai names it."""

    def __init__(self, completions: ChatCompletions) -> None:
        self.completions = completions


class AsyncChat:
    """`engine.chat`, as openai names it."""

    def __init__(self, completions: AsyncChatCompletions) -> None:
        self.completions = completions


class ChatCompletions(_Asked):
    """Answers to conversations. Options are the fields of SamplingOptions."""

    @overload
    def create(
        self,
        *,
        messages: Sequence[Message],
        model: str | None = None,
        stream: Literal[False] = False,
        **options: Any,
    ) -> ChatCompletion: ...

    @overload
    def create(
        self,
        *,
        messages: Sequence[Message],
        model: str | None = None,
        stream: Literal[True],
        **options: Any,
    ) -> Stream[ChatCompletionChunk]: ...

    def create(
        self,
        *,
        messages: Sequence[Message],
        model: str | None = None,
        stream: bool = False,
        **options: Any,
    ) -> ChatCompletion | Stream[ChatCompletionChunk]:
        """Answer a conversation; RequestError names what cannot be served."""
        if stream:
            job = prepare.chat_stream_job(self._parts, messages, model, options)
            return Stream(self._core, job)
        with Stream(self._core, prepare.chat_job(self._parts, messages, model, options)) as results:
            return next(results)


class Completions(_Asked):
    """Continuations of raw prompts. Options are the fields of SamplingOptions."""

    @overload
    def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        stream: Literal[False] = False,
        **options: Any,
    ) -> Completion: ...

    @overload
    def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        stream: Literal[True],
        **options: Any,
    ) -> Stream[Completion]: ...

    def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Completion | Stream[Completion]:
        """Continue one or more prompts; `return_token_ids=True` adds the ids."""
        results = Stream(
            self._core, prepare.completion_job(self._parts, prompt, model, options, stream)
        )
        if stream:
            return results
        with results:
            return next(results)


class _AsyncAsked(_Asked):
    def __init__(self, core: Core, parts: Parts) -> None:
        super().__init__(core, parts)
        self._mailboxes: Mailboxes[Event] = Mailboxes()

    async def _stream(self, given: object, make: Callable[[], Job[T]]) -> AsyncStream[T]:
        """Long prompts and grammars take a while: on a thread, so that the loop serves others."""
        import asyncio

        job = make() if prepare.is_light(given) else await asyncio.to_thread(make)
        return AsyncStream(self._core, job, self._mailboxes.here())


class AsyncChatCompletions(_AsyncAsked):
    """Answers to conversations. Options are the fields of SamplingOptions."""

    async def create(
        self,
        *,
        messages: Sequence[Message],
        model: str | None = None,
        stream: bool = False,
        **options: Any,
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
        """Answer a conversation; RequestError names what cannot be served."""
        given = (self._parts, messages, model, options)
        if stream:
            return await self._stream(given[1:], partial(prepare.chat_stream_job, *given))
        async with await self._stream(given[1:], partial(prepare.chat_job, *given)) as results:
            return await anext(results)


class AsyncCompletions(_AsyncAsked):
    """Continuations of raw prompts. Options are the fields of SamplingOptions."""

    async def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Completion | AsyncStream[Completion]:
        """Continue one or more prompts; `return_token_ids=True` adds the ids."""
        make = partial(prepare.completion_job, self._parts, prompt, model, options, stream)
        results = await self._stream((prompt, options), make)
        if stream:
            return results
        async with results:
            return await anext(results)
