"""Checks of a method's class, so that suites can name it, and keys, rows and workers can hold it."""

import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, cast, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from zsqbench.errors import ZSQBenchError, one_line, unknown
from zsqbench.methods.base import DATA_SETS, Kind, Method
from zsqbench.scheme import parse_scheme

NAME = re.compile(r"[\w.+-]+")
"""Valid names of methods. They are parts of expressions and of cell names, which `:` separates."""
RESERVED = "none"
"""A suite's word for no generator."""
SCHEME = "hw/w4a4"
"""The scheme for trying the values that a method fills in."""


def check_declaration(method: type[Method], kind: Kind) -> None:
    """Raise ZSQBenchError, with class, option and value, for declarations that would fail or silently go wrong in use.

    Inherited attributes are checked too, so that a wrong method is found before a step runs.
    """
    _check_name(method)
    _check_attributes(method, kind)
    _check_names_of_options(method)
    _check_defaults(method)
    _check_types(method)
    _check_automatic(method)


def _check_name(method: type[Method]) -> None:
    name = getattr(method, "name", None)
    if "name" in method.model_fields or not (isinstance(name, str) and name):
        raise ZSQBenchError(f"{method.__name__} has no name; give it a class attribute name = '...'")
    if not NAME.fullmatch(name):
        raise ZSQBenchError(f"{method.__name__} is named {name!r}; expected letters, digits and any of _ . + -")
    if name == RESERVED:
        raise ZSQBenchError(f"{method.__name__} is named {name!r}, which means no generator in a suite; rename it")


def _check_attributes(method: type[Method], kind: Kind) -> None:
    """Check that class attributes have the types that the bases declare."""
    for name, annotation in _declared(method).items():
        if name in method.model_fields:
            raise ZSQBenchError(
                f"{method.__name__}.{name} has an annotation, which makes it an option; write {name} = ... without it"
            )
        if not hasattr(method, name):
            raise ZSQBenchError(f"{method.__name__} has no {name}; give it a class attribute {name} = ...")
        value = getattr(method, name)
        try:
            _adapter(annotation).validate_python(value, strict=annotation in (bool, int, str))
        except ValidationError as error:
            raise ZSQBenchError(f"{method.__name__}.{name} is {_short(value)}: {_message(error)}") from error
    if method.kind != kind:
        raise ZSQBenchError(f"{method.__name__}.kind is {method.kind!r}, and it is a {kind}; leave kind to the base")
    options = dict(_named_options(method))
    for name in method.execution_options:
        if name not in options:
            raise ZSQBenchError(f"{method.__name__}.execution_options: {unknown('option', name, options)}")
    if method.model_config.get("extra") != "forbid" or not method.model_config.get("frozen"):
        raise ZSQBenchError(f"{method.__name__}.model_config must keep frozen=True and extra='forbid'")


def _declared(method: type[Method]) -> dict[str, Any]:
    """The types of class attributes that zsqbench's bases declare. Declarations of more special bases win."""
    return {
        name: get_args(annotation)[0]
        for parent in reversed(method.__mro__[1:])
        if parent.__module__.startswith("zsqbench.")
        for name, annotation in inspect.get_annotations(parent).items()
        if cast("object", get_origin(annotation)) is ClassVar
    }


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _named_options(method: type[Method]) -> Iterator[tuple[str, FieldInfo]]:
    """The options by their names in a suite."""
    return ((info.alias or field, info) for field, info in method.model_fields.items())


def _check_names_of_options(method: type[Method]) -> None:
    parents = [parent for parent in method.__mro__[1:] if issubclass(parent, Method)]
    for field, info in method.model_fields.items():
        if "method" in (field, info.alias):
            raise ZSQBenchError(
                f"{method.__name__} has an option 'method', the key by which a suite names the method; rename it"
            )
        if any(field in vars(parent) for parent in parents):
            raise ZSQBenchError(
                f"option {field!r} of {method.__name__} hides what its base has by this name; rename it"
            )
        if not info.alias == info.validation_alias == info.serialization_alias:
            raise ZSQBenchError(
                f"option {field!r} of {method.__name__} is read and written by different names; give it `alias`"
            )


def _check_defaults(method: type[Method]) -> None:
    """Check that each default has its option's type, is within its constraints, and is plain data for JSON."""
    defaults = {
        name: _default(method, name, info)
        for name, info in _named_options(method)
        if not info.is_required() and not getattr(info, "default_factory_takes_validated_data", False)
    }
    _refuse_invalid(method, defaults, "the default of option")
    plain = {name: _plain(method, name, value) for name, value in defaults.items()}
    _refuse_invalid(method, plain, "the default of option", as_json=True)


