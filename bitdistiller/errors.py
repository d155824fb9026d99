"""The one exception that is shown to users as a sentence instead of a traceback."""


class UserError(Exception):
    """Input, configuration or environment that the user can mend.

    The message is one sentence that says what is wrong, where, and what to do. The command line prints it
    and exits with status 2; anything else is a bug and keeps its traceback.
    """
