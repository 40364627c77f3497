"""Where a model came from: everything that is needed to build the same base again."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from convpeft.errors import AdapterFileError, OptionError
from convpeft.models._fields import fields_of, is_whole, shown
from convpeft.models.preprocessing import MAX_CHANNELS

MAX_LENGTH = 200
MAX_CLASSES = 1_000_000
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class ModelSource:
    """The arguments of the ``load_model`` call that built a model, with the number of channels filled in.

    Args:
        source: What names the model, for example "timm/resnet18.a1_in1k".
        num_classes: Classes that were asked for; None is the source's own head.
        in_channels: Input channels of the model, 1 to 4.
        weights: The weights file that was read, or None.
        pretrained: Whether pretrained weights were asked for.
        seed: What torch's generator was seeded with before the model was built, where that is known; it gives a
            base without weights again.

    Raises:
        OptionError: If a value is of the wrong type or out of range.
    """

    source: str
    num_classes: int | None
    in_channels: int
    weights: str | None
    pretrained: bool
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check every field; what a source string means is checked where it is used."""
        values: dict[str, object] = dict(vars(self))  # whatever a file held, not yet what the annotations say
        source, classes, weights = values["source"], values["num_classes"], values["weights"]
        checks = (
            (
                "source",
                isinstance(source, str) and source.isprintable() and 0 < len(source) <= MAX_LENGTH,
                f"a printable string of 1 to {MAX_LENGTH} characters",
            ),
            (
                "num_classes",
                classes is None or (is_whole(classes) and self.num_classes in range(1, MAX_CLASSES + 1)),
                f"a whole number from 1 to {MAX_CLASSES}, or nothing",
            ),
            (
                "in_channels",
                is_whole(values["in_channels"]) and self.in_channels in range(1, MAX_CHANNELS + 1),
                f"a whole number from 1 to {MAX_CHANNELS}",
            ),
            ("weights", weights is None or isinstance(weights, str), "a path or nothing"),
            ("pretrained", isinstance(values["pretrained"], bool), "true or false"),
            ("seed", self.seed is None or (is_whole(values["seed"]) and 0 <= self.seed < 2**32), "a whole number"),
        )
        for name, holds, expected in checks:
            if not holds:
                raise OptionError(f"model.{name}: expected {expected}, got {shown(values[name])}.")

    @property
    def imports_code(self) -> bool:
        """Whether building this model imports a Python module that the source string names."""
        return is_import_path(self.source)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: object, *, where: str = "model source") -> ModelSource:
        """Build from what a file holds, checking everything; nothing is imported or opened.

        Args:
            record: What ``to_dict`` returned, read back.
            where: The name that errors begin with, for example the file's path.

        Raises:
            AdapterFileError: If a field is missing, unknown, of the wrong type or out of range.
        """
        names = tuple(field.name for field in dataclasses.fields(cls))
        try:
            return cls(**fields_of(record, names, where))  # pyright: ignore[reportArgumentType]  # checked there
        except OptionError as error:
            raise AdapterFileError(f"{where}: {error}") from None


def is_import_path(source: str) -> bool:
    """Say whether the string has the form package.module:function.

    >>> is_import_path("mylab.nets:small"), is_import_path("torchvision/resnet18:DEFAULT")
    (True, False)
    """
    return _IMPORT_PATH.fullmatch(source) is not None
