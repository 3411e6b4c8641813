"""List prices in US dollars: AWS's of us-east-1, and the model's. They change; each names the page that has it now."""

from dataclasses import dataclass

AS_OF = "November 2026"
"""When they were last looked at."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """What something costs."""

    dollars: float
    unit: str
    page: str
    """Title of the page where the provider publishes it."""


_DYNAMODB = "Amazon DynamoDB pricing, on-demand capacity"
_LAMBDA = "AWS Lambda pricing"
_API = "Amazon API Gateway pricing"
_CLOUDWATCH = "Amazon CloudWatch pricing"
_SECRETS = "AWS Secrets Manager pricing"
_OPENAI = "OpenAI API pricing, gpt-4.1-mini"

PRICES = {
    "model-input": Price(dollars=0.40, unit="million tokens", page=_OPENAI),
    "model-output": Price(dollars=1.60, unit="million tokens", page=_OPENAI),
    "dynamodb-write": Price(dollars=0.625, unit="million write request units", page=_DYNAMODB),
    "dynamodb-read": Price(dollars=0.125, unit="million read request units", page=_DYNAMODB),
    "dynamodb-storage": Price(dollars=0.25, unit="GB-month", page=_DYNAMODB),
    "dynamodb-pitr": Price(dollars=0.20, unit="GB-month", page=_DYNAMODB),
    "lambda-request": Price(dollars=0.20, unit="million requests", page=_LAMBDA),
    "lambda-x86_64": Price(dollars=0.0000166667, unit="GB-second", page=_LAMBDA),
    "lambda-arm64": Price(dollars=0.0000133334, unit="GB-second", page=_LAMBDA),
    "snapstart-cache": Price(dollars=0.0000015046, unit="GB-second", page=_LAMBDA),
    "snapstart-restore": Price(dollars=0.0001397998, unit="GB restored", page=_LAMBDA),
    "api-http": Price(dollars=1.00, unit="million requests of up to 512 KB", page=_API),
    "api-rest": Price(dollars=3.50, unit="million requests", page=_API),
    "logs-ingestion": Price(dollars=0.50, unit="GB", page=_CLOUDWATCH),
    "logs-storage": Price(dollars=0.03, unit="GB-month", page=_CLOUDWATCH),
    "metric": Price(dollars=0.30, unit="custom metric and month", page=_CLOUDWATCH),
    "xray-trace": Price(dollars=5.00, unit="million traces recorded", page="AWS X-Ray pricing"),
    "secret": Price(dollars=0.40, unit="secret and month", page=_SECRETS),
    "secret-call": Price(dollars=0.05, unit="10,000 calls", page=_SECRETS),
}
