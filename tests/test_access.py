"""Who may deploy what: .github/access.yaml, read as AWS reads its policies, for the stack of template.yaml."""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest
import yaml

from tests.cloudformation import (
    ROOT,
    CloudFormationLoader,
    Resource,
    as_list,
    branches,
    functions_of,
    of_type,
    read_template,
    render,
)

ACCOUNT = "123456789012"
STAGES = ("dev", "prod")
BOUNDARY = f"arn:aws:iam::{ACCOUNT}:policy/rehydrate-dev-boundary"
KINDS = {
    "AWS::DynamoDB::Table": "dynamodb:us-east-1:{account}:table/{name}",
    "AWS::SQS::Queue": "sqs:us-east-1:{account}:{name}",
    "AWS::Serverless::Function": "lambda:us-east-1:{account}:function:{name}",
    "AWS::Logs::LogGroup": "logs:us-east-1:{account}:log-group:{name}",
    "AWS::SecretsManager::Secret": "secretsmanager:us-east-1:{account}:secret:{name}",
    "AWS::CloudWatch::Alarm": "cloudwatch:us-east-1:{account}:alarm:{name}",
    "AWS::CloudWatch::Dashboard": "cloudwatch::{account}:dashboard/{name}",
    "AWS::IAM::Role": "iam::{account}:role/{name}",
}
"""The ARNs of what the template has, without the beginning that all share."""
MADE = {
    "AWS::DynamoDB::Table": ("dynamodb:CreateTable", "dynamodb:UpdateContinuousBackups", "dynamodb:UpdateTimeToLive"),
    "AWS::SQS::Queue": ("sqs:CreateQueue", "sqs:DeleteQueue"),
    "AWS::Serverless::Function": ("lambda:CreateFunction", "lambda:PublishVersion", "lambda:AddPermission"),
    "AWS::Logs::LogGroup": ("logs:CreateLogGroup", "logs:PutRetentionPolicy"),
    "AWS::SecretsManager::Secret": ("secretsmanager:CreateSecret",),
    "AWS::CloudWatch::Alarm": ("cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"),
    "AWS::CloudWatch::Dashboard": ("cloudwatch:PutDashboard",),
    "AWS::IAM::Role": ("iam:CreateRole", "iam:PutRolePolicy"),
}
"""What CloudFormation calls to make each."""


def _access(stage: str = "dev") -> dict[str, Resource]:
    """The resources of access.yaml for a stage."""
    text = (ROOT / ".github" / "access.yaml").read_text()
    template: dict[str, Any] = yaml.load(text, Loader=CloudFormationLoader)  # noqa: S506 - it is a SafeLoader
    resources: dict[str, Resource] = _resolved(template["Resources"], stage)
    return resources


def _resolved(value: Any, stage: str) -> Any:
    """The value with what AWS and the template fill in; roles and policies of access.yaml become their ARNs."""
    known = {"Stage": stage, "AWS::Partition": "aws", "AWS::Region": "us-east-1", "AWS::AccountId": ACCOUNT}
    match value:
        case {"Fn::Sub": str(text)}:
            return re.sub(r"\$\{([\w:.]+)\}", lambda found: known.get(found[1], f"<{found[1]}>"), text)
        case {"Ref": "Boundary"}:
            return f"arn:aws:iam::{ACCOUNT}:policy/rehydrate-{stage}-boundary"
        case dict():
            return {key: _resolved(item, stage) for key, item in value.items()}
        case list():
            return [_resolved(item, stage) for item in value]
    return value


def _policy(resources: Mapping[str, Resource], role: str) -> list[dict[str, Any]]:
    (policy,) = resources[role]["Properties"]["Policies"]
    statements: list[dict[str, Any]] = policy["PolicyDocument"]["Statement"]
    return statements


def _boundary(stage: str = "dev") -> list[dict[str, Any]]:
    statements: list[dict[str, Any]] = _access(stage)["Boundary"]["Properties"]["PolicyDocument"]["Statement"]
    return statements


def is_allowed(statements: list[dict[str, Any]], action: str, resource: str, **context: str) -> bool:
    """Whether IAM would allow an action on a resource; `context` has the condition keys, with _ for their colon."""
    return any(
        statement["Effect"] == "Allow"
        and any(fnmatchcase(action, pattern) for pattern in as_list(statement["Action"]))
        and any(fnmatchcase(resource, str(pattern)) for pattern in as_list(statement["Resource"]))
        and all(
            any(fnmatchcase(context.get(key.replace(":", "_"), ""), wanted) for wanted in as_list(values))
            for test in statement.get("Condition", {}).values()
            for key, values in test.items()
        )
        for statement in statements
    )


