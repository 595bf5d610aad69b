"""The errors callers may want to catch."""

from __future__ import annotations


class InputError(ValueError):
    """The arrays handed in cannot be a layer's gradients; the message says what is wrong and what to do."""


class DeviceError(RuntimeError):
    """The device asked for does not answer; the message says how to get one."""


class ArrayError(TypeError):
    """Something of which no array can be made.

    Parameters
    ----------
    problem : str
        What is wrong, as a clause that follows a name.
    advice : str
        What to do about it.
    """

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}: {advice}")
        self.problem = problem
        self.advice = advice
