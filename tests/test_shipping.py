"""How it gets to AWS: samconfig.toml, the workflows, the roles they take, and the image. Read from the files."""

import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from handlers.identity import TOKEN_HEADER, _cookie_name
from handlers.proxy import ORIGIN_HEADER
from handlers.settings import Settings
from tests.cloudformation import CloudFormationLoader

COOKIE = _cookie_name(Settings())
ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
STAGES = ("dev", "prod")


def _template(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / name).read_text(), Loader=CloudFormationLoader)  # noqa: S506 - it is a SafeLoader


def _config() -> dict[str, Any]:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())
    del config["version"]
    return config


def _workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())


def _steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


# ---- Environments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_an_environment_sets_only_what_the_template_has(stage: str) -> None:
    """sam passes over a parameter that is misspelt, so this does not; and the value is one that is allowed."""
    parameters = _template("template.yaml")["Parameters"]
    overrides = dict(one.split("=", 1) for one in _config()[stage]["global"]["parameters"]["parameter_overrides"])
    assert set(overrides) <= set(parameters)
    assert overrides["PermissionsBoundary"] == f"rehydrate-{stage}-boundary", "as .github/access.yaml calls it"
    for name, value in overrides.items():
        allowed = parameters.get(name, {}).get("AllowedValues")
        assert allowed is None or value in map(str, allowed)


def test_every_environment_is_a_stack_of_its_own() -> None:
    """None of them deploys over another."""
    stacks = [environment["global"]["parameters"]["stack_name"] for environment in _config().values()]
    assert len(set(stacks)) == len(stacks) == len(STAGES) + 1


@pytest.mark.parametrize("stage", STAGES)
def test_an_environment_builds_as_default_does(stage: str) -> None:
    """sam takes nothing over from `default`: what the build and the deployment need is said for each."""
    default, config = _config()["default"], _config()[stage]
    assert {name: config[name] for name in ("build", "validate")} == {
        name: default[name] for name in ("build", "validate")
    }
    assert config["deploy"]["parameters"]["capabilities"] == default["deploy"]["parameters"]["capabilities"]


