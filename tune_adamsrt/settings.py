"""Settings: search_spaces/*.yaml -> a frozen, validated Setting.

A setting's file holds what is its own; everything else comes from `_defaults.yaml` beside the shipped files. Mappings
merge, the rest replaces: a range replaces a range as a whole. Every mistake in a file is one line: what must hold, what
was found, where to change it.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from adamsrt.registry import unknown_name_message
from tune_adamsrt.ranges import ONE_MINUS, Range, check_limits, is_number, one_minus_forms, parts_of, refuse
from tune_adamsrt.records import HyperParameters
from tune_adamsrt.settings_file import SettingError, holds, merge, read_yaml, shipped_folder, shown_path


class FrozenDict(dict[Any, Any]):
    """A dict that cannot be changed and, unlike a mappingproxy, can be pickled."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("a setting must not be changed in place; use override(setting, name=value)")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


class _Section(BaseModel):
    """A mapping of the file whose keys are known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    refuse(unknown_name_message("key", str(key), list(cls.model_fields)))
        return data


GridValues = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]


class OptimizerSpace(_Section):
    """Where one optimizer is searched.

    `space` maps parameter names (lr, beta1 or one_minus_beta1, ...) to ranges, `grid` maps hyper-parameters (lr, beta1,
    ...) to the values of a grid search.
    """

    space: Annotated[Mapping[str, Range], AfterValidator(FrozenDict)]
    grid: Annotated[Mapping[str, GridValues], AfterValidator(FrozenDict)]


class Setting(_Section):
    """A model on a dataset, its budget and its search spaces. It cannot be changed; `override` gives a changed copy."""

    model: str
    dataset: str
    epochs: int = Field(ge=1)
    trials: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    valid_split: float = Field(gt=0, lt=1)
    split_seed: int = Field(ge=0)
    selection: Literal["best", "last"]
    reduction_factor: int = Field(ge=2)
    min_epochs: int = Field(ge=1)
    cpus_per_trial: float = Field(gt=0)
    gpus_per_trial: float = Field(ge=0)
    optimizers: Annotated[Mapping[str, OptimizerSpace], AfterValidator(FrozenDict)]
    published: Annotated[Mapping[str, HyperParameters], AfterValidator(FrozenDict)] = Field(default=FrozenDict())

    @property
    def name(self) -> str:
        """`resnet18-cifar100`."""
        return f"{self.model}-{self.dataset}"

    @field_validator("model", "dataset", mode="after")
    @classmethod
    def _check_name(cls, name: str, info: Any) -> str:
        # Imported late, so that reading this module needs no torch.
        from adamsrt.dataloaders import DATASETS
        from adamsrt.models import MODELS

        known = list(MODELS if info.field_name == "model" else DATASETS)
        if name not in known:
            refuse(unknown_name_message(info.field_name, name, known))
        return name

    @field_validator("gpus_per_trial", mode="after")
    @classmethod
    def _check_gpus(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            refuse(f"must be a whole number above 1 (fractions share one GPU), got {gpus!r}")
        return gpus

    @field_validator("optimizers", mode="after")
    @classmethod
    def _check_optimizers(cls, optimizers: Mapping[str, OptimizerSpace]) -> Mapping[str, OptimizerSpace]:
        for optimizer, section in optimizers.items():
            parts = _checked_parts(optimizer)
            _check_names(section.grid, parts, optimizer, "grid")
            _check_names(section.space, [*parts, *one_minus_forms(parts)], optimizer, "space")
            for part in parts:
                forms = [name for name in (part, ONE_MINUS + part) if name in section.space]
                if len(forms) != 1:
                    refuse(f"must hold {part} once, got it {len(forms)} times", optimizer, "space")
                if part not in section.grid:
                    refuse(f"must hold {part}, got only {', '.join(section.grid) or 'nothing'}", optimizer, "grid")
            for name, values in section.space.items():
                check_limits(name, values.values, optimizer, "space", name)
            for name, grid_values in section.grid.items():
                check_limits(name, grid_values, optimizer, "grid", name)
        return optimizers

    @field_validator("published", mode="after")
    @classmethod
    def _check_published(cls, published: Mapping[str, HyperParameters]) -> Mapping[str, HyperParameters]:
        return {optimizer: _checked_point(optimizer, values) for optimizer, values in published.items()}

    @model_validator(mode="after")
    def _check_min_epochs(self) -> Self:
        if self.min_epochs > self.epochs:
            refuse(f"must be <= epochs ({self.epochs}), got {self.min_epochs}", "min_epochs")
        return self


def _checked_parts(optimizer: str) -> list[str]:
    from adamsrt.optimizers import OPTIMIZERS

    if optimizer not in OPTIMIZERS:
        refuse(unknown_name_message("optimizer", optimizer, OPTIMIZERS))
    return parts_of(OPTIMIZERS[optimizer].hyper_parameters)


def _check_names(given: Mapping[str, object], known: list[str], *at: str) -> None:
    for name in given:
        if name not in known:
            refuse(unknown_name_message("parameter", name, known), *at)


def _checked_point(optimizer: str, values: HyperParameters) -> HyperParameters:
    """Check one published point; betas become a tuple. What a point leaves out has the optimizer's default."""
    from adamsrt.optimizers import OPTIMIZERS

    _checked_parts(optimizer)
    _check_names(values, list(OPTIMIZERS[optimizer].hyper_parameters), optimizer)
    checked: dict[str, Any] = {}
    for name, value in values.items():
        numbers = value if name == "betas" else [value]
        expected = "two numbers [beta1, beta2]" if name == "betas" else "a finite number"
        if (
            not isinstance(numbers, list | tuple)
            or not all(map(is_number, numbers))
            or len(numbers) != (2 if name == "betas" else 1)
        ):
            refuse(f"must be {expected}, got {value!r}", optimizer, name)
        check_limits(name, tuple(numbers), optimizer, name)
        checked[name] = tuple(numbers) if name == "betas" else value
    return FrozenDict(checked)


