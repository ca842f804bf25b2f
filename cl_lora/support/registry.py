"""What all registries share: a name belongs to one thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cl_lora.support.errors import UserError, unknown_name

T = TypeVar("T")
Class = TypeVar("Class", bound=type[Any])


def check_free(kind: str, name: str, taken: object | None, new: object) -> None:
    """Check that ``name`` may be registered for ``new``, a function or a class.

    One of the same module and qualified name may take its own place again, as it does when its
    module is loaded anew.

    Args:
        kind: what is registered, e.g. ``"merge method"``.
        name: the name.
        taken: what is registered by this name, None if nothing is.
        new: what is to be registered.

    Raises:
        UserError: if the name belongs to something else.
    """
    if taken is None or origin(taken) == origin(new):
        return
    raise UserError(
        f"Expected a new name for the {kind} of {origin(new)} but {name!r} is registered already, "
        f"by {origin(taken)}; choose another name"
    )


def origin(thing: object) -> str:
    """Return the module and qualified name of a function, a class, or an object's class."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{getattr(named, '__qualname__', '')}"


def look_up(kind: str, registry: Mapping[str, T], name: str) -> T:
    """Return what is registered by a name.

    Args:
        kind: what is looked up, e.g. ``"merge method"``.
        registry: name -> entry.
        name: the name.

    Raises:
        UserError: if there is no such entry; names the nearest known.
    """
    if name not in registry:
        raise unknown_name(kind, name, registry)
    return registry[name]


def registers(kind: str, registry: dict[str, T]) -> Callable[[Class], Class]:
    """Return a class decorator that puts an object of the class into ``registry`` by its name.

    The decorator raises :class:`UserError` if the name is taken.

    Args:
        kind: what is registered, e.g. ``"head policy"``.
        registry: name -> object; filled by the decorator.
    """

    def register(cls: Class) -> Class:
        check_free(kind, cls.name, registry.get(cls.name), cls)
        registry[cls.name] = cls()
        return cls

    return register
