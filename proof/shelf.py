"""A table in memory: as much of DynamoDB as the log asks for, some hundred times faster than an engine.

That it does what an engine does is shown, not hoped: the same seeds make the same schedules on both.
"""

import re
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError

Typed = dict[str, Any]
Key = tuple[str, str]


class Shelf:
    """A client of one table that is a dictionary."""

    def __init__(self) -> None:
        self._items: dict[Key, Typed] = {}

    def get_item(self, *, Key: Typed, **_: Any) -> Typed:  # noqa: N803 - DynamoDB's names
        item = self._items.get(_key(Key))
        return {"Item": dict(item)} if item else {}

    def put_item(self, *, Item: Typed, ConditionExpression: str = "", **_: Any) -> Typed:  # noqa: N803
        old = self._items.get(_key(Item), {})
        if ConditionExpression:
            _check(ConditionExpression, {}, {}, old, "PutItem")
        self._items[_key(Item)] = dict(Item)
        return {}

    def update_item(
        self,
        *,
        Key: Typed,  # noqa: N803
        UpdateExpression: str,  # noqa: N803
        ConditionExpression: str,  # noqa: N803
        ExpressionAttributeNames: Mapping[str, str],  # noqa: N803
        ExpressionAttributeValues: Typed,  # noqa: N803
        **_: Any,
    ) -> Typed:
        names, values, old = ExpressionAttributeNames, ExpressionAttributeValues, self._items.get(_key(Key), {})
        _check(ConditionExpression, names, values, old, "UpdateItem")
        sets, __, removes = UpdateExpression.removeprefix("SET ").partition(" REMOVE ")
        changed = {}
        for name, value in re.findall(r"#(\w+) = (if_not_exists\(.*?\)|[^,]+)", sets):
            changed[name] = _value(value, values, old)
        item = {**(old or Key), **changed}
        for name in re.findall(r"#(\w+)", removes):
            item.pop(name, None)
        self._items[_key(Key)] = item
        return {"Attributes": changed}

    def query(
        self,
        *,
        KeyConditionExpression: str,  # noqa: N803
        ExpressionAttributeValues: Typed,  # noqa: N803
        ScanIndexForward: bool,  # noqa: N803
        Limit: int | None = None,  # noqa: N803
        ExclusiveStartKey: Typed | None = None,  # noqa: N803
        **_: Any,
    ) -> Typed:
        values = {name: value["S"] for name, value in ExpressionAttributeValues.items()}
        if between := re.search(r"BETWEEN (:\w+) AND (:\w+)", KeyConditionExpression):
            low, high = values[between[1]], values[between[2]]
        else:  # begins_with
            low = next(value for name, value in values.items() if name != ":pk")
            high = low + "\uffff"
        keys = sorted(
            (key for key in self._items if key[0] == values[":pk"] and low <= key[1] <= high),
            reverse=not ScanIndexForward,
        )
        if ExclusiveStartKey:
            start = _key(ExclusiveStartKey)
            keys = [key for key in keys if (key > start if ScanIndexForward else key < start)]
        page: Typed = {"Items": [dict(self._items[key]) for key in keys[:Limit]]}
        if Limit and len(keys) >= Limit:
            pk, sk = keys[Limit - 1]
            page["LastEvaluatedKey"] = {"pk": {"S": pk}, "sk": {"S": sk}}
        return page

    def batch_write_item(self, *, RequestItems: Mapping[str, list[Typed]], **_: Any) -> Typed:  # noqa: N803
        for requests in RequestItems.values():
            for request in requests:
                self._items.pop(_key(request["DeleteRequest"]["Key"]), None)
        return {}


def _key(typed: Typed) -> Key:
    return typed["pk"]["S"], typed["sk"]["S"]


def _value(expression: str, values: Typed, old: Typed) -> Any:
    """What one assignment of an update gives."""
    if kept := re.fullmatch(r"if_not_exists\(#(\w+), (:\w+)\)", expression):
        return old.get(kept[1], values[kept[2]])
    if added := re.fullmatch(r"#(\w+) \+ (:\w+)", expression):
        return {"N": str(int(old[added[1]]["N"]) + int(values[added[2]]["N"]))}
    return values[expression]


def _check(condition: str, names: Mapping[str, str], values: Typed, old: Typed, operation: str) -> None:
    """Terms with AND between them, of which one in parentheses is alternatives with OR between them."""
    terms = condition.split(" AND ")
    if not all(any(_holds(part.strip("() "), names, values, old) for part in term.split(" OR ")) for term in terms):
        error = {"Code": "ConditionalCheckFailedException", "Message": "The conditional request failed"}
        response: Any = {"Error": error, "Item": dict(old)}
        raise ClientError(response, operation)


def _holds(term: str, names: Mapping[str, str], values: Typed, old: Typed) -> bool:
    if there := re.fullmatch(r"attribute_(not_)?exists\((#?\w+)\)?", term):
        return (names.get(there[2], there[2]) in old) != bool(there[1])
    found = re.fullmatch(r"(#\w+) (=|>) (:\w+)", term)
    if not found:
        raise AssertionError(f"no such condition is known here: {term}")
    item, value = old.get(names[found[1]]), values[found[3]]
    if found[2] == "=":
        return bool(item == value)
    return item is not None and float(item["N"]) > float(value["N"])
