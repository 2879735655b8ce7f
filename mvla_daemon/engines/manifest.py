"""The manifest beside a model: everything that must be known to run it, so that nothing is guessed."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mvla_daemon.engines.files import external_files, sha256_of
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic_core import ErrorDetails

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

UNITS = {"linear_x": "m/s", "linear_y": "m/s", "angular_z": "rad/s"}
"""The unit that an axis is told in."""
_CHANNELS = 3


def _beside_manifest(path: Path, info: ValidationInfo) -> Path:
    """A path as the manifest means it: relative to the manifest's folder, which the context names."""
    if str(path) == "?":  # of a draft
        raise ValueError("which file is meant is still an open question: name it")
    folder: Path = (info.context or {}).get("folder", Path())
    return folder / path


File = Annotated[Path, AfterValidator(_beside_manifest)]
Name = Annotated[str, Field(min_length=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Divisor = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
Pixels = Annotated[int, Field(strict=True, ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ImageInput(_Table):
    """A camera picture as the model wants it.

    `size` is height and width in pixels. A value v of 0 to 255 becomes (v · scale - mean) / std, where `mean` and
    `std` follow the order of `color`. A uint8 model takes the values as they are.
    """

    tensor: Name
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "float16", "uint8"]
    size: tuple[Pixels, Pixels]
    color: Literal["RGB", "BGR"]
    resize: Literal["squash", "letterbox", "crop"]
    scale: Number = 1.0
    mean: tuple[Number, Number, Number] = (0.0, 0.0, 0.0)
    std: tuple[Divisor, Divisor, Divisor] = (1.0, 1.0, 1.0)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The model input's shape, for a batch of one."""
        height, width = self.size
        return (1, _CHANNELS, height, width) if self.layout == "NCHW" else (1, height, width, _CHANNELS)

    @model_validator(mode="after")
    def _uint8_is_raw(self) -> ImageInput:
        identity = (1.0, (0.0,) * _CHANNELS, (1.0,) * _CHANNELS)
        if self.dtype == "uint8" and (self.scale, self.mean, self.std) != identity:
            raise ValueError("a uint8 image is not normalised: leave scale, mean and std out")
        return self


class InstructionInput(_Table):
    """A sentence, given to the model as its row of a table of embeddings."""

    tensor: Name
    table: File


class Inputs(_Table):
    """What the policy is told in each cycle."""

    image: ImageInput
    instruction: InstructionInput | None = None


class State(_Table):
    """A recurrent state: the output of one inference that is an input of the next, zero at every arming."""

    input: Name
    output: Name


class Axis(_Table):
    """One axis of motion: element `index` of the flattened output `tensor`, times `scale`, plus `offset`."""

    name: Literal["linear_x", "linear_y", "angular_z"]
    tensor: Name
    index: Annotated[int, Field(strict=True, ge=0)]
    scale: Number = 1.0
    offset: Number = 0.0
    unit: Literal["m/s", "rad/s"]

    @model_validator(mode="after")
    def _unit_fits(self) -> Axis:
        if self.unit != UNITS[self.name]:
            raise ValueError(f'the unit of {self.name} is "{UNITS[self.name]}", not "{self.unit}"')
        return self


class Training(_Table):
    """What a checkpoint said of its own training, for tables; nothing is decided by it.

    `val_mae` is the mean absolute error on the training's validation frames, in units of the model's output.
    """

    epoch: Annotated[int, Field(strict=True, ge=0)] | None = None
    val_mae: Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)] | None = None


class Manifest(_Table):
    """A policy: its model file and how to feed and read it. Paths are absolute once `load_manifest` has read them."""

    name: Name
    model: File
    sha256: dict[File, Sha256]
    weights: Literal["trained", "random"]
    training: Training | None = None
    inputs: Inputs
    states: tuple[State, ...] = Field(default=(), alias="state")
    axes: tuple[Axis, ...] = Field(alias="axis", min_length=1)
    parity_tolerance: Divisor = 0.05
    """How far a built engine's action may be from the model's, as a share of its standard deviation over pictures."""

    @field_validator("axes")
    @classmethod
    def _axes_are_unique(cls, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        if repeated := _repeated(axis.name for axis in axes):
            raise ValueError(f"{repeated} has more than one [[axis]]")
        return axes

    @model_validator(mode="after")
    def _random_weights_have_no_training(self) -> Manifest:
        if self.training is not None and self.weights == "random":
            raise ValueError('weights are "random", so there is no [training] to tell of: remove it')
        return self

    @model_validator(mode="after")
    def _tensors_are_fed_once(self) -> Manifest:
        instruction = self.inputs.instruction
        named = [self.inputs.image.tensor, *(state.input for state in self.states)]
        if repeated := _repeated([*named, instruction.tensor] if instruction else named):
            raise ValueError(f"the model's input {repeated} is named by more than one table")
        if repeated := _repeated(state.output for state in self.states):
            raise ValueError(f"the model's output {repeated} is kept by more than one [[state]]")
        return self


def _repeated(names: Iterable[str]) -> str:
    """The names that occur more than once, for a sentence."""
    return ", ".join(repr(name) for name, count in Counter(names).items() if count > 1)


def refusal(subject: object, problems: Sequence[str], exit_code: ExitCode) -> DaemonError:
    """One error for all that is wrong with `subject`, a line for each."""
    if len(problems) == 1:
        return DaemonError(f"{subject}: {problems[0]}", exit_code)
    return DaemonError(f"{subject}: {len(problems)} problems:\n  " + "\n  ".join(problems), exit_code)


def load_manifest(path: Path) -> Manifest:
    """Read a manifest and check the sha256 of every file that it names.

    Raises DaemonError: NO_INPUT where the manifest or a file is missing, CONFIG for anything wrong inside.
    """
    path = path.absolute()
    try:
        content = tomllib.loads(path.read_text("utf-8"))
        manifest = Manifest.model_validate(content, context={"folder": path.parent})
    except OSError as error:
        sentence = f"{path}: the manifest cannot be read ({error.strerror}): check policy.manifest"
        raise DaemonError(sentence, ExitCode.NO_INPUT) from None
    except ValidationError as error:
        raise refusal(path, _sentences(error.errors()), ExitCode.CONFIG) from None
    except ValueError as error:  # of tomllib, or UTF-8's
        raise refusal(path, [f"is no TOML: {error}"], ExitCode.CONFIG) from None
    _check_files(path, manifest)
    return manifest


def _sentences(details: list[ErrorDetails]) -> list[str]:
    """Pydantic's findings in words. That a list is too short is none where parts of it are wrong and do not count."""
    lists = {detail["loc"][:1] for detail in details if len(detail["loc"]) > 1}
    return [_sentence(one) for one in details if one["type"] != "too_short" or one["loc"] not in lists]


def _sentence(detail: ErrorDetails) -> str:
    """One of pydantic's findings in words."""
    where = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    if detail["type"] == "extra_forbidden":
        return f"{where}: is no key of a manifest; remove it or mend its spelling"
    if detail["type"] == "missing":
        return f"{where}: is missing"
    said = detail["msg"].removeprefix("Value error, ")
    given = detail["input"]
    shown = f" (it is {given!r})" if isinstance(given, str | int | float) else ""
    return f"{where}: {said}{shown}" if where else said


def _check_files(path: Path, manifest: Manifest) -> None:
    """Hold every file of the policy against its sha256, and the list of files against what the model uses."""
    listed: dict[Path, str | None] = {manifest.model: None, **manifest.sha256}
    problems = [problem for file, said in listed.items() if (problem := _file_problem(file, said))]
    used = {manifest.model} | ({manifest.inputs.instruction.table} if manifest.inputs.instruction else set())
    with suppress(OSError):  # a model that cannot be read is among the problems already
        used |= external_files(manifest.model)
    problems += [
        (ExitCode.CONFIG, f"{file.name} has no sha256 in the manifest: add it, as `sha256sum {file}` shows it")
        for file in sorted(used - manifest.sha256.keys())
    ]
    if problems:
        exit_code = max(exit_code for exit_code, _ in problems)  # CONFIG is above NO_INPUT
        raise refusal(path, [sentence for _, sentence in problems], exit_code)


def _file_problem(file: Path, said: str | None) -> tuple[ExitCode, str] | None:
    """What is wrong with a file whose sha256 the manifest gives as `said`, if at all."""
    try:
        found = sha256_of(file)
    except FileNotFoundError:
        return ExitCode.NO_INPUT, f"there is no file {file}: put it there, or mend its name in the manifest"
    except OSError as error:
        return ExitCode.CONFIG, f"{file} cannot be read ({error.strerror}): mend its permissions"
    if said in {None, found}:
        return None
    return ExitCode.CONFIG, (
        f"wrong sha256: {file.name} has {found}, the manifest says {said}: "
        "fetch the file again, or if it is the one you mean, put its sha256 in the manifest"
    )
