"""The guard: the seam between the hook bus and the permission layer."""

from __future__ import annotations

import weakref
from collections.abc import Callable as Function
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from fabric_lite.permissions.access import Node
from fabric_lite.permissions.callback import Callback
from fabric_lite.permissions.conditions import is_guarded, unwrap
from fabric_lite.permissions.graph import CallbackGraph
from fabric_lite.permissions.holder import Holder
from fabric_lite.permissions.protected import Protected, protect, unprotected
from fabric_lite.permissions.strict import MutationCheck, checked

__all__ = ["Guard"]

T = TypeVar("T")


class Guard:
    """Orders callbacks by what they declare, and hands guarded ones a proxy in the place of the learner.

    Args:
        mode: ``"on"`` hands out proxies; ``"strict"`` also notices tensors that are changed in place; ``"off"`` hands
            out the learner itself. The declarations are checked against each other in all three.
        creators: Entry of ``cbstate`` to the name of the callback that creates it, for error messages.
        mutation_check: Finds tensors and their version counters, for ``"strict"``.
    """

    def __init__(
        self,
        mode: Literal["on", "off", "strict"] = "on",
        creators: Mapping[str, str] | None = None,
        mutation_check: MutationCheck | None = None,
    ) -> None:
        if mode not in ("on", "off", "strict"):
            raise ValueError(f"guard={mode!r} is none of the modes; pass 'on', 'off' or 'strict'.")
        if mode == "strict" and mutation_check is None:
            raise ValueError("guard='strict' needs a mutation_check that finds tensors and their versions.")
        self.mode: Literal["on", "off", "strict"] = mode
        self.creators = dict(creators or {})
        self.mutation_check = mutation_check
        self._graph = CallbackGraph(())
        self._bindings: dict[int, _Binding] = {}
        self._unarranged: Sequence[object] | None = None

    @property
    def graph(self) -> CallbackGraph:
        """The graph of the last arrangement that was valid."""
        if self._unarranged is not None:  # out of a pickle or a copy, in which callbacks may come after their guard
            self.arrange(self._unarranged)
        return self._graph

    @property
    def watches(self) -> bool:
        """Whether calls are made through `around`."""
        return self.mode == "strict"

    def arrange(self, callbacks: Sequence[object]) -> tuple[Any, ...]:
        """Put callbacks in a valid order.

        Returns:
            All of them, plain ones too, in the order in which they run.

        Raises:
            CallbackGraphError: If they cannot work together. The arrangement before stays valid.
            TypeError: If a declaration is malformed; the same holds.
        """
        graph = CallbackGraph(callbacks, self.creators, {key: known.tree for key, known in self._bindings.items()})
        bindings: dict[int, _Binding] = {}
        for index, tree in graph.trees.items():
            callback = unwrap(graph.callbacks[index])
            bindings[id(callback)] = self._bindings.get(id(callback)) or _Binding(callback, tree, self)
        self._graph, self._bindings, self._unarranged = graph, bindings, None
        return graph.order

    def adapt(self, callback: object, hook: str, parameter: str) -> Function[[Any], Any] | None:
        """What turns an argument of a hook into what the callback gets.

        Args:
            callback: The callback that is called.
            hook: The name of the hook.
            parameter: The name of the parameter that the argument lands on.

        Returns:
            A function from the learner to its proxy, None if the argument is passed as it is. The function also runs
            the callback's ``init`` when it meets a learner for the first time.
        """
        if parameter != "learner" or not is_guarded(callback):
            return None
        binding = self._binding(callback)
        if self.mode == "off":
            return binding.initialised if binding.has_init else None
        return binding.protecting(hook)

    def attach(self, learner: object) -> None:
        """Let all guarded callbacks meet a learner: run their ``init``, in order, where that has not been done."""
        for callback in self.graph.order:
            adapt = self.adapt(callback, "init", "learner")
            if adapt is not None:
                adapt(learner)

    def around(self, callback: object, hook: str, call: Function[[], T]) -> T:
        """Make the call of one hook of one callback, in strict mode with a look at what it changed.

        The arguments of the call have been adapted before.

        Raises:
            ProtectedException: In strict mode, if it changed a tensor in place that was readable only.
        """
        if self.mode != "strict" or not is_guarded(callback):
            return call()
        return self._binding(callback).watched(hook, call)

    def _binding(self, callback: object) -> _Binding:
        """The binding of a callback; a passing one for a callback that has been taken off while a hook runs."""
        inner = unwrap(callback)
        if self._unarranged is not None:
            self.arrange(self._unarranged)
        return self._bindings.get(id(inner)) or _Binding(inner, CallbackGraph([inner]).trees[0], self)

    def __getstate__(self) -> dict[str, Any]:
        callbacks = self._graph.callbacks if self._unarranged is None else self._unarranged
        return {**self.__dict__, "_graph": CallbackGraph(()), "_bindings": {}, "_unarranged": callbacks}


