"""The two kinds of exceptions that are no mistake of this package.

Any other exception is a mistake, and the command line lets it end in a traceback. This module
imports no torch, because dry runs need it.
"""


class BadInput(ValueError):
    """One sentence that names a file or key, what was found and what was expected."""


class MissingFile(BadInput, FileNotFoundError):
    """Bad input of a special kind: there is no such file or folder."""


class Diverged(ArithmeticError):
    """A computation that is not finite, or an ODE that cannot be solved: a failure as a result.

    One sentence names the step, the sample or the tensor. A division by zero in the package itself
    is another ArithmeticError, and a mistake.
    """
