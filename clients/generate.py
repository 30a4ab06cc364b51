"""Writes the models and the calls of both clients from openapi.json: `make gen` runs it.

Everything else in clients/python and clients/typescript is written by hand.
"""

import json
import subprocess
import sys
from pathlib import Path

from clients import python_code, typescript_code
from clients.api import UnknownShape, api_of

CLIENTS = Path(__file__).parent
OPENAPI = CLIENTS.parent / "gen/ordernumbers/v1/openapi.json"
PYTHON = CLIENTS / "python/src/ordernumbers_client"
TYPESCRIPT = CLIENTS / "typescript/src"


def main() -> None:
    """Write all files, or none and exit with a message."""
    try:
        api = api_of(json.loads(OPENAPI.read_text()))
        files = {
            PYTHON / "models.py": formatted(python_code.models(api)),
            PYTHON / "client.py": formatted(python_code.clients(api)),
            TYPESCRIPT / "models.ts": typescript_code.models(api),
            TYPESCRIPT / "client.ts": typescript_code.client(api),
        }
    except UnknownShape as error:
        sys.exit(f"clients/generate.py: {error}")
    for path, text in files.items():
        path.write_text(text)


def formatted(code: str) -> str:
    """Return Python code as ruff sorts its imports and formats it."""
    for command in (["check", "--quiet", "--select", "I", "--fix"], ["format"]):
        ruff = ["ruff", *command, "--stdin-filename", str(PYTHON / "generated.py"), "-"]
        code = subprocess.run(ruff, input=code, stdout=subprocess.PIPE, text=True, check=True).stdout
    return code


if __name__ == "__main__":
    main()
