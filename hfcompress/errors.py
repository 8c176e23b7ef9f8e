"""The one exception that means "the input is wrong, and here is what to do about it"."""


class UserError(Exception):
    """A mistake that the user can mend. The command line prints its text as one line and exits with code 2.

    The text says what is wrong, where, and what to do. Everything else that is raised is a defect of this project
    and keeps its traceback.
    """


class UnknownShape(UserError):
    """A model whose size cannot be told from its config: it can be run and measured, but not planned."""
