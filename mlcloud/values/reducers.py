"""How notebook functions, classes, arrays and tensors are taken apart and built up again.

Plain cloudpickle gives a shipped function a private copy of its globals, so that rebinding `scale`
afterwards is ignored and `global counter` changes nothing visible. Here a function of the notebook
becomes code + defaults + closure cells, and is bound to the *receiver's* namespace:

    pickling side                               loading side
    function_parts(f)  ── (code, <globals>,  ──► build_function ──► fill_function
                           name, cells), state

- **Cells.** A cell is written empty, and the function's state says what goes into it. By then the
  function is in pickle's memo, so a closure that reaches itself ends, and two functions that share
  a cell still share it.
- **Lines.** The state ends with the function's source lines (`sources`), for tracebacks there.
- **Containers.** A list or dict of a class that watches its items gets its attributes first.
- **Classes.** `Classes` gives each notebook class an id that travels with it. A class that arrives
  again updates the class that is there, so `isinstance` holds after a round trip. cloudpickle takes
  classes apart; only its process-wide registry is replaced, because one process may hold several
  namespaces.
- **Arrays.** Two arrays over one memory are written as one buffer and two views, so that writing
  through one is still seen through the other.
- **Tensors.** A storage is one out-of-band buffer instead of torch's own file in a byte string.

Everything named here is referenced by pickles: renaming a function breaks snapshots.
"""

from __future__ import annotations

import copyreg
import ctypes
import dataclasses
import enum
import functools
import io
import itertools
import pickle
import sys
import types
import uuid
import weakref
from collections.abc import Callable
from typing import Any

from cloudpickle import cloudpickle as _cp

from mlcloud.values import sources
from mlcloud.values.secrets import Secrets
from mlcloud.values.texts import build_texts as build_texts  # earlier pickles name it here

Reduced = tuple[Any, ...]
_SENTINELS = ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY")
# What pickle fills such a container with.
_FILLS_LIST = ("append", "extend")
_FILLS_DICT = ("__setitem__",)
_REDUCES = ("__reduce_ex__", "__reduce__")
_DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType)


class Classes:
    """The notebook classes one namespace knows, by an id that is the same on both sides.

    It holds them strongly: a pickle that only *names* a class must find it. That costs one class
    object per class definition that ever travelled.

    `secrets` are those of the session: no pickle of this namespace may hold their values.
    """

    def __init__(self) -> None:
        self.secrets = Secrets()
        self.by_id: dict[str, type] = {}
        self._ids: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()

    def id_of(self, cls: type) -> str:
        """The class's id, made on first sight."""
        class_id = self._ids.get(cls)
        if class_id is None:
            class_id = uuid.uuid4().hex
            self.add(class_id, cls)
        return class_id

    def add(self, class_id: str, cls: type) -> type:
        """Remember `cls` under `class_id`, or return the class that already has it."""
        known = self.by_id.setdefault(class_id, cls)
        self._ids[known] = class_id
        return known


# --- functions ------------------------------------------------------------------------------------


def function_parts(func: types.FunctionType, namespace: Any) -> Reduced:
    """Reduce a function whose globals are the notebook's, for which `namespace` is written."""
    cells = func.__closure__ or ()
    filled = []
    for cell in cells:
        try:
            filled.append((cell, cell.cell_contents))
        except ValueError:  # a variable of the enclosing function that is not bound yet
            continue
    state: dict[str, Any] = {
        "__qualname__": func.__qualname__,
        "__module__": func.__module__,
        "__doc__": func.__doc__,
        "__defaults__": func.__defaults__,
        "__kwdefaults__": func.__kwdefaults__,
    }
    try:
        state["__annotations__"] = func.__annotations__
    except Exception:
        # Python 3.14 evaluates them here, and they may name what does not exist (yet).
        state["__annotations__"] = {}
    if type_params := getattr(func, "__type_params__", ()):
        state["__type_params__"] = type_params
    # cloudpickle forgets where code was defined; a copy, so that no memo depends on who shares it.
    file = "".join(func.__code__.co_filename)
    args = (func.__code__, namespace, func.__name__, cells or None, file)
    full = (state, func.__dict__ or None, filled, sources.lines_of(func.__code__))
    return build_function, args, full, None, None, fill_function


