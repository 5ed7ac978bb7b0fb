"""Text from outside, such as names and prompts, as part of a page in Markdown that also takes HTML."""

import re

_PUNCTUATION = re.compile(r"[\\`*_{}\[\]<>|~$&@]|:(?=//)")


def plain(text: object) -> str:
    r"""Return a text that Markdown shows as it is, on one line.

    >>> print(plain("a_b | <b>"))
    a\_b \| \<b\>
    """
    return _PUNCTUATION.sub(r"\\\g<0>", _one_line(text))


def code(text: object) -> str:
    """Return a text as code on one line, also inside a table.

    A code span shows anything but a backtick, and in a table but a bar: text with one of them is spelled by numbers.

    >>> print(code("rewards/gold/mean"), code("a|b`"))
    `rewards/gold/mean` <code>a&#124;b&#96;</code>
    """
    line = _one_line(text)
    if line and not set(line) & set("`|\\"):
        return f"`{line}`"
    return f"<code>{re.sub(r'[^A-Za-z0-9 ]', lambda found: f'&#{ord(found[0])};', line)}</code>"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
