"""What is deployed is made here: `make build` installs the locked packages, and `platforms.artifact` makes them fit."""
