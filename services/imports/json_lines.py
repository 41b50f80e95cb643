"""JSON Lines: one object a line, of which a broken one costs itself alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from services.imports.files import ExportFile
from services.imports.records import Bad


def objects(file: ExportFile) -> Iterator[tuple[int, dict[str, Any]] | Bad]:
    """The objects of a file with the numbers of their lines; blank lines are none."""
    for line in file.lines():
        place = f"line {line.number:,}"
        if line.text is None:
            yield Bad(place, "the line is too long")
            continue
        if not line.text.strip():
            continue
        try:
            value = json.loads(line.text)
        except RecursionError:
            yield Bad(place, "nested too deep")
        except json.JSONDecodeError as error:
            yield Bad(place, f"not JSON: {error.msg} (column {error.colno:,})")
        except ValueError:  # a number of thousands of digits
            yield Bad(place, "not JSON: a number of too many digits")
        else:
            if isinstance(value, dict):
                yield line.number, value
            else:
                yield Bad(place, "it is no JSON object")
