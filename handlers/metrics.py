"""What CloudWatch counts: members of a log line, which its `_aws` names as metrics. None costs a line of its own."""

from collections.abc import Iterable
from typing import Any

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.metrics.functions import is_metrics_disabled
from aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch import AmazonCloudWatchEMFProvider

NAMESPACE = "rehydrate"
COUNTERS = (
    "turns_answered",
    "turns_replayed",
    "turns_failed",  # the agent, its model or a tool failed, whatever the message was
    "turns_unanswered",  # no answer, for a reason that callers can bring about: see report.py
    "turns_refused",  # for what the caller can fix
    "lease_conflicts",  # refused, since the session was answering another request for too long
    "service_faults",  # of any request: no fault of the caller's or the agent's
)
"""Of these a line has one, which is 1."""
MEASURES = {
    "window_tokens": MetricUnit.Count,
    "turns_in_window": MetricUnit.Count,
    "load_ms": MetricUnit.Milliseconds,
    "agent_ms": MetricUnit.Milliseconds,
    "commit_ms": MetricUnit.Milliseconds,
    "dynamodb_calls": MetricUnit.Count,
    "read_units": MetricUnit.Count,
    "write_units": MetricUnit.Count,
}
"""What the line of a turn says in numbers, as far as the turn came."""


def metrics(service: str, counter: str, measured: Iterable[tuple[str, float]] = ()) -> dict[str, Any]:
    """What a line has to say to be counted, and to have what was measured in it taken as metrics.

    In CloudWatch's Embedded Metric Format. Nothing where POWERTOOLS_METRICS_DISABLED says so.
    """
    if is_metrics_disabled():
        return {}
    found = AmazonCloudWatchEMFProvider(namespace=NAMESPACE, service=service)
    found.add_metric(counter, MetricUnit.Count, 1)
    for name, value in measured:
        found.add_metric(name, MEASURES[name], value)
    # Of the document that Powertools makes, what is not in the line anyway.
    return {counter: 1, "_aws": found.serialize_metric_set()["_aws"]}
