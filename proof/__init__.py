"""Long proofs: what is tried for minutes, against real engines and real processes, and what came of it."""

ACCOUNT = {"AWS_ACCESS_KEY_ID": "proof", "AWS_SECRET_ACCESS_KEY": "proof", "AWS_DEFAULT_REGION": "us-east-1"}
"""An engine on this machine checks no credentials, but no AWS SDK calls without some."""
