"""The table of methods, and how a text with options names one."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable
from functools import partial

from medcam.engine import cams
from medcam.engine.explainer import Explainer, rule
from medcam.errors import UsageError

# A method is a name and what makes its explainer; keyword-only arguments of that are the method's options.
EXPLAINERS: dict[str, Callable[..., Explainer]] = {
    "grad-cam": partial(rule, cams.grad_cam, pooled=True),
}


def explainer(text: str) -> Explainer:
    """Return the explainer that a text names: `grad-cam`, or with options, `rise(masks=2000)`.

    Raises
    ------
    UsageError
        If there is no such method or option, or an option's value is not a literal or not one that the method takes.
    """
    name, bracket, rest = text.strip().partition("(")
    name = name.strip()
    if name not in EXPLAINERS:
        near = difflib.get_close_matches(name, EXPLAINERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"there is no method '{name}'{hint} (medcam has {', '.join(sorted(EXPLAINERS))})")
    make = EXPLAINERS[name]
    options = _literals(text, rest) if bracket else {}
    known = {p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY}
    if isinstance(make, partial):
        known -= set(make.keywords)
    for option in options:
        if option not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise UsageError(f"{name} has no option '{option}'; {has}")
    try:
        return make(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} does not take these options: {error}") from error


def _literals(text: str, rest: str) -> dict[str, object]:
    try:
        tree = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args or any(keyword.arg is None for keyword in tree.keywords):
            raise ValueError(text)
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords}
    except (ValueError, SyntaxError, TypeError, RecursionError) as error:
        raise UsageError(
            f"'{text}' is not a method with options, such as grad-cam or rise(masks=2000): options are name=value, and values are numbers, "
            "'texts', True, False, None or lists of them"
        ) from error
