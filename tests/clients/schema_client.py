#!/usr/bin/env python3
"""schemathesis over /openapi.json of `conclave serve`: no generated request may meet a server error, an answer without JSON where JSON is
promised, or an undocumented status.

    schema_client.py CONCLAVE MODEL [EXAMPLES]        exit 1 when it finds something"""
import pathlib
import subprocess
import sys
import tempfile

from server import Server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance"


def main():
    program, model = sys.argv[1:3]
    examples = sys.argv[3] if len(sys.argv) > 3 else "30"
    server = Server(program, model, "--max-queued", "64")
    schemathesis = str(pathlib.Path(sys.executable).parent / "schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run([schemathesis, "run", server.url + "/openapi.json", "--checks", CHECKS, "--max-examples", examples,
                              "--seed", "1", "--generation-database", "none", "--phases", "examples,fuzzing",
                              "--request-timeout", "60", "--exclude-path", "/stopService", "--exclude-path-regex", "health/(load|timed)"],
                             cwd=folder, text=True, capture_output=True, timeout=1800)
    print(run.stdout[-6000:] if run.returncode else "\n".join(run.stdout.strip().splitlines()[-12:]))
    if run.returncode:
        print(run.stderr[-2000:])
    code = server.stop()
    print(f"schemathesis ended with {run.returncode}, the server with {code}")
    return 1 if run.returncode or code else 0


if __name__ == "__main__":
    sys.exit(main())
