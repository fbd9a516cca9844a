"""The parameters: what params.yaml may contain, checked in full before a stage does anything."""

import difflib
import reprlib
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lenet.errors import InputError
from lenet.processor import PORTABLE_THREADS

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class _Section(BaseModel):
    """Strict: unknown keys, strings for numbers, 1.5 or true for an integer, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


_UNKNOWN_KEY = ("extra_forbidden", "invalid_key")

AnySection = TypeVar("AnySection", bound=_Section)


class Data(_Section):
    dataset: str  # The stage download knows which there are: lenet.data.catalog.
    folder: str
    prepare: Literal["mnist", "resize"]


class Preprocess(_Section):
    hold_out: Literal["images", "writers"]
    validation_size: Annotated[int, Field(ge=0, le=1_000_000)]
    seed: Seed


class Model(_Section):
    architecture: Literal["lenet", "mlp"]
    padding: Annotated[int, Field(ge=0, le=2, multiple_of=2)]
    mean: Literal["auto"] | Annotated[float, Field(ge=0, le=1)]
    std: Literal["auto"] | Annotated[float, Field(ge=0.001, le=1)]
    activation: Literal["relu", "tanh", "scaled_tanh", "sigmoid"]
    pooling: Literal["max", "average", "trainable"]
    c3: Literal["dense", "sparse"]
    head: Literal["linear", "rbf"]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    batch_norm: bool

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Refuse layers that the multilayer perceptron lacks, and activations that cannot reach the RBF codes."""
        if self.architecture == "mlp":
            for key, value in {"pooling": "trainable", "c3": "sparse", "head": "rbf"}.items():
                if getattr(self, key) == value:
                    raise ValueError(f"model.{key} is {value}, which architecture mlp does not have; use lenet instead")
        if self.head == "rbf" and self.activation in ("relu", "sigmoid"):
            raise ValueError(
                f"model.head is rbf, whose codes are -1 and +1, which activation {self.activation} cannot reach; "
                "use tanh or scaled_tanh"
            )
        return self

    def normalised(self, mean: float, std: float) -> Self:
        """The section with these numbers, a data set's, in place of `auto`."""
        numbers = {"mean": mean, "std": std}
        return self.model_copy(update={key: number for key, number in numbers.items() if getattr(self, key) == "auto"})