# ---- Workflows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_hold_no_key(file: Path) -> None:
    """AWS lets them in by a token of GitHub's; there is no secret that could leak."""
    assert not re.search(r"secrets\.|secret-access-key|access-key-id|AWS_(SECRET|ACCESS)", file.read_text())


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actions_are_pinned(file: Path) -> None:
    """To a commit, which nobody can move, with its version beside it."""
    used = re.findall(r"uses: (.*)", file.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\./\.github/workflows/[\w-]+\.yml", action)


def test_whatever_is_pinned_is_kept_up() -> None:
    """Dependabot looks after packages, engines, actions and the image, in the folders that have them."""
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    folders = {
        each["package-ecosystem"]: [
            ROOT / folder.strip("/") for folder in each.get("directories", [each.get("directory")])
        ]
        for each in updates
    }
    pins = {"pip": "requirements*.txt", "npm": "package-lock.json", "github-actions": ".github/workflows/*.yml"}
    assert set(folders) == {*pins, "docker"}
    for kind, pattern in (*pins.items(), ("docker", "Dockerfile")):
        assert all(list(folder.glob(pattern)) for folder in folders[kind]), kind
    locks = {file.parent for file in ROOT.glob("**/requirements*.txt") if ".venv" not in str(file.parent)}
    assert locks == set(folders["pip"])


def test_packages_are_audited() -> None:
    """Every lock file's, for pull requests and from time to time; a failure is a failure."""
    assert {"pull_request", "schedule"} <= set(_workflow("audit.yml")[True])  # YAML takes `on` for a truth value
    assert [step["run"] for step in _steps(_workflow("audit.yml")) if "run" in step] == ["make audit"]
    command = re.search(r"^audit:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command
    assert {"--strict", "--require-hashes"} <= set(command[1].split())
    assert "$(wildcard requirements*.txt)" in command[1]


def test_only_deployments_may_ask_for_a_token() -> None:
    """Tests of a pull request and the build cannot become anybody in AWS."""
    ci, deploy, stage = map(_workflow, ("ci.yml", "deploy.yml", "deploy-stage.yml"))
    assert ci["permissions"] == deploy["permissions"] == {"contents": "read"}
    assert stage["permissions"] == {"contents": "read", "id-token": "write"}
    may = {name for name, job in deploy["jobs"].items() if job.get("permissions", {}).get("id-token")}
    assert may == set(STAGES)


def test_one_artifact_goes_to_dev_and_then_to_prod() -> None:
    """After the tests, and built once: what prod gets is what dev had."""
    jobs = _workflow("deploy.yml")["jobs"]
    assert (jobs["dev"]["needs"], jobs["prod"]["needs"]) == (["ci", "build"], "dev")
    assert [jobs[stage]["with"] for stage in STAGES] == [{"stage": stage} for stage in STAGES]
    assert not any("build" in shlex.split(step.get("run", "")) for step in _steps(_workflow("deploy-stage.yml")))


def test_workflows_run_what_there_is() -> None:
    """Targets of the Makefile, and the project's own programs."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {".venv-sam/.stamp"}
    commands = [
        shlex.split(step["run"]) for file in WORKFLOWS for step in _steps(_workflow(file.name)) if "run" in step
    ]
    assert {words[0] for words in commands} == {".ci/run", "make", "tar", ".venv-sam/bin/sam"}
    assert {words[1] for words in commands if words[0] == "make"} <= targets
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# ---- Who may deploy --------------------------------------------------------------------------------------------------


def test_the_edge_knows_what_the_functions_read() -> None:
    """The recipe's limits go by the headers and the cookie of callers, and it sends the secret under its name."""
    edge = _template("docs/edge.yaml")["Resources"]
    rule = edge["Limits"]["Properties"]["Rules"][0]["Statement"]["RateBasedStatement"]
    assert rule["EvaluationWindowSec"] == 600
    identities = rule["ScopeDownStatement"]["NotStatement"]["Statement"]["OrStatement"]["Statements"]
    fields = [next(iter(each.values())) for each in identities]
    assert [field["FieldToMatch"]["SingleHeader"]["Name"] for field in fields[:3]] == [
        *(TOKEN_HEADER, "authorization", "cookie")
    ]
    assert fields[2]["SearchString"] == f"{COOKIE}="
    (origin,) = edge["Distribution"]["Properties"]["DistributionConfig"]["Origins"]
    assert origin["OriginCustomHeaders"] == [{"HeaderName": ORIGIN_HEADER, "HeaderValue": {"Ref": "OriginSecret"}}]


def test_the_role_is_for_one_environment_of_one_repository() -> None:
    """Compared as a whole: no branch, pull request or fork beside it gets in."""
    role = _template(".github/access.yaml")["Resources"]["PipelineExecutionRole"]["Properties"]
    (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Condition"] == {
        "StringEquals": {
            "token.actions.githubusercontent.com:aud": "sts.amazonaws.com",
            "token.actions.githubusercontent.com:sub": {"Fn::Sub": "repo:${Repository}:environment:${Stage}"},
        }
    }


def test_the_roles_are_for_the_stacks_that_are_deployed() -> None:
    """Their names begin as samconfig.toml calls the stacks."""
    names = set(re.findall(r"(?:stack|role)/([\w-]+-\$\{Stage\})", (ROOT / ".github" / "access.yaml").read_text()))
    for stage in STAGES:
        stack = _config()[stage]["global"]["parameters"]["stack_name"]
        assert {name.replace("${Stage}", stage) for name in names} == {stack}


def test_the_workflow_asks_for_what_the_roles_say() -> None:
    """Its variables are the outputs, in capitals, and the region."""
    outputs = {name.upper() for name in _template(".github/access.yaml")["Outputs"]}
    workflow = (ROOT / ".github" / "workflows" / "deploy-stage.yml").read_text()
    asked = {name.replace("_", "") for name in re.findall(r"vars\.(\w+)", workflow)}
    assert asked == outputs | {"AWSREGION"}


# ---- The image -------------------------------------------------------------------------------------------------------


def _dockerfile() -> list[str]:
    """Its instructions, a line each."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_is_the_chat_function() -> None:
    """The Python and the handler that the template says, on a base that nobody can change."""
    template = _template("template.yaml")
    version = template["Globals"]["Function"]["Runtime"].removeprefix("python")
    lines = _dockerfile()
    assert re.fullmatch(rf"FROM public\.ecr\.aws/lambda/python:{re.escape(version)}@sha256:[0-9a-f]{{64}}", lines[0])
    assert lines[-1] == f'CMD ["{template["Resources"]["ChatFunction"]["Properties"]["Handler"]}"]'


def test_the_image_has_the_locked_packages() -> None:
    """All of the lock and nothing beside it, each checked by its hash."""
    (install,) = [shlex.split(line) for line in _dockerfile() if "pip install" in line]
    assert {"--require-hashes", "--no-deps"} <= set(install)
    assert install[-2:] == ["-r", "${LAMBDA_TASK_ROOT}/requirements.txt"]


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    """No conversation, secret or environment of this folder gets near an image."""
    copied = {line.split()[1] for line in _dockerfile() if line.startswith("COPY")}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
