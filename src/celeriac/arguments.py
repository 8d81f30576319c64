"""What a task's signature says about a call: whether the arguments fit, how they become JSON, and how they come back.

Positional arguments stay positional, keyword arguments stay keyword arguments and omitted ones stay omitted, so that
stock peers see the call as it was made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain, count, repeat
from typing import Any, Literal

from celery.result import ResultBase
from kombu.exceptions import EncodeError
from pydantic import ValidationError

from celeriac.annotations import (
    ANY,
    Converter,
    converter_of,
    evaluate,
    resolve,
    result_annotation,
    signature_of,
)
from celeriac.errors import ConfigurationError, InvalidArguments
from celeriac.files import FileConverter, converter_for

__all__ = ["ArgumentSchema"]

_Kind = inspect.Parameter
_POSITIONAL = (_Kind.POSITIONAL_ONLY, _Kind.POSITIONAL_OR_KEYWORD)


class ArgumentSchema:
    """The arguments and the result of one task function.

    Annotations are resolved when the first call needs them, so that they may name what is defined further down.
    """

    def __init__(
        self, function: Callable[..., Any], signature: inspect.Signature, parameters: list[_Kind]
    ) -> None:
        self._function = function
        self._name = getattr(function, "__name__", type(function).__name__)
        self._return = signature.return_annotation
        #: The parameters that a call may fill, in their order.
        self.parameters = tuple(parameters)
        self._named = [
            each for each in parameters if each.kind not in (_Kind.VAR_POSITIONAL, _Kind.VAR_KEYWORD)
        ]
        self._positional = [each.name for each in self._named if each.kind in _POSITIONAL]
        positions = {name: index for index, name in enumerate(self._positional)}
        # Where each name stands; what can only be given by name stands at -1.
        self._keywords = {
            each.name: positions.get(each.name, -1)
            for each in self._named
            if each.kind is not _Kind.POSITIONAL_ONLY
        }
        self._required = [
            (each.name, positions.get(each.name, -1)) for each in self._named if each.default is _Kind.empty
        ]
        variadic = {each.kind: each for each in parameters}
        self._var_positional = variadic.get(_Kind.VAR_POSITIONAL)
        self._var_keyword = variadic.get(_Kind.VAR_KEYWORD)
        # A call of exactly this many positional arguments alone needs no second look.
        only_positional = all(position >= 0 for _, position in self._required)
        self._simple = len(self._positional) if only_positional else -1
        # How many positional arguments the function itself takes; those that follow an injected one go by name.
        self._leading = len(self._positional)
        self._prepared = False

    @classmethod
    def from_function(
        cls, function: Callable[..., Any], *, bound: bool, exclude: Collection[str] = ()
    ) -> ArgumentSchema:
        """The schema of a task's function.

        Args:
            function: The function as it was decorated.
            bound: Whether its first parameter is the task itself.
            exclude: Parameters that are injected where the task runs; nobody sends them.

        Raises:
            ConfigurationError: An injected parameter stands where no call can leave it out, or a default is none.
        """
        signature = signature_of(function)
        parameters = list(signature.parameters.values())
        if bound and parameters and parameters[0].kind in _POSITIONAL:
            del parameters[0]
        schema = cls(function, signature, [each for each in parameters if each.name not in exclude])
        schema._refuse_descriptions()
        injected = next((index for index, each in enumerate(parameters) if each.name in exclude), None)
        if injected is not None and parameters[injected].kind in _POSITIONAL:
            name, following = parameters[injected].name, parameters[injected:]
            if any(each.kind in (_Kind.POSITIONAL_ONLY, _Kind.VAR_POSITIONAL) for each in following):
                raise ConfigurationError(
                    f"{schema._name}(): make the injected parameter {name!r} keyword-only,"
                    " because positional arguments follow it."
                )
            schema._leading = injected
        return schema

    def _refuse_descriptions(self) -> None:
        """Refuse ``= File()``, ``= Form()`` and their like: FastAPI puts a value there, and in a task nobody does."""
        for each in self._named:
            if type(each.default).__module__ == "fastapi.params":
                kind = type(each.default).__name__
                raise ConfigurationError(
                    f"{self._name}(): the default of {each.name!r} is FastAPI's {kind}(), which is no value."
                    f" Write {each.name}: Annotated[…, {kind}()], and the default itself if there is one."
                )

    def dump(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """A call's arguments as JSON values.

        Raises:
            InvalidArguments: The call does not fit the signature, an argument does not fit its annotation, or JSON
                cannot express it. ``errors`` lists all of that.
        """
        converters = self._converters(args, kwargs)
        by_name, rest = self._by_name, self._rest
        try:
            return (
                [converter.dump(value) for converter, value in zip(converters, args, strict=False)],
                {name: by_name.get(name, rest).dump(value) for name, value in kwargs.items()},
            )
        except ValueError as exc:
            raise self._invalid(args, kwargs, "dump", exc) from exc

    def prepare(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], serializer: str | None = None
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """A call's arguments as they are given to a serializer: JSON values, and to pickle the values as they are.

        Raises:
            InvalidArguments: As :meth:`dump` does; for pickle, only when the call does not fit the signature.
        """
        if serializer != "pickle" or self.takes_files:
            return self.dump(args, kwargs)
        self._converters(args, kwargs)
        return args, kwargs

    def load(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments to call the function with, from JSON values; injected ones are left to the caller.

        Raises:
            InvalidArguments: As :meth:`dump` does.
        """
        converters = self._converters(args, kwargs)
        by_name, rest = self._by_name, self._rest
        try:
            positional = [converter.load(value) for converter, value in zip(converters, args, strict=False)]
            named = {name: by_name.get(name, rest).load(value) for name, value in kwargs.items()}
        except ValueError as exc:
            raise self._invalid(args, kwargs, "load", exc) from exc
        if self._leading < len(positional) <= len(self._positional):
            return self.place(positional, named)
        return tuple(positional), named

    def place(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with those by name that follow an injected one, which is no part of the call."""
        leading, named = self._leading, dict(kwargs)
        if leading < len(args) <= len(self._positional):
            named.update(zip(self._positional[leading:], args[leading:], strict=False))
            args = args[:leading]
        return tuple(args), named

    @property
    def takes_files(self) -> bool:
        """Whether an argument may be a file, ``UploadFile`` or ``bytes``."""
        if not self._prepared:
            self._prepare()
        return self._takes_files

    def map_files(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], change: Callable[[FileConverter, Any], Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments, with those changed that may be files. Raises InvalidArguments when the call does not fit."""

        def changed(converter: Converter, value: Any) -> Any:
            return change(converter, value) if isinstance(converter, FileConverter) else value

        converters, by_name, rest = self._converters(args, kwargs), self._by_name, self._rest
        return (
            [changed(converter, value) for converter, value in zip(converters, args, strict=False)],
            {name: changed(by_name.get(name, rest), value) for name, value in kwargs.items()},
        )

    def by_name(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments by the names of their parameters; those that it leaves out have their defaults.

        What goes into ``*args`` has its position for a name. The values stay as they are.
        """
        defaults = {each.name: each.default for each in self._named if each.default is not _Kind.empty}
        named = dict(zip(self._positional, args, strict=False))
        rest = {str(n): value for n, value in enumerate(args) if n >= len(self._positional)}
        return {**defaults, **named, **rest, **kwargs}

    def dump_result(self, value: Any) -> Any:
        """What the function returned, as a JSON value: by the return annotation, or by its own type if it does not fit.

        The result of another task (``AsyncResult``, ``GroupResult``) becomes its ids, as in Celery's
        ``Backend.prepare_value``; ``celery.result.result_from_tuple`` reads them.

        Raises:
            kombu.exceptions.EncodeError: JSON cannot express it.
        """
        if not self._prepared:
            self._prepare()
        if isinstance(value, ResultBase):
            value = value.as_tuple()
        try:
            return self._result.dump_result(value)
        except ValueError as exc:
            raise EncodeError(f"{self._name}(): the result cannot be expressed as JSON: {exc}") from exc

    def load_result(self, value: Any) -> Any:
        """The result of the annotated type, from a JSON value; the JSON value itself if it does not fit."""
        if not self._prepared:
            self._prepare()
        return self._result.load_result(value)

    def annotation(self, parameter: inspect.Parameter) -> Any:
        """What annotates a parameter, without forward references. Raises whatever evaluating it raises."""
        return evaluate(parameter.annotation, inspect.unwrap(self._function))

    @property
    def result_type(self) -> Any:
        """What annotates the result; ``Any`` when nothing does, or Python cannot resolve it."""
        function = inspect.unwrap(self._function)
        return result_annotation(function, resolve(self._return, function))

    def _prepare(self) -> None:
        function = inspect.unwrap(self._function)

        def converter(parameter: _Kind | None) -> Converter:
            return ANY if parameter is None else converter_for(resolve(parameter.annotation, function))

        converters = {each.name: converter(each) for each in self._named}
        self._by_position = [converters[name] for name in self._positional]
        # Without the positional-only ones, whose names are free for the variadic keyword arguments.
        self._by_name = {name: converters[name] for name in self._keywords}
        self._more, self._rest = converter(self._var_positional), converter(self._var_keyword)
        self._result = converter_of(self.result_type)
        every = (*converters.values(), self._more, self._rest)
        self._takes_files = any(isinstance(each, FileConverter) for each in every)
        self._prepared = True

    def _converters(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Converter]:
        """The converters of the positional arguments. Raises InvalidArguments when the call does not fit."""
        if not self._prepared:
            self._prepare()
        given = len(args)
        problems = list(self._misfits(given, kwargs)) if kwargs or given != self._simple else None
        if problems:
            (sentence, _), *others = problems
            raise InvalidArguments(self._sentence(sentence, len(others)), [error for _, error in problems])
        more = given - len(self._by_position)
        return [*self._by_position, *repeat(self._more, more)] if more > 0 else self._by_position

    def _misfits(self, given: int, kwargs: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """What is wrong with a call of ``given`` positional arguments, each as a sentence and in pydantic's form."""
        if given > len(self._positional) and self._var_positional is None:
            takes = f"takes {len(self._positional)} positional argument{'s' * (len(self._positional) != 1)}"
            yield (
                f"{takes}, but {given} were given",
                _error(
                    "unexpected_positional_argument",
                    (len(self._positional),),
                    "Unexpected positional argument",
                ),
            )
        for name, value in kwargs.items():
            position = self._keywords.get(name)
            if position is None:
                if self._var_keyword is None:
                    yield (
                        f"has no argument {name!r}",
                        _error("unexpected_keyword_argument", (name,), "Unexpected keyword argument", value),
                    )
            elif 0 <= position < given:
                yield (
                    f"was given the argument {name!r} twice",
                    _error("multiple_argument_values", (name,), "Got multiple values for argument", value),
                )
        for name, position in self._required:
            if not (0 <= position < given or (name in kwargs and name in self._keywords)):
                yield (
                    f"is missing the argument {name!r}",
                    _error("missing_argument", (name,), "Missing required argument"),
                )

    def _invalid(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        step: Literal["dump", "load"],
        first: ValueError,
    ) -> InvalidArguments:
        """All that is wrong with the values of a call that fits the signature."""
        errors: list[dict[str, Any]] = []
        for location, converter, value in self._values(args, kwargs):
            try:
                getattr(converter, step)(value)
            except ValidationError as exc:
                for error in exc.errors(include_url=False):
                    errors.append({**error, "loc": (*location, *error["loc"])})
            except ValueError as exc:
                errors.append(_error("json_type", location, f"It cannot be sent as JSON: {exc}", value))
        if not errors:
            return InvalidArguments(self._sentence(f"does not accept its arguments: {first}", 0))
        path = ".".join(map(str, errors[0]["loc"]))
        sentence = f"does not accept the argument {path!r}: {errors[0]['msg']}"
        return InvalidArguments(self._sentence(sentence, len(errors) - 1), errors)

    def _values(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[str | int, ...], Converter, Any]]:
        more = self._var_positional.name if self._var_positional else ""
        places = chain(((name,) for name in self._positional), ((more, index) for index in count()))
        yield from zip(places, chain(self._by_position, repeat(self._more)), args, strict=False)
        for name, value in kwargs.items():
            yield (name,), self._by_name.get(name, self._rest), value

    def _sentence(self, what: str, others: int) -> str:
        what = what.rstrip(".")
        return f"{self._name}() {what}" + (f" (and {others} more)." if others else ".")


def _error(kind: str, location: tuple[str | int, ...], message: str, value: Any = None) -> dict[str, Any]:
    return {"type": kind, "loc": location, "msg": message, "input": value}
