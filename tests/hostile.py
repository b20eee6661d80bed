"""Texts that want to be more than text, or more than a page has room for."""

from __future__ import annotations

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": '"\'><img src=x onerror=alert(1)><a href="javascript:alert(1)">',
    "long": "x" * 10_000,
    "long words": "wide " * 2_000,
    "right to left": "\u202egpj.exe \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u2067x",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f680" * 5,
    "template": "{{ 7 * 7 }} {% raw %} ${7*7} %s %(a)s \\u003cscript\\u003e",
    "comment": "--> </script></style></title></textarea> <!-- ]]> &lt;b&gt; &#60;",
}
