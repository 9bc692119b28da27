"""What both worlds and the services share: exit codes, the key of a task instance, names, options, YAML, the clients.

It is light: pydantic, PyYAML and httpx, and numpy where boxes are computed. It imports no other package of Nightshift.
"""
