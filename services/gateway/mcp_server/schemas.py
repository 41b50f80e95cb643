"""JSON Schemas for models: what each field is, and nothing twice, because every conversation pays for them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema


class _Short(GenerateJsonSchema):
    """Without titles, and with optional fields in place of those that may be null, which some hosts cannot read."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = super().default_schema(schema)
        return {name: value for name, value in inner.items() if name != "default" or value is not None}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of arguments or a result; the model's name and docstring are not part of it."""
    schema = model.model_json_schema(schema_generator=_Short)
    parts = (schema, *schema.get("$defs", {}).values())
    for part in parts:
        part.pop("title", None)
        part.pop("description", None)
    return schema