def _arn(template: dict[str, Any], name: str, stage: str) -> str:
    """The ARN that a resource of the template gets in the stack of a stage."""
    kind = template["Resources"][name]["Type"]
    return "arn:aws:" + KINDS[kind].format(account=ACCOUNT, name=f"rehydrate-{stage}-{name}-1A2B3C")


def _arns(template: dict[str, Any], resource: Any, stage: str) -> Iterator[str]:
    """The ARNs that an expression of the template may come to."""
    for branch in branches(resource):
        match branch:
            case str():
                yield branch
            case {"Fn::GetAtt": str(path)}:
                ending = {"Arn": "", "StreamArn": "/stream/2026-01-01T00:00:00.000"}[path.split(".")[1]]
                yield _arn(template, path.split(".")[0], stage) + ending
            case {"Fn::Sub": str(text)}:
                yield re.sub(r"\$\{(\w+)\.Arn\}", lambda found: _arn(template, found[1], stage), text)
            case {"Ref": "SigningSecret" as name}:
                yield _arn(template, name, stage)
            case {"Ref": "OpenAiKeySecretArn" | "SigningSecretArn" | "OriginSecretArn"}:
                yield f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:rehydrate-{stage}-key-a1B2c3"
            case _:
                pytest.fail(f"not an ARN: {branch!r}")


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return read_template()


# ---- The boundary ----------------------------------------------------------------------------------------------------


def test_the_boundary_leaves_the_roles_what_they_need(template: dict[str, Any]) -> None:
    """Whatever a role of the template allows, the boundary of its stage allows too; of another stage it allows none."""
    for role in of_type(template, "AWS::IAM::Role").values():
        for statement in [each for listed in _policy({"r": role}, "r") for each in branches(listed)]:
            for action in as_list(statement["Action"]):
                for resource in as_list(statement["Resource"]):
                    for arn in _arns(template, resource, "dev"):
                        assert is_allowed(_boundary("dev"), action, arn), (action, arn)
                        assert arn == "*" or not is_allowed(_boundary("prod"), action, arn), (action, arn)


def test_every_role_is_given_the_boundary(template: dict[str, Any]) -> None:
    """SAM makes no role beside those of the template, and each of them has the boundary that the parameter names."""
    for function in functions_of(template):
        assert "Fn::GetAtt" in function["Role"]
        if preference := function.get("DeploymentPreference"):
            assert preference["Role"] == {"Fn::GetAtt": "DeploymentRole.Arn"}
    for given, expected in (({}, None), ({"PermissionsBoundary": "rehydrate-dev-boundary"}, BOUNDARY)):
        roles = of_type(render(template, **given), "AWS::IAM::Role").values()
        assert len(roles) == 4
        assert {_resolved(role["Properties"].get("PermissionsBoundary"), "dev") for role in roles} == {expected}


def test_no_role_can_lead_out_of_it() -> None:
    """It holds nothing of IAM, names each action, and is for data of the stage alone; only what has no name is open."""
    for statement in _boundary():
        actions = as_list(statement["Action"])
        assert all(re.fullmatch(r"[a-z0-9]+:[A-Za-z]+|kms:(GenerateDataKey|ReEncrypt)\*", action) for action in actions)
        assert not any(action.startswith(("iam:", "sts:", "organizations:")) for action in actions)
        if as_list(statement["Resource"]) == ["*"]:
            assert statement["Sid"] in {"Keys", "Traces", "Alarms"}
        else:
            assert all("rehydrate-dev-" in resource for resource in as_list(statement["Resource"]))


# ---- CloudFormation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_cloudformation_may_make_the_stack(template: dict[str, Any], stage: str) -> None:
    """Of everything in the template, in the stage's own stack; and nothing of the same kind in another's."""
    rights = _policy(_access(stage), "CloudFormationExecutionRole")
    other = STAGES[1 - STAGES.index(stage)]
    of_the_api = {"AWS::Serverless::HttpApi", "AWS::Lambda::Permission"}  # the second is made on a function, see below
    for name, resource in template["Resources"].items():
        if resource["Type"] in of_the_api:
            continue
        for action in MADE[resource["Type"]]:
            boundary = f"arn:aws:iam::{ACCOUNT}:policy/rehydrate-{stage}-boundary"
            context = {"iam_PermissionsBoundary": boundary}
            assert is_allowed(rights, action, _arn(template, name, stage), **context), (action, name)
            assert not is_allowed(rights, action, _arn(template, name, other), **context), (action, name)