def build_function(
    code: types.CodeType,
    namespace: dict[str, Any],
    name: str,
    cells: tuple[types.CellType, ...] | None,
    file: str = "<dynamic-code>",
) -> types.FunctionType:
    """The function, bound to the receiver's namespace; `fill_function` completes it."""
    return types.FunctionType(_in_file(code, file), namespace, name, None, cells)


def _in_file(code: types.CodeType, file: str) -> types.CodeType:
    """The code, and the code inside it, as defined in `file`."""
    consts = tuple(
        _in_file(const, file) if isinstance(const, types.CodeType) else const
        for const in code.co_consts
    )
    return code.replace(co_filename=file, co_consts=consts)


def fill_function(func: types.FunctionType, state: tuple[Any, ...]) -> None:
    """Second phase: attributes, the contents of the cells, and the lines for tracebacks."""
    slots, attributes, filled, *lines = state
    for name, value in slots.items():
        setattr(func, name, value)
    if attributes:
        func.__dict__.update(attributes)
    for cell, content in filled:
        cell.cell_contents = content
    if lines and lines[0]:
        sources.remember(lines[0])


def empty_cell() -> types.CellType:
    """A cell whose content arrives later."""
    return types.CellType()


def fill_cell(cell: types.CellType, content: tuple[Any, ...]) -> None:
    """Second phase of a cell that was reached by itself, not through a function."""
    if content:
        cell.cell_contents = content[0]


def cell_parts(cell: types.CellType) -> Reduced:
    """Reduce a cell that somebody holds without its function."""
    try:
        content: tuple[Any, ...] = (cell.cell_contents,)
    except ValueError:
        content = ()
    return empty_cell, (), content, None, None, fill_cell


def cached_parts(wrapper: Any) -> Reduced:
    """Reduce an `@functools.lru_cache` function; what it cached stays behind."""
    parameters = wrapper.cache_parameters()
    extra = {k: v for k, v in wrapper.__dict__.items() if k != "__wrapped__"}
    args = (wrapper.__wrapped__, parameters["maxsize"], parameters["typed"])
    return build_cached, args, extra or None


