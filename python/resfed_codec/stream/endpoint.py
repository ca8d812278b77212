"""Endpoint: what encoders, decoders and sessions have in common.

Each has a run, a layout and an initial model, answers requests, hands out models, and saves its
state. All that changes of an endpoint is its ``_state``, which calls replace by one assignment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

from resfed_codec.codec.payload import REQUEST, as_bytes
from resfed_codec.codec.update import copy_into, writable_views
from resfed_codec.errors import StateMismatchError
from resfed_codec.locking import Synchronized, synchronized
from resfed_codec.stream.identity import Identity
from resfed_codec.stream.link import digest64
from resfed_codec.stream.message import Message, read_message
from resfed_codec.stream.schema import TensorChecks
from resfed_codec.stream.snapshot import layout_of, read_snapshot, write_snapshot
from resfed_codec.stream.versions import Model, Version, initial_version, run_digest, run_name
from resfed_codec.tensors.layout import State, StateT, read_model
from resfed_codec.tensors.memory import filled


def chain_root(direction: str, initial: Version) -> int:
    """The digest that a direction's chain begins with: that of its version 0."""
    return digest64(direction.encode(), initial.digest.to_bytes(8, "little"))


class Endpoint(Synchronized, Generic[StateT]):
    """Base of streams and sessions; ``initial_state`` is copied."""

    _state: Any
    """All that changes; replaced as a whole."""

    def __init__(self, initial_state: State, run: str) -> None:
        super().__init__()
        self._run = run_name(run)
        self._layout, model = read_model(initial_state, "initial_state")
        self._initial = initial_version(self._layout, self._layout.copy_of(model), self._run)
        self._run_digest = run_digest(self._layout, self._run)
        self._identity = Identity(self._run, self._run_digest, self._layout.specs)

    # ---- messages

    def _empty_message(self, tag: int, *, with_identity: bool) -> Message:
        """A message of this run without contents."""
        identity = self._identity.data if with_identity else b""
        return Message(tag, run=self._identity.check, identity=identity)

    def _read_request(self, request: bytes, tag: int, sender: str) -> Message:
        """The message in a request of the run and of ``tag``.

        A client that has no name yet has tag 0: with it, a request fits any client.

        Raises:
            PayloadError: The bytes are no request, or damaged.
            StateMismatchError: The request is of another run or ``sender``.
        """
        message = read_message(as_bytes(request, REQUEST))
        self._identity.require_same(message)
        is_unnamed = sender == "client" and 0 in (tag, message.tag)
        if message.tag != tag and not is_unnamed:
            raise StateMismatchError(f"payload: a request of another {sender}")
        return message

    # ---- models

    def _output(self, *, copy: bool, out: Any, read_only: bool = False) -> Callable[[Model], Any]:
        """What turns a recovered model into what a call returns.

        It checks ``out`` and allocates now, so that the call cannot fail after the state changed.
        """
        layout = self._layout
        if out is not None:
            targets = writable_views(out, layout.specs, layout.device)
            return lambda model: copy_into(targets, model, out)
        if not copy:
            return lambda model: layout.state_of(model, read_only=read_only)
        copied = layout.empty()
        return lambda model: layout.state_of(filled(copied, model))

    # ---- saved state

    def _depends(self) -> dict[str, Any]:
        """What saved state is of no use without."""
        return {
            "layout": layout_of(self._layout.specs),
            "run": self._run,
            "initial_state": self._initial.digest,
        }

    def _fields(self) -> dict[str, Any]:
        """What is saved."""
        raise NotImplementedError

    def _checked(self, saved: Any, tensors: TensorChecks) -> Any:
        """The ``_state`` that :meth:`_fields` was made from, all of it checked."""
        raise NotImplementedError

    @synchronized
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain tensors of the host (torch if the initial state held
        any)."""
        kind, as_torch = type(self).__name__, self._layout.uses_torch
        return write_snapshot(kind, self._depends(), self._fields(), as_torch=as_torch)

    @synchronized
    def load_state_dict(self, state_dict: Any) -> None:
        """Continue from what :meth:`state_dict` returned, in an object of the same arguments.

        Args:
            state_dict: What was saved.

        Raises:
            ValueError: Saved by another class, from another initial state or run, with another
                setting of error_feedback (with it, other dense or excluded tensors), by a session
                with other predictors or another history, or damaged. What differs is named, and
                nothing has changed.
        """
        saved = read_snapshot(type(self).__name__, self._depends(), state_dict)
        self._state = self._checked(saved, TensorChecks(self._layout))