def known_settings() -> list[str]:
    """The names of the shipped settings, in alphabetical order."""
    return sorted(path.stem for path in shipped_folder().glob("*.yaml") if not path.stem.startswith("_"))


def load_setting(name_or_path: str | Path) -> Setting:
    """Load a shipped setting by its name (`resnet18-cifar100`) or a user's own file by its path (`my/vgg16-svhn.yaml`).

    The shipped defaults fill in what the file leaves out. Raises SettingError, whose message is one line.
    """
    given = str(name_or_path)
    if "/" in given or "\\" in given or given.endswith((".yaml", ".yml")):
        return _load(Path(given))
    if given not in known_settings():
        message = unknown_name_message("setting", given, known_settings())
        raise SettingError(f"{message}; or give the path of your own .yaml file")
    return _load_shipped(shipped_folder() / f"{given}.yaml")


def override(setting: Setting, **changes: Any) -> Setting:
    """Give a changed and again validated copy: `override(setting, epochs=3, trials=None)`.

    A value of None changes nothing, so that command line options can be handed on. When `epochs` falls below
    min_epochs, min_epochs is lowered to fit. Raises SettingError.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    epochs = given.get("epochs")
    if isinstance(epochs, int) and "min_epochs" not in given:
        given["min_epochs"] = max(1, min(setting.min_epochs, epochs))
    try:
        return Setting.model_validate({**dict(setting), **given})
    except ValidationError as error:
        path, message = _first_mistake(error)
        raise SettingError(f"{_line(path, message)}; choose another value") from None


@functools.cache
def _load_shipped(path: Path) -> Setting:
    return _load(path)


def _load(path: Path) -> Setting:
    own = read_yaml(path)
    shown = shown_path(path)
    try:
        setting = Setting.model_validate(merge(read_yaml(shipped_folder() / "_defaults.yaml"), own))
    except ValidationError as error:
        place, message = _first_mistake(error)
        inherited = "" if "got nothing" in message or holds(own, place) else " (the value comes from _defaults.yaml)"
        raise SettingError(f"{_line(place, message)}; edit {shown}{inherited}") from None
    if path.stem != setting.name:
        raise SettingError(
            f"{shown} must be named {setting.name}.yaml after its model and dataset; rename it or edit these"
        )
    return setting


def _first_mistake(error: ValidationError) -> tuple[tuple[str, ...], str]:
    """Give the key path of the first mistake and its rule in our words."""
    mistakes = error.errors(include_url=False)
    mistake = mistakes[0]
    path = tuple(str(key) for key in (*mistake["loc"], *mistake.get("ctx", {}).get("at", ())))
    more = f" (and {len(mistakes) - 1} more to correct)" if len(mistakes) > 1 else ""
    return path, _rule(mistake) + more


def _rule(mistake: ErrorDetails) -> str:
    if mistake["type"] == "setting":
        return mistake["msg"]
    if mistake["type"] == "missing":
        return "must be given, got nothing"
    rule = mistake["msg"].replace("Input should be", "must be").replace("Tuple should have", "must have")
    rule = (
        rule.replace("valid dictionary", "valid mapping")
        .replace("greater than or equal to", ">=")
        .replace("less than or equal to", "<=")
    )
    rule = rule.replace("greater than", ">").replace("less than", "<")
    return f"{rule}, got {mistake['input']!r}"


def _line(place: tuple[str, ...], message: str) -> str:
    separator = " " if message.startswith("must") else ": "
    return f"{'.'.join(place)}{separator}{message}" if place else message
