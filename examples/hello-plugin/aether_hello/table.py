"""`[hello]` in cluster.toml."""

from pydantic import BaseModel, ConfigDict, Field

from aether_hello.hooks import FORBIDDEN_SUFFIX


class HelloTable(BaseModel):
    """A key that is not here is an error with its line, as in aether's own tables."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    forbidden_suffix: str = Field(FORBIDDEN_SUFFIX, min_length=1)