def build_cached(func: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    """The cached function again, with an empty cache."""
    return functools.lru_cache(maxsize=maxsize, typed=typed)(func)


def dispatch_parts(dispatch: types.FunctionType) -> Reduced | None:
    """Reduce a `@functools.singledispatch` function, None for others. Its cache stays behind."""
    registry = getattr(dispatch, "registry", None)
    if registry is None or dispatch.__globals__ is not vars(functools) or object not in registry:
        return None
    state = [(kind, func) for kind, func in registry.items() if kind is not object]
    return build_dispatch, (registry[object],), state, None, None, fill_dispatch


def build_dispatch(func: Callable[..., Any]) -> Any:
    """The generic function, with its default alone."""
    return functools.singledispatch(func)


def fill_dispatch(dispatch: Any, registered: list[tuple[type, Callable[..., Any]]]) -> None:
    """Second half of `build_dispatch`."""
    for kind, func in registered:
        dispatch.register(kind, func)


def cached_property_parts(cached: Any) -> Reduced:
    """Reduce a `functools.cached_property`, which has a lock of its own until Python 3.12."""
    state = {key: value for key, value in vars(cached).items() if key not in ("func", "lock")}
    return type(cached), (cached.func,), state


# --- containers -----------------------------------------------------------------------------------


def container_parts(obj: Any) -> Reduced | None:
    """Reduce an object of a list's or dict's subclass that watches what is put into it, else None.

    pickle puts the items in by the subclass's own methods and sets its attributes afterwards, so a
    method that uses one of these fails. Here they come first, and the items past the methods.
    """
    kind = type(obj)
    base, watched = (list, _FILLS_LIST) if isinstance(obj, list) else (dict, _FILLS_DICT)
    if _is_as_in(base, kind, watched) or not _is_as_in(object, kind, _REDUCES):
        return None
    if hasattr(kind, "__setstate__"):
        return None
    make, args, state, *items = obj.__reduce_ex__(5)
    if state is None:
        return None
    held = tuple(items[0] if base is list else items[1])
    return make, args, (state, held), None, None, fill_list if base is list else fill_dict


def _is_as_in(base: type, kind: type, names: tuple[str, ...]) -> bool:
    """Whether a subclass has these methods as the base has them."""
    return all(getattr(kind, name) is getattr(base, name) for name in names)


def fill_list(obj: list[Any], content: tuple[Any, tuple[Any, ...]]) -> None:
    """Second phase of a list's subclass."""
    state, items = content
    _set_state(obj, state)
    list.extend(obj, items)


def fill_dict(obj: dict[Any, Any], content: tuple[Any, tuple[Any, ...]]) -> None:
    """Second phase of a dict's subclass."""
    state, items = content
    _set_state(obj, state)
    dict.update(obj, items)


def _set_state(obj: Any, state: Any) -> None:
    """As pickle does it: attributes past `__setattr__`, slots through it."""
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        vars(obj).update(attributes)
    for name, value in (slots or {}).items():
        setattr(obj, name, value)


# --- files and generators that are over -----------------------------------------------------------

FILES = (io.TextIOWrapper, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.FileIO)


class ClosedFile(io.BytesIO):
    """What is left of a file: its name and mode. (`with open(…) as f:` leaves `f` behind.)"""

    def __init__(self, name: Any, mode: str) -> None:
        super().__init__()
        vars(self).update(name=name, mode=mode)


def closed_parts(file: Any) -> Reduced:
    """Reduce a file that is closed."""
    facts = [getattr(file, name, None) for name in ("name", "mode", "encoding")]
    name, mode, encoding = (each if isinstance(each, (str, bytes, int)) else "" for each in facts)
    return build_closed, (type(file).__name__, name, mode, encoding)


def build_closed(kind: str, name: Any, mode: str, encoding: str) -> Any:
    """A closed file again."""
    raw = ClosedFile(name, mode)
    file: Any = raw
    if kind == "TextIOWrapper":
        file = io.TextIOWrapper(raw, encoding=encoding or None)
    elif kind != "FileIO":
        file = getattr(io, kind)(raw)
    file.close()
    return file


def build_exhausted(name: str, qualname: str) -> Any:
    """A generator that has nothing more to give."""
    made: Any = (each for each in list[int]())
    made.__name__, made.__qualname__ = name, qualname
    next(made, None)
    return made


# --- classes --------------------------------------------------------------------------------------


def is_notebook_class(obj: Any) -> bool:
    """Whether a class cannot be imported on the other side, and so travels by value."""
    if obj.__module__ in ("builtins", "typing", "types"):
        return False
    return not _cp._should_pickle_by_reference(obj)


def class_parts(cls: type, classes: Classes) -> Reduced | None:
    """Reduce a notebook class, or None where cloudpickle writes it by reference."""
    reduced = _cp._class_reduce(cls)
    if not isinstance(reduced, tuple) or len(reduced) != 6:
        return None
    make, args, (attributes, _), _, _, _ = reduced
    # Looking at a class leaves these behind, which is no change of it.
    attributes.pop("__slotnames__", None)
    if not attributes.get("__annotations__", True):
        del attributes["__annotations__"]
    # cloudpickle sorts them; who walks over a class expects the order of its definition.
    attributes = {name: attributes[name] for name in vars(cls) if name in attributes} | attributes
    # cloudpickle's last two arguments are its own registry's id and a spare: ours replaces them.
    return (
        build_class,
        (classes, classes.id_of(cls), make, args[:-2]),
        attributes,
        None,
        None,
        fill_class,
    )


def sentinel_parts(obj: Any) -> Reduced | None:
    """Reduce `dataclasses.MISSING` and the like, which are told by being the same object."""
    name = next((name for name in _SENTINELS if getattr(dataclasses, name, None) is obj), None)
    return None if name is None else (getattr, (dataclasses, name))


def build_class(classes: Classes, class_id: str, make: Any, args: tuple[Any, ...]) -> type:
    """The class with this id: the one that is already here, or a new empty one."""
    known = classes.by_id.get(class_id)
    if known is not None:
        return known
    made: type = make(*args, None, None)
    return classes.add(class_id, made)


def fill_class(cls: type, attributes: dict[str, Any]) -> None:
    """Second phase: set the attributes, and drop those that the sender no longer has."""
    slots = cls.__dict__.get("__slots__", ())
    kept = set(attributes) | set((slots,) if isinstance(slots, str) else slots)
    if not isinstance(cls, enum.EnumMeta):
        for name, value in list(cls.__dict__.items()):
            dunder = name.startswith("__") and name.endswith("__")
            stays = dunder or name in kept or name == "_abc_impl"
            if not stays and not isinstance(value, _DESCRIPTORS):
                delattr(cls, name)
    _cp._class_setstate(cls, (attributes, {}))


# --- numpy ----------------------------------------------------------------------------------------


def array_owner(array: Any) -> Any:
    """The array at the end of the chain of views, which holds (or first saw) the memory."""
    ndarray = sys.modules["numpy"].ndarray
    while isinstance(array.base, ndarray):
        array = array.base
    return array


def array_memory(owner: Any) -> int:
    """The address of an owner's memory, which two aliases have in common."""
    base = owner.base
    storage = getattr(base, "untyped_storage", None)  # t.numpy(): the array's base is the tensor
    if storage is not None:
        return int(storage().data_ptr())
    return int(owner.__array_interface__["data"][0])


def view_parts(array: Any, owner: Any) -> Reduced:
    """Reduce an array as a window into `owner`, which is pickled once."""
    start = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
    args = (owner, start, array.shape, array.strides, array.dtype, bool(array.flags.writeable))
    return build_view, args


def build_view(
    owner: Any, start: int, shape: Any, strides: Any, dtype: Any, writeable: bool
) -> Any:
    """The window again, over the owner that arrived with it."""
    import numpy as np

    flat = (owner if owner.flags.c_contiguous else owner.T).reshape(-1)
    view = np.ndarray(shape, dtype, buffer=flat, offset=start, strides=strides)
    if not writeable:
        view.flags.writeable = False
    return view


# --- pandas ---------------------------------------------------------------------------------------


def uncached_parts(array: Any) -> Reduced:
    """Reduce a pandas array without what looking at it cached, which is no change to it."""
    func, args, *rest = array.__reduce_ex__(5)
    return (func, args, *map(_without_cache, rest))


def _without_cache(state: Any) -> Any:
    if type(state) is dict:
        return {key: value for key, value in state.items() if key != "_cache"}
    if type(state) is tuple:
        return tuple(map(_without_cache, state))
    return state


# --- matplotlib -----------------------------------------------------------------------------------


def callbacks_parts(registry: Any) -> Reduced:
    """A CallbackRegistry as matplotlib writes it, but left as it was: its own `__getstate__` counts
    on, so that a figure would be another one each time somebody looks at it."""
    number = next(registry._cid_gen)
    state = registry.__getstate__()
    registry._cid_gen = itertools.count(number)
    return copyreg.__newobj__, (type(registry),), {**state, "_cid_gen": number}  # type: ignore[attr-defined]


# --- torch ----------------------------------------------------------------------------------------


def storage_parts(storage: Any) -> Reduced:
    """Reduce an untyped torch storage: its bytes out of band, and the device they lived on."""
    device = str(storage.device)
    on_cpu = storage if storage.device.type == "cpu" else storage.cpu()
    size = on_cpu.nbytes()
    if size == 0:
        return build_storage, (b"", device)
    memory = (ctypes.c_char * size).from_address(on_cpu.data_ptr())
    memory.owner = on_cpu  # the view must not outlive the bytes
    return build_storage, (pickle.PickleBuffer(memory), device)


def build_storage(data: Any, device: str) -> Any:
    """A storage with its own copy of the bytes, on its device where this machine has one."""
    import torch

    view = memoryview(data).cast("B")
    storage: Any = torch.UntypedStorage(view.nbytes)  # type: ignore[no-untyped-call]
    if view.nbytes:
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        whole.copy_(torch.frombuffer(data, dtype=torch.uint8))
    if device.startswith("cuda") and torch.cuda.is_available():
        return storage.cuda(device=torch.device(device).index)
    return storage


def typed_storage_parts(storage: Any) -> Reduced:
    """Reduce torch's typed wrapper, which is a new object each time, to what it wraps."""
    return build_typed_storage, (storage._untyped_storage, storage.dtype)


def build_typed_storage(storage: Any, dtype: Any) -> Any:
    """The wrapper that `torch._utils._rebuild_tensor_v2` expects."""
    import torch

    make: Any = torch.storage.TypedStorage
    return make(wrap_storage=storage, dtype=dtype, _internal=True)
