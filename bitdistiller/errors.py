"""The exceptions that are shown to users as a sentence instead of a traceback."""

import signal


class UserError(Exception):
    """Input, configuration or environment that the user can mend.

    The message is one sentence that says what is wrong, where, and what to do. The command line prints it
    and exits with ``status``; anything else is a bug and keeps its traceback.
    """

    status = 2


class Stopped(UserError):  # noqa: N818, as it is no error
    """SIGTERM ended the command in good order, and the same command goes on; who sent it sees that in the status."""

    status = 128 + signal.SIGTERM


def sentence_of(error: Exception) -> str | None:
    """What to tell the user of an exception; None for a bug, whose traceback says more.

    A full disk shows up as whatever the library raises that was writing, so its message has to tell.
    """
    if isinstance(error, UserError):
        return str(error)
    if "No space left on device" in str(error):
        return "the disk is full; free some space and run the same command again: what is done is kept"
    return None
