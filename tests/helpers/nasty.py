"""Texts that a policy or a user may come up with, and that break careless readers."""

NASTY = {
    "markup": "<script>document.title = 'owned'</script> <b>bold</b> &amp; </td></table></div>",
    "markdown": "| a | b |\n|---|---|\n# head\n**bold** `code` [link](javascript:alert(1)) {{ 7 * 7 }} {% raw %}",
    "long line": "x" * 100_000,
    "right to left": "שלום עולם \u202e txet desrever \u2066 مرحبا",
    "nul": "before\x00after\x1b[31mred\x07\x7f\x85",
    "half characters": "a\ud83d b\udc80 c\\ud83d",
    "nothing but nul": "\x00" * 5000,
    "empty": "",
    "line ends": "one\r\ntwo\u2028three\tfour",
}
WRITTEN = {**NASTY, "half characters": "a\\ud83d b\\udc80 c\\ud83d"}
"""As they are kept: UTF-8 has no bytes for half of a surrogate pair."""
