"""template.yaml as CloudFormation takes it: parameters, conditions and rules decided. For tests of what it promises."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "template.yaml"

Resource = dict[str, Any]

KEY = "arn:aws:secretsmanager:us-east-1:123456789012:secret:openai-key"
SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:signing"
FUNCTIONS = ("ChatFunction", "SessionsFunction", "SweepFunction")
AUTHORIZER = "arn:aws:lambda:us-east-1:123456789012:function:authorizer"
MODES: dict[str, dict[str, str]] = {
    "token": {},
    "jwt": {"JwtIssuer": "https://login.example.com/", "JwtAudience": "chat,admin"},
    "lambda": {"AuthorizerFunctionArn": AUTHORIZER},
    "iam": {},
}
"""What each identity mode is deployed with, beside its name and the OpenAI key."""


class CloudFormationLoader(yaml.SafeLoader):
    """Reads `!GetAtt Table.Arn` as `{"Fn::GetAtt": "Table.Arn"}`, and so every short form of a function."""


def _function(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.MappingNode):
        argument: Any = loader.construct_mapping(node, deep=True)
    elif isinstance(node, yaml.SequenceNode):
        argument = loader.construct_sequence(node, deep=True)
    else:
        argument = loader.construct_scalar(node)
    return {name if name in {"Ref", "Condition"} else f"Fn::{name}": argument}


CloudFormationLoader.add_multi_constructor("!", _function)


def read_template() -> dict[str, Any]:
    """The template, each function and API with what `Globals` say of all."""
    template: dict[str, Any] = yaml.load(TEMPLATE.read_text(), Loader=CloudFormationLoader)  # noqa: S506 - it is a SafeLoader
    for kind, shared in template.pop("Globals").items():
        for resource in of_type(template, f"AWS::Serverless::{kind}").values():
            resource["Properties"] = _merged(shared, resource["Properties"])
    return template


def _merged(shared: Any, own: Any) -> Any:
    if isinstance(shared, dict) and isinstance(own, dict):
        return shared | {name: _merged(shared.get(name), value) for name, value in own.items()}
    return own


NO_VALUE = object()


def render(template: dict[str, Any], **given: str) -> dict[str, Any]:
    """Resources and outputs for these parameters: conditions are decided, and what they leave out is gone."""
    parameters = _parameters(template, given)
    conditions = template["Conditions"]
    resources = {
        name: {key: value for key, value in resource.items() if key != "Condition"}
        for name, resource in template["Resources"].items()
        if "Condition" not in resource or _evaluate({"Condition": resource["Condition"]}, parameters, conditions)
    }
    return _evaluate({"Resources": resources, "Outputs": template["Outputs"]}, parameters, conditions)


def refusals(template: dict[str, Any], **given: str) -> list[str]:
    """Why CloudFormation would not deploy the template with these parameters: the names and texts of what fails."""
    parameters = _parameters(template, given)
    faults = [name for name, value in parameters.items() if not _allowed(template["Parameters"][name], value)]
    for rule in template["Rules"].values():
        if _evaluate(rule["RuleCondition"], parameters, {}):
            faults += [
                assertion["AssertDescription"]
                for assertion in rule["Assertions"]
                if not _evaluate(assertion["Assert"], parameters, {})
            ]
    return faults


def _allowed(parameter: dict[str, Any], value: Any) -> bool:
    if parameter["Type"] == "Number" and not (
        parameter.get("MinValue", float("-inf")) <= float(value) <= parameter.get("MaxValue", float("inf"))
    ):
        return False
    return value in parameter.get("AllowedValues", [value]) and bool(
        re.fullmatch(parameter.get("AllowedPattern", "(?s:.*)"), str(value))
    )


def _parameters(template: dict[str, Any], given: dict[str, str]) -> dict[str, Any]:
    given = {"OpenAiKeySecretArn": KEY} | given
    assert set(given) <= set(template["Parameters"])
    defaults = {name: parameter["Default"] for name, parameter in template["Parameters"].items() if name not in given}
    return defaults | given


def _evaluate(value: Any, parameters: dict[str, Any], conditions: dict[str, Any]) -> Any:
    """The value with its functions applied; those of what only AWS knows, a resource's ARN for one, stay."""

    def of(inner: Any) -> Any:
        return _evaluate(inner, parameters, conditions)

    match value:
        case list():
            return [item for item in map(of, value) if item is not NO_VALUE]
        case dict() if len(value) != 1:
            return {key: item for key, item in ((key, of(item)) for key, item in value.items()) if item is not NO_VALUE}
        case {"Ref": "AWS::NoValue"}:
            return NO_VALUE
        case {"Ref": str(name)}:
            return parameters.get(name, value)
        case {"Condition": str(name)}:
            return of(conditions[name])
        case {"Fn::If": [str(name), yes, no]}:
            return of(yes if of(conditions[name]) else no)
        case {"Fn::Equals": [left, right]}:
            return str(of(left)) == str(of(right))  # a parameter is a text, also where it is a Number
        case {"Fn::Not": [condition]}:
            return not of(condition)
        case {"Fn::And": list(operands)}:
            return all(map(of, operands))
        case {"Fn::Or": list(operands)}:
            return any(map(of, operands))
        case {"Fn::Split": [str(separator), text]}:
            inner = of(text)
            return inner.split(separator) if isinstance(inner, str) else {"Fn::Split": [separator, inner]}
        case {"Fn::Join": [str(separator), texts]}:
            inner = of(texts)
            if isinstance(inner, dict) or any(isinstance(text, dict) for text in inner):
                return {"Fn::Join": [separator, inner]}
            return separator.join(map(str, inner))
        case {"Fn::Select": [int(index), items]}:
            inner = of(items)
            return inner[index] if isinstance(inner, list) else {"Fn::Select": [index, inner]}
        case {"Fn::Sub": str(text)}:
            return {"Fn::Sub": re.sub(r"\$\{(\w+)\}", lambda found: str(parameters.get(found[1], found[0])), text)}
        case {"Fn::GetAtt": str()}:
            return value
        case dict():
            ((key, item),) = value.items()
            assert not key.startswith("Fn::"), f"{key} is not known here"
            inner = of(item)
            return {} if inner is NO_VALUE else {key: inner}
    return value


def of_type(template: dict[str, Any], kind: str) -> dict[str, Resource]:
    return {name: resource for name, resource in template["Resources"].items() if resource["Type"] == kind}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def functions_of(template: dict[str, Any]) -> list[Resource]:
    return [function["Properties"] for function in of_type(template, "AWS::Serverless::Function").values()]


def branches(value: Any) -> list[Any]:
    """What the value may be when conditions are decided."""
    match value:
        case {"Fn::If": [_, yes, no]}:
            return branches(yes) + branches(no)
        case {"Ref": "AWS::NoValue"}:
            return []
    return [value]


def names_in(value: Any) -> Iterator[str]:
    """The names that anything in the value refers to."""
    match value:
        case {"Ref": str(name)}:
            yield name
        case {"Fn::GetAtt": str(path)}:
            yield path.split(".")[0]
        case {"Fn::Sub": str(text)}:
            yield from (name.split(".")[0] for name in re.findall(r"\$\{([^}]+)\}", text))
        case dict():
            for item in value.values():
                yield from names_in(item)
        case list():
            for item in value:
                yield from names_in(item)
