"""Runs its first option as Python code, so that what a job does stands in the test that looks at it."""

import sys

if __name__ == "__main__":
    code = sys.argv.pop(1)
    exec(compile(code, "script", "exec"), {"__name__": "__main__"})
