"""What the wrappers in Python share: where the program is, as common.sh says it."""
import os
import shlex
import shutil
import sys

here = os.path.dirname(os.path.abspath(__file__))


def program():
    built = os.path.join(here, "..", "build", "conclave")
    return os.environ.get("CONCLAVE") or (built if os.access(built, os.X_OK) else shutil.which("conclave") or "conclave")


def say(text):
    print("compat: " + text, file=sys.stderr, flush=True)


def refuse(text):
    say("error: " + text)
    sys.exit(2)


def run(arguments):
    say("conclave " + shlex.join(arguments))
    try:
        os.execvp(program(), [program(), *arguments])
    except OSError as e:
        refuse(f"{program()} cannot be started: {e.strerror}; build it or name it with CONCLAVE")
