"""Trainings in this process."""

from tests.support.one_thread import one_thread

__all__ = ["one_thread"]  # for every test of the folder
