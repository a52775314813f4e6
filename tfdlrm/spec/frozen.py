"""The base of everything that describes a model or a run: data that checks itself."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tfdlrm.spec.errors import SpecError, explain


class Frozen(BaseModel):
    """Base of every spec model: immutable, unknown keys refused, errors said in one line as `SpecError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SpecError(explain(error, type(self).model_fields)) from None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `model_dump_json` wrote.

        Raises:
            SpecError: the text is not JSON or not a valid spec.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise SpecError(explain(error, cls.model_fields)) from None