def test_cloudformation_may_make_what_sam_adds(template: dict[str, Any]) -> None:
    """The API and its log, deployments by CodeDeploy, and the mapping of the stream to the sweeper."""
    rights = _policy(_access(), "CloudFormationExecutionRole")
    application = f"arn:aws:codedeploy:us-east-1:{ACCOUNT}:application:rehydrate-dev-ServerlessDeploymentApplication-1"
    group = f"arn:aws:codedeploy:us-east-1:{ACCOUNT}:deploymentgroup:rehydrate-dev-App-1/rehydrate-dev-Chat-2"
    sweeper = _arn(template, "SweepFunction", "dev")
    assert is_allowed(rights, "apigateway:POST", "arn:aws:apigateway:us-east-1::/apis")
    assert is_allowed(rights, "apigateway:PATCH", "arn:aws:apigateway:us-east-1::/apis/a1b2c3/stages/$default")
    assert is_allowed(rights, "logs:CreateLogDelivery", "*")
    assert is_allowed(rights, "codedeploy:CreateApplication", application)
    assert is_allowed(rights, "codedeploy:CreateDeployment", group)
    assert is_allowed(rights, "lambda:CreateEventSourceMapping", "*", lambda_FunctionArn=sweeper)
    prod = _arn(template, "SweepFunction", "prod")
    assert not is_allowed(rights, "lambda:CreateEventSourceMapping", "*", lambda_FunctionArn=prod)
    assert not is_allowed(rights, "codedeploy:CreateDeployment", group.replace("rehydrate-dev", "rehydrate-prod"))


ROLE = f"arn:aws:iam::{ACCOUNT}:role/rehydrate-dev-ChatRole-1A2B3C"


@pytest.mark.parametrize(
    ("action", "resource", "context"),
    [
        ("iam:CreateRole", ROLE, {}),
        ("iam:CreateRole", ROLE, {"iam_PermissionsBoundary": "arn:aws:iam::aws:policy/AdministratorAccess"}),
        ("iam:PutRolePolicy", ROLE, {}),
        ("iam:AttachRolePolicy", ROLE, {}),
        ("iam:PutRolePermissionsBoundary", ROLE, {"iam_PermissionsBoundary": "arn:aws:iam::aws:policy/ReadOnlyAccess"}),
        ("iam:DeleteRolePermissionsBoundary", ROLE, {"iam_PermissionsBoundary": BOUNDARY}),
        ("iam:CreatePolicyVersion", BOUNDARY, {}),
        ("iam:DeletePolicy", BOUNDARY, {}),
        ("iam:CreateUser", f"arn:aws:iam::{ACCOUNT}:user/rehydrate-dev-me", {}),
        ("iam:PassRole", ROLE, {"iam_PassedToService": "ec2.amazonaws.com"}),
        ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/Admin", {"iam_PassedToService": "lambda.amazonaws.com"}),
        (
            "iam:PutRolePolicy",
            f"arn:aws:iam::{ACCOUNT}:role/rehydrate-access-dev-CloudFormationExecutionRole-1",
            {"iam_PermissionsBoundary": BOUNDARY},
        ),
        ("sts:AssumeRole", ROLE, {}),
        ("s3:PutBucketPolicy", "arn:aws:s3:::bucket", {}),
    ],
)
def test_cloudformation_cannot_make_an_admin(action: str, resource: str, context: dict[str, str]) -> None:
    """No role comes to be without the boundary or loses it, and nobody changes the boundary or these roles."""
    assert not is_allowed(_policy(_access(), "CloudFormationExecutionRole"), action, resource, **context)


@pytest.mark.parametrize("role", ["PipelineExecutionRole", "CloudFormationExecutionRole"])
def test_what_has_no_name_is_listed(role: str) -> None:
    """Of everything in the account only these may be touched: single actions, and APIs, as the file says at its top."""
    for statement in _policy(_access(), role):
        if "*" in as_list(statement["Resource"]):
            assert not any("*" in action for action in as_list(statement["Action"])), statement["Sid"]
        for action in as_list(statement["Action"]):
            if action.endswith(":*") and action != "apigateway:*":
                assert all("rehydrate-dev-" in resource for resource in as_list(statement["Resource"]))


# ---- The bucket ------------------------------------------------------------------------------------------------------


def test_artifacts_are_kept_as_they_were() -> None:
    """No version is written over, nobody outside reads one, and nobody without TLS."""
    resources = _access()
    bucket = resources["ArtifactsBucket"]["Properties"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    (statement,) = resources["ArtifactsBucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert statement["Resource"] == [{"Fn::GetAtt": "ArtifactsBucket.Arn"}, "<ArtifactsBucket.Arn>/*"]