def _default(method: type[Method], name: str, info: FieldInfo) -> Any:
    if info.default_factory is None:
        return info.default
    make = cast("Callable[[], Any]", info.default_factory)
    try:
        value, again = make(), make()
    except Exception as error:
        raise ZSQBenchError(
            f"the default of option {name!r} of {method.__name__} cannot be made: {one_line(error)}"
        ) from error
    if _plain(method, name, value) != _plain(method, name, again):
        raise ZSQBenchError(
            f"the default of option {name!r} of {method.__name__} is different each time it is made, such as "
            f"{_short(value)}; the identity of a step must not change"
        )
    return value


def _plain(method: type[Method], name: str, value: Any) -> Any:
    """A default as plain data, for keys and workers."""
    field = next(field for field, info in method.model_fields.items() if name in (field, info.alias))
    try:
        others = dict.fromkeys(other for other, _ in _named_options(method))
        dumped = method.model_construct(**others | {name: value}).model_dump(mode="json", include={field})[field]
        return json.loads(json.dumps(dumped), parse_constant=_number)
    except Exception as error:
        raise ZSQBenchError(
            f"the default of option {name!r} of {method.__name__} is {_short(value)}, which is not plain data: "
            f"{one_line(error)}"
        ) from error


def _number(text: str) -> float:
    """An infinity. Raises ValueError for NaN, which does not even equal itself."""
    if text == "NaN":
        raise ValueError("NaN is not a value of an option; use None for no value")
    return float(text)


def _refuse_invalid(method: type[Method], values: Mapping[str, Any], what: str, *, as_json: bool = False) -> None:
    """Raise ZSQBenchError for the first of these values that its option rejects. Other values may be missing."""
    context, after = {"files_exist": False}, " once it was written as JSON" if as_json else ""
    try:
        if as_json:
            method.model_validate_json(json.dumps(values), strict=True, context=context)
        else:
            method.model_validate(values, strict=True, context=context)
    except ValidationError as error:
        for item in error.errors():
            name = item["loc"][0] if item["loc"] else None
            if name in values:
                value = _short(values[str(name)])
                raise ZSQBenchError(
                    f"{what} {name!r} of {method.__name__} is {value}{after}: {_message(error, item)}"
                ) from error
    except Exception as error:
        raise ZSQBenchError(f"the check of the options of {method.__name__} raised {one_line(error)}") from error


def _check_types(method: type[Method]) -> None:
    """Check that the types of options can be described for lists and editors, and given in a suite."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            method.model_json_schema()
        except Exception as error:
            for name, info in _named_options(method):
                _check_type(method, name, info)
            raise ZSQBenchError(f"the options of {method.__name__} cannot be described: {_first(error)}") from error


def _check_type(method: type[Method], name: str, info: FieldInfo) -> None:
    try:
        TypeAdapter(cast("Any", info.annotation)).json_schema()
    except Exception as error:
        raise ZSQBenchError(
            f"no suite can give option {name!r} of {method.__name__}, whose type is {_type(info.annotation)}: "
            f"{_first(error)}"
        ) from error


def _check_automatic(method: type[Method]) -> None:
    """Check that presets exist, and that values for open options have valid names and types."""
    if any(info.is_required() for info in method.model_fields.values()):
        return  # no method can be built to ask
    if "preset" in method.model_fields:
        for preset in method.presets:
            _refuse_invalid(method, {"preset": preset}, "a name in presets, which option")
    for given in [{"preset": preset} for preset in method.presets] if "preset" in method.model_fields else [{}]:
        try:
            asked = method.model_validate(given)
        except ValidationError:
            continue  # some of its options do not go together unless they are given
        for network in DATA_SETS.values():
            try:
                values = asked.automatic(network, parse_scheme(SCHEME))
            except ZSQBenchError:
                continue  # not for this network
            except Exception as error:
                raise ZSQBenchError(f"{method.__name__}.automatic raised {one_line(error)}") from error
            _check_filled_in(method, values)


def _check_filled_in(method: type[Method], values: Any) -> None:
    if not isinstance(values, Mapping):
        raise ZSQBenchError(f"{method.__name__}.automatic returned {_short(values)}; expected values by option")
    for field in values:
        if field not in method.model_fields:
            raise ZSQBenchError(f"{method.__name__} fills in an {unknown('option', str(field), method.model_fields)}")
    named = {method.model_fields[field].alias or field: value for field, value in values.items() if value is not None}
    _refuse_invalid(method, named, "what is filled in for option")


def _short(value: object) -> str:
    """A short text of a value; its type where `repr` fails."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - third-party code
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - fits a line


def _type(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else _short(annotation).replace("typing.", "")


def _first(error: Exception) -> str:
    """The first line of an error, because pydantic adds addresses."""
    return str(error).strip().partition("\n")[0]


def _message(error: ValidationError, item: Any = None) -> str:
    """Pydantic's complaint about the first value, or about this one, in our words."""
    message = str((item or error.errors()[0])["msg"])
    return message.removeprefix("Value error, ").replace("Input should be", "expected")
