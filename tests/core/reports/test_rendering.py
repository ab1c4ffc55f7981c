"""Text in pages of Markdown."""

from sddit.reports.rendering import escape_markdown


def test_text_stays_text():
    assert escape_markdown("$x$ is $5") == r"\$x\$ is \$5"
    assert escape_markdown("<b>*x* a_b _c_ [d](e) `f` g|h") == r"\<b>\*x\* a_b \_c\_ \[d\](e) \`f\` g\|h"
