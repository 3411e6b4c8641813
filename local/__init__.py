"""The whole thing on one machine: engine, gateway, worker processes and the demo model."""