class Train(_Section):
    loss: Literal["cross_entropy", "nll", "rbf"]
    optimizer: Literal["sgd", "adam", "adamw"]
    learning_rate: Annotated[float, Field(gt=0, le=1000)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Literal["auto"] | Annotated[float, Field(ge=0, le=1000)]
    schedule: Literal["constant", "one_cycle", "step"]
    batch_size: Count
    epochs: Count
    seed: Seed
    device: Literal["auto", "cpu", "cuda", "mps"]
    arithmetic: Literal["portable", "native"]
    threads: Annotated[int, Field(ge=1, le=1024)]
    augment: Annotated[float, Field(ge=0, le=4)]
    flip: bool
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    ema: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _is_portable(self) -> Self:
        if self.arithmetic == "portable" and self.threads > PORTABLE_THREADS:
            raise ValueError(
                f"train.threads is {self.threads}, but train.arithmetic portable allows at most {PORTABLE_THREADS}; "
                f"use {PORTABLE_THREADS}, or arithmetic native"
            )
        return self

    @model_validator(mode="after")
    def _loss_can_be_smoothed(self) -> Self:
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError(
                f"train.label_smoothing is {self.label_smoothing}, which train.loss {self.loss} does not have; "
                "use 0, or loss cross_entropy"
            )
        return self


class Evaluate(_Section):
    batch_size: Count


class Plot(_Section):
    samples: Annotated[int, Field(ge=1, le=100)]
    mistakes: Annotated[int, Field(ge=1, le=100)]


class Params(_Section):
    """The whole of params.yaml, whose comments explain each value."""

    data: Data
    preprocess: Preprocess
    model: Model
    train: Train
    evaluate: Evaluate
    plot: Plot

    @model_validator(mode="after")
    def _loss_fits_head(self) -> Self:
        if (self.train.loss == "rbf") != (self.model.head == "rbf"):
            advice = "rbf" if self.model.head == "rbf" else "cross_entropy or nll"
            raise ValueError(
                f"train.loss is {self.train.loss}, which does not fit model.head {self.model.head}; use {advice}"
            )
        return self


def load_params(path: Path) -> Params:
    """Read a parameter file and check all of it, so that the first stage to run reports a mistake in any section.

    Raises
    ------
    InputError
        There is no such file, it is not YAML, or a key is unknown, missing, of the wrong type or out of range.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run this in the project's root") from None
    return check(Params, parse_yaml(text, str(path)), str(path))


def parse_yaml(text: bytes, source: str) -> object:
    """Parse YAML 1.2, as DVC does (in YAML 1.1, `1e-3` is a string).

    `source` names the text in errors.

    Raises
    ------
    InputError
        The text is not YAML.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What ruamel.yaml warns of is checked later.
            return YAML(typ="safe", pure=True).load(text.decode())
    # Besides its own error, ruamel.yaml raises these for bad dates, numbers, truth values and deep nesting.
    except (YAMLError, ValueError, KeyError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{source}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def check(schema: type[AnySection], values: object, source: str) -> AnySection:
    """Check values in memory against the schema of a section or of the whole; `source` names their file in errors."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        # A misspelt key is missing under its right name too: report the misspelling first, it explains the other.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] not in _UNKNOWN_KEY)
        # A value of a union type has a problem with each member, and both have the same description.
        described = list(dict.fromkeys(_describe(schema, problem) for problem in problems))
        shown = "; ".join(described[:3])
        more = f"; and {len(described) - 3} more" if len(described) > 3 else ""
        raise InputError(f"{source}: {shown}{more}") from None


def _describe(schema: type[BaseModel], problem: ErrorDetails) -> str:
    """Describe, in the user's terms, a problem that pydantic found: the key, its value, what is allowed."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    location = problem["loc"][: 2 if schema is Params else 1]  # What follows names a member of a union type.
    *sections, key = location or ("",)
    for name in sections:
        schema = schema.model_fields[str(name)].annotation  # type: ignore[assignment]
    full_key = ".".join(map(str, location)) or "the file"
    if problem["type"] in _UNKNOWN_KEY:
        known = list(schema.model_fields)
        close = difflib.get_close_matches(str(key), known, n=1)
        advice = f"did you mean {'.'.join([*map(str, sections), *close])}?" if close else f"known: {', '.join(known)}"
        return f"{full_key} is not a parameter; {advice}"
    if problem["type"] == "missing":
        return f"{full_key} is missing; it must be {_allowed(schema, str(key))}"
    try:
        # reprlib, because a small YAML file can describe a value whose full text does not fit in memory.
        value = reprlib.repr(problem["input"])
    except ValueError:  # Python does not print integers of more than 4,300 digits.
        value = "a huge number"
    return f"{full_key} is {value}; it must be {_allowed(schema, str(key))}"


def _allowed(schema: type[BaseModel], key: str) -> str:
    """What values a key may have, in words, from the schema that checks it."""
    if key not in schema.model_fields:
        return f"a mapping with {', '.join(schema.model_fields)}"
    field = schema.model_json_schema()["properties"][key]
    if "$ref" in field:
        return _allowed(schema.model_fields[key].annotation, "")  # type: ignore[arg-type]
    return " or ".join(map(_in_words, field.get("anyOf", [field])))


def _in_words(field: dict[str, Any]) -> str:
    """What the JSON schema of one of the types above allows, in words."""
    if "const" in field:
        return str(field["const"])
    if field["type"] == "string" and "enum" not in field:
        return "a text"
    if field["type"] == "boolean":
        return "true or false"
    if "enum" in field:
        return " or ".join(str(value) for value in field["enum"])
    low = f"at least {field['minimum']}" if "minimum" in field else f"greater than {field['exclusiveMinimum']}"
    high = f"at most {field['maximum']}" if "maximum" in field else f"less than {field['exclusiveMaximum']}"
    kind = "an integer" if field["type"] == "integer" else "a number"
    kind = f"a multiple of {field['multipleOf']}" if "multipleOf" in field else kind
    return f"{kind}, {low} and {high}"
