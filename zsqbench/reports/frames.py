"""Rows as a table for other tools: CSV, JSON, or Parquet, which keeps types.

A column of texts, of truth values, of numbers or of times keeps its type. Any other column, such as an option that is a
list in one row and a number in the next, is JSON text in CSV and Parquet. `json_columns` names these columns. A missing
value is empty in CSV, and null in JSON and Parquet.
"""

import io
import json
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["csv", "json", "parquet"]
FORMS = get_args(Form)


def render(frame: "pd.DataFrame", form: Form) -> bytes:
    """The frame in one of the forms. Texts are UTF-8. Parquet holds `json_columns` in `attrs["json_columns"]`."""
    if form == "json":
        return _as_json(frame).encode()
    encoded = json_columns(frame)
    plain = frame.assign(**{name: frame[name].map(_text, na_action="ignore") for name in encoded})
    if form == "csv":
        return plain.to_csv(index=False).encode()
    plain.attrs["json_columns"] = encoded
    file = io.BytesIO()
    plain.to_parquet(file, index=False)
    return file.getvalue()


def json_columns(frame: "pd.DataFrame") -> list[str]:
    """The columns of lists, of objects, or of values of several types."""
    from pandas.api.types import is_object_dtype

    kinds = {str(name): set(map(type, found.dropna())) for name, found in frame.items() if is_object_dtype(found)}
    return [name for name, found in kinds.items() if found and found not in ({str}, {bool})]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _as_json(frame: "pd.DataFrame") -> str:
    """A list of objects, one for each row. A number that is not finite becomes its text in rows."""
    from pydantic_core import to_json

    known = frame.astype(object).where(frame.notna(), None)
    return to_json(known.to_dict("records"), indent=1, inf_nan_mode="strings").decode()