class _Binding:
    """One guarded callback, with the proxies of the learners that it has met.

    Learners are known by ``id`` (a `State` cannot be hashed), and forgotten when they die. One that cannot be
    referenced weakly, such as a dict, is held until the callback meets the next of that kind.
    """

    __slots__ = ("__weakref__", "_current", "_held", "_met", "callback", "check", "has_init", "off", "tree")

    def __init__(self, callback: Callback, tree: Node, guard: Guard) -> None:
        self.callback = callback
        self.tree = tree
        self.off = guard.mode == "off"
        self.check = guard.mutation_check if guard.mode == "strict" else None
        self.has_init = getattr(callback.init, "__func__", None) is not Callback.init
        self._met: dict[int, tuple[Protected, Holder]] = {}
        self._held: int | None = None
        self._current: Holder | None = None

    def protecting(self, hook: str) -> Function[[Any], Any]:
        """The function from a learner to its proxy, for one hook."""
        met = self._met

        def proxy_of(learner: Any) -> Any:
            found = met.get(id(learner))
            if found is None:
                if learner is None:
                    return None
                found = self._meet(learner)
            proxy, holder = found
            holder.hook = hook
            self._current = holder
            return proxy

        return proxy_of

    def initialised(self, learner: Any) -> Any:
        """The learner itself, after ``init`` has seen it."""
        if learner is not None and id(learner) not in self._met:
            self._meet(learner)
        return learner

    def watched(self, hook: str, call: Function[[], T]) -> T:
        """Make a call and look for changes in place on the learner that was met last."""
        holder = self._current
        if self.check is None or holder is None:
            return call()
        holder.hook = hook
        return checked(call, self.tree, holder, self.check)

    def _meet(self, learner: Any) -> tuple[Protected, Holder]:
        """Make the proxy for a learner and run ``init``."""
        learner = unprotected(learner)  # A callback that calls a hook passes on its own proxy.
        key = id(learner)
        if key in self._met:
            return self._met[key]
        holder = Holder(type(self.callback).__name__, self.tree, type(learner).__name__, self._reference(learner))
        proxy = protect(self.tree, holder)
        self._met[key] = proxy, holder
        self._current = holder
        try:
            if self.off:
                self.callback.init(learner)
            elif self.has_init:
                self.watched("init", lambda: self.callback.init(proxy))
        except BaseException:
            self._met.pop(key, None)  # Not met: the next hook tries again.
            raise
        return proxy, holder

    def _reference(self, learner: Any) -> Function[[], object | None]:
        """A reference that does not keep the learner alive, if it can be had."""
        key, this = id(learner), weakref.ref(self)

        def forget(_: object) -> None:
            binding = this()
            if binding is not None:
                binding._met.pop(key, None)

        try:
            return weakref.ref(learner, forget)
        except TypeError:
            if self._held is not None:
                self._met.pop(self._held, None)
            self._held = key
            return lambda: learner
