"""Weights of unknown origin are opened in a process that reads and writes what it is given, and reaches nothing else.

`runner.run` is how a job does that; `child` is that process, `landlock` and `seccomp` are what the kernel holds it by.
docs/security.md says what is still possible.
"""
